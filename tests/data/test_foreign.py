"""Other people's formats are read, or named with the mapping that reads them."""

from __future__ import annotations

import json
import re

import pytest

from spin_composer.data.counts import DataReport
from spin_composer.data.formats import BadRow, Location, to_foundry_row
from spin_composer.data.mappings import query_calls
from spin_composer.data.preprocess import make_preprocessor
from spin_composer.errors import InputError
from spin_composer.settings.dataset import read_config

HERE = Location("data.jsonl", 7)
U, A = {"role": "user", "content": "Hi there"}, {"role": "assistant", "content": "Hello"}
BAD_ANSWER = {"role": "assistant", "content": "Go away"}
CHAT = ("chat", {"messages": [U, A]})


def test_conversations_beside_what_repeats_them_are_read():
    for row in (
        # ultrachat_200k and no_robots; UltraFeedback; Tulu 3; WildChat
        {"prompt": "Hi there", "prompt_id": "f0", "messages": [U, A], "category": "Chat"},
        {"prompt": "Hi there", "messages": [U, A], "chosen": [U, A], "rejected": [U, BAD_ANSWER]},
        {"id": "x", "messages": [U, A], "source": "ai2"},
        {"conversation": [{**U, "toxic": False}, {**A, "language": "en"}], "model": "m"},
        {"messages": [U, A], "prompt": "", "response": None, "conversations": []},
        {
            "messages": [U, A],
            "loss": 0.0,
            "train": True,
            "weight": 1,
            "reasoning": "on",
            "conversations": [
                {"from": "human", "value": "Hi there", "weight": 0.0},
                {"from": "gpt", "value": "Hello", "weight": 1.0},
            ],
        },
    ):
        assert to_foundry_row(row, HERE) == CHAT


def test_prompt_and_completion_may_be_turns():
    for row in (
        {"prompt": [U], "completion": [A]},
        {"prompt": [U], "completion": "Hello", "label": True},
        {"input": [{"from": "human", "value": "Hi there"}], "output": A},
    ):
        assert to_foundry_row(row, HERE) == CHAT


def test_a_system_column_goes_before_every_kind_of_turns():
    system = {"role": "system", "content": "s"}
    for row in (
        {"messages": [U, A], "system": "s"},
        {"conversation": [U, A], "system_prompt": "s"},
        {"input": [U], "output": "Hello", "system_prompt": "s", "reasoning": "off"},
        {"prompt": [U], "chosen": [A], "rejected": [BAD_ANSWER], "system": "s"},
        {"messages": [system, U, A], "system": "s "},
    ):
        assert to_foundry_row(row, HERE) == ("chat", {"messages": [system, U, A]})


def test_of_preferences_the_chosen_side_is_the_response():
    for row in (
        {"prompt": "Hi there", "chosen": [U, A], "rejected": [U, BAD_ANSWER], "score_chosen": 9.0},
        {"prompt": [U], "chosen": [A], "rejected": [BAD_ANSWER]},
        {"chosen": [U, A], "rejected": [U, BAD_ANSWER]},
        {"conversations": [{"from": "human", "value": "Hi there"}],
         "chosen": {"from": "gpt", "value": "Hello"}, "rejected": {"from": "gpt", "value": "x"}},
    ):  # fmt: skip
        report = DataReport()
        assert to_foundry_row(row, HERE, report) == CHAT
        assert to_foundry_row({**row, "messages": []}, HERE) == CHAT
        assert "chosen is trained on" in report.notes[0]
    plain = {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert to_foundry_row(plain, HERE) == ("plain", {"prompt": "a", "response": "b"})


def turns(*texts: str) -> list[dict[str, str]]:
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": text}
            for i, text in enumerate(texts)]  # fmt: skip


TREE = {"text": "Q", "role": "prompter", "replies": [
    {"text": "worse", "role": "assistant", "rank": 1, "replies": []},
    {"text": "best", "role": "assistant", "rank": 0, "replies": [
        {"text": "thanks", "role": "prompter", "rank": None, "replies": []}]}]}  # fmt: skip

# row, reason, and what the mapping of its error makes of it
NAMED = {
    "alpaca": ({"instruction": "Add.", "input": "1 2", "output": "3"}, "instruction column",
               {"messages": turns("Add.\n\n1 2", "3")}),
    "alpaca without input": ({"instruction": "Say 3.", "input": "", "output": "3", "text": "all"},
                             "unknown format", {"messages": turns("Say 3.", "3")}),
    "llama-factory": ({"instruction": "c", "input": "", "output": "d", "system": "s",
                       "history": [["a", "b"]]}, "unknown format",
                      {"messages": [{"role": "system", "content": "s"},
                                    *turns("a", "b", "c", "d")]}),
    "dolly": ({"instruction": "Who?", "context": "Ann.", "response": "Ann", "category": "qa"},
              "instruction column", {"messages": turns("Who?\n\nAnn.", "Ann")}),
    "openorca": ({"id": 1, "system_prompt": "s", "question": "q", "response": "r"},
                 "unknown format", {"messages": [{"role": "system", "content": "s"},
                                                 *turns("q", "r")]}),
    "orca dpo": ({"system": "", "question": "q", "chosen": "r", "rejected": "x"},
                 "unknown format", {"prompt": "q", "response": "r"}),
    "gsm8k": ({"question": "q", "answer": "a"}, "unknown format",
              {"prompt": "q", "response": "a"}),
    "metamath": ({"query": "q", "response": "a", "type": "t", "original_question": "o"},
                 "unknown format", {"prompt": "q", "response": "a"}),
    "xp3": ({"inputs": "q", "targets": "a"}, "unknown format", {"prompt": "q", "response": "a"}),
    "capitals": ({"Prompt": "q", "Response ": "a"}, "unknown format",
                 {"prompt": "q", "response": "a"}),
    "system column": ({"prompt": "q", "response": "a", "system": "s"}, "system column",
                      {"messages": [{"role": "system", "content": "s"}, *turns("q", "a")]}),
    "reasoning column": ({"prompt": "q", "response": "a", "reasoning": "r s"}, "reasoning column",
                         {"messages": [turns("q")[0], {**turns("q", "a")[1],
                                                       "reasoning_content": "r s"}]}),
    "hh": ({"chosen": "\n\nHuman: a\n\nb\n\nAssistant: c", "rejected": "\n\nHuman: a"},
           "missing prompt", {"messages": turns("a\n\nb", "c")}),
    "oasst": ({"message_tree_id": "x", "prompt": TREE}, "tree of messages",
              {"messages": turns("Q", "best")}),
    "capybara": ({"conversation": [{"input": "a", "output": "b"}], "source": "x"}, "missing role",
                 {"messages": turns("a", "b")}),
    "moss": ({"conversation": [{"human": "a", "assistant": "b"}]}, "missing role",
             {"messages": turns("a", "b")}),
    "lima": ({"conversations": ["a", "b"], "source": "x"}, "wrong type",
             {"messages": turns("a", "b")}),
    "dialogue of texts": ({"dialogue": ["a", "b"], "system": "s"}, "wrong type",
                          {"messages": [{"role": "system", "content": "s"}, *turns("a", "b")]}),
    "chosen alone": ({"prompt": "q", "chosen": "a"}, "unknown format",
                     {"prompt": "q", "response": "a"}),
    "messages and another prompt": ({"prompt": "other", "messages": turns("a", "b")},
                                    "two formats in one row", {"messages": turns("a", "b")}),
    "two conversations": ({"conversation": turns("a", "c"), "conversations": turns("a", "b")},
                          "two formats in one row", {"messages": turns("a", "b")}),
    "turns and a thought": ({"prompt": turns("a"), "completion": "b", "thinking": "c d"},
                            "two formats in one row", {"messages": turns("a", "b")}),
    "two systems": ({"system": "s", "messages": [{"role": "system", "content": "t"},
                                                 *turns("a", "b")]}, "two system texts",
                    {"messages": [{"role": "system", "content": "t"}, *turns("a", "b")]}),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_the_error_names_the_mapping_that_reads_the_row(name):
    row, reason, expected = NAMED[name]
    with pytest.raises(BadRow) as caught:
        to_foundry_row(row, HERE)
    assert caught.value.reason == reason
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)
    remedy = caught.value.remedy
    if (found := re.search(r"spin_composer\.data\.mappings:\w+", remedy)) is not None:
        named = found.group(0)
    else:
        import yaml

        mapping = re.search(r"preprocessing_fn: (\{.*\})", remedy)
        assert mapping is not None, remedy
        named = yaml.safe_load(mapping.group(1))
    function = make_preprocessor(
        read_config({"max_seq_len": 9, "hf_name": "org/set", "preprocessing_fn": named})
    )
    assert function is not None
    assert to_foundry_row(function(row), HERE)[1] == expected


def test_alpacas_prompt_is_stanfords():
    from spin_composer.data.mappings import as_alpaca

    row = {"instruction": "Add.", "input": "1 2", "output": "3"}
    made = as_alpaca(row)
    _, end = made["prompt"].split("\n\n### Instruction:\n")
    assert end == "Add.\n\n### Input:\n1 2\n\n### Response:\n"
    assert made["response"] == "3"
    assert "### Input" not in as_alpaca({**row, "input": ""})["prompt"]


# row, reason, what the message must say
REFUSED = [
    ({"text": "whole"}, "text only", "no boundary between prompt and response"),
    ({"input_ids": [1], "labels": [1]}, "tokenized row", "input_ids=[1]"),
    ({"message_id": "x", "parent_id": None, "text": "t", "role": "prompter"}, "single message",
     "one message of a tree"),
    ({"chat": "USER: a ASSISTANT: b", "system": "s"}, "wrong type", "chat='USER: a"),
    ({"prompt": "a", "completion": [A]}, "wrong type", "completion=[{'role'"),
    ({"prompt": '[{"role": "user", "content": "a"}]', "response": "b"}, "wrong type",
     "JSON text of turns"),
    ({"input": "a", "output": ["b"]}, "wrong type", "output=['b']"),
    ({"prompt": "a", "chosen": [A], "rejected": [A]}, "wrong type", "chosen=[{'role'"),
    ({"prompt": "a", "completion": "b", "label": False}, "undesired completion", "label=False"),
    ({"prompt": "a", "response": "b", "weight": 0}, "not to be trained on", "weight=0"),
    ({"prompt": "a", "Prompt": "c", "response": "b"}, "two columns of one name", "Prompt='c'"),
    ({"messages": [U, A], "response": "Bye"}, "two formats in one row", "response='Bye'"),
    ({"messages": [U, A], "thinking": "Hm so"}, "two formats in one row", "thinking='Hm so'"),
    ({"messages": [U, A], "chosen": [U, BAD_ANSWER], "rejected": [U, A]}, "two formats in one row",
     "messages and chosen"),
    ({"messages": [U, A], "conversation": [U, BAD_ANSWER]}, "two formats in one row",
     "messages and conversation"),
    ({"prompt": [U], "completion": [A], "reasoning": "So it is."}, "two formats in one row",
     "reasoning='So it is.'"),
    ({"messages": [U, A], "documents": [{"text": "x"}]}, "documents", "would be lost"),
    ({"messages": [U, A], "tools": "get_weather"}, "wrong type", "tools='get_weather'"),
    ({"messages": {"role": ["user"], "content": ["a"]}}, "wrong type", "messages={'role'"),
    ({"data": [{"prompt": "a"}]}, "unknown format", "hf_kwargs: {field: data}"),
    ({"prompt": "a", "response": "b", "tools": [{"name": "f"}]}, "tools column", "would be lost"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "reason", "said"), REFUSED, ids=[bad[1] for bad in REFUSED])
def test_what_cannot_be_read_is_refused_by_name(row, reason, said):
    with pytest.raises(BadRow) as caught:
        to_foundry_row(row, HERE)
    assert caught.value.reason == reason
    assert said in str(caught.value)


def test_columns_within_the_prompt_are_not_lost():
    twins = {"prompt": "q", "Prompt": None, "response": "a"}
    assert to_foundry_row(twins, HERE) == ("plain", {"prompt": "q", "response": "a"})
    row = {"instruction": "Add.", "input": "1 2", "prompt": "### Add.\n1 2\n###", "response": "3",
           "system": "", "tools": "[]", "history": []}  # fmt: skip
    assert to_foundry_row(row, HERE) == ("plain", {"prompt": row["prompt"], "response": "3"})


def test_arrays_beside_texts_are_no_trouble():
    import numpy as np

    ids = np.array([1, 2], dtype=np.int32)
    row = {"prompt": "q", "response": "a", "documents": None, "embedding": ids, "Embedding": ids}
    assert to_foundry_row(row, HERE) == ("plain", {"prompt": "q", "response": "a"})
    with pytest.raises(BadRow, match=r"tokens=array.*: the row is tokenized already"):
        to_foundry_row({"tokens": ids}, HERE)
    with pytest.raises(BadRow, match=r"prompt=array.* not text"):
        to_foundry_row({"prompt": ids, "response": "a"}, HERE)


@pytest.mark.parametrize("text", [False, True], ids=["lists", "json"])
def test_calls_that_answer_a_query_are_named_with_their_mapping(text):
    calls = [{"name": "weather", "arguments": {"city": "Oslo"}}]
    tools = [{"name": "weather", "description": "w", "parameters": {"city": {"type": "str"}}}]
    row = {"id": 1, "query": "Weather?", "answers": calls, "tools": tools}
    if text:
        row |= {key: json.dumps(row[key]) for key in ("answers", "tools")}
    with pytest.raises(BadRow, match=r"xLAM's format.*preprocessing_fn: \S+:query_calls") as seen:
        to_foundry_row(row, HERE)
    assert "query='Weather?'" in str(seen.value)
    kind, made = to_foundry_row(query_calls(row), HERE)
    assert kind == "chat"
    assert made["messages"][0] == {"role": "user", "content": "Weather?"}
    assert [c["function"] for c in made["messages"][1]["tool_calls"]] == calls
    assert made["tools"] == [{"type": "function", "function": tools[0]}]
    with pytest.raises(InputError, match="not a question and the calls"):
        query_calls({**row, "answers": "[]"})


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [("human", "gpt"), ("Human", "Assistant"), ("user", "bot"), ("source", "target"), ("Q", "A")],
)
def test_pairs_of_columns_are_named_with_the_mapping_that_reads_them(prompt, answer):
    row = {"id": 1, prompt: "Hi there", answer: "Hello"}
    with pytest.raises(BadRow) as seen:
        to_foundry_row(row, HERE)
    given = str(seen.value).partition("preprocessing_fn: {")[2].rstrip("}.").replace("'", "")
    columns = dict(part.split(": ") for part in given.split(", "))
    assert columns == {"prompt": prompt, "response": answer}
    # a column of this name alone says nothing
    with pytest.raises(BadRow, match=r"match no known format\. Known are"):
        to_foundry_row({"id": 1, "source": "ai2", "value": "b"}, HERE)
