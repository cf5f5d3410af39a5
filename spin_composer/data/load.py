"""Examples of a ``dataset:`` block: kept ones, or new ones, which are kept then.

On several ranks each node's first makes them, and the others map the same files into memory.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from spin_composer.data import kept_examples
from spin_composer.data.cache_folder import cache_folder, folder_of_hashes, folder_of_key, trim
from spin_composer.data.cache_key import cache_key
from spin_composer.data.examples import ExampleDataset
from spin_composer.data.parallel import num_processes
from spin_composer.data.preprocess import runs_custom_code
from spin_composer.data.source_identity import file_states, is_small, local_files, source_identity
from spin_composer.data.sources import read_rows
from spin_composer.data.tokenization import build_examples, log_report
from spin_composer.errors import InputError
from spin_composer.settings.dataset import LEGACY_TOKENIZATION, DatasetConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_KEY = "train_loader.dataset.cache_dir"


def load_examples(
    config: DatasetConfig,
    tokenizer: PreTrainedTokenizerBase,
    legacy: bool = False,
    next_turn_stops: bool = True,
) -> ExampleDataset:
    """Return the examples of a block; a collective.

    Args:
        config: The checked ``dataset:`` block.
        tokenizer: The model's tokenizer.
        legacy: As of ``build_examples``.
        next_turn_stops: As of ``build_examples``.

    Raises:
        InputError: As of ``read_rows`` and ``build_examples``.
    """
    if legacy:
        config = replace(config, tokenize=LEGACY_TOKENIZATION)
    loader = _Loader(config, tokenizer, legacy, next_turn_stops)
    if "composer" not in sys.modules:  # a command: there are no ranks, and importing takes seconds
        return loader.load_or_make()[0] if loader.is_kept() else loader.make(alone=False)
    return _on_ranks(loader)


def _on_ranks(loader: _Loader) -> ExampleDataset:
    """Return what each node's first rank loads or makes, on all its ranks."""
    from composer.utils import dist

    from spin_composer.distributed import from_local_rank_zero, on_all_ranks

    of_node = dist.get_local_world_size()
    if dist.get_world_size() == 1 or not dist.is_initialized():
        # One process, or a script that makes its loader before its Trainer: ranks cannot wait for
        # each other yet.
        kept = loader.is_kept()
        return loader.load_or_make(of_node)[0] if kept else loader.make(alone=False, ranks=of_node)
    if not all(dist.all_gather_object(loader.is_kept())):
        return loader.make(alone=False, ranks=of_node)
    made: list[ExampleDataset] = []

    def lead() -> str:
        examples, folder = loader.load_or_make()
        folder = folder or loader.hand_over(examples)
        made.append(examples)
        return str(folder or "")

    try:
        folder = from_local_rank_zero(lead)
        return on_all_ranks(lambda: made[0] if made else loader.map(folder, of_node))
    finally:
        loader.end_handing_over()


@dataclass
class _Loader:
    """Loads and keeps the examples of one block."""

    config: DatasetConfig
    tokenizer: PreTrainedTokenizerBase
    legacy: bool
    next_turn_stops: bool
    _files: list[Path] | None = None
    _read: list[tuple[int, ...]] | None = None
    _handed_over: list[Path] = field(default_factory=list)

    def is_kept(self) -> bool:
        """Tell whether one rank of a node reads the rows, and keeps the examples."""
        try:
            self._files = local_files(self.config)
            return self._files is not None and not (self._files and is_small(self._files))
        except (InputError, OSError):  # the reader says what is missing
            return False

    def make(self, alone: bool, ranks: int = 1) -> ExampleDataset:
        """Read and tokenize the rows, as one of some ranks of this node that do."""
        processes = max(1, num_processes(self.config.num_proc) // ranks)
        if self.config.num_proc is None and runs_custom_code(self.config):
            processes = 1  # it may count rows, or draw random numbers
        return build_examples(
            read_rows(self.config, alone), self.tokenizer, self.config, self.legacy,
            self.next_turn_stops, processes,
        )  # fmt: skip

    def load_or_make(self, ranks: int = 1) -> tuple[ExampleDataset, Path | None]:
        """Return the examples and the folder where they are kept, None if they are not."""
        folder, damaged = self._folder(), False
        try:
            kept = None if folder is None else self._load(folder, verify=True)
        except kept_examples.Damaged as error:
            log.warning("SPIN data: the kept examples %s are made anew: %s.", folder, error)
            kept, damaged = None, True
        # Bad rows were left out of them, where they are an error now.
        if kept is not None and not (kept.report.dropped and self.config.on_bad_row == "error"):
            self._log(kept, folder)
            return kept, folder
        examples = self.make(alone=True, ranks=ranks)
        if folder is None or not self._is_unchanged():
            return examples, None
        try:
            kept_examples.save(examples, folder, damaged)
            trim(folder.parent.parent)
            kept = self._load(folder, verify=False)  # mapped, in place of memory of its own
        except (OSError, kept_examples.NotKept, kept_examples.Damaged) as error:
            log.warning(
                "SPIN data: the examples cannot be kept in %s, so that the next start tokenizes "
                "them again: %s. Set %s to another folder, or to false.", folder, error, _KEY,
            )  # fmt: skip
            return examples, None
        return (examples, None) if kept is None else (kept, folder)

    def _folder(self) -> Path | None:
        """Return the folder of these examples; None if they are not to be kept."""
        root = cache_folder(self.config)
        if root is None or self._files is None:
            return None
        try:
            self._read = file_states(self._files)
            source = source_identity(self.config, self._files, folder_of_hashes(root))
        except OSError as error:  # the reader says which file it cannot read
            log.info("SPIN data: the examples are not kept: %s.", error)
            return None
        key = source and cache_key(
            source, self.tokenizer, self.config, self.legacy, self.next_turn_stops
        )
        if key is None:
            log.info(
                "SPIN data: the examples are not kept: it is not known what they depend on (a "
                "tokenizer that is not fast, a streamed data set, or your own preprocessing_fn)."
            )
            return None
        return folder_of_key(root, key)

    def _is_unchanged(self) -> bool:
        """Tell whether the files are those of the key, now that they were read."""
        with contextlib.suppress(OSError):  # one is gone
            if file_states(self._files or ()) == self._read:
                return True
        log.warning("SPIN data: files changed while they were read: the examples are not kept.")
        return False

    def _load(self, folder: Path, verify: bool) -> ExampleDataset | None:
        try:
            return kept_examples.load(folder, self.tokenizer, self.config, verify)
        except PermissionError:
            return None  # saving them says so
        except OSError as error:  # of a file system of other machines
            log.warning("SPIN data: the kept examples %s cannot be read: %s.", folder, error)
            return None

    def _log(self, kept: ExampleDataset, folder: Path | None) -> None:
        """Log what was logged when the examples were made."""
        assert kept.origin is not None, "kept examples have an origin"
        for line in kept.origin.warnings:
            log.warning("%s", line)
        log_report(kept.report)
        log.info("SPIN data: the examples are those kept in %s.", folder)

    def hand_over(self, examples: ExampleDataset) -> Path | None:
        """Write examples that are not kept for the node's other ranks."""
        try:
            folder = Path(tempfile.mkdtemp(prefix="spin_composer-"))
            self._handed_over.append(folder)
            kept_examples.save(examples, folder / "examples")
        except (OSError, kept_examples.NotKept) as error:
            log.warning(
                "SPIN data: each rank tokenizes the rows itself: they cannot be handed over in "
                "%s: %s.", tempfile.gettempdir(), error,
            )  # fmt: skip
            return None
        return folder / "examples"

    def end_handing_over(self) -> None:
        """Remove what was written for the other ranks, which have mapped it."""
        for folder in self._handed_over:
            shutil.rmtree(folder, ignore_errors=True)

    def map(self, folder: str, ranks: int) -> ExampleDataset:
        """Return the examples that the node's first rank has verified or written.

        Args:
            folder: Where they are; empty if they could not be handed over.
            ranks: Ranks of this node, which then tokenize at the same time.
        """
        kept = self._load(Path(folder), verify=False) if folder else None
        return kept if kept is not None else self.make(alone=True, ranks=ranks)
