"""The task score of a saved model: the share of its samples that a checker accepts.

``python -m spin_composer.demo.scoring GSM8K.jsonl MODEL ...`` prints the exact match of the final
answers of saved models, those after ``#### ``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from spin_composer.demo.world import Row, read_rows

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

    from spin_composer.data.pairs import STOP
    from spin_composer.engines.hf.generator import HFGenerator
    from spin_composer.settings.generation import GenerationSettings

    tokenizer = AutoTokenizer.from_pretrained(model)
    policy = AutoModelForCausalLM.from_pretrained(model)
    engine = HFGenerator(
        model=policy,
        tokenizer=tokenizer,
        stop_token_id=tokenizer.eos_token_id,
        settings=GenerationSettings(max_new_tokens=max_new_tokens, batch_size=batch_size),
        device=torch.device("cpu"),
    )
    limit = policy.config.max_position_embeddings - max_new_tokens
    asked = [row for row in rows for _ in range(samples)]
    # a prompt that is too long for the model is cut on the left, as the YAMLs' truncate_prompt
    prompts = [np.asarray(tokenizer(row.prompt)["input_ids"][-limit:], np.int32) for row in asked]
    responses = engine.generate(prompts, SCORING_SEED)
    accepted = sum(
        response.finish == STOP and accept(row, tokenizer.decode(response.ids[:-1]))
        for row, response in zip(asked, responses, strict=True)
    )
    tokens = sum(len(response.ids) for response in responses)
    return Score(accepted / len(asked), tokens / len(asked), len(asked))


ANSWER_MARK = "#### "


def final_answer(response: str) -> str | None:
    """Return what stands after the last ``#### `` of a GSM8K response, or None."""
    _, mark, answer = response.rpartition(ANSWER_MARK)
    return answer.strip().replace(",", "") if mark else None


def same_answer(row: Row, response: str) -> bool:
    """Return whether a response's final answer is that of the row's response."""
    wanted = final_answer(row.response)
    return wanted is not None and final_answer(response) == wanted


def main(
    rows: Annotated[Path, typer.Argument(help="jsonl of prompt and response.")],
    models: Annotated[list[Path], typer.Argument(help="Folders of saved models.")],
    num_rows: Annotated[int, typer.Option(help="Rows answered, from the first.")] = 200,
    samples: Annotated[int, typer.Option(help="Responses per row.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(help="Longest response.")] = 160,
) -> None:
    """Print saved models' exact match of the answers after ``#### ``, sampled at temperature 1."""
    asked = read_rows(rows)[:num_rows]
    for model in models:
        found = score(
            model, asked, same_answer, samples=samples, max_new_tokens=max_new_tokens, batch_size=64
        )
        print(
            f"{model}: exact match {found.share_valid:.2%} of {found.responses} responses, mean "
            f"length {found.generated_length:.1f} tokens"
        )


if __name__ == "__main__":
    typer.run(main)
