"""The engine ``server`` against llama.cpp's own server: the policy's distribution, exact ids."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.served import Served, served
from scipy.stats import chi2

from spin_composer import interrupt
from spin_composer.data.pairs import LENGTH, STOP, STRING
from spin_composer.engines.base import Response
from spin_composer.engines.hf.generator import HFGenerator
from spin_composer.engines.server.dialects import UNKNOWN_SERVER
from spin_composer.engines.server.generator import row_seeds
from spin_composer.errors import EngineError
from spin_composer.settings.generation import GenerationSettings

pytest.importorskip("xllamacpp", reason="llama.cpp's server comes with the extra `test`")

PROMPTS = [np.array(ids, np.int32) for ids in ([45, 50], [60, 7, 81, 9, 8], [46], [33, 33, 170])]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("served")) as running:
        yield running


def plain(responses: Sequence[Response]) -> list[tuple[list[int], int]]:
    return [(response.ids.tolist(), response.finish) for response in responses]


def next_token_chances(model, prompt: np.ndarray, temperature: float) -> np.ndarray:
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(prompt.astype(np.int64))[None]).logits[0, -1]
    return (logits.double() / temperature).softmax(-1).numpy()


def statistic(seen: np.ndarray, chances: np.ndarray) -> tuple[float, float]:
    """Return chi-square, tokens expected less than five times taken as one, and its limit."""
    expected = chances * seen.sum()
    common = expected >= 5
    pairs = [*zip(seen[common], expected[common], strict=True)]
    if expected[~common].sum() > 0:
        pairs.append((seen[~common].sum(), expected[~common].sum()))
    return sum((a - b) ** 2 / b for a, b in pairs), chi2.ppf(1 - 1e-3, len(pairs) - 1)


# --- the distribution -------------------------------------------------------------------------


def test_responses_are_samples_of_the_policy(llama: Served) -> None:
    count = 4000
    responses = llama.engine(max_new_tokens=1).generate([PROMPTS[0]] * count, seed=11)
    seen = np.bincount([int(r.ids[0]) for r in responses], minlength=384)
    found, limit = statistic(seen, next_token_chances(llama.model, PROMPTS[0], 1.0))
    assert found < limit
    found, limit = statistic(seen, next_token_chances(llama.model, PROMPTS[0], 1.5))
    assert found > 1.5 * limit  # the test would see a wrong temperature


@pytest.mark.parametrize(
    "sampling", [{"temperature": 0.6}, {"top_k": 5}, {"top_p": 0.3, "temperature": 0.7}]
)
def test_sampling_settings_reach_the_server(llama: Served, sampling: dict) -> None:
    responses = llama.engine(max_new_tokens=1, **sampling).generate([PROMPTS[0]] * 1500, seed=3)
    seen = np.bincount([int(r.ids[0]) for r in responses], minlength=384)
    chances = next_token_chances(llama.model, PROMPTS[0], sampling.get("temperature", 1.0))
    order = np.argsort(-chances)
    kept = sampling.get("top_k", 384)
    before = np.cumsum(chances[order]) - chances[order]
    order = order[:kept][before[:kept] < sampling.get("top_p", 1.0)]
    cut = np.zeros_like(chances)
    cut[order] = chances[order] / chances[order].sum()
    assert seen[cut == 0].sum() == 0
    found, limit = statistic(seen[order], cut[order])
    assert found < limit


def test_greedy_ids_are_those_of_hf(llama: Served) -> None:
    sampling = {"temperature": 1e-5, "max_new_tokens": 24}
    hf = HFGenerator(
        llama.model,
        llama.tokenizer,
        llama.tokenizer.eos_token_id,
        GenerationSettings(**sampling),  # pyright: ignore[reportArgumentType]
        torch.device("cpu"),
    )
    wanted = plain(hf.generate(PROMPTS, seed=0))
    assert plain(llama.engine(**sampling).generate(PROMPTS, seed=0)) == wanted


# --- seeds and order --------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_responses_in_any_order(llama: Served) -> None:
    prompts = PROMPTS * 6
    one_by_one = plain(llama.engine({"concurrency": 1}).generate(prompts, seed=3))
    at_once = plain(llama.engine({"concurrency": 24}).generate(prompts, seed=3))
    assert one_by_one == at_once
    assert plain(llama.engine().generate(prompts, seed=4)) != at_once


def test_progress_is_told_and_a_signal_ends_the_wait(llama: Served) -> None:
    engine = llama.engine()
    told: list[tuple[int, int]] = []
    responses = engine.generate(PROMPTS, 1, lambda *progress: told.append(progress))
    assert told[-1] == (len(PROMPTS), sum(len(r.ids) for r in responses))
    interrupt.record_signal(signal.SIGTERM)
    try:
        with pytest.raises(interrupt.Interrupted):
            engine.generate(PROMPTS, seed=1)
    finally:
        interrupt.uninstall()


def test_row_seeds_are_distinct_and_fit_every_server() -> None:
    seeds = row_seeds(2**63 - 1, 1000) + row_seeds(2**63 - 2, 1000)
    assert len(set(seeds)) == 2000
    assert all(0 <= seed < 2**31 for seed in seeds)


# --- where a response ends --------------------------------------------------------------------


def test_the_stop_token_ends_a_response_once_and_truncated_ones_have_none(llama: Served) -> None:
    stop_id = llama.tokenizer.eos_token_id
    responses = llama.engine(max_new_tokens=60).generate(PROMPTS * 25, seed=5)
    assert {r.finish for r in responses} == {STOP, LENGTH}
    for response in responses:
        stops = np.flatnonzero(response.ids == stop_id).tolist()
        assert response.ids.dtype == np.int32
        if response.finish == STOP:
            assert stops == [len(response.ids) - 1]
        else:
            assert (stops, len(response.ids)) == ([], 60)


@pytest.mark.parametrize("strings", [["e", "o"], [" the", "ight"]])
def test_a_stop_string_ends_a_response_at_the_token_that_completes_it(
    llama: Served, strings: list[str]
) -> None:
    responses = llama.engine(max_new_tokens=40, stop_strings=strings).generate(PROMPTS * 12, seed=8)
    assert sum(r.finish == STRING for r in responses) > 10
    for response in responses:
        text = llama.tokenizer.decode(response.ids, skip_special_tokens=True)
        before = llama.tokenizer.decode(response.ids[:-1])
        assert any(s in text for s in strings) == (response.finish == STRING)
        assert not any(s in before for s in strings)
        assert (llama.tokenizer.eos_token_id in response.ids) == (response.finish == STOP)


def test_another_token_that_ends_responses_is_an_error(llama: Served) -> None:
    engine = llama.engine(max_new_tokens=60)
    engine.stop_token_id = 17  # the server's is 0
    with pytest.raises(EngineError, match="not at the run's stop token 17"):
        engine.generate(PROMPTS * 25, seed=5)


def test_a_context_that_is_too_short_is_an_error(llama: Served) -> None:
    engine = llama.engine(max_new_tokens=250, temperature=1e-5)
    with pytest.raises(EngineError, match="of 250 tokens: its context is too short"):
        engine.generate([np.array([45] * 100, np.int32)] * 4, seed=5)


# --- text where there are no ids --------------------------------------------------------------


def test_text_that_is_tokenized_otherwise_is_an_error(llama: Served) -> None:
    engine = llama.engine(max_new_tokens=24)
    engine.dialect = UNKNOWN_SERVER  # llama.cpp's OpenAI endpoint gives text
    with pytest.raises(EngineError, match="Use a server that returns token ids"):
        engine.generate(PROMPTS * 8, seed=3)


def test_text_that_is_tokenized_alike_gives_the_ids(llama: Served) -> None:
    texts = llama.engine(max_new_tokens=2)
    texts.dialect = UNKNOWN_SERVER
    agreed = 0
    for seed in range(60):
        try:
            found = plain(texts.generate(PROMPTS[:1], seed))
        except EngineError:
            continue
        ids = [i for i in found[0][0] if i != llama.tokenizer.eos_token_id]
        assert llama.tokenizer(llama.tokenizer.decode(ids)).input_ids == ids
        agreed += 1
    assert agreed > 3


# --- a server that goes away ------------------------------------------------------------------


def test_a_server_that_is_killed_in_the_middle_is_one_line(tmp_path: Path) -> None:
    with served(tmp_path) as victim:
        patient = {"concurrency": 2, "retries": 6, "request_timeout_seconds": 3600.0}
        engine = victim.engine(patient, max_new_tokens=200)
        threading.Timer(0.5, victim.process._signal, [9]).start()
        with pytest.raises(EngineError, match="the completion server ended") as caught:
            engine.generate(PROMPTS * 2000, seed=0)
        assert "\n" not in str(caught.value)
        assert "server.log" in str(caught.value)


def test_a_prompt_that_the_server_refuses_is_one_line(llama: Served) -> None:
    with pytest.raises(EngineError, match=r"refused a request \(400\): Prompt contains invalid"):
        llama.engine().generate([np.array([5000], np.int32)], seed=0)


def test_a_reply_of_fewer_ids_than_were_sampled_is_an_error(llama: Served) -> None:
    engine = llama.engine()
    read = engine.dialect.read
    engine.dialect = replace(engine.dialect, read=lambda a: replace(read(a), ids=read(a).ids[1:]))  # pyright: ignore
    with pytest.raises(EngineError, match="sampled 12 tokens but its ids are 11"):
        engine.generate(PROMPTS, seed=3)
