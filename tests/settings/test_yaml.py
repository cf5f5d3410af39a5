"""A YAML that cannot work stops with one line that says what to do, before anything is loaded."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from spin_composer.errors import InputError
from spin_composer.foundry.plugin import transform
from spin_composer.settings.fields import SECTION
from spin_composer.settings.yaml import check_other_run, is_spin, read_overrides, validate

REMOVED = object()
HEAVY = ("torch", "composer", "llmfoundry", "transformers", "streaming", "datasets")


def config(**changes: Any) -> dict[str, Any]:
    """Return a YAML that works, with dotted keys changed or removed."""
    cfg: dict[str, Any] = {
        "max_duration": "3iter",
        "tokenizer": {"name": "some/tokenizer"},
        "model": {"name": "hf_spin_lm", "pretrained_model_name_or_path": "some/model"},
        "global_train_batch_size": 4,
        "device_train_microbatch_size": 2,
        "max_seq_len": 64,
        "precision": "fp32",
        "optimizer": {"name": "rmsprop", "lr": 5e-7},
        "scheduler": {"name": "spin", "t_warmup": "0.1dur"},
        "algorithms": {"spin": {"beta": [0.1, 0.1, 5.0]}},
        "train_loader": {
            "name": "spin",
            "dataset": {"hf_name": "rows.jsonl", "split": "train", "max_seq_len": 64},
        },
    }
    for dotted, value in changes.items():
        *path, last = dotted.split(".")
        section = cfg
        for key in path:
            section = section[key]
        if value is REMOVED:
            section.pop(last)
        else:
            section[last] = value
    return cfg


def refusal(cfg: Mapping[str, Any]) -> str:
    with pytest.raises(InputError) as caught:
        transform(dict(cfg))
    message = str(caught.value)
    assert "\n" not in message
    return message


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"algorithms.spin": {"beta": [0.1, 0.1]}}, f"{SECTION}.beta has 2 values for 3 iterations"),
    ({"algorithms.spin": {"learning_rate": [1e-6] * 4}}, f"{SECTION}.learning_rate has 4 values"),
    ({"algorithms.spin": {"replay": -1}}, "algorithms.spin.replay must be an integer >= 0, got -1"),
    ({"algorithms.spin": {"replays": 1}}, "algorithms.spin.replays is not a setting. Did you mean"),
    ({"algorithms.spin": {"generation": {"topp": 1}}}, "Did you mean 'top_p'?"),
    ({"algorithms.spin": [1]}, "algorithms.spin must be a mapping"),
    ({"algorithms": REMOVED}, "Add `algorithms: {spin: {}}`"),
    ({"algorithms": {"gradient_clipping": {}}}, "algorithms must hold spin, got ['gradient_cl"),
    ({"algorithms": "spin"}, "algorithms must"),
    ({"algorithms": ["spin"]}, "algorithms must"),
    ({"max_duration": "7ep"}, "max_duration=7ep is not a whole number of iterations of 2ep"),
    ({"max_duration": "100ba"}, "max_duration must be a positive number of iterations or epochs"),
    ({"max_duration": REMOVED}, "max_duration must be"),
    ({"scheduler": {"name": "linear_decay_with_warmup", "t_warmup": "0.1dur", "alpha_f": 0}},
     "scheduler.name=linear_decay_with_warmup does not restart with each iteration. Use"),
    ({"scheduler": {"name": "spin", "warmup": "0.1dur"}}, "Did you mean 't_warmup'?"),
    ({"scheduler.t_warmup": "1ep"}, "scheduler.t_warmup must be a part of the iteration (0.1dur)"),
    ({"scheduler.t_warmup": "1.5dur"}, "scheduler.t_warmup"),
    ({"scheduler.decay": "exponential"}, "scheduler.decay must be one of linear, cosine, constant"),
    ({"scheduler.schedule_length": "6ba"}, "scheduler.schedule_length must be like '6ep', or null"),
    ({"scheduler.schedule_length": 1}, "scheduler.schedule_length=1ep ends before the iteration, "),
    ({"scheduler.alpha_f": 2}, "scheduler.alpha_f must be a number in [0, 1], got 2"),
    ({"scheduler": REMOVED}, "scheduler must be a mapping with a name"),
    ({"train_loader.name": "finetuning"}, "train_loader.name=finetuning gives no prompts to play"),
    ({"train_loader": REMOVED}, "train_loader must be a mapping with a name"),
    ({"train_loader": "spin"}, "train_loader must be a mapping with a name"),
    ({"train_loader.num_worker": 2}, "Did you mean 'num_workers'?"),
    ({"train_loader.dataset": REMOVED}, "train_loader.dataset must be a mapping"),
    ({"train_loader.dataset.max_seq_len": REMOVED}, "max_seq_len"),
    ({"train_loader.dataset.packing_ratio": 5.0}, "SPIN does not pack rows"),
    ({"train_loader.dataset.target_responses": "all"}, "SPIN plays the last response only"),
    ({"train_loader.dataset.hf_nam": "x"}, "Did you mean 'hf_name'?"),
    ({"model.name": "hf_causal_lm"}, "model.name=hf_causal_lm cannot play SPIN. Use hf_spin_lm."),
    ({"model.name": "mpt_causal_lm"}, "Use mpt_spin_lm."),
    ({"model.load_in_8bit": True}, "model.load_in_8bit=true is for inference only"),
    ({"model": REMOVED}, "model must be a mapping with a name"),
    ({"model": "hf_spin_lm"}, "model must be a mapping with a name"),
    ({"tokenizer": REMOVED}, "tokenizer must be a mapping with a name"),
    ({"optimizer": {"lr": 1}}, "optimizer must be a mapping with a name"),
    ({"train_subset_num_batches": 5}, "set algorithms.spin.samples_per_iteration"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "said"), WRONG, ids=[said for _, said in WRONG])
def test_a_setting_that_cannot_work_is_refused(changes: dict[str, Any], said: str) -> None:
    assert said in refusal(config(**changes))


def test_a_working_config_is_accepted() -> None:
    settings = validate(config())
    assert settings.beta == [0.1, 0.1, 5.0]
    assert validate(config(max_duration="6ep")) == settings
    assert validate(config(**{"algorithms.spin": None})).replay == 1


def test_configs_of_other_runs_pass_unchanged() -> None:
    plain = config(
        **{
            "algorithms": REMOVED,
            "model.name": "hf_causal_lm",
            "train_loader.name": "finetuning",
            "scheduler.name": "cosine_with_warmup",
            "max_duration": "100ba",
        }
    )
    for cfg in (plain, {}, {"algorithms": None}, {"models": [{"model_name": "x"}]}):
        assert not is_spin(cfg)
        assert transform(copy.deepcopy(cfg)) == cfg


@pytest.mark.parametrize("section", ["algorithms", "model", "train_loader"])
def test_one_sign_of_spin_is_enough_to_be_checked(section: str) -> None:
    other = {"algorithms": {}, "model": {"name": "x"}, "train_loader": {"name": "finetuning"}}
    other.pop(section)
    assert is_spin(config(**other))


@pytest.mark.foundry
def test_defaults_are_set_where_nothing_is_said() -> None:
    held_out = {"name": "finetuning", "dataset": {"max_seq_len": 64}}
    assert transform(config(eval_loader=held_out))["eval_first"] is True
    cfg = transform(config(save_folder="runs/x"))
    assert cfg["eval_first"] is False, "there is nothing to evaluate"
    assert cfg["callbacks"]["hf_checkpointer"]["save_interval"] == "1iter"
    mine = {"hf_checkpointer": {"save_folder": "elsewhere", "save_interval": "1ep"}}
    cfg = transform(config(save_folder="runs/x", eval_first=False, callbacks=mine))
    assert cfg["eval_first"] is False
    assert cfg["callbacks"] == mine
    ours = {"hf_exporter": {"save_folder": "elsewhere"}}
    assert transform(config(save_folder="runs/x", callbacks=ours))["callbacks"] == ours
    assert "callbacks" not in transform(config())


UPLOADER = {"bucket_uri": "s3://bucket", "num_concurrent_uploads": 2}
RESUMABLE = {"run_name": "x", "save_folder": "runs/x"}


@pytest.mark.foundry
def test_a_run_with_a_name_and_checkpoints_resumes_itself_unless_told_otherwise() -> None:
    assert transform(config(**RESUMABLE))["autoresume"] is True
    assert transform(config(**RESUMABLE, load_path=__file__))["autoresume"] is True
    for said in (True, False):
        assert transform(config(**RESUMABLE, autoresume=said))["autoresume"] is said


@pytest.mark.foundry
@pytest.mark.parametrize(
    "changes",
    [
        {"run_name": None},
        {"save_folder": None},
        {"save_overwrite": True},
        {"save_weights_only": True},
        {"save_num_checkpoints_to_keep": 0},
        {"loggers": {"remote_uploader_downloader": UPLOADER}},
    ],
    ids=str,
)
def test_a_run_that_cannot_resume_itself_is_not_told_to(changes: dict[str, Any]) -> None:
    from composer.loggers import RemoteUploaderDownloader
    from llmfoundry import registry

    registry.loggers.register("remote_uploader_downloader", func=RemoteUploaderDownloader)
    assert transform(config(**{**RESUMABLE, **changes}))["autoresume"] is False
    assert transform(config())["autoresume"] is False


@pytest.mark.parametrize(
    ("settings", "arguments", "said"),
    [
        (config(), ["algorithms.spin.replay=-1"], "must be an integer >= 0, got -1."),
        ({"max_seq_len": 64}, [], "run.yaml lacks model, tokenizer, train_loader, "),
    ],
    ids=["a wrong setting", "neither SPIN's nor llm-foundry's"],
)
def test_the_command_refuses_before_anything_heavy_is_imported(
    settings: dict[str, Any], arguments: list[str], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    code = (
        "import json, sys; from spin_composer.train import main; "
        "code = main(sys.argv[1:]); "
        f"print(json.dumps([code, [m for m in {HEAVY} if m in sys.modules]]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(path), *arguments],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(run.stdout) == [InputError.exit_code, []]
    assert run.stderr.startswith("error: ")
    assert said in run.stderr
    assert run.stderr.count("\n") == 1


@pytest.mark.parametrize("key", ["model", "max_seq_len", "device_train_microbatch_size"])
def test_another_run_that_lacks_what_every_training_needs_is_refused_by_name(key: str) -> None:
    sft = {**config(algorithms=REMOVED), "max_seq_len": 64, "device_train_microbatch_size": 2}
    check_other_run(sft, "sft.yaml")
    del sft[key]
    with pytest.raises(InputError, match=rf"^sft\.yaml lacks {key}, .* no algorithms\.spin\. "):
        check_other_run(sft, "sft.yaml")


@pytest.mark.parametrize(
    ("text", "arguments", "said"),
    [
        (None, [], "does not exist"),
        ("a: [", [], "error: "),
        ("- a\n- b\n", [], "must be a YAML mapping"),
        ("a: ${missing}\n", [], "missing"),
        ("a: 1\n", ["b"], "'b' is not a setting. Write key=value."),
    ],
)
def test_a_file_that_is_no_yaml_of_settings_is_refused(
    text: str | None,
    arguments: list[str],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from spin_composer.train import main

    path = tmp_path / "run.yaml"
    if text is not None:
        path.write_text(text)
    assert main([str(path), *arguments]) == InputError.exit_code
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("a", "'a' is not a setting"),
        (r"a=####\s*(\d+)", r"reads ####\s*(\d+) as a comment. Quote the value for YAML too: a="),
        (r"a=(\d+) # km", "reads # km as a comment"),
        (r"a=[Aa]nswer: (\d+)", "the value is not YAML"),
        ("a={b: 1, b: 2}", "duplicate key"),
    ],
)
def test_a_setting_that_yaml_would_not_read_whole_is_refused(override: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        read_overrides(["b=1", override])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_setting_is_read_as_yaml() -> None:
    given = read_overrides(["a=null", "b=", "c='#(x)'", "d=[1, 2]", "e.f=a#b", 'g="x # y" '])
    assert given == {
        "a": None, "b": None, "c": "#(x)", "d": [1, 2], "e": {"f": "a#b"}, "g": "x # y",
    }  # fmt: skip


@pytest.mark.foundry
def test_the_top_level_keys_are_llm_foundrys():
    from llmfoundry.utils.config_utils import TRAIN_CONFIG_KEYS

    from spin_composer.settings.yaml import TOP_LEVEL_KEYS

    assert TOP_LEVEL_KEYS == TRAIN_CONFIG_KEYS
