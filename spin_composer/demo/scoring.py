"""The task score of a saved model: how many of its own samples a checker accepts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from spin_composer.demo.world import Row

SCORING_SEED = 2401
"""The same for every model that is scored, and apart from every seed of training."""


@dataclass(frozen=True)
class Score:
    """Figures of a model's samples."""

    share_valid: float
    """Share of sampled responses that the checker accepts; those cut off by length are not."""
    generated_length: float
    """Mean number of response tokens, the stop token included."""
    responses: int
    """Responses sampled."""


def score(
    model: Path,
    rows: Sequence[Row],
    accept: Callable[[Row, str], bool],
    *,
    samples: int,
    max_new_tokens: int,
    batch_size: int = 256,
) -> Score:
    """Sample a saved model's responses at temperature 1, and check them.

    Args:
        model: Folder of the model and tokenizer.
        rows: Whose prompts are answered.
        accept: Tells whether a response to a row's prompt is right.
        samples: Responses per row.
        max_new_tokens: Longest response.
        batch_size: Prompts per generation batch.
    """
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from spin_composer.self_play.engine import HFEngine
    from spin_composer.self_play.store import STOP
    from spin_composer.settings import GenerationSettings

    tokenizer = AutoTokenizer.from_pretrained(model)
    engine = HFEngine(
        model=AutoModelForCausalLM.from_pretrained(model),
        tokenizer=tokenizer,
        stop_token_id=tokenizer.eos_token_id,
        settings=GenerationSettings(max_new_tokens=max_new_tokens, batch_size=batch_size),
        device=torch.device("cpu"),
    )
    asked = [row for row in rows for _ in range(samples)]
    prompts = [np.asarray(tokenizer(row.prompt)["input_ids"], np.int32) for row in asked]
    responses = engine.generate(prompts, SCORING_SEED)
    accepted = sum(
        response.finish == STOP and accept(row, tokenizer.decode(response.ids[:-1]))
        for row, response in zip(asked, responses, strict=True)
    )
    tokens = sum(len(response.ids) for response in responses)
    return Score(accepted / len(asked), tokens / len(asked), len(asked))
