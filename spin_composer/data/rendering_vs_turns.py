"""Comparison of the two ways of tokenizing on the rows of a data set, for ``data check``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spin_composer.data.bad_row import BadRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from spin_composer.data.origin import RenderingVsTurns


_BEFORE, _AFTER = 3, 6


@dataclass(frozen=True)
class TokenizationDiff:
    """Differences between ``tokenize: rendering`` and ``turns`` on the same rows."""

    compared: int = 0
    """Rows that both ways can tokenize."""
    differ: int = 0
    """Rows of these with different ids."""
    only_rendering: int = 0
    """Rows that ``turns`` cannot tokenize."""
    only_turns: int = 0
    """Rows that ``rendering`` cannot tokenize."""
    where: str = ""
    """The first row that differs."""
    rendering: tuple[str, ...] = ()
    """Its tokens around the first difference, by ``rendering``."""
    turns: tuple[str, ...] = ()
    """The same by ``turns``."""

    def lines(self) -> list[str]:
        """Return notes for the user; empty if no row differs."""
        said = []
        if self.differ:
            said.append(
                f"tokenize: rendering and turns differ on {self.differ} of {self.compared} rows. "
                f"{self.where}: rendering {' '.join(map(repr, self.rendering))}; "
                f"turns {' '.join(map(repr, self.turns))}. Take the way that the model was tuned "
                "in: TRL, axolotl and most others rendering, llm-foundry turns."
            )
        for count, can, cannot in (
            (self.only_rendering, "rendering", "turns"), (self.only_turns, "turns", "rendering")
        ):  # fmt: skip
            if count:
                said.append(
                    f"{count} rows can be tokenized by tokenize: {can} only, not by {cannot}."
                )
        return said


def diff_tokenizations(
    ways: Iterable[RenderingVsTurns], tokenizer: PreTrainedTokenizerBase
) -> TokenizationDiff:
    """Compare rows in both ways.

    Args:
        ways: Each has ``where``, and an ``Example`` or ``BadRow`` as ``rendering`` and ``turns``.
        tokenizer: Names the tokens.
    """
    compared = differ = only_rendering = only_turns = 0
    first: tuple[str, tuple[str, ...], tuple[str, ...]] = ("", (), ())
    for way in ways:
        rendering, turns = way.rendering, way.turns
        if isinstance(rendering, BadRow) or isinstance(turns, BadRow):
            only_rendering += not isinstance(rendering, BadRow)
            only_turns += not isinstance(turns, BadRow)
            continue
        compared += 1
        ids = [np.concatenate([one.prompt, one.response]) for one in (rendering, turns)]
        same = len(rendering.prompt) == len(turns.prompt) and np.array_equal(ids[0], ids[1])
        if same:
            continue
        if not differ:
            length = min(map(len, ids))
            unlike = np.flatnonzero(ids[0][:length] != ids[1][:length])
            at = int(unlike[0]) if len(unlike) else length
            part = slice(max(0, at - _BEFORE), at + _AFTER)
            first = (
                str(way.where),
                _token_names(ids[0][part], tokenizer),
                _token_names(ids[1][part], tokenizer),
            )
        differ += 1
    return TokenizationDiff(compared, differ, only_rendering, only_turns, *first)


def _token_names(ids: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    return tuple(map(str, tokenizer.convert_ids_to_tokens(ids.tolist())))  # pyright: ignore
