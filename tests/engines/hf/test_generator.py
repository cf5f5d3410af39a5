"""The ``hf`` engine answers as the policy would: its own distribution, seeded, cut at the stop."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from spin_composer import interrupt
from spin_composer.data.pairs import LENGTH, STOP, STRING
from spin_composer.engines.base import Response
from spin_composer.engines.hf.generator import HFGenerator
from spin_composer.model.head import install_head
from spin_composer.settings.generation import GenerationSettings
from tests.fixtures.models import FAMILIES as ALL_FAMILIES
from tests.fixtures.models import tiny_model
from tests.fixtures.tokenizers import byte_level

VOCAB, STOP_ID = 11, 2
FAMILIES = ["llama", "gpt2", "mpt"]
PROMPTS = [np.array(ids, np.int32) for ids in ([5, 3], [4, 7, 1, 9, 8], [6], [3, 3, 10])]


def engine(
    family: str = "llama", model: Any = None, tokenizer: Any = None, **settings: Any
) -> HFGenerator:
    model = tiny_model(family, vocab_size=VOCAB) if model is None else model
    generation = GenerationSettings(**{"max_new_tokens": 8, "batch_size": 64, **settings})
    stop = STOP_ID if tokenizer is None else tokenizer.eos_token_id
    return HFGenerator(model, tokenizer, stop, generation, torch.device("cpu"))


def plain(responses: Sequence[Response]) -> list[tuple[list[int], int]]:
    return [(response.ids.tolist(), response.finish) for response in responses]


# --- the distribution -------------------------------------------------------------------------


def first_token_statistic(
    family: str,
    prompt: np.ndarray,
    company: Sequence[np.ndarray],
    count: int = 4000,
    **settings: Any,
) -> tuple[float, float]:
    """Return chi-square of the first tokens sampled after ``prompt`` among ``company``: against
    the model's exact distribution, and against the same flattened by temperature 1.5."""
    hf = engine(family, max_new_tokens=1, batch_size=2000, **settings)
    asked = [prompt, *company] * (count // (1 + len(company)) + 1)
    mine = hf.generate(asked, seed=11)[:: 1 + len(company)]
    seen = np.bincount([int(r.ids[0]) for r in mine], minlength=VOCAB)
    with torch.no_grad():
        logits = hf.model(input_ids=torch.from_numpy(prompt.astype(np.int64))[None]).logits
    chances = [(logits[0, -1].double() / t).softmax(-1).numpy() for t in (1.0, 1.5)]
    return tuple(float(((seen - len(mine) * p) ** 2 / (len(mine) * p)).sum()) for p in chances)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("padded", [False, True], ids=["alone", "left_padded"])
def test_responses_are_samples_of_the_policy(family: str, padded: bool) -> None:
    limit = chi2.ppf(1 - 1e-3, VOCAB - 1)
    company = [PROMPTS[1]] if padded else []
    exact, flattened = first_token_statistic(family, PROMPTS[0], company)
    assert exact < limit
    assert flattened > 2 * limit  # the test would see a wrong temperature


def test_padding_is_no_repetition_that_is_penalized() -> None:
    hf = engine(max_new_tokens=1, repetition_penalty=50.0, batch_size=2000)
    with torch.no_grad():
        logits = hf.model(input_ids=torch.tensor(PROMPTS[0][None], dtype=torch.int64)).logits[0, -1]
    logits[PROMPTS[0]] = -torch.inf
    hf.stop_token_id = int(logits.argmax())  # likely, so that a penalty on it shows
    stopped = [
        np.mean(
            [r.finish == STOP for r in hf.generate([PROMPTS[0], *company] * 1000, seed=1)[::step]]
        )
        for step, company in ((1, []), (2, [PROMPTS[1]]))
    ]
    assert stopped[0] == pytest.approx(stopped[1], abs=0.08)  # five standard deviations


@pytest.mark.parametrize("family", FAMILIES)
def test_the_checkpoints_own_generation_settings_do_not_leak_in(family: str) -> None:
    wanted = plain(engine(family).generate(PROMPTS, seed=3))
    model = tiny_model(family, vocab_size=VOCAB)
    silly = {
        "temperature": 0.01, "top_k": 1, "top_p": 0.1, "do_sample": False, "max_length": 3,
        "max_new_tokens": 2, "min_new_tokens": 1, "repetition_penalty": 9.0, "eos_token_id": 7,
        "suppress_tokens": [3, 4, 5], "no_repeat_ngram_size": 1, "num_beams": 3, "min_p": 0.5,
        "typical_p": 0.2, "bad_words_ids": [[6]],
    }  # fmt: skip
    for name, value in silly.items():
        setattr(model.generation_config, name, value)
    assert plain(engine(model=model).generate(PROMPTS, seed=3)) == wanted


def test_the_scoring_head_does_not_change_what_is_generated() -> None:
    wanted = plain(engine().generate(PROMPTS, seed=3))
    model = tiny_model("llama", vocab_size=VOCAB)
    install_head(model)
    assert plain(engine(model=model).generate(PROMPTS, seed=3)) == wanted


# --- seeds ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_seed_gives_the_same_responses(family: str) -> None:
    hf = engine(family)
    once = plain(hf.generate(PROMPTS * 4, seed=3))
    torch.rand(5)
    assert plain(hf.generate(PROMPTS * 4, seed=3)) == once
    assert plain(hf.generate(PROMPTS * 4, seed=4)) != once


def test_large_seeds_are_seeds() -> None:
    a, b = (plain(engine().generate(PROMPTS * 4, seed=s)) for s in (2**63 - 1, 2**63 - 2))
    assert a != b


def test_the_global_random_state_is_untouched() -> None:
    before = torch.random.get_rng_state()
    engine().generate(PROMPTS, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)


# --- where a response ends --------------------------------------------------------------------


def test_the_stop_token_ends_a_response_once_and_truncated_ones_have_none() -> None:
    responses = engine(batch_size=7).generate(PROMPTS * 40, seed=5)
    assert len(responses) == 160
    assert {r.finish for r in responses} == {STOP, LENGTH}
    for response in responses:
        stops = np.flatnonzero(response.ids == STOP_ID).tolist()
        assert response.ids.dtype == np.int32
        if response.finish == STOP:
            assert stops == [len(response.ids) - 1]
        else:
            assert (stops, len(response.ids)) == ([], 8)


def test_no_response_stops_before_min_new_tokens() -> None:
    free = engine().generate(PROMPTS * 20, seed=5)
    held = engine(min_new_tokens=5).generate(PROMPTS * 20, seed=5)
    assert min(len(r.ids) for r in free) < 5
    assert min(len(r.ids) for r in held if r.finish == STOP) >= 6  # five, and the stop token
    assert all(STOP_ID not in r.ids[:5] for r in held)


def sampler_of_text() -> Callable[..., tuple[Any, list[Response]]]:
    tokenizer = byte_level()
    model = tiny_model("llama", vocab_size=len(tokenizer))

    def sample(prompt: str, count: int = 48, **settings: Any) -> tuple[Any, list[Response]]:
        ids = np.array(tokenizer(prompt).input_ids, np.int32)
        prompts = [ids, np.concatenate([ids[:1], ids])] * (count // 2)
        hf = engine(model=model, tokenizer=tokenizer, max_new_tokens=24, **settings)
        return tokenizer, hf.generate(prompts, seed=8)

    return sample


def test_a_stop_string_ends_a_response_without_a_stop_token() -> None:
    strings = ["e", "o"]
    tokenizer, responses = sampler_of_text()("red green", stop_strings=strings)
    ended = [r for r in responses if r.finish == STRING]
    assert len(ended) > 10
    for response in responses:
        text = tokenizer.decode(response.ids, skip_special_tokens=True)
        before = tokenizer.decode(response.ids[:-1])
        assert any(s in text for s in strings) == (response.finish == STRING)
        assert not any(s in before for s in strings)
        assert (tokenizer.eos_token_id in response.ids) == (response.finish == STOP)


def test_a_stop_string_is_looked_for_in_the_response_only() -> None:
    # Every response would end at once if the prompt's last letter counted.
    sample, tokenizer = sampler_of_text(), byte_level()
    whole = sample("red gree")[1]
    first = {tokenizer.decode(response.ids[:1]) for response in whole}
    strings = [f"e{text[0]}" for text in sorted(first) if text[0].isascii()]
    strings = [s for s in strings if not any(s in tokenizer.decode(r.ids) for r in whole)]
    assert len(strings) > 5
    _, responses = sample("red gree", stop_strings=strings)
    assert plain(responses) == plain(whole)


# --- the model is left as it was --------------------------------------------------------------


def test_modes_of_all_modules_are_restored() -> None:
    model = tiny_model("llama", vocab_size=VOCAB).train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    engine(model=model).generate(PROMPTS, seed=0)
    assert [module.training for module in model.modules()] == before
    with pytest.raises(Exception, match=r".*"):
        engine(model=model).generate([np.array([VOCAB + 5], np.int32)], seed=0)
    assert [module.training for module in model.modules()] == before


def test_no_gradient_is_kept() -> None:
    hf = engine()
    hf.generate(PROMPTS, seed=0)
    assert all(p.grad is None for p in hf.model.parameters())
    assert torch.is_grad_enabled()


SLIDING = [("gemma2", {"cache_implementation": "hybrid"}), ("mistral", {})]


@pytest.mark.parametrize(("family", "overrides"), SLIDING)
def test_generation_past_a_sliding_window_equals_recomputing(family: str, overrides: Any) -> None:
    model = tiny_model(family, vocab_size=VOCAB, sliding_window=3, **overrides)
    assert_equals_recomputing(engine(model=model, temperature=1e-5, max_new_tokens=6))


@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_cached_generation_equals_recomputing_every_step(family: str) -> None:
    assert_equals_recomputing(engine(family, temperature=1e-5, max_new_tokens=6))


def assert_equals_recomputing(hf: HFGenerator) -> None:
    """At a temperature near 0 sampling is greedy: the cache, the left padding and the positions
    must give what whole forward passes of the unpadded sequences give."""
    for prompt, response in zip(PROMPTS, hf.generate(PROMPTS, seed=0), strict=True):
        ids = prompt.tolist()
        with torch.no_grad():
            for token in response.ids.tolist():
                logits = hf.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
                assert logits[token] > logits.max() - 1e-4
                ids.append(token)


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # our decode loop, and generate
def test_progress_is_told_while_prompts_are_answered(family: str) -> None:
    hf = engine(family, max_new_tokens=30, batch_size=2)
    told: list[tuple[int, int]] = []
    responses = hf.generate(PROMPTS * 3, 4, lambda *progress: told.append(progress))
    answered = [count for count, _ in told]
    assert answered == sorted(answered)
    assert answered[-1] == len(responses)
    assert len(set(answered)) > 3  # it moves within a unit
    tokens = sum(len(response.ids) for response in responses)
    assert tokens <= told[-1][1] <= 2 * tokens  # rows that are done may count until they leave
    assert told[1][1] < told[-1][1]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_generation_stops_between_two_steps_at_a_signal(family: str) -> None:
    hf = engine(family, max_new_tokens=100, min_new_tokens=100)
    steps: list[int] = []

    def on_progress(answered: int, tokens: int) -> None:
        steps.append(tokens)
        if len(steps) == 2:
            interrupt.record_signal(signal.SIGTERM)

    try:
        with pytest.raises(interrupt.Interrupted) as caught:
            hf.generate(PROMPTS, 4, on_progress)
    finally:
        interrupt.uninstall()
    assert caught.value.code == 128 + signal.SIGTERM
    assert len(steps) == 2
