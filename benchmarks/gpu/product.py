"""The product on a GPU from SFT rows to an exported policy, in parts that each assert something.

    python benchmarks/gpu/product.py --out benchmarks/results/product_nvidia_h200.json
    python benchmarks/gpu/product.py --parts resume,lora      # each part can be run alone
    python benchmarks/gpu/product.py --tiny                   # the same code on a CPU

``sft``            SFT of a model on rows; the Auto classes load it with the NLL that was measured
``spin``           two iterations in bf16, ``device_train_microbatch_size: auto``; the export has
                   the policy's weights and logits
``resume``         kill -9 in play and in training; the same store, weights, losses and books
``generation``     engine ``hf`` and plain ``generate``: the policy's distribution, tokens/s
``deterministic``  ``deterministic: true`` twice: everything the same, bit for bit
``lora``           adapters; written merged and by themselves, both with the policy's logits
``fsdp``           by torchrun under FSDP2, and on CUDA under FSDP1; losses of the unsharded run

Every game is a process of its own (:mod:`game`), so no part can take another with it. A part ends
by ``--part-seconds``, all of them by ``--seconds``; what had no time is named. The exit code is 1
if a part failed. ``--model`` begins with a local folder of a real model instead of random weights.
On a CPU everything is fp32 and gloo, and microbatches have a size, since ``auto`` needs CUDA.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "kernels" / "benchmarks"))

from parts import PARTS, Bench, PartFailure
from provenance import provenance, require_gpu, require_known
from record import PACKAGES, write

MIN_SECONDS = 20.0
"""With less left a part does not begin."""


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=None, help="JSON, written as parts end")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated")
    parser.add_argument("--seconds", type=float, help="all parts end by then (520; tiny 3600)")
    parser.add_argument("--part-seconds", type=float, help="a part ends by then (240; tiny 1200)")
    parser.add_argument("--model", type=Path, default=None, help="local folder of a real model")
    parser.add_argument("--folder", type=Path, default=None, help="kept; else a temporary one")
    parser.add_argument("--tiny", action="store_true", help="tiny models on the CPU, in minutes")
    given = parser.parse_args()
    given.parts = given.parts.split(",")
    given.seconds = given.seconds or (3600 if given.tiny else 520)
    given.part_seconds = given.part_seconds or (1200 if given.tiny else 240)
    require_known("product.py", "part", given.parts, PARTS)
    require_gpu("product.py", given.tiny)
    if given.model is not None and not (given.model / "config.json").exists():
        sys.exit(f"product.py: --model={given.model} is not a folder of a model: no config.json.")
    return given


def run(given: argparse.Namespace, folder: Path) -> bool:
    """Run the parts, write the results as they come, and tell whether all held."""
    result = {**provenance(PACKAGES, given.tiny), "parts": {}}
    bench = Bench(folder, given.tiny, given.model)
    end, good = time.monotonic() + given.seconds, True
    for name in given.parts:
        started = time.monotonic()
        bench.end = min(end, started + given.part_seconds)
        if bench.seconds_left() < MIN_SECONDS:
            found = {"ok": False, "reason": f"no time left of --seconds {given.seconds:.0f}"}
        else:
            try:
                found = {"ok": True, **PARTS[name](bench)}
            except PartFailure as failure:
                found = {"ok": False, "reason": str(failure), **failure.figures}
        found["part_seconds"] = time.monotonic() - started
        result["parts"][name] = found
        write(result, given.out)
        good &= found["ok"]
        print(f"{name:14s} {'ok' if found['ok'] else 'FAILED':6s} {found['part_seconds']:6.1f} s  "
              f"{found.get('reason', '')}", flush=True)  # fmt: skip
    return good


def main() -> int:
    """Run the command line."""
    given = arguments()
    if given.folder is not None:
        given.folder.mkdir(parents=True, exist_ok=True)
        return 0 if run(given, given.folder.resolve()) else 1
    with tempfile.TemporaryDirectory(prefix="product-") as folder:
        return 0 if run(given, Path(folder)) else 1


if __name__ == "__main__":
    sys.exit(main())
