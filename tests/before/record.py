"""Record what the package does, to a folder: see README.md.

    python tests/before/record.py [FOLDER]

Imports nothing of the package but what is public: top-level names, ``spin_composer.cli`` and
``spin_composer.train``.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RECORD = HERE / "record"
COMMANDS = (
    "", "train", "play", "report", "status", "demo", "data", "data convert", "data check",
)  # fmt: skip
_UNSET = (
    "FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "TERMINAL_WIDTH", "WORLD_SIZE", "RANK",
    "LOCAL_RANK", "NODE_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "RUN_NAME",
    "PYTHONWARNINGS",
)  # fmt: skip
Lines = dict[str, list[str]]


def environment(scratch: Path) -> dict[str, str]:
    """Return the environment of the process that records: one width, one thread, offline."""
    kept = {name: value for name, value in os.environ.items() if name not in _UNSET}
    root = str(HERE.parents[1])
    path = [root, f"{root}/kernels", *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **kept, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1", "WANDB_MODE": "offline", "TOKENIZERS_PARALLELISM": "false",
        "HF_DATASETS_CACHE": str(scratch / "cache"), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "PYTHONPATH": os.pathsep.join(path), "PYTHONHASHSEED": "0", "PYTHONUTF8": "1",
        "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C.UTF-8",
    }  # fmt: skip


def make(folder: Path) -> None:
    """Record to ``folder`` in a process of its own.

    Raises:
        RuntimeError: The process failed; with the end of what it said.
    """
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name).resolve()
        command = [sys.executable, str(HERE / "record.py"), "--here", str(folder.resolve())]
        (scratch / "work").mkdir()
        done = subprocess.run(
            command, cwd=scratch / "work", env=environment(scratch), capture_output=True,
            text=True, errors="replace", check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stderr[-4000:]}")


def record_here(folder: Path) -> None:
    """Record to ``folder``, working in the working directory."""
    import bad_inputs
    import inputs
    import public_surface
    import tiny_runs

    folder.mkdir(parents=True, exist_ok=True)
    inputs.prepare()
    write_json(folder / "help.json", {f"spin-composer {c} --help": cli(f"{c} --help")
                                      for c in COMMANDS} | without_arguments())  # fmt: skip
    write_json(folder / "settings.json", {
        name: train(inputs.write_yaml(prepared(Path("bad.yaml"), name), changes))
        for name, changes in bad_inputs.SETTINGS.items()
    })  # fmt: skip
    write_json(folder / "rows.json", {
        name: cli("data check bad.jsonl --tokenizer model max_seq_len=80", _of_bad_row)
        for name, row in bad_inputs.ROWS.items() if write_rows("bad.jsonl", GOOD, row)
    })  # fmt: skip
    prepare_arguments()
    write_json(folder / "arguments.json", {
        name: cli(command) for name, command in bad_inputs.ARGUMENTS.items()
    })  # fmt: skip
    write_json(folder / "surface.json", public_surface.lines())
    for name, changes in {"full": {}, "lora": inputs.LORA}.items():
        with inside(name):
            tiny_runs.record_run(folder / f"run_{name}", changes, train, cli)
    stores = {}
    for name, changes in bad_inputs.STORES.items():
        with inside(f"store {len(stores)}"):
            stores[name] = of_store(Path("../full"), name, changes)
    write_json(folder / "stores.json", stores)
    (folder / "probe.txt").write_text(inputs.probe() + "\n")


GOOD = {"prompt": "red green", "response": " blue"}


def write_rows(name: str, *rows: object) -> bool:
    """Write a jsonl of rows."""
    return bool(Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows)))


def prepared(path: Path, case: str) -> Path:
    """Make what a case of a bad setting needs beside its YAML; return the YAML's path."""
    if "not finite" in case:
        from safetensors.torch import load_file, save_file

        shutil.copytree("model", "not-finite")
        weights = load_file("not-finite/model.safetensors")
        weights["model.norm.weight"][3] = float("nan")
        save_file(weights, "not-finite/model.safetensors", {"format": "pt"})
    for folder in ("self-play", "checkpoints"):
        shutil.rmtree(folder, ignore_errors=True)
    return path


def prepare_arguments() -> None:
    """Make the files that the cases of bad arguments name."""
    import inputs

    inputs.write_yaml(Path("run.yaml"), {})
    Path("list.yaml").write_text("- a\n- b\n")
    Path("broken.yaml").write_text("a: [\n")
    Path("no-data.yaml").write_text("train_loader: {name: spin}\n")
    write_rows("good.jsonl", GOOD, {"prompt": "one", "response": " two three"})
    write_rows("bad.jsonl", GOOD, {"prompt": "one", "response": ""})
    for name, file in {"books": "iterations.json", "manifest": "iter-000/manifest.json"}.items():
        path = Path(f"damaged-{name}", file)
        path.parent.mkdir(parents=True)
        path.write_text('{"num_un')


class inside:
    """A folder to work in for a while, with the model and the rows in it."""

    def __init__(self, name: str):
        self.folder, self.before = Path(name), Path.cwd()

    def __enter__(self) -> None:
        self.folder.mkdir()
        for name in ("model", "rows.jsonl", "heldout.jsonl", "others.jsonl"):
            (self.folder / name).symlink_to(self.before / name)
        os.chdir(self.folder)

    def __exit__(self, *_: object) -> None:
        os.chdir(self.before)


def of_store(finished: Path, name: str, changes: dict[str, Any]) -> list[str]:
    """Train on a copy of a finished run's store; without its checkpoints, but where it says so."""
    import inputs

    shutil.copytree(finished / "self-play", "self-play")
    unit = Path("self-play/iter-000/units/unit-00001")
    if "save_folder" in changes:
        shutil.copytree(finished / "checkpoints", "checkpoints", symlinks=True)
    elif "flipped" in name:
        (shard,) = unit.glob("shard.*")
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
    elif "report" in name:
        (unit / "unit.json").unlink()
        (unit / "index.json").unlink()
    elif "manifest" in name:
        Path("self-play/iter-000/manifest.json").unlink()
    return train(inputs.write_yaml(Path("run.yaml"), changes))


# --- commands ---------------------------------------------------------------------------------


def _is_lasting(line: str) -> bool:
    return "Writing <tmp>" not in line  # a progress bar, with a clock


def _of_bad_row(line: str) -> bool:
    return line.startswith("error: ") or "dropped" in line


def cli(arguments: str, keep: Callable[[str], bool] = _is_lasting) -> list[str]:
    """Give ``spin-composer`` arguments; return what it says, and its exit code."""
    from spin_composer.cli import main

    sys.argv = ["spin-composer", *shlex.split(arguments)]
    return spoken(main, keep)


def train(path: str) -> list[str]:
    """Train a YAML; return what the command says itself, and its exit code."""
    from spin_composer.train import main

    return spoken(lambda: main([path]), lambda line: line.startswith(("error: ", f"{path}: ")))


def without_arguments() -> Lines:
    """Give both commands without arguments."""
    done = subprocess.run(
        [sys.executable, "-m", "spin_composer.train"], capture_output=True, text=True, check=False
    )
    said = [*done.stdout.splitlines(), *done.stderr.splitlines()]
    return {
        "python -m spin_composer.train": [*said, f"exit code {done.returncode}"],
        "spin-composer": cli(""),
    }


def spoken(command: Callable[[], object], keep: Callable[[str], bool]) -> list[str]:
    """Return the lines that a command writes, and its exit code (1: a traceback)."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = command()
        except SystemExit as done:
            code = done.code
        except Exception as error:  # what the command lets through: a defect, or meant to be seen
            code = f"1, {type(error).__name__}"
    said = (out.getvalue() + err.getvalue()).replace(str(Path.cwd()), "<tmp>")
    said = re.sub(r"/\.writable-[0-9a-f]+", "/.writable-<random>", said)
    lines = [line.rstrip() for line in said.splitlines()]
    return [*filter(keep, lines), f"exit code {code or 0}"]


def write_json(path: Path, value: object) -> None:
    """Write JSON that git shows line by line."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--here"]:
        record_here(Path(sys.argv[2]))
    else:
        make(Path(sys.argv[1]) if sys.argv[1:] else RECORD)
