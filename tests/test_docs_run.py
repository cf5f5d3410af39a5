"""Every command that a page shows is run as it stands there, or listed with what it needs.

They run in a folder that has what the pages speak of: a tuned model, rows, YAMLs and a finished
run, by the pages' names.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures.runs import write_rows
from fixtures.shown_commands import PAGES, ROOT, in_blocks, in_passages, in_prose
from fixtures.yaml_run import save_model, tiny_config, write_config
from omegaconf import OmegaConf

NEEDS_GPUS = {
    r"make gpu\S*": "CUDA kernels; test_gpu_benchmarks.py rehearses them on a CPU",
    r"(NODE_RANK=0 )?(composer|torchrun) .*": "two ranks on a CPU: test_yaml_runs.py",
    r"sbatch .*|mcli .*": "a cluster of them; its files are loaded by test_yamls.py",
}
"""What is not run here because it needs GPUs, which each page must say, and what is tested."""
SAYS_SO = r"\b[Nn]eeds? (a |eight )?GPUs?\b|\bOn a (machine with a CUDA )?GPU\b"
ELSEWHERE = NEEDS_GPUS | {
    r"make (install|lint|demo|test|test-odd|test-foundry|test-wheel)|\.ci/run": "CI runs it",
    r"make docs": "tests/test_docs.py writes the pages and builds the site",
    r"make (test-all|chaos)|(\w+=\S+ )?\S*python3? -m pytest .*": "the tests themselves",
    r"make (real|evidence|bench-step|bench-generation|bench-engines|simulate)( .*)?": "hours",
    r"nohup make .*": "hours",
    r"make (parity|lock)": "installs from the network",
    r"(uv )?pip install .*": "installs from the network",
    r"(\S*/)?(python3?) -m venv .*|\S+/pip install .*": "installs from the network",
    r"\. \.venv/bin/activate": "of the shell",
    r"cp yamls/\S+ my.yaml": "test_yamls.py loads it",
    r"spin-composer demo": "six minutes; make test-wheel runs it",
    r"python examples/evaluate/compare.py .*": "needs lm-eval; tests/test_evaluate.py has its own",
    r"(\S*/)?\S*convert\S*_to_gguf\.py .*": "needs a checkout of llama.cpp",
}
"""What is not run here, whole, and why."""
TUTORIAL = "tutorial.md"
"""Its commands are run in their order by test_tutorial.py."""
STANDS_FOR = {
    "RUN": "runs/my-run/self-play", "STORE": "runs/my-run/self-play", "SRC": "my_sft.jsonl",
    "NAME": "my/sft-model", "DST": "my_mds", "key=value": "seed=7", "--seeds 100": "--seeds 2",
    "--max-seq-len 2048": "--max-seq-len 48",
}  # fmt: skip
"""Placeholders of the pages, and what would take minutes."""
RUNS = r"spin-composer (?!\S+$)\S.*|spin-composer (doctor|--\S+)|python benchmarks/scaling/\S+ .*"
NAMES_A_COMMAND = (
    r"spin-composer (?!doctor|--)\S+|spin-composer data check|make [a-z-]+|composer -n( 8)?"
)
"""``spin-composer judge`` in a sentence is no command to type."""


LAUNCHER = r"composer -n( 8)?"
"""The name of a launcher, which is no command to type either."""


def _shown() -> set[str]:
    found = set()
    for page in PAGES:
        if page.name != TUTORIAL:
            found |= set(in_blocks(page))
            found |= {one for one in in_prose(page) if not re.fullmatch(NAMES_A_COMMAND, one)}
    return {one for one in found if "..." not in one}


def _is_elsewhere(command: str) -> bool:
    return any(re.fullmatch(pattern, command) for pattern in ELSEWHERE)


SHOWN = sorted(_shown())
RUN_HERE = [one for one in SHOWN if re.fullmatch(RUNS, one) and not _is_elsewhere(one)]


def test_every_command_of_the_pages_is_run_or_listed() -> None:
    lost = [one for one in SHOWN if one not in RUN_HERE and not _is_elsewhere(one)]
    assert not lost
    assert len(RUN_HERE) > 15


def _passages(page: Path) -> Iterator[str]:
    """Yield a page's lines of code, its paragraphs, and its tables' rows with what stands above."""
    above = ""
    for part in in_passages(page):
        if part.startswith("```"):
            yield from part.splitlines()
        elif part.startswith("|"):
            yield from (f"{above}\n{row}" for row in part.splitlines())
        else:
            yield part
        above = part


def _unmarked(page: Path) -> list[str]:
    """Return a page's commands that need GPUs, no mention of which says so."""
    shown = {one for one in (*in_blocks(page), *in_prose(page)) if "..." not in one}
    found = []
    for command in sorted(shown):
        needs = any(re.fullmatch(pattern, command) for pattern in NEEDS_GPUS)
        if needs and not re.fullmatch(LAUNCHER, command):
            mentions = [one for one in _passages(page) if command in " ".join(one.split())]
            if not any(re.search(SAYS_SO, one) for one in mentions):
                found.append(command)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_command_that_needs_gpus_is_marked_so_on_its_page(page: Path) -> None:
    assert not _unmarked(page)


def test_a_command_without_a_mark_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    shown = "```\ncomposer -n 8 -m x a.yaml{}\n```\n\n| how |\n|---|\n| `sbatch a.yaml`{} |\n"
    page.write_text(shown.format("", ""), encoding="utf-8")
    assert _unmarked(page) == ["composer -n 8 -m x a.yaml", "sbatch a.yaml"]
    page.write_text(shown.format("  # needs eight GPUs", " (needs GPUs)"), encoding="utf-8")
    assert not _unmarked(page)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the pages' names are there, with a finished run ``my-run``."""
    here = tmp_path_factory.mktemp("docs")
    (here / "my").mkdir()
    save_model(here, max_position_embeddings=1024).rename(here / "my/sft-model")
    shutil.copytree(here / "my/sft-model", here / "base-model")
    config = tiny_config(here, Path("my/sft-model"))
    write_rows(here / "my_sft.jsonl", num_rows=112)
    write_rows(here / "heldout.jsonl", num_rows=20, seed=1)
    for loader, rows in (("train_loader", "my_sft.jsonl"), ("eval_loader", "heldout.jsonl")):
        config[loader]["dataset"]["hf_kwargs"]["data_files"] = rows
    config |= {"run_name": "my-run", "save_folder": "runs/{run_name}/checkpoints"}
    config["global_train_batch_size"] = 16  # also of eight GPUs
    config["callbacks"] = {"hf_exporter": {"save_folder": "runs/{run_name}/hf"}}
    config["algorithms"]["spin"] |= {"store": "runs/{run_name}/self-play", "unit_size": 1}
    for name in ("my.yaml", "run.yaml", "spin.yaml"):
        write_config(config, here / name)
    write_config(_sft(config), here / "sft.yaml")
    foreign = ROOT / "tests/importers/foreign"
    shutil.copy(foreign / "gpt_spin_last.yaml", here / "gpt_spin.yaml")
    shutil.copy(foreign / "spin_config.yaml", here / "config.yaml")
    (here / "benchmarks").symlink_to(ROOT / "benchmarks")
    shell("spin-composer train my.yaml", here)
    return here


def _sft(config: dict[str, Any]) -> dict[str, Any]:
    """Return the config of the SFT before a run."""
    sft = OmegaConf.to_container(OmegaConf.create(config))
    assert isinstance(sft, dict)
    for key in ("algorithms", "callbacks", "eval_loader"):
        del sft[key]
    sft["model"]["name"] = "hf_causal_lm"
    sft["train_loader"]["name"] = "finetuning"
    sft["scheduler"] = {"name": "linear_decay_with_warmup", "t_warmup": "0ba"}
    sft["optimizer"] = {"name": "decoupled_adamw", "lr": 1e-3}
    return {**sft, "run_name": "my-sft", "max_duration": "2ep"}


def shell(command: str, folder: Path) -> None:
    line = re.sub("^spin-composer", f"{sys.executable} -W ignore -m spin_composer", command)
    line = re.sub("^python ", f"{sys.executable} ", line)
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path, "HOME": str(folder), "SHELL": "/bin/bash"}
    done = subprocess.run(
        ["bash", "-euc", line], check=False, cwd=folder, capture_output=True, text=True,
        env=environment,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.mark.slow
@pytest.mark.foundry
@pytest.mark.parametrize("command", RUN_HERE, ids=lambda command: command[:80])
def test_a_command_of_the_pages_runs(command: str, folder: Path) -> None:
    for placeholder, value in STANDS_FOR.items():
        command = re.sub(rf"(?<!\S){re.escape(placeholder)}(?!\S)", value, command)
    kept = (folder / "spin.yaml").read_text(encoding="utf-8")
    shell(command, folder)
    (folder / "spin.yaml").write_text(kept, encoding="utf-8")  # many write it
