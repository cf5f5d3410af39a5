"""examples/evaluate: one table of lm-evaluation-harness's figures.

``fixtures/lm_eval/`` holds what lm-eval 0.4.13 wrote about two models of the demo, without the
description of the machine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.yamls import ROOT, TINY_HF
from rich.console import Console

sys.path.insert(0, str(ROOT / "examples/evaluate"))
import compare

from spin_composer.errors import InputError

KEPT = Path(__file__).parent / "fixtures/lm_eval"
TASKS = ["sentences_choice", "sentences_place"]
PROGRAM = """\
import shutil, sys
from pathlib import Path

given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
out = Path(given["--output_path"])
out.parent.mkdir(parents=True)
model = "start" if "base" in given["--model_args"] else "iter-002"
shutil.copy(Path(KEPT) / f"{model}.json", out.parent / "results_2026-11-29T08-00-00.json")
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with a start model and one export; only their names are read."""
    for folder in ("base", "hf/iter2"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text("{}")
    return tmp_path


def program(folder: Path) -> str:
    """Write a program that answers as lm-eval did."""
    path = folder / "lm_eval"
    path.write_text(f"#!{sys.executable}\nKEPT = {str(KEPT)!r}\n{PROGRAM}")
    path.chmod(0o755)
    return str(path)


def harness(given: str, **changes: object) -> compare.Harness:
    values = {"program": given, "model": "hf", "model_args": "", "tasks": TASKS, "further": []}
    return compare.Harness(**{**values, **changes})  # pyright: ignore[reportArgumentType]


def test_the_table_has_a_row_for_each_model_and_a_standard_error_for_each_value(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = compare.compare(run / "hf", str(run / "base"), harness(program(run)), run / "out")
    Console(width=160).print(table)
    printed = capsys.readouterr().out
    for name in ("start", "iter-002"):
        results = json.loads((KEPT / f"{name}.json").read_text())["results"]
        row = next(line for line in printed.splitlines() if f" {name} " in line)
        for task, key in zip(TASKS, ("acc,none", "exact_match,last-word"), strict=True):
            metric, _, chosen = key.partition(",")
            error = results[task][f"{metric}_stderr,{chosen}"]
            assert f"{results[task][key]:.3f} ± {error:.3f}" in row


def test_a_model_is_evaluated_once_by_the_same_command(run: Path) -> None:
    given = harness(program(run))
    compare.compare(run / "hf", str(run / "base"), given, run / "out")
    Path(given.program).unlink()
    compare.compare(run / "hf", str(run / "base"), given, run / "out")
    (run / "hf/iter2/model.safetensors").touch()  # the run was begun anew
    with pytest.raises(InputError, match=r"--lm-eval=.* is not there. Install it"):
        compare.compare(run / "hf", str(run / "base"), given, run / "out")


def test_another_command_evaluates_again(run: Path) -> None:
    given = harness(program(run))
    compare.compare(run / "hf", str(run / "base"), given, run / "out")
    Path(given.program).unlink()
    with pytest.raises(InputError, match=r"--lm-eval=.* is not there. Install it"):
        compare.compare(
            run / "hf", str(run / "base"), harness(given.program, further=["--limit", "9"]),
            run / "out",
        )  # fmt: skip


def evaluated(run: Path, given: compare.Harness) -> set[str]:
    """Compare; return the models that lm-eval was started for."""
    compare.compare(run / "hf", str(run / "base"), given, run / "out")
    started = {path.name for path in run.glob("out/raw/*")}
    shutil.rmtree(run / "out/raw", ignore_errors=True)
    return started


@pytest.mark.parametrize("adapters", [False, True])
def test_adapters_are_evaluated_again_where_the_model_beneath_them_has_changed(
    adapters: bool, run: Path
) -> None:
    if adapters:
        (run / "hf/iter2/config.json").rename(run / "hf/iter2/adapter_config.json")
    given = harness(program(run))
    assert evaluated(run, given) == {"start", "iter-002"}
    (run / "base/model.safetensors").touch()
    assert evaluated(run, given) == ({"start", "iter-002"} if adapters else {"start"})
    assert evaluated(run, given) == set()


@pytest.mark.parametrize(
    "named", [["--include_path", "{}"], ["--include_path={}", "--log_samples"], ["{}/mine.yaml"]]
)
def test_edited_tasks_of_ones_own_are_evaluated_again(named: list[str], run: Path) -> None:
    tasks = run / "tasks"
    (tasks / "__pycache__").mkdir(parents=True)
    words = [word.format(tasks) for word in named]
    as_option = words[0].startswith("--")
    (tasks / "mine.yaml").write_text("task: mine")
    given = harness(program(run), **{"further" if as_option else "tasks": words})
    assert evaluated(run, given)
    (tasks / "__pycache__/filters.pyc").touch()  # Python's own
    assert not evaluated(run, given)
    (tasks / "mine.yaml").write_text("task: mine # edited")
    assert evaluated(run, given) == {"start", "iter-002"}
    (tasks / "rows.jsonl").write_text("{}")
    assert bool(evaluated(run, given)) is as_option


def test_adapters_are_evaluated_on_their_base(run: Path) -> None:
    (run / "hf/iter2/config.json").rename(run / "hf/iter2/adapter_config.json")
    (export,) = compare.exports_in(run / "hf")
    command = harness("lm_eval", model_args="dtype=float32").command(export, "my/base")
    assert f"pretrained=my/base,peft={export.folder},tokenizer={export.folder},dtype=float32" in (
        command
    )
    with pytest.raises(InputError, match="holds adapters alone"):
        harness("lm_eval", model="vllm").command(export, "my/base")


def test_a_failing_evaluation_names_the_model(run: Path) -> None:
    failing = run / "lm_eval"
    failing.write_text("#!/bin/sh\nexit 3\n")
    failing.chmod(0o755)
    with pytest.raises(InputError, match="lm-eval failed on start, exit code 3"):
        compare.compare(run / "hf", str(run / "base"), harness(str(failing)), run / "out")


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which(os.environ.get("LM_EVAL", "lm_eval")) is None,
    reason="lm-eval is not among the locked packages; LM_EVAL=path of its program",
)
def test_lm_eval_itself_reads_the_tasks_and_the_exports(tmp_path: Path) -> None:
    import torch
    from fixtures.tokenizers import byte_level
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_level()
    for folder in ("base", "hf/iter0"):
        torch.manual_seed(len(folder))
        size = {**TINY_HF, "vocab_size": len(tokenizer), "max_position_embeddings": 256}
        LlamaForCausalLM(LlamaConfig(**size)).save_pretrained(tmp_path / folder)
        tokenizer.save_pretrained(tmp_path / folder)
    done = subprocess.run(
        [
            sys.executable, "examples/evaluate/compare.py", str(tmp_path / "hf"),
            "--start", str(tmp_path / "base"), "--tasks", *TASKS,
            "--lm-eval", os.environ.get("LM_EVAL", "lm_eval"),
            "--", "--include_path", "examples/evaluate/tasks", "--device", "cpu", "--limit", "8",
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count(" ± ") >= 6
    assert "iter-000" in done.stdout
