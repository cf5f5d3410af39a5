"""Tokens other than the stop token that may end an answer: for messages, and to test a policy."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from spin_composer.data.control_tokens import is_tag
from spin_composer.data.formats import Kind
from spin_composer.data.rendering import Renderer
from spin_composer.data.stop import StopRule, stop_rule
from spin_composer.data.tokenizer_errors import TemplateFailure
from spin_composer.data.turn_ends import answer_header, read_turn_ends
from spin_composer.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE = "spin probe"
# Ends of turns and of calls of Llama 3.1, Llama 4, Harmony and ChatML.
_ENDS_A_TURN = re.compile(r"<\|(call|return|eom|eom_id|eot|eot_id|im_end|end_of_turn)\|>")
_GENERATION_CONFIG = "generation_config.json"
_CALL = {"name": "spin_probe", "arguments": {}}
_TOOL = {"name": "spin_probe", "description": _PROBE,
         "parameters": {"type": "object", "properties": {}}}  # fmt: skip
_ROLES = ("system", "user", "assistant", "tool", "observation")


def other_stop_tokens(
    tokenizer: PreTrainedTokenizerBase, rule: StopRule, date_string: str | None = None
) -> list[str]:
    """Return the tokens of the chat template, besides the stop token, that may end an answer.

    They are those that end its tool calls, those that the model's generation config stops at (if it
    is in the tokenizer's folder or Hugging Face's cache), and those with the usual names. Tokens of
    the assistant's header are not among them, nor is EOS as the end of a document, which a template
    never writes.

    Args:
        tokenizer: The model's tokenizer.
        rule: How the answers of the data set end.
        date_string: For the template.
    """
    source = str(tokenizer.chat_template or "")
    added = {i: token.content for i, token in tokenizer.added_tokens_decoder.items()}
    renderer = Renderer(tokenizer, date_string, quiet=True)
    source += "".join(_rendered(renderer, role) for role in _ROLES)  # '<|' + role + '|>'
    written = {i: text for i, text in added.items() if text.strip() and text in source}
    texts = dict.fromkeys(added.values())
    found = {i for i, text in written.items() if _ENDS_A_TURN.fullmatch(text)}
    named = _generation_ends(tokenizer.name_or_path) & written.keys()
    found |= named - {cast(Any, tokenizer.eos_token_id), cast(Any, tokenizer.pad_token_id)}
    if (end := _end_of_call(renderer, list(added.values()))) is not None:
        found |= {i for i, text in added.items() if text == end and not is_tag(text, texts)}
    opening = answer_header(renderer)
    return [added[i] for i in sorted(found - {rule.token_id}) if added[i] not in opening]


def alternative_stop_ids(
    tokenizer: PreTrainedTokenizerBase,
    rule: StopRule,
    kind: Kind,
    date_string: str | None = None,
) -> list[int]:
    """Return the tokens that a model may write in place of the stop token, the likeliest first.

    They are the first token between an answer and the next question; for plain rows, the stop token
    of the chat template; and EOS, also that of the model's generation config.

    Args:
        tokenizer: The model's tokenizer.
        rule: How the answers of the data set end.
        kind: plain or chat.
        date_string: For the template.
    """
    found: list[Any] = []
    if kind == "chat" and rule.per_response == 0:
        ends = read_turn_ends(tokenizer, date_string)
        tail, both = (
            list(tokenizer(text, add_special_tokens=False)["input_ids"])  # pyright: ignore
            for text in (ends.tail, ends.tail + ends.following)
        )
        found += both[len(tail) : len(tail) + 1] if both[: len(tail)] == tail else []
    elif kind == "plain" and tokenizer.chat_template is not None:
        with suppress(InputError):  # the template cannot render a question and its answer
            found.append(stop_rule(tokenizer, "chat", date_string).token_id)
    found.append(tokenizer.eos_token_id)
    found += sorted(_generation_ends(tokenizer.name_or_path))
    size = len(tokenizer)
    return [i for i in dict.fromkeys(found) if i is not None and i < size and i != rule.token_id]


def _rendered(renderer: Renderer, role: str) -> str:
    """Return the rendering of one turn of a role; empty if the template refuses it."""
    turns = [{"role": role, "content": _PROBE}]
    try:
        return renderer.text(turns)
    except TemplateFailure:  # it does not know the role
        return ""


def _end_of_call(renderer: Renderer, added: Sequence[str]) -> str | None:
    """Return the token that ends a tool call in the template, None if it writes none."""
    for arguments in ({}, "{}"):
        function = {**_CALL, "arguments": arguments}
        call = {"type": "function", "id": "spinprobe", "function": function}
        turns = [
            {"role": "user", "content": _PROBE},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
        try:
            text = renderer.text(turns, {"tools": [{"type": "function", "function": _TOOL}]})
        except TemplateFailure:  # it does not support calls, or needs arguments in the other form
            continue
        if _CALL["name"] not in text:
            return None  # it writes no calls
        tail = text.rpartition(_CALL["name"])[2].rstrip()
        return max((token for token in added if token and tail.endswith(token)), key=len,
                   default=None)  # fmt: skip
    return None


def _generation_ends(name: object) -> set[int]:
    """Return the EOS ids of the model's generation config; empty if it is not on this machine."""
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
    except (OSError, ValueError):  # not a repository's name; transformers ignores that as well
        return set()
    return {i for i in (said if isinstance(said, list) else [said]) if isinstance(i, int)}
