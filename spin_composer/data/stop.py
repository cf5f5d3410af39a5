"""The one token at which a response ends, real or generated.

For chat it is the end-of-turn token that the chat template puts after the assistant's content;
for plain rows, and for a template without such a token, it is EOS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from spin_composer.data.formats import Kind
from spin_composer.data.rendering import Renderer
from spin_composer.data.spelled import is_tag
from spin_composer.errors import InputError, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "spin probe"


@dataclass(frozen=True, slots=True)
class StopRule:
    """How the responses of one data set end.

    Args:
        token_id: The stop token.
        per_response: How often the rendered response holds it; 0 if it is to be appended.
    """

    token_id: int
    per_response: int


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
    old: bool = False,
) -> StopRule:
    """Find the stop token and how it comes into a tokenised response.

    Args:
        tokenizer: The model's.
        kind: plain or chat.
        date_string: For the template.
        old: A closing tag may be one, as it was before.

    Raises:
        InputError: The tokenizer has neither an end-of-turn token nor EOS.
    """
    if kind == "chat":
        tail = _template_tail_ids(tokenizer, date_string)
        marks = _mark_ids(tokenizer, old)
        found = next((token for token in tail if token in marks), None)
        if found is not None:
            return StopRule(found, tail.count(found))
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"tokenizer.eos_token=None: {shown(tokenizer.name_or_path)} has no EOS token"
            + (" and its chat template no end-of-turn token" if kind == "chat" else "")
            + ", so that no response could end. Set tokenizer.kwargs.eos_token to a token of its "
            "vocabulary."
        )
    return StopRule(cast(int, tokenizer.eos_token_id), 0)


def _template_tail_ids(tokenizer: PreTrainedTokenizerBase, date_string: str | None) -> list[int]:
    """Return the ids that the chat template puts after the last assistant's content."""
    turns = [{"role": "user", "content": _PROBE}, {"role": "assistant", "content": _PROBE}]
    renderer = Renderer(tokenizer, date_string, quiet=True)
    try:
        response = renderer.text(turns)
    except InputError:
        raise
    except Exception as error:
        try:  # some templates demand a system turn
            response = renderer.text([{"role": "system", "content": _PROBE}, *turns])
        except Exception:
            raise InputError(
                f"tokenizer.chat_template: it cannot render a user's and an assistant's turn: "
                f"{error}. Mend the template of {shown(tokenizer.name_or_path)}."
            ) from error
    if response.count(_PROBE) < 2:
        raise InputError(
            f"tokenizer.chat_template: the assistant's content does not appear in its rendering "
            f"{shown(response)}. Mend the template of {shown(tokenizer.name_or_path)}."
        )
    tail = response.rsplit(_PROBE, 1)[1]
    return tokenizer(tail, add_special_tokens=False)["input_ids"] if tail else []  # type: ignore


def _mark_ids(tokenizer: PreTrainedTokenizerBase, old: bool) -> set[int]:
    """Return the ids that stand for a mark rather than for text: special and added tokens.

    A tag of a pair, such as ``</answer>``, is a part of the answer that it closes.
    """
    texts = {token.content: i for i, token in tokenizer.added_tokens_decoder.items()}
    added = {i for text, i in texts.items() if text.strip() and (old or not is_tag(text, texts))}
    return added | set(tokenizer.all_special_ids)
