"""Warning if held-out rows are tokenized differently than the training rows."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any

from composer.core import Evaluator
from composer.utils import dist

from spin_composer.data.examples import ExampleDataset
from spin_composer.data.held_out import HeldOutRows

log = logging.getLogger(__name__)


def warn_about_tokenization_mismatch(
    evaluators: Sequence[Evaluator], examples: ExampleDataset
) -> None:
    """Warn about evaluations of held-out rows that are tokenized differently than in training.

    Args:
        evaluators: The Trainer's evaluators.
        examples: The training rows.
    """
    for evaluator in evaluators if dist.get_global_rank() == 0 else ():
        loader = evaluator.dataloader.dataloader
        rows = getattr(loader, "dataset", None)
        found = None
        if isinstance(rows, HeldOutRows):
            found = _spin_mismatch(rows.examples, examples)
        elif _is_foundry_loader(loader):
            found = _foundry_mismatch(examples)
        if found:
            log.warning(f"metrics/{evaluator.label}: held-out rows are measured by other {found}")


def _is_foundry_loader(loader: object) -> bool:
    if sys.modules.get("llmfoundry") is None:
        return False  # no loader can be llm-foundry's
    from spin_composer.foundry.finetuning import Seq2SeqFinetuningCollator

    collator: Any = getattr(loader, "collate_fn", None)
    while hasattr(collator, "base_collator"):  # wrappers that count tokens or pack
        collator = collator.base_collator
    return isinstance(collator, Seq2SeqFinetuningCollator)


def _spin_mismatch(held_out: ExampleDataset, examples: ExampleDataset) -> str:
    if held_out.tokenize != examples.tokenize:
        return (
            f"ids than are trained on: tokenize is {held_out.tokenize} there and "
            f"{examples.tokenize} in training. Write the same in both dataset blocks."
        )
    if held_out.stop_token_id != examples.stop_token_id:
        return (
            f"ids than are trained on: their responses end with token {held_out.stop_token_id} "
            f"({held_out.kind} rows), training's with {examples.stop_token_id} ({examples.kind} "
            "rows). Write held-out rows as the trained ones are written."
        )
    return ""


def _foundry_mismatch(examples: ExampleDataset) -> str:
    if examples.tokenize == "turns":
        return ""
    rows = list(examples.tokenized_both_ways())
    differ = sum(row.differ for row in rows)
    if not differ:
        return ""
    return (
        "ids than are trained on: llm-foundry's loader tokenizes turn by turn, which differs on "
        f"{differ} of the first {len(rows)} rows. Set eval_loader.name: spin."
    )
