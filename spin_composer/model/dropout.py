"""Disable dropout for policy and opponent: their log-probs must be comparable."""

from __future__ import annotations

from torch import nn


def disable_dropout(model: nn.Module) -> int:
    """Set every dropout and router-jitter probability of ``model`` to 0; its mode is not changed.

    ``eval()`` would disable dropout as well, but also Hugging Face's gradient checkpointing.

    Returns:
        How many probabilities were above 0.
    """
    changed = 0
    configs: dict[int, object] = {}
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            module.p = 0.0
            changed += 1
        changed += _zero_probabilities(module)
        config = getattr(module, "config", None)  # some models read it in forward (Falcon)
        if hasattr(config, "to_dict"):
            configs[id(config)] = config
    return changed + sum(_zero_probabilities(config) for config in configs.values())


def _zero_probabilities(owner: object) -> int:
    """Set the positive floats of ``owner`` named for dropout or jitter to 0; return how many."""
    names = [
        name
        for name, value in vars(owner).items()
        if isinstance(value, float) and value > 0 and ("drop" in name or "jitter" in name)
    ]
    for name in names:
        setattr(owner, name, 0.0)
    return len(names)
