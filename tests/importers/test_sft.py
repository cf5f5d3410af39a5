"""SFT YAMLs of LLM Foundry as SPIN's: valid, explained, and otherwise as they were."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from spin_composer.cli import app
from spin_composer.errors import InputError
from spin_composer.importers.sft import convert_sft

YAMLS = sorted((Path(__file__).parent / "sft").glob("*.yaml"))
NAMES = [path.stem for path in YAMLS]


def convert(text: str, **options: str):
    return convert_sft(text, "sft.yaml", **options)


@pytest.fixture(params=YAMLS, ids=NAMES)
def sft(request: pytest.FixtureRequest) -> str:
    return request.param.read_text()


def test_the_result_is_a_valid_yaml_of_spin(sft: str):
    config = convert(sft).config()
    assert config["model"]["name"] in ("hf_spin_lm", "mpt_spin_lm")
    assert config["train_loader"]["name"] == config["scheduler"]["name"] == "spin"
    assert config["max_duration"] == "3iter"
    assert config["algorithms"]["spin"]["generation"]["max_new_tokens"] > 0
    assert "packing_ratio" not in config["train_loader"]["dataset"]
    assert config["run_name"].endswith("-spin")


def test_lines_that_are_not_changed_stay_with_their_comments(sft: str):
    draft = convert(sft)
    touched = [change.setting.split(".")[-1] for change in draft.changes]
    touched += [f"${{{name}}}" for name in ("global_seed", "tokenizer_name", "data_files")]
    touched += ["t_warmup", "t_max", "duration", "scheduler", "dataset:"]
    for line in sft.splitlines():
        if not any(word in line for word in touched):
            assert line in draft.yaml.text.splitlines(), line


def test_every_change_is_explained_in_the_result(sft: str):
    draft = convert(sft)
    text = " ".join(draft.yaml.text.replace("#", " ").split())
    for change in draft.changes:
        reason = " ".join(change.why.split(": ", 1)[-1].split())
        assert reason[-40:] in text, change


def test_the_game_is_played_at_a_far_smaller_rate():
    given = YAMLS[NAMES.index("1b_local_data_sft")].read_text()
    assert convert(given).config()["algorithms"]["spin"]["learning_rate"] == 5e-7
    lora = YAMLS[NAMES.index("llama2-lora")].read_text()
    assert convert(lora).config()["algorithms"]["spin"]["learning_rate"] == 5e-6
    small = given.replace("lr: 2.0e-5", "lr: 1.0e-7")
    assert "learning_rate" not in convert(small).config()["algorithms"]["spin"]


def test_a_tuned_model_takes_the_place_of_the_one_the_sft_began_with():
    given = YAMLS[NAMES.index("1b_local_data_sft")].read_text()
    config = convert(given, model="my/tuned").config()
    assert config["model"]["pretrained_model_name_or_path"] == "my/tuned"
    assert config["tokenizer"]["name"] == "my/tuned"
    assert "load_path" not in config


def test_names_of_ones_own_go_into_variables():
    given = YAMLS[NAMES.index("1b_local_data_sft")].read_text()
    config = convert(given).config()
    assert config["variables"] == {
        "global_seed": 17, "tokenizer_name": "facebook/opt-125m", "data_files": "train.jsonl"
    }  # fmt: skip
    assert config["seed"] == 17
    assert config["tokenizer"]["name"] == "facebook/opt-125m"


SMALL = YAMLS[NAMES.index("1b_local_data_sft")].read_text()


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("name: hf_causal_lm", "name: hf_t5", "model.name"),
        ("name: hf_causal_lm", "name: hf_spin_lm", "Nothing to do"),
        ("name: finetuning", "name: text", "train_loader.name"),
        ("global_train_batch_size: 8", "device_train_batch_size: 8", "global_train_batch_size"),
        ("decoder_only_format: true", "decoder_only_format: false", "decoder_only_format"),
        ("decoder_only_format: true", "allow_unsafe_types: true", "allow_unsafe_types"),
        ("decoder_only_format: true", "spit: x", "Did you mean 'split'"),
        ("pretrained: true", "load_in_8bit: true", "load_in_8bit"),
        ("precision: fp32", "precison: fp32", "Did you mean 'precision'"),
        ("precision: fp32", "tp_config: {strategy: x}", "tp_config"),
        ("seed: ${global_seed}", "seed: ${globl_seed}", "globl_seed"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(old: str, new: str, named: str):
    with pytest.raises(InputError, match=named):
        convert(SMALL.replace(old, new)).config()


def test_the_command_prints_the_yaml_and_explains_on_stderr(tmp_path: Path):
    path = tmp_path / "sft.yaml"
    path.write_text(SMALL)
    done = CliRunner().invoke(app, ["init", str(path), "--model", "my/tuned"])
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("# An older layout")
    assert "max_duration: 1ep -> 3iter" in done.stderr
    assert not set(done.stdout.splitlines()) & set(done.stderr.splitlines())


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (
            "scheduler: linear\n",
            r"sft\.yaml: scheduler must be a mapping of settings, got 'linear'",
        ),
        ("seed: 1\nseed: 2\n", "sft.yaml, line .* is not YAML: .*duplicate key seed"),
        ("plan: !secret x\n", "sft.yaml, line .* is not YAML: .*constructor for the tag '!secret'"),
        ("plan: ${variables.\n", "sft.yaml: .*variables"),
    ],
)
def test_what_is_no_mapping_of_settings_is_refused_in_one_line(text: str, named: str):
    own = SMALL.split("scheduler:")[0] + text if "scheduler" in text else SMALL + text
    with pytest.raises(InputError, match=named):
        convert(own)


def test_a_list_in_place_of_a_block_is_named():
    text = SMALL.replace("  dataset:\n", "  dataset: [1]\n  other:\n", 1)
    with pytest.raises(InputError, match=r"sft\.yaml: train_loader\.dataset must be a mapping"):
        convert(text)
