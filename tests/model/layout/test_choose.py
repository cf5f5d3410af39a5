"""Which layout a model gets: shared where it is exact, padded where it is not, and why."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from spin_composer.data.pairs import PairBatch
from spin_composer.errors import InputError
from spin_composer.model.head import install_head
from spin_composer.model.layout import choose
from spin_composer.model.layout.base import Layout
from spin_composer.model.layout.choose import choose_layout, probe_pairs
from spin_composer.model.logprobs import response_logps
from tests.fixtures.models import VOCAB, tiny_model
from tests.test_new_families import FAMILIES as NEW_FAMILIES
from tests.test_new_families import WINDOW, tiny

TOKENS = np.random.default_rng(0).integers(3, VOCAB, size=40, dtype=np.int32)
PADDED = {
    "qwen3_next": "has layers that are not attention (linear_attention)",
    "granitemoehybrid": "has layers that are not attention (linear_attention)",
    "llama4_text": f"of up to 40 tokens pass Llama4ForCausalLM's attention chunks of {WINDOW}",
}
"""Why a family cannot share prompts."""


def chosen(name: Any, model: Any, longest: int = 40) -> Layout:
    install_head(model)

    @torch.no_grad()
    def score(batch: PairBatch, layout: Layout) -> torch.Tensor:
        return response_logps(model, batch, layout)

    return choose_layout(name, model.eval(), TOKENS, longest, score)


@pytest.mark.parametrize("family", NEW_FAMILIES)
def test_a_family_shares_prompts_or_says_why_not(
    family: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, choose.__name__):
        layout = chosen("auto", tiny(family, VOCAB))
    line = caplog.messages[-1]
    old = transformers.__version__.startswith("4.51.")
    if family in PADDED:
        assert layout.name == "padded"
        assert PADDED[family] in line
    elif old and family == "gemma3_text":
        assert "of transformers 4.51.3 may change its mask on the way" in line
    else:
        assert layout.name == "shared", line
        assert line == "Pairs are laid out without padding: layout shared"


@pytest.mark.parametrize("name", ["shared", "packed", "padded"])
def test_a_layout_is_had_by_its_name(name: str) -> None:
    assert chosen(name, tiny_model("llama")).name == name


def test_one_that_cannot_be_had_is_refused_with_the_reason() -> None:
    with pytest.raises(InputError) as caught:
        chosen("shared", tiny("qwen3_next", VOCAB))
    assert str(caught.value) == (
        "algorithms.spin.layout=shared cannot be used: Qwen3NextForCausalLM has layers that are "
        "not attention (linear_attention). Use auto or padded."
    )


def test_a_model_with_attention_of_its_own_is_padded() -> None:
    model = tiny_model("llama")
    model.forward = lambda input_ids, attention_mask, **_: None
    assert "takes no positions" in str(choose.unsupported_reason(model, 40))


def test_what_differs_only_past_a_window_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("olmo3", VOCAB)
    attend = choose.install_segment_attention

    def without_windows(inner: Any) -> int:
        for module in inner.modules():
            if "Attention" in type(module).__name__:
                module.register_forward_pre_hook(forget, with_kwargs=True)
        return attend(inner)

    def forget(module: Any, args: Any, kwargs: Any) -> None:
        table = kwargs.get("attention_mask")
        module.sliding_window = None if table is not None and table.shape[-1] == 5 else WINDOW

    monkeypatch.setattr(choose, "install_segment_attention", without_windows)
    assert chosen("auto", model).name == "padded"
    assert chosen("auto", tiny("olmo3", VOCAB), longest=WINDOW).name == "shared"  # none bites


def test_a_model_that_fails_with_a_table_is_padded_and_works_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model("llama")
    rotary, seen = model.model.rotary_emb.forward, []

    def broken(states: Any, position_ids: Any) -> Any:
        seen.append(position_ids.shape)
        if states.shape[0] == 1 and states.shape[1] > 50:
            raise TypeError("no such\nthing")
        return rotary(states, position_ids)

    monkeypatch.setattr(model.model.rotary_emb, "forward", broken)
    with caplog.at_level(logging.INFO, choose.__name__):
        assert chosen("auto", model).name == "padded"
    assert "LlamaForCausalLM fails with a table of segments (TypeError: no such thing)" in (
        caplog.messages[0]
    )


def test_log_probs_that_are_not_finite_count_as_different() -> None:
    model = tiny_model("llama")
    install_head(model)
    layouts = []

    def score(batch: PairBatch, layout: Layout) -> torch.Tensor:
        layouts.append(layout.name)
        wrong = float("nan") if layout.name == "shared" else 0.0
        return torch.full((len(batch["targets"]),), wrong)

    assert choose_layout("auto", model, TOKENS, 40, score).name == "padded"
    assert layouts == ["padded", "padded", "shared"]


@pytest.mark.parametrize(
    ("config", "longest", "length"),
    [
        ({}, 4096, 96),
        ({}, 40, 40),
        ({"sliding_window": 1024}, 4096, 1056),
        ({"sliding_window": 1024}, 600, 600),
        ({"rope_parameters": {"rope_type": "longrope"}}, 4096, 4096),
    ],
)
def test_the_longest_probe_passes_what_could_differ_and_no_more(
    config: dict[str, Any], longest: int, length: int
) -> None:
    long, short = probe_pairs(type("Config", (), config), TOKENS, longest)
    assert len(long.prompt) + len(long.real) == length
    assert len(long.generated) not in (0, len(long.real))
    assert min(map(len, (short.prompt, short.real, short.generated))) > 0
