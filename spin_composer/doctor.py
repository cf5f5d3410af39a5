"""The machine and the environment, looked at for what a run needs: ``spin-composer doctor``."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from spin_composer.report.figures import Figures, Section, bytes_text
from spin_composer.versions import STACK, installed_version, version_warnings

_GIB = 1 << 30
_LEAST_SHARED = 64 << 20
"""Bytes of shared memory below which Streaming and NCCL fail: Docker's default is that much."""
_LEAST_FREE = 10 * _GIB
_EXTRAS = {
    "foundry": ("llmfoundry", "training YAMLs, `llmfoundry train`, MPT"),
    "lora": ("peft", "LoRA"),
}
_OPTIONAL = {
    "flash_attn": "attn_implementation: flash_attention_2",
    "wandb": "loggers.wandb",
    "tensorboard": "loggers.tensorboard",
    "mlflow": "loggers.mlflow",
}
_SERVERS = {
    "vllm": "vllm", "sglang": "sglang", "llama-server": "llama.cpp", "trtllm-serve": "TensorRT-LLM"
}  # fmt: skip
_VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "FSDP_VERSION", "HF_HOME", "HF_HUB_OFFLINE", "LOCAL_RANK",
    "MASTER_ADDR", "NCCL_DEBUG", "NODE_RANK", "OMP_NUM_THREADS", "RANK", "SPIN_COMPOSER_CACHE",
    "TRANSFORMERS_OFFLINE", "WANDB_MODE", "WORLD_SIZE",
)  # fmt: skip


def examine() -> Figures:
    """Look at Python, packages, GPUs, memory and disks; loads torch, and starts nothing."""
    notes: list[str] = []
    sections = [_python(), _packages(notes), _gpus(notes), _memory(notes), _disks(notes), _other()]
    return Figures("spin-composer doctor", sections, notes)


def _python() -> Section:
    section = Section("machine")
    section.add("python", platform.python_version(), f"{platform.python_version()} {sys.prefix}")
    section.add("system", platform.platform())
    section.add("cores", os.cpu_count())
    return section


def _packages(notes: list[str]) -> Section:
    section = Section("packages")
    for package in STACK:
        found = installed_version(package)
        section.add(package, found, found or "not installed")
    for extra, (module, use) in _EXTRAS.items():
        there = importlib.util.find_spec(module) is not None
        section.add(f"extra {extra}", there, f"{'installed' if there else 'not installed'}: {use}")
    there = [name for name in _OPTIONAL if importlib.util.find_spec(name) is not None]
    lacking = [f"{name} ({use})" for name, use in _OPTIONAL.items() if name not in there]
    section.add("optional", there, ", ".join(there) or "none")
    section.add("not installed", lacking, ", ".join(lacking) or "none")
    tested = version_warnings()
    section.add("tested versions", not tested, "no, see below" if tested else "yes")
    notes += tested
    return section


def _gpus(notes: list[str]) -> Section:
    import torch
    from torch.cuda import nccl

    section = Section("GPUs")
    built = torch.version.cuda
    section.add("CUDA of torch", built, built or "none: torch is built for CPUs")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    section.add("count", count)
    if not count:
        notes.append(
            "torch sees no GPU: runs here need precision=fp32, model.init_device=cpu and a number "
            "for device_train_microbatch_size."
        )
        return section
    for index in range(count):
        found = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        value = {
            "name": found.name, "capability": f"{found.major}.{found.minor}",
            "bytes": total, "free_bytes": free,
        }  # fmt: skip
        text = f"{found.name}, sm_{found.major}{found.minor}, {bytes_text(free)} of "
        section.add(f"GPU {index}", value, f"{text}{bytes_text(total)} free")
        if free < total // 2:
            notes.append(f"GPU {index}: more than half of its memory is in use by other programs.")
        if found.major < 8:
            notes.append(f"GPU {index} ({found.name}) has no bf16: use precision=amp_fp16 or fp32.")
    there = torch.distributed.is_available() and torch.distributed.is_nccl_available()
    version = ".".join(map(str, nccl.version())) if there else None
    section.add("NCCL", version, version or "not available")
    if not there and count > 1:
        notes.append("torch has no NCCL: several GPUs cannot train together.")
    return section


def _memory(notes: list[str]) -> Section:
    import psutil

    section = Section("memory")
    memory = psutil.virtual_memory()
    text = f"{bytes_text(memory.available)} of {bytes_text(memory.total)} free"
    section.add("memory bytes", {"total": memory.total, "free": memory.available}, text)
    shared = Path("/dev/shm")
    if not shared.is_dir():
        notes.append("/dev/shm does not exist: Streaming, which reads the pairs, needs it.")
        return section
    usage = shutil.disk_usage(shared)
    text = f"{bytes_text(usage.free)} of {bytes_text(usage.total)} free"
    section.add("shared memory bytes", {"total": usage.total, "free": usage.free}, text)
    if usage.free <= _LEAST_SHARED:
        notes.append(
            f"/dev/shm has {bytes_text(usage.free)} free, too little for Streaming and NCCL. Start "
            "the container with a larger one (docker run --shm-size=8g, or --ipc=host)."
        )
    return section


def _disks(notes: list[str]) -> Section:
    section = Section("disk")
    for name, folder in _folders().items():
        at = folder
        while not at.exists():
            at = at.parent
        free = shutil.disk_usage(at).free
        writable = os.access(at, os.W_OK)
        text = f"{folder}: {bytes_text(free)} free{'' if writable else ', not writable'}"
        value = {"place": str(folder), "free_bytes": free, "writable": writable}
        section.add(name, value, text)
        if not writable:
            notes.append(f"{folder} ({name}) cannot be written to.")
        if free < _LEAST_FREE:
            notes.append(f"{folder} ({name}) has {bytes_text(free)} free.")
    return section


def _folders() -> Mapping[str, Path]:
    home = Path.home()
    hub = os.environ.get("HF_HOME") or home / ".cache/huggingface"
    rows = os.environ.get("SPIN_COMPOSER_CACHE") or home / ".cache/spin_composer"
    return {
        "working folder": Path.cwd(),
        "temporary files": Path(tempfile.gettempdir()),
        "models and data sets": Path(hub).absolute(),
        "tokenized rows": Path(rows).absolute(),
    }


def _other() -> Section:
    section = Section("environment")
    servers = [name for command, name in _SERVERS.items() if shutil.which(command)]
    section.add("completion servers", servers, ", ".join(servers) or "none on PATH")
    given = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    text = ", ".join(f"{name}={value}" for name, value in given.items())
    section.add("variables", given, text or "none that matter")
    return section
