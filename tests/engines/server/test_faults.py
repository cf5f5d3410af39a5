"""The engine ``server`` when the server misbehaves: ``fixtures/faulty_server.py`` does on purpose.

That good answers are read rightly is shown against a real server in test_server.py; here the
answers of the servers that need a GPU are also read, in the form that their sources give them.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.faulty_server import Answer, Script, faulty, good
from fixtures.served import settings
from fixtures.tokenizers import byte_level, sentencepiece_like

from spin_composer.data.pairs import LENGTH, STOP, STRING
from spin_composer.engines.server import client as http_client
from spin_composer.engines.server.generator import ServerGenerator
from spin_composer.errors import EngineError

PROMPTS = [np.array([45, 50], np.int32), np.array([60, 7, 81], np.int32)]


def engine(url: str, server: dict[str, Any] | None = None, tokenizer: Any = None, **sampling: Any):
    tokenizer = tokenizer or byte_level()
    section = {"request_timeout_seconds": 5, "retries": 3, **(server or {})}
    return ServerGenerator(url, tokenizer, tokenizer.eos_token_id, settings(section, **sampling))


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "_FIRST_PAUSE_SECONDS", 0.01)


# --- failures that pass -----------------------------------------------------------------------


@pytest.mark.parametrize("code", [429, 500, 502, 503, 0])
def test_a_failure_that_passes_is_tried_again(code: int) -> None:
    def script(body: dict, before: int) -> Answer:
        return (code, {"error": {"message": "busy"}}) if before < 2 else good(body)

    with faulty(script) as (url, asked):
        responses = engine(url).generate(PROMPTS, seed=1)
    assert [r.ids.tolist() for r in responses] == [[5, 6, 0]] * 2
    assert len(asked) == 6
    seeds = {
        tuple(b["prompt"]): {c["seed"] for c in asked if c["prompt"] == b["prompt"]} for b in asked
    }
    assert all(len(found) == 1 for found in seeds.values())  # a second try is the same request


def test_retries_leave_the_generator_of_training_alone() -> None:
    def script(body: dict, before: int) -> Answer:
        return (503, b"") if before < 1 else good(body)

    before = random.getstate()
    with faulty(script, headers={"Retry-After": "0"}) as (url, _):
        engine(url).generate(PROMPTS, seed=1)
    assert random.getstate() == before


def test_a_pause_longer_than_a_request_may_last_is_cut() -> None:
    def script(body: dict, before: int) -> Answer:
        return (429, b"") if before < 1 else good(body)

    with faulty(script, headers={"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"}) as (url, asked):
        engine(url, {"request_timeout_seconds": 0.5}).generate(PROMPTS, seed=1)
    assert len(asked) == 4


def test_a_server_that_was_started_again_is_asked_on_a_connection_of_its_own() -> None:
    with faulty(lambda b, _: good(b)) as (url, _):
        first = engine(url, {"retries": 0})
        first.generate(PROMPTS, seed=1)
    with faulty(lambda b, _: good(b), port=int(url.rpartition(":")[2])) as (_, asked):
        first.generate(PROMPTS, seed=2)
    assert len(asked) == 2


def test_the_proxies_of_the_environment_are_not_for_the_server(monkeypatch: Any) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with faulty(lambda b, _: good(b)) as (url, asked):
        engine(url, {"retries": 0}).generate(PROMPTS, seed=1)
    assert len(asked) == 2


def test_results_come_in_the_order_of_the_prompts() -> None:
    def script(body: dict, before: int) -> Answer:
        time.sleep(0.2 if len(body["prompt"]) == 2 else 0.0)  # the first prompt is answered last
        return good(body, [len(body["prompt"]), 0])

    with faulty(script) as (url, _):
        responses = engine(url).generate(PROMPTS, seed=1)
    assert [r.ids.tolist() for r in responses] == [[2, 0], [3, 0]]


# --- failures that stay: one line -------------------------------------------------------------


def assert_fails(script: Script, match: str, owner: str = "vllm", **kwargs: Any) -> None:
    with faulty(script, owner) as (url, _):
        asked = engine(url, **kwargs)
        with pytest.raises(EngineError, match=match) as caught:
            asked.generate(PROMPTS, seed=1)
    assert "\n" not in str(caught.value)


def test_a_failure_that_stays_ends_the_run_after_its_retries() -> None:
    message = r"failed 4 times in a row, at last with 500: out of memory"
    assert_fails(lambda *_: (500, {"error": {"message": "out of\nmemory"}}), message)
    assert_fails(lambda *_: (429, b""), r"at last with 429: no message")


def test_a_server_that_hangs_is_given_up() -> None:
    def hang(body: dict, before: int) -> Answer:
        time.sleep(20)
        return good(body)

    short = {"request_timeout_seconds": 0.2, "retries": 1}
    message = "failed 2 times in a row, at last with no answer within 0.2 s"
    assert_fails(hang, message, server=short)


def test_a_refusal_is_not_tried_again() -> None:
    with faulty(lambda *_: (400, {"message": "max_tokens is too large"})) as (url, asked):
        with pytest.raises(
            EngineError, match=r"refused a request \(400\): max_tokens is too large"
        ):
            engine(url, {"concurrency": 1}).generate(PROMPTS, seed=1)
        assert len(asked) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"<html>",
        b'{"choices": []}',
        b"[]",
        b"null",
        b'{"choices": [{"text": "", "token_ids": ["x"]}]}',
    ],
)
def test_a_malformed_answer_is_one_line(answer: bytes) -> None:
    assert_fails(lambda *_: (200, answer), "answered no JSON|gave no completion but")


def test_a_prompt_of_another_length_is_an_error() -> None:
    def with_bos(body: dict, before: int) -> Answer:
        return good({"prompt": [1, *body["prompt"]]})

    assert_fails(with_bos, r"read a prompt of \d tokens as \d: it changes prompts")


def test_ids_that_are_not_all_are_an_error() -> None:
    def short(body: dict, before: int) -> Answer:
        answer = good(body, [5, 6], finish_reason="length")[1]
        answer["usage"]["completion_tokens"] = 12
        return 200, answer

    assert_fails(short, "sampled 12 tokens but its ids are 2")


def test_other_ends_are_errors() -> None:
    assert_fails(lambda b, _: good(b, [5, 6], finish_reason="length"), "after 2 of 12 tokens")
    assert_fails(lambda b, _: good(b, [5, 9]), r"ended a response at \[9\], not at the run's stop")
    assert_fails(lambda b, _: good(b, [5, 9], stop_reason=9), "ended a response at 9, not at")
    assert_fails(lambda b, _: good(b, [5], finish_reason="abort"), "finish_reason 'abort'")


def test_a_server_that_cannot_be_reached_names_the_remedy() -> None:
    with faulty(lambda b, _: good(b)) as (url, _):
        pass
    message = r"cannot be reached from here \(\[Errno 111\] Connection refused\).*server\.host"
    with pytest.raises(EngineError, match=message) as caught:
        engine(url)
    assert "\n" not in str(caught.value)


# --- answers of servers that need a GPU, in their sources' forms ------------------------------


def first(answer: Script, owner: str, **kwargs: Any) -> tuple[list[int], int, dict[str, Any]]:
    with faulty(answer, owner) as (url, asked):
        response = engine(url, **kwargs).generate(PROMPTS[:1], seed=1)[0]
    return response.ids.tolist(), response.finish, asked[0]


def test_vllm_is_asked_for_ids_and_neutral_sampling() -> None:
    ids, finish, body = first(lambda b, _: good(b), "vllm")
    assert (ids, finish) == ([5, 6, 0], STOP)
    assert body["model"] == "the-model"
    assert body["prompt"] == [45, 50]
    assert (body["temperature"], body["top_p"], body["top_k"], body["min_p"]) == (1.0, 1.0, -1, 0)
    assert body["repetition_penalty"] == 1.0
    assert body["stop_token_ids"] == [0]
    assert body["return_token_ids"] is True
    assert body["watermarking"] is False  # of the server's own configuration (0.33)


def test_sglang_is_asked_for_no_watermark() -> None:
    ids, _, body = first(lambda b, _: good(b), "sglang")
    assert ids == [5, 6, 0]
    assert body["watermark"] == {"enabled": False}


def test_an_older_vllm_names_ids_in_its_log_probs() -> None:
    tokens = {"tokens": ["token_id:5", "token_id:0"]}
    answer = {"token_ids": None, "logprobs": tokens}
    ids, finish, _ = first(lambda b, _: good(b, [5, 0], **answer), "vllm")
    assert (ids, finish) == ([5, 0], STOP)


def test_a_stop_string_that_the_server_names_is_kept_as_the_reason() -> None:
    hit = byte_level()("red green").input_ids
    ids, finish, body = first(
        lambda b, _: good(b, hit, stop_reason="gre"), "vllm", stop_strings=["gre"]
    )
    assert body["stop"] == ["gre"]
    assert finish == STRING
    assert "gre" in byte_level().decode(ids)
    assert "gre" not in byte_level().decode(ids[:-1])


def test_tensorrt_llm_leaves_the_stop_token_out() -> None:
    ids, finish, body = first(lambda b, _: good(b, [5, 6]), "tensorrt_llm")
    assert (ids, finish) == ([5, 6, 0], STOP)
    assert body["detokenize"] is False
    assert body["top_k"] == 0


def test_stop_strings_are_cut_here_where_the_server_would_lose_their_tokens() -> None:
    tokenizer = byte_level()
    hit = (tokenizer("red green blue one two").input_ids * 3)[:12]
    ids, finish, body = first(
        lambda b, _: good(b, hit, finish_reason="length"), "tensorrt_llm", stop_strings=["gre"]
    )
    assert "stop" not in body
    assert finish == STRING
    assert "gre" in tokenizer.decode(ids)
    assert "gre" not in tokenizer.decode(ids[:-1])


@pytest.mark.parametrize("make", [byte_level, sentencepiece_like])
def test_text_is_tokenized_as_what_follows_the_prompt(make: Callable[[], Any]) -> None:
    tokenizer = make()
    prompt = np.array(tokenizer("Natalia sold").input_ids, np.int32)
    sampled = tokenizer("Natalia sold clips to").input_ids[len(prompt) :]
    text = tokenizer.decode([*prompt, *sampled])[len(tokenizer.decode(prompt)) :]
    choice = {"token_ids": None, "text": text}

    def answer(body: dict, before: int) -> Answer:
        return good(body, [*sampled, tokenizer.eos_token_id], **choice)

    with faulty(answer, "someone") as (url, _):
        response = engine(url, tokenizer=tokenizer).generate([prompt], seed=1)[0]
    assert text.startswith(" ")
    assert response.ids.tolist() == [*sampled, tokenizer.eos_token_id]
    assert response.finish == STOP


def test_text_of_another_number_of_tokens_is_an_error() -> None:
    def answer(body: dict, before: int) -> Answer:
        ids = byte_level()("sold clips").input_ids
        choice = {"token_ids": None, "text": "sold clips", "finish_reason": "length"}
        return good(body, [*ids, 1], **choice)

    message = "its text is of .* other ones than were sampled. Use a server that returns token ids"
    assert_fails(answer, message, owner="someone")


def test_truncated_text_is_length() -> None:
    ids = (byte_level()("sold clips to her friends").input_ids * 4)[:12]
    choice = {"token_ids": None, "text": byte_level().decode(ids), "finish_reason": "length"}
    found, finish, _ = first(lambda b, _: good(b, ids, **choice), "someone")
    assert (found, finish) == (ids, LENGTH)


# --- the process's end ------------------------------------------------------------------------

PROGRAM = """
import sys
sys.path[:0] = sys.argv[2:]
from fixtures.tokenizers import byte_level
from fixtures.faulty_server import Answer, Script, faulty, good
from fixtures.served import settings
from spin_composer.errors import EngineError
from spin_composer.engines.server.generator import ServerGenerator
import numpy as np

tokenizer = byte_level()
asked = settings({"request_timeout_seconds": 36000.0, "retries": 0, "concurrency": 2})
engine = ServerGenerator(sys.argv[1], tokenizer, tokenizer.eos_token_id, asked)
prompts = [np.array(ids, np.int32) for ids in ([45], [45, 50])]
try:
    engine.generate(prompts, seed=1)
except EngineError as error:
    print(error)
    sys.exit(4)
"""


def test_a_process_ends_at_its_error_while_other_requests_are_unanswered() -> None:
    hanging = threading.Event()

    def script(body: dict, before: int) -> Answer:
        if len(body["prompt"]) == 1:
            hanging.set()
            threading.Event().wait()  # never answered
        assert hanging.wait(600)
        return 400, {"message": "no"}

    folders = [str(Path(__file__).parents[2]), *sys.path]
    with faulty(script) as (url, _):
        ended = subprocess.run(
            [sys.executable, "-c", PROGRAM, url, *folders],
            capture_output=True, text=True, check=False, timeout=900,
        )  # fmt: skip
    assert ended.returncode == 4, ended.stderr
    assert "refused a request (400): no" in ended.stdout
