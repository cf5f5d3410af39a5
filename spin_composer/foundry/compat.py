"""llm-foundry 0.22 under transformers 5, which is newer than it: what breaks there is mended here.

Each mend names its cause. MPT is not mended: settings/launch.py refuses it.
"""

from __future__ import annotations

from typing import Any

import transformers
from transformers import AutoModelForCausalLM

from spin_composer.foundry.installed import foundry_is_installed


class _AutoModel(AutoModelForCausalLM):
    """What llm-foundry loads causal LMs by, without arguments that transformers 5 has dropped.

    ``hf_base.py`` hands on ``use_auth_token`` and ``load_in_8bit`` whatever they are, and
    transformers 5 passes what it does not know to the model's ``__init__``, which refuses it.
    SPIN refuses settings that quantize, and a token is read from the environment.
    """

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        for dropped in ("use_auth_token", "load_in_8bit"):
            kwargs.pop(dropped, None)
        return AutoModelForCausalLM.from_pretrained(*args, **kwargs)


def mend() -> None:
    """Mend llm-foundry, if it is there beside transformers 5; another time changes nothing."""
    if int(transformers.__version__.partition(".")[0]) < 5 or not foundry_is_installed():
        return
    from accelerate import init_empty_weights
    from llmfoundry.callbacks import hf_checkpointer
    from llmfoundry.models.hf import hf_base, hf_causal_lm

    hf_base.BaseHuggingFaceModel.model_cls = _AutoModel
    hf_causal_lm.ComposerHFCausalLM.model_cls = _AutoModel
    # llm-foundry's own makes parameters anew from their attributes, among which transformers 5 has
    # put ``_is_hf_initialized``: no argument of a parameter. accelerate's leaves it out.
    modules: tuple[Any, ...] = (hf_base, hf_checkpointer)
    for module in modules:
        module.init_empty_weights = init_empty_weights
