"""The model card of an export: what was trained, on what, how, and how it is loaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import xxhash
from composer.core import State
from transformers import GenerationConfig

from spin_composer.report.history import ITERATION, RunHistory
from spin_composer.report.table import columns_of, format_metric
from spin_composer.settings.spin import SpinSettings
from spin_composer.versions import installed_version, stack_line

CARD = "README.md"
_MARK = re.compile(r"<!-- spin_composer's own card ([0-9a-f]{16}); [^>]* -->\n")
_PAPER = "https://arxiv.org/abs/2401.01335"


@dataclass(frozen=True)
class RunFacts:
    """What an export says of the run that made it."""

    run_name: str
    data: str
    """Where the rows come from."""
    num_rows: int
    renders_chats: bool
    """Rows are conversations, which the tokenizer's chat template renders."""
    num_iterations: int
    """T of the whole run."""
    settings: SpinSettings
    stop_token_id: int
    """The token that ends responses."""
    history: Callable[[int, State], RunHistory]
    """Returns the figures up to an iteration, which may still be trained."""


def neutral_generation_config(stop: int, eos: int | None, pad: int | None) -> GenerationConfig:
    """Return a config that samples from the model itself, and stops where the run's responses do.

    Args:
        stop: The stop token.
        eos: The tokenizer's EOS; ends a text too.
        pad: The tokenizer's padding token.
    """
    ends = stop if eos in (None, stop) else [stop, eos]
    return GenerationConfig(
        do_sample=True, top_k=0, eos_token_id=ends, pad_token_id=stop if pad is None else pad
    )


def model_card(
    facts: RunFacts, history: RunHistory, base: str, iteration: int, adapters: bool
) -> str:
    """Return the text of a card.

    Args:
        facts: What is known of the run.
        history: Its figures up to this iteration.
        base: Name or folder of the model that the run began with; empty if unknown.
        iteration: Index of the iteration that was trained last.
        adapters: The folder holds adapters alone.
    """
    on_hub = re.fullmatch(r"[\w.-]+/[\w.-]+", base) and not Path(base).exists()
    head = ["---", f"library_name: {'peft' if adapters else 'transformers'}"]
    head += [f"base_model: {base}"] if on_hub else []
    head += ["tags: [spin, self-play, spin_composer]", "---", ""]
    versions = f"spin_composer {installed_version('spin-composer') or 'unknown'}, {stack_line()}"
    body = f"""# {facts.run_name or "SPIN"}, iteration {iteration}

Trained by self-play fine-tuning (SPIN, {_PAPER}): in each iteration a frozen copy of the model
answers the prompts of the SFT data, and the model is trained to prefer the real responses.

| | |
|---|---|
| base model | {base or "a model in memory"} |
| data | {facts.data}, {facts.num_rows} rows |
| iterations | {iteration + 1} of {facts.num_iterations}, {facts.settings.epochs_per_iteration} \
epochs each |
| made with | {versions} |

## How to load

```python
{_loading(adapters, base)}
```

`generation_config.json` samples from the model's own distribution (temperature 1) and ends at the
stop token of the training data.

## Figures

{_figures(history)}

## Settings

Of `algorithms.spin`, where they differ from the defaults:

{_settings(facts.settings)}

## License

Not stated here: it follows from the licenses of the base model and of the data. Write it above as
`license: ...`.
"""
    front = "\n".join(head)
    mark = f"<!-- spin_composer's own card {_hash(front + body)}; one that you change is kept -->\n"
    return front + mark + body


def keep_card(old: Path, new: Path) -> None:
    """Take over the card of the folder that an export replaces, if its user has written in it.

    Args:
        old: The folder, which need not exist.
        new: The new one, with a card of ours or none.
    """
    before = old / CARD
    if before.is_file() and not is_own_card(before.read_text(encoding="utf-8", errors="replace")):
        (new / CARD).write_bytes(before.read_bytes())


def is_own_card(text: str) -> bool:
    """Return whether a card is as an export wrote it."""
    found = _MARK.search(text)
    return found is not None and found[1] == _hash(text[: found.start()] + text[found.end() :])


def _hash(text: str) -> str:
    return xxhash.xxh64_hexdigest(text.encode())


def _loading(adapters: bool, base: str) -> str:
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer", ""]
    model = 'AutoModelForCausalLM.from_pretrained("this folder", torch_dtype="auto")'
    if adapters:
        lines.insert(0, "from peft import PeftModel")
        name = base or "the base model"
        lines.append(f'base = AutoModelForCausalLM.from_pretrained("{name}")')
        model = 'PeftModel.from_pretrained(base, "this folder")'
    lines += [f"model = {model}", 'tokenizer = AutoTokenizer.from_pretrained("this folder")']
    return "\n".join(lines)


def _figures(history: RunHistory) -> str:
    columns = columns_of(history)
    rows: list[Sequence[str]] = [["iteration", *(column.title for column in columns)]]
    rows.append(["---"] * len(rows[0]))
    records = [("base", history.baseline)]
    records += [(f"{record[ITERATION]:.0f}", record) for record in history.iterations]
    rows += [[name, *(format_metric(one, column) for column in columns)] for name, one in records]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _settings(settings: SpinSettings) -> str:
    default, lines = SpinSettings(), []
    for name in (one.name for one in fields(settings)):
        value = getattr(settings, name)
        if name in ("generation", "store", "remote_store"):
            continue
        if value != getattr(default, name):
            lines.append(f"- `{name}`: {value}")
    generation = settings.generation
    lines += [
        f"- `generation.{name}`: {value}"
        for name, value in generation.sampling_fields().items()
        if value != getattr(default.generation, name) or name == "max_new_tokens"
    ]
    return "\n".join(lines)
