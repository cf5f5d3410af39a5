"""Turns of a conversation, converted from all formats to the one that chat templates read.

A turn becomes ``{"role", "content"}`` and those of its further keys that have training text, such
as ``tool_calls`` or ``reasoning_content``. ``content`` is None only with ``tool_calls``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from spin_composer.data.bad_row import DROP_SUCH_ROWS, FILL_OR_DROP, BadRow, Location
from spin_composer.data.foreign import TWO_SIDES, list_of_texts_error
from spin_composer.data.rows import Turn
from spin_composer.data.tool_calls import (
    parse_function_call,
    parse_json,
    validate_calls,
    validate_json,
)
from spin_composer.errors import format_value

if TYPE_CHECKING:
    from spin_composer.data.counts import DataReport

_CALLER = "function_call"
_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "chatbot"), "assistant"),
    **dict.fromkeys(("model", "ai"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython"), "tool"),
    **dict.fromkeys(("function_response", "tool_response", "tool_result"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), _CALLER),  # ShareGPT's: the call is the text
}
# What may come before a turn; None is the start of the conversation.
_MAY_FOLLOW: dict[str, tuple[str | None, ...]] = {
    "system": (None,),
    "user": (None, "system", "assistant", "tool"),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}
_ROLE_KEYS = ("role", "from", "speaker")
_CONTENT_KEYS = ("content", "value", "text")
_TEXT_PARTS = ("text", "input_text", "output_text")
_PASSED_THROUGH = ("name", "tool_call_id")
# Names of a turn's keys that hold what the model is to write or to read.
_CARRIES_TEXT = re.compile(
    r"think|thought|reasoning|rationale|analysis|scratchpad|(^|_)cot$|tool|function|refusal"
    r"|(^|_)plan$|^prefix$|image|audio|video|document|citation|attachment|^parts$"
)
_TRAINED_IF_TRUE = (
    "weight", "loss_weight", "train", "trainable", "training", "trained", "train_on", "loss",
    "loss_mask",
)  # fmt: skip
_MARKS_OF_ROWS = ("weight", "loss_weight", "train", "trainable")
_FLAGS = {"false": False, "no": False, "0": False, "0.0": False, "true": True, "1": True}
_TRAINED_IF_FALSE = ("masked", "ignore", "ignored", "skip", "no_loss")


def validate_text(
    value: object, field: str, empty: str, where: Location, blank_is_empty: bool = True
) -> str:
    """Return ``value`` if it is a non-empty text; ``empty`` is the reason in the error."""
    if not isinstance(value, str):
        raise BadRow(
            where,
            "wrong type",
            f"{field}={format_value(value)} is of type {type(value).__name__}, not text",
            "Make it a string.",
        )
    if not value or (blank_is_empty and not value.strip()):
        raise BadRow(
            where,
            empty,
            f"{field}={format_value(value)} is empty",
            FILL_OR_DROP,
        )
    return value


def read_turns(
    turns: object,
    field: str,
    where: Location,
    report: DataReport | None = None,
    mask: str | None = None,
    legacy: bool = False,
) -> list[Turn]:
    """Return the turns of a list, each checked; :func:`check_order` checks their order.

    Args:
        turns: The list, or JSON text of one.
        field: The column's name.
        where: The row's location.
        report: Counts ignored keys.
        mask: NeMo-Aligner's: the speaker whose turns are not trained on; all others except the
            system are the assistant. Without it roles are recognized by name.
        legacy: Read only role and content of each turn, and ignore marks of untrained turns, as
            early versions did.

    Raises:
        BadRow: Names the turn and the key.
    """
    given = parse_json(turns)
    if not isinstance(given, (list, tuple)) or not given:
        problem = "is not a list of turns" if not isinstance(given, (list, tuple)) else "is empty"
        raise BadRow(
            where,
            "no assistant turn" if problem == "is empty" else "wrong type",
            f"{field}={format_value(turns)} {problem}",
            'Write [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}].',
        )
    if all(isinstance(turn, str) and turn.strip() for turn in given):
        raise list_of_texts_error(field, turns, where)
    checked = []
    for i, turn in enumerate(given):
        name = f"{field}[{i}]"
        if not isinstance(turn, Mapping):
            raise BadRow(
                where, "wrong type", f"{name}={format_value(turn)} is not an object",
                'Write {"role": "...", "content": "..."}.',
            )  # fmt: skip
        checked.append(_turn(turn, name, where, report, mask, legacy))
    if not legacy:
        _check_is_trained_on([parse_json(turn) for turn in given], field, where)
    return checked


def _turn(
    turn: Mapping, name: str, where: Location, report: DataReport | None, mask: str | None,
    legacy: bool,
) -> Turn:  # fmt: skip
    """Return one turn; null keys count as absent (Arrow adds them)."""
    role_key = next((key for key in _ROLE_KEYS if turn.get(key) is not None), None)
    content_key = _content_key(turn, name, where)
    if role_key is None:
        raise _missing("from" if content_key == "value" else "role", turn, name, where)
    speaker = validate_text(turn[role_key], f"{name}.{role_key}", "empty role", where)
    role = _role_of(speaker, mask, f"{name}.{role_key}", where)
    if role_key == "role" and not legacy and mask is None:
        role = Role.of(role, speaker)
    more = {} if legacy else _extra_keys(turn, role_key, content_key, name, where, report)
    content = turn[content_key] if content_key is not None else None
    if role == _CALLER:
        more["tool_calls"] = parse_function_call(content, f"{name}.{content_key}", where)
        role, content, content_key = "assistant", None, "content"
    calls = "tool_calls" in more and role == "assistant"
    if content_key is None and not calls:
        raise _missing("value" if role_key == "from" else "content", turn, name, where)
    if content is not None or not calls:
        content = _content(content, f"{name}.{content_key}", where)
        if role == "user":
            validate_text(content, f"{name}.{content_key}", "empty prompt", where)
    return {"role": role, "content": content, **more}


class Role(str):
    """One of the four roles, and the row's name for it.

    ``spelled`` is passed to templates that support that name: GLM-4 has a control token
    ``<|observation|>``, and none for ``tool``.
    """

    spelled: str

    @classmethod
    def of(cls, role: str, spelled: str) -> str:
        """Return the role, with the row's name for it if that differs."""
        word = spelled.strip()
        if role in (word, _CALLER):
            return role
        made = cls(role)
        made.spelled = word
        return made


def _content_key(turn: Mapping, name: str, where: Location) -> str | None:
    """Return the key of the turn's content; two keys with different values are an error."""
    found = [key for key in _CONTENT_KEYS if turn.get(key) is not None]
    if len(found) > 1 and any(repr(turn[key]) != repr(turn[found[0]]) for key in found):
        both = " and ".join(f"{key}={format_value(turn[key], 40)}" for key in found)
        raise BadRow(
            where, "two keys for one", f"{name} has both {both}", f"Keep one, as {found[0]}."
        )
    return found[0] if found else next((key for key in _CONTENT_KEYS if key in turn), None)


def _missing(key: str, turn: Mapping, name: str, where: Location) -> BadRow:
    remedy = f"Add the {key}."
    if all(any(side in turn for side in sides) for sides in TWO_SIDES):
        remedy = "Set dataset.preprocessing_fn: spin_composer.data.mappings:input_output_turns."
    return BadRow(
        where, f"missing {key}", f"{name}={format_value(dict(turn))} has no {key}", remedy
    )


def _role_of(speaker: str, mask: str | None, field: str, where: Location) -> str:
    known = _ROLES.get(speaker.strip().lower())
    if mask is not None:
        if known == "system":
            return "system"
        return "user" if speaker == mask else "assistant"
    if known is None:
        raise BadRow(
            where,
            "unknown role",
            f"{field}={format_value(speaker)} is not a known role",
            "Roles are system, user, assistant and tool (or human, gpt, model, developer, "
            "function, observation, function_call).",
        )
    return known


def _content(content: object, field: str, where: Location) -> str:
    """Return a turn's text; a list of text parts is joined."""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        return validate_text(content, field, "wrong type", where)
    texts = []
    for part in content:
        kind = part.get("type", "text") if isinstance(part, Mapping) else None
        text = part.get("text") if isinstance(part, Mapping) else None
        if str(kind) not in _TEXT_PARTS or not isinstance(text, str):
            raise BadRow(
                where, "wrong type",
                f"{field}={format_value(content)} holds {format_value(part)}, which is not part "
                "with text",
                'Write one string, or parts such as {"type": "text", "text": "..."}: SPIN trains '
                "on text only.",
            )  # fmt: skip
        texts.append(text)
    return "".join(texts)


def _extra_keys(
    turn: Mapping, role_key: str, content_key: str | None, name: str, where: Location,
    report: DataReport | None,
) -> Turn:  # fmt: skip
    """Return the turn's other keys with text, and count those without."""
    kept: Turn = {}
    for key, value in turn.items():
        if key in (role_key, content_key, *_ROLE_KEYS, *_CONTENT_KEYS) or value is None:
            continue
        field = f"{name}.{key}"
        if isinstance(value, (str, list, tuple, Mapping)) and not value:
            continue
        if key == "tool_calls":
            if calls := validate_calls(value, field, where):
                kept[key] = calls
        elif key == "function_call":
            kept["tool_calls"] = parse_function_call(value, field, where)
        elif key in _PASSED_THROUGH and isinstance(value, str):
            kept[key] = value
        elif carries_text(str(key), value):
            value = validate_json(value, field, where)
            if value:  # Arrow may have filled it with nulls only
                kept[str(key)] = value
        elif report is not None:
            report.ignore(f"a turn's {key}")
    return kept


def carries_text(key: str, value: object) -> bool:
    """Return whether a turn's further key has text for the model; flags and numbers have not."""
    filled = isinstance(value, (str, list, tuple, Mapping)) and bool(value)
    return filled and bool(_CARRIES_TEXT.search(key.lower()))


def untrained_mark(fields: Mapping, of_row: bool = False) -> str | None:
    """Return the key that marks a turn or row as not to be trained on, if any.

    OpenAI uses ``weight: 0``, axolotl ``train: false``, ms-swift ``loss: false``. For rows only the
    first few names are such marks: a row's ``loss`` is a number.
    """
    if_true, if_false = (_MARKS_OF_ROWS, ()) if of_row else (_TRAINED_IF_TRUE, _TRAINED_IF_FALSE)
    for key, value in fields.items():
        name, said = str(key).lower(), parse_flag(value)
        if (name in if_true and said is False) or (name in if_false and said is True):
            return str(key)
    return None


def parse_flag(value: object) -> bool | None:
    """Return the value of a flag; None if it is not a flag."""
    if isinstance(value, str):
        value = _FLAGS.get(value.strip().lower())
    return bool(value) if isinstance(value, (bool, int, float)) else None


def _check_is_trained_on(turns: Sequence[Mapping], field: str, where: Location) -> None:
    """Reject a last turn that is marked as not to be trained on."""
    last, key = turns[-1], untrained_mark(turns[-1])
    # The meaning of `mask` is ambiguous: reject it if it is the same for both sides.
    if key is None and parse_flag(last.get("mask")) is not None:
        first = next((turn.get("mask") for turn in turns[:-1]), None)
        key = (
            "mask" if first is not None and parse_flag(first) == parse_flag(last["mask"]) else None
        )
    if key is not None:
        raise BadRow(
            where, "not to be trained on",
            f"{field}[{len(turns) - 1}].{key}={format_value(last[key])} says that the last turn, "
            "which is the response, is not to be trained on",
            f"Cut the conversation after the answer that is, remove the key, {DROP_SUCH_ROWS}",
        )  # fmt: skip


def check_order(turns: list[Turn], field: str, where: Location) -> None:
    """Reject a conversation with an invalid order of roles, or without a final answer."""
    previous: str | None = None
    if all(turn["role"] != "assistant" for turn in turns):
        raise BadRow(
            where,
            "no assistant turn",
            f"{field} has {len(turns)} turns and none of role assistant",
            "The last assistant turn is the response: add it.",
        )
    for i, turn in enumerate(turns):
        if previous not in _MAY_FOLLOW[turn["role"]]:
            before = "at the start" if previous is None else f"after {previous!r}"
            raise BadRow(
                where,
                "roles out of order",
                f"{field}[{i}].role={turn['role']!r} stands {before}",
                "Roles go: system (or none), then user and assistant in turns; tool after a call.",
            )
        previous = turn["role"]
    last = turns[-1]
    if last["role"] != "assistant":
        raise BadRow(
            where,
            "last turn not the assistant's",
            f"{field}[{len(turns) - 1}].role={last['role']!r} is the last turn",
            "End the conversation with the assistant's answer, or cut what follows it.",
        )
    if "tool_calls" not in last:
        validate_text(
            last["content"], f"{field}[{len(turns) - 1}].content", "empty response", where
        )
