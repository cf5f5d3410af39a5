"""Models are loaded once for each rank that needs them, and an error anywhere ends all ranks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from fixtures.ranks import on_ranks
from peft import LoraConfig, get_peft_model

from spin_composer.errors import InputError
from spin_composer.pretrained.load import Source, load_adapters, load_causal_lm, lora_config
from tests.fixtures import models


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tied")
    models.tiny_model("llama_tied").to(torch.bfloat16).save_pretrained(folder)
    return folder


def test_a_bf16_checkpoint_is_trained_in_fp32(tied: Path) -> None:
    model = load_causal_lm(Source(str(tied)))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    saved = transformers.AutoModelForCausalLM.from_pretrained(tied)
    for name, parameter in saved.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter.float()), name
    low = load_causal_lm(Source(str(tied), config_overrides={"torch_dtype": "bfloat16"}))
    assert {p.dtype for p in low.parameters()} == {torch.bfloat16}


def test_the_generation_config_is_the_models_own(tmp_path: Path) -> None:
    model = models.tiny_model("llama")
    model.generation_config.suppress_tokens = [7]
    model.save_pretrained(tmp_path)
    assert load_causal_lm(Source(str(tmp_path))).generation_config.suppress_tokens == [7]


@pytest.mark.parametrize("family", ["llama_tied", "gpt2", "gemma2"])
def test_a_model_on_meta_has_its_buffers_and_its_ties(family: str, tmp_path: Path) -> None:
    models.tiny_model(family).config.save_pretrained(tmp_path)
    model: Any = load_causal_lm(Source(str(tmp_path), pretrained=False, init_device="meta"))
    assert all(p.is_meta for p in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_random_weights_are_of_the_config_and_the_seed(tied: Path) -> None:
    made = []
    for _ in range(2):
        torch.manual_seed(3)
        source = Source(str(tied), pretrained=False, config_overrides={"num_hidden_layers": 1})
        made.append(load_causal_lm(source).state_dict())
    assert not any("layers.1." in name for name in made[0])
    torch.testing.assert_close(*made, rtol=0, atol=0)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"init_device": "gpu"}, "init_device must be one of cpu, meta, mixed, got 'gpu'"),
    ({"init_device": "meta"}, "init_device=meta loads no weights"),
    ({"name": "mosaicml/mpt-7b"}, "MPT of the Hub is not supported"),
    ({"name": "/no/such/folder"}, r"=/no/such/folder: its config cannot be loaded \("),
    ({"config_overrides": {"hidden_size": 48}}, r"its weights cannot be loaded \("),
]


@pytest.mark.parametrize(("given", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_what_cannot_be_loaded_is_refused_by_one_line(given: Any, said: str, tied: Path) -> None:
    with pytest.raises(InputError, match=said) as caught:
        load_causal_lm(Source(**{"name": str(tied), **given}))
    assert "\n" not in str(caught.value)


def test_flash_attention_that_is_not_installed_is_refused() -> None:
    with pytest.raises(InputError, match="flash-attn is not installed"):
        Source("x", attn_implementation="flash_attention_2")


def test_only_lora_of_a_causal_lm_is_taken() -> None:
    given = {"peft_type": "lora", "task_type": "causal_lm", "r": 2}
    assert lora_config(given).r == 2
    with pytest.raises(InputError, match="peft_type must be LORA, got 'LOHA'"):
        lora_config({**given, "peft_type": "LOHA"})
    with pytest.raises(InputError, match="task_type must be CAUSAL_LM, got None"):
        lora_config({"peft_type": "LORA"})


def test_adapters_of_a_folder_go_on_being_trained(tied: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(load_causal_lm(Source(str(tied))), config)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter.data)
    adapted.save_pretrained(tmp_path)
    model = load_adapters(load_causal_lm(Source(str(tied))), str(tmp_path), False)
    before = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    after = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(InputError, match="the adapters cannot be loaded"):
        load_adapters(load_causal_lm(Source(str(tied))), "/no/adapters", False)


# --- several ranks ---------------------------------------------------------------------------


def load_mixed(rank: int, folder: str) -> list[str]:
    model = load_causal_lm(Source(folder, init_device="mixed"))
    return sorted({parameter.device.type for parameter in model.parameters()})


def test_mixed_loads_the_weights_on_rank_zero_only(tied: Path) -> None:
    body = partial(load_mixed, folder=str(tied))
    assert on_ranks(body, one_node=True, timeout_seconds=60) == {0: ["cpu"], 1: ["meta"]}


def test_weights_missing_on_rank_zero_end_every_rank(tmp_path: Path) -> None:
    models.tiny_model("llama").config.save_pretrained(tmp_path)
    body = partial(load_mixed, folder=str(tmp_path))
    said = on_ranks(body, one_node=True, timeout_seconds=60)
    for kind, message, code in said.values():
        assert (kind, code) == ("InputError", 2)
        assert "its weights cannot be loaded (OSError" in message
        assert "\n" not in message
