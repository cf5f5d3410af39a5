"""Folders of llm-foundry's exporter: named by iteration, and one of the run's last policy."""

from __future__ import annotations

import os

import pytest
import torch
from fixtures.runs import tiny_trainer
from transformers import AutoModelForCausalLM

INTERVALS = ["1iter", "2iter", "100ba", "0.5dur", "1dur", "4ep", "7ba"]


@pytest.mark.foundry
def test_whatever_the_interval_the_run_ends_with_an_export_of_its_policy(tmp_path):
    from llmfoundry.callbacks import HuggingFaceCheckpointer

    exporters = [
        HuggingFaceCheckpointer(str(tmp_path / interval), interval, "iter{iteration}-ba{batch}")
        for interval in INTERVALS
    ]
    trainer = tiny_trainer(
        tmp_path,
        callbacks=exporters,
        max_duration="3iter",
        save_folder=str(tmp_path / "checkpoints"),
        save_interval="2iter",
        save_filename="ba{batch}.pt",
    )
    trainer.fit()
    last = trainer.state.model.model.state_dict()
    batches = int(trainer.state.timestamp.batch)
    umask = os.umask(0)
    os.umask(umask)
    weights = list(tmp_path.rglob("iter*/*.safetensors"))
    assert {path.stat().st_mode & 0o777 for path in weights} == {0o666 & ~umask}
    for interval in INTERVALS:
        names = [path.name for path in (tmp_path / interval / "huggingface").iterdir()]
        assert f"iter2-ba{batches}" in names, (interval, names)
        saved = AutoModelForCausalLM.from_pretrained(
            tmp_path / interval / "huggingface" / f"iter2-ba{batches}"
        ).state_dict()
        assert all(torch.equal(saved[name], last[name]) for name in saved), interval
    assert (tmp_path / f"checkpoints/ba{batches}.pt").exists()
    every = sorted(path.name for path in (tmp_path / "1iter/huggingface").iterdir())
    assert [name.partition("-")[0] for name in every] == ["iter0", "iter1", "iter2"]
    within = sorted(path.name for path in (tmp_path / "7ba/huggingface").iterdir())
    assert within[0] == "iter0-ba7"  # its number is the iteration's that is trained
