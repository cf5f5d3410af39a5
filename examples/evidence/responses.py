"""A saved model's responses to held-out prompts, and its log-probs of the real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spin_composer.data.examples import Example

SEED = 2401
"""Of sampling: the same for all models, and apart from every seed of training."""
_SCORED_ROWS = 32
"""Rows of a forward pass."""


@dataclass(frozen=True)
class Responses:
    """[n] rows: each prompt as often as it is answered."""

    real: list[str]
    sampled: list[str]
    real_tokens: list[int]
    """The stop token included."""
    sampled_tokens: list[int]
    stopped: list[bool]
    real_logps: list[float]
    """Sums, in nats."""


def respond(config: Mapping[str, Any], model: Path, rows: Path, samples: int) -> Responses:
    """Sample responses at the game's own settings, and score the real ones.

    Args:
        config: Of the game: how rows are tokenized, how long responses may be.
        model: Folder of model and tokenizer.
        rows: jsonl of held-out rows.
        samples: Responses to each row's prompt.
    """
    import torch
    from transformers import AutoTokenizer

    from spin_composer import HFSpinLM
    from spin_composer.data.pairs import STOP
    from spin_composer.data.sources import read_rows
    from spin_composer.data.tokenization import build_examples
    from spin_composer.engines.hf.generator import HFGenerator
    from spin_composer.settings.dataset import read_config
    from spin_composer.settings.generation import GenerationSettings

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer: Any = AutoTokenizer.from_pretrained(model, **config["tokenizer"]["kwargs"])
    dataset = read_config(
        {**config["eval_loader"]["dataset"], "hf_name": str(rows)}, "eval_loader.dataset"
    )
    examples = build_examples(read_rows(dataset), tokenizer, dataset)
    policy: Any = HFSpinLM(tokenizer, str(model), use_train_metrics=False).model.to(device).eval()
    engine = HFGenerator(
        model=policy,
        tokenizer=tokenizer,
        stop_token_id=examples.stop_token_id,
        settings=GenerationSettings(**config["algorithms"]["spin"]["generation"]),
        device=device,
    )
    asked = [example for example in examples for _ in range(samples)]
    answers = engine.generate([example.prompt for example in asked], SEED)
    ends = {examples.stop_token_id}
    logps = _logps(policy, list(examples), device)
    return Responses(
        real=[tokenizer.decode(_without(ends, example.response)) for example in asked],
        sampled=[tokenizer.decode(_without(ends, answer.ids)) for answer in answers],
        real_tokens=[len(example.response) for example in asked],
        sampled_tokens=[len(answer.ids) for answer in answers],
        stopped=[answer.finish == STOP for answer in answers],
        real_logps=[logp for logp in logps for _ in range(samples)],
    )


def _without(ends: set[int], ids: Sequence[int]) -> list[int]:
    """Return ids without the stop token at their end."""
    kept = [int(i) for i in ids]
    return kept[:-1] if kept and kept[-1] in ends else kept


def _logps(policy: Any, examples: Sequence[Example], device: Any) -> list[float]:
    """Return the log-prob sum of each response."""
    import torch

    from spin_composer.data.held_out import IGNORED, collate_held_out

    found: list[float] = []
    for i in range(0, len(examples), _SCORED_ROWS):
        batch = collate_held_out(examples[i : i + _SCORED_ROWS], pad_token_id=0)
        ids, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
        with torch.no_grad():
            logits = policy(input_ids=ids, attention_mask=mask).logits[:, :-1]
        labels = batch["labels"][:, 1:].to(device)
        scored = labels != IGNORED
        targets = labels.clamp_min(0)[:, :, None]
        logps = logits.float().log_softmax(-1).gather(2, targets)[:, :, 0]
        found += (logps * scored).sum(1).double().tolist()
    return found
