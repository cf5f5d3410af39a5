"""Engine ``hf`` beside plain ``model.generate``: tokens per second on the same prompts, in one run.

    python benchmarks/generation.py --shape 10m --prompts 128 --prompt-tokens 64 --new 256

A model with random weights hardly ever ends a response, so its output layer gets a bias on the
stop token: every contender sees the same model, whose responses' lengths are geometric with the
mean ``--mean-response``, cut at ``--new``. Contenders are timed in turn, round after round; the
median counts. Tokens are those of the responses, the stop token included. With ``--data`` the
prompts have the lengths of a jsonl file's prompts, a token for every four bytes. On the CPU seconds
are the process's CPU time, summed over threads, which other processes on the machine hardly move;
on a GPU they are wall-clock time.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from spin_composer.engines.hf import cache, decode, sampling
from spin_composer.engines.hf.generator import HFGenerator
from spin_composer.settings.generation import GenerationSettings

STOP_ID = 2
SHAPES: dict[str, dict[str, int]] = {
    "tiny": {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128,
             "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    "10m": {"vocab_size": 8192, "hidden_size": 256, "intermediate_size": 704,
            "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4},
    "135m": {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
             "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3},
    "1b": {"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
           "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8},
}  # fmt: skip
PLAIN = "generate"
Run = Callable[[list[np.ndarray], int], int]


def model_of(args: argparse.Namespace) -> Any:
    """Return a random Llama of a shape; its stop token has the chance 1 / mean_response."""
    config = transformers.LlamaConfig(
        **SHAPES[args.shape],
        max_position_embeddings=8192,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=STOP_ID,
        pad_token_id=0,
    )
    config._attn_implementation = args.attention
    torch.manual_seed(0)
    with torch.device(args.device):
        model: Any = transformers.AutoModelForCausalLM.from_config(
            config, torch_dtype=getattr(torch, args.dtype)
        )
        bias = torch.zeros(config.vocab_size, dtype=model.lm_head.weight.dtype)
    bias[STOP_ID] = math.log(config.vocab_size / args.mean_response)
    model.lm_head.bias = nn.Parameter(bias, requires_grad=False)
    return model.eval()


def prompts_of(args: argparse.Namespace) -> list[np.ndarray]:
    """Return prompts of random ids: half to one and a half of the asked length, or the data's."""
    draw = np.random.default_rng(0)
    if args.data is None:
        n = args.prompt_tokens
        lengths = draw.integers(n - n // 2, n + n // 2 + 1, args.prompts)
    else:
        with open(args.data, encoding="utf-8") as file:
            rows = [json.loads(line) for line, _ in zip(file, range(args.prompts), strict=False)]
        lengths = np.array([max(1, len(str(row["prompt"]).encode()) // 4) for row in rows])
    vocabulary = SHAPES[args.shape]["vocab_size"]
    return [draw.integers(3, vocabulary, n).astype(np.int32) for n in lengths]


class Contenders:
    """What is timed: each takes prompts and a seed, and returns the number of response tokens."""

    def __init__(self, args: argparse.Namespace):
        self.model = model_of(args)
        self.device = torch.device(args.device)
        self.size, self.new = args.batch_size, args.new
        settings = GenerationSettings(max_new_tokens=args.new, batch_size=args.batch_size)
        self.engine = HFGenerator(self.model, None, STOP_ID, settings, self.device)

    def generate(self, prompts: list[np.ndarray], seed: int, **options: Any) -> int:
        """Run plain ``model.generate``, batch by batch."""
        made = plain_generate(self.model, prompts, seed, self.size, self.new, STOP_ID, **options)
        return sum(map(len, made))

    def sorted(self, prompts: list[np.ndarray], seed: int, **options: Any) -> int:
        """Run ``model.generate``, the longest prompts first."""
        return self.generate(sorted(prompts, key=len, reverse=True), seed, **options)

    def ours(self, prompts: list[np.ndarray], seed: int) -> int:
        """Run engine ``hf`` as play runs it."""
        return sum(len(response.ids) for response in self.engine.generate(prompts, seed))

    def by_batch(self, prompts: list[np.ndarray], seed: int) -> int:
        """Run engine ``hf`` on one batch at a time: no prompt is waiting to join."""
        ordered = sorted(prompts, key=len, reverse=True)
        return sum(
            self.ours(ordered[first : first + self.size], seed + first)
            for first in range(0, len(ordered), self.size)
        )

    def table(self, static: bool, only: str = "") -> dict[str, tuple[Run, Any]]:
        """Return the contenders by name, or those of ``only``, and the context of each."""
        none = nullcontext
        table: dict[str, tuple[Run, Any]] = {
            PLAIN: (self.generate, none),
            "generate, sorted": (self.sorted, none),
            "engine hf": (self.ours, none),
            "engine hf, no rows join": (self.by_batch, none),
            "engine hf, no rows join or leave": (
                self.by_batch,
                lambda: _with(decode.Decoder, "_should_compact", lambda _, rows, kept: kept == 0),
            ),
            "engine hf, cache copied per token": (self.ours, lambda: _with(cache, "BLOCK", 1)),
            "engine hf, torch.multinomial": (
                self.ours, lambda: _with(sampling, "sample_inverse_cdf", _multinomial)
            ),
        }  # fmt: skip
        if static:
            run = lambda p, s: self.sorted(p, s, cache_implementation="static")  # noqa: E731
            table["generate, sorted, static cache"] = (run, none)
        wanted = only.split(";") if only else list(table)
        unknown = [name for name in wanted if name not in table]
        if unknown or PLAIN not in wanted:
            sys.exit(f"--contenders must hold {PLAIN!r} and be of {list(table)}, got {wanted}.")
        return {name: table[name] for name in wanted}


def plain_generate(
    model: Any,
    prompts: Sequence[np.ndarray],
    seed: int,
    batch_size: int,
    new: int,
    stop: int,
    **options: Any,
) -> list[np.ndarray]:
    """Answer prompts by ``model.generate``, batch by batch, from the model's own distribution.

    Args:
        model: A Hugging Face model.
        prompts: Token ids [P] of each.
        seed: Of torch's generator.
        batch_size: Prompts of a batch, padded on the left.
        new: Most tokens of a response.
        stop: The token that ends one.
        options: Further ones of ``generate``.

    Returns:
        The responses [<= new], the stop token included.
    """
    torch.manual_seed(seed)
    made: list[np.ndarray] = []
    for first in range(0, len(prompts), batch_size):
        batch = prompts[first : first + batch_size]
        width = max(map(len, batch))
        ids = torch.zeros((len(batch), width), dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(batch):
            ids[row, width - len(prompt) :] = torch.from_numpy(prompt).long()
            mask[row, width - len(prompt) :] = 1
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            do_sample=True,
            top_k=0,
            max_new_tokens=new,
            eos_token_id=stop,
            pad_token_id=stop,
            **options,
        )
        rows = output[:, width:].cpu().numpy()
        made += [row[: response_length(row, stop)] for row in rows]
    return made


def response_length(row: np.ndarray, stop: int) -> int:
    """Return the tokens of a response up to its first stop token."""
    stops = np.flatnonzero(row == stop)
    return int(stops[0]) + 1 if len(stops) else len(row)


def _multinomial(scores: Any, uniforms: Any) -> Any:
    return torch.multinomial(scores.softmax(-1), 1)[:, 0], scores.isfinite().any()


@contextmanager
def _with(module: Any, name: str, value: Any) -> Iterator[None]:
    kept = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, kept)


def timed(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return each contender's median tokens per second, and its ratio to plain generate."""
    contenders, prompts = Contenders(args), prompts_of(args)
    table = contenders.table(args.static, args.contenders)
    rates: dict[str, list[float]] = {name: [] for name in table}
    lengths: dict[str, float] = {}
    for turn in range(-1, args.rounds):  # the first turn warms up
        asked = prompts if turn >= 0 else prompts[:4]
        for name, (run, context) in table.items():
            with context(), torch.no_grad():
                started = _now(args.device)
                tokens = run(asked, turn + 1)
                seconds = _now(args.device) - started
            if turn >= 0:
                rates[name].append(tokens / seconds)
                lengths[name] = tokens / len(asked)
                print(f"round {turn} {name:36s} {rates[name][-1]:9.1f} tokens/s", flush=True)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    return {
        name: {
            "tokens_per_second": round(rate, 1),
            "ratio": round(rate / medians[PLAIN], 3),
            "lowest": round(min(rates[name]), 1),
            "highest": round(max(rates[name]), 1),
            "mean_response_tokens": round(lengths[name], 1),
        }
        for name, rate in medians.items()
    }


def _now(device: str) -> float:
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def machine(device: str) -> dict[str, Any]:
    """Return what the figures were measured on."""
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    return {
        "device": gpu or platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="10m")
    parser.add_argument("--prompts", type=int, default=128)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new", type=int, default=256)
    parser.add_argument("--mean-response", type=float, default=100)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--attention", choices=("eager", "sdpa"), default="sdpa")
    parser.add_argument("--static", action="store_true", help="also generate with a static cache")
    parser.add_argument("--contenders", default="", help="names, separated by ';'; all")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results = timed(args)
    for name, row in results.items():
        print(f"{name:36s} {row['tokens_per_second']:9.1f} tokens/s  {row['ratio']:6.2f}x")
    if args.out is not None:
        command = ["python", "benchmarks/generation.py", *sys.argv[1:]]
        found = {"command": " ".join(command), "machine": machine(args.device), "results": results}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
