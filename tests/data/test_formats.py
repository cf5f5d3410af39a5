"""Every format reads, and every bad row says where and what it is."""

from __future__ import annotations

import pytest

from spin_composer.data.formats import BadRow, Location, to_foundry_row
from spin_composer.errors import InputError
from tests.data.rows import CHAT, PLAIN, load, nemo_chat

HERE = Location("data.jsonl", 7)
USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}


def test_all_plain_formats_mean_the_same():
    rows = [
        {"prompt": "a", "response": "b", "id": 3},
        {"prompt": "a", "completion": "b"},
        {"input": "a", "output": "b", "prompt": None},
    ]
    for row in rows:
        assert to_foundry_row(row, HERE) == ("plain", {"prompt": "a", "response": "b"})


def test_all_chat_formats_mean_the_same():
    for row in CHAT:
        turns = row["messages"]
        assert to_foundry_row(nemo_chat(row), HERE) == ("chat", {"messages": turns})
        pair = {"real": turns, "generated": [USER, {"role": "assistant", "content": ""}]}
        assert to_foundry_row(pair, HERE) == ("chat", {"messages": turns})
        noted = [{**turn, "id": "x", "weight": 1, "name": None} for turn in turns]
        extra = {"messages": noted, "prompt": turns[-2]["content"], "prompt_id": 1}
        assert to_foundry_row(extra, HERE) == ("chat", {"messages": turns})


def test_mask_names_the_speaker_that_is_not_trained_on():
    row = {
        "mask": "Quinn",
        "conversations": [{"from": "Quinn", "value": "Hi"}, {"from": "Alex", "value": "Hello"}],
    }
    assert to_foundry_row(row, HERE)[1]["messages"] == [USER, ANSWER]


def test_speakers_without_mask_are_known_by_name():
    row = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
    assert to_foundry_row(row, HERE)[1]["messages"] == [USER, ANSWER]


# reason, row, what the message must name
BAD = [
    ("not JSON", '{"prompt": "a", ', "not JSON"),
    ("not an object", "[1, 2]", "not an object"),
    ("missing response", {"prompt": "a"}, "field response is missing"),
    ("missing prompt", {"response": "a"}, "field prompt is missing"),
    ("missing output", {"input": "a"}, "field output is missing"),
    ("missing real", {"generated": [USER, ANSWER]}, "field real is missing"),
    ("unknown format", {"question": "a", "answer": "b"}, "answer"),
    ("instruction column", {"instruction": "a", "input": "b", "output": "c"}, "instruction='a'"),
    ("two formats in one row", {"prompt": "a", "response": "b", "messages": [USER, ANSWER]},
     "messages and prompt"),
    ("wrong type", {"prompt": 5, "response": "b"}, "prompt=5"),
    ("wrong type", {"prompt": "a", "response": None}, "response=None"),
    ("wrong type", {"messages": "Hi"}, "messages='Hi'"),
    ("wrong type", {"messages": [USER, {"role": "assistant", "content": ["x"]}]},
     "messages[1].content=['x']"),
    ("wrong type", {"messages": [USER, "Hello"]}, "messages[1]='Hello'"),
    ("empty prompt", {"prompt": "", "response": "b"}, "prompt=''"),
    ("empty response", {"prompt": "a", "response": ""}, "response=''"),
    ("empty response", {"prompt": "a", "response": " \n"}, r"response=' \n'"),
    ("empty prompt", {"messages": [{"role": "user", "content": " "}, ANSWER]},
     "messages[0].content=' '"),
    ("empty response", {"messages": [USER, {"role": "assistant", "content": "  "}]},
     "messages[1].content='  '"),
    ("no assistant turn", {"messages": [USER]}, "none of role assistant"),
    ("no assistant turn", {"messages": []}, "messages=[]"),
    ("no assistant turn", {"system": "s", "mask": "User", "conversations": []}, "conversations"),
    ("last turn not the assistant's", {"messages": [USER, ANSWER, USER]},
     "messages[2].role='user'"),
    ("roles out of order", {"messages": [ANSWER]}, "messages[0].role='assistant'"),
    ("roles out of order", {"messages": [USER, USER, ANSWER]}, "messages[1].role='user'"),
    ("roles out of order", {"messages": [USER, ANSWER, {"role": "system", "content": "x"}]},
     "messages[2].role='system'"),
    ("unknown role", {"messages": [{"role": "boss", "content": "x"}, ANSWER]}, "'boss'"),
    ("missing content", {"messages": [{"role": "user"}, ANSWER]}, "messages[0]"),
    ("missing role", {"real": [{"content": "x"}, ANSWER]}, "real[0]"),
    ("missing value", {"conversations": [{"from": "User"}]}, "conversations[0]"),
    ("wrong type", {"mask": "User", "conversations": [{"from": "User", "value": 3}]},
     "conversations[0].value=3"),
    ("label prediction row", {"type": "TEXT_TO_VALUE", "mask": "User", "conversations": []},
     "TEXT_TO_VALUE"),
    ("prompt too long", {"prompt": "question " * 99, "response": "b"}, "max_prompt_len is 63"),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "row", "named"), BAD, ids=[bad[0] for bad in BAD])
def test_bad_row_names_file_line_field_and_remedy_in_one_line(reason, row, named, jsonl, gpt2):
    path = jsonl([row])
    with pytest.raises(BadRow) as caught:
        load(gpt2, max_seq_len=64, hf_name=str(path))
    message = str(caught.value)
    assert caught.value.reason == reason
    assert message.startswith(f"{path}:1: ")
    assert named in message
    assert "\n" not in message
    assert len(message) < 500
    problem, remedy = caught.value.problem, caught.value.remedy
    assert remedy.endswith(".")
    assert message.endswith(remedy)
    assert problem in message


def test_line_numbers_count_blank_lines(jsonl, gpt2):
    path = jsonl([PLAIN[0], "", {"prompt": "a"}])
    with pytest.raises(InputError, match=r"train\.jsonl:3: .*response"):
        load(gpt2, hf_name=str(path))


def test_bytes_that_are_not_utf8_are_a_bad_row(tmp_path, gpt2):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"prompt": "a", "response": "b"}\n{"prompt": "\xff", "response": "b"}\n')
    with pytest.raises(BadRow, match=r"train\.jsonl:2: .*UTF-8"):
        load(gpt2, hf_name=str(path))


def test_skip_counts_each_reason_and_keeps_the_rest(jsonl, gpt2, caplog):
    rows = [PLAIN[0], *[row for _, row, _ in BAD], PLAIN[1]]
    examples = load(gpt2, max_seq_len=64, hf_name=str(jsonl(rows)), on_bad_row="skip")
    assert (
        examples.fingerprint
        == load(gpt2, max_seq_len=64, hf_name=str(jsonl(PLAIN[:2]))).fingerprint
    )
    expected: dict[str, int] = {}
    for reason, _, _ in BAD:
        expected[reason] = expected.get(reason, 0) + 1
    assert examples.report.dropped == expected
    assert (examples.report.rows, examples.report.kept) == (len(rows), 2)
    lines = [record for record in caplog.records if "bad rows skipped" in record.getMessage()]
    assert len(lines) == 1


def test_data_without_a_usable_row_is_an_error(jsonl, gpt2):
    with pytest.raises(InputError, match=r"none of the 1 rows.*train\.jsonl:1"):
        load(gpt2, hf_name=str(jsonl([{"prompt": "a"}])), on_bad_row="skip")


def test_mixing_plain_and_chat_rows_is_an_error(jsonl, chatml):
    path = str(jsonl([PLAIN[0], CHAT[0]]))
    for on_bad_row in ("error", "skip"):
        with pytest.raises(InputError, match=r"train\.jsonl:2: a chat row .*plain"):
            load(chatml, hf_name=path, on_bad_row=on_bad_row)


def test_conversation_that_the_template_refuses_is_a_bad_row(jsonl):
    from tests.fixtures.tokenizers import CHATML
    from tests.fixtures.tokenizers import chatml as make

    tokenizer = make()
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        + CHATML
    )
    rows = [CHAT[1], CHAT[0]]
    with pytest.raises(BadRow, match=r"jsonl:2: the chat template refuses the row: no system"):
        load(tokenizer, hf_name=str(jsonl(rows)))
    assert len(load(tokenizer, hf_name=str(jsonl(rows)), on_bad_row="skip")) == 1


def test_lone_surrogate_is_named_as_such(jsonl, gpt2, chatml):
    plain = {"prompt": "a", "response": "b\ud800"}
    chat = {"messages": [USER, {"role": "assistant", "content": "b\ud800"}]}
    for tokenizer, row in ((gpt2, plain), (chatml, chat)):
        with pytest.raises(BadRow, match=r"train\.jsonl:1: .*half of a surrogate pair") as error:
            load(tokenizer, hf_name=str(jsonl([row])))
        str(error.value).encode()
