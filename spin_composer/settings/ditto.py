"""The settings of DITTO: which pairs an iteration is made of (``algorithms.spin.ditto``)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from spin_composer.settings.fields import SECTION, Number, require
from spin_composer.settings.section import section

GameName = Literal["spin", "ditto"]
DITTO = "ditto"

_ROUNDING = 1e-6
"""Shares may be written as 0.333333."""


@section(f"{SECTION}.ditto")
class DittoSettings:
    """The shares of an iteration's pairs (``algorithms.spin.ditto``), of ``game: ditto`` only.

    They add up to 1. The first iteration has no earlier responses: its pairs are all ``newest``.
    """

    newest: Annotated[Number, Field(gt=0, le=1)] = 0.7
    """Real over a response of this iteration. Every response makes such a pair, so the other kinds
    are counted by them: two for each seven."""
    earlier: Annotated[Number, Field(ge=0, lt=1)] = 0.2
    """Real over a response of an earlier iteration, drawn from all of them and scored again."""
    between: Annotated[Number, Field(ge=0, lt=1)] = 0.1
    """A response of this iteration over one of an earlier iteration to the same prompt."""

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        shares = (self.newest, self.earlier, self.between)
        given = " + ".join(f"{share:g}" for share in shares)
        require(
            abs(sum(shares) - 1) <= _ROUNDING,
            "",
            f"{given} = {sum(shares):g}",
            "shares newest, earlier and between that add up to 1",
        )
        remedy = "Its responses are those that pairs of the share earlier score: set that too."
        ok = self.earlier > 0 or self.between == 0
        require(ok, ".between", self.between, "0 where earlier is 0", remedy)
        return self

    def planned_pairs(self, newest: int) -> tuple[int, int]:
        """Return the numbers of ``earlier`` and of ``between`` pairs beside ``newest`` ones."""
        earlier, between = (share / self.newest for share in (self.earlier, self.between))
        return round(newest * earlier), round(newest * between)
