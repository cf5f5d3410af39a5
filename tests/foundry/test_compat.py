"""llm-foundry's own parts beside SPIN, on whatever transformers is installed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fixtures.runs import tiny_trainer
from fixtures.yaml_run import launch, save_model, tiny_config, write_config
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.foundry


def sft_config(folder: Path) -> dict:
    """Return the config of llm-foundry's own SFT, without anything of SPIN."""
    config = tiny_config(folder, save_model(folder))
    config["model"]["name"] = "hf_causal_lm"
    for name in ("train_loader", "eval_loader"):
        config[name]["name"] = "finetuning"
    del config["algorithms"]
    return config | {
        "max_duration": "1ep",
        "scheduler": {"name": "constant_with_warmup", "t_warmup": "0ba"},
        "optimizer": {"name": "decoupled_adamw", "lr": 0.001},
        "save_interval": "1ep",
        "callbacks": {"hf_checkpointer": {"save_folder": str(folder), "save_interval": "1ep"}},
    }


@pytest.mark.slow  # llmfoundry train of a SPIN run is a quick one: tests/test_yaml_runs.py
def test_its_command_fine_tunes_without_spin_and_exports(tmp_path: Path):
    path = write_config(sft_config(tmp_path), tmp_path / "sft.yaml")
    done = launch("llmfoundry", "train", str(path))
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = (tmp_path / "huggingface").iterdir()
    AutoModelForCausalLM.from_pretrained(folder)


def test_its_exporter_writes_the_policy_of_a_run_in_python(tmp_path: Path):
    from llmfoundry.callbacks import HuggingFaceCheckpointer

    exporter = HuggingFaceCheckpointer(str(tmp_path), "1iter", "iter{iteration}")
    trainer = tiny_trainer(tmp_path / "run", max_duration="1iter", callbacks=[exporter])
    trainer.fit()
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "huggingface/iter0").state_dict()
    last = trainer.state.model.model.state_dict()
    assert all(torch.equal(saved[name], last[name]) for name in saved)
