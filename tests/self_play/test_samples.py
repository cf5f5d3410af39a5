"""The table of samples reaches the run folder and the loggers that people use."""

from __future__ import annotations

import json

from composer.loggers import MLFlowLogger, TensorboardLogger, WandBLogger
from fixtures.runs import tiny_trainer


def test_each_iteration_writes_its_samples_to_the_run_folder(tmp_path):
    tiny_trainer(tmp_path, spin={"sample_table_rows": 3}).fit()
    for iteration in (0, 1):
        path = tmp_path / f"self-play/iter-{iteration:03d}/samples.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row["iteration"] for row in rows] == [iteration] * 3
        assert all(
            row["prompt"].endswith(" :") and row["real"] and row["generated"] for row in rows
        )
        assert {row["finish"] for row in rows} <= {"stop", "length"}


def test_wandb_mlflow_and_tensorboard_get_the_table(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    loggers = [
        WandBLogger(project="spin", init_kwargs={"dir": str(tmp_path)}),
        MLFlowLogger(experiment_name="spin", tracking_uri=f"file:{tmp_path / 'mlflow'}"),
        TensorboardLogger(log_dir=str(tmp_path / "tensorboard")),
    ]
    trainer = tiny_trainer(tmp_path, loggers=loggers, max_duration="1iter")
    trainer.fit()
    trainer.close()
    tables = [p for p in (tmp_path / "wandb").rglob("*.table.json") if "samples" in str(p)]
    assert tables
    assert "generated" in tables[0].read_text()
    tables = [p for p in (tmp_path / "mlflow").rglob("*samples*") if p.is_file()]
    assert tables
    assert "generated" in tables[0].read_text()
    events = b"".join(p.read_bytes() for p in (tmp_path / "tensorboard").rglob("events*"))
    assert b"spin/samples" in events
