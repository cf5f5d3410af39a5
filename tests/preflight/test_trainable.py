"""What is trained moves, is held by the optimizer, and is in the checkpoints; adapters or not."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fixtures import models, tokenizers
from fixtures.ranks import on_ranks
from fixtures.runs import tiny_trainer
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from spin_composer import HFSpinLM, HuggingFaceExporter
from spin_composer.errors import InputError
from spin_composer.fsdp import is_sharded
from spin_composer.preflight.trainable import check_trainable
from spin_composer.settings.yaml import _check_model

VOCAB = len(tokenizers.byte_level())


def adapted(kind: str, family: str = "llama", dtype: torch.dtype = torch.float32) -> Any:
    saved = {"head": ["lm_head"], "embedding": ["embed_tokens"]}.get(kind)
    torch.manual_seed(0)
    base = models.tiny_model(family, vocab_size=VOCAB).to(dtype)
    lora = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=saved, task_type="CAUSAL_LM")
    model = get_peft_model(base, lora)
    if kind == "norm":
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.requires_grad_(True)
    return model


def whole(trainer: Any) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in trainer.state.model.model.state_dict().items()}


@pytest.mark.parametrize("kind", ["head", "norm"])
def test_a_resumed_run_is_bit_identical_with_what_is_trained_beside_adapters(
    kind: str, tmp_path: Path
) -> None:
    first = tiny_trainer(
        tmp_path, adapted(kind), max_duration="1iter", save_folder=str(tmp_path / "checkpoints"),
        save_interval="1ba", save_filename="ba{batch}.pt",
    )  # fmt: skip
    base = whole(first)
    first.fit()
    final = whole(first)
    at = {"head": "lm_head.modules_to_save.default.weight", "norm": "model.norm.weight"}[kind]
    name = next(n for n in final if n.endswith(at))
    assert not torch.equal(final[name], base[name])
    checkpoint = tmp_path / "checkpoints/ba7.pt"
    held = torch.load(checkpoint, weights_only=False)["state"]["model"]
    trained = {n for n, p in first.state.model.named_parameters() if p.requires_grad}
    assert set(held) == trained  # and the base's own weights are not in it
    again = tiny_trainer(tmp_path, adapted(kind), max_duration="1iter", load_path=str(checkpoint))
    again.fit()
    assert all(torch.equal(value, final[n]) for n, value in whole(again).items())

    old = torch.load(checkpoint, weights_only=False)
    old["state"]["model"] = {n: v for n, v in held.items() if "lora_" in n}
    torch.save(old, tmp_path / "old.pt")
    with pytest.raises(
        InputError, match=r"the checkpoint lacks \d of the trained weights .*(norm|lm_head)"
    ):
        tiny_trainer(
            tmp_path, adapted(kind), max_duration="1iter", load_path=str(tmp_path / "old.pt")
        )


def refused(folder: Path, model: Any, **overrides: Any) -> str:
    trainer = tiny_trainer(folder, model, **overrides)
    with pytest.raises(InputError) as error:
        trainer.fit()
    assert not list(folder.glob("self-play/iter-*"))
    return str(error.value)


def test_weights_that_cannot_move_are_refused_before_play(tmp_path: Path) -> None:
    model = models.tiny_model("llama", vocab_size=VOCAB).to(torch.bfloat16)
    line = refused(tmp_path, model)
    assert "21 of 21 trainable parameters are bfloat16 (" in line
    assert "algorithms.spin.allow_low_precision_weights=true" in line


def test_who_insists_may_train_them(tmp_path: Path) -> None:
    model = models.tiny_model("llama", vocab_size=VOCAB).to(torch.bfloat16)
    state: Any = SimpleNamespace(optimizers=[torch.optim.RMSprop(model.parameters())])
    check_trainable(state, model, allow_low_precision=True)


def test_a_saved_head_in_bf16_is_refused(tmp_path: Path) -> None:
    line = refused(tmp_path, adapted("head", dtype=torch.bfloat16))
    assert "lm_head.modules_to_save.default.weight" in line


def test_fp32_adapters_over_a_frozen_bf16_base_play_and_train(tmp_path: Path) -> None:
    model = adapted("none", dtype=torch.bfloat16)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    tiny_trainer(tmp_path, model, max_duration="1iter").fit()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


def test_nothing_to_train_is_refused(tmp_path: Path) -> None:
    model = models.tiny_model("llama", vocab_size=VOCAB)
    optimizer = torch.optim.RMSprop(model.parameters())
    model.requires_grad_(False)
    assert "no trainable parameter" in refused(tmp_path, model, optimizers=optimizer)


def test_an_optimizer_that_does_not_hold_the_adapters_is_refused(tmp_path: Path) -> None:
    base = models.tiny_model("llama", vocab_size=VOCAB)
    optimizer = torch.optim.RMSprop(base.parameters())
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    line = refused(tmp_path, get_peft_model(base, lora), optimizers=optimizer)
    assert "the optimizer does not hold 4 of 4 trainable parameters (" in line


def test_quantized_bases_are_refused_by_name() -> None:
    model = models.tiny_model("llama", vocab_size=VOCAB)
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(InputError, match=r"LlamaForCausalLM is quantized \(gptq\)"):
        HFSpinLM.from_model(model, tokenizers.byte_level())
    model = models.tiny_model("llama", vocab_size=VOCAB)
    model.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(
        torch.zeros(8, dtype=torch.uint8), requires_grad=False
    )
    with pytest.raises(InputError, match="is quantized"):
        HFSpinLM.from_model(model, tokenizers.byte_level())


def test_a_quantized_folder_is_refused_before_its_weights_are_looked_for(tmp_path: Path) -> None:
    model = models.tiny_model("llama", vocab_size=VOCAB)
    model.config.quantization_config = {"quant_method": "awq", "bits": 4}
    model.config.save_pretrained(tmp_path)  # there are no weights
    with pytest.raises(InputError, match=r"is quantized \(awq\)"):
        HFSpinLM(tokenizers.byte_level(), str(tmp_path))


@pytest.mark.parametrize(
    "setting",
    [
        {"load_in_8bit": True},
        {"load_in_4bit": True},
        {"quantization_config": {"load_in_4bit": True}},
        {"config_overrides": {"quantization_config": {"quant_method": "bitsandbytes"}}},
        {"config_overrides": {"torch_dtype": "bfloat16"}},
    ],
)
def test_settings_that_quantize_or_lower_the_precision_are_refused(setting: dict) -> None:
    with pytest.raises(InputError, match=r"model\..*="):
        _check_model({"name": "hf_spin_lm", **setting}, False)


EXPORTERS = ["ours", pytest.param("llm-foundry's", marks=pytest.mark.foundry)]


def exporter(whose: str, folder: Path, **settings: Any) -> Any:
    if whose == "ours":
        return HuggingFaceExporter(str(folder / "out"), "1iter", "ep{epoch}", **settings)
    from llmfoundry.callbacks import HuggingFaceCheckpointer

    return HuggingFaceCheckpointer(str(folder / "out"), "1iter", "ep{epoch}")


@pytest.mark.parametrize("whose", EXPORTERS)
def test_an_export_that_could_not_hold_what_is_trained_is_refused(
    whose: str, tmp_path: Path
) -> None:
    line = refused(tmp_path, adapted("norm"), callbacks=[exporter(whose, tmp_path)])
    assert "5 parameters are trained besides the adapters (" in line
    assert "norm.weight" in line


def test_merged_into_whole_weights_everything_that_is_trained_is_exported(tmp_path: Path) -> None:
    model = adapted("norm")
    callbacks = [exporter("ours", tmp_path, merge_adapters=True)]
    tiny_trainer(tmp_path / "run", model, max_duration="1iter", callbacks=callbacks).fit()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out/ep2", attn_implementation="eager")
    ids = torch.tensor([[5, 9, 33, 7, 120, 4]])
    with torch.no_grad():
        found, wanted = (m.eval()(input_ids=ids).logits for m in (loaded, model))
    assert (found - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("whose", EXPORTERS)
@pytest.mark.parametrize("kind", ["adapted head", "untied"])
def test_the_exported_folder_is_the_policy_where_the_head_left_the_embedding(
    kind: str, whose: str, tmp_path: Path
) -> None:
    models.tiny_model("llama_tied", vocab_size=VOCAB).save_pretrained(tmp_path / "base")
    loading: dict[str, Any] = {"attn_implementation": "eager"}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base", **loading).train()
    if kind == "untied":
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    else:
        lora = LoraConfig(
            r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM"
        )
        model = get_peft_model(model, lora)
    trainer = tiny_trainer(
        tmp_path / "run", model, max_duration="1iter", callbacks=[exporter(whose, tmp_path)]
    )
    trainer.fit()
    (folder,) = (tmp_path / "out").rglob("ep2")
    loaded = AutoModelForCausalLM.from_pretrained(folder, **loading)
    ids = torch.tensor([[5, 9, 33, 7, 120, 4]])
    with torch.no_grad():
        found, wanted = (m.eval()(input_ids=ids).logits for m in (loaded, model))
    assert torch.equal(found, wanted)


def train_sharded(folder: str, rank: int) -> Any:
    """Train adapters and norms by FSDP2, resume it; return names held and the difference."""
    os.environ["FSDP_VERSION"] = "2"
    final = []
    for load in (None, "ba3.pt"):
        torch.manual_seed(0)
        trainer = tiny_trainer(
            Path(folder) / f"rank-{rank}",
            adapted("norm"),
            device_train_microbatch_size=4,
            max_duration="1iter",
            spin={"store": f"{folder}/self-play"},
            parallelism_config={"fsdp": {"state_dict_type": "full"}},
            save_folder=None if load else f"{folder}/checkpoints",
            save_interval="1ba",
            save_filename="ba{batch}.pt",
            load_path=load and f"{folder}/checkpoints/{load}",
        )
        assert is_sharded(trainer.state.model)
        trainer.fit()
        named = trainer.state.model.named_parameters()
        final.append({n: w.full_tensor() for n, w in named if w.requires_grad})
        trainer.close()
    held = torch.load(f"{folder}/checkpoints/ba3.pt", weights_only=False)["state"]["model"]
    same = all(torch.equal(value, final[1][name]) for name, value in final[0].items())
    return same, set(held) == set(final[0])


def test_checkpoints_of_a_sharded_model_hold_what_is_trained(tmp_path: Path) -> None:
    body = functools.partial(train_sharded, str(tmp_path))
    found = on_ranks(body, timeout_seconds=60, patience_seconds=300, one_node=True)
    assert found == {0: (True, True), 1: (True, True)}
