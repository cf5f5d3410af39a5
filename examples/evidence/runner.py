"""Arms x seeds, one after another; what is done is not run again."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from examples.evidence.arms import ARMS, START
from examples.evidence.results import Result, append_result, read_results
from examples.evidence.worlds import World

MEASURED = "measured.json"


@dataclass
class Runner:
    """Runs a world's arms and writes their results."""

    world: World
    folder: Path
    """Working files: models, stores; may be deleted once the results are written."""
    results: Path
    """jsonl."""
    ends_by: float | None = None
    """Moment of ``time.monotonic`` by which the last arm must have ended; None: no limit."""
    keep_models: bool = False
    out_of_time: bool = False
    """The last run left arms over for want of time."""
    cut_off: str = ""
    """The arm that was under way then; it begins anew."""
    finished: int = 0
    """Arms that were trained and measured."""
    _longest: float = 0.0
    """Seconds of the longest arm so far, which the next one may take too."""

    def run(self, arms: Sequence[str], seeds: Sequence[int]) -> list[str]:
        """Run what is not in the results; return what failed, a line for each.

        Ends the program if another run works in the world: each removes the folders of done seeds.

        Args:
            arms: Names, in any order; those that they build on are added.
            seeds: One after another, so that a run that is stopped has whole seeds.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.folder / f"{self.world.name}.lock", timeout=0)
        try:
            with lock:
                return self._run(arms, seeds)
        except Timeout:
            sys.exit(
                f"evidence: another run works on {self.world.name} in {self.folder}. Wait for it, "
                "or name another --folder and --results."
            )

    def _run(self, arms: Sequence[str], seeds: Sequence[int]) -> list[str]:
        fingerprint = self.fingerprint()
        results = self._done(fingerprint)
        done = {one.key for one in results}
        starts = {one.seed: one.start for one in results}
        problems: list[str] = []
        for seed in seeds:
            missing = [arm for arm in with_needed(arms) if (arm, seed) not in done]
            for arm in self._with_models(missing, seed):
                began = time.monotonic()
                if self.ends_by is not None and began + self._longest > self.ends_by:
                    self.out_of_time = True
                    return problems
                label = f"{self.world.name}, seed {seed}, {arm}"
                start = starts.get(seed)
                ended = self._one(seed, arm, fingerprint, start, again=arm not in missing)
                if self.out_of_time:
                    self.cut_off = label
                    return problems
                self.finished += ended
                if not ended:
                    problems.append(f"{label} failed")
                seconds = time.monotonic() - began
                self._longest = max(self._longest, seconds)
                print(f"{label}: {seconds:.0f} s", flush=True)
            if missing and not problems and not self.keep_models:
                shutil.rmtree(self._of_seed(seed))
        return problems

    def _with_models(self, missing: Sequence[str], seed: int) -> list[str]:
        """Return arms, and before them those that they build on whose models were deleted."""
        here = self._of_seed(seed)
        return [
            arm
            for arm in (with_needed(missing) if missing else ())
            if arm in missing or (arm != START and not (here / arm / MEASURED).exists())
        ]

    def _one(self, seed: int, arm: str, fingerprint: str, start: str | None, again: bool) -> bool:
        """Run an arm in a fork of a process that has imported everything; return whether it did.

        An arm that is run again, for its model, has its result already.
        """
        folder = self._of_seed(seed)
        if not (folder / arm / MEASURED).exists():
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["examples.evidence.job"])
            process = context.Process(
                target=_run, args=(self.world, arm, seed, folder, fingerprint, start)
            )
            process.start()
            process.join(None if self.ends_by is None else self.ends_by - time.monotonic())
            if process.is_alive():
                self.out_of_time = True
                process.kill()
                process.join()
            if process.exitcode:
                return False
        found = json.loads((folder / arm / MEASURED).read_text(encoding="utf-8"))
        if not again:
            append_result(self.results, Result(**found))
        return True

    def _of_seed(self, seed: int) -> Path:
        return self.folder / self.world.name / f"seed-{seed}"

    def _done(self, fingerprint: str) -> list[Result]:
        results = read_results(self.results)
        others = {one.fingerprint for one in results} - {fingerprint}
        if others:
            sys.exit(
                f"{self.results} holds results of other settings of the world {self.world.name}. "
                "Name another --results, or delete them."
            )
        return results

    def fingerprint(self) -> str:
        """Return a hash of the world and the settings of its game."""
        own = vars(self.world).items()
        sizes = {name: value for name, value in own if not isinstance(value, Path)}
        text = json.dumps([sizes, self.world.config()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _run(*args: Any) -> None:
    from examples.evidence import job

    job.run(*args)


def with_needed(arms: Sequence[str]) -> list[str]:
    """Return the start, and arms with those that they build on, in an order to run them in."""
    wanted = {START, *arms}
    for name in reversed([*ARMS]):
        if name in wanted:
            wanted |= set(ARMS[name].needs)
    return [name for name in (START, *ARMS) if name in wanted]
