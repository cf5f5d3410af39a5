"""Time, peak memory and error of the three operations against their peers, on one GPU.

    python kernels/benchmarks/gpu.py --out results          # results.json and results.md
    python kernels/benchmarks/gpu.py --sections ceilings,a,b
    python kernels/benchmarks/gpu.py --tiny                 # the whole on a CPU, in seconds

Sections: ``ceilings`` (copy bandwidth, bare matrix products), ``a`` log_softmax_gather, ``b``
linear_log_softmax_gather, ``c`` linear_pair_loss at the shapes of b and over pairs of whole
sequences. Inputs are made by :mod:`inputs`, peers are those of :mod:`peers`, times come from
:mod:`timing`, errors from :mod:`truth`, tables and targets from :mod:`results`.

How long it takes, by arithmetic at 700 TFLOP/s, 30 rounds: one product (2 N D V) at all shapes is
45 TFLOP or 64 ms. a: 20 s. b: eight ways of about 1.5 products forward, seven of about 5 with
backward, 100 s. c at the shapes: thirteen ways of about 4 products, 105 s; over pairs, seven ways
in nine cases, 140 s. Compilation (torch.compile, Liger's DPO loss, Triton): 100 s. fp64 truths: 800
TFLOP at 50 TFLOP/s, 16 s. Together 8 minutes; ``--seconds`` bounds it, and ``--sections`` makes two
commands of it. A candidate that has spent ``--candidate-seconds`` on a case takes no further turns
in it (after its fifth), and the table says of how many rounds a median is.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # spin_kernels, where not installed

from peers import PACKAGES
from provenance import provenance, require_gpu, require_known
from results import Report
from sections import Bench
from timing import ContextLostError, one_line

SECTIONS = ("ceilings", "a", "b", "c")


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sections", default=",".join(SECTIONS), help="comma-separated")
    parser.add_argument("--out", type=Path, help="writes OUT.json as it goes and OUT.md at the end")
    parser.add_argument("--repeats", type=int, help="rounds of a case (30; with --tiny 2)")
    parser.add_argument("--seconds", type=float, default=500, help="no case begins after that")
    parser.add_argument("--candidate-seconds", type=float, default=4, help="of one case")
    parser.add_argument("--skip", action="append", default=[], metavar="PEER", help="by its name")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes on the CPU")
    found = parser.parse_args(given)
    found.sections = found.sections.split(",")
    found.repeats = found.repeats or (2 if found.tiny else 30)
    require_known("gpu.py", "section", found.sections, SECTIONS)
    require_gpu("gpu.py", found.tiny)
    return found


def main() -> None:
    """Run the sections, write the results and print the tables."""
    given = arguments()
    report = Report(given.out, provenance(PACKAGES, given.tiny))
    bench = Bench(given, report)
    lost = None
    for name in given.sections:
        try:
            getattr(bench, name)()
        except ContextLostError as error:
            lost = f"{one_line(error)} Run again with --skip and that candidate's name."
            break
    report.finish()
    print(report.markdown())
    if lost:
        sys.exit(lost)


if __name__ == "__main__":
    main()
