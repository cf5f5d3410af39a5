"""Kill a tiny run again and again, run the same command again, and compare what it comes to.

    python tests/chaos --kills 30 --seed 1

A run is killed by SIGKILL at named moments (in generation, while a checkpoint is written, ...) and
at random ones, all drawn from the printed seed, and started again until it exits 0. Then its
weights, its optimizer, its store, its losses and its history must be, bit for bit, those of the run
that was not killed; no training may be lost but what follows the last save, and no generation but
a unit per kill and rank.

Each run is a child forked from this process, which has imported everything but started neither
threads nor a process group: thirty kills cost thirty starts, not thirty imports. With
``--ranks 2`` the children are the ranks of one run, one of them is killed, and this process does
what a launcher does: it ends the other. With ``--ranks 2,1`` a run starts on two ranks, goes on
with one, then again with two, and so on; results are then compared to rounding. With
``--launcher`` runs are started by ``composer -n``, as by a user.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:1] = [str(ROOT / "tests"), str(ROOT), str(ROOT / "kernels")]
for _name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "TRITON_INTERPRET"):
    os.environ.setdefault(_name, "1")
os.environ |= {"WANDB_MODE": "offline", "TOKENIZERS_PARALLELISM": "false", "FSDP_VERSION": "2"}
os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

from chaos.kill_points import MOMENTS, RANDOM, Kill  # noqa: E402
from chaos.runs import Chaos, import_everything  # noqa: E402

ANY_RANK = ("generate", "score", "unit half written", "unit renamed", "training")


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


def kills_of(given: argparse.Namespace, seed: int, seconds: float) -> list[Kill]:
    """Return the kills that the arguments name, or else draw them."""
    if given.at:
        pairs = [text.rpartition(":") for text in given.at.split(",")]
        return [Kill(moment.strip(), int(nth)) for moment, _, nth in pairs]
    moments = [m.strip() for m in given.moments.split(",") if m.strip()] or list(MOMENTS)
    return draw(given.kills, seed, 0.0 if given.named else seconds, max(given.ranks), moments)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=None, help="of the kills; drawn if not given")
    parser.add_argument("--at", default="", help="the kills themselves: 'training:8,generate:2'")
    parser.add_argument("--moments", default="", help="named moments, comma-separated; all")
    parser.add_argument("--named", action="store_true", help="no kills at random times")
    parser.add_argument(
        "--ranks",
        type=lambda text: [int(number) for number in text.split(",")],
        default=[1],
        help="of a run; of its starts in turn: 2,1",
    )
    parser.add_argument("--checkpoints", choices=("full", "sharded", "unwrapped"), default="full")
    parser.add_argument("--game", choices=("spin", "ditto"), default="spin")
    parser.add_argument("--launcher", action="store_true", help="start by `composer -n`")
    parser.add_argument("--folder", type=Path, default=None, help="kept; else a temporary one")
    parser.add_argument("--most-seconds", type=float, default=3600)
    return parser.parse_args()


def main() -> int:
    given = arguments()
    seed = random.SystemRandom().randrange(10**6) if given.seed is None else given.seed
    folder = given.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["HF_DATASETS_CACHE"] = str(folder / "datasets")
    print(f"chaos: {' '.join(sys.argv[1:])}; seed {seed}; {folder}", flush=True)
    started = time.monotonic()
    import_everything()
    chaos = Chaos(folder, given.ranks, given.checkpoints, given.launcher, given.game)
    chaos.prepare()
    print(f"imported; the run that is not killed took {chaos.seconds:.1f} s", flush=True)
    kills = kills_of(given, seed, chaos.seconds)
    try:
        killed = chaos.endure(kills, given.most_seconds)
    except AssertionError as error:
        print(f"FAILED (seed {seed}; everything is in {folder}): {error}", flush=True)
        return 1
    seconds = time.monotonic() - started
    print(f"{killed} kills, all runs the same as the one not killed; seed {seed}, {seconds:.0f} s")
    if given.folder is None:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if killed >= len(kills) else 1


if __name__ == "__main__":
    sys.exit(main())
