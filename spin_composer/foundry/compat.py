"""Patches that llm-foundry 0.22 needs under transformers 5, which is newer than it.

Each patch names its cause. MPT is not patched: settings/model.py rejects it.
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
    """llm-foundry's loader of causal LMs, without arguments that transformers 5 has removed.

    ``hf_base.py`` always passes ``use_auth_token`` and ``load_in_8bit``, and transformers 5
    forwards unknown arguments to the model's ``__init__``, which rejects them. SPIN rejects
    settings that quantize, and a token is read from the environment.
    """

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        for dropped in ("use_auth_token", "load_in_8bit"):
            kwargs.pop(dropped, None)
        return AutoModelForCausalLM.from_pretrained(*args, **kwargs)


@contextmanager
def _init_empty_weights(include_buffers: bool = False) -> Iterator[None]:
    """Create parameters on the device ``meta``, like llm-foundry's context of this name.

    llm-foundry and accelerate pass a parameter's attributes to ``Parameter.__new__``.
    transformers 5 marks initialized parameters with an attribute, ``_is_hf_initialized``, which
    ``__new__`` does not accept. Here attributes are copied.

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
    """Patch llm-foundry if it is installed with transformers 5; idempotent."""
    if int(transformers.__version__.partition(".")[0]) < 5 or not foundry_is_installed():
        return
    from llmfoundry.callbacks import hf_checkpointer
    from llmfoundry.models.hf import hf_base, hf_causal_lm

    hf_base.BaseHuggingFaceModel.model_cls = _AutoModel
    hf_causal_lm.ComposerHFCausalLM.model_cls = _AutoModel
    modules: tuple[Any, ...] = (hf_base, hf_checkpointer)
    for module in modules:
        module.init_empty_weights = _init_empty_weights
