"""Arms x seeds in a world, resumable: ``python -m examples.evidence`` in the checkout's root.

    python -m examples.evidence run exact few demo --seeds 5      # on one core of a CPU
    python -m examples.evidence run gsm8k --model FOLDER --train ROWS.jsonl --held-out ROWS.jsonl
    python -m examples.evidence run style --tiny ...              # rehearses the program
    python -m examples.evidence report                            # table and picture

What is done is not run again, so the same command goes on where it was stopped. Results go to
``runs/evidence/results``; ``--results examples/evidence/results`` are ours, which docs/evidence.md
has the tables of. It says what the arms and the measures are.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from examples.evidence.arms import ARMS
from examples.evidence.real_world import SIZES, RealWorld
from examples.evidence.registry import small_worlds
from examples.evidence.report import print_report
from examples.evidence.runner import Runner
from examples.evidence.worlds import World

RESULTS = Path("runs/evidence/results")
_ROWS = {
    "rows": "that are trained on",
    "validation-rows": "that SFT stops early by",
    "test-rows": "that the models are measured on",
}


def main() -> int:
    """Read the command line; run arms, or print the table and draw the picture."""
    given = _arguments()
    if given.command == "report":
        print_report(given.results, given.picture or given.results / "evidence.svg")
        return 0
    ends_by = None if given.minutes is None else time.monotonic() + 60 * given.minutes
    problems: list[str] = []
    finished = 0
    for world in _worlds(given):
        path = given.results / f"{world.name}.jsonl"
        runner = Runner(world, given.folder, path, ends_by, given.keep_models)
        problems += runner.run(given.arms or list(ARMS), range(given.seeds))
        finished += runner.finished
        if runner.cut_off and not finished:
            problems.append(
                f"{runner.cut_off} takes longer than --minutes {given.minutes:g}, and begins anew "
                "each time. Give more."
            )
        if runner.out_of_time:
            print("evidence: the time is over; the same command goes on.", flush=True)
            break
    for problem in problems:
        print(f"evidence: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.evidence", description=(__doc__ or "").splitlines()[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run what is not in the results yet")
    run.add_argument("worlds", nargs="+", choices=[*(w.name for w in small_worlds()), *SIZES])
    run.add_argument("--arms", nargs="+", choices=list(ARMS), help="all, if not given")
    run.add_argument("--seeds", type=int, default=5, help="0 to this, exclusive")
    run.add_argument("--folder", type=Path, default=Path("runs/evidence"), help="working files")
    run.add_argument("--minutes", type=float, help="end an arm that would end later")
    run.add_argument("--keep-models", action="store_true", help="of seeds that are done")
    run.add_argument("--model", type=Path, help="with a real model: folder of SmolLM2-135M")
    run.add_argument("--train", type=Path, help="with a real model: GSM8K's rows as jsonl")
    run.add_argument("--held-out", type=Path, help="the same, held out")
    for name, what in _ROWS.items():
        run.add_argument(f"--{name}", type=int, help=f"with a real model: rows {what}")
    run.add_argument("--gpu", action="store_true", help="with a real model: bf16, larger batches")
    run.add_argument("--tiny", action="store_true", help="with a real model: a rehearsal on a CPU")
    report = commands.add_parser("report", help="print the tables, draw the picture")
    report.add_argument("--picture", type=Path, help="beside the results, if not given")
    for one in (run, report):
        one.add_argument(
            "--results", type=Path, default=RESULTS, help="folder of jsonl files: %(default)s"
        )
    given = parser.parse_args()
    if given.command == "run" and set(given.worlds) & SIZES.keys():
        for name in ("train", "held_out", *(() if given.tiny else ("model",))):
            path = getattr(given, name)
            if path is None or not path.exists():
                flag = f"--{name.replace('_', '-')}"
                parser.error(
                    f"{flag}={path} does not exist. The worlds {', '.join(SIZES)} need it."
                )
    return given


def _worlds(given: argparse.Namespace) -> list[World]:
    known = {world.name: world for world in small_worlds()}
    worlds = []
    for name in given.worlds:
        if name in known:
            worlds.append(known[name])
            continue
        sizes = dict(SIZES[name])
        if given.tiny:
            sizes |= {"num_rows": 16, "num_validation": 12, "num_test": 12}
        asked = (given.rows, given.validation_rows, given.test_rows)
        names = ("num_rows", "num_validation", "num_test")
        sizes |= {name: size for name, size in zip(names, asked, strict=True) if size}
        model = given.model or Path("none")
        worlds.append(
            RealWorld(
                name,
                model,
                given.train,
                given.held_out,
                gpu=given.gpu and not given.tiny,
                tiny=given.tiny,
                **sizes,
            )
        )
    return worlds


if __name__ == "__main__":
    sys.exit(main())
