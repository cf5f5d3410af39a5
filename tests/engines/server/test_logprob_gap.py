"""A server that serves another model than the exported opponent is found by its log-probs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures import models, tokenizers
from fixtures.runs import tiny_trainer
from fixtures.served import COMMAND, Served, served, settings
from fixtures.units import missing_units

from spin_composer.data.pairs import Pair
from spin_composer.engines.server.dialects import DIALECTS, UNKNOWN_SERVER
from spin_composer.engines.server.export import export_opponent
from spin_composer.engines.server.logprob_gap import (
    FP32_TOLERANCE,
    LOW_PRECISION_TOLERANCE,
    LogprobGap,
)
from spin_composer.errors import EngineError
from spin_composer.store.local import LocalStore

pytest.importorskip("xllamacpp", reason="llama.cpp's server comes with the extra `test`")

PROMPTS = [np.array(ids, np.int32) for ids in ([45, 50], [60, 7, 81, 9, 8], [46])] * 10


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("served")) as running:
        yield running


def scored(model: Any, llama: Served, **sampling: Any) -> tuple[list[Pair], list[float | None]]:
    """Return the server's responses, scored by ``model``, and the server's own log-probs."""
    rows, given = [], []
    responses = llama.engine(max_new_tokens=8, **sampling).generate(PROMPTS, seed=5)
    for i, (prompt, response) in enumerate(zip(PROMPTS, responses, strict=True)):
        ids = torch.from_numpy(np.concatenate([prompt, response.ids]).astype(np.int64))[None]
        with torch.no_grad():
            logps = model.eval()(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
        of_tokens = logps.gather(1, ids[0, 1:, None])[len(prompt) - 1 :]
        logp = float(of_tokens.sum())
        pair = Pair(prompt, response.ids, response.ids, 0.0, logp, i, response.finish)
        rows.append(pair)
        given.append(response.logp)
    return rows, given


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 0.7, "top_p": 0.9}, {"stop_strings": ["e", "o"]}]
)
def test_the_served_opponents_log_probs_are_ours(llama: Served, sampling: dict) -> None:
    gap = LogprobGap(FP32_TOLERANCE, llama.engine())
    found = gap.check(*scored(llama.model, llama, **sampling), noise=0.0)
    assert found is not None
    assert found < FP32_TOLERANCE / 5  # llama.cpp approximates exponentials


def test_another_model_is_found_even_at_low_precisions_tolerance(llama: Served) -> None:
    vocab = len(llama.tokenizer)
    other = models.tiny_model("llama", seed=1, vocab_size=vocab, max_position_embeddings=256)
    gap = LogprobGap(LOW_PRECISION_TOLERANCE, llama.engine())
    with pytest.raises(EngineError, match=r"llama.cpp at http://127.*differ.*\d nats") as caught:
        gap.check(*scored(other, llama), noise=0.001)
    assert "reload_command" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bf16_weights_pass_at_low_precisions_tolerance_and_a_coarse_copy_does_not(
    llama: Served,
) -> None:
    vocab = len(llama.tokenizer)

    def copy(change: Any) -> Any:
        twin = models.tiny_model("llama", vocab_size=vocab, max_position_embeddings=256)
        for mine, theirs in zip(twin.parameters(), llama.model.parameters(), strict=True):
            mine.data = change(theirs.data)
        return twin

    rounded = copy(lambda weight: weight.bfloat16().float())
    gap = LogprobGap(LOW_PRECISION_TOLERANCE, "it")
    found = gap.check(*scored(rounded, llama), noise=0.0)
    assert found is not None
    assert 0 < found < LOW_PRECISION_TOLERANCE / 2

    def in_three_bits(weight: torch.Tensor) -> torch.Tensor:
        scale = weight.abs().max() / 3
        return (weight / scale).round() * scale

    with pytest.raises(EngineError, match="a quantized one"):
        gap.check(*scored(copy(in_three_bits), llama), noise=0.0)


def test_noise_of_scoring_widens_the_tolerance(llama: Served) -> None:
    rows, given = scored(llama.model, llama)
    shifted = [None if logp is None else logp + 0.3 * len(row.generated)
               for row, logp in zip(rows, given, strict=True)]  # fmt: skip
    LogprobGap(0.05, "it").check(rows, shifted, noise=0.1)
    with pytest.raises(EngineError, match=r"by 0\.3 nats per token"):
        LogprobGap(0.05, "it").check(rows, shifted, noise=0.05)


def test_without_log_probs_nothing_is_compared() -> None:
    pair = Pair(*[np.array([1], np.int32)] * 3)
    gap = LogprobGap(1e-9, "it")
    assert gap.check([pair], [None], noise=0.0) is None


def test_log_probs_are_compared_only_where_they_are_the_policys() -> None:
    neutral, cold = settings(), settings(temperature=0.5)
    assert [
        DIALECTS[name].gives_policy_logps(neutral) for name in ("vllm", "sglang", "llamacpp")
    ] == [True] * 3
    assert not DIALECTS["vllm"].gives_policy_logps(cold)
    assert not DIALECTS["vllm"].gives_policy_logps(settings(top_k=5))
    assert DIALECTS["llamacpp"].gives_policy_logps(cold)
    assert not UNKNOWN_SERVER.gives_policy_logps(neutral)


def test_openai_log_probs_are_read_where_there_is_one_for_each_id() -> None:
    choice = {"token_ids": [7, 8, 2], "finish_reason": "stop", "text": "x"}
    choice["logprobs"] = {"tokens": ["a", "b", ""], "token_logprobs": [-1.0, -2.0, -0.5]}
    read = DIALECTS["vllm"].read
    assert read({"choices": [choice]}).logps == [-1.0, -2.0, -0.5]
    choice["logprobs"] = {"tokens": ["a", "b"], "token_logprobs": [-1.0, -2.0]}
    assert read({"choices": [choice]}).logps is None
    assert read({"choices": [{**choice, "logprobs": None}]}).logps is None


def test_a_response_that_is_cut_has_the_log_probs_of_what_is_left(llama: Served) -> None:
    engine = llama.engine(max_new_tokens=12)
    read = DIALECTS["llamacpp"].read
    body = {"tokens": [45, 46, 47], "content": "", "stop_type": "limit"}
    body["completion_probabilities"] = [{"logprob": -1.0}, {"logprob": -2.0}, {"logprob": -4.0}]
    reply = read(body)
    cut = engine._response([5], replace(reply, ids=[45, engine.stop_token_id, 47]))
    assert (cut.ids.tolist(), cut.logp) == ([45, engine.stop_token_id], -3.0)


def test_a_run_whose_server_serves_another_model_stops_before_a_unit_is_stored(
    tmp_path: Path,
) -> None:
    tokenizer = tokenizers.byte_level()
    other = models.tiny_model("llama", seed=1, vocab_size=len(tokenizer))
    export_opponent(other, tokenizer, tokenizer.eos_token_id, "x", None, tmp_path / "other")

    def run(command: str, folder: Path) -> Any:
        server = {"command": command, "retries": 2}
        generation = {"engine": "server", "max_new_tokens": 4, "server": server}
        spin = {"generation": generation, "unit_size": 12}
        trainer = tiny_trainer(folder, spin=spin, max_duration="1iter")
        trainer.fit()
        return trainer

    wrong = COMMAND.replace("{model}", str(tmp_path / "other"))
    with pytest.raises(EngineError, match="does not serve the exported opponent"):
        run(f"env OPPONENT={{model}} {wrong}", tmp_path / "wrong")
    assert missing_units(LocalStore(tmp_path / "wrong/self-play"), 0, range(2)) == [0, 1]
    trainer = run(COMMAND, tmp_path / "right")
    ((_, gap),) = trainer.logger.destinations[0].data["spin/server_gap"]
    assert 0 < gap < FP32_TOLERANCE / 5
