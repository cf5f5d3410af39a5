"""Which layout a model gets: shared where it is exact, padded where it is not, and why."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from spin_composer.data.pairs import PairBatch
from spin_composer.errors import InputError
from spin_composer.model.head import install_head
from spin_composer.model.layout import attention, choose
from spin_composer.model.layout.base import Layout
from spin_composer.model.layout.choose import choose_layout
from spin_composer.model.layout.probe import probe_pairs, window_of
from spin_composer.model.layout.segments import Segment, Segments
from spin_composer.model.logprobs import response_logps
from tests.fixtures.models import VOCAB, tiny_model
from tests.test_new_families import FAMILIES as NEW_FAMILIES
from tests.test_new_families import WINDOW, tiny

TOKENS = np.random.default_rng(0).integers(3, VOCAB, size=40, dtype=np.int32)
PADDED = {
    "qwen3_next": "has non-attention layers (linear_attention)",
    "granitemoehybrid": "has non-attention layers (",
    "llama4_text": "scales attention by a token's position in its row (attn_temperature_tuning)",
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
        assert "in transformers 4.51.3 may change the mask" in line
    else:
        assert layout.name == "shared", line
        assert line == "Pairs are laid out without padding: layout shared"


@pytest.mark.parametrize("name", ["shared", "packed", "padded"])
def test_a_layout_can_be_set_by_name(name: str) -> None:
    assert chosen(name, tiny_model("llama")).name == name


def test_a_layout_that_the_model_cannot_use_is_refused_with_the_reason() -> None:
    with pytest.raises(InputError) as caught:
        chosen("shared", tiny("qwen3_next", VOCAB))
    assert str(caught.value) == (
        "algorithms.spin.layout=shared cannot be used: Qwen3NextForCausalLM has non-attention "
        "layers (linear_attention). Use auto or padded."
    )


def test_a_model_with_attention_of_its_own_is_padded(caplog: pytest.LogCaptureFixture) -> None:
    config = transformers.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4)
    with caplog.at_level(logging.INFO, choose.__name__):
        layout = chosen("auto", transformers.BloomForCausalLM(config))
    assert layout.name == "padded"
    assert caplog.messages[-1] == (
        "Pairs are padded (layout padded): BloomForCausalLM has its own attention, which cannot be "
        "replaced"
    )


def test_a_model_that_takes_no_positions_is_padded() -> None:
    model = tiny_model("llama")
    model.forward = lambda input_ids, attention_mask, **_: None
    assert "does not accept position_ids" in str(choose.unsupported_reason(model, 40))


def without_windows(model: Any, monkeypatch: pytest.MonkeyPatch, told: bool) -> Any:
    """Have a model's segments ignore its window, and tell the function of it or not."""
    attend = attention.segment_attention

    def ignoring(module: Any, *args: Any, sliding_window: Any = None, **kwargs: Any) -> Any:
        found = attend(module, *args, **kwargs)
        if told:
            module.spin_call = replace(module.spin_call, window=sliding_window)
        return found

    monkeypatch.setattr(attention, "segment_attention", ignoring)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [WINDOW, 300])
def test_what_differs_only_past_a_window_is_found(
    window: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    model = with_window(tiny("olmo3", VOCAB), window).to(dtype)
    assert chosen("auto", model, 4 * window).name == "shared"
    without_windows(model, monkeypatch, told=True)
    with caplog.at_level(logging.INFO, choose.__name__):
        assert chosen("auto", model, 4 * window).name == "padded"
    assert "nats a token between layouts shared and padded" in caplog.messages[-1]
    assert chosen("auto", model, window).name == "shared"  # none applies


def test_a_model_that_does_not_tell_of_its_window_is_padded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = without_windows(tiny("olmo3", VOCAB), monkeypatch, told=False)
    with caplog.at_level(logging.INFO, choose.__name__):
        assert chosen("auto", model).name == "padded"
    assert f"does not pass its window of {WINDOW} to its attention function" in caplog.messages[-1]


def with_window(model: Any, window: int) -> Any:
    config = copy.deepcopy(model.config)
    config.sliding_window = window
    config.max_position_embeddings = 2048
    return type(model)(config)


@pytest.mark.parametrize("setting", ["attn_temperature_tuning", "use_logn_attn"])
def test_attention_that_scales_with_the_place_in_a_row_is_padded(setting: str) -> None:
    model = tiny_model("llama")
    setattr(model.config, setting, True)
    reason = choose.unsupported_reason(model, 40)
    how = "LlamaForCausalLM scales attention by a token's position in its row"
    assert reason == f"{how} ({setting})"


def test_chunks_that_sequences_pass_are_padded() -> None:
    model = tiny_model("llama")
    model.config.attention_chunk_size = WINDOW
    assert f"exceed LlamaForCausalLM's attention chunks of {WINDOW}" in str(
        choose.unsupported_reason(model, WINDOW + 1)
    )
    assert choose.unsupported_reason(model, WINDOW) is None


def test_settings_of_text_are_read_of_a_nested_config(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    text = copy.deepcopy(model.config)
    text.sliding_window, text.layer_types = 16, ["sliding_attention", "linear_attention"]
    monkeypatch.setattr(model.config, "get_text_config", lambda: text)
    assert "(linear_attention)" in str(choose.unsupported_reason(model, 40))
    assert window_of(model, 40) == 16
    assert window_of(model, 16) is None


def test_an_argument_that_is_not_known_is_no_silent_loss() -> None:
    query = torch.randn(1, 2, 6, 4)
    table = Segments([Segment(0, 2, 2, 2)]).table(query.device)
    with pytest.raises(TypeError, match="unknown arguments of attention: position_bias"):
        attention.segment_attention(
            torch.nn.Module(), query, query, query, table, position_bias=query, dropout=0.0
        )


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
    assert (
        "LlamaForCausalLM fails with a table of segments (TypeError: no such thing)"
        in (caplog.messages[0])
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
    ("config", "window", "longest", "length"),
    [
        ({}, None, 4096, 48),
        ({}, None, 40, 40),
        ({}, 1024, 4096, 2048),
        ({}, 1024, 1600, 1600),
        ({"rope_parameters": {"rope_type": "longrope"}}, None, 4096, 4096),
    ],
)
def test_the_longest_probe_passes_what_could_differ_and_no_more(
    config: dict[str, Any], window: int | None, longest: int, length: int
) -> None:
    long, short = probe_pairs(type("Config", (), config), window, TOKENS, longest)
    assert len(long.prompt) + len(long.real) == length
    assert len(long.generated) not in (0, len(long.real))
    assert min(map(len, (short.prompt, short.real, short.generated))) > 0
