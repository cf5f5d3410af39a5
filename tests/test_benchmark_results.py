"""Results of benchmarks that are committed are those of a command that the Makefile runs."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TARGETS = ("bench-generation", "bench-step")
RESULTS = (
    "generation_cpu", "step_cpu_10m_gsm8k", "step_cpu_10m_oasst", "step_cpu_10m_long-prompts",
    "step_cpu_10m_long-responses", "step_cpu_135m_gsm8k", "step_growth_cpu",
)  # fmt: skip


def commands() -> list[re.Pattern[str]]:
    """The benchmarks' commands of the targets; a variable of the shell may have any value."""
    printed = subprocess.run(
        ["make", "--dry-run", "--old-file=install", *TARGETS],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.replace("\\\n", " ")  # fmt: skip
    found = re.findall(r"python (benchmarks/[\w/]+\.py [^|;\n]*)", printed)
    return [
        re.compile(re.sub(r"\\\$(\\\{)?\w+(\\\})?", r"[\\w-]+", re.escape(" ".join(line.split()))))
        for line in found
    ]


@pytest.mark.parametrize("name", RESULTS)
def test_a_target_runs_the_command_of_a_result(name: str) -> None:
    path = ROOT / "benchmarks/results" / f"{name}.json"
    command = json.loads(path.read_text(encoding="utf-8"))["command"].removeprefix("python ")
    assert [one for one in commands() if one.fullmatch(command)], command
