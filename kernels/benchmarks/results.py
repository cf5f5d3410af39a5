"""The results of ``gpu.py``: a JSON file as they come, Markdown and the targets at the end."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

from provenance import Provenance
from timing import Measured

GEMM = "bare GEMM"
MAIN_CASE = "8192 x 4096 x 128256"
ITEM_BYTES = 2  # of bf16
TITLES = {
    "a": "a: log_softmax_gather (N x V)",
    "b forward": "b: linear_log_softmax_gather, forward only (N x D x V)",
    "b training": "b: linear_log_softmax_gather, forward and backward (N x D x V)",
    "c": "c: linear_pair_loss, forward and backward (N x D x V)",
    "c pairs": "c: linear_pair_loss over whole sequences (pairs x 2 x tokens, share scored)",
}
NOTES = """\
Times are medians in milliseconds; peak memory is in MiB beyond the inputs, gradients included.
Peers marked (sum) have cross entropy only: their loss is the sum over all rows, with one
coefficient for all, and no log-probabilities leave them that a pair loss could weigh. Ways that
make the gradient in forward show it there. Errors are differences from fp64: of log-probs the
largest in nats, of a sum nats per token, of a pair loss absolute, of gradients
|x - truth| / |truth|, on 64 rows of d_hidden (or d_logits) and up to 128 of d_weight. "of ceiling"
is the share of the copy's bandwidth (forward / backward) for a, and the bare products' time over
the total for b and c: one product for b's forward, three for c, four for b with backward, which
makes the logits again. "first s" is the first call, compilation and tuning included."""


@dataclass
class Target:
    """One target: what is asked, what was measured ("" if it was not), and whether it is met."""

    target: str
    measured: str = ""
    met: bool | None = None


Record = dict[str, Any]
"""A :class:`~timing.Measured` as the JSON file holds it, with its ``operation`` and ``case``."""
Cases = dict[str, dict[str, Record]]
"""{case: {name of the candidate: record}}."""


class Ceilings(TypedDict, total=False):
    """What the device can do at most; a part that was not measured is not there."""

    copy_gb_per_s: float
    """Of a copy, bytes read and bytes written counted."""
    gemm: dict[str, dict[str, float]]
    """{shape: {``forward_ms``, ``d_hidden_ms``, ``d_weight_ms``, ``tflop_per_s``}}."""


class Report:
    """Collects results, and writes them to ``out``.json and ``out``.md."""

    def __init__(self, out: Path | None, about: Provenance) -> None:
        self.out = out
        if out is not None:
            out.parent.mkdir(parents=True, exist_ok=True)
        self.about = about
        self.ceilings: Ceilings = {}
        self.records: list[Record] = []

    def add(self, operation: str, case: str, found: list[Measured]) -> None:
        """Take the results of one case and write the JSON file."""
        self.records += [{"operation": operation, "case": case, **asdict(x)} for x in found]
        self.save()

    def save(self) -> None:
        """Write the JSON file, if there is one."""
        if self.out is not None:
            text = json.dumps(self.as_dict(), indent=1)
            self.out.with_suffix(".json").write_text(text + "\n", encoding="utf-8")

    def finish(self) -> None:
        """Write both files."""
        self.save()
        if self.out is not None:
            self.out.with_suffix(".md").write_text(self.markdown(), encoding="utf-8")

    def as_dict(self) -> dict[str, object]:
        """Return everything, as the JSON file holds it."""
        return {
            **self.about,
            "ceilings": self.ceilings,
            "results": self.records,
            "targets": [asdict(x) for x in self.judged()],
        }

    def judged(self) -> list[Target]:
        """Return the targets; tiny shapes meet and miss none."""
        found = targets(self.records, self.ceilings)
        return [Target(x.target) for x in found] if self.about["tiny"] else found

    def markdown(self) -> str:
        """Return the readable text."""
        lines = ["# Benchmark of spin_kernels", "", f"    {self.about['command']}", ""]
        for group in (self.about["machine"], self.about["versions"]):
            lines.append("; ".join(f"{key}: {value}" for key, value in group.items()))
        if self.about["tiny"]:
            lines += ["", "Tiny shapes on a CPU: a test of the script, no measurement."]
        lines += ["", NOTES, "", *self._targets(), *self._ceilings()]
        for operation, title in TITLES.items():
            cases = by_case(self.records, operation, whole=False)
            lines += ["", f"## {title}"] if cases else []
            for case, found in cases.items():
                lines += ["", f"### {case}", "", *_table(operation, case, found, self.ceilings)]
        return "\n".join(lines) + "\n"

    def _targets(self) -> list[str]:
        lines = ["## Targets", "", "| target | measured | |", "|---|---|---|"]
        for x in self.judged():
            verdict = {True: "met", False: "missed", None: "not measured"}[x.met]
            lines.append(f"| {x.target} | {x.measured} | {verdict} |")
        return lines

    def _ceilings(self) -> list[str]:
        failed = by_case(self.records, "ceilings", whole=False)
        if not self.ceilings and not failed:
            return []
        lines = ["", "## Ceilings", ""]
        if "copy_gb_per_s" in self.ceilings:
            speed = f"{self.ceilings['copy_gb_per_s']:.0f} GB/s"
            lines.append(f"Copy: {speed}, bytes read and bytes written counted.")
        lines += [f"\n{case}: {x['all']['reason']}" for case, x in failed.items()]
        heads = "N x D x V", "X W^T ms", "G W ms", "G^T X ms", "TFLOP/s"
        lines += ["", _row(heads), "|---" * len(heads) + "|"]
        for case, x in self.ceilings.get("gemm", {}).items():
            times = [f"{x[key]:.2f}" for key in ("forward_ms", "d_hidden_ms", "d_weight_ms")]
            lines.append(_row([case, *times, f"{x['tflop_per_s']:.0f}"]))
        return lines


def by_case(records: list[Record], operation: str, whole: bool = True) -> Cases:
    """Return {case: {name: record}} of an operation; ``whole``: only those with a time."""
    found: Cases = {}
    for x in records:
        if x["operation"] == operation and (not whole or x["total_ms"] is not None):
            found.setdefault(x["case"], {})[x["name"]] = x
    return found


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _table(
    operation: str, case: str, found: dict[str, Record], ceilings: Ceilings
) -> list[str]:
    keys = list(dict.fromkeys(key for x in found.values() for key in x["errors"]))
    heads = ["", "forward", "backward", "total", "of ceiling", "MiB", *keys, "rounds", "first s"]
    lines = [_row(heads), "|---" * len(heads) + "|"]
    for x in (x for x in found.values() if x["reason"] is None):
        name = x["name"] + (" (sum)" if x["gives"] == "sum" else "")
        times = [_number(x[key], ".2f") for key in ("forward_ms", "backward_ms", "total_ms")]
        share = _share(operation, case, x, found, ceilings)
        errors = [_number(x["errors"].get(key), ".1e") for key in keys]
        last = [str(x["rounds"]), _number(x["first_seconds"], ".1f")]
        lines.append(_row([name, *times, share, _number(x["peak_mib"], ".0f"), *errors, *last]))
    failed = [f"- {x['name']}: {x['reason']}" for x in found.values() if x["reason"] is not None]
    return lines + (["", *failed] if failed else [])


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _share(
    operation: str,
    case: str,
    x: Record,
    found: dict[str, Record],
    ceilings: Ceilings,
) -> str:
    if operation == "a":
        shares = _copy_shares(case, x, ceilings)
        return " / ".join(f"{share:.0%}" for share in shares)
    if operation == "b training":
        gemm = ceilings.get("gemm", {}).get(case)
        passes = ("forward_ms", "d_hidden_ms", "d_weight_ms")
        total = sum(gemm[key] for key in passes) + gemm["forward_ms"] if gemm else None
    else:
        total = found[GEMM]["total_ms"] if GEMM in found else None
    return f"{total / x['total_ms']:.0%}" if total and x["total_ms"] else ""


def _copy_shares(case: str, x: Record, ceilings: Ceilings) -> tuple[float, ...]:
    """Return the shares of the copy's bandwidth: forward reads once, backward reads and writes."""
    if "copy_gb_per_s" not in ceilings:
        return ()
    n, v = map(int, case.split(" x "))
    floor_ms = n * v * ITEM_BYTES / ceilings["copy_gb_per_s"] / 1e6
    return floor_ms / x["forward_ms"], 2 * floor_ms / x["backward_ms"]


def targets(records: list[Record], ceilings: Ceilings) -> list[Target]:
    """Judge the targets by the worst case of each; one without results is "not measured"."""
    a = by_case(records, "a")
    shares = {
        name: {
            case: _copy_shares(case, found[name], ceilings)
            for case, found in a.items()
            if name in found and "copy_gb_per_s" in ceilings
        }
        for name in ("ours", "ours, in place")
    }
    b = by_case(records, "b forward")
    wide = {case: x for case, x in b.items() if case.split(" x ")[1] == "4096"}
    c, pairs = by_case(records, "c"), by_case(records, "c pairs")
    half = {case: x for case, x in pairs.items() if ", 50%" in case}
    main = {case: x for case, x in c.items() if case == MAIN_CASE}

    def ratios(
        cases: Cases,
        over: Callable[[dict[str, Record]], Record | None],
        key: str = "total_ms",
    ) -> dict[str, float]:
        found = {}
        for case, x in cases.items():
            other = over(x)
            if "ours" in x and other is not None and other[key] and x["ours"][key]:
                found[case] = other[key] / x["ours"][key]
        return found

    def gemm(x: dict[str, Record]) -> Record | None:
        return x.get(GEMM)

    def liger(x: dict[str, Record]) -> Record | None:
        return _fastest([y for name, y in x.items() if name.startswith("Liger")])

    def peer(x: dict[str, Record]) -> Record | None:
        return _fastest([y for name, y in x.items() if not y["ours"] and name != GEMM])

    forward = {case: x[0] for case, x in shares["ours"].items()}
    backward = {case: x[1] for case, x in shares["ours"].items()}
    in_place = {case: x[1] for case, x in shares["ours, in place"].items()}
    of_copy = "at least 90% of the copy's bandwidth"
    return [
        _least(f"a: forward, {of_copy}", forward, 0.9),
        _least(f"a: backward, {of_copy}", backward, 0.9),
        _least(f"a: backward in place, {of_copy}", in_place, 0.9),
        _least("b: forward within 12% of the bare GEMM at D = 4096", ratios(wide, gemm), 1 / 1.12),
        _least(f"c: 92% of the three bare GEMM passes at {MAIN_CASE}", ratios(main, gemm), 0.92),
        _least("c: fastest peer's time over ours, every shape", ratios(c | pairs, peer), 1.0),
        _least("c: Liger DPO's time over ours, 50% response", ratios(half, liger), 2.0),
        _least("c: Liger FLCE's peak over ours, its fastest", ratios(c, liger, "peak_mib"), 1.0),
        _least("c: Liger DPO's peak over ours, its fastest", ratios(pairs, liger, "peak_mib"), 1.0),
    ]


def _fastest(found: list[Record]) -> Record | None:
    return min(found, key=lambda x: x["total_ms"], default=None)


def _least(text: str, found: dict[str, float], wanted: float) -> Target:
    """Judge the smallest of ``found`` {case: value} against ``wanted``."""
    if not found:
        return Target(text)
    case = min(found, key=found.__getitem__)
    return Target(
        f"{text} (>= {wanted:.2f})", f"{found[case]:.2f} at {case}", found[case] >= wanted
    )
