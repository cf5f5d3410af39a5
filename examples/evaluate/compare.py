"""One table of lm-evaluation-harness's figures: the start model and each export of a run.

    python examples/evaluate/compare.py runs/my-run/hf --start my/sft-model --tasks gsm8k

What follows ``--`` goes to lm-eval as it is. A model that was evaluated by the same command, and
was not written since, nor the start model beneath its adapters, nor a task of your own, is not
evaluated again: after a stop the same command goes on. lm-eval may have an environment of its own:
``--lm-eval PATH``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from spin_composer.errors import InputError
from spin_composer.judge.exports import Export, exports_in


@dataclass(frozen=True)
class Harness:
    """How lm-eval is called, but for the model."""

    program: str
    model: str
    """Of lm-eval: ``hf``, ``vllm`` and so on."""
    model_args: str
    """``key=value,...`` beside the model's folder."""
    tasks: Sequence[str]
    further: Sequence[str]
    """Arguments that lm-eval takes as they are."""

    def command(self, model: Export, start: str) -> list[str]:
        """Return the command that evaluates a model, without the path of its output.

        Raises:
            InputError: The model is adapters alone, and lm-eval's model is not ``hf``.
        """
        where = f"pretrained={model.folder}"
        if model.only_adapters:
            if self.model != "hf":
                raise InputError(
                    f"--model={self.model} cannot load {model.folder}, which holds adapters alone. "
                    "Use --model hf, or export with callbacks.hf_exporter.merge_adapters: true."
                )
            where = f"pretrained={start},peft={model.folder},tokenizer={model.folder}"
        given = ",".join(filter(None, [where, self.model_args]))
        return [
            self.program, "--model", self.model, "--model_args", given,
            "--tasks", ",".join(self.tasks), *self.further,
        ]  # fmt: skip

    def own_tasks(self) -> list[Path]:
        """Return the files of tasks that are not lm-eval's.

        They are named by a path, or lie in a folder that ``--include_path`` adds. Data that a task
        reads from elsewhere is not seen.
        """
        parser = argparse.ArgumentParser(add_help=False)
        parser.add_argument("--include_path", action="append", default=[])
        added = parser.parse_known_args(self.further)[0].include_path
        places = [Path(place) for given in (*self.tasks, *added) for place in given.split(":")]
        files = [file for place in places for file in (place, *place.rglob("*"))]
        return [file for file in files if file.is_file() and file.parent.name != "__pycache__"]


def written(files: Iterable[Path]) -> dict[str, int]:
    """Return when each file was written, in nanoseconds of its clock."""
    return {str(file): file.stat().st_mtime_ns for file in sorted(files) if file.is_file()}


def evaluate(
    command: Sequence[str], model: Export, made_of: Mapping[str, int], folder: Path
) -> Mapping[str, Any]:
    """Return lm-eval's output for a model: kept from the same command and files, or made now.

    Args:
        command: Of lm-eval, without the path of its output.
        model: What it evaluates.
        made_of: When the files of model and tasks were written.
        folder: Of the outputs that are kept.

    Raises:
        InputError: lm-eval is not there, or fails.
    """
    name, kept = model.name, folder / f"{model.name}.json"
    made_by = {"command": list(command), "written_ns": dict(made_of)}
    if kept.exists():
        earlier = json.loads(kept.read_text(encoding="utf-8"))
        if earlier["made_by"] == made_by:
            return earlier["output"]
    raw = folder / "raw" / name
    run = [*command, "--output_path", f"{raw}/results.json"]
    print(shlex.join(run), file=sys.stderr)
    try:
        done = subprocess.run(run, check=False)
    except FileNotFoundError as error:
        raise InputError(
            f"--lm-eval={command[0]} is not there. Install it (pip install 'lm-eval[hf]'), or give "
            "the path of the program."
        ) from error
    results = sorted(raw.glob("results_*.json"))  # lm-eval adds the time
    if done.returncode != 0 or not results:
        raise InputError(f"lm-eval failed on {name}, exit code {done.returncode}; see above.")
    output = json.loads(results[-1].read_text(encoding="utf-8"))
    kept.parent.mkdir(parents=True, exist_ok=True)  # an export's name may be a path
    half = kept.with_suffix(".half")
    half.write_text(json.dumps({"made_by": made_by, "output": output}), encoding="utf-8")
    half.replace(kept)
    return output


def figures(output: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, str]:
    """Return each metric with its standard error, by the title of its column.

    Args:
        output: What lm-eval wrote.
        tasks: Those asked for; of one that is a tag, and so has no figures itself, all its tasks.
    """
    results = output["results"]
    named = [task for task in tasks if task in results]
    better = output.get("higher_is_better", {})
    found = {}
    for task in named if len(named) == len(tasks) else results:
        for key, value in results[task].items():
            metric, _, chosen = key.partition(",")
            if not chosen or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = results[task].get(f"{metric}_stderr,{chosen}")
            direction = {True: " up", False: " down"}.get(better.get(task, {}).get(metric), "")
            filtered = "" if chosen == "none" else f" ({chosen})"
            within = f" ± {error:.3f}" if isinstance(error, int | float) else ""
            found[f"{task}\n{metric}{filtered}{direction}"] = f"{value:.3f}{within}"
    return found


def table(rows: Mapping[str, Mapping[str, str]]) -> Table:
    """Return the models' figures as a table, a row for each."""
    titles = list(dict.fromkeys(title for row in rows.values() for title in row))
    made = Table(title="lm-evaluation-harness: value ± standard error")
    made.add_column("model")
    for title in titles:
        made.add_column(title, justify="right")
    for name, row in rows.items():
        made.add_row(name, *[row.get(title, "-") for title in titles])
    return made


def compare(exports: Path, start: str, harness: Harness, folder: Path) -> Table:
    """Evaluate the start model and each export; return the table.

    Args:
        exports: Folder of a run's exports.
        start: The model that the run began with: a folder or a Hub name.
        harness: How lm-eval is called.
        folder: Of lm-eval's outputs.

    Raises:
        InputError: There are no exports, or lm-eval fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    models = [Export("start", Path(start)), *exports_in(exports)]
    commands = [harness.command(model, start) for model in models]  # refused before any is run
    tasks = harness.own_tasks()
    beneath = list(Path(start).glob("*"))
    rows = {}
    for model, command in zip(models, commands, strict=True):
        weights = [*model.folder.glob("*"), *(beneath if model.only_adapters else [])]
        output = evaluate(command, model, written([*weights, *tasks]), folder)
        rows[model.name] = figures(output, harness.tasks)
    return table(rows)


def main(arguments: Sequence[str]) -> None:
    """Read the command line, evaluate, and print the table."""
    split = list(arguments).index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("exports", type=Path, help="folder of a run's exports")
    parser.add_argument("--start", required=True, help="model that the run began with")
    parser.add_argument("--tasks", required=True, nargs="+", help="tasks of lm-eval")
    parser.add_argument("--model", default="hf", help="lm-eval's kind of model: hf, vllm, ...")
    parser.add_argument("--model-args", default="", help="key=value,... of it, e.g. dtype=bfloat16")
    parser.add_argument("--lm-eval", default="lm_eval", help="the program")
    parser.add_argument(
        "--out", type=Path, help="folder of the outputs; default: EXPORTS/../lm-eval"
    )
    given = parser.parse_args(arguments[:split])
    harness = Harness(
        given.lm_eval, given.model, given.model_args, given.tasks, arguments[split + 1 :]
    )
    folder = given.out or given.exports.parent / "lm-eval"
    try:
        Console(width=max(Console().width, 120)).print(
            compare(given.exports, given.start, harness, folder)
        )
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
