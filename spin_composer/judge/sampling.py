"""A model's responses to held-out prompts, and its log-probs of the real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from composer.devices import Device
from composer.utils import dist

from spin_composer.data.pairs import LENGTH, Ids, Pair, collate_pairs
from spin_composer.distributed import gather_in_own_time
from spin_composer.engines.base import Response
from spin_composer.engines.hf.generator import HFGenerator
from spin_composer.fsdp import gathered, reshard
from spin_composer.judge.held_out import JudgedRows
from spin_composer.model.adapters import mergeable
from spin_composer.model.layout.padded import PADDED
from spin_composer.model.lm import SpinLM
from spin_composer.model.logprobs import sequence_sums
from spin_composer.play.plan import unit_seed
from spin_composer.settings.generation import GenerationSettings
from spin_composer.settings.judge import JudgeSettings

OnRows = Callable[[int], None]
"""Called with the number of rows that this rank has answered and scored."""


def ignore_rows(done: int) -> None:
    """Ignore the progress."""


@dataclass(frozen=True)
class JudgedRow:
    """A prompt with its real and its sampled response, and what is measured of both."""

    prompt: str
    real: str
    """Without the stop token, as ``sampled``."""
    sampled: str
    real_tokens: int
    """With the stop token, as ``sampled_tokens``."""
    sampled_tokens: int
    stopped: bool
    """The sampled response ended, by the stop token or a stop string, before the limit."""
    real_logp: float
    """The model's log-prob sum of the real response, in nats."""


@dataclass(frozen=True)
class JudgedModel:
    """A model that answers held-out prompts.

    Args:
        model: The SpinLM, wrapped by FSDP or not.
        device: Of its forward passes.
        autocast: Returns the context of its forward passes.
    """

    model: SpinLM
    device: Device
    autocast: Callable[[], AbstractContextManager[object]]

    def generator(self, stop_token_id: int, settings: GenerationSettings) -> HFGenerator:
        """Return the engine ``hf`` of this model, whose parameters must be gathered."""
        gpu = self.device.name == "gpu"
        return HFGenerator(
            self.model.model,
            self.model.tokenizer,
            stop_token_id,
            settings,
            torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu"),
            precision=self.autocast,
            merge=settings.merge_adapters and bool(mergeable(self.model.model)),
        )

    def real_logps(self, pairs: Sequence[Pair]) -> list[float]:
        """Return the log-prob sum of each pair's real response, in nats."""
        batch: Any = self.device.batch_to_device(collate_pairs(pairs))
        with self.autocast():
            # Padded: the run's layout was tried on its own rows' lengths only.
            logps = self.model.response_logps(batch, PADDED)
        return sequence_sums(logps, batch["cu_scored"]).view(-1, 2)[:, 0].tolist()


def sampling_settings(settings: JudgeSettings, run: GenerationSettings) -> GenerationSettings:
    """Return how responses are sampled: from the policy's own distribution, at temperature 1.

    They end as the run's do, at its stop strings too.

    Args:
        settings: The judge's.
        run: The run's: stop strings; longest response and batch size, where the judge's do not say.
    """
    return GenerationSettings(
        max_new_tokens=settings.max_new_tokens or run.max_new_tokens,
        stop_strings=list(run.stop_strings),
        batch_size=settings.batch_size or run.batch_size,
        merge_adapters=run.merge_adapters,
    )


@torch.no_grad()
def sample_rows(
    judged: JudgedModel,
    rows: JudgedRows,
    settings: GenerationSettings,
    seed: int,
    on_rows: OnRows = ignore_rows,
) -> list[JudgedRow]:
    """Answer the rows' prompts with a model, and score their real responses; a collective.

    Ranks share the batches, each of which has its own seed: the result is the same on any number
    of ranks, and two models draw by the same random numbers for the same row. Parameters are
    gathered once; ranks wait for each other without a timeout.

    Args:
        judged: The model.
        rows: The rows.
        settings: Of the sampling.
        seed: Of the sampling.
        on_rows: Called after each batch.
    """
    starts = list(range(0, len(rows), settings.batch_size))
    mine = starts[dist.get_global_rank() :: dist.get_world_size()]

    def answer() -> dict[int, list[JudgedRow]]:
        generator = judged.generator(rows.examples.stop_token_id, settings)
        done: dict[int, list[JudgedRow]] = {}
        for start in mine:
            chunk = range(start, min(start + settings.batch_size, len(rows)))
            prompts = [rows[row].prompt for row in chunk]
            responses = generator.generate(prompts, unit_seed(seed, 0, start))
            done[start] = list(_judged_rows(judged, rows, chunk, responses))
            on_rows(sum(map(len, done.values())))
        return done

    with gathered(judged.model):
        parts = {
            start: part for of_rank in gather_in_own_time(answer) for start, part in of_rank.items()
        }
    reshard(judged.model)
    return [row for start in starts for row in parts[start]]


def _judged_rows(
    judged: JudgedModel, rows: JudgedRows, chunk: range, responses: Sequence[Response]
) -> Iterator[JudgedRow]:
    stop = rows.examples.stop_token_id
    read = lambda ids: _text(judged.model.tokenizer, ids, stop)  # noqa: E731
    pairs = [
        Pair(rows[row].prompt, rows[row].response, response.ids)
        for row, response in zip(chunk, responses, strict=True)
    ]
    size = max(1, len(pairs) // 2)  # pairs, not rows, are scored at a time
    batches = [pairs[i : i + size] for i in range(0, len(pairs), size)]
    logps = [logp for batch in batches for logp in judged.real_logps(batch)]
    for pair, response, logp in zip(pairs, responses, logps, strict=True):
        yield JudgedRow(
            prompt=read(pair.prompt),
            real=read(pair.real),
            sampled=read(pair.generated),
            real_tokens=len(pair.real),
            sampled_tokens=len(pair.generated),
            stopped=response.finish != LENGTH,
            real_logp=logp,
        )


def _text(tokenizer: Any, ids: Ids, stop_token_id: int) -> str:
    """Return the text of ids without the last stop token; other control tokens are spelled out."""
    kept = ids[:-1] if len(ids) and ids[-1] == stop_token_id else ids
    return str(
        tokenizer.decode(
            kept.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
    )
