"""Load or create a causal LM of transformers for training, as each rank's init device requires.

No rank waits for another's download in a collective, which the process group's timeout would abort;
an error on one rank is raised on all.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from accelerate import init_empty_weights
from composer.utils import dist
from transformers import AutoModelForCausalLM, GenerationConfig, PretrainedConfig, PreTrainedModel

from spin_composer.distributed import on_each_node_in_turn
from spin_composer.errors import InputError, UserError, explain, format_value
from spin_composer.extras import missing_peft
from spin_composer.pretrained.config import (
    DEFAULT_ATTENTION,
    DTYPE,
    read_config,
    read_generation_config,
    weights_dtype,
)
from spin_composer.settings.model import (
    META_LOADS_NOTHING,
    NO_FLASH_ATTENTION,
    check_model_settings,
)

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

T = TypeVar("T")

log = logging.getLogger(__name__)

INIT_DEVICES = ("cpu", "meta", "mixed")


@dataclass(frozen=True)
class Source:
    """The source of a model, and how its weights are initialized."""

    name: str
    """A folder or a Hub name."""
    pretrained: bool = True
    """Load its weights; otherwise they are random, by its config."""
    trust_remote_code: bool = False
    """Run Python code that comes with it."""
    token: bool | str | None = False
    """Hub token; true uses the one of ``hf auth login``, false sends none."""
    attn_implementation: str = DEFAULT_ATTENTION
    """One of transformers'."""
    init_device: Literal["cpu", "meta", "mixed"] = "cpu"
    """``meta``: no rank makes weights, FSDP does; ``mixed``: rank 0 loads, FSDP passes on."""
    config_overrides: Mapping[str, Any] = field(default_factory=dict)
    """Settings of its config that differ."""

    def __post_init__(self) -> None:
        """Reject what cannot be loaded, before anything is read."""
        if self.init_device not in INIT_DEVICES:
            raise InputError(
                f"model.init_device must be one of {', '.join(INIT_DEVICES)}, got "
                f"{format_value(self.init_device)}."
            )
        if self.init_device == "meta" and self.pretrained:
            raise InputError(
                f"{META_LOADS_NOTHING}, or model.pretrained=false."
            )
        flash = self.attn_implementation == "flash_attention_2"
        if flash and importlib.util.find_spec("flash_attn") is None:
            raise InputError(
                f"model.attn_implementation=flash_attention_2, {NO_FLASH_ATTENTION}"
            )
        if self.name.startswith("mosaicml/mpt"):
            raise InputError(
                f"model.pretrained_model_name_or_path={self.name}: MPT of the Hub is not "
                "supported. Take another model, or train MPT as mpt_spin_lm."
            )

    @property
    def on_meta(self) -> bool:
        """Whether this rank's weights have no storage until FSDP allocates it."""
        mixed = self.init_device == "mixed" and dist.get_global_rank() != 0
        return mixed or self.init_device == "meta"


def check_loading(
    load_in_8bit: bool, use_flash_attention_2: bool, attn_implementation: str | None
) -> None:
    """Reject invalid values of arguments of llm-foundry's models.

    Raises:
        InputError: Names the argument.
    """
    check_model_settings({"load_in_8bit": load_in_8bit}, allow_low_precision=True)
    if use_flash_attention_2 and attn_implementation not in (None, "flash_attention_2"):
        raise InputError(
            "model.use_flash_attention_2=true and model.attn_implementation="
            f"{attn_implementation} contradict each other. Remove one of them."
        )


def load_causal_lm(source: Source) -> PreTrainedModel:
    """Return the model on this rank; a collective where a process group is up.

    On each node local rank 0 goes first and the others find what it downloaded. Weights are fp32
    unless ``config_overrides`` say otherwise. The generation config is the model's own.

    Args:
        source: The model.

    Raises:
        InputError: On every rank, if one cannot read the model.
    """
    config, generation = on_each_node_in_turn(lambda: _read(source))
    model = on_each_node_in_turn(lambda: _made(source, config))
    if generation is not None:
        model.generation_config = generation
    elif dist.get_global_rank() == 0:
        log.warning(f"{source.name} has no generation config: transformers' defaults are taken.")
    if source.on_meta:
        model.tie_weights()  # moving parameters to meta one by one has untied them
    return model


def load_adapters(model: PreTrainedModel, name: str, token: bool | str | None) -> PeftModel:
    """Return a model with trainable LoRA adapters from a folder or a Hub name.

    Raises:
        InputError: On every rank, if one cannot read them or peft is not installed.
    """
    _require_peft("model.pretrained_lora_id_or_path")
    from peft import PeftModelForCausalLM

    def load() -> PeftModel:
        return PeftModelForCausalLM.from_pretrained(model, name, is_trainable=True, token=token)

    return on_each_node_in_turn(
        lambda: _named(f"model.pretrained_lora_id_or_path={name}: the adapters", load)
    )


def lora_config(settings: Mapping[str, Any]) -> LoraConfig:
    """Return peft's config of a YAML's ``peft_config``.

    Raises:
        InputError: It is not LoRA of a causal LM, or peft is not installed.
    """
    _require_peft("model.peft_config")
    from peft import LoraConfig

    wanted = {"peft_type": "LORA", "task_type": "CAUSAL_LM"}
    for key, value in wanted.items():
        if str(settings.get(key, "")).upper() != value:
            raise InputError(
                f"model.peft_config.{key} must be {value}, got {format_value(settings.get(key))}."
            )
    return LoraConfig(**{**settings, **wanted})


def _require_peft(where: str) -> None:
    problem = missing_peft(where)
    if problem is not None:
        raise InputError(problem)


def _read(source: Source) -> tuple[PretrainedConfig, GenerationConfig | None]:
    where = f"model.pretrained_model_name_or_path={source.name}"
    config = _named(
        f"{where}: its config",
        lambda: read_config(
            source.name,
            trust_remote_code=source.trust_remote_code,
            token=source.token,
            attn_implementation=source.attn_implementation,
            overrides=source.config_overrides,
        ),
    )
    return config, read_generation_config(source.name, source.token)


def _made(source: Source, config: PretrainedConfig) -> PreTrainedModel:
    """Return this rank's model: with the pretrained weights, with random ones, or without."""
    how: dict[str, Any] = {
        "trust_remote_code": source.trust_remote_code,
        "attn_implementation": source.attn_implementation,
    }
    where = f"model.pretrained_model_name_or_path={source.name}"
    if source.on_meta:
        with init_empty_weights(include_buffers=False):
            return AutoModelForCausalLM.from_config(config, **how)
    if not source.pretrained:
        return AutoModelForCausalLM.from_config(config, **how)
    return _named(
        f"{where}: its weights",
        lambda: AutoModelForCausalLM.from_pretrained(
            source.name, config=config, token=source.token, **{DTYPE: weights_dtype(config)}, **how
        ),
    )


def _named(what: str, make: Callable[[], T]) -> T:
    """Return what ``make`` returns; convert errors to one that names what could not be loaded.

    Errors of the environment (a full disk, missing permissions) are not converted.
    """
    try:
        return make()
    except UserError:
        raise
    except Exception as error:
        explained = explain(error)
        if explained is not None and explained[0] != InputError.exit_code:
            raise
        raise InputError(
            f"{what} cannot be loaded ({type(error).__name__}: "
            f"{' '.join(str(error).split())[:400]}). Give a folder or a Hub name that holds them, "
            "and settings that fit."
        ) from error
