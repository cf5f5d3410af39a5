"""The settings of judging: those of the command ``judge`` and of the callback ``spin_judge``."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator
from typing_extensions import Self

from spin_composer.errors import InputError
from spin_composer.judge.answers import GSM8K_ANSWER, compile_answer
from spin_composer.settings.fields import Count, PositiveInt, Requirement, require
from spin_composer.settings.section import section

JUDGE = "spin_judge"
"""The callback's name in a YAML."""
JUDGE_SECTION = f"callbacks.{JUDGE}"
"""Its place in a YAML, and its name in messages."""


def _answer(given: str) -> str:
    try:
        compile_answer(given)
    except InputError:
        raise ValueError from None
    return given


_Answer = Annotated[
    str,
    AfterValidator(_answer),
    Requirement("a regular expression with a group, the answer itself"),
]


@section(JUDGE_SECTION, frozen=True)
class JudgeSettings:
    """How iterations are judged (``callbacks.spin_judge``; ``judge.rows=100`` on the command line).

    The command ``judge`` takes them from the YAML's callback too, if there is one.
    """

    rows: PositiveInt = 200
    """Held-out rows whose prompts are answered, drawn by ``seed``; all if there are fewer."""
    samples_per_prompt: PositiveInt = 1
    """Responses to each of them."""
    max_new_tokens: PositiveInt | None = None
    """Longest response; ``generation.max_new_tokens`` if not set."""
    batch_size: PositiveInt | None = None
    """Prompts of a generation batch of a rank; ``generation.batch_size`` if not set."""
    answer: _Answer | None = GSM8K_ANSWER
    """Regular expression whose group is a response's final answer, for exact match; null: none."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Folds of the classifier's cross-validation, of whole prompts."""
    resamples: Annotated[int, Field(ge=100)] = 1000
    """Resamples of the bootstrap that gives intervals."""
    seed: Count = 0
    """Of rows, sampling, folds and bootstrap; the same for every iteration."""
    patience: PositiveInt | None = 2
    """The callback ends the run after so many iterations in a row that did not help; null: never.
    """
    dataset: dict[str, Any] | None = None
    """The held-out rows, a ``dataset`` block; those of the first ``eval_loader`` with
    ``name: spin`` if not set."""

    @model_validator(mode="after")
    def _enough_rows(self) -> Self:
        least = 2 * self.folds
        require(self.rows >= least, ".rows", self.rows, f"at least twice .folds ({least})")
        return self
