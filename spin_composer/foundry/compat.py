"""llm-foundry 0.22 under transformers 5, which is newer than it: what breaks there is mended here.

Each patch_foundry names its cause. MPT is not mended: settings/launch.py refuses it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers
from torch import nn
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


@contextmanager
def _init_empty_weights(include_buffers: bool = False) -> Iterator[None]:
    """Make parameters on the device ``meta``, as llm-foundry's context of this name.

    llm-foundry's, and accelerate's alike, hand a parameter's attributes to ``Parameter.__new__``.
    transformers 5 marks those that it has filled by an attribute, ``_is_hf_initialized``, which is
    no such argument. Here attributes are copied.

    Args:
        include_buffers: Not supported; llm-foundry never asks for it.
    """
    assert not include_buffers
    register = nn.Module.register_parameter

    def register_empty(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(self, name, param)
        if param is not None:
            empty: Any = type(param)(param.to("meta"), requires_grad=param.requires_grad)
            empty.__dict__.update(param.__dict__)
            self._parameters[name] = empty

    nn.Module.register_parameter = register_empty  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def patch_foundry() -> None:
    """Mend llm-foundry, if it is there beside transformers 5; another time changes nothing."""
    if int(transformers.__version__.partition(".")[0]) < 5 or not foundry_is_installed():
        return
    from llmfoundry.callbacks import hf_checkpointer
    from llmfoundry.models.hf import hf_base, hf_causal_lm

    hf_base.BaseHuggingFaceModel.model_cls = _AutoModel
    hf_causal_lm.ComposerHFCausalLM.model_cls = _AutoModel
    modules: tuple[Any, ...] = (hf_base, hf_checkpointer)
    for module in modules:
        module.init_empty_weights = _init_empty_weights
