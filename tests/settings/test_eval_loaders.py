"""``eval_loader: {name: spin}``: checked with the YAML, and measured by training's own ids."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from fixtures.yaml_run import iteration_records, tiny_config, write_config

from spin_composer.errors import InputError
from spin_composer.foundry.plugin import transform
from spin_composer.train import train
from tests.data.test_held_out import mean_nll
from tests.settings.test_yaml import config

pytestmark = pytest.mark.foundry

HELD_OUT = {"hf_name": "heldout.jsonl", "split": "train", "max_seq_len": 64}


def evaluated(*loaders: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return a YAML that works, with one eval_loader or several eval_loaders."""
    given = {"eval_loader": loaders[0]} if len(loaders) == 1 else {"eval_loaders": list(loaders)}
    return {**config(**changes), **copy.deepcopy(given)}


def ours(label: str | None = None, **dataset: Any) -> dict[str, Any]:
    named = {} if label is None else {"label": label}
    return {"name": "spin", **named, "dataset": {**HELD_OUT, **dataset}}


WRONG = [
    (evaluated({**ours(), "dataset": None}), "eval_loader.dataset must be a mapping that names"),
    (evaluated({**ours(), "num_worker": 2}), "eval_loader.num_worker is not a setting. Did you"),
    (evaluated(ours(hf_nam="x")), "eval_loader.dataset.hf_nam is not a setting. Did you mean"),
    (evaluated(ours(max_seq_len=None)), "eval_loader.dataset.max_seq_len is not set"),
    (evaluated(ours("a"), ours()), "eval_loaders[1].label is not set"),
    ({**evaluated(ours("a"), ours("b")), "eval_loader": ours()}, "are both given, and only the"),
    ({**evaluated(ours()), "device_eval_batch_size": "auto"}, "device_eval_batch_size must be a"),
    ({**evaluated(ours()), "device_eval_batch_size": 0.5}, "of rows, 1 or more, got 0.5."),
    (
        evaluated(ours(), **{"train_loader.dataset.date_string": "26 Jul 2024"}),
        "eval_loader.dataset.date_string is None and train_loader.dataset.date_string is '26 Jul "
        "2024': held-out rows would be measured by other ids than are trained on.",
    ),
    (
        evaluated(ours(), **{"train_loader.dataset.tokenize": "turns"}),
        "eval_loader.dataset.tokenize is 'rendering' and train_loader.dataset.tokenize is 'turns'",
    ),
    (evaluated(ours(generation_prompt="response")), "eval_loader.dataset.generation_prompt is 'r"),
    (evaluated(ours(special_tokens_in_text="text")), "dataset.special_tokens_in_text is 'text'"),
    (evaluated(ours("a"), ours("b", date_string="x")), "eval_loaders[1].dataset.date_string is"),
    (evaluated(ours(tokenize="turns")), "eval_loader.dataset.tokenize is 'turns' and train_loader"),
    (
        evaluated(ours(), **{"train_loader.dataset.tokenize": "turns"}),
        "eval_loader.dataset.tokenize is 'rendering' and train_loader.dataset.tokenize is 'turns'",
    ),
    (evaluated(ours(generation_prompt="response")), "eval_loader.dataset.generation_prompt is 'r"),
    (evaluated(ours(special_tokens_in_text="text")), "dataset.special_tokens_in_text is 'text'"),
]


def test_the_defaults_value_may_be_written_in_one_block_only() -> None:
    transform(evaluated(ours(tokenize="rendering", special_tokens_in_text="error")))


@pytest.mark.parametrize(("cfg", "said"), WRONG, ids=[said[:50] for _, said in WRONG])
def test_what_cannot_work_or_makes_other_ids_is_refused(cfg: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        transform(cfg)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_limits_are_named_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    limits = {"max_prompt_len": 20, "truncate_prompt": "left"}
    changes = {f"train_loader.dataset.{key}": value for key, value in limits.items()}
    transform(evaluated(ours(), **changes))
    for key in limits:
        assert f"eval_loader.dataset.{key} is" in caplog.text
    caplog.clear()
    transform(evaluated(ours(**limits), **changes))
    assert not caplog.text


def test_what_makes_no_other_ids_may_differ() -> None:
    transform(evaluated(ours(tokenize="rendering", special_tokens_in_text="error")))


def test_the_loader_is_told_that_it_evaluates_also_beside_sft() -> None:
    cfg = transform(evaluated(ours()))
    assert cfg["eval_loader"] == {**ours(), "evaluation": True, "run": ANY}
    assert transform(copy.deepcopy(cfg)) == cfg, "twice is once"
    cfg = transform(evaluated(ours("a"), {**ours("b"), "name": "finetuning"}))
    assert [loader.get("evaluation") for loader in cfg["eval_loaders"]] == [True, None]
    sft = {"train_loader": {"name": "finetuning"}, "eval_loader": ours()}
    assert transform(sft)["eval_loader"]["evaluation"] is True
    with pytest.raises(InputError, match=r"eval_loader\.dataset\.hf_nam"):
        transform({**sft, "eval_loader": ours(hf_nam="x")})


def test_a_label_of_a_single_loader_names_its_metrics() -> None:
    cfg = transform(evaluated(ours("valid")))
    assert "eval_loader" not in cfg
    assert cfg["eval_loaders"] == [{**ours("valid"), "evaluation": True, "run": ANY}]


def test_a_run_measures_held_out_rows_beside_llm_foundrys_loader(tmp_path: Path) -> None:
    """Byte-level BPE and rows without a chat template: turn by turn, the ids are the same."""
    cfg = tiny_config(tmp_path, max_duration="1iter", device_eval_batch_size=3)
    finetuning = {**cfg.pop("eval_loader"), "name": "finetuning"}
    mine = {**copy.deepcopy(finetuning), "name": "spin", "label": "mine"}
    cfg["eval_loaders"] = [mine, {**finetuning, "label": "theirs"}]
    trainer = train(write_config(cfg, tmp_path / "run.yaml"))
    (record,) = iteration_records(tmp_path)
    nll = record["eval/eval/mine/LanguageCrossEntropy"]
    assert nll == pytest.approx(record["eval/eval/theirs/LanguageCrossEntropy"], abs=1e-5)
    rows = trainer.state.evaluators[0].dataloader.dataloader.dataset
    assert len(rows) % 3, "with a remainder"
    assert nll == pytest.approx(mean_nll(trainer.state.model.model, rows), abs=1e-5)
