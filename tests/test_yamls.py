"""The YAMLs of real runs hold what they promise.

Nothing is downloaded: each YAML's model is swapped for a tiny one of the same class, its tokenizer
for a small one made here, its data for a few local rows.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from fixtures import models
from fixtures.yamls import HF_CLASS, REAL, load, plain, tiny
from omegaconf import OmegaConf

from spin_composer.settings.generation import GenerationSettings
from spin_composer.settings.spin import SpinSettings
from spin_composer.settings.yaml import validate


@pytest.fixture(scope="module", params=REAL)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_yaml_passes_spins_checks(name: str):
    validate(plain(load(name)))


@pytest.mark.parametrize("cpu", ["gsm8k_tiny", "smollm2-135m-cpu"])
def test_yaml_of_a_run_on_a_cpu_passes_spins_checks(cpu: str):
    validate(plain(load(cpu)))


def test_yaml_explains_every_setting_of_the_game(name: str):
    spin = plain(load(name))["algorithms"]["spin"]
    # the defaults of these are explained in docs/settings.md
    optional = {"seed", "deterministic", "repair", "remote_store", "play_only"}
    optional |= {"allow_low_precision_weights", "layout", "device_train_microbatch_tokens"}
    optional |= {"space_mu", "dpop_lambda", "responses_per_prompt", "alarms", "game", "ditto"}
    assert set(spin) >= {field.name for field in fields(SpinSettings)} - optional
    assert set(spin["generation"]) >= {field.name for field in fields(GenerationSettings)} - {
        "merge_adapters",
        "stop_strings",
        "server",
    }


@pytest.mark.foundry
def test_yaml_has_no_key_that_llm_foundry_does_not_know(name: str):
    from composer.utils.parallelism import FSDPConfig
    from llmfoundry.utils.config_utils import TRAIN_CONFIG_KEYS

    cfg = plain(load(name))
    assert set(cfg) <= TRAIN_CONFIG_KEYS | {"global_train_batch_size"}
    assert set(cfg.get("fsdp_config", {})) <= {field.name for field in fields(FSDPConfig)}


def test_held_out_rows_are_made_into_ids_as_the_trained_ones_are(name: str, caplog):
    cfg = plain(load(name))
    assert cfg["eval_loader"]["name"] == "spin"
    validate(cfg)
    assert "held-out" not in caplog.text


def skip_without_mpt(name: str) -> None:
    if name.startswith("mpt") and models.NO_MPT is not None:
        pytest.skip(models.NO_MPT)


@pytest.mark.foundry
def test_yaml_builds_its_tiny_twin(name: str, tmp_path: Path):
    skip_without_mpt(name)
    from composer import ComposerModel
    from llmfoundry.utils.builders import (
        build_algorithm,
        build_callback,
        build_composer_model,
        build_optimizer,
        build_scheduler,
        build_tokenizer,
    )

    cfg = tiny(name, tmp_path)
    validate(cfg)
    tokenizer = build_tokenizer(cfg["tokenizer"]["name"], cfg["tokenizer"]["kwargs"])
    section: dict[str, Any] = dict(cfg["model"])
    model = build_composer_model(section.pop("name"), section, tokenizer)
    assert isinstance(model, ComposerModel)
    expected = HF_CLASS.get(name, "MPT")
    assert type(model.model).__name__ == f"{expected}ForCausalLM"
    for key, build in (("optimizer", build_optimizer), ("scheduler", build_scheduler)):
        section = dict(cfg[key])
        build(*([model] if key == "optimizer" else []), section.pop("name"), section)
    for algorithm, settings in cfg["algorithms"].items():
        build_algorithm(algorithm, settings)
    for callback, settings in cfg["callbacks"].items():
        build_callback(callback, settings, train_config=cfg)


@pytest.mark.foundry
def test_yaml_plays_its_iterations_with_the_tiny_twin(name: str, tmp_path: Path):
    skip_without_mpt(name)
    from llmfoundry.command_utils.train import train

    trainer = train(OmegaConf.create(tiny(name, tmp_path)))
    assert int(trainer.state.timestamp.iteration) == 3
    exported = sorted(path.name for path in (tmp_path / "hf").rglob("iter*"))
    assert exported == ["iter0", "iter1", "iter2"], "one folder per iteration, named in the YAML"
