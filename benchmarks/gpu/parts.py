"""The parts of :mod:`product`: which processes each runs, and what it asserts of the results."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "kernels"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from base import FIGURES as BASE_FIGURES
from distribution import FIGURES as DISTRIBUTION_FIGURES
from game import BETA, FIGURES, PLAY, TRAINING, Spec

from tests.chaos.compare import compare

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

LOG_TWO = math.log(2)
GAP = {"fp32": 1e-5, "amp_bf16": 5e-3}
"""Most nats per token by which policy and opponent may differ at an iteration's first batch."""
CURVE = {"fp32": 1e-4, "amp_bf16": 5e-2}
"""Most nats between the losses of a sharded run and those of one that is not, at any batch.

fp32: rounding of sums in another order, which AdamW's first steps turn into whole steps. bf16: FSDP
casts weights once per layer where autocast casts them per product; GAP's 5e-3 nats for each of some
twenty tokens, times beta."""
NLL = {"fp32": 1e-4, "amp_bf16": 1e-3}
"""Most nats per token between evaluation and a loop over rows: Composer's fp32 is TF32 on CUDA."""
LOGITS = 1e-5
"""Of the largest logit: the difference that an export's may have where another sum made them."""


class PartFailure(Exception):
    """What a part asserts does not hold; ``figures`` are what it has nevertheless."""

    def __init__(self, reason: str, figures: Mapping[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.figures = dict(figures or {})


class Bench:
    """Folder, sizes and time of the parts.

    Args:
        folder: Of everything that is written.
        tiny: On the CPU.
        model: Local folder of the model to begin with; None: random weights.
    """

    def __init__(self, folder: Path, tiny: bool, model: Path | None) -> None:
        self.folder, self.tiny, self.model = folder, tiny, model
        self.end = math.inf
        """When the part must have ended, by ``time.monotonic``."""
        self.precision = "fp32" if tiny else "amp_bf16"

    def seconds_left(self) -> float:
        """Return the seconds that are left to the part."""
        return self.end - time.monotonic()

    def run(self, name: str, *command: str, killed: bool = False, **variables: str) -> float:
        """Run a command of this environment's Python to its end; return its seconds.

        Args:
            name: Of the file that gets its output.
            command: Arguments of ``python``.
            killed: It must die of SIGKILL, instead of ending well.
            variables: Environment variables.

        Raises:
            PartFailure: If it ends otherwise, or not in time.
        """
        output = self.folder / f"{name}.log"
        started = time.monotonic()
        with output.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, stdout=file, stderr=file,
                env={**os.environ, **variables}, start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(max(1.0, self.seconds_left()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise PartFailure(f"{name} had not ended when the part's time was over") from None
        if code != (-signal.SIGKILL if killed else 0):
            lines = output.read_text(errors="replace").splitlines()[-15:]
            raise PartFailure(f"{name} exits {code}: " + " | ".join(lines))
        return time.monotonic() - started

    def base(self) -> Path:
        """Return the model that games begin with; it is made by the first part that asks."""
        if not (self.folder / BASE_FIGURES).exists():
            options = ["--tiny"] if self.tiny else []
            options += ["--model", str(self.model)] if self.model else []
            self.run("base", str(HERE / "base.py"), str(self.folder), *options)
        return self.folder / "base"

    def spec(self, name: str, **changes: Any) -> Spec:
        """Return a game in a folder of its own, with the sizes of this device."""
        small = self.tiny
        spec = Spec(
            folder=str(self.folder / name),
            model=str(self.base()),
            rows=str(self.folder / "data/train.jsonl"),
            held_out=str(self.folder / "data/heldout.jsonl"),
            device="cpu" if small else "gpu",
            precision=self.precision,
            batch_size=16 if small else 128,
            microbatch_size=8 if small else 64,
            unit_size=8 if small else 128,
            learning_rate=1e-6 if self.model else 1e-3 if small else 1e-4,
        )
        return spec.but(**changes)

    def play(
        self, spec: Spec, killed: bool = False, torchrun: bool = False, **variables: str
    ) -> float:
        """Run a game's command once; return its seconds."""
        folder = Path(spec.folder)
        folder.mkdir(parents=True, exist_ok=True)
        path, command = str(spec.save(folder / "spec.json")), [str(HERE / "game.py")]
        if torchrun:
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
            command = launcher + command
        return self.run(folder.name, *command, path, killed=killed, **variables)

    def played(self, name: str, **changes: Any) -> dict[str, Any]:
        """Return the figures of a game, which is played unless an earlier part has."""
        spec = self.spec(name, **changes)
        if not (Path(spec.folder) / FIGURES).exists():
            self.play(spec)
        return figures_of(spec)

    def whole(self) -> dict[str, Any]:
        """Return the figures of the deterministic game that others must equal."""
        return self.played("whole", deterministic=True)


def figures_of(spec: Spec) -> dict[str, Any]:
    """Return what a game wrote at its end."""
    return json.loads((Path(spec.folder) / FIGURES).read_text(encoding="utf-8"))


def require(holds: bool, reason: str, figures: Mapping[str, Any]) -> None:
    """Raise PartFailure unless ``holds``."""
    if not holds:
        raise PartFailure(reason, figures)


def check_game(found: Mapping[str, Any], precision: str) -> None:
    """Check what holds of every game: it begins at log 2, learns, and exports what it is."""
    layout = found["layout"]
    require(layout == "shared", f"pairs were laid out by layout {layout}: shared differs", found)
    tokens = 32  # of the longest response, whatever the tokenizer
    bound = BETA * tokens * GAP[precision]
    firsts = found["first_losses"]
    require(len(firsts) > 0, "no first batch was seen", found)
    for loss, gap in zip(firsts, found["first_batch_gaps"], strict=True):
        require(gap <= GAP[precision], f"policy and opponent differ by {gap} nats a token", found)
        require(abs(loss - LOG_TWO) <= bound, f"a first loss is {loss}, not log 2", found)
    require(found["mean_losses"][0] < LOG_TWO, "the policy did not learn", found)
    same = found["logits_gap"] <= LOGITS * found["largest_logit"]
    require(same, f"the export's logits differ by {found['logits_gap']}", found)
    require(found.get("weights_equal", True), "the export has other weights", found)


def compare_runs(bench: Bench, name: str, found: Mapping[str, Any]) -> None:
    """Compare a game with ``whole`` bit for bit, as ``tests/chaos`` does."""
    try:
        compare(bench.folder / "whole", bench.folder / name, exact=True, sharded=False)
    except AssertionError as error:
        raise PartFailure(f"not the run that was not killed: {error}", found) from None


def sft(bench: Bench) -> dict[str, Any]:
    """SFT rows to a folder that AutoModelForCausalLM loads as it was trained."""
    bench.base()
    found = json.loads((bench.folder / BASE_FIGURES).read_text(encoding="utf-8"))
    require(found["held_out_nll"] < found["nll_before"], "SFT did not lower the NLL", found)
    gap = abs(found["nll_of_export"] - found["held_out_nll"])
    found["nll_gap"] = gap
    require(
        gap <= NLL[bench.precision],
        f"the export's NLL is {gap} nats from the one that was measured",
        found,
    )
    return found


def spin(bench: Bench) -> dict[str, Any]:
    """Two iterations in the device's precision, ``auto`` microbatches on CUDA, to an export."""
    auto = {} if bench.tiny else {"microbatch_size": "auto"}
    found = bench.played("spin", **auto)
    check_game(found, bench.precision)
    return found


def resume(bench: Bench) -> dict[str, Any]:
    """Kill -9 in the second iteration's play and then in its training; end as if never killed."""
    whole = bench.whole()
    spec = bench.spec("resumed", deterministic=True)
    rows = len(Path(spec.rows).read_text(encoding="utf-8").splitlines())
    units, batches = math.ceil(rows / spec.unit_size), 2 * (rows // spec.batch_size)
    seconds = [
        bench.play(spec.but(kill=PLAY, nth=units + units // 2), killed=True),
        bench.play(spec.but(kill=TRAINING, nth=batches // 2), killed=True),
        bench.play(spec),
    ]
    found = {"starts_seconds": seconds, "not_killed_seconds": whole["seconds"]}
    journal = (Path(spec.folder) / "journal.txt").read_text(encoding="utf-8").splitlines()
    kills = [line for line in journal if line.startswith("killed")]
    require(kills == [f"killed {PLAY}", f"killed {TRAINING}"], f"kills: {kills}", found)
    compare_runs(bench, "resumed", found)
    last = figures_of(spec)
    require(last["mean_losses"] == whole["mean_losses"], "other mean losses", found)
    return found | {"kills": len(kills), "batches": whole["batches"]}


def deterministic(bench: Bench) -> dict[str, Any]:
    """The same game twice under ``deterministic: true``, and once without for its time."""
    whole = bench.whole()
    check_game(whole, bench.precision)
    again = bench.played("again", deterministic=True)
    found = {"seconds": [whole["seconds"], again["seconds"]]}
    compare_runs(bench, "again", found)
    free = bench.played("free")
    largest = max(
        abs(a - b) for a, b in zip(free["mean_losses"], whole["mean_losses"], strict=True)
    )
    return found | {
        "seconds_without": free["seconds"],
        "mean_losses": whole["mean_losses"],
        "mean_losses_differ_without": largest,
    }


def lora(bench: Bench) -> dict[str, Any]:
    """Adapters: what is exported, merged and by itself, is the policy."""
    rate = 1e-4 if bench.model else 5e-3 if bench.tiny else 1e-3
    found = bench.played("lora", lora=True, iterations=1, learning_rate=rate)
    check_game(found, bench.precision)
    require(found["moved_from_base"] > 0, "the adapters did nothing", found)
    same = found["adapters_logits_gap"] <= LOGITS * found["largest_logit"]
    require(same, f"the adapters' logits differ by {found['adapters_logits_gap']}", found)
    return found


def fsdp(bench: Bench) -> dict[str, Any]:
    """FSDP2 by torchrun on one GPU, FSDP1 where CUDA is; beside an unsharded run."""
    bench.played("unsharded", iterations=1)
    wanted = losses(bench, "unsharded")
    found: dict[str, Any] = {}
    for version in ("2",) if bench.tiny else ("2", "1"):
        spec = bench.spec(f"fsdp{version}", iterations=1, fsdp=True)
        bench.play(spec, torchrun=True, FSDP_VERSION=version)
        figures = figures_of(spec)
        check_game(figures, bench.precision)
        gaps = [abs(a - b) for a, b in zip(losses(bench, f"fsdp{version}"), wanted, strict=True)]
        figures["largest_loss_gap"] = max(gaps)
        found[f"fsdp{version}"] = figures
        reason = f"FSDP{version}'s losses are {max(gaps)} nats from the unsharded run's"
        require(max(gaps) <= CURVE[bench.precision], reason, found)
    return found


def losses(bench: Bench, name: str) -> list[float]:
    """Return the losses of a game's batches."""
    lines = (bench.folder / name / "journal.txt").read_text(encoding="utf-8").splitlines()
    return [float(line.split()[2]) for line in lines if line.startswith("batch")]


def generation(bench: Bench) -> dict[str, Any]:
    """Engine ``hf`` beside plain ``generate``: the same distribution, and tokens per second."""
    device = "cpu" if bench.tiny else "cuda"
    bench.run(
        "distribution", str(HERE / "distribution.py"), str(bench.folder), str(bench.base()),
        str(bench.folder / "data/heldout.jsonl"), "--device", device,
        "--precision", bench.precision, "--answers", "12" if bench.tiny else "16",
    )  # fmt: skip
    found = json.loads((bench.folder / DISTRIBUTION_FIGURES).read_text(encoding="utf-8"))
    critical = found["critical"]
    for name in ("engine hf", "generate"):
        x = found[name]
        require(x["statistic"] <= critical, f"{name} has another distribution", found)
        require(x["control"] > critical, f"{name}: the control passes: too few tokens", found)
    out = bench.folder / "generation.json"
    sizes = (
        "--shape tiny --prompts 8 --prompt-tokens 8 --new 16 --mean-response 8 --rounds 1"
        if bench.tiny
        else "--shape 1b --prompts 256 --prompt-tokens 128 --new 256 --mean-response 100 --rounds 2"
        " --batch-size 64 --dtype bfloat16"
    ).split()
    contenders = "generate;generate, sorted;engine hf"
    bench.run(
        "generation", str(ROOT / "benchmarks/generation.py"), *sizes, "--device", device,
        "--contenders", contenders, "--out", str(out),
    )  # fmt: skip
    return {"distribution": found, "speed": json.loads(out.read_text(encoding="utf-8"))}


PARTS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    part.__name__: part for part in (sft, spin, resume, generation, deterministic, lora, fsdp)
}
"""By name, in the order they run in."""
