"""What a trained model is measured by: spin_composer/judge, on test rows that nothing else uses."""

from __future__ import annotations

from pathlib import Path

from examples.evidence.responses import respond
from examples.evidence.worlds import Setting, World

_RESAMPLES = 50
"""Few: the errors that are reported are those over seeds."""


def measure_model(world: World, setting: Setting, model: Path) -> dict[str, float]:
    """Return the measures of a saved model by name.

    Each test row is a unit by itself, though small worlds have rows of the same prompt: the real
    responses to it are as independent as the model's, and their diversity is that of as many texts.

    Args:
        world: What it was trained in, with its own measures.
        setting: The world's test rows.
        model: Folder of model and tokenizer.
    """
    from spin_composer.judge.measures import measure

    found = respond(world.config(), model, setting.test, world.samples)
    measures = measure(
        found.real,
        found.sampled,
        [str(row // world.samples) for row in range(len(found.real))],
        real_tokens=found.real_tokens,
        sampled_tokens=found.sampled_tokens,
        stopped=found.stopped,
        real_logps=found.real_logps,
        answer=world.answer,
        resamples=_RESAMPLES,
    )
    return {
        **{name: one.value for name, one in measures.known().items()},
        **world.measure(model, setting, found.sampled),
    }
