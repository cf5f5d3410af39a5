"""Kill a tiny run again and again, give the same command again, and compare what it comes to.

    python tests/chaos.py --kills 30 --seed 1

A run with autoresume is killed by SIGKILL at named moments (in generation, while a checkpoint is
written, ...) and at random ones, all drawn from the printed seed, and started again until it
exits 0. Then its weights, its optimizer, its store and its books must be, bit for bit, those of
the run that was not killed; no training may be lost but what follows the last save, and no
generation but a unit per kill and rank.

Each run is a child forked from this process, which has imported everything but started neither
threads nor a process group: thirty kills cost thirty starts, not thirty imports. With
``--ranks 2`` the children are the ranks of one run, one of them is killed, and this process does
what a launcher does: it ends the other.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT), str(ROOT / "kernels")]
for _name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "TRITON_INTERPRET"):
    os.environ.setdefault(_name, "1")
os.environ |= {"WANDB_MODE": "offline", "TOKENIZERS_PARALLELISM": "false", "FSDP_VERSION": "2"}
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

from fixtures.kill_points import MOMENTS, RANDOM, Kill, KillPoints  # noqa: E402

SAVE_INTERVAL = 5
ATTEMPT_SECONDS = 150
TOO_LONG = 124
JOURNAL = "journal.txt"
ANY_RANK = ("generate", "score", "unit half written", "unit renamed", "training")


def import_everything() -> None:
    """Import what a run imports, so that its children need not."""
    import llmfoundry.command_utils
    import transformers.models.llama.modeling_llama

    import spin_composer.algorithm
    import spin_composer.data.loader
    import spin_composer.model

    assert llmfoundry
    assert transformers
    assert spin_composer


class Chaos:
    """Runs that are killed, and the one that was not.

    Args:
        folder: Of everything that is written.
        ranks: Processes of a run.
        sharded: Save sharded checkpoints (two ranks, FSDP2).
    """

    def __init__(self, folder: Path, ranks: int = 1, sharded: bool = False):
        self.folder, self.ranks, self.sharded = folder, ranks, sharded
        self.seconds = 0.0

    def prepare(self) -> None:
        """Save a model, and make the run that is not killed."""
        from fixtures.yaml_run import save_model

        in_child(lambda: save_model(self.folder), self.folder / "model.txt")
        started = time.monotonic()
        code = self.attempt(self.new_run("whole"), None)
        self.seconds = time.monotonic() - started
        if code:
            raise SystemExit(f"the run that is not killed exits {code}: {self.folder / 'whole'}")

    def new_run(self, name: str) -> Path:
        """Make a run's folder with its YAML."""
        from fixtures.yaml_run import tiny_config, write_config

        run = self.folder / name
        config = tiny_config(run, self.folder / "model", autoresume=True)
        config["save_interval"] = f"{SAVE_INTERVAL}ba"
        config["fsdp_config"]["state_dict_type"] = "sharded" if self.sharded else "full"
        write_config(config, run / "run.yaml")
        return run

    def attempt(self, run: Path, kill: Kill | None) -> int:
        """Give the run's command once; return its exit code, -9 if it was killed."""
        note(run, "start")
        port = free_port()
        pids = [fork(lambda r=rank: self._rank(run, r, port, kill)) for rank in range(self.ranks)]
        started, codes = time.monotonic(), {}
        while len(codes) < len(pids):
            time.sleep(0.01)
            seconds = time.monotonic() - started
            if kill is not None and kill.moment == RANDOM and seconds > kill.delay:
                kill_group(pids[kill.rank])
            if seconds > ATTEMPT_SECONDS:
                codes[0] = TOO_LONG
            if any(codes.values()):
                time.sleep(0.3)
                for pid in pids:  # as a launcher does when a rank has died
                    kill_group(pid)
            for pid in set(pids) - set(codes):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
        return next((code for code in codes.values() if code), 0)

    def _rank(self, run: Path, rank: int, port: int, kill: Kill | None) -> int:
        """Be a rank of the run, in a process of its own."""
        redirect(run / f"output-{rank}.txt")
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
        os.environ |= {"WORLD_SIZE": str(self.ranks), "LOCAL_WORLD_SIZE": str(self.ranks)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.chdir(run)
        mine = kill if kill is not None and kill.rank == rank else None
        KillPoints(mine, run / JOURNAL, whole_group=self.ranks == 1).install()
        from spin_composer.train import main

        return main([str(run / "run.yaml")])

    def endure(self, kills: list[Kill], most_seconds: float) -> int:
        """Kill runs until no kill is left; return how many were killed.

        Raises:
            AssertionError: If a run dies of anything else, or differs from the one not killed.
        """
        pending, killed, number = list(kills), 0, 0
        started = time.monotonic()
        while pending and time.monotonic() - started < most_seconds:
            number += 1
            run = self.new_run(f"run-{number}")
            skipped: list[Kill] = []
            before = killed
            while True:
                kill = pending.pop(0) if pending else None
                code = self.attempt(run, kill)
                if code == -signal.SIGKILL:
                    killed += 1
                    print(f"{run.name}: killed ({kill}); {progress(run)}", flush=True)
                    continue
                if code:
                    raise AssertionError(f"{run} exits {code} after {killed} kills:\n{tail(run)}")
                if kill is not None:  # its moment lies behind, or comes no more
                    skipped.append(kill)
                break
            self.compare(run, killed - before)
            print(f"{run.name}: finished, the same after {killed - before} kills", flush=True)
            if killed == before and skipped and not pending:
                break  # a moment that this kind of run does not have
            pending += skipped
        return killed

    def compare(self, run: Path, kills: int) -> None:
        """Check that a run came to what the run that was not killed came to."""
        whole = self.folder / "whole"
        assert self.attempt(run, None) == 0, f"{run}: finished, and started again it fails"
        for name in ("ep2", "ep4"):
            wanted, found = (
                (r / f"checkpoints/huggingface/{name}/model.safetensors").read_bytes()
                for r in (whole, run)
            )
            assert wanted == found, f"{run}: other weights after {name}"
        if not self.sharded:
            same_values(*(last_state(r) for r in (whole, run)), "state")
        assert store_content(run) == store_content(whole), f"{run}: another store"
        assert books_content(run) == books_content(whole), f"{run}: other books"
        lines = (run / JOURNAL).read_text().splitlines()
        batches = 0
        for earlier, line in zip(["", *lines], lines, strict=False):
            number = int(line.split()[1]) if line.startswith("batch") else 0
            if number and not earlier.startswith("batch"):
                lost = batches - number + 1
                assert lost <= SAVE_INTERVAL, f"{run}: {lost} batches were trained again"
            batches = max(batches, number)
        units = sum(line == "generated" for line in lines)
        wanted = sum(line == "generated" for line in (whole / JOURNAL).read_text().splitlines())
        most = wanted + kills * self.ranks
        assert units <= most, f"{run}: {units} units generated, of {wanted}, with {kills} kills"


def draw(count: int, seed: int, seconds: float, ranks: int, moments: list[str]) -> list[Kill]:
    """Draw the kills of a run of the program: every named moment in turn, and random times.

    Args:
        count: How many.
        seed: Of all that is drawn.
        seconds: What a whole run takes; 0 for no kills at random times.
        ranks: Of a run.
        moments: The named ones to use.
    """
    rng = random.Random(seed)
    named = list(moments)
    rng.shuffle(named)
    kills = []
    for i in range(count):
        rank = rng.randrange(ranks)
        if seconds and i % 3 == 2:
            kills.append(Kill(RANDOM, delay=rng.uniform(0.1, 0.85 * seconds), rank=rank))
        else:
            moment = named[(i - i // 3 if seconds else i) % len(named)]
            nth = rng.randint(1, max(1, min(6, MOMENTS[moment] // 2)))
            kills.append(Kill(moment, nth, rank=rank if moment in ANY_RANK else 0))
    return kills


# --- what runs leave ------------------------------------------------------------------------


def last_state(run: Path) -> Any:
    """Return model and optimizers of the run's last checkpoint."""
    import torch

    latest = run / "checkpoints/latest-rank0.pt"
    state = torch.load(latest, map_location="cpu", weights_only=False)["state"]
    return {"model": state["model"], "optimizers": state["optimizers"]}


def same_values(wanted: Any, found: Any, at: str) -> None:
    """Check that two trees of tensors and numbers are bitwise the same."""
    import torch

    if isinstance(wanted, dict):
        assert wanted.keys() == found.keys(), at
        for key in wanted:
            same_values(wanted[key], found[key], f"{at}.{key}")
    elif isinstance(wanted, (list, tuple)):
        for i, (a, b) in enumerate(zip(wanted, found, strict=True)):
            same_values(a, b, f"{at}[{i}]")
    elif isinstance(wanted, torch.Tensor):
        assert torch.equal(wanted, found), f"{at} differs"
    else:
        assert wanted == found, f"{at} differs"


def store_content(run: Path) -> dict[str, Any]:
    """Return manifests and the hashes of all units' files."""
    store = run / "self-play"
    content: dict[str, Any] = {}
    for path in sorted(store.glob("iter-*/manifest.json")):
        content[str(path.relative_to(store))] = json.loads(path.read_text())
    for path in sorted(store.glob("iter-*/units/unit-*/unit.json")):
        content[str(path.relative_to(store))] = json.loads(path.read_text())["files"]
    return content


def books_content(run: Path) -> list[dict[str, float]]:
    """Return the books without what is measured by the clock."""
    records = json.loads((run / "self-play/iterations.json").read_text())["iterations"]
    clock = ("second", "share")
    return [
        {name: value for name, value in record.items() if not any(c in name for c in clock)}
        for record in records
    ]


def progress(run: Path) -> str:
    """Return how far a run has come."""
    lines = (run / JOURNAL).read_text().splitlines()
    batch = max((int(x.split()[1]) for x in lines if x.startswith("batch")), default=0)
    units = len(list((run / "self-play").glob("iter-*/units/unit-*/unit.json")))
    return f"{units} units, batch {batch}"


def tail(run: Path) -> str:
    """Return the end of what a run's ranks printed."""
    texts = [path.read_text(errors="replace")[-3000:] for path in sorted(run.glob("output-*"))]
    return "\n".join(texts)


def note(run: Path, line: str) -> None:
    with open(run / JOURNAL, "a") as file:
        file.write(f"{line}\n")


# --- processes ------------------------------------------------------------------------------


def fork(body: Callable[[], int]) -> int:
    """Run ``body`` in a child with a process group of its own; return its process id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        code = body()
        atexit._run_exitfuncs()  # the child's own, as at any process's end
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def in_child(body: Callable[[], Any], output: Path) -> None:
    """Run ``body`` in a child, so that no thread starts in this process."""

    def run() -> int:
        redirect(output)
        body()
        return 0

    _, status = os.waitpid(fork(run), 0)
    if status:
        raise SystemExit(f"failed: {output.read_text()}")


def redirect(path: Path) -> None:
    """Send this process's output to the end of a file."""
    out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)


def kill_group(pid: int) -> None:
    """SIGKILL a child and all that it started; the child may be gone already."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=None, help="of the kills; drawn if not given")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--sharded", action="store_true", help="sharded checkpoints (two ranks)")
    parser.add_argument("--moments", default="", help="named moments, comma-separated; all")
    parser.add_argument("--named", action="store_true", help="no kills at random times")
    parser.add_argument("--folder", type=Path, default=None, help="kept; else a temporary one")
    parser.add_argument("--most-seconds", type=float, default=3600)
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    moments = [m.strip() for m in given.moments.split(",") if m.strip()] or list(MOMENTS)
    folder = given.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["HF_DATASETS_CACHE"] = str(folder / "datasets")
    print(f"chaos: {given.kills} kills, seed {seed}, {given.ranks} rank(s), {folder}", flush=True)
    started = time.monotonic()
    import_everything()
    chaos = Chaos(folder, given.ranks, given.sharded)
    chaos.prepare()
    print(f"imported; the run that is not killed took {chaos.seconds:.1f} s", flush=True)
    seconds = 0.0 if given.named else chaos.seconds
    kills = draw(given.kills, seed, seconds, given.ranks, moments)
    try:
        killed = chaos.endure(kills, given.most_seconds)
    except AssertionError as error:
        print(f"FAILED (seed {seed}; everything is in {folder}): {error}", flush=True)
        return 1
    seconds = time.monotonic() - started
    print(f"{killed} kills, all runs the same as the one not killed; seed {seed}, {seconds:.0f} s")
    if given.folder is None:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if killed >= given.kills else 1


if __name__ == "__main__":
    sys.exit(main())
