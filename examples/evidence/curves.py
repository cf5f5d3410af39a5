"""README's picture: validation NLL of SPIN and of SFT after each iteration, a panel per world."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from examples.evidence.arms import SFT, SPIN
from examples.evidence.results import Result, of_arm
from examples.evidence.tables import mean_and_error

_LABELS = {SPIN: "SPIN", SFT: "SFT, as many steps"}


def draw_curves(worlds: Mapping[str, Sequence[Result]], path: Path) -> None:
    """Draw the curves to an SVG: means over the seeds that both arms have, with standard errors.

    Args:
        worlds: Results by the panel's title.
        path: Of the SVG.
    """
    import matplotlib

    matplotlib.use("agg")  # needs no display
    matplotlib.rcParams["svg.hashsalt"] = "curves"  # the same results give the same file
    from matplotlib import pyplot

    figure, (axes,) = pyplot.subplots(1, len(worlds), figsize=(9, 3.3), squeeze=False)
    for axis, (title, results) in zip(axes, worlds.items(), strict=True):
        seeds = _seeds(results)
        for arm, label in _LABELS.items():
            points = [mean_and_error(nlls) for nlls in zip(*curves_of(results, arm), strict=True)]
            means, errors = zip(*points, strict=True)
            more = {} if len(seeds) < 2 else {"yerr": errors, "capsize": 3}
            axis.errorbar(range(len(means)), means, marker="o", label=label, **more)
            axis.set_xticks(range(len(means)))
        number = "one seed" if len(seeds) == 1 else f"{len(seeds)} seeds"
        axis.set_title(f"{title} ({number})", fontsize=9)
        axis.set_xlabel("iterations")
        axis.set_ylabel("NLL of validation rows, nats per token", fontsize=8)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _seeds(results: Sequence[Result]) -> list[int]:
    """Return the seeds of both arms."""
    return sorted(set.intersection(*({r.seed for r in of_arm(results, arm)} for arm in _LABELS)))


def curves_of(results: Sequence[Result], arm: str) -> list[list[float]]:
    """Return by seed: the start's NLL, which the game evaluates, and that after each iteration.

    Args:
        results: Of a world.
        arm: SPIN, or one of SFT with as many iterations; seeds that one of both lacks are left out.
    """
    starts = {one.seed: one.more["start_nll"] for one in of_arm(results, SPIN)}
    curves = {one.seed: one.validation_nll for one in of_arm(results, arm)}
    return [[starts[seed], *curves[seed]] for seed in _seeds(results)]
