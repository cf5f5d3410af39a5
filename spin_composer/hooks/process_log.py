"""Adds a process to ``run.json`` of the store (``report.processes``) when it begins to train."""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil
import torch
from composer.callbacks import CheckpointSaver
from composer.core import State
from composer.utils import dist

from spin_composer.errors import StoreError
from spin_composer.export.exporters import local_export_folders
from spin_composer.report.processes import Process, Training, as_json, parse_processes
from spin_composer.settings.scheduler import SchedulerSettings
from spin_composer.settings.secrets import text_without_secrets, without_secrets
from spin_composer.settings.spin import SpinSettings
from spin_composer.store.base import Store
from spin_composer.store.durable import write_atomically
from spin_composer.store.layout import RUN

log = logging.getLogger(__name__)

_PACKAGES = (
    "spin-composer", "torch", "mosaicml", "mosaicml-streaming", "llm-foundry", "transformers",
    "tokenizers", "peft", "triton", "numpy",
)  # fmt: skip


def add_process(store: Store, made: Process) -> None:
    """Add a process to the run's file; call it on rank 0.

    Args:
        store: The run's.
        made: From :func:`describe_process`.
    """
    text = store.read_published(RUN)
    try:
        earlier = parse_processes(text, RUN) if text else []
    except StoreError as error:
        log.warning(f"{error} It is replaced.")
        earlier = []
    store.root.mkdir(parents=True, exist_ok=True)
    write_atomically(store.root / RUN, as_json([*earlier, made]))
    store.publish(RUN)


def describe_process(
    state: State, settings: SpinSettings, schedule: SchedulerSettings, batch_size: int,
    num_iterations: int,
) -> Process:  # fmt: skip
    """Return what a report says about this process.

    Args:
        state: Composer's, with the checkpoint loaded.
        settings: ``algorithms.spin``.
        schedule: Of the learning rate.
        batch_size: Pairs of an optimizer step.
        num_iterations: Of the run.
    """
    t, optimizer = state.timestamp, state.optimizers[0]
    group = optimizer.param_groups[0]
    training = Training(
        iterations=num_iterations,
        global_batch_size=batch_size,
        optimizer=type(optimizer).__name__,
        learning_rate=float(group.get("initial_lr", group["lr"])),
        weight_decay=float(group.get("weight_decay", 0.0)),
        t_warmup=schedule.t_warmup,
        decay=schedule.decay,
        precision=str(state.precision),
        seed=state.rank_zero_seed,
        schedule_length=None if schedule.schedule_length is None else str(schedule.schedule_length),
    )
    saver = next((c for c in state.callbacks if isinstance(c, CheckpointSaver)), None)
    return Process(
        run_name=state.run_name,
        began=round(time.time(), 3),
        iteration=int(t.iteration),
        epoch=int(t.epoch),
        batch=int(t.batch),
        command=without_secrets(sys.orig_argv),
        folder=os.getcwd(),
        machine=_machine(state),
        versions=_versions(),
        settings=_shown(settings),
        training=asdict(training),
        save_folder=_of_run(saver.folder, state) if saver else "",
        save_filename=str(saver.filename.filename) if saver else "",
        exports=[_of_run(folder, state) for folder in local_export_folders(state)],
    )


def _shown(settings: SpinSettings) -> dict[str, Any]:
    """Return the settings as JSON has them; commands of a server without secrets."""
    found = json.loads(json.dumps(asdict(settings), default=str))  # pyright: ignore
    server = found["generation"].get("server") or {}
    for name, value in server.items():
        if isinstance(value, str):
            server[name] = text_without_secrets(value)
    return found


def _of_run(folder: str, state: State) -> str:
    return folder.replace("{run_name}", state.run_name)


def _machine(state: State) -> Mapping[str, str | int]:
    ranks, local = dist.get_world_size(), dist.get_local_world_size()
    facts: dict[str, Any] = {
        "host": platform.node(),
        "ranks": ranks,
        "nodes": -(-ranks // local),
        "device": "CPU",
        "CPU cores": os.cpu_count() or 0,
        "memory (GiB)": round(psutil.virtual_memory().total / 2**30),
        "system": platform.platform(),
    }
    if state.device.name == "gpu":
        found = torch.cuda.get_device_properties(torch.cuda.current_device())
        facts["device"] = f"{found.name}, {found.total_memory / 2**30:.0f} GiB"
    return facts


def _versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # llm-foundry and peft need not be installed
            continue
    if torch.version.cuda:
        found["CUDA"] = torch.version.cuda
    return found
