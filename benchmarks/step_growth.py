"""How the cost of a training step grows with its pairs and their length, with a picture.

    taskset -c 1 python benchmarks/step_growth.py --out benchmarks/results/step_growth_cpu.json

The contenders are those of ``step.py``, and so are their figures; TRL's is its faster one, which is
given the reference's log-probs. First the pairs of a step grow, at GSM8K's lengths, then the length
of prompt and response, half each, at four pairs. The contenders take turns at each point.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from step import GIVEN, PADDED_OURS, SHARED_OURS, Setting, measured, ours, trl_contenders

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "kernels" / "benchmarks"))
from provenance import provenance
from record import PACKAGES, write

PAIRS = (1, 2, 4, 8, 16, 32, 64)
LENGTHS = (128, 256, 512, 1024, 2048, 4096)
"""Of prompt and response together, in tokens."""
FIXED_PAIRS = 4
COLORS = {SHARED_OURS: "#2a78d6", PADDED_OURS: "#eda100", GIVEN: "#8a8f98"}


def point(pairs: int, lengths: Any, given: argparse.Namespace) -> dict[str, Any]:
    """Return the contenders' figures for steps of that many pairs."""
    setting = Setting(
        argparse.Namespace(
            device="cpu", shape=given.shape, pairs=pairs, batches=2, lengths=lengths, mean_tokens=0
        )
    )
    contenders = ours(setting)
    if importlib.util.find_spec("trl"):
        contenders[GIVEN] = trl_contenders(setting, Path("runs/step"))[GIVEN]
    return measured(setting, contenders, given.rounds, float("inf"))


def draw(found: dict[str, Any], picture: Path) -> None:
    """Write tokens per second and memory of all points as one picture."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6), sharex="col", layout="constrained")
    labels = {
        "pairs": "pairs per step, GSM8K's lengths",
        "lengths": "tokens of prompt + response, 4 pairs",
    }
    rows = {"tokens_per_second": "tokens per second", "step_mib": "MiB beyond the weights"}
    for column, (axis, label) in enumerate(labels.items()):
        points = found[axis]
        at = [int(x) for x in points]
        for row, (measure, title) in enumerate(rows.items()):
            plot = axes[row, column]
            for name in [x for x in COLORS if x in points[str(at[0])]]:
                figures = [points[str(x)][name][measure] for x in at]
                plot.plot(at, figures, "o-", color=COLORS[name], label=name)
            plot.set_xscale("log", base=2)
            plot.set_yscale("log")
            plot.grid(alpha=0.3, which="both", linewidth=0.5)
            if column == 0:
                plot.set_ylabel(title)
        axes[1, column].set_xlabel(label)
        axes[1, column].set_xticks(at, [str(x) for x in at])
    axes[0, 0].legend(frameon=False)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture)


def main() -> int:
    """Measure all points, and write and draw them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--picture", type=Path, default=None, help="an SVG or PNG file")
    parser.add_argument("--shape", default="10m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="two points of each axis, in seconds")
    given = parser.parse_args()
    few = slice(0, 2 if given.tiny else None)
    if given.tiny:
        given.shape, given.rounds = "tiny", 1
    result = {
        **provenance(PACKAGES, given.tiny),
        "shape": given.shape,
        "pairs": {str(n): point(n, "gsm8k", given) for n in PAIRS[few]},
        "lengths": {
            str(n): point(FIXED_PAIRS, (n // 2, n // 2, n // 2), given) for n in LENGTHS[few]
        },
    }
    write(result, given.out)
    if given.picture is not None:
        draw(result, given.picture)
    for axis in ("pairs", "lengths"):
        for at, contenders in result[axis].items():
            speeds = ", ".join(
                f"{name} {x['tokens_per_second']:.0f}" for name, x in contenders.items()
            )
            print(f"{axis} {at}: tokens/s of {speeds}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
