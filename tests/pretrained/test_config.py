"""The config that weights are loaded with: fp32, no cache, and what the overrides say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from spin_composer.errors import InputError
from spin_composer.pretrained.config import DTYPE, read_config, weights_dtype
from tests.fixtures import models


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the folder of a bf16 checkpoint's config."""
    folder = tmp_path_factory.mktemp("llama")
    models.tiny_model("llama").to(torch.bfloat16).save_pretrained(folder)
    said = json.loads((folder / "config.json").read_text())
    assert "bfloat16" in (said.get("dtype"), said.get("torch_dtype"))
    return str(folder)


def test_weights_are_fp32_and_layers_keep_no_cache_whatever_the_checkpoint_says(llama: str) -> None:
    config = read_config(llama)
    assert weights_dtype(config) == torch.float32
    assert config.use_cache is False
    assert config._attn_implementation == "eager"
    assert read_config(llama, attn_implementation="sdpa")._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_a_dtype_is_asked_for_by_either_of_its_names(name: str, llama: str) -> None:
    config = read_config(llama, overrides={name: "bfloat16"})
    assert weights_dtype(config) == torch.bfloat16
    assert str(getattr(config, DTYPE)).endswith("bfloat16")


def test_a_rope_scaling_is_set_where_there_was_none(llama: str) -> None:
    wanted = {"rope_type": "linear", "factor": 2.0}
    config: Any = read_config(llama, overrides={"rope_scaling": wanted})
    assert wanted.items() <= config.rope_scaling.items()
    model = transformers.AutoModelForCausalLM.from_config(config)
    plain = transformers.AutoModelForCausalLM.from_config(read_config(llama))
    twice = 2 * model.model.rotary_emb.inv_freq
    assert torch.equal(twice, plain.model.rotary_emb.inv_freq)


def test_of_a_multimodal_model_the_language_model_is_taken(tmp_path: Path) -> None:
    text = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 131}
    transformers.Gemma3Config(text_config=text).save_pretrained(tmp_path)
    config: Any = read_config(str(tmp_path), overrides={"num_hidden_layers": 1})
    assert config.model_type == "gemma3_text"
    assert (config.hidden_size, config.num_hidden_layers, config.use_cache) == (32, 1, False)
    assert weights_dtype(config) == torch.float32
    assert config._attn_implementation == "eager"


def test_a_nested_config_is_changed_entry_by_entry(tmp_path: Path) -> None:
    transformers.GPTBigCodeConfig(task_specific_params={"a": 1, "b": 2}).save_pretrained(tmp_path)
    if not getattr(read_config(str(tmp_path)), "task_specific_params", None):
        pytest.skip("this transformers drops that mapping")
    given = {"task_specific_params": {"b": 3}}
    config: Any = read_config(str(tmp_path), overrides=given)
    assert config.task_specific_params == {"a": 1, "b": 3}
    with pytest.raises(
        InputError, match=r"config_overrides\.task_specific_params\.c=3: .* no such"
    ):
        read_config(str(tmp_path), overrides={"task_specific_params": {"c": 3}})
    with pytest.raises(InputError, match=r"task_specific_params must be a mapping"):
        read_config(str(tmp_path), overrides={"task_specific_params": 3})


def test_a_mistyped_setting_is_named_with_the_nearest_one(llama: str) -> None:
    with pytest.raises(InputError, match=r"num_hiden_layers=3: a LlamaConfig .*num_hidden_layers"):
        read_config(llama, overrides={"num_hiden_layers": 3})


def test_a_quantized_language_model_of_a_multimodal_one_is_refused(tmp_path: Path) -> None:
    text = {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 131}
    config = transformers.Gemma3Config(text_config=text)
    config.quantization_config = {"quant_method": "awq", "bits": 4}
    config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"is quantized \(awq\)"):
        read_config(str(tmp_path))
