"""What play takes on a device is computed beforehand, from above, and told with its remedy."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from spin_composer.engines.hf.engine import HFEngine
from spin_composer.engines.hf.memory import free_bytes, needs_of, require_memory
from spin_composer.errors import EnvironmentFailure
from spin_composer.exits import EXIT_ENVIRONMENT, explain
from spin_composer.model.adapters import mergeable
from spin_composer.settings.spin import GenerationSettings
from tests.fixtures.models import tiny_model
from tests.model.test_adapters import adapted

CPU = torch.device("cpu")


def bf16() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16)


def peak_of(hf: HFEngine, prompts: list[np.ndarray]) -> int:
    """Return the most bytes that the allocator held at a time beyond those held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        hf.generate(prompts, seed=1)
    assert profiled.profiler is not None
    live = most = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            most = max(most, live)
    return most


LLAMA = {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 6}
CASES = {
    "llama": ("llama", {**LLAMA, "max_position_embeddings": 512}, (8, 60, 100)),
    "long_prompts": ("llama", {**LLAMA, "max_position_embeddings": 512}, (4, 300, 10)),
    "vocabulary": ("qwen2", {"vocab_size": 6000, "max_position_embeddings": 512}, (16, 20, 60)),
    "gpt2": ("gpt2", {"n_positions": 512, "n_layer": 6}, (8, 60, 100)),
    "mpt": ("mpt", {"max_seq_len": 512, "n_layers": 6}, (8, 60, 100)),
}


QUICK = (("llama", torch.bfloat16), ("gpt2", None))
BOUNDS = [
    pytest.param(case, dtype, marks=() if (case, dtype) in QUICK else pytest.mark.slow)
    for case in CASES
    for dtype in (None, torch.bfloat16)
]


@pytest.mark.parametrize(("case", "precision"), BOUNDS)
def test_what_is_allocated_is_bounded_and_not_by_far(case: str, precision: Any) -> None:
    family, overrides, (rows, prompt, new) = CASES[case]
    model = tiny_model(family, **overrides)
    settings = GenerationSettings(max_new_tokens=new, batch_size=rows, min_new_tokens=new)
    context = nullcontext if precision is None else bf16
    hf = HFEngine(model, None, 2, settings, CPU, context)
    prompts = list(np.random.default_rng(0).integers(3, 100, (rows + 2, prompt)).astype(np.int32))
    allocated = peak_of(hf, prompts)
    computed = needs_of(model, model, settings, rows, prompt, precision).total()
    assert allocated <= computed <= 3.5 * allocated


@pytest.mark.parametrize("merge", [False, True])
def test_merged_adapters_are_counted_apart(merge: bool) -> None:
    model = adapted()
    settings = GenerationSettings(max_new_tokens=2, batch_size=1)
    needs = needs_of(model, model, settings, 1, 4, None)
    weights = sum(layer.base_layer.weight.numel() for layer in mergeable(model)) * 4
    assert weights < needs.merged < 2 * weights
    assert needs.total(True) - needs.total(False) == needs.merged
    hf = HFEngine(model, None, 2, settings, CPU, merge=merge)
    assert peak_of(hf, [np.array([3, 4, 5, 6], np.int32)]) <= needs.total(merge)


def test_what_does_not_fit_is_refused_in_one_line_with_the_remedy() -> None:
    model = tiny_model("llama")
    free = free_bytes(CPU)
    per_row = needs_of(model, model, GenerationSettings(), 1000, 4096, None).cache // 1000
    rows = 2 * free // per_row
    with pytest.raises(EnvironmentFailure) as refused:
        require_memory(model, model, GenerationSettings(batch_size=rows), 4096, None, CPU)
    assert explain(refused.value) == (EXIT_ENVIRONMENT, str(refused.value))
    line = str(refused.value)
    assert "\n" not in line
    assert f"keys and values at batch_size {rows}" in line
    smaller = int(line.split("algorithms.spin.generation.batch_size to ")[1].rstrip("."))
    assert 0 < smaller < rows
    assert require_memory(
        model, model, GenerationSettings(batch_size=max(1, smaller // 2)), 4096, None, CPU
    )


def test_what_no_batch_size_lets_in_is_for_a_server() -> None:
    model = tiny_model("llama")
    settings = GenerationSettings(max_new_tokens=free_bytes(CPU))
    with pytest.raises(EnvironmentFailure, match=r"algorithms\.spin\.generation\.engine to"):
        require_memory(model, model, settings, 10, None, CPU)


def test_adapters_are_not_merged_where_only_that_does_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, settings = adapted(), GenerationSettings(max_new_tokens=8, batch_size=2)
    needs = needs_of(model, model, settings, 2, 4, None)
    for free, merge in ((needs.total(), True), (needs.total() - 1, False)):
        monkeypatch.setattr("spin_composer.engines.hf.memory.free_bytes", lambda _, f=free: f)
        assert require_memory(model, model, settings, 4, None, CPU) is merge


@pytest.mark.parametrize("merged", [True, False])
def test_an_iteration_that_has_begun_is_finished_as_it_was_begun(
    merged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, settings = adapted(), GenerationSettings(max_new_tokens=8, batch_size=2)
    needs = needs_of(model, model, settings, 2, 4, None)
    least = needs.total(merged)
    monkeypatch.setattr("spin_composer.engines.hf.memory.free_bytes", lambda _: least)
    assert require_memory(model, model, settings, 4, None, CPU, merged) is merged
    monkeypatch.setattr("spin_composer.engines.hf.memory.free_bytes", lambda _: least - 1)
    with pytest.raises(EnvironmentFailure) as refused:
        require_memory(model, model, settings, 4, None, CPU, merged)
    assert (
        "of merged LoRA weights, as in the units that are there" in str(refused.value)
    ) == merged
