"""Every logger that people use gets every metric of every batch, and runs start without a server.

One run has them all, each writing to the disk; what they wrote is read back.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from composer.loggers import InMemoryLogger, MLFlowLogger, TensorboardLogger, WandBLogger
from fixtures.runs import tiny_trainer

Logged = dict[str, dict[int, list[float]]]
"""Finite values by metric and batch: at an epoch's end Composer logs some twice."""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Iterator[tuple[Path, InMemoryLogger]]:
    """A run of two iterations that looks for a checkpoint to go on from, in every logger."""
    folder = tmp_path_factory.mktemp("loggers")
    memory = InMemoryLogger()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        loggers = [
            memory,
            WandBLogger(project="spin", init_kwargs={"dir": str(folder)}),
            MLFlowLogger(
                experiment_name="spin",
                tracking_uri=f"file:{folder / 'mlflow'}",
                log_duplicated_metric_every_n_steps=1,
            ),
            TensorboardLogger(log_dir=str(folder / "tensorboard")),
        ]
        trainer = tiny_trainer(
            folder, loggers=loggers, save_folder=str(folder / "checkpoints"), autoresume=True
        )
        trainer.fit()
        trainer.close()
        yield folder, memory


def note(found: Logged, name: str, step: int, value: float) -> None:
    if math.isfinite(value):
        found.setdefault(name, {}).setdefault(step, []).append(value)


def in_memory(logger: InMemoryLogger) -> Logged:
    found: Logged = {}
    for name, entries in logger.data.items():
        for timestamp, value in entries:
            try:
                note(found, name, int(timestamp.batch), float(value))
            except (TypeError, ValueError):
                continue  # a text
    return found


def in_wandb(folder: Path) -> Logged:
    from wandb.proto import wandb_internal_pb2
    from wandb.sdk.internal.datastore import DataStore

    (path,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    store = DataStore()
    store.open_for_scan(str(path))
    found: Logged = {}
    while (data := store.scan_data()) is not None:
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") != "history":
            continue
        items = {i.key or "/".join(i.nested_key): i.value_json for i in record.history.item}
        step = int(json.loads(items["_step"]))
        for name, text in items.items():
            value = json.loads(text)
            if isinstance(value, (int, float)) and not name.startswith("_"):
                note(found, name, step, float(value))
    return found


def in_mlflow(folder: Path) -> Logged:
    found: Logged = {}
    for metrics in (folder / "mlflow").glob("*/*/metrics"):
        for path in metrics.rglob("*"):
            for line in path.read_text().splitlines() if path.is_file() else ():
                _, value, step = line.split()
                note(found, str(path.relative_to(metrics)), int(step), float(value))
    return found


def in_tensorboard(folder: Path) -> Logged:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    found: Logged = {}
    for path in (folder / "tensorboard").rglob("events*"):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.tensor.float_val:
                    note(found, value.tag, event.step, float(value.tensor.float_val[0]))
    return found


READERS: dict[str, Any] = {"wandb": in_wandb, "mlflow": in_mlflow, "tensorboard": in_tensorboard}


@pytest.mark.parametrize("logger", READERS)
def test_every_metric_of_every_batch_reaches_every_logger(run, logger: str):
    folder, memory = run
    logged, found = in_memory(memory), READERS[logger](folder)
    missing = {
        (name, step)
        for name, values in logged.items()
        for step in values
        if step not in found.get(name, {})
    }
    assert not missing
    wrong = {
        (name, step): (values[step], found[name][step])
        for name, values in logged.items()
        for step in values
        if found[name][step][-1] not in [pytest.approx(v, rel=1e-5, abs=1e-6) for v in values[step]]
    }
    assert not wrong


def test_the_first_batch_of_each_iteration_is_among_them(run):
    """Else the test above would compare nothing where it matters."""
    logged = in_memory(run[1])
    firsts = [0, 12]  # two epochs of 24 pairs in batches of 4; then the replayed ones as well
    assert sorted(logged["loss/train/total"]) == list(range(12 + 24))
    assert sorted(logged["spin/first_batch_gap"]) == firsts
    assert sorted(logged["spin/pairs"]) == firsts
    assert all(
        logged["loss/train/total"][b] == [pytest.approx(math.log(2), abs=1e-3)] for b in firsts
    )


def test_the_table_is_there_too(run):
    folder, _ = run
    tables = [p for p in (folder / "wandb").rglob("*.table.json") if "samples" in str(p)]
    assert len(tables) == 2
    assert "generated" in tables[0].read_text()
    tables = [p for p in (folder / "mlflow").rglob("*samples*") if p.is_file()]
    assert tables
    assert "generated" in tables[0].read_text()
    events = b"".join(p.read_bytes() for p in (folder / "tensorboard").rglob("events*"))
    assert b"spin/samples" in events


@pytest.mark.parametrize(
    ("mode", "settings"),
    [
        ("disabled", {}),
        ("offline", {"entity": "somebody"}),
        (None, {"init_kwargs": {"mode": "offline"}}),
        (None, {"init_kwargs": {"mode": "disabled"}}),
    ],
)
def test_a_run_that_goes_on_from_checkpoints_starts_without_a_server(
    tmp_path, monkeypatch, mode, settings
):
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if mode:
        monkeypatch.setenv("WANDB_MODE", mode)
    kwargs = {"dir": str(tmp_path), **settings.pop("init_kwargs", {})}
    logger = WandBLogger(project="spin", init_kwargs=kwargs, **settings)
    trainer = tiny_trainer(
        tmp_path,
        loggers=[logger],
        save_folder=str(tmp_path / "checkpoints"),
        autoresume=True,
        max_duration="1iter",
        spin={"iteration_length": "1ep"},
    )
    trainer.fit()
    trainer.close()
    assert list((tmp_path / "checkpoints").glob("*.pt"))
