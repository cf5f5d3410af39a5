"""Counts of a data set's rows: kept, dropped, truncated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spin_composer.data.bad_row import BadRow

_NUM_SHOWN_FAULTS = 10
_NUM_SHOWN_IGNORED = 12
_NOTED = ("spelled_prompts", "truncated_answers", "unwritten_texts")


@dataclass
class DataReport:
    """Counts of a data set's rows, and notes for the user."""

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
    spelled_prompts: int = 0
    """Kept rows whose prompt spells out a control token."""
    truncated_answers: int = 0
    """Kept rows of whose answer the chat template leaves out a part."""
    unwritten_texts: int = 0
    """Texts beside calls of kept rows' earlier turns that the chat template leaves out."""
    response_starts: dict[str, int] = field(default_factory=dict)
    """With generation_prompt: response, kept rows by the missing part of the generation prompt."""
    faults: list[str] = field(default_factory=list)
    """The messages of the first bad rows."""
    ignored: dict[str, int] = field(default_factory=dict)
    """Counts of ignored keys of turns."""
    unread_columns: set[str] = field(default_factory=set)
    """Ignored columns."""
    unread_texts: set[str] = field(default_factory=set)
    """Those of conversation rows that hold texts."""
    notes: list[str] = field(default_factory=list)
    """Further notes for the user, one line each."""

    def drop(self, fault: BadRow) -> None:
        """Count a dropped row."""
        self.dropped[fault.reason] = self.dropped.get(fault.reason, 0) + 1
        if len(self.faults) < _NUM_SHOWN_FAULTS:
            self.faults.append(str(fault))

    def ignore(self, key: str) -> None:
        """Count an ignored key."""
        self.ignored[key] = self.ignored.get(key, 0) + 1

    def note(self, line: str) -> None:
        """Add a note for the user, once."""
        if line not in self.notes:
            self.notes.append(line)

    def note_unread(self, columns: Sequence[str]) -> None:
        """Note columns with texts that are not read, each once."""
        new = [column for column in columns if column not in self.unread_texts]
        if new:
            self.unread_texts.update(new)
            self.note(
                f"The conversation rows have texts that are not read, in the columns {new}. If the "
                "model is to see them, make them part of the turns with dataset.preprocessing_fn: "
                "module:function."
            )

    def begun(self) -> DataReport:
        """Return what later counts depend on: the notes, and which of the noted counts are not 0.

        The first row that is counted there is noted, and no other.
        """
        begun = DataReport(notes=list(self.notes), unread_texts=set(self.unread_texts))
        for name in _NOTED:
            setattr(begun, name, min(1, getattr(self, name)))
        return begun

    def since(self, begun: DataReport) -> DataReport:
        """Return the counts without those that they began with, and no notes."""
        since = replace(self, notes=[])
        for name in _NOTED:
            setattr(since, name, getattr(self, name) - getattr(begun, name))
        return since

    def plain(self) -> dict[str, Any]:
        """Return the counts in JSON's types."""
        made = asdict(self)
        return {key: sorted(v) if isinstance(v, set) else v for key, v in made.items()}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> DataReport:
        """Return the counts of :meth:`plain`."""
        empty = cls()
        made: dict[str, Any] = {
            key: set(value) if isinstance(getattr(empty, key), set) else value
            for key, value in plain.items()
        }
        return cls(**made)

    def add(self, more: DataReport) -> None:
        """Add the counts of further rows."""
        for one in fields(self):
            mine, theirs = getattr(self, one.name), getattr(more, one.name)
            if isinstance(mine, dict):
                for key, count in theirs.items():
                    mine[key] = mine.get(key, 0) + count
            elif isinstance(mine, set):
                mine |= theirs
            else:  # a number, or the lines that are kept
                setattr(self, one.name, mine + theirs)

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
        if self.spelled_prompts:
            text += f"; {self.spelled_prompts} prompts spell out control tokens"
        if self.truncated_answers:
            text += f"; of {self.truncated_answers} answers the chat template leaves out a part"
        if self.unwritten_texts:
            text += (
                f"; of {self.unwritten_texts} earlier turns with calls the chat template leaves "
                "out the text"
            )
        if where := self.response_start_summary():
            text += f"; responses begin {where}"
        if self.ignored:
            text += f"; not read: {self.ignored_keys()}"
        return text

    def response_start_summary(self) -> str:
        """Return where responses begin and in how many rows; empty if they begin alike."""
        named = sorted(self.response_starts.items(), key=lambda item: (-item[1], item[0]))
        places = {lacks: f"before {lacks!r}, the generation prompt's end," for lacks, _ in named}
        places[""] = "after the generation prompt"
        return ", ".join(f"{places[lacks]} in {count} rows" for lacks, count in named)

    def ignored_keys(self) -> str:
        """Return the names of ignored keys, the most frequent first."""
        named = sorted(self.ignored.items(), key=lambda item: (-item[1], item[0]))
        more = ", ..." if len(named) > _NUM_SHOWN_IGNORED else ""
        return ", ".join(f"{key} ({n} times)" for key, n in named[:_NUM_SHOWN_IGNORED]) + more
