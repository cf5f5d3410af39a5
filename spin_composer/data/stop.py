"""The stop token, which ends every response, real or generated.

For chat it is the first mark, a special or added token, that the chat template puts after the
assistant's content: after the last answer; else, where another question follows, the mark that
begins it, as a model tuned on whole conversations writes it (GLM-4's ``<|user|>``). For plain
rows, and for a template without any such mark, it is EOS. ``stop_token`` says otherwise.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from spin_composer.data.control_tokens import is_tag
from spin_composer.data.formats import Kind
from spin_composer.data.text_tokenizer import text_tokenizer
from spin_composer.data.turn_ends import TurnEnds, read_turn_ends
from spin_composer.errors import InputError, format_value

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ONE_STOP_TOKEN = (
    "SPIN has one stop token per data set: if such turns end with another one, as calls of tools "
    "do in some templates, drop them with on_bad_row: skip; else correct the chat template, or set "
    "train_loader.dataset.stop_token."
)
"""The remedy for a response without the stop token."""


@dataclass(frozen=True, slots=True)
class StopRule:
    """How the responses of one data set end.

    Args:
        token_id: The stop token.
        per_response: How often the rendered response holds it; 0 if it is to be appended.
        suffix: What is to be written after a rendered row, for its end to be like that of a row
            that goes on: up to the stop token, which begins the next turn.
    """

    token_id: int
    per_response: int
    suffix: str = ""


def stop_token_id(tokenizer: PreTrainedTokenizerBase, kind: Kind) -> int:
    """Return the id of the token at which responses of this kind end.

    Raises:
        InputError: The tokenizer has neither an end-of-turn token nor EOS.
    """
    return stop_rule(tokenizer, kind).token_id


def stop_rule(
    tokenizer: PreTrainedTokenizerBase,
    kind: Kind,
    date_string: str | None = None,
    legacy: bool = False,
    stop_token: str | None = None,
    next_turn: bool = True,
) -> StopRule:
    """Find the stop token and whether rendered responses contain it.

    Args:
        tokenizer: The model's tokenizer.
        kind: plain or chat.
        date_string: For the template.
        legacy: A closing tag may be one, as it was before.
        stop_token: The setting: take this token and no other.
        next_turn: The mark that begins the next turn may be one. It is none for llm-foundry's
            models, whose last response it ends with EOS, and was none in earlier versions.

    Raises:
        InputError: The tokenizer has neither an end-of-turn token nor EOS, or not that token.
    """
    given = None if stop_token is None else _given_id(tokenizer, stop_token)
    if kind == "chat":
        marks = _mark_ids(tokenizer, legacy) if given is None else {given}
        ends = read_turn_ends(tokenizer, date_string)
        tail = _encode(tokenizer, ends.tail)
        found = next((token for token in tail if token in marks), None)
        if found is not None:
            return StopRule(found, tail.count(found))
        if next_turn and (rule := _next_turn_rule(tokenizer, ends, marks)) is not None:
            return rule
    if given is not None:
        return StopRule(given, 0)
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"tokenizer.eos_token=None: {format_value(tokenizer.name_or_path)} has no EOS token"
            + (" and its chat template no end-of-turn token" if kind == "chat" else "")
            + ", so that no response could end. Set tokenizer.kwargs.eos_token to a token of its "
            "vocabulary."
        )
    return StopRule(cast(int, tokenizer.eos_token_id), 0)


def _next_turn_rule(
    tokenizer: PreTrainedTokenizerBase, ends: TurnEnds, marks: Set[int]
) -> StopRule | None:
    """Return the rule by the first mark between an answer and the next question."""
    added = tokenizer.added_tokens_decoder
    texts = {
        added[i].content: i for i in marks & added.keys()
        if added[i].special or not added[i].content.isalnum()  # an added word is no mark
    }  # fmt: skip
    following = ends.following
    text = following or ends.between
    places = [(at, -len(mark), mark) for mark in texts if (at := text.find(mark)) >= 0]
    if not places:
        return None
    at, _, mark = min(places)
    suffix = following[: at + len(mark)]
    if suffix and _encode(tokenizer, ends.tail + suffix)[-1] == texts[mark]:
        return StopRule(texts[mark], 1, suffix)
    return StopRule(texts[mark], 0)


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []  # type: ignore


def _given_id(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    """Return the id of the token that ``stop_token`` names, as it is listed or as it is written."""
    vocabulary = tokenizer.get_vocab()
    if text in vocabulary:
        return vocabulary[text]
    ids = _encode(tokenizer, text)
    if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
        return ids[0]
    made = text_tokenizer(tokenizer).convert_ids_to_tokens(ids)
    raise InputError(
        f"train_loader.dataset.stop_token={format_value(text)} is no token of the tokenizer "
        f"{format_value(tokenizer.name_or_path)}, which makes {format_value(made)} of it. Give one "
        f"token of its vocabulary, such as {format_value(tokenizer.eos_token)}."
    )


def _mark_ids(tokenizer: PreTrainedTokenizerBase, legacy: bool) -> set[int]:
    """Return the ids of special and added tokens, which are markers rather than text.

    Paired tags such as ``</answer>`` are not included: they are part of the answer.
    """
    texts = {token.content: i for i, token in tokenizer.added_tokens_decoder.items()}
    added = {i for text, i in texts.items() if text.strip() and (legacy or not is_tag(text, texts))}
    return added | set(tokenizer.all_special_ids)
