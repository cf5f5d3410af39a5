"""Time and peak memory of the three operations on a CPU: ours against plain PyTorch.

    python kernels/benchmarks/logprobs.py
    python kernels/benchmarks/logprobs.py --repeats 9

Forward and backward of response log-probs in fp32. The plain way makes the logits [N, V] and takes
``log_softmax``; ours are log_softmax_gather (a), linear_log_softmax_gather (b) and linear_pair_loss
(c), the last two with 64 MiB for their chunks of logits. Every case runs in its own process, so
that its peak memory is its own; the ways of a case take turns, and medians are printed. Figures of
different machines do not compare; the ratios of one run do. For a GPU there is ``gpu.py``.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time

SHAPES = ((1024, 256, 8192), (1024, 512, 32000))
"""(N, D, V)."""

WAYS = {
    "a": ("torch eager", "spin_kernels", "spin_kernels in place"),
    "b": ("torch eager", "spin_kernels"),
    "c": ("torch eager", "spin_kernels"),
}
NUM_PAIRS = 8
BUDGET_BYTES = 2**26


def measure(operation: str, way: str, num_rows: int, width: int, vocab: int) -> dict[str, float]:
    """Return seconds and peak MiB beyond the inputs of one forward and backward."""
    import torch

    torch.manual_seed(0)
    weight = (torch.randn(vocab, width) / width**0.5).requires_grad_()
    targets = torch.randint(vocab, (num_rows,))
    hidden = torch.randn(num_rows, width)
    if operation == "a":
        hidden = hidden @ weight.detach().T  # the logits themselves
    small = 2 * NUM_PAIRS
    run(operation, way, hidden[:small].clone().requires_grad_(), weight, targets[:small])  # warm up
    hidden.requires_grad_()
    before = peak_mib()
    started = time.perf_counter()
    run(operation, way, hidden, weight, targets)
    return {"seconds": time.perf_counter() - started, "mib": peak_mib() - before}


def run(operation: str, way: str, hidden, weight, targets) -> None:
    """Do one forward and backward; ``hidden`` [N, D] is the logits [N, V] in operation a."""
    import torch

    from spin_kernels import linear_log_softmax_gather, linear_pair_loss, log_softmax_gather

    def eager(logits: torch.Tensor) -> torch.Tensor:
        return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]

    def pair_loss(real: torch.Tensor, generated: torch.Tensor) -> torch.Tensor:
        return -torch.nn.functional.logsigmoid(0.01 * (real - generated))

    ours = way != "torch eager"
    if operation == "a" and ours:
        loss = log_softmax_gather(hidden, targets, inplace_backward="in place" in way).sum()
    elif operation == "b" and ours:
        budget = {"memory_budget_bytes": BUDGET_BYTES}
        loss = linear_log_softmax_gather(hidden, weight, targets, **budget).sum()
    elif operation == "c" and ours:
        cu_seqlens = torch.arange(2 * NUM_PAIRS + 1) * (len(targets) // (2 * NUM_PAIRS))
        budget = {"memory_budget_bytes": BUDGET_BYTES}
        loss = linear_pair_loss(hidden, weight, targets, cu_seqlens, pair_loss, **budget).loss
    else:
        logps = eager(hidden if operation == "a" else hidden @ weight.T)
        sums = logps.view(NUM_PAIRS, 2, -1).sum(2)
        loss = pair_loss(sums[:, 0], sums[:, 1]).sum() if operation == "c" else logps.sum()
    # Not backward(): it would copy a gradient that lies in the logits' own memory.
    torch.autograd.grad(loss, (hidden,) if operation == "a" else (hidden, weight))


def peak_mib() -> float:
    """Return the most memory that this process has held so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_a_process(operation: str, way: str, shape: tuple[int, int, int]) -> dict[str, float]:
    """Run :func:`measure` in a fresh process."""
    command = [sys.executable, __file__, "--one", operation, way, *map(str, shape)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{operation}, {way} at {shape} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=3)
    one = ("OPERATION", "WAY", "N", "D", "V")
    parser.add_argument("--one", nargs=5, metavar=one, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        operation, way, *shape = given.one
        print(json.dumps(measure(operation, way, *map(int, shape))))
        return
    import torch

    name = platform.processor() or platform.machine()
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, fp32")
    print(f"{'N x D x V':>18}  {'':<2} {'way':<22} {'ms':>9} {'MiB':>8}")
    for shape in SHAPES:
        for operation, ways in WAYS.items():
            runs = {way: [] for way in ways}
            for _ in range(given.repeats):
                for way in ways:
                    runs[way].append(in_a_process(operation, way, shape))
            for way, found in runs.items():
                seconds = statistics.median(run["seconds"] for run in found)
                mib = statistics.median(run["mib"] for run in found)
                line = f"{' x '.join(map(str, shape)):>18}  {operation:<2} {way:<22}"
                print(f"{line} {seconds * 1e3:>9.1f} {mib:>8.0f}", flush=True)


if __name__ == "__main__":
    main()
