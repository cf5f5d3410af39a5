"""The stop token, which ends every response, real or generated.

For chat it is the end-of-turn token that the chat template writes after the assistant's content;
for plain rows, and for templates without such a token, it is EOS.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from spin_composer.data.control_tokens import is_tag
from spin_composer.data.formats import Kind
from spin_composer.data.rendering import Renderer
from spin_composer.errors import InputError, format_value

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "spin probe"
# Llama 3.1's, Llama 4's, Harmony's and ChatML's ends of turns and of calls.
_ENDS_A_TURN = re.compile(r"<\|(call|return|eom|eom_id|eot|eot_id|im_end|end_of_turn)\|>")
_GENERATION_CONFIG = "generation_config.json"
_CALL = {"name": "spin_probe", "arguments": {}}
_TOOL = {"name": "spin_probe", "description": _PROBE,
         "parameters": {"type": "object", "properties": {}}}  # fmt: skip


@dataclass(frozen=True, slots=True)
class StopRule:
    """How the responses of one data set end.

    Args:
        token_id: The stop token.
        per_response: How often the rendered response contains it; 0 if it must be appended.
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
    legacy: bool = False,
) -> StopRule:
    """Find the stop token and whether rendered responses contain it.

    Args:
        tokenizer: The model's tokenizer.
        kind: plain or chat.
        date_string: The date for the template.
        legacy: Also accept a closing tag, as early versions did.

    Raises:
        InputError: The tokenizer has neither an end-of-turn token nor EOS.
    """
    if kind == "chat":
        tail = _template_tail_ids(tokenizer, date_string)
        marks = _mark_ids(tokenizer, legacy)
        found = next((token for token in tail if token in marks), None)
        if found is not None:
            return StopRule(found, tail.count(found))
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"tokenizer.eos_token=None: {format_value(tokenizer.name_or_path)} has no EOS token"
            + (" and its chat template no end-of-turn token" if kind == "chat" else "")
            + ", so that no response could end. Set tokenizer.kwargs.eos_token to a token of its "
            "vocabulary."
        )
    return StopRule(cast(int, tokenizer.eos_token_id), 0)


def _template_tail_ids(tokenizer: PreTrainedTokenizerBase, date_string: str | None) -> list[int]:
    """Return the ids that the chat template writes after the last assistant's content."""
    turns = [{"role": "user", "content": _PROBE}, {"role": "assistant", "content": _PROBE}]
    renderer = Renderer(tokenizer, date_string, quiet=True)
    try:
        response = renderer.text(turns)
    except InputError:
        raise
    except Exception as error:
        try:  # some templates require a system turn
            response = renderer.text([{"role": "system", "content": _PROBE}, *turns])
        except Exception:
            raise InputError(
                f"tokenizer.chat_template: it cannot render a user's and an assistant's turn: "
                f"{error}. Fix the template of {format_value(tokenizer.name_or_path)}."
            ) from error
    if response.count(_PROBE) < 2:
        raise InputError(
            "tokenizer.chat_template: the assistant's content does not appear in its rendering "
            f"{format_value(response)}. Fix the template of "
            f"{format_value(tokenizer.name_or_path)}."
        )
    tail = response.rsplit(_PROBE, 1)[1]
    return tokenizer(tail, add_special_tokens=False)["input_ids"] if tail else []  # type: ignore


def _mark_ids(tokenizer: PreTrainedTokenizerBase, legacy: bool) -> set[int]:
    """Return the ids of special and added tokens, which are markers rather than text.

    Paired tags such as ``</answer>`` are not included: they are part of the answer.
    """
    texts = {token.content: i for i, token in tokenizer.added_tokens_decoder.items()}
    added = {i for text, i in texts.items() if text.strip() and (legacy or not is_tag(text, texts))}
    return added | set(tokenizer.all_special_ids)


def other_stop_tokens(
    tokenizer: PreTrainedTokenizerBase, rule: StopRule, date_string: str | None = None
) -> list[str]:
    """Return tokens of the chat template, besides the stop token, that may end an answer.

    These are tokens that end tool calls, EOS tokens of the model's generation config (if the
    tokenizer's folder or Hugging Face's cache has it), and well-known end-of-turn tokens. Headers
    of the assistant's turn and ends of documents (EOS) are excluded.

    Args:
        tokenizer: The model's tokenizer.
        rule: How the responses of the data set end.
        date_string: The date for the template.
    """
    source = str(tokenizer.chat_template or "")
    added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items()}
    renderer = Renderer(tokenizer, date_string, quiet=True)
    written = {i: text for i, text in added.items() if text.strip() and text in source}
    texts = dict.fromkeys(added.values())
    found = {i for i, text in written.items() if _ENDS_A_TURN.fullmatch(text)}
    named = _generation_ends(tokenizer.name_or_path) & written.keys()
    found |= named - {cast(Any, tokenizer.eos_token_id), cast(Any, tokenizer.pad_token_id)}
    if (end := _end_of_call(renderer, list(added.values()))) is not None:
        found |= {i for i, text in added.items() if text == end and not is_tag(text, texts)}
    opening = answer_header(renderer)
    return [added[i] for i in sorted(found - {rule.token_id}) if added[i] not in opening]


def answer_header(renderer: Renderer) -> str:
    """Return what a chat template writes between a question and its answer; empty if unknown."""
    try:
        text = renderer.text([{"role": "user", "content": _PROBE}], generation_prompt=True)
    except Exception:  # it needs other turns
        return ""
    return text.rpartition(_PROBE)[2]


def _end_of_call(renderer: Renderer, added: Sequence[str]) -> str | None:
    """Return the token with which the template ends a tool call."""
    for arguments in ({}, "{}"):
        function = {**_CALL, "arguments": arguments}
        call = {"type": "function", "id": "spinprobe", "function": function}
        turns = [
            {"role": "user", "content": _PROBE},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
        try:
            text = renderer.text(turns, {"tools": [{"type": "function", "function": _TOOL}]})
        except Exception:  # it does not support calls, or needs arguments in the other form
            continue
        if _CALL["name"] not in text:
            return None  # it writes no calls
        tail = text.rpartition(_CALL["name"])[2].rstrip()
        return max((token for token in added if token and tail.endswith(token)), key=len,
                   default=None)  # fmt: skip
    return None


def _generation_ends(name: object) -> set[int]:
    """Return the EOS ids of the generation config, if it is available offline."""
    if not name:
        return set()
    path: object = Path(str(name)) / _GENERATION_CONFIG
    try:
        if not path.is_file():
            from huggingface_hub import try_to_load_from_cache

            path = try_to_load_from_cache(str(name), _GENERATION_CONFIG)
        if not isinstance(path, (str, Path)):
            return set()
        said = json.loads(Path(path).read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError):  # not a repository; transformers ignores this as well
        return set()
    return {i for i in (said if isinstance(said, list) else [said]) if isinstance(i, int)}
