"""How a foreign config's model is spread over the GPUs."""

from __future__ import annotations

from typing import Any

from spin_composer.importers.foreign import ForeignConfig
from spin_composer.importers.fresh import FreshYaml

_ONE_GPU = "FSDP recomputes activations, and one GPU has none: they are kept, in more memory"


def put_sharding(
    theirs: ForeignConfig, draft: FreshYaml, ranks: int, key: str, recompute: bool
) -> None:
    """Shard the model, if there are several GPUs.

    Args:
        theirs: The foreign config.
        draft: The YAML.
        ranks: Number of GPUs.
        key: The foreign key that says whether activations are recomputed.
        recompute: Recompute activations in backward.
    """
    if ranks == 1:  # llm-foundry drops fsdp_config there
        theirs.explain(key, _ONE_GPU if recompute else "activations are kept")
        return
    sharding: dict[str, Any] = {
        "sharding_strategy": "FULL_SHARD",
        "mixed_precision": "DEFAULT",
        "activation_checkpointing": recompute,
        "activation_checkpointing_reentrant": False,
        "limit_all_gathers": True,
        "sync_module_states": True,
        "state_dict_type": "sharded",
        "use_orig_params": True,
    }
    why = f"shards weights, gradients and optimizer over {ranks} GPUs"
    draft.put("fsdp_config", sharding, key, why)
