"""The command judge: exports of known worth are named so, and nothing is sampled twice."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fixtures.judged import export, trained_model, with_noise
from fixtures.runs import write_rows
from fixtures.yaml_run import tiny_config, write_config
from peft import LoraConfig, get_peft_model
from rich.console import Console
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from spin_composer.cli import app
from spin_composer.errors import InputError
from spin_composer.judge.command import RunJudge
from spin_composer.judge.run import read_run
from spin_composer.settings.dataset import read_config

SETTINGS = ["judge.rows=150", "judge.max_new_tokens=24", "judge.resamples=200"]


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["judge", *map(str, arguments)])


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A start model with noise, and four policies: itself, a better one, a worse, the better."""
    folder = tmp_path_factory.mktemp("judged")
    good = trained_model(folder)
    noisy = with_noise(good, 0.7)
    export(noisy, folder / "start")
    for number, policy in enumerate([noisy, good, with_noise(good, 1.0), good]):
        export(policy, folder / f"hf/iter{number}")
    write_rows(folder / "heldout.jsonl", 160, seed=9)
    return folder


@pytest.fixture(scope="module")
def judged(exports: Path) -> dict[str, Any]:
    arguments = ("--start", exports / "start", "--data", exports / "heldout.jsonl", *SETTINGS)
    done = invoke(exports / "hf", *arguments, "--json")
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout)


def test_the_policy_that_is_nearer_to_the_data_is_the_best(judged: dict[str, Any]):
    by_name = {model["name"]: model for model in judged["models"]}
    assert judged["best"] == "iter-001"
    helped = {name: model.get("helped") for name, model in by_name.items()}
    assert helped == {"start": None, "iter-000": False, "iter-001": True, "iter-002": False,
                      "iter-003": False}  # fmt: skip
    better, worse = by_name["iter-001"]["change"], by_name["iter-002"]["change"]
    assert better["nll"]["high"] < 0 < worse["nll"]["low"]
    assert better["classifier_accuracy"]["high"] < 0


def test_a_policy_that_is_the_start_differs_by_nothing(judged: dict[str, Any]):
    start, same = judged["models"][:2]
    assert same["measures"] == start["measures"]
    assert all(change["value"] == 0 for change in same["change"].values())


def test_the_result_is_written_beside_the_exports(exports: Path, judged: dict[str, Any]):
    assert json.loads((exports / "hf/judge.json").read_text()) == judged


def test_what_is_kept_is_not_sampled_again(exports: Path, judged: dict[str, Any], tmp_path: Path):
    folder = shutil.copytree(exports / "hf", tmp_path / "hf")  # other times of change

    def again(*settings: str) -> tuple[dict[str, Any], list[str]]:
        told = io.StringIO()
        run = read_run(
            folder, [*SETTINGS, *settings], str(exports / "heldout.jsonl"), str(exports / "start")
        )
        result = RunJudge(run, Console(file=told)).result().as_json()
        lines = told.getvalue().splitlines()
        return result, [line.split(":")[0] for line in lines if ": loading" in line]

    (kept_in,) = (folder / "judge").iterdir()  # one way of judging
    kept = {path.name: path.read_text() for path in kept_in.iterdir()}
    found, loaded = again()
    assert loaded == [f"iter-00{i}" for i in range(4)], "other files, the same weights"
    assert found["models"][2]["measures"] == judged["models"][2]["measures"]
    rows = {name: json.loads(text)["rows"] for name, text in kept.items()}
    assert rows == {path.name: json.loads(path.read_text())["rows"] for path in kept_in.iterdir()}
    assert again()[1] == []
    (kept_in / "iter-002.json").write_text("{}")
    assert again()[1] == ["iter-002"]
    shutil.rmtree(folder / "iter3")
    shutil.copytree(folder / "iter2", folder / "iter3")
    assert again()[1] == ["iter-003"]
    assert len(again("judge.seed=1")[1]) == 5
    assert again()[1] == [], "of each way of judging the rows are kept"
    for path in kept_in.iterdir():  # where an older version kept them
        shutil.move(path, folder / "judge" / path.name)
    assert again()[1] == []


def test_without_data_the_rows_are_those_that_the_callback_takes(exports: Path, tmp_path: Path):
    config = tiny_config(tmp_path, exports / "start")
    config["callbacks"] = {"hf_exporter": {"save_folder": str(exports / "hf")}}
    ours = {**config.pop("eval_loader"), "label": "ours"}
    other = {"name": "finetuning", "label": "other", "dataset": {"hf_name": "other"}}
    config["eval_loaders"] = [other, ours]
    read = read_run(write_config(config, tmp_path / "run.yaml"))
    assert read.dataset == ours["dataset"]
    config["eval_loaders"] = [other]
    assert read_run(write_config(config, tmp_path / "run.yaml")).dataset == other["dataset"]


def test_data_is_read_as_training_rows_from_files_and_from_mds(exports: Path, tmp_path: Path):
    config = tiny_config(tmp_path, exports / "start")
    config["callbacks"] = {"hf_exporter": {"save_folder": str(exports / "hf")}}
    config["train_loader"]["dataset"] |= {"safe_load": True, "stream_config": {"batch_size": 1}}
    yaml = write_config(config, tmp_path / "run.yaml")
    (tmp_path / "mds").mkdir()
    (tmp_path / "mds/index.json").write_text("{}")
    mds = read_config(read_run(yaml, data=str(tmp_path / "mds")).dataset)
    assert (mds.local, mds.hf_name, mds.max_seq_len) == (str(tmp_path / "mds"), None, 48)
    files = read_config(read_run(yaml, data=str(tmp_path / "rows.jsonl")).dataset)
    assert files.safe_load
    assert files.stream_config == mds.stream_config == {}


def test_a_runs_yaml_says_where_everything_is(exports: Path, tmp_path: Path):
    config = tiny_config(tmp_path, exports / "start")
    config["callbacks"] = {
        "hf_exporter": {"save_folder": str(exports / "hf")},
        "spin_judge": {"rows": 10, "resamples": 100},
    }
    config["eval_loader"]["dataset"]["hf_kwargs"] = {"data_files": str(exports / "heldout.jsonl")}
    yaml = write_config(config, tmp_path / "run.yaml")
    for folder in exports.glob("hf/iter[123]"):  # the first alone
        shutil.move(folder, tmp_path / folder.name)
    try:
        done = invoke(yaml, "judge.rows=12")
    finally:
        for folder in tmp_path.glob("iter[123]"):
            shutil.move(folder, exports / "hf" / folder.name)
    assert done.exit_code == 0, (done.output, done.exception)
    assert "No iteration of 1 is better than the start." in done.stdout
    found = json.loads((tmp_path / "self-play/judge.json").read_text())
    assert found["responses"] == 12
    assert found["settings"]["resamples"] == 100


def test_adapters_alone_are_judged_beside_their_start(exports: Path, tmp_path: Path):
    start = AutoModelForCausalLM.from_pretrained(exports / "start")
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    export(get_peft_model(start, lora), tmp_path / "hf/iter0")  # they change nothing yet
    arguments = ("--start", exports / "start", "--data", exports / "heldout.jsonl")
    done = invoke(tmp_path / "hf", *arguments, *SETTINGS, "judge.rows=20", "--json")
    assert done.exit_code == 0, (done.output, done.exception)
    start_model, adapted = json.loads(done.stdout)["models"]
    assert adapted["export"] == str(tmp_path / "hf/iter0")
    for name, value in start_model["measures"].items():
        assert adapted["measures"][name]["value"] == pytest.approx(value["value"], abs=1e-4)


@pytest.mark.parametrize(
    ("change", "arguments", "said"),
    [
        ({}, [], "there is no exported iteration in .*huggingface"),
        ({"exported": True, "eval_loader": None}, [], "names no held-out rows"),
        ({"exported": True}, ["--data", "none.jsonl"], "none.jsonl"),
        ({"exported": True}, ["judge.rows=3"], "rows must be at least twice .folds"),
        ({"exported": True}, ["judge.row=30"], "Did you mean 'rows'"),
        ({"exported": True, "load_path": "x.pt"}, [], "Give the start model as a folder"),
    ],
)
def test_what_cannot_be_judged_is_one_line(
    change: dict[str, Any], arguments: list[str], said: str, exports: Path, tmp_path: Path
):
    config = tiny_config(tmp_path, exports / "start", **change)
    if config.pop("exported", False):
        config["callbacks"] = {"hf_exporter": {"save_folder": str(exports / "hf")}}
    done = invoke(write_config(config, tmp_path / "run.yaml"), *arguments)
    assert isinstance(done.exception, InputError)
    assert "\n" not in str(done.exception)
    with pytest.raises(InputError, match=said):
        raise done.exception


def test_a_folder_without_exports_or_start_is_refused(exports: Path, tmp_path: Path):
    for folder, said in ((tmp_path, "no exported iteration"), (exports / "hf", "--start MODEL")):
        done = invoke(folder)
        with pytest.raises(InputError, match=said):
            raise done.exception


def test_rows_of_too_few_prompts_are_refused_before_anything_is_sampled(
    exports: Path, tmp_path: Path
):
    rows = "".join(
        json.dumps({"prompt": f"{i % 9} :", "response": f" answer {i}"}) + "\n" for i in range(40)
    )
    (tmp_path / "rows.jsonl").write_text(rows)
    shutil.copytree(exports / "hf", tmp_path / "hf", ignore=shutil.ignore_patterns("judge*"))
    arguments = ("--start", exports / "start", "--data", tmp_path / "rows.jsonl", *SETTINGS)
    done = invoke(tmp_path / "hf", *arguments)
    with pytest.raises(InputError, match=r"the 40 held-out rows .* have 9 different prompts, and"):
        raise done.exception
    assert not (tmp_path / "hf/judge").exists()


@pytest.mark.parametrize("answer", [r"####\s*(\d+)", r"[Aa]nswer: (\d+)"])
def test_an_answer_that_yaml_would_not_read_is_refused(answer: str, tmp_path: Path):
    (tmp_path / "iter0").mkdir()
    (tmp_path / "iter0/config.json").write_text("{}")
    with pytest.raises(InputError, match=r"Quote the value for YAML too: callbacks\.spin_judge\."):
        read_run(tmp_path, [f"judge.answer={answer}"], "rows.jsonl", "start")
    read = read_run(tmp_path, [f"judge.answer='{answer}'"], "rows.jsonl", "start")
    assert read.settings.answer == answer


def test_a_missing_package_is_named_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"spin-composer judge needs scikit-learn.*\[judge\]"):
        raise invoke(tmp_path).exception
