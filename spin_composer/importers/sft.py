"""LLM Foundry's SFT YAML as a SPIN YAML: ``spin-composer init``."""

from __future__ import annotations

import re
from pathlib import Path

from spin_composer.errors import InputError, format_value
from spin_composer.importers.draft import Draft
from spin_composer.importers.sft_data import convert_loaders
from spin_composer.importers.sft_outputs import convert_outputs
from spin_composer.importers.sft_training import convert_training
from spin_composer.settings.model import META_LOADS_NOTHING
from spin_composer.settings.yaml import MODELS, TOP_LEVEL_KEYS

_LOW = ("torch_dtype", "dtype")


def convert_sft(text: str, where: str, model: str | None = None) -> Draft:
    """Turn an SFT YAML of LLM Foundry into one of SPIN.

    Args:
        text: The YAML.
        where: Its path; names the run if it has no ``run_name``.
        model: The tuned model, a folder or a Hub name; None keeps the one that the SFT began with.

    Returns:
        The result, valid as far as it can be known without loading anything.

    Raises:
        InputError: It is no SFT of a causal LM, or has what SPIN cannot do.
    """
    draft = Draft(text, where)
    if draft.yaml.names("parameters") and not draft.yaml.has("model"):
        raise InputError(
            f"{where} is a job of the MosaicML platform: its training YAML lies under `parameters`."
            " Give that as a file of its own, and put the result in its place."
        )
    _move_variables(draft)
    _convert_model(draft, model)
    convert_loaders(draft)
    convert_training(draft)
    convert_outputs(draft, Path(where).stem)
    draft.require_valid()
    return draft


def _move_variables(draft: Draft) -> None:
    """Move top-level keys that older versions of LLM Foundry let a YAML invent."""
    for key in draft.yaml.names():
        used = rf"\$\{{{re.escape(key)}(?=[.}}])"
        if key in TOP_LEVEL_KEYS or not re.search(used, draft.yaml.text):
            continue
        value = draft.yaml.raw(key)
        draft.drop(key, f"LLM Foundry wants names of your own in variables: variables.{key}")
        draft.yaml.set(f"variables.{key}", value)
        draft.yaml.text = re.sub(used, f"${{variables.{key}", draft.yaml.text)


def _convert_model(draft: Draft, tuned: str | None) -> None:
    name = draft.value("model.name")
    if name in MODELS.values():
        raise InputError(f"{draft.where}: model.name={name} is SPIN's already. Nothing to do.")
    if name not in MODELS:
        raise InputError(
            f"{draft.where}: model.name={format_value(name)} cannot play SPIN, which trains causal "
            f"LMs: {' or '.join(MODELS)}. Give the YAML of such an SFT."
        )
    draft.change("model.name", MODELS[name], "the same model, trained by SPIN")
    if draft.yaml.has("tp_config") and draft.value("tp_config"):
        raise InputError(
            f"{draft.where}: tp_config: SPIN has no tensor parallelism. Remove it; fsdp_config "
            "shards the model."
        )
    pretrained = name == "hf_causal_lm"
    if pretrained and not draft.yaml.has("model.trust_remote_code"):
        draft.change(
            "model.trust_remote_code", False,
            "LLM Foundry's default is true, SPIN's false: true only for a model whose code you read"
        )  # fmt: skip
    if draft.value("model.init_device") == "meta" and draft.value("model.pretrained", pretrained):
        draft.change("model.init_device", "mixed", META_LOADS_NOTHING.partition(".")[0])
    for key in _LOW:
        why = "weights train in fp32; precision: amp_bf16 computes in bf16 all the same"
        draft.drop(f"model.config_overrides.{key}", why)
        draft.drop(f"model.{key}", why)
    _begin_at_the_tuned_model(draft, tuned, pretrained)


def _begin_at_the_tuned_model(draft: Draft, tuned: str | None, pretrained: bool) -> None:
    """Say, or ask for, where the SFT's result is: SPIN begins there, not where the SFT began."""
    where = "model.pretrained_model_name_or_path"
    if tuned is not None:
        if not pretrained:
            raise InputError(
                "--model is for Hugging Face models. For MPT set load_path to the SFT's checkpoint "
                "and load_weights_only: true."
            )
        draft.change(where, tuned, "the SFT's result, from which SPIN begins")
        draft.change("tokenizer.name", tuned, "the tokenizer of the tuned model")
        draft.drop("load_path", "the weights are model.pretrained_model_name_or_path's")
        return
    if draft.value("load_path"):
        draft.change(
            "load_weights_only", True, "SPIN takes a checkpoint's weights, not the SFT's clock"
        )
        draft.remark("load_path", "must be the SFT's last checkpoint: SPIN begins where it ended")
        return
    at = where if pretrained else "model.name"
    draft.remark(
        at,
        "SPIN begins at the SFT's result. If this is what the SFT began with, "
        + ("put the SFT's exported folder here (init --model FOLDER), or " if pretrained else "")
        + "set load_path to the SFT's last checkpoint and load_weights_only: true",
    )
