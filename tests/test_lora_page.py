"""The examples of the page on LoRA do what it says, on a tiny model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from fixtures import models, tokenizers
from fixtures.runs import tiny_trainer
from fixtures.yaml_run import save_model, tiny_config, write_config
from peft import PeftModel
from transformers import AutoModelForCausalLM

from spin_composer import HuggingFaceExporter
from spin_composer.errors import InputError

PAGE = (Path(__file__).parents[1] / "docs/lora.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
IDS = torch.tensor([[5, 9, 33, 7, 120, 4]])


def block(language: str, number: int = 0) -> str:
    return [text for of, text in BLOCKS if of == language][number]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def checkpointed(folder: Path) -> dict[str, torch.Tensor]:
    """The weights in a run's last checkpoint."""
    path = folder / "checkpoints/latest-rank0.pt"
    return torch.load(path, weights_only=False)["state"]["model"]


def of_the_page(folder: Path, **model: Any) -> dict[str, Any]:
    """The config of a tiny run, with what the page adds to it."""
    added = yaml.safe_load(block("yaml"))
    config = tiny_config(folder, max_duration="1iter")
    assert config["model"].keys() < added["model"].keys() | {"init_device"}
    config["model"] = {**added["model"], **config["model"], **model}
    config["algorithms"]["spin"].update(added["algorithms"]["spin"])
    return config


@pytest.mark.foundry
@pytest.mark.parametrize("merged", [False, True])
def test_the_yaml_trains_adapters_alone_which_are_what_checkpoints_and_exports_hold(
    merged: bool, tmp_path: Path
) -> None:
    from spin_composer.train import train

    config = of_the_page(tmp_path)
    exporter = {"save_folder": str(tmp_path / "hf"), "merge_adapters": merged}
    config["callbacks"] = {"hf_exporter": exporter}
    trainer = train(write_config(config, tmp_path / "run.yaml"))
    trained: Any = trainer.state.model.model
    assert all("lora_" in name for name, p in trained.named_parameters() if p.requires_grad)
    steps = (tmp_path / "self-play/steps.jsonl").read_text().splitlines()
    rates = [rate for step in steps if (rate := json.loads(step).get("learning_rate")) is not None]
    peak = yaml.safe_load(block("yaml"))["algorithms"]["spin"]["learning_rate"]
    assert peak / 2 < max(rates) <= peak < config["optimizer"]["lr"] / 100
    kept = checkpointed(tmp_path)
    assert kept
    assert all("lora_" in name for name in kept)
    folder = tmp_path / "hf/iter0"
    names = {path.name for path in folder.iterdir()}
    assert ("model.safetensors" in names) is merged
    assert ("adapter_model.safetensors" in names) is not merged
    start = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    before = logits(start)
    loaded = (
        AutoModelForCausalLM.from_pretrained(folder)
        if merged
        else PeftModel.from_pretrained(start, str(folder))
    )
    assert (logits(loaded) - logits(trained)).abs().max() < 1e-5
    assert not torch.equal(logits(loaded), before)


def test_the_python_example_trains_adapters(tmp_path: Path) -> None:
    tokenizer = tokenizers.byte_level()
    names: dict[str, Any] = {
        "model": models.tiny_model("llama", vocab_size=len(tokenizer)),
        "tokenizer": tokenizer,
    }
    before = {name: p.clone() for name, p in names["model"].named_parameters()}
    exec(block("python"), names)  # the page's own lines
    exporter = HuggingFaceExporter(str(tmp_path / "hf"))
    tiny_trainer(tmp_path, names["model"], max_duration="1iter", callbacks=[exporter]).fit()
    after = names["model"].model.named_parameters()
    assert any("lora_B" in name and bool(p.any()) for name, p in after)
    base = dict(names["model"].model.get_base_model().named_parameters())
    for name, weight in before.items():
        now = base.get(name, base.get(name.replace("_proj.", "_proj.base_layer.")))
        assert now is not None
        assert torch.equal(now, weight), name
    assert (tmp_path / "hf/iter0/adapter_config.json").exists()


@pytest.mark.foundry
def test_the_output_layer_is_refused_as_an_adapter_and_trained_whole_where_the_page_says_so(
    tmp_path: Path,
) -> None:
    from spin_composer.train import train

    model = save_model(tmp_path)
    adapters = yaml.safe_load(block("yaml"))["model"]["peft_config"]
    refused = {**adapters, "target_modules": [*adapters["target_modules"], "lm_head"]}
    config = of_the_page(tmp_path, peft_config=refused)
    with pytest.raises(InputError, match=r"modules_to_save"):
        train(write_config(config, tmp_path / "refused.yaml"))
    config = of_the_page(tmp_path, peft_config={**adapters, "modules_to_save": ["lm_head"]})
    trainer = train(write_config(config, tmp_path / "run.yaml"))
    before = AutoModelForCausalLM.from_pretrained(model).lm_head.weight
    kept = checkpointed(tmp_path)
    (head,) = (kept[name] for name in kept if "lm_head" in name)
    assert not torch.equal(head, before)
    trainer.close()
