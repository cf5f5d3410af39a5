"""Time and peak memory of response log-probs, forward and backward: ours against plain PyTorch.

    python kernels/benchmarks/logprobs.py            # on this machine's GPU, else on its CPU
    python kernels/benchmarks/logprobs.py --repeats 9

The plain way makes the logits [N, V] and takes ``log_softmax``; ours is
``spin_kernels.linear_log_softmax_gather``. Every case runs in its own process, so that its peak
memory is its own; the two ways of a shape take turns, and medians are printed. Figures of different
machines do not compare; the ratios of one run do.
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

CPU_SHAPES = ((512, 256, 8192), (1024, 512, 32000), (2048, 512, 32000))
GPU_SHAPES = ((8192, 4096, 32000), (8192, 4096, 128256), (16384, 4096, 128256))
WAYS = ("torch eager", "spin_kernels")
MIB = 2**20


def measure(way: str, num_rows: int, width: int, vocab: int) -> dict[str, float]:
    """Return seconds and peak MiB beyond the inputs of one forward and backward."""
    import torch

    from spin_kernels import linear_log_softmax_gather

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    torch.manual_seed(0)
    hidden = torch.randn(num_rows, width, device=device, dtype=dtype).requires_grad_()
    weight = (torch.randn(vocab, width, device=device, dtype=dtype) / width**0.5).requires_grad_()
    targets = torch.randint(vocab, (num_rows,), device=device)

    def step(rows: int) -> None:
        x, t = hidden[:rows], targets[:rows]
        if way == "torch eager":
            logps = (x @ weight.T).float().log_softmax(-1).gather(1, t[:, None]).squeeze(1)
        else:
            logps = linear_log_softmax_gather(x, weight, t)
        logps.sum().backward()

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    step(8)  # warm up: threads, libraries, the gradients' memory
    wait()
    before = peak_mib(device)
    started = time.perf_counter()
    step(num_rows)
    wait()
    return {"seconds": time.perf_counter() - started, "mib": peak_mib(device) - before}


def peak_mib(device: str) -> float:
    """Return the most memory that this process has held so far, in MiB."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated() / MIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_a_process(way: str, shape: tuple[int, int, int]) -> dict[str, float]:
    """Run :func:`measure` in a fresh process."""
    command = [sys.executable, __file__, "--one", way, *map(str, shape)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{way} at {shape} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", nargs=4, metavar=("WAY", "N", "D", "V"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        way, *shape = given.one
        print(json.dumps(measure(way, *map(int, shape))))
        return
    import torch

    gpu = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if gpu else platform.processor() or platform.machine()
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'N x D x V':>22}  {'way':<12} {'ms':>9} {'MiB':>8}")
    for shape in GPU_SHAPES if gpu else CPU_SHAPES:
        runs = {way: [] for way in WAYS}
        for _ in range(given.repeats):
            for way in WAYS:
                runs[way].append(in_a_process(way, shape))
        for way, found in runs.items():
            seconds = statistics.median(run["seconds"] for run in found)
            mib = statistics.median(run["mib"] for run in found)
            label = " x ".join(map(str, shape))
            print(f"{label:>22}  {way:<12} {seconds * 1e3:>9.1f} {mib:>8.0f}", flush=True)


if __name__ == "__main__":
    main()
