"""A Composer callback that writes the policy as a Hugging Face folder."""

from __future__ import annotations

import copy
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, cast

import torch
from composer.core import Callback, Event, State, Time
from composer.core.time import TimeUnit
from composer.loggers import Logger, RemoteUploaderDownloader
from composer.models import HuggingFaceModel
from composer.utils import (
    dist,
    format_name_with_dist_and_time,
    maybe_create_remote_uploader_downloader_from_uri,
    parse_uri,
)
from composer.utils.misc import create_interval_scheduler
from torch import Tensor
from transformers import PretrainedConfig

from spin_composer.data.chat_template import with_template
from spin_composer.distributed import from_rank_zero
from spin_composer.errors import InputError, format_value
from spin_composer.export.card import (
    CARD,
    RunFacts,
    keep_card,
    model_card,
    neutral_generation_config,
)
from spin_composer.export.folder import (
    check_replaceable,
    save_adapters,
    save_model,
    written_aside,
)
from spin_composer.export.state import adapter_state, plain_state
from spin_composer.export.upload import RequireUploads, Uploads
from spin_composer.fsdp import unwrap
from spin_composer.model.adapters import unsupported_adapters
from spin_composer.model.unwrap import composer_model, inner_model, plain_class

if TYPE_CHECKING:
    from peft import PeftModel

log = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_ITERATION = "{iteration}"


class HuggingFaceExporter(Callback):
    """Write what AutoModelForCausalLM and AutoTokenizer load: each iteration's policy.

    One parameter after the other is gathered from its shards (FSDP1 and FSDP2) to rank 0, which
    writes a folder aside and then gives it its name. What was frozen or tied is so in the folder,
    and whatever the interval, the policy that a run ends with is written too.

    Args:
        save_folder: Where the folders go: a local folder, or a URL (``s3://``, ``gs://``,
            ``oci://``), to which a folder is uploaded before the run goes on; what the store does
            not take is tried again at the next export and as training ends. May hold
            ``{run_name}``.
        save_interval: How often, as Composer's: ``1iter``, ``2ep``, ``100ba``, ``0.5dur``.
        huggingface_folder_name: Name of each folder; may hold ``{iteration}``, from 0 and the one
            that was trained, and Composer's ``{epoch}``, ``{batch}`` and so on.
        precision: ``float32``, ``bfloat16`` or ``float16``, of the floating-point weights.
        merge_adapters: Of a PEFT model, write whole weights with the adapters merged; else only
            the adapters, which load beside their base.

    Raises:
        InputError: If the precision is another one, or a folder would not lie in ``save_folder``.

    Example:
        .. code-block:: python

            Trainer(..., callbacks=[HuggingFaceExporter("runs/my-run/hf")])
    """

    def __init__(
        self,
        save_folder: str,
        save_interval: str | int | Time = "1iter",
        huggingface_folder_name: str = "iter{iteration}",
        precision: str = "float32",
        merge_adapters: bool = False,
    ) -> None:
        if precision not in _DTYPES:
            raise InputError(
                f"HuggingFaceExporter: precision={format_value(precision)} must be one of "
                f"{', '.join(_DTYPES)}."
            )
        self._dtype = _DTYPES[precision]
        self._folder = parse_uri(save_folder)[2]
        self._name = _checked_name(huggingface_folder_name)
        self.merges_adapters = merge_adapters
        self._interval = interval = Time.from_input(save_interval, TimeUnit.EPOCH)
        self.check_interval: Callable[[State, Event], bool] = create_interval_scheduler(
            interval, include_end_of_training=True
        )
        """Tells whether an export is due."""
        self.uploader: RemoteUploaderDownloader | None
        """Reaches the object store that folders are uploaded to; None if they stay on a disk."""
        self.uploader = maybe_create_remote_uploader_downloader_from_uri(save_folder, loggers=[])
        self._uploads = None if self.uploader is None else Uploads(save_folder, self.uploader)
        self._exported_batch: int | None = None
        self.facts: RunFacts | None = None
        """What the model card says; the algorithm sets it. Without it there is no card."""

    @property
    def folder(self) -> str:
        """The folder of all exports, local or in the object store, as Composer's format string."""
        return self._folder

    @property
    def local_folder(self) -> str | None:
        """The folder, as Composer's format string, of exports that stay on a disk."""
        return self._folder if self.uploader is None else None

    def place(self, state: State, iteration: int) -> str:
        """Return the folder, or its name in the object store, of an export that is written now."""
        place = str(Path(self._folder) / self._name.replace(_ITERATION, str(iteration)))
        return format_name_with_dist_and_time(place, state.run_name, state.timestamp)

    def exported_config(self, config: PretrainedConfig) -> PretrainedConfig:
        """Return the config that is written, a copy."""
        config = copy.deepcopy(config)
        if getattr(config, "use_cache", None) is False:  # training's: see read_config
            config.use_cache = True
        return config

    def init(self, state: State, logger: Logger) -> None:
        """Reject a model that could not be loaded again, or a folder in use; begin to upload.

        Raises:
            InputError: Names the model's class or adapters, or the folder.
        """
        _check(composer_model(state), self.merges_adapters)
        if self.uploader is None:
            place = Path(self.place(state, int(state.timestamp.iteration)))
            from_rank_zero(lambda: check_replaceable(place))
        if self.uploader is not None and self._uploads is not None:
            self.uploader.init(state, logger)
            state.callbacks += [self.uploader, RequireUploads(self._uploads)]

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Export if it is time; a collective."""
        del logger
        self._export_if_due(state, Event.BATCH_CHECKPOINT)

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        """Export if it is time; a collective."""
        del logger
        self._export_if_due(state, Event.EPOCH_CHECKPOINT)

    def iteration_checkpoint(self, state: State, logger: Logger) -> None:
        """Export if it is time; a collective."""
        del logger
        self._export_if_due(state, Event.ITERATION_CHECKPOINT)

    def fit_start(self, state: State, logger: Logger) -> None:
        """Write a resumed run's last export if the object store lacks it; a collective.

        A run that was killed while the store took no files has written it nowhere else.
        """
        del logger
        uploads, interval, time = self._uploads, self._interval, state.timestamp
        done = int(time.iteration)
        within = int(time.epoch_in_iteration) or int(time.batch_in_epoch)
        if uploads is None or interval.unit != TimeUnit.ITERATION or done == 0 or within:
            return
        place = self.place(state, done - 1)
        if done % int(interval) == 0 and not from_rank_zero(lambda: uploads.is_whole(place)):
            self._export(state, done - 1)

    def fit_end(self, state: State, logger: Logger) -> None:
        """Upload what could not be uploaded before; a collective."""
        del state, logger
        if self._uploads is not None:
            from_rank_zero(self._uploads.try_all)

    def _export_if_due(self, state: State, event: Event) -> None:
        batch = int(state.timestamp.batch)
        if batch == self._exported_batch or not self.check_interval(state, event):
            return
        # At an iteration's end the clock already shows the next one.
        self._export(state, int(state.timestamp.iteration) - (event == Event.ITERATION_CHECKPOINT))

    def _export(self, state: State, trained: int) -> None:
        self._exported_batch = int(state.timestamp.batch)
        place = self.place(state, trained)
        model = composer_model(state)
        read = adapter_state if self._writes_adapters(model) else plain_state
        tensors = read(model.model, self._dtype, model, dist.get_global_rank() == 0)
        from_rank_zero(lambda: self._write(state, tensors, place, trained))

    def _writes_adapters(self, model: HuggingFaceModel) -> bool:
        return hasattr(model.model, "peft_config") and not self.merges_adapters

    def _write(self, state: State, tensors: dict[str, Tensor], place: str, iteration: int) -> None:
        """Write the folder, or write it aside and upload it; rank 0 only."""
        if self._uploads is None:
            with written_aside(Path(place)) as folder:
                self._save(state, tensors, folder, iteration)
                keep_card(Path(place), folder)
            log.info("The policy was exported to %s", place)
            return
        scratch = Path(tempfile.mkdtemp(prefix="spin-export-"))
        try:
            folder = scratch / "new"
            folder.mkdir()
            self._save(state, tensors, folder, iteration)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        self._uploads.add(place, folder)

    def _save(self, state: State, tensors: dict[str, Tensor], folder: Path, iteration: int) -> None:
        model = composer_model(state)
        inner, tokenizer = inner_model(model.model), cast("Any", model.tokenizer)
        generation, facts = copy.deepcopy(inner.generation_config), self.facts
        if facts is not None:
            generation = neutral_generation_config(
                facts.stop_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
            )
        adapters = self._writes_adapters(model)
        if adapters:
            save_adapters(cast("PeftModel", unwrap(model.model)), tensors, folder)
            if facts is not None:
                generation.save_pretrained(folder)
        else:
            config = self.exported_config(inner.config)
            save_model(model.model, tensors, config, generation, folder)
        if facts is not None and facts.renders_chats:
            tokenizer = with_template(tokenizer)
        tokenizer.save_pretrained(folder)
        if facts is not None:  # in place of the one that PEFT writes
            base = str(getattr(inner.config, "name_or_path", ""))
            history = facts.history(iteration, state)
            card = model_card(facts, history, base, iteration, adapters)
            (folder / CARD).write_text(card, encoding="utf-8")


def _checked_name(name: str) -> str:
    """Return the name of each export's folder, which must lie within the save folder."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts:
        raise InputError(
            f"HuggingFaceExporter: huggingface_folder_name={format_value(name)} must name a folder "
            "within save_folder, such as iter{iteration}: an export replaces what is there."
        )
    return name


def _check(model: object, merges_adapters: bool) -> None:
    """Reject what transformers' Auto classes would not load as it is here."""
    if not isinstance(model, HuggingFaceModel) or model.tokenizer is None:
        raise InputError(
            "HuggingFaceExporter exports a Hugging Face causal LM with its tokenizer, got "
            f"{type(model).__name__}. Use HFSpinLM.from_model(model, tokenizer)."
        )
    cls = plain_class(inner_model(model.model))
    if not cls.__module__.startswith(("transformers.", "transformers_modules.")):
        raise InputError(
            f"HuggingFaceExporter cannot export a {cls.__name__}: AutoModelForCausalLM loads "
            "transformers' own classes and the Hub's. For MPT, use llm-foundry's "
            "HuggingFaceCheckpointer."
        )
    kinds = unsupported_adapters(model.model) if merges_adapters else []
    if kinds:
        raise InputError(
            f"HuggingFaceExporter: merge_adapters=true, and adapters of kind {', '.join(kinds)} "
            "are not merged. Set it to false: the adapters are then written by themselves."
        )
