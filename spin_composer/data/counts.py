"""What became of the rows of a data set."""

from __future__ import annotations

from dataclasses import dataclass, field

from spin_composer.data.formats import BadRow

_NUM_SHOWN_FAULTS = 10


@dataclass
class DataReport:
    """What became of the rows."""

    rows: int = 0
    """Rows read."""
    kept: int = 0
    """Rows that became examples."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Bad rows left out, by reason."""
    truncated_responses: int = 0
    """Kept rows whose response was cut at max_seq_len."""
    truncated_prompts: int = 0
    """Kept rows whose prompt was cut at its start."""
    faults: list[str] = field(default_factory=list)
    """The messages of the first bad rows."""

    def drop(self, fault: BadRow) -> None:
        """Count a row that is left out."""
        self.dropped[fault.reason] = self.dropped.get(fault.reason, 0) + 1
        if len(self.faults) < _NUM_SHOWN_FAULTS:
            self.faults.append(str(fault))

    def summary(self) -> str:
        """Return the counts in one line."""
        text = f"{self.kept} of {self.rows} rows kept"
        if self.dropped:
            parts = ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items()))
            text += f"; {sum(self.dropped.values())} bad rows skipped ({parts})"
        if self.truncated_responses:
            text += f"; {self.truncated_responses} responses cut at max_seq_len"
        if self.truncated_prompts:
            text += f"; {self.truncated_prompts} prompts cut at their start"
        return text
