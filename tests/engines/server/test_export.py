"""The exported opponent is the policy: same log-probs when loaded, whatever held it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import models, tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from spin_composer.engines.server.export import export_opponent
from spin_composer.errors import InputError
from spin_composer.model.head import install_head

IDS = torch.tensor([[5, 9, 33, 7, 120, 4]])


def logps(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits.double().log_softmax(-1)


def export(model: Any, folder: Path, stop: int = 2, dtype: torch.dtype | None = None) -> Any:
    tokenizer = tokenizers.chatml()
    export_opponent(model, tokenizer, stop, "the-fingerprint", dtype, folder)
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")


@pytest.mark.parametrize("family", [f for f in models.FAMILIES if "mpt" not in f])
def test_the_loaded_folder_has_the_policys_log_probs(family: str, tmp_path: Path) -> None:
    model = models.tiny_model(family)
    install_head(model)
    config, keys = model.config.to_dict(), list(model.state_dict())
    loaded = export(model, tmp_path / "opponent")
    assert torch.equal(logps(loaded), logps(model))
    assert model.config.to_dict() == config
    assert list(model.state_dict()) == keys
    assert (
        type(loaded).__name__
        == json.loads((tmp_path / "opponent/config.json").read_text())["architectures"][0]
    )


def test_a_lower_precision_is_that_of_the_files_only(tmp_path: Path) -> None:
    model = models.tiny_model("llama_tied")
    export(model, tmp_path / "opponent", dtype=torch.bfloat16)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "opponent", torch_dtype="auto")
    assert loaded.dtype == torch.bfloat16
    assert model.dtype == torch.float32
    for a, b in zip(model.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(a.bfloat16(), b)


def test_the_stop_token_is_the_folders_only_eos(tmp_path: Path) -> None:
    model = models.tiny_model("llama", vocab_size=384)
    model.generation_config.update(
        do_sample=True, temperature=0.3, eos_token_id=[0, 1], repetition_penalty=2.0
    )
    export(model, tmp_path / "opponent", stop=2)  # <|im_end|>
    folder = tmp_path / "opponent"
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == 2
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 2
    assert not {"temperature", "repetition_penalty", "max_length"} & set(generation)
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<|im_end|>"
    assert tokenizers.chatml().eos_token == "<|endoftext|>"


@pytest.mark.parametrize("saved", [None, ["lm_head"]])
def test_adapters_are_merged_into_a_copy(saved: list[str] | None, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "down_proj"]
    lora = LoraConfig(r=2, target_modules=targets, modules_to_save=saved, task_type="CAUSAL_LM")
    model = get_peft_model(models.tiny_model("qwen2"), lora)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                parameter.normal_(std=0.3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wanted = logps(model)
    with model.disable_adapter():
        assert (logps(model) - wanted).abs().max() > 0.1
    loaded = export(model, tmp_path / "opponent")
    assert (logps(loaded) - wanted).abs().max() < 1e-5
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_an_export_of_the_same_opponent_is_used_again(tmp_path: Path) -> None:
    folder, tokenizer = tmp_path / "opponent", tokenizers.chatml()
    model = models.tiny_model("llama", vocab_size=384)
    export_opponent(model, tokenizer, 2, "one", None, folder)
    written = (folder / "model.safetensors").stat().st_mtime_ns
    export_opponent(model, tokenizer, 2, "one", None, folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    export_opponent(model, tokenizer, 2, "two", None, folder)
    assert (folder / "model.safetensors").stat().st_mtime_ns > written
    assert [path.name for path in tmp_path.iterdir()] == ["opponent"]


def test_a_failed_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizers.chatml()
    monkeypatch.setattr(type(tokenizer), "save_pretrained", lambda *_: 1 / 0)
    model = models.tiny_model("llama", vocab_size=384)
    with pytest.raises(ZeroDivisionError):
        export_opponent(model, tokenizer, 2, "one", None, tmp_path / "opponent")
    assert list(tmp_path.iterdir()) == []


def test_a_class_that_servers_do_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot serve a MPTForCausalLM.*Use engine: hf"):
        export(models.tiny_model("mpt"), tmp_path / "opponent")


@pytest.mark.parametrize("saved", [["lm_head"], ["embed_tokens"], ["lm_head", "embed_tokens"]])
def test_what_training_untied_is_exported_untied(saved: list[str], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=saved, task_type="CAUSAL_LM")
    model = get_peft_model(models.tiny_model("llama_tied"), lora)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.normal_(std=0.3)
    wanted = logps(model)
    loaded = export(model, tmp_path / "opponent")
    assert (logps(loaded) - wanted).abs().max() < 1e-5
    assert not json.loads((tmp_path / "opponent/config.json").read_text())["tie_word_embeddings"]
    assert model.config.tie_word_embeddings  # the base's own is


def test_an_adapted_embedding_is_merged(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=2, target_modules=["embed_tokens"], task_type="CAUSAL_LM")
    model = get_peft_model(models.tiny_model("llama_tied"), lora)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    wanted = logps(model)
    assert (logps(export(model, tmp_path / "opponent")) - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("says", [True, False])
def test_a_config_that_is_wrong_of_what_is_tied_is_not_believed(says: bool, tmp_path: Path) -> None:
    model = models.tiny_model("llama_tied" if says else "llama")
    if says:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight * 1.5)
    else:
        model.lm_head.weight = model.model.embed_tokens.weight
    wanted = logps(model)
    assert torch.equal(logps(export(model, tmp_path / "opponent")), wanted)


@pytest.mark.parametrize("lora", [{"use_dora": True}, {"lora_bias": True}])
def test_adapters_that_are_not_merged_are_refused(lora: dict[str, Any], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **lora)
    with pytest.raises(InputError, match=r"cannot serve adapters of kind .*Use engine: hf"):
        export(get_peft_model(models.tiny_model("qwen2"), config), tmp_path / "o")
