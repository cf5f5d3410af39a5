"""FSDP wraps a model's layers, whatever its family, and makes weights on meta as the model does."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from accelerate import init_empty_weights
from peft import LoraConfig, get_peft_model
from torch import nn

from spin_composer.model.wrapping import block_classes, prepare_for_fsdp
from tests.fixtures import models

SMALL = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
# name of the model class -> (its config's class, what differs)
NEWER: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen3ForCausalLM": ("Qwen3Config", {}),
    "Qwen3MoeForCausalLM": ("Qwen3MoeConfig", EXPERTS),
    "Gemma3ForCausalLM": ("Gemma3TextConfig", {}),
    "Gemma4ForCausalLM": (
        "Gemma4TextConfig", {"vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 8}
    ),
    "GptOssForCausalLM": ("GptOssConfig", {"num_local_experts": 2, "num_experts_per_tok": 1}),
    "Qwen3NextForCausalLM": (
        "Qwen3NextConfig",
        {
            **EXPERTS, "shared_expert_intermediate_size": 16, "linear_num_key_heads": 2,
            "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    "Llama4ForCausalLM": (
        "Llama4TextConfig",
        {"num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size_mlp": 16},
    ),
}  # fmt: skip
NEWER = {name: of for name, of in NEWER.items() if hasattr(transformers, name)}


def newer(name: str) -> Any:
    config, changes = NEWER[name]
    return getattr(transformers, name)(getattr(transformers, config)(**{**SMALL, **changes}))


def wrapped(model: Any, function: str = "fsdp_wrap_fn") -> list[str]:
    decide = getattr(model, function)
    return [name for name, module in model.named_modules() if decide(module)]


@pytest.mark.parametrize("name", NEWER)
def test_the_layers_of_newer_families_are_wrapped(name: str) -> None:
    model = newer(name)
    prepare_for_fsdp(model)
    assert wrapped(model) == ["model.layers.0", "model.layers.1"]
    assert wrapped(model, "activation_checkpointing_fn") == wrapped(model)


@pytest.mark.parametrize("family", models.FAMILIES)
def test_all_but_embedding_norm_and_head_is_in_a_layer(family: str) -> None:
    model = models.tiny_model(family)
    prepare_for_fsdp(model)
    layers = [model.get_submodule(name) for name in wrapped(model)]
    assert len(layers) == 2
    inside = {id(p) for layer in layers for p in layer.parameters()}
    left = [name for name, p in model.named_parameters() if id(p) not in inside]
    assert all("layers" not in name and ".h." not in name for name in left)
    tied = (model.get_input_embeddings(), model.get_output_embeddings())
    assert not any(model.fsdp_wrap_fn(layer) for layer in tied)


def test_adapters_are_wrapped_one_by_one_and_a_copy_keeps_that() -> None:
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model: Any = get_peft_model(models.tiny_model("llama"), lora)
    prepare_for_fsdp(model)
    layers = [f"base_model.model.model.layers.{i}" for i in range(2)]
    found = wrapped(model)
    adapters = [n for n in found if n.endswith(("lora_A.default", "lora_B.default"))]
    assert sorted(found) == sorted(layers + adapters)
    assert len(adapters) == 4
    twin = copy.deepcopy(model)
    prepare_for_fsdp(twin)
    assert wrapped(twin) == found
    assert wrapped(twin, "activation_checkpointing_fn") == layers


class Nameless(nn.Module):
    """A model that names no layers."""

    _no_split_modules = None

    def __init__(self) -> None:
        super().__init__()
        self.few = nn.ModuleList([nn.LayerNorm(2)])
        self.layers = nn.ModuleList([nn.Linear(2, 2), nn.Bilinear(2, 2, 2)])


def test_a_model_that_names_no_layers_has_those_of_its_longest_list() -> None:
    assert block_classes(Nameless()) == (nn.Linear, nn.Bilinear)  # pyright: ignore


@pytest.mark.parametrize("family", [f for f in models.FAMILIES if "mpt" not in f])
def test_what_was_on_meta_is_initialized_as_the_model_does_it(family: str) -> None:
    plain = models.tiny_model(family)
    with init_empty_weights(include_buffers=False):
        model: Any = type(plain)(plain.config)
    model.tie_weights()
    prepare_for_fsdp(model)
    for module in model.modules():  # as FSDP does it
        if any(p.is_meta for p in module.parameters(recurse=False)):
            module.to_empty(device="cpu", recurse=False)
            model.param_init_fn(module)
    model.tie_weights()
    for name, parameter in model.named_parameters():
        wanted = plain.get_parameter(name)
        assert bool(torch.isfinite(parameter).all()), name
        if parameter.ndim == 1:  # norms and biases are not drawn
            assert torch.equal(parameter, wanted), name
        else:
            # GPT-2 scales some when it sees the module around them, which FSDP does not show it.
            assert 0.4 < float(parameter.std() / wanted.std()) < 2.5, name
