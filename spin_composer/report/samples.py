"""The table of samples of each iteration: prompts with real and generated responses.

It is the file ``samples.jsonl`` of the iteration's folder, a JSON object per row. Beside the texts
it has each token's log-prob, which only a few rows can afford: the store's units have sums.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from spin_composer.errors import StoreError
from spin_composer.store.layout import ALL_SAMPLES

_DIGITS = 4


@dataclass(frozen=True)
class ResponseTokens:
    """The tokens of a response, with their log-probs in nats."""

    texts: Sequence[str]
    """What each token adds to the text: "" for one that ends within a character."""
    opponent: Sequence[float]
    """By the policy of the iteration's start."""
    policy: Sequence[float] = ()
    """By the policy of the iteration's end; empty until then."""

    def gain(self) -> float:
        """Return the log-prob sum of the policy less the opponent's."""
        return sum(self.policy) - sum(self.opponent)


@dataclass(frozen=True)
class Sample:
    """A row of the table: a prompt with its real and its generated response, as texts."""

    iteration: int
    index: int
    """The row of the data set."""
    prompt: str
    real: str
    generated: str
    finish: str
    """Why the generated response ended: ``stop``, ``length`` or ``stop string``."""
    real_tokens: ResponseTokens | None = None
    """None in a table that an older version wrote."""
    generated_tokens: ResponseTokens | None = None

    def margin(self) -> float | None:
        """Return the pair's margin before beta, in nats; None if the iteration is not trained."""
        real, generated = self.real_tokens, self.generated_tokens
        if real is None or generated is None or not real.policy or not generated.policy:
            return None
        return real.gain() - generated.gain()


_TOKENS = ("real_tokens", "generated_tokens")
COLUMNS = [field.name for field in fields(Sample) if field.name not in _TOKENS]
"""The columns of the table that loggers get."""


def as_rows(samples: Iterable[Sample]) -> list[list[int | str]]:
    """Return the table's cells by row, in the order of :data:`COLUMNS`."""
    return [[getattr(sample, name) for name in COLUMNS] for sample in samples]


def as_jsonl(samples: Iterable[Sample], with_tokens: bool = True) -> str:
    """Return the table as a text of one JSON object per line.

    Args:
        samples: The rows.
        with_tokens: Write the tokens too.
    """
    return "".join(f"{json.dumps(_content(sample, with_tokens))}\n" for sample in samples)


def parse_samples(text: str, where: object) -> list[Sample]:
    """Return the rows of a table.

    Args:
        text: The file's text.
        where: Its name, for messages.

    Raises:
        StoreError: If a line is damaged.
    """
    samples = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            samples.append(_sample(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"{where}, line {number}, is damaged ({error!r}). Remove the file; only reports "
                "need it."
            ) from None
    return samples


def read_samples(store: Path) -> list[Sample]:
    """Return the samples of all iterations of a store's folder, in order.

    Raises:
        StoreError: If a table is damaged.
    """
    return [
        sample
        for path in sorted(store.glob(ALL_SAMPLES))
        for sample in parse_samples(path.read_text(encoding="utf-8", errors="replace"), path)
    ]


def _content(sample: Sample, with_tokens: bool) -> dict[str, Any]:
    content: dict[str, Any] = {name: getattr(sample, name) for name in COLUMNS}
    for name in _TOKENS if with_tokens else ():
        tokens: ResponseTokens | None = getattr(sample, name)
        if tokens is not None:
            rounded = {side: [round(x, _DIGITS) for x in getattr(tokens, side)]
                       for side in ("opponent", "policy")}  # fmt: skip
            content[name] = {**asdict(tokens), **rounded}
    return content


def _sample(found: dict[str, Any]) -> Sample:
    prompt, real, generated, finish = (
        str(found[name]) for name in ("prompt", "real", "generated", "finish")
    )
    real_tokens, generated_tokens = (
        _tokens(found[name]) if found.get(name) else None for name in _TOKENS
    )
    return Sample(
        int(found["iteration"]), int(found["index"]), prompt, real, generated, finish,
        real_tokens, generated_tokens,
    )  # fmt: skip


def _tokens(found: dict[str, Any]) -> ResponseTokens:
    texts = [str(text) for text in found["texts"]]
    opponent, policy = ([float(x) for x in found.get(s, ())] for s in ("opponent", "policy"))
    if len(opponent) != len(texts) or len(policy) not in (0, len(texts)):
        raise ValueError(f"{len(texts)} tokens have {len(opponent)} and {len(policy)} log-probs")
    return ResponseTokens(texts, opponent, policy)
