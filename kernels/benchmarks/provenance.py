"""What the programs of ``make gpu`` share: the provenance of a result, and checks of arguments.

A result names the command that produces it again, the machine and the versions of the packages
that it depends on. The programs are those beside this file and those in the product's
``benchmarks/gpu``; all of them run on a machine where nothing but torch is installed.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TypedDict

import torch
from timing import one_line

ROOT = Path(__file__).resolve().parents[2]


class Provenance(TypedDict):
    """Where a result comes from, as its JSON file has it."""

    command: str
    machine: dict[str, str]
    versions: dict[str, str]
    tiny: bool
    """The result of a rehearsal with tiny shapes on a CPU."""


def provenance(packages: Iterable[str], tiny: bool) -> Provenance:
    """Return command, machine and versions of this process.

    Args:
        packages: Distributions whose versions the figures depend on.
        tiny: Whether this is a rehearsal on a CPU.
    """
    program = Path(sys.argv[0]).resolve().relative_to(ROOT)
    command = shlex.join(["python", str(program), *sys.argv[1:]])
    return {
        "command": command, "machine": machine(), "versions": versions(packages), "tiny": tiny
    }  # fmt: skip


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python and of packages, ``not installed`` included."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def require_known(program: str, kind: str, names: Iterable[str], known: Collection[str]) -> None:
    """Exit with one line if a name on the command line is unknown.

    Args:
        program: The program's name.
        kind: What is named, such as ``section``.
        names: Those that were given.
        known: Those that there are.
    """
    for name in names:
        if name not in known:
            sys.exit(f"{program}: unknown {kind} {name!r}; known: {', '.join(known)}.")


def require_gpu(program: str, tiny: bool) -> None:
    """Exit with one line if a program needs a GPU and torch sees none."""
    if not tiny and not torch.cuda.is_available():
        sys.exit(f"{program} needs a CUDA GPU and torch sees none; --tiny runs it on the CPU.")


def cpu() -> str:
    """Return the name and number of the machine's processors, as Linux tells them."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [x.partition(":")[2].strip() for x in lines if x.startswith("model name")]
    return f"{names[0] if names else platform.machine()} ({os.cpu_count()} cores)"


def machine() -> dict[str, str]:
    """Return what the figures depend on: the card, the driver and the versions under it."""
    found = {"torch": torch.__version__, "cuda": str(torch.version.cuda)}
    try:
        import triton

        found["triton"] = triton.__version__
    except ImportError:
        found["triton"] = "not installed"
    if not torch.cuda.is_available():
        threads = torch.get_num_threads()
        return {"device": f"{cpu()}, {threads} threads", "driver": "none", **found}
    card = torch.cuda.get_device_properties(0)
    memory = f"{card.total_memory / 2**30:.0f} GiB, {card.multi_processor_count} multiprocessors"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20)
        driver = done.stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        driver = f"unknown ({one_line(error)})"
    return {"device": f"{card.name}, {memory}", "driver": driver, **found}
