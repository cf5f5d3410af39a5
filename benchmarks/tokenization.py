"""Rows per second of tokenization: by one process or several, as before, and of kept rows.

    python benchmarks/tokenization.py --tokenizer FOLDER --data CHATS.jsonl --out RESULT.json

The turns of the given chats are dealt to new chats of six turns, so that their texts are real.
Every way runs in each round, one after another; medians are printed, and the ids are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from spin_composer.data.examples import ExampleDataset
from spin_composer.data.load import load_examples
from spin_composer.data.sources import read_rows
from spin_composer.data.tokenization import build_examples
from spin_composer.settings.dataset import DatasetConfig, read_config

TURNS = 6
BEFORE = "one process, tokenizer called for prompt and row (before)"
ONE = "one process"
KEPT = "kept rows, opened and verified"


def six_turn_chats(chats: Path, target: Path, count: int, seed: int) -> None:
    """Write chats of six turns, the texts of given ones dealt anew."""
    turns: dict[str, list[str]] = {"user": [], "assistant": []}
    for line in chats.read_text(encoding="utf-8").splitlines():
        for turn in json.loads(line)["messages"]:
            if turn["role"] in turns:
                turns[turn["role"]].append(turn["content"])
    draw = random.Random(seed)
    with target.open("w", encoding="utf-8") as file:
        for _ in range(count):
            roles = ("user", "assistant") * (TURNS // 2)
            row = [{"role": role, "content": draw.choice(turns[role])} for role in roles]
            file.write(json.dumps({"messages": row}) + "\n")


def called_as_before(tokenizer: Any) -> Any:
    """Return a copy whose class has a call of its own, which is used for each text then."""

    def encode(self: Any, *given: Any, **more: Any) -> Any:
        return type(tokenizer)._encode_plus(self, *given, **more)

    copy = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    copy.__class__ = type("CalledAsBefore", (type(copy),), {"_encode_plus": encode})
    return copy


def measured(make: Callable[[], ExampleDataset]) -> tuple[dict[str, float], ExampleDataset]:
    """Return seconds of wall and CPU, processes of its own included, and what was made."""
    cpu, start = sum(os.times()[:4]), time.perf_counter()
    made = make()
    seconds = time.perf_counter() - start
    return {"wall_s": seconds, "cpu_s": sum(os.times()[:4]) - cpu}, made


def ways(
    config: DatasetConfig, tokenizer: Any, processes: int
) -> dict[str, Callable[[], ExampleDataset]]:
    """Return the ways that are compared, by name."""
    one, several = replace(config, num_proc=1), replace(config, num_proc=processes)
    before = called_as_before(tokenizer)
    return {
        BEFORE: lambda: build_examples(read_rows(one), before, one),
        ONE: lambda: build_examples(read_rows(one), tokenizer, one),
        f"{processes} processes": lambda: build_examples(read_rows(several), tokenizer, several),
        KEPT: lambda: load_examples(several, tokenizer),
    }


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description="Rows per second of tokenization.")
    parser.add_argument("--tokenizer", required=True, help="a folder or Hugging Face name")
    parser.add_argument("--data", type=Path, required=True, help="jsonl of chats (messages)")
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(given.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.jsonl"
        six_turn_chats(given.data, rows, given.rows, seed=17)
        config = read_config(
            {"max_seq_len": 8192, "hf_name": str(rows), "cache_dir": f"{folder}/cache"}
        )
        times: dict[str, list[dict[str, float]]] = {}
        fingerprints, tokens = set(), 0
        load_examples(config, tokenizer)  # keeps the rows, and warms the file cache
        for _ in range(given.rounds):
            for name, make in ways(config, tokenizer, given.processes).items():
                time_of, made = measured(make)
                times.setdefault(name, []).append(time_of)
                fingerprints.add(made.fingerprint)
                tokens = int(made.lengths.sum())
    assert len(fingerprints) == 1, "the ways differ"
    result = {
        "command": " ".join(["python benchmarks/tokenization.py", *sys.argv[1:]]),
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("tokenizers", "transformers", "numpy")}
        | {"python": platform.python_version()},
        "rows": given.rows,
        "turns": TURNS,
        "tokens_per_row": round(tokens / given.rows, 1),
        "ways": {
            name: {
                "rows_per_s": round(given.rows / statistics.median(t["wall_s"] for t in all_times)),
                "rows_per_cpu_s": round(
                    given.rows / statistics.median(t["cpu_s"] for t in all_times)
                ),
            }
            for name, all_times in times.items()
        },
    }
    print(json.dumps(result, indent=2))
    if given.out is not None:
        given.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
