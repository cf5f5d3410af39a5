"""LoRA adapters are merged into copies for generation, and nothing of it stays behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from spin_composer.model.adapters import mergeable, merged_adapters
from tests.engines.hf.test_generator import engine, plain
from tests.fixtures.models import tiny_model

VOCAB = 11
IDS = torch.tensor([[5, 3, 9, 4, 7]])
PROMPTS = [np.array(ids, np.int32) for ids in ([5, 3], [4, 7, 1, 9, 8], [6])]


def adapted(family: str = "llama", **lora: Any) -> Any:
    torch.manual_seed(0)
    base: dict[str, Any] = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    config = LoraConfig(**{**base, **lora})
    model = get_peft_model(tiny_model(family, vocab_size=VOCAB), config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_merged_layers_compute_what_the_adapters_do() -> None:
    model = adapted()
    wanted, before = logits(model), {k: v.clone() for k, v in model.state_dict().items()}
    attributes = [dict(module.__dict__) for module in model.modules()]
    assert len(mergeable(model)) == 14
    with merged_adapters(model, None):
        calls = []
        for module in model.modules():
            if "lora_A" in dict(module.named_children()):
                module.lora_A["default"].register_forward_hook(lambda *_: calls.append(1))
        torch.testing.assert_close(logits(model), wanted, atol=2e-5, rtol=1e-5)
        assert not calls  # the adapters themselves do not run
    assert torch.equal(logits(model), wanted)
    assert calls
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [m.__dict__.keys() for m in model.modules()] == [a.keys() for a in attributes]


def test_all_is_as_before_after_an_error() -> None:
    model = adapted()
    wanted = logits(model)
    with pytest.raises(KeyError), merged_adapters(model, torch.bfloat16):
        raise KeyError
    assert torch.equal(logits(model), wanted)
    assert not any("weight" in module.__dict__ for module in model.modules())


@pytest.mark.parametrize("lora", [{"use_dora": True}, {"lora_bias": True}])
def test_layers_of_another_kind_stay_as_they_are(lora: dict[str, Any]) -> None:
    model = adapted(**lora)
    assert not mergeable(model)
    wanted = logits(model)
    with merged_adapters(model, None):
        assert torch.equal(logits(model), wanted)
    model.disable_adapter_layers()


def test_disabled_adapters_are_not_merged() -> None:
    model = adapted()
    with model.disable_adapter():
        assert not mergeable(model)


@pytest.mark.parametrize("family", ["llama", "mpt"])
def test_the_engine_answers_alike_merged_and_not(family: str) -> None:
    lora = {"target_modules": ["Wqkv", "up_proj"]} if family == "mpt" else {}
    model = adapted(family, **lora)
    wanted = logits(model)
    answers = []
    for merge in (False, True):
        hf = engine(model=model, max_new_tokens=12)
        hf.merge = merge
        answers.append(plain(hf.generate(PROMPTS * 3, 4)))
    assert answers[0] == answers[1]
    assert torch.equal(logits(model), wanted)
