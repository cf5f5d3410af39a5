"""Do engine ``hf`` and plain ``generate`` draw from the policy's own distribution, on this device?

    python benchmarks/gpu/distribution.py FOLDER MODEL ROWS --precision amp_bf16 --device cuda

Each answers the same prompts. Then one forward pass over the whole sequences gives the exact
distribution of every token, and with it the token's *rank transform*: the probability of the
tokens that are more likely, plus a random share of its own. Of tokens drawn from that distribution
these are independent and uniform, whatever the model: the Kolmogorov-Smirnov statistic says
whether they are. A control, the same tokens held against logits that are half as large, must not
pass.

Dimensions: B rows, T positions, V vocabulary, n tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "kernels"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
from composer.core import Precision, get_precision_context
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from spin_composer.demo.world import read_rows
from spin_composer.engines.hf.generator import HFGenerator
from spin_composer.settings.generation import GenerationSettings

FIGURES = "distribution.json"
CRITICAL = 2.3
"""Of sqrt(n) times the statistic; exceeded by chance once in 20,000 times: 2 exp(-2 x 2.3^2)."""
MAX_NEW_TOKENS = 16


def by_engine(
    model: Any, prompts: Sequence[np.ndarray], stop: int, device: Any, precision: Any
) -> list[np.ndarray]:
    """Return the responses of engine ``hf``."""
    settings = GenerationSettings(max_new_tokens=MAX_NEW_TOKENS, batch_size=128)
    engine = HFGenerator(model, None, stop, settings, device, precision)  # type: ignore[arg-type]
    return [response.ids for response in engine.generate(prompts, seed=11)]


def by_generate(
    model: Any, prompts: Sequence[np.ndarray], stop: int, device: Any, precision: Any
) -> list[np.ndarray]:
    """Return the responses of transformers' ``generate``, by batches padded on the left."""
    torch.manual_seed(11)
    found = []
    for first in range(0, len(prompts), 128):
        batch = prompts[first : first + 128]
        width = max(map(len, batch))
        ids = torch.full((len(batch), width), stop)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(batch):
            ids[row, width - len(prompt) :] = torch.from_numpy(prompt).long()
            mask[row, width - len(prompt) :] = 1
        with precision():
            output = model.generate(
                input_ids=ids.to(device), attention_mask=mask.to(device), do_sample=True, top_k=0,
                max_new_tokens=MAX_NEW_TOKENS, eos_token_id=stop, pad_token_id=stop,
            )  # fmt: skip
        for row in output[:, width:].cpu().numpy():
            ends = np.flatnonzero(row == stop)
            found.append(row[: ends[0] + 1] if len(ends) else row)
    return found


def rank_transforms(logits: Tensor, tokens: Tensor, uniforms: Tensor) -> Tensor:
    """Return [n] numbers that are uniform if ``tokens`` were drawn from ``logits``.

    Args:
        logits: [n, V].
        tokens: [n] int64.
        uniforms: [n] in [0, 1).
    """
    chances, order = logits.double().softmax(-1).sort(-1, descending=True)
    place = (order == tokens[:, None]).long().argmax(-1, keepdim=True)  # [n, 1]
    own = chances.gather(1, place)[:, 0]
    return chances.cumsum(-1).gather(1, place)[:, 0] - own + uniforms * own


def statistic(values: Tensor) -> float:
    """Return sqrt(n) times the Kolmogorov-Smirnov distance of ``values`` [n] from uniform."""
    n = len(values)
    ordered = values.sort().values
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    distance = torch.maximum(steps[1:] - ordered, ordered - steps[:-1]).max()
    return math.sqrt(n) * float(distance)


@torch.no_grad()
def logits_of_responses(
    model: Any, prompts: Sequence[np.ndarray], responses: Sequence[np.ndarray], device: Any,
    precision: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the logits [n, V] before each response token, and the tokens [n], on the CPU."""
    logits, tokens = [], []
    for first in range(0, len(prompts), 128):
        rows = list(zip(prompts[first : first + 128], responses[first : first + 128], strict=True))
        width = max(len(prompt) + len(response) for prompt, response in rows)
        ids = torch.zeros(
            (len(rows), width), dtype=torch.int64
        )  # padded on the right: no mask needed
        for row, (prompt, response) in enumerate(rows):
            ids[row, : len(prompt) + len(response)] = torch.from_numpy(
                np.concatenate([prompt, response])
            ).long()
        with precision():
            found = model(input_ids=ids.to(device)).logits.float().cpu()  # [B, T, V]
        for row, (prompt, response) in enumerate(rows):
            logits.append(found[row, len(prompt) - 1 : len(prompt) + len(response) - 1])
            tokens.append(torch.from_numpy(response.astype(np.int64)))
    return torch.cat(logits), torch.cat(tokens)


def main() -> None:
    """Sample, compare, and write the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--answers", type=int, default=4, help="to each row's prompt")
    given = parser.parse_args()
    device = torch.device(given.device)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    model: Any = AutoModelForCausalLM.from_pretrained(given.model).float().to(device).eval()
    stop = tokenizer.eos_token_id

    def precision() -> Any:
        return get_precision_context(Precision(given.precision), None)

    texts = [row.prompt for row in read_rows(given.rows) for _ in range(given.answers)]
    prompts = [np.asarray(tokenizer(text)["input_ids"], np.int32) for text in texts]
    found: dict[str, Any] = {"critical": CRITICAL}
    for name, answer in (("engine hf", by_engine), ("generate", by_generate)):
        responses = answer(model, prompts, stop, device, precision)
        logits, tokens = logits_of_responses(model, prompts, responses, device, precision)
        uniforms = torch.rand(
            len(tokens), generator=torch.Generator().manual_seed(3), dtype=torch.float64
        )
        found[name] = {
            "tokens": len(tokens),
            "statistic": statistic(rank_transforms(logits, tokens, uniforms)),
            "control": statistic(rank_transforms(logits / 2, tokens, uniforms)),
        }
    (given.folder / FIGURES).write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
