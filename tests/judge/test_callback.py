"""The callback: it changes nothing in training, ends a game that does not help, marks the best."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from composer import Callback
from composer.core import State
from composer.loggers import InMemoryLogger, Logger
from fixtures.judged import dataset, trained_model, with_noise
from fixtures.ranks import on_two_ranks
from fixtures.runs import tiny_trainer, write_rows
from fixtures.s3 import BUCKET, s3_server
from fixtures.yaml_run import tiny_config, write_config
from rich.console import Console

from spin_composer import HuggingFaceExporter, SpinJudge
from spin_composer.errors import InputError
from spin_composer.fsdp import is_sharded
from spin_composer.judge.best import mark_best
from spin_composer.judge.command import RunJudge
from spin_composer.judge.measures import UNITS
from spin_composer.judge.run import read_run
from spin_composer.judge.verdict import Verdict
from spin_composer.report.history import read_history
from spin_composer.train import train

FEW = {"rows": 12, "folds": 2, "resamples": 100, "batch_size": 4, "max_new_tokens": 24}


def spin_judge(folder: Path, **settings: Any) -> SpinJudge:
    folder.mkdir(parents=True, exist_ok=True)
    rows = write_rows(folder / "heldout.jsonl", 160, seed=9)
    return SpinJudge(dataset=dataset(rows), **{**FEW, **settings})


def judged(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "self-play/judge.json").read_text())


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.state.model.named_parameters()}


def test_a_run_trains_the_same_weights_with_and_without_it(tmp_path: Path):
    plain = tiny_trainer(tmp_path / "plain")
    plain.fit()
    callback = spin_judge(tmp_path / "judged", patience=None)
    trainer = tiny_trainer(tmp_path / "judged", callbacks=[callback])
    trainer.fit()
    ours, theirs = weights(trainer), weights(plain)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    (logger,) = (d for d in trainer.logger.destinations if isinstance(d, InMemoryLogger))
    logged = {name for name in logger.data if name.startswith("judge/")}
    told = {f"judge/{name}" for name in UNITS} - {"judge/exact_match"}
    assert logged == told | {"judge/helped", "judge/best_iteration", "judge/seconds"}
    assert [model["name"] for model in judged(tmp_path / "judged")["models"]] == [
        "start", "iter-000", "iter-001",
    ]  # fmt: skip


class Transplant(Callback):
    """Gives the policy a model's weights, at the end of an iteration's training."""

    def __init__(self, model: Any, iteration: int) -> None:
        self.weights, self.iteration = model.state_dict(), iteration

    def iteration_end(self, state: State, logger: Logger) -> None:
        if int(state.timestamp.iteration) - 1 == self.iteration:
            state.model.model.load_state_dict(self.weights)


def still_run(folder: Path, exports: str, callbacks: list[Any], **settings: Any) -> Any:
    """Return a Trainer of a run that learns nothing by itself, of a start model with noise."""
    model = with_noise(trained_model(folder), 0.7)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    return tiny_trainer(
        folder, model, optimizers=optimizer, callbacks=[*callbacks, HuggingFaceExporter(exports)],
        max_duration="6iter", save_folder=str(folder / "checkpoints"), save_interval="1iter",
        autoresume=True, spin={"iteration_length": "1ep"}, **settings,
    )  # fmt: skip


def test_the_best_is_marked_and_a_game_that_does_not_help_is_ended(tmp_path: Path):
    tmp_path.joinpath("run").mkdir()
    good = Transplant(trained_model(tmp_path / "run"), iteration=1)
    many = spin_judge(tmp_path / "run", rows=150, patience=2)
    trainer = still_run(tmp_path / "run", str(tmp_path / "run/hf"), [good, many])
    trainer.fit()
    found = judged(tmp_path / "run")
    assert found["best"] == "iter-001"
    assert [model.get("helped") for model in found["models"]] == [None, False, True, False, False]
    assert os.readlink(tmp_path / "run/hf/best") == "iter1"
    assert sorted(path.name for path in (tmp_path / "run/hf").glob("iter*")) == [
        "iter0", "iter1", "iter2", "iter3",
    ]  # fmt: skip
    ended = read_history(tmp_path / "run/self-play").ended
    assert "SpinJudge (the last 2 iterations did not help" in ended
    trainer.close()
    again = still_run(tmp_path / "run", str(tmp_path / "run/hf"), [good, many])
    with pytest.raises(ValueError, match="less than or equal to the elapsed"):
        again.fit()
    again.close()


def test_a_run_that_was_stopped_goes_on_to_the_same_decision(tmp_path: Path):
    def run(name: str, durations: list[str]) -> dict[str, Any]:
        folder = tmp_path / name
        for duration in durations:
            trainer = tiny_trainer(
                folder, callbacks=[spin_judge(folder)], max_duration=duration,
                save_folder=str(folder / "checkpoints"), save_interval="1ep", autoresume=True,
            )  # fmt: skip
            trainer.fit()
            trainer.close()
        models = judged(folder)["models"]
        return {model["name"]: (model["measures"], model.get("helped")) for model in models}

    assert run("whole", ["2iter"]) == run("parts", ["1iter", "2iter"])


def test_what_was_judged_before_a_kill_is_not_sampled_again(tmp_path: Path):
    trainer = tiny_trainer(tmp_path, callbacks=[spin_judge(tmp_path)], max_duration="1iter")
    trainer.fit()
    kept = {path: path.stat().st_ino for path in (tmp_path / "self-play/judge").iterdir()}
    assert {path.name for path in kept} == {"start.json", "iter-000.json"}
    again = tiny_trainer(tmp_path, callbacks=[spin_judge(tmp_path)], max_duration="1iter")
    again.fit()
    assert {path: path.stat().st_ino for path in kept} == kept


def test_the_command_leaves_a_run_what_it_goes_on_with(tmp_path: Path):
    def run(duration: str) -> None:
        exporter = HuggingFaceExporter(str(tmp_path / "hf"))
        trainer = tiny_trainer(
            tmp_path, callbacks=[spin_judge(tmp_path), exporter], max_duration=duration,
            save_folder=str(tmp_path / "checkpoints"), autoresume=True,
        )  # fmt: skip
        trainer.fit()
        trainer.close()

    run("1iter")
    store = tmp_path / "self-play"
    kept = {path: path.read_bytes() for path in (store / "judge").iterdir()}
    few = [f"judge.{name}={value}" for name, value in {**FEW, "rows": 14}.items()]
    rows = str(tmp_path / "heldout.jsonl")
    command = read_run(tmp_path / "hf", few, rows, str(tmp_path / "hf/iter0"))
    RunJudge(replace(command, folder=store), Console(quiet=True)).result()
    assert {path: path.read_bytes() for path in kept} == kept
    run("2iter")
    assert [model["name"] for model in judged(tmp_path)["models"]] == [
        "start", "iter-000", "iter-001",
    ]  # fmt: skip


def test_responses_end_at_the_runs_stop_strings(tmp_path: Path):
    def run(duration: str, strings: list[str]) -> None:
        trainer = tiny_trainer(
            tmp_path, callbacks=[spin_judge(tmp_path)], max_duration=duration,
            save_folder=str(tmp_path / "checkpoints"), autoresume=True,
            spin={"generation": {"max_new_tokens": 12, "batch_size": 4, "stop_strings": strings}},
        )  # fmt: skip
        trainer.fit()

    strings = ["e", "a", "1"]
    run("1iter", strings)
    rows = json.loads((tmp_path / "self-play/judge/start.json").read_text())["rows"]
    ended = [row for row in rows if any(string in row["sampled"] for string in strings)]
    assert ended
    assert all(row["stopped"] for row in ended)
    assert not any(string in row["sampled"][:-4] for row in ended for string in strings)
    with pytest.raises(InputError, match=r"start\.json was judged with another stop_strings\. "):
        run("2iter", [])


def test_a_batch_of_play_that_is_lowered_for_memory_leaves_the_judges_own(tmp_path: Path):
    def run(duration: str, size: int, longest: int) -> None:
        trainer = tiny_trainer(
            tmp_path, callbacks=[spin_judge(tmp_path, batch_size=None, max_new_tokens=None)],
            max_duration=duration, save_folder=str(tmp_path / "checkpoints"), autoresume=True,
            spin={"generation": {"max_new_tokens": longest, "batch_size": size}},
        )  # fmt: skip
        trainer.fit()

    run("1iter", size=4, longest=12)
    run("2iter", size=2, longest=10)
    keys = [
        json.loads((tmp_path / f"self-play/judge/{name}.json").read_text())["key"]
        for name in ("start", "iter-000", "iter-001")
    ]
    assert {key["batch_size"] for key in keys} == {4}
    assert {key["max_new_tokens"] for key in keys} == {12}


def test_a_run_that_had_begun_cannot_be_judged_from_its_start(tmp_path: Path):
    def run(duration: str, *callbacks: Any) -> None:
        trainer = tiny_trainer(
            tmp_path, callbacks=list(callbacks), max_duration=duration,
            save_folder=str(tmp_path / "checkpoints"), autoresume=True,
        )  # fmt: skip
        trainer.fit()

    run("1iter")
    with pytest.raises(InputError, match="judge the exports afterward"):
        run("2iter", spin_judge(tmp_path))


def start_of(rank: int, folder: str) -> Any:
    """Judge the start model of a run on this rank; return what is kept of it."""
    os.environ["FSDP_VERSION"] = "2"
    trainer = tiny_trainer(
        Path(folder) / f"rank-{rank}",
        max_duration="1iter",
        device_train_microbatch_size=4,
        spin={"store": f"{folder}/self-play"},
        parallelism_config={"fsdp": {}},
        callbacks=[spin_judge(Path(folder) / f"rank-{rank}")],
    )
    assert is_sharded(trainer.state.model)
    trainer.fit()
    return [json.loads((Path(folder) / f"self-play/judge/{n}.json").read_text())["rows"]
            for n in ("start", "iter-000")]  # fmt: skip


@pytest.mark.slow
def test_sharded_ranks_give_the_responses_of_one_process(tmp_path: Path):
    (tmp_path / "two").mkdir()
    found = on_two_ranks(partial(start_of, folder=str(tmp_path / "two")))
    assert found[0] == found[1]
    tiny_trainer(tmp_path, callbacks=[spin_judge(tmp_path)], max_duration="1iter").fit()
    alone = json.loads((tmp_path / "self-play/judge/start.json").read_text())["rows"]
    for ours, theirs in zip(found[0][0], alone, strict=True):
        assert ours.pop("real_logp") == pytest.approx(theirs.pop("real_logp"), abs=1e-4)
        assert ours == theirs


@pytest.mark.slow
def test_of_exports_in_an_object_store_a_file_names_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        callback = spin_judge(tmp_path, patience=None)
        exporter = HuggingFaceExporter(f"s3://{BUCKET}/{{run_name}}/hf")
        trainer = tiny_trainer(tmp_path, max_duration="1iter", callbacks=[callback, exporter])
        trainer.fit()
        trainer.close()
        found = json.loads(server.read("tiny/hf/best.json"))
    best = judged(tmp_path)["best"]
    assert found == {"best": best and "iter0"}


def test_each_exporters_best_is_one_of_its_own_exports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def first_helps(start: Any, iterations: Any) -> Verdict:
        helped = tuple(number == 0 for number in range(len(iterations)))
        return Verdict(helped, tuple("" for _ in helped))

    monkeypatch.setattr("spin_composer.judge.result.decide", first_helps)
    exporters = [
        HuggingFaceExporter(str(tmp_path / "rare"), "2iter", "of{iteration}"),
        HuggingFaceExporter(str(tmp_path / "nested"), "1iter", "iter{iteration}/hf"),
        HuggingFaceExporter(str(tmp_path / "epochs"), "2ep", "ep{epoch}"),
    ]
    callbacks = [spin_judge(tmp_path, patience=None), *exporters]
    tiny_trainer(tmp_path, callbacks=callbacks).fit()
    assert [path.name for path in (tmp_path / "rare").iterdir()] == ["of1"], "and no mark"
    assert os.readlink(tmp_path / "nested/best") == "iter0/hf"
    assert (tmp_path / "nested/best/config.json").exists()
    assert os.readlink(tmp_path / "epochs/best") == "ep2"
    exported = [model.get("export") for model in judged(tmp_path)["models"]]
    assert exported == [None, str(tmp_path / "nested/iter0/hf"), str(tmp_path / "rare/of1")]


def test_a_mark_of_before_does_not_outlive_its_best(tmp_path: Path):
    exporter: Any = SimpleNamespace(uploader=None)
    mark = partial(mark_best, exporter, str(tmp_path))
    (tmp_path / "iter0").mkdir()
    mark("iter0")
    assert os.readlink(tmp_path / "best") == "iter0"
    mark(None)
    assert not (tmp_path / "best").is_symlink()
    (tmp_path / "best").mkdir()  # no link can have its name
    for best in ("iter0", None):
        mark(best)
        assert json.loads((tmp_path / "best.json").read_text()) == {"best": best}


def test_a_run_without_the_game_or_held_out_rows_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="the run has no such algorithm"):
        tiny_trainer(tmp_path, algorithms=[], callbacks=[SpinJudge()])
    with pytest.raises(InputError, match="has no held-out rows"):
        tiny_trainer(tmp_path, callbacks=[SpinJudge()]).fit()
    with pytest.raises(InputError, match="Did you mean 'patience'"):
        SpinJudge(patient=1)


@pytest.mark.foundry
def test_a_yaml_names_it_among_its_callbacks(tmp_path: Path):
    few = {**FEW, "rows": 5, "max_new_tokens": 8}
    callbacks = {"spin_judge": few, "hf_exporter": {"save_folder": str(tmp_path / "hf")}}
    config = tiny_config(tmp_path, max_duration="1iter", callbacks=callbacks)
    train(write_config(config, tmp_path / "run.yaml")).close()
    assert [model["name"] for model in judged(tmp_path)["models"]] == ["start", "iter-000"]
