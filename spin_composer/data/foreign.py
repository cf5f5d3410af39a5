"""Errors for formats that need a mapping: they name the mapping that reads the format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from spin_composer.data.bad_row import BOUNDARIES_LOST, BadRow, Location
from spin_composer.data.tool_calls import parse_json
from spin_composer.errors import format_value

KEY_PAIRS = (("prompt", "response"), ("prompt", "completion"), ("input", "output"))
_FORMATS = (
    "prompt + response (or completion), messages, input + output, conversations, chosen + "
    "rejected, real + generated"
)
PROMPTS = ("instruction", "question", "query", "prompt", "problem", "inputs", "input")
"""Names of the prompt column in single-turn data sets, in order of preference."""
ANSWERS = (
    "output", "response", "answer", "completion", "chosen", "solution", "targets", "target",
)  # fmt: skip
"""Names of the answer column."""
CONTEXTS = ("input", "context")
"""Names of the column with the input of an instruction."""
SYSTEMS = ("system", "system_prompt", "system_message")
"""Names of the system text column."""
TWO_SIDES = (("input", "user", "human"), ("output", "assistant", "bot", "gpt"))
"""Keys of turns that contain a question and its answer (Capybara, MOSS)."""
TURNS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "real")
"""Names of columns of turns."""
DESIRED = ("label", "kto_tag")
"""What KTO's data sets (TRL, LLaMA-Factory) call whether the model should write the answer."""
_OTHER_PAIRS = (
    *((user, model) for user in ("human", "user") for model in ("gpt", "assistant", "bot")),
    ("source", "target"), ("src", "tgt"), ("source_text", "target_text"),
    ("input_text", "output_text"), ("q", "a"),
)  # fmt: skip
"""What few data sets call prompt and response; each is told by the other alone."""
_MAPPINGS = "spin_composer.data.mappings"


def is_known(name: str) -> bool:
    """Return whether a column of this name is read, or reported if it is not."""
    return name in {*PROMPTS, *ANSWERS, *CONTEXTS, *SYSTEMS, *TURNS, "tools"}


def is_empty(value: object) -> bool:
    """Return whether a value is None or empty; arrays (from MDS) never are."""
    return value is None or (isinstance(value, (str, list, tuple, Mapping)) and not value)


def are_turns(value: object) -> bool:
    """Return whether a value is a list of turns."""
    return (
        isinstance(value, (list, tuple))
        and bool(value)
        and all(isinstance(turn, Mapping) and ("role" in turn or "from" in turn) for turn in value)
    )


def ends_with_answer(turns: Sequence[object]) -> bool:
    """Return whether turns are a complete conversation, not only a prompt."""
    last = turns[-1] if turns else None
    speaker = (last.get("role") or last.get("from")) if isinstance(last, Mapping) else None
    return str(speaker).lower() not in ("user", "human", "prompter", "tool", "system")


def unknown_format_error(row: Mapping, where: Location) -> BadRow:
    """Return the error of a row that has none of the formats' keys."""
    special = (
        _tokens(row, where) or _tree(row, where) or _calls(row, where)
        or _turns_as_text(row, where)
    )  # fmt: skip
    if special is not None:
        return special
    if row.get("chosen") is not None:
        return missing_prompt_error(row, where)
    for first, second in KEY_PAIRS:
        for have, lack, others in ((first, second, ANSWERS), (second, first, PROMPTS)):
            if have in row:
                near = [key for key in others if _is_text(row.get(key)) and key != have]
                if near and _is_text(row[have]):
                    return single_turn_error(row, near[0] if lack == first else have, where)
                return BadRow(
                    where,
                    f"missing {lack}",
                    f"the field {lack} is missing next to {have}={format_value(row[have])}",
                    "Add it, or name the columns: "
                    "dataset.preprocessing_fn: {prompt: ..., response: ...}.",
                )
    if "generated" in row:
        return BadRow(
            where,
            "missing real",
            f"the field real is missing next to generated={format_value(row['generated'])}",
            "Add the real conversation, a list of turns.",
        )
    return _by_names(row, where)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def single_turn_error(row: Mapping, prompt: str, where: Location) -> BadRow:
    """Return the error of a question and an answer with other names (Alpaca, Dolly, OpenOrca).

    Args:
        row: The row.
        prompt: The column with its prompt, or the first part of it.
        where: Its location.
    """
    if prompt == "instruction":
        rest = [key for key in CONTEXTS if _is_text(row.get(key))]
        beside = " and ".join([*rest, *(key for key in ANSWERS if key in row)][:3]) or "no answer"
        name = "Dolly's" if "context" in row else "Alpaca's"
        return BadRow(
            where, "instruction column" if rest else "unknown format",
            f"the field instruction={format_value(row['instruction'])} appears next to {beside} "
            f"({name} format)" + (", and would be lost" if rest else ""),
            f"Set dataset.preprocessing_fn: {_MAPPINGS}:as_chat for a model with a chat template, "
            f"{_MAPPINGS}:as_alpaca for one tuned on Alpaca's own prompts, or a module:function of "
            "yours.",
        )  # fmt: skip
    answer = next(key for key in ANSWERS if _is_text(row.get(key)) and key != prompt)
    lost = [key for key in (*SYSTEMS, *CONTEXTS) if _is_text(row.get(key)) and key != prompt]
    if lost:
        remedy = f"{_MAPPINGS}:as_chat, which makes turns of {', '.join([*lost, prompt, answer])}"
    else:
        remedy = f"{{prompt: {prompt}, response: {answer}}}"
    return BadRow(
        where, "unknown format",
        f"the fields {format_value(sorted(map(str, row)))} match no known format; "
        f"{prompt}={format_value(row[prompt], 40)} and {answer}={format_value(row[answer], 40)} "
        "look like prompt and response", f"Set dataset.preprocessing_fn: {remedy}.",
    )  # fmt: skip


def missing_prompt_error(row: Mapping, where: Location) -> BadRow:
    """Return the error of preferences whose prompt is missing, or is part of both texts."""
    chosen = row["chosen"]
    for key in PROMPTS:
        if _is_text(row.get(key)) and _is_text(chosen):
            return single_turn_error(row, key, where)
    if isinstance(chosen, str) and "\n\nHuman:" in chosen:
        remedy = f"Set dataset.preprocessing_fn: {_MAPPINGS}:human_assistant, which splits it."
    else:
        remedy = "Add the prompt, a text or a list of turns."
    return BadRow(
        where, "missing prompt",
        f"the field prompt is missing next to chosen={format_value(chosen)}",
        remedy,
    )  # fmt: skip


def _tokens(row: Mapping, where: Location) -> BadRow | None:
    key = next((key for key in ("input_ids", "tokens") if not is_empty(row.get(key))), None)
    if key is None or isinstance(row[key], (str, int)):
        return None
    return BadRow(
        where, "tokenized row",
        f"{key}={format_value(row[key])}: the row is "
        f"{BOUNDARIES_LOST}", "Give the rows as text.",
    )  # fmt: skip


def _tree(row: Mapping, where: Location) -> BadRow | None:
    if isinstance(row.get("prompt"), Mapping) and "replies" in row["prompt"]:
        return BadRow(
            where, "tree of messages",
            f"prompt={format_value(row['prompt'])} is a tree of messages (OpenAssistant)",
            f"Set dataset.preprocessing_fn: {_MAPPINGS}:best_path, which takes each turn's "
            "best-ranked reply.",
        )  # fmt: skip
    if "parent_id" in row and "message_id" in row:
        return BadRow(
            where, "single message",
            f"message_id={format_value(row['message_id'])}: the row is one message of a tree "
            "(OpenAssistant), not a conversation",
            f"Use the file of trees with dataset.preprocessing_fn: {_MAPPINGS}:best_path.",
        )  # fmt: skip
    return None


def _calls(row: Mapping, where: Location) -> BadRow | None:
    calls = parse_json(row.get("answers"))
    if not _is_text(row.get("query")) or not isinstance(calls, (list, tuple)) or not calls:
        return None
    if not all(isinstance(call, Mapping) and "name" in call for call in calls):
        return None
    return BadRow(
        where, "unknown format",
        f"answers={format_value(row['answers'])} holds the calls that answer query="
        f"{format_value(row['query'], 40)} (xLAM's format)",
        f"Set dataset.preprocessing_fn: {_MAPPINGS}:query_calls.",
    )  # fmt: skip


def _turns_as_text(row: Mapping, where: Location) -> BadRow | None:
    for key in (*TURNS, "text"):
        value = row.get(key)
        if key == "text" and _is_text(value) and not any(_is_text(row.get(k)) for k in ANSWERS):
            if "\n\nHuman:" in str(value):
                remedy = f"Set dataset.preprocessing_fn: {_MAPPINGS}:human_assistant."
            else:
                remedy = "Split it with dataset.preprocessing_fn: module:function."
            return BadRow(
                where, "text only",
                f"text={format_value(value)} has no boundary between prompt and response",
                f"Give both, as prompt and response or as messages. {remedy}",
            )  # fmt: skip
        if key != "text" and not is_empty(value):
            if isinstance(value, (list, tuple)) and all(map(_is_text, value)):
                return list_of_texts_error(key, value, where)
            return BadRow(
                where, "wrong type", f"{key}={format_value(value)} is not a list of turns",
                'Write [{"role": "user", "content": "..."}, {"role": "assistant", "content": '
                '"..."}], or make it of the column with dataset.preprocessing_fn: module:function.',
            )  # fmt: skip
    return None


def list_of_texts_error(key: str, value: object, where: Location) -> BadRow:
    """Return the error of a list of texts instead of turns (LIMA)."""
    return BadRow(
        where, "wrong type", f"{key}={format_value(value)} is a list of texts, and not of turns",
        'Write [{"role": "user", "content": "..."}, ...], or, if user and assistant take turns, '
        f"set dataset.preprocessing_fn: {_MAPPINGS}:alternating.",
    )  # fmt: skip


def _by_names(row: Mapping, where: Location) -> BadRow:
    """Return the error of unknown columns, with a remedy guessed from their names."""
    names = {str(key).strip().lower(): key for key in row}
    texts = {name: key for name, key in names.items() if _is_text(row[key])}
    prompt = next((texts[name] for name in PROMPTS if name in texts), None)
    answer = next(
        (texts[name] for name in ANSWERS if name in texts and texts[name] != prompt), None
    )
    if prompt in PROMPTS and answer in ANSWERS:
        return single_turn_error(row, prompt, where)
    if prompt is None or answer is None:
        pairs = ((texts.get(user), texts.get(model)) for user, model in _OTHER_PAIRS)
        prompt, answer = next((pair for pair in pairs if None not in pair), (prompt, answer))
    remedy = (
        f"Known are {_FORMATS}; other columns need "
        "dataset.preprocessing_fn: {prompt: ..., response: ...}."
    )
    if prompt is not None and answer is not None:
        remedy = f"Set dataset.preprocessing_fn: {{prompt: {prompt!r}, response: {answer!r}}}."
    else:
        turns = next((names[key] for key in TURNS if key in names), None)
        if turns is not None:
            remedy = f"Rename the field {turns!r} to {str(turns).strip().lower()}."
        elif set(names) == {"data"} or (len(names) < 4 and "data" in names):
            remedy = "If the rows are in the field data, set dataset.hf_kwargs: {field: data}."
    return BadRow(
        where, "unknown format",
        f"the fields {format_value(sorted(map(str, row)), 200)} match no known format", remedy,
    )  # fmt: skip
