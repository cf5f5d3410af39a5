"""Functions for ``dataset.preprocessing_fn`` that convert other formats.

Each converts a row to a supported format. Error messages name them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spin_composer.data.foreign import (
    ANSWERS,
    CONTEXTS,
    DESIRED,
    PROMPTS,
    SYSTEMS,
    TURNS,
    TWO_SIDES,
    are_turns,
)
from spin_composer.data.rows import Columns, Row
from spin_composer.data.tool_calls import parse_json
from spin_composer.errors import InputError, format_value

# The two prompts that Stanford's Alpaca and its descendants were tuned on.
_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
_ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n### Instruction:\n"
    "{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)


def as_chat(row: Columns) -> Row:
    """Convert a question and its answer to turns, for many column names.

    Args:
        row: Alpaca's, Dolly's, OpenOrca's and similar: the prompt is ``instruction``,
            ``question``, ``query``, ``prompt``, ``problem`` or ``input``; ``input`` or ``context``
            beside it follows after an empty line; ``system`` or ``system_prompt`` makes a system
            turn, ``history`` (pairs of texts) earlier turns, and ``reasoning`` or ``thinking`` the
            answer's ``reasoning_content``.

    Returns:
        ``{"messages": [...]}``, and the row's ``tools`` and KTO's label where it has them.

    Raises:
        InputError: A part is missing, or there are two of it.
    """
    prompt_key, prompt, answer = _parts(row)
    context = _single_text(row, CONTEXTS, without=prompt_key)
    system = _single_text(row, SYSTEMS)
    turns = [{"role": "system", "content": system}] if system else []
    for pair in row.get("history") or ():
        question, reply = pair
        turns += [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    user = f"{prompt}\n\n{context}" if context else prompt
    thought = _single_text(row, ("reasoning_content", "reasoning", "thinking"))
    more = {"reasoning_content": thought} if thought else {}
    turns += [{"role": "user", "content": user}, {"role": "assistant", "content": answer, **more}]
    tools = {"tools": row["tools"]} if row.get("tools") else {}
    return {"messages": turns, **tools, **_desired(row, prompt_key)}


def as_alpaca(row: Columns) -> Row:
    """Return a row of Alpaca's or Dolly's format with Stanford Alpaca's prompt around it.

    Args:
        row: Has ``instruction``, ``output`` (or ``response``) and perhaps ``input`` (``context``).

    Returns:
        ``{"prompt": str, "response": str}``, and KTO's label where the row has it.

    Raises:
        InputError: A part is missing, or the row has one that the prompt has no place for.
    """
    prompt_key, prompt, answer = _parts(row)
    for key in (*SYSTEMS, "history", "tools"):
        if row.get(key):
            raise InputError(
                f"{key}={format_value(row[key])} has no place in Alpaca's prompt (as_chat)"
            )
    context = _single_text(row, CONTEXTS, without=prompt_key)
    form = _ALPACA_INPUT if context else _ALPACA
    made = {"prompt": form.format(instruction=prompt, input=context), "response": answer}
    return {**made, **_desired(row, prompt_key)}


def messages_only(row: Columns) -> Row:
    """Return the row's first column of turns, and its tools, without any other column.

    Raises:
        InputError: No column holds turns.
    """
    beside = ("tools", "functions", "chat_template_kwargs")
    more = {key: row[key] for key in beside if row.get(key) is not None}
    for key in TURNS:
        if are_turns(parse_json(row.get(key))):
            return {"messages": row[key], **more}
    prompt = next((key for key in PROMPTS if are_turns(row.get(key))), None)
    answer = next((key for key in ANSWERS if row.get(key) and key != prompt), None)
    if prompt is None or answer is None:
        raise InputError(f"none of the fields {', '.join(TURNS)} holds turns")
    return {"prompt": row[prompt], "completion": row[answer], **more}


def best_path(row: Columns) -> Row:
    """Return the best-ranked path through a tree of messages (OpenAssistant).

    Args:
        row: Has ``prompt``, whose ``replies`` have replies of their own; ``rank`` 0 is the best.

    Returns:
        ``{"messages": [...]}``, ending with the path's last answer of the assistant.

    Raises:
        InputError: No answer is on the path.
    """
    node, path = row.get("prompt"), []
    while isinstance(node, Mapping):
        path.append({"role": node.get("role"), "content": node.get("text")})
        replies = [reply for reply in node.get("replies") or () if not reply.get("deleted")]
        ranked = [reply.get("rank") for reply in replies]
        order = [len(replies) if rank is None else rank for rank in ranked]
        node = replies[order.index(min(order))] if replies else None
    while path and path[-1]["role"] != "assistant":
        path.pop()
    if not path:
        raise InputError(f"prompt={format_value(row.get('prompt'))} has no answer")
    return {"messages": path}


def human_assistant(row: Columns) -> Row:
    r"""Return the turns of a text with ``\n\nHuman:`` and ``\n\nAssistant:`` before them.

    Args:
        row: Has the text as ``chosen`` (Anthropic's HH-RLHF) or ``text``.

    Returns:
        ``{"messages": [...]}``.

    Raises:
        InputError: There is no such text.
    """
    text = row.get("chosen") or row.get("text")
    if not isinstance(text, str) or "\n\nHuman:" not in text:
        raise InputError(f"chosen={format_value(text)} has no Human: and Assistant: turns")
    roles = {"Human:": "user", "Assistant:": "assistant"}
    turns: list[dict[str, str]] = []
    for part in text.split("\n\n"):
        mark = next((mark for mark in roles if part.startswith(mark)), None)
        if mark is not None:
            turns.append({"role": roles[mark], "content": part[len(mark) :].strip()})
        elif turns:
            turns[-1]["content"] += f"\n\n{part}"
        elif part.strip():
            raise InputError(f"{format_value(part)} comes before the first turn")
    return {"messages": [{**turn, "content": turn["content"].strip()} for turn in turns]}


def query_calls(row: Columns) -> Row:
    """Return a question, and the calls that answer it as the answer's (xLAM).

    Args:
        row: Has ``query``, a text, ``answers``, a list of calls (``name`` and ``arguments``), and
            ``tools``; both lists perhaps as JSON text.

    Returns:
        ``{"messages": [...]}``, and ``tools`` as chat templates read them.

    Raises:
        InputError: There is no question or no call.
    """
    calls = parse_json(row.get("answers"))
    if not _has_text(row, "query") or not isinstance(calls, (list, tuple)) or not calls:
        raise InputError(
            f"query={format_value(row.get('query'))} and answers={format_value(row.get('answers'))}"
            " are not a question and the calls that answer it"
        )
    tools = parse_json(row.get("tools")) or []
    tools = [tools] if isinstance(tools, Mapping) else [parse_json(tool) for tool in tools]
    bare = all(isinstance(tool, Mapping) and "function" not in tool for tool in tools)
    return {
        "messages": [
            {"role": "user", "content": row["query"]},
            {"role": "assistant", "content": None, "tool_calls": list(calls)},
        ],
        **({"functions" if bare else "tools": tools} if tools else {}),
    }


def input_output_turns(row: Columns) -> Row:
    """Return the turns of a ``conversation`` whose parts hold a question and its answer.

    Args:
        row: Its ``conversation`` (or ``conversations``, ``messages``) is a list of objects with
            ``input`` and ``output`` (Capybara), ``human`` and ``assistant`` (MOSS) or the like.

    Raises:
        InputError: A part lacks one of them.
    """
    turns = []
    for part in _find_turns(row):
        sides = [[key for key in names if isinstance(part, Mapping) and part.get(key)]
                 for names in TWO_SIDES]  # fmt: skip
        if [len(found) for found in sides] != [1, 1]:
            raise InputError(f"{format_value(part)} is not one question with one answer")
        turns += [{"role": role, "content": part[found[0]]}
                  for role, found in zip(("user", "assistant"), sides, strict=True)]  # fmt: skip
    return {"messages": turns, **{key: row[key] for key in SYSTEMS if row.get(key)}}


def alternating(row: Columns) -> Row:
    """Return the turns of a list of texts, the user's first (LIMA's ``conversations``)."""
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(_find_turns(row))]
    return {"messages": turns, **{key: row[key] for key in SYSTEMS if row.get(key)}}


def _find_turns(row: Columns) -> Sequence[Any]:
    """Return the row's list of turns, under whichever name."""
    for key in TURNS:
        if isinstance(row.get(key), (list, tuple)):
            return row[key]
    raise InputError(f"none of the fields {', '.join(TURNS)} is a list")


def _parts(row: Columns) -> tuple[str, str, str]:
    """Return the prompt's column and text, and the answer."""
    prompt_key = next((key for key in PROMPTS if _has_text(row, key)), None)
    answer = _single_text(row, ANSWERS, without=prompt_key)
    if prompt_key is None or answer is None:
        lacks = PROMPTS if prompt_key is None else ANSWERS
        raise InputError(f"none of the fields {', '.join(lacks)} holds a text")
    return prompt_key, row[prompt_key], answer


def _desired(row: Columns, prompt_key: str) -> Row:
    """Return KTO's label, so that an undesired answer stays one; other rows' label is a class."""
    keys = DESIRED if prompt_key == "prompt" else DESIRED[1:]
    return {key: row[key] for key in keys if row.get(key) is not None}


def _has_text(row: Columns, key: str) -> bool:
    value = row.get(key)
    return isinstance(value, str) and bool(value.strip())


def _single_text(row: Columns, keys: Sequence[str], without: str | None = None) -> str | None:
    """Return the one text that the columns hold; None if there is none."""
    found = [key for key in keys if key != without and _has_text(row, key)]
    if len({row[key] for key in found}) > 1:
        raise InputError(f"the fields {' and '.join(found)} hold different texts: keep one")
    return row[found[0]] if found else None
