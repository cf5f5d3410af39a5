"""Hints about the combination of a data set and a tokenizer that are not errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from spin_composer.data.foreign import ANSWERS, PROMPTS
from spin_composer.data.formats import Kind
from spin_composer.data.other_ends import other_stop_tokens
from spin_composer.data.rendering import Renderer
from spin_composer.data.rows import Row
from spin_composer.data.stop import StopRule
from spin_composer.data.turn_ends import answer_header, read_turn_ends
from spin_composer.settings.dataset import DatasetConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_AS_CHAT = "spin_composer.data.mappings:as_chat"


def hints(
    tokenizer: PreTrainedTokenizerBase,
    config: DatasetConfig,
    kind: Kind,
    rule: StopRule,
    rows: Sequence[Row],
) -> Iterator[str]:
    """Yield the hints, a line each.

    Args:
        tokenizer: The model's tokenizer.
        config: The checked ``dataset:`` block.
        kind: Of the rows.
        rule: How responses end.
        rows: The first rows, formatted.
    """
    if kind == "chat" and rule.per_response == 0 and (
        config.stop_token is None and config.tokenize != "turns"
    ):  # fmt: skip
        yield _unwritten_stop_hint(tokenizer, rule, config)
    if tokenizer.chat_template is None:
        return
    if kind == "chat":
        if others := other_stop_tokens(tokenizer, rule, config.date_string):
            stop = tokenizer.convert_ids_to_tokens(rule.token_id)  # pyright: ignore
            yield _other_ends_hint(str(stop), others)
    elif not str(config.preprocessing_fn).endswith(":as_alpaca"):  # chosen for its own prompts
        opening = answer_header(Renderer(tokenizer, config.date_string, quiet=True))
        if opening and not _are_rendered(rows, opening):
            yield (
                "The rows are plain and are tokenized without the tokenizer's chat template. If "
                f"the model was tuned with it, {_remedy(config)}."
            )


def _unwritten_stop_hint(
    tokenizer: PreTrainedTokenizerBase, rule: StopRule, config: DatasetConfig
) -> str:
    stop = str(tokenizer.convert_ids_to_tokens(rule.token_id))  # pyright: ignore
    ends = read_turn_ends(tokenizer, config.date_string)
    written = repr(ends.between or ends.tail)
    return (
        f"Responses end with {stop!r}, which the chat template never writes: after an answer it "
        f"writes {written}, without any control token. A model tuned on such text alone never ends "
        "an answer so. If the model ends its answers with another token, set "
        "train_loader.dataset.stop_token to it; if it has none, choose one that was tuned with one."
    )


def _other_ends_hint(stop: str, others: list[str]) -> str:
    several = len(others) > 1
    names, those = " and ".join(map(repr, others)), "them" if several else "it"
    listed = ", ".join(f'"{token}"' for token in others)
    return (
        f"Responses end with {stop!r}. The model may end an answer with {names} as well, and "
        f"sampling goes past {those} unless algorithms.spin.generation.stop_strings holds {those}: "
        f"[{listed}]."
    )


def _are_rendered(rows: Sequence[Row], opening: str) -> bool:
    """Return whether most prompts contain what the template writes after a question."""
    mark = next(filter(None, map(str.strip, opening.splitlines())), None)
    return mark is not None and 2 * sum(mark in row["prompt"] for row in rows) > len(rows)


def _remedy(config: DatasetConfig) -> str:
    """Return how to convert the rows to turns."""
    given = config.preprocessing_fn
    if isinstance(given, str):
        return 'let dataset.preprocessing_fn return {"messages": [...]}'
    if given is None or (given["prompt"] in PROMPTS and given["response"] in ANSWERS):
        return f"make turns of them: set dataset.preprocessing_fn: {_AS_CHAT}"
    return (
        'give {"messages": [...]}, by a dataset.preprocessing_fn: module:function of yours '
        f"({_AS_CHAT} does it for columns named prompt, question, response, answer and the like)"
    )
