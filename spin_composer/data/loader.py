"""The ``spin`` data loader, which a YAML's ``train_loader`` block builds.

It passes the SFT examples to the algorithm ``spin``, which replaces it by a loader of pairs before
the first batch. Its own batches must never be trained on, so creating one is an error. As an
``eval_loader`` it creates batches of held-out rows, tokenized like the training rows.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from composer.core import DataSpec, Evaluator
from composer.utils import dist
from torch.utils.data import DataLoader

from spin_composer import startup
from spin_composer.data.examples import Example, ExampleDataset
from spin_composer.data.held_out import (
    METRICS,
    HeldOutRows,
    held_out_collator,
    held_out_data_spec,
)
from spin_composer.data.load import load_examples
from spin_composer.data.origin import original_tokenize_warning
from spin_composer.data.pairs import num_pairs, num_tokens, split_pairs
from spin_composer.data.row_limits import check_first_batch_is_whole, check_rows
from spin_composer.errors import EnvironmentFailure, InputError, format_value
from spin_composer.pretrained.check import LoaderRun, check_run
from spin_composer.pretrained.tokenizer_limits import check_encoding
from spin_composer.settings.dataset import (
    LEGACY_TOKENIZATION,
    check_loader_keys,
    dataset_block,
    read_config,
)
from spin_composer.settings.section import Config
from spin_composer.settings.spin import ALL
from spin_composer.shared_memory import use_unique_names

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


@startup.within("rows")
def build_spin_dataloader(
    tokenizer: PreTrainedTokenizerBase | None,
    device_batch_size: int | float,
    dataset: Config | None = None,
    num_workers: int = 0,
    drop_last: bool = False,
    pin_memory: bool = True,
    prefetch_factor: int | None = 2,
    persistent_workers: bool = True,
    timeout: float = 0,
    evaluation: bool = False,
    run: LoaderRun | None = None,
    **unknown: Any,
) -> DataSpec:
    """Read and tokenize the SFT data, and wrap it for Composer's Trainer and the algorithm.

    Every rank has the same rows in the same order. Local rank 0 tokenizes those of a node, with
    ``dataset.num_proc`` processes, unless they are kept since an earlier start; data that is
    streamed from elsewhere, and small data, each rank reads itself.

    Args:
        tokenizer: The model's tokenizer.
        device_batch_size: Pairs in a rank's batch.
        dataset: llm-foundry's finetuning ``dataset:`` block and SPIN's own keys
            (``DatasetConfig``).
        num_workers: Processes of the loader of pairs, as the further arguments.
        drop_last: As of torch's DataLoader.
        pin_memory: As of torch's DataLoader.
        prefetch_factor: As of torch's DataLoader.
        persistent_workers: As of torch's DataLoader.
        timeout: As of torch's DataLoader, in seconds.
        evaluation: Create batches of held-out rows instead; the config transform sets it in an
            ``eval_loader`` named ``spin``. In Python, see :func:`build_spin_evaluator`.
        run: Limits that the rows are checked against (:mod:`spin_composer.pretrained.check`); the
            config transform sets it.
        unknown: Any other key is an error.

    Returns:
        A DataSpec whose ``dataloader.dataset`` is the ``ExampleDataset``, and which splits and
        counts pair batches; for evaluation, one of SFT batches.

    Raises:
        InputError: A setting, file or row that cannot work.
    """
    use_unique_names()  # llm-foundry creates its evaluation loaders after this one
    where = "eval_loader" if evaluation else "train_loader"
    check_loader_keys(unknown, where)
    if tokenizer is None:
        raise InputError("tokenizer=None: SPIN's data needs the model's tokenizer. Give one.")
    check_encoding(tokenizer)
    dataset = dataset_block(dataset, where)
    size = _batch_size(device_batch_size, evaluation)
    limits = None if run is None else check_run(run, tokenizer)
    start = time.monotonic()
    examples = read_examples(dataset, tokenizer, where, (run or {}).get("legacy_turns", False))
    log.info("SPIN data: %d examples in %.1f s.", len(examples), time.monotonic() - start)
    if not evaluation:
        samples = (run or {}).get("samples_per_iteration", ALL)
        responses = (run or {}).get("responses_per_prompt", 1)
        batch = size * dist.get_world_size()
        check_first_batch_is_whole(examples, samples, batch, responses)
    if run is not None and limits is not None:
        check_rows(examples, limits, run["max_new_tokens"], where)
    if evaluation and drop_last and len(examples) < size * dist.get_world_size():
        raise InputError(
            f"eval_loader.drop_last=true leaves none of the {len(examples)} rows: a batch of all "
            f"ranks has {size * dist.get_world_size()}. Set it to false."
        )
    loader = DataLoader(
        HeldOutRows(examples) if evaluation else examples,
        batch_size=size,
        # Gives ranks equally many rows; the Trainer's evaluation ignores the repeated ones.
        sampler=dist.get_sampler(examples, shuffle=False, drop_last=drop_last),
        drop_last=drop_last,
        collate_fn=held_out_collator(tokenizer) if evaluation else refuse_to_train,
        num_workers=num_workers,
        pin_memory=pin_memory,
        timeout=timeout,
        # torch refuses both when there are no worker processes.
        prefetch_factor=prefetch_factor if num_workers else None,
        persistent_workers=persistent_workers and num_workers > 0,
    )
    return held_out_data_spec(loader) if evaluation else pair_data_spec(loader)


def build_spin_evaluator(
    tokenizer: PreTrainedTokenizerBase | None,
    device_batch_size: int | float,
    dataset: Config | None = None,
    label: str = "eval",
    **loader: Any,
) -> Evaluator:
    """Read and tokenize held-out rows exactly like training rows.

    For ``Trainer(eval_dataloader=...)``: ``metrics/<label>/LanguageCrossEntropy`` is then the mean
    negative log-likelihood per response token, stop token included, over all rows and ranks.

    Args:
        tokenizer: The model's tokenizer.
        device_batch_size: Rows in a rank's batch.
        dataset: The ``dataset:`` block, as of :func:`build_spin_dataloader`; what changes the ids
            must be as it is there.
        label: Of the metrics.
        loader: ``num_workers``, ``drop_last`` and so on, as of :func:`build_spin_dataloader`.

    Returns:
        An Evaluator of SFT batches: ``input_ids``, ``labels``, ``attention_mask``. Without it, the
        Trainer would ask these batches for llm-foundry's in-context learning metrics too.

    Raises:
        InputError: A setting, file or row that cannot work.
    """
    spec = build_spin_dataloader(tokenizer, device_batch_size, dataset, **loader, evaluation=True)
    return Evaluator(label=label, dataloader=spec, metric_names=list(METRICS))


def _batch_size(given: int | float, evaluation: bool) -> int:
    if not isinstance(given, (int, float)) or int(given) != given or given < 1:
        what, setting = ("pairs", "global_train_batch_size to a multiple of the number of ranks")
        if evaluation:
            what, setting = "rows", "device_eval_batch_size"
        raise InputError(
            f"device_batch_size={format_value(given)} must be a whole number of {what}, 1 or more. "
            f"Set {setting}."
        )
    return int(given)


def read_examples(
    dataset: Config, tokenizer: PreTrainedTokenizerBase, where: str, legacy_turns: bool
) -> ExampleDataset:
    """Read and tokenize the rows of a loader's ``dataset:`` block; a collective.

    Args:
        dataset: The block.
        tokenizer: The model's tokenizer.
        where: The loader's name in messages.
        legacy_turns: As of :class:`~spin_composer.pretrained.check.LoaderRun`.

    Raises:
        InputError: A setting, file or row that cannot work.
    """
    try:
        config = read_config(dataset, f"{where}.dataset")
        legacy = legacy_turns and config.tokenize != "rendering"
        if legacy:
            log.warning(original_tokenize_warning(LEGACY_TOKENIZATION))
        return load_examples(config, tokenizer, legacy=legacy)
    except (InputError, EnvironmentFailure) as error:
        if where == "train_loader":
            raise
        # Messages about rows name train_loader.
        kind = InputError if isinstance(error, InputError) else EnvironmentFailure
        raise kind(str(error).replace("train_loader.", f"{where}.")) from error


def pair_data_spec(loader: DataLoader) -> DataSpec:
    """Return a DataSpec of ``loader`` for pair batches."""
    return DataSpec(
        loader,
        split_batch=split_pairs,
        get_num_samples_in_batch=num_pairs,
        get_num_tokens_in_batch=num_tokens,
    )


def examples_of(loader: object) -> ExampleDataset:
    """Return the SFT examples behind a loader or DataSpec that ``build_spin_dataloader`` made.

    Raises:
        InputError: It is another loader.
    """
    loader = loader.dataloader if isinstance(loader, DataSpec) else loader
    examples = getattr(loader, "dataset", None)
    if not isinstance(examples, ExampleDataset):
        raise InputError(
            f"train_loader: it is a loader of {type(examples).__name__}, and the algorithm spin "
            "plays on SPIN's own. Set train_loader.name: spin."
        )
    return examples


def refuse_to_train(examples: Sequence[Example]) -> NoReturn:
    """Raise, as the loader's collate function: the SFT examples must not be trained on directly."""
    raise RuntimeError(
        "train_loader `spin` holds SFT rows without generated responses and cannot be trained on "
        "by itself: add `algorithms: spin: {...}` to the YAML (or algorithms=[SPIN(...)] to the "
        "Trainer), which plays each iteration's pairs."
    )
