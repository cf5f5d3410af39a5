"""The stop token, which ends every response, real or generated.

For chat it is the first mark, a special or added token, that the chat template writes after the
last answer. If it writes none there, it is the mark that begins the next question, as a model tuned
on whole conversations writes it (GLM-4's ``<|user|>``). For plain rows, and for a template without
any such mark, it is EOS. The setting ``stop_token`` overrides all of this.
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
    "SPIN has one stop token per data set: if such turns end with another one, as tool calls do in "
    "some templates, drop them with on_bad_row: skip; else correct the chat template, or set "
    "train_loader.dataset.stop_token."
)
"""The remedy for a response without the stop token."""


@dataclass(frozen=True, slots=True)
class StopRule:
    """How the responses of one data set end.

    Args:
        token_id: The stop token.
        per_response: How often the rendered response contains it; 0 if it is to be appended.
        suffix: Text to append to a rendered row, so that it ends as if another turn followed: up to
            the stop token, which begins that turn.
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
        legacy: Allow a closing tag, as early versions did.
        stop_token: The setting: use this token and no other.
        next_turn: Allow the mark that begins the next turn. Not for models tuned by llm-foundry,
            which ends the last response with EOS, nor for runs of earlier versions.

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
    """Return the rule for the first mark between an answer and the next question, if any."""
    added = tokenizer.added_tokens_decoder
    texts = {
        added[i].content: i for i in marks & added.keys()
        if added[i].special or not added[i].content.isalnum()  # an added word is not a mark
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
    """Return the id of the token that ``stop_token`` names, as in the vocabulary or as text."""
    vocabulary = tokenizer.get_vocab()
    if text in vocabulary:
        return vocabulary[text]
    ids = _encode(tokenizer, text)
    if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
        return ids[0]
    made = text_tokenizer(tokenizer).convert_ids_to_tokens(ids)
    raise InputError(
        f"train_loader.dataset.stop_token={format_value(text)} is not a token of the tokenizer "
        f"{format_value(tokenizer.name_or_path)}, which encodes it as {format_value(made)}. Give a "
        f"token of its vocabulary, such as {format_value(tokenizer.eos_token)}."
    )


def _mark_ids(tokenizer: PreTrainedTokenizerBase, legacy: bool) -> set[int]:
    """Return the ids of special and added tokens, which are markers rather than text.

    Paired tags such as ``</answer>`` are not included: they are part of the answer.
    """
    texts = {token.content: i for i, token in tokenizer.added_tokens_decoder.items()}
    added = {i for text, i in texts.items() if text.strip() and (legacy or not is_tag(text, texts))}
    return added | set(tokenizer.all_special_ids)
