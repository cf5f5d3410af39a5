"""A run keeps what each of its processes was started with, and no secrets."""

from __future__ import annotations

import shutil
from pathlib import Path

from fixtures.runs import tiny_trainer

from spin_composer.hooks.process_log import _shown
from spin_composer.report.processes import read_processes
from spin_composer.settings.spin import SpinSettings


def test_the_header_of_a_servers_command_is_not_kept() -> None:
    server = {
        "base_url": "http://me:pass@host",
        "reload_command": 'curl -H "Authorization: Bearer sk-abc" http://host/load/{model}',
    }
    shown = _shown(SpinSettings(generation={"engine": "server", "server": server}))  # pyright: ignore
    kept = shown["generation"]["server"]
    assert kept["base_url"] == "http://me:***@host"
    assert kept["reload_command"] == "curl -H 'Authorization: ***' 'http://host/load/{model}'"


def test_every_start_of_a_run_is_kept(tmp_path: Path) -> None:
    settings = {"save_folder": str(tmp_path / "ck"), "save_filename": "ba{batch}.pt",
                "save_interval": "4ba"}  # fmt: skip
    trainer = tiny_trainer(tmp_path, max_duration="1iter", spin={"beta": 0.25}, **settings)
    trainer.fit()
    trainer.close()
    shutil.rmtree(tmp_path / "ck")
    (first,) = read_processes(tmp_path / "self-play")
    assert (first.iteration, first.epoch, first.batch) == (0, 0, 0)
    assert (first.settings["beta"], first.settings["generation"]["max_new_tokens"]) == ([0.25], 12)
    assert (first.facts.optimizer, first.facts.learning_rate) == ("AdamW", 1e-2)
    assert (first.facts.global_batch_size, first.facts.iterations) == (4, 1)
    assert (first.facts.t_warmup, first.run_name) == ("0.1dur", "tiny")
    assert first.save_folder == str(tmp_path / "ck")
    assert first.machine["ranks"] == 1
    assert {"torch", "mosaicml", "Python"} <= set(first.versions)
    (tmp_path / "self-play/run.lock").unlink(missing_ok=True)
    again = tiny_trainer(tmp_path, max_duration="1iter", spin={"beta": 0.25})
    again.fit()
    again.close()
    assert len(read_processes(tmp_path / "self-play")) == 2


def test_a_damaged_record_does_not_keep_a_run_from_training(tmp_path: Path, caplog) -> None:
    (tmp_path / "self-play").mkdir()
    (tmp_path / "self-play/run.json").write_text("{")
    trainer = tiny_trainer(tmp_path, max_duration="1iter")
    trainer.fit()
    trainer.close()
    assert len(read_processes(tmp_path / "self-play")) == 1
    assert "run.json is damaged" in caplog.text
