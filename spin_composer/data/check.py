"""``spin-composer data check``: how SPIN would read and tokenize a data set."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from spin_composer.data.chat_template import ChatTemplate
from spin_composer.data.counts import DataReport
from spin_composer.data.formats import Kind
from spin_composer.data.rendering_vs_turns import TokenizationDiff, diff_tokenizations
from spin_composer.data.sources import read_rows
from spin_composer.data.text_tokenizer import text_tokenizer
from spin_composer.data.tokenizer_errors import TemplateFailure
from spin_composer.data.tokenizers import load_tokenizer
from spin_composer.errors import InputError
from spin_composer.settings.dataset import DatasetConfig
from spin_composer.settings.section import Config

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase

    from spin_composer.data.examples import ExampleDataset

_NUM_BINS = 12
_NUM_FIRST = 8
_BAR_WIDTH = 40
_FEW_BYTES = 1 << 23
"""Data of this size one process tokenizes both ways sooner than several, which know no words."""


@dataclass
class CheckReport:
    """A summary of a data set as SPIN reads it."""

    source: str
    """What was checked."""
    kind: Kind
    """plain or chat."""
    rows: DataReport
    """Counts of rows read, kept, dropped and truncated."""
    prompt_lengths: np.ndarray
    """[n] int64, tokens of each kept prompt."""
    response_lengths: np.ndarray
    """[n] int64, tokens of each kept response."""
    stop_token: str
    """The token that ends each response."""
    stop_token_source: str
    """Where it comes from; empty for plain rows, which end with EOS."""
    fingerprint: str
    """xxh64 of all token ids: equal for equal data and tokenizer."""
    prompt_text: str
    """One example's prompt, decoded with its special tokens."""
    response_text: str
    """That example's response."""
    on_bad_row: Literal["error", "skip"] = "error"
    """Whether bad rows are an error."""
    generation_prompt: str | None = None
    """The chat template's generation prompt; None for plain rows."""
    prompt_end: list[str] = field(default_factory=list)
    """The example's last tokens before the response."""
    response_start: list[str] = field(default_factory=list)
    """The example's first tokens of the response."""
    special_tokens: dict[str, dict[str, int]] = field(default_factory=dict)
    """Counts of control tokens in all prompts and in all responses."""

    differences: TokenizationDiff = field(default_factory=TokenizationDiff)
    """Differences to the other way of tokenizing."""

    def raise_for_bad_rows(self) -> None:
        """Raise the error of the first bad row, unless bad rows are skipped."""
        count = sum(self.rows.dropped.values())
        if count and self.on_bad_row == "error":
            more = f" ({count} bad rows in all; on_bad_row: skip leaves them out.)"
            raise InputError(self.rows.faults[0] + more)


def inspect_config(
    config: DatasetConfig,
    tokenizer_name: str,
    tokenizer_kwargs: Config | None = None,
    title: str | None = None,
    row: int = 1,
) -> CheckReport:
    """Read, format and tokenize all data of a dataset block, and summarize it.

    All bad rows are counted; ``CheckReport.raise_for_bad_rows`` raises the error afterward, so that
    the report can be printed first.

    Args:
        config: The block, checked.
        tokenizer_name: The tokenizer's name or folder.
        tokenizer_kwargs: ``tokenizer.kwargs``.
        title: Name of the data in the report; the block's source if not given.
        row: Which kept row to show, from 1.

    Returns:
        The report.

    Raises:
        InputError: The data or the tokenizer cannot be read, or no row is usable.
    """
    title = title if title is not None else config.source
    counting = replace(config, on_bad_row="skip")
    # A missing file is found before the slow imports and the tokenizer's download.
    if next(read_rows(counting), None) is None:
        raise InputError(f"{title}: it has no rows. Give it at least one.")
    from spin_composer.data.load import load_examples
    from spin_composer.data.source_identity import is_small, local_files

    files = local_files(counting)
    if counting.num_proc is None and files and is_small(files, _FEW_BYTES):
        counting = replace(counting, num_proc=1)
    tokenizer = load_tokenizer(tokenizer_name, tokenizer_kwargs)
    examples = load_examples(counting, tokenizer)
    report = make_report(examples, tokenizer, title, config.on_bad_row, row)
    report.differences = diff_tokenizations(examples.tokenized_both_ways(limit=None), tokenizer)
    return report


def make_report(
    examples: ExampleDataset,
    tokenizer: PreTrainedTokenizerBase,
    source: str,
    on_bad_row: Literal["error", "skip"] = "error",
    row: int = 1,
) -> CheckReport:
    """Return the report on given examples."""
    if not 1 <= row <= len(examples):
        raise InputError(f"row={row}: there are rows 1 to {len(examples)}. Name one of them.")
    example = examples[row - 1]
    text = text_tokenizer(tokenizer)
    return CheckReport(
        source=source,
        kind=examples.kind,
        rows=examples.report,
        prompt_lengths=examples.lengths[:, 0],
        response_lengths=examples.lengths[:, 1],
        stop_token=str(text.convert_ids_to_tokens(examples.stop_token_id)),
        stop_token_source=_stop_token_source(examples),
        fingerprint=examples.fingerprint,
        prompt_text=text.decode(example.prompt, skip_special_tokens=False),
        response_text=text.decode(example.response, skip_special_tokens=False),
        on_bad_row=on_bad_row,
        generation_prompt=_generation_prompt(tokenizer) if examples.kind == "chat" else None,
        prompt_end=text.convert_ids_to_tokens(example.prompt[-_NUM_FIRST:].tolist()),
        response_start=text.convert_ids_to_tokens(example.response[:_NUM_FIRST].tolist()),
        special_tokens={
            "prompts": _special_tokens([one.prompt for one in examples], tokenizer),
            "responses": _special_tokens([one.response for one in examples], tokenizer),
        },
    )


def _stop_token_source(examples: ExampleDataset) -> str:
    rule, config = examples.stop_rule, examples.config
    by_hand = config is not None and config.stop_token is not None
    if rule is None or config is None or (examples.kind == "plain" and not by_hand):
        return ""
    if rule.suffix:
        source = "begins the next turn; the chat template writes no end of an answer"
    elif rule.per_response:
        source = "written by the chat template"
    else:
        source = "put at the end"
        if examples.kind == "chat" and not by_hand and config.tokenize != "turns":
            source += "; the chat template never writes it"
    return source + (", by stop_token" if by_hand else "")


def _generation_prompt(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the template's generation prompt; None if it cannot be determined."""
    template = ChatTemplate(tokenizer, quiet=True)
    turns = [{"role": "user", "content": "a"}]
    try:
        without, with_prompt = template(turns), template(turns, generation_prompt=True)
    except TemplateFailure:  # there is none, or it needs other turns
        return None
    return with_prompt[len(without) :] if with_prompt.startswith(without) else None


def _special_tokens(parts: list[np.ndarray], tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Count the control tokens among ids, the most frequent first."""
    added = {i for i, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
    ids, counts = np.unique(np.concatenate(parts), return_counts=True)
    special = np.isin(ids, sorted(added | set(tokenizer.all_special_ids)))
    order = np.argsort(-counts[special], kind="stable")
    text = text_tokenizer(tokenizer)
    return {
        str(text.convert_ids_to_tokens(int(i))): int(n)
        for i, n in zip(ids[special][order], counts[special][order], strict=True)
    }


def histogram(lengths: np.ndarray) -> list[tuple[int, int, int]]:
    """Count ``lengths`` [n] in at most ``_NUM_BINS`` bins of equal width.

    Returns:
        For each bin its least and greatest length, and how many fall into it.
    """
    low, high = int(lengths.min()), int(lengths.max())
    width = max(1, -(-(high - low + 1) // _NUM_BINS))
    counts = np.bincount((lengths - low) // width)
    return [(low + i * width, low + (i + 1) * width - 1, int(n)) for i, n in enumerate(counts)]


def print_report(report: CheckReport, console: Console) -> None:
    """Print the report: counts, both histograms, and one example with its response marked."""
    from rich.markup import escape
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    rows = report.rows
    counts = Table(title=f"{escape(report.source)} ({report.kind})", show_header=False)
    counts.add_column()
    counts.add_column(justify="right")
    counts.add_row("rows read", str(rows.rows))
    counts.add_row("rows kept", str(rows.kept))
    for reason, count in sorted(rows.dropped.items()):
        counts.add_row(f"dropped: {escape(reason)}", str(count))
    counts.add_row("prompts cut at their start", str(rows.truncated_prompts))
    counts.add_row("responses cut at max_seq_len", str(rows.truncated_responses))
    if report.generation_prompt is not None:
        counts.add_row("generation prompt", escape(repr(report.generation_prompt)))
    if where := rows.response_start_summary():
        counts.add_row("responses begin", escape(where))
    counts.add_row("the example's prompt ends with", escape(" ".join(map(repr, report.prompt_end))))
    counts.add_row("its response begins with", escape(" ".join(map(repr, report.response_start))))
    counts.add_row("stop token", escape(report.stop_token))
    if report.stop_token_source:
        counts.add_row("the stop token is", escape(report.stop_token_source))
    for name, tokens in report.special_tokens.items():
        text = ", ".join(f"{token} {count}" for token, count in tokens.items()) or "none"
        counts.add_row(f"special tokens in {name}", escape(text))
    if rows.unread_columns:
        counts.add_row("columns not read", escape(", ".join(sorted(rows.unread_columns))))
    if rows.ignored:
        counts.add_row("keys not read", escape(rows.ignored_keys()))
    counts.add_row("fingerprint", report.fingerprint)
    console.print(counts)
    for name, lengths in (
        ("prompt", report.prompt_lengths), ("response", report.response_lengths)
    ):  # fmt: skip
        console.print(_histogram_table(name, lengths))
    example = Text(report.prompt_text)
    example.append(report.response_text, style="bold green reverse")
    console.print(Panel(example, title="one example, its response marked"))
    # Without color (a file, a pipe) the response is printed separately as well.
    if not console.is_terminal:
        console.print(Panel(Text(report.response_text), title="its response"))
    for note in [*rows.notes, *report.differences.lines()]:
        console.print(Text(note, style="yellow"))
    for fault in rows.faults:
        console.print(Text(fault, style="red"))


def _histogram_table(name: str, lengths: np.ndarray):
    from rich.table import Table

    bins = histogram(lengths)
    most = max(count for _, _, count in bins)
    table = Table(
        title=f"{name} tokens: mean {lengths.mean():.1f}, median {np.median(lengths):.0f}, "
        f"99% {np.percentile(lengths, 99):.0f}, max {lengths.max()}",
    )
    table.add_column("tokens", justify="right")
    table.add_column("rows", justify="right")
    table.add_column("")
    for low, high, count in bins:
        # A bin with few rows still shows that it is not empty.
        width = max(round(_BAR_WIDTH * count / most), count > 0)
        table.add_row(str(low) if low == high else f"{low}-{high}", str(count), "█" * width)
    return table
