"""Model families that came after transformers 4.51 play: two iterations of each, tiny and random.

Windows and chunks are shorter than the sequences, so that caches go past them.
"""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from fixtures import tokenizers
from fixtures.runs import tiny_trainer

WINDOW = 8
"""Tokens; the longest sequences have three times as many."""

_BASE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LATENT = {
    "q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}  # fmt: skip
_ROUTED = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
_LOOP, _GENERATE = "decode loop", "generate"

# name -> (config's class, model's class, settings, who answers)
FAMILIES: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {}, _LOOP),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", _EXPERTS, _LOOP),
    "glm4": ("Glm4Config", "Glm4ForCausalLM", {}, _LOOP),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", {"sliding_window": None}, _GENERATE),
    "smollm3": ("SmolLM3Config", "SmolLM3ForCausalLM", {}, _LOOP),
    "olmo3": ("Olmo3Config", "Olmo3ForCausalLM", {"sliding_window": WINDOW}, _GENERATE),
    "gemma3_text": (
        "Gemma3TextConfig", "Gemma3ForCausalLM",
        {"sliding_window": WINDOW, "final_logit_softcapping": 2.0, "tie_word_embeddings": True},
        _GENERATE,
    ),
    "gemma4_text": (
        "Gemma4TextConfig", "Gemma4ForCausalLM",
        {
            "sliding_window": WINDOW, "global_head_dim": 16, "final_logit_softcapping": 2.0,
            "vocab_size_per_layer_input": 512, "hidden_size_per_layer_input": 4,
            "layer_types": ["sliding_attention", "full_attention"], "tie_word_embeddings": True,
        },
        _GENERATE,
    ),
    "gpt_oss": (
        "GptOssConfig", "GptOssForCausalLM",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW}, _GENERATE,
    ),
    "glm4_moe": ("Glm4MoeConfig", "Glm4MoeForCausalLM", _ROUTED, _LOOP),
    "qwen3_next": (
        "Qwen3NextConfig", "Qwen3NextForCausalLM",
        {
            **_EXPERTS, "shared_expert_intermediate_size": 16, "linear_num_key_heads": 2,
            "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
        },
        _GENERATE,
    ),
    "llama4_text": (
        "Llama4TextConfig", "Llama4ForCausalLM",
        {
            "intermediate_size_mlp": 48, "num_local_experts": 4, "attention_chunk_size": WINDOW,
            "layer_types": ["chunked_attention", "full_attention"], "router_jitter_noise": 0.1,
        },
        _GENERATE,
    ),
    "deepseek_v3": (
        "DeepseekV3Config", "DeepseekV3ForCausalLM",
        {**_LATENT, **_ROUTED, "num_key_value_heads": 4, "head_dim": 4}, _LOOP,
    ),
    "granitemoehybrid": (
        "GraniteMoeHybridConfig", "GraniteMoeHybridForCausalLM",
        {
            "layer_types": ["mamba", "attention"], "mamba_n_heads": 4, "mamba_d_head": 16,
            "mamba_d_state": 8, "mamba_chunk_size": WINDOW, "num_local_experts": 4,
            "num_experts_per_tok": 2, "shared_intermediate_size": 16, "logits_scaling": 4.0,
        },
        _GENERATE,
    ),
}  # fmt: skip


def tiny(family: str, vocab_size: int) -> Any:
    """Return a random model of a family, in fp32."""
    config_class, model_class, settings, _ = FAMILIES[family]
    if not hasattr(transformers, model_class):
        pytest.skip(f"transformers {transformers.__version__} has no {model_class}")
    if family == "llama4_text" and transformers.__version__.startswith("4.51."):
        pytest.skip("Llama 4 of transformers 4.51 computes in two dtypes where weights are fp32")
    config = getattr(transformers, config_class)(**{**_BASE, **settings, "vocab_size": vocab_size})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return getattr(transformers, model_class)(config).float()


@pytest.mark.parametrize("family", FAMILIES)
def test_two_iterations_are_played_and_the_opponent_is_the_policy(
    family: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny(family, len(tokenizers.byte_level()))
    with caplog.at_level(logging.WARNING, "spin_composer"):
        trainer = tiny_trainer(tmp_path, model, spin={"iteration_length": "1ep", "replay": 0})
        trainer.fit()
    trainer.close()
    data = trainer.logger.destinations[0].data
    batches = int(trainer.state.timestamp.batch) // 2
    losses = [float(value) for _, value in data["loss/train/total"]]
    gaps = [float(value) for _, value in data["spin/first_batch_gap"]]
    assert len(gaps) == 2
    assert max(gaps) <= 1e-5
    for first in (0, batches):
        assert losses[first] == pytest.approx(math.log(2), abs=1e-5)
    answered = [line for line in caplog.messages if "uses Hugging Face generate" in line]
    assert (FAMILIES[family][3] == _GENERATE) == bool(answered)


def test_the_documentation_says_who_answers() -> None:
    page = (Path(__file__).parents[1] / "docs" / "versions.md").read_text()
    rows = re.findall(r"^\| .+ \| `(\w+)` \| (decode loop|generate) \|$", page, re.MULTILINE)
    assert dict(rows) == {family: answers for family, (*_, answers) in FAMILIES.items()}
