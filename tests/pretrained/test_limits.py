"""A model's limits are what its config says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from fixtures import models

from spin_composer.pretrained.limits import ModelLimits, build_config, model_limits

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 16,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0,
}  # fmt: skip
LIMITS: list[tuple[str, dict[str, Any], int | None, bool]] = [
    ("Llama", {"max_position_embeddings": 128}, 128, False),
    # the scaling multiplies what the model was trained on ...
    ("Llama", {"max_position_embeddings": 64, "rope_scaling": {"type": "linear", "factor": 2.0}},
     128, False),
    ("Llama", {"max_position_embeddings": 64, "rope_scaling": {"type": "dynamic", "factor": 4}},
     256, False),
    ("Qwen2", {"max_position_embeddings": 32, "rope_scaling": YARN}, 128, False),
    # ... unless the config counts it already
    ("Qwen2", {"max_position_embeddings": 128, "rope_scaling": YARN}, 128, False),
    ("Llama", {"max_position_embeddings": 128, "rope_scaling": LLAMA3}, 128, False),
    # a window is no end of the positions
    ("Mistral", {"max_position_embeddings": 512, "sliding_window": 16}, 512, False),
    ("GPT2", {"n_positions": 40}, 40, True),
    ("OPT", {"max_position_embeddings": 40}, 40, True),
    ("GPTNeoX", {"max_position_embeddings": 40}, 40, False),
    ("GPTJ", {"n_positions": 40}, 40, False),
    ("Bloom", {}, None, False),
    ("Falcon", {"alibi": True}, None, False),
    ("Mamba", {}, None, False),
]  # fmt: skip


@pytest.mark.parametrize(("name", "given", "positions", "learned"), LIMITS, ids=str)
def test_positions_are_what_the_config_says(name, given, positions, learned):
    limits = model_limits(getattr(transformers, f"{name}Config")(**given))
    assert (limits.positions, limits.learned_positions) == (positions, learned)


@pytest.mark.skipif(models.NO_MPT is not None, reason=str(models.NO_MPT))
def test_mpt_ends_at_max_seq_len():
    from llmfoundry.models.mpt import MPTConfig

    for attn in ({"alibi": True}, {"rope": True, "rope_impl": "hf"}, {}):
        config = MPTConfig(
            max_seq_len=48, vocab_size=131, attn_config={**attn, "attn_impl": "torch"}
        )
        assert model_limits(config) == ModelLimits(48, True, 131, None)
    model = {"name": "mpt_spin_lm", "max_seq_len": 48, "d_model": 32, "loss_fn": "x"}
    model["attn_config"] = {"attn_impl": "torch"}
    assert model_limits(build_config(model)).positions == 48


def test_a_learned_position_beyond_the_last_is_an_error_and_a_rotary_one_is_none():
    ids = torch.zeros(1, models.MAX_TOKENS + 1, dtype=torch.long)
    for family in ("gpt2", "llama"):
        model = models.tiny_model(family)
        limits = model_limits(model.config)
        assert limits.positions == models.MAX_TOKENS
        if limits.learned_positions:
            with pytest.raises(IndexError):
                model(ids)
        else:
            model(ids)
        assert limits.learned_positions == (family == "gpt2")


@pytest.mark.parametrize(
    ("scaling", "past"),
    [
        (None, None),
        (LLAMA3, None),
        ({"rope_type": "dynamic", "factor": 4.0}, 64),
        ({"rope_type": "longrope", "factor": 2.0, "original_max_position_embeddings": 32,
          "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}, 32),
    ],
)  # fmt: skip
def test_frequencies_that_hang_on_a_batchs_longest_row_are_known(
    scaling: dict[str, Any] | None, past: int | None
) -> None:
    overrides: dict[str, Any] = {} if scaling is None else {"rope_scaling": scaling}
    if past == 32:  # where Phi-3's config has it, and older transformers looks for it
        overrides["original_max_position_embeddings"] = past
    model = models.tiny_model("llama", max_position_embeddings=64, **overrides)
    assert model_limits(model.config).rescaled_past == past
    short, long = torch.arange(3, 13), torch.arange(3, 50)
    batch = torch.zeros(2, len(long), dtype=torch.long)
    batch[0, : len(short)], batch[1] = short, long
    beside = model(input_ids=batch).logits[0, : len(short)]
    differs = not torch.allclose(beside, model(input_ids=short[None]).logits[0], atol=1e-5)
    assert differs == (past == 32)  # 47 tokens pass 32 and not 64
