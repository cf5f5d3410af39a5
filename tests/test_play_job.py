"""A job that only plays makes units that the training run takes as its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fixtures.yaml_run import save_model, tiny_config, write_config

from spin_composer.data import load, source_identity, sources
from spin_composer.data.cache_folder import VARIABLE
from spin_composer.errors import InputError, PlayDone
from spin_composer.play_job import job_config, play
from spin_composer.settings.spin import PlayOnly, SpinSettings
from spin_composer.settings.yaml import read_yaml
from spin_composer.train import train

pytestmark = pytest.mark.foundry

NUM_UNITS = {0: 5, 1: 10}
"""24 rows in units of 5; iteration 1 replays iteration 0."""


def job(yaml: Path, iteration: int, units: str = "all", *overrides: str) -> str:
    with pytest.raises(PlayDone) as done:
        play(yaml, overrides, iteration, units)
    return str(done.value)


def units(folder: Path, iteration: int) -> dict[str, bytes]:
    """Return the files of an iteration's units by name; unit.json holds times, and is left out."""
    root = folder / f"self-play/iter-{iteration:03d}/units"
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.glob("unit-*/*"))
        if path.name != "unit.json"
    }


def weights(folder: Path) -> bytes:
    return (folder / "checkpoints/huggingface/iter1/model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model) -> Path:
    """A run that played all by itself."""
    folder = tmp_path_factory.mktemp("whole")
    train(write_config(tiny_config(folder, model), folder / "run.yaml"))
    return folder


def test_a_run_trains_on_the_units_that_jobs_have_made(tmp_path, model, whole):
    yaml = write_config(tiny_config(tmp_path, model), tmp_path / "run.yaml")
    said = job(yaml, 0, "1:3")
    assert said == "iteration 0: 2 units made, 0 existed, of 2 requested; it has 5."
    assert job(yaml, 0).startswith("iteration 0: 3 units made, 2 existed, of 5 requested")
    made = units(tmp_path, 0)
    assert made == units(whole, 0)
    assert not (tmp_path / "checkpoints").exists()
    assert not (tmp_path / "self-play/run.lock").exists()
    seals = {p: p.read_bytes() for p in tmp_path.glob("self-play/iter-000/units/*/unit.json")}
    train(yaml)
    assert {path: path.read_bytes() for path in seals} == seals  # none was made again
    assert weights(tmp_path) == weights(whole)


def test_a_job_and_a_restart_read_no_rows_that_are_kept(tmp_path, model, whole, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(source_identity, "_SMALL_BYTES", 0)
    monkeypatch.setattr(source_identity, "_PRECISION_NS", 0)
    yaml = write_config(tiny_config(tmp_path, model), tmp_path / "run.yaml")
    job(yaml, 0, "0:1")

    read = sources.read_rows

    def read_held_out(config, *rest):
        assert config.hf_kwargs["data_files"].endswith("heldout.jsonl")
        return read(config, *rest)

    for module in (load, sources):
        monkeypatch.setattr(module, "read_rows", read_held_out)
    job(yaml, 0, "1:2")
    train(yaml)
    assert weights(tmp_path) == weights(whole)


def test_a_later_iteration_is_played_with_the_checkpoint_of_its_start(tmp_path, model, whole):
    for name in ("checkpoints", "self-play"):
        shutil.copytree(whole / name, tmp_path / name, symlinks=True)
    yaml = write_config(tiny_config(tmp_path, model), tmp_path / "run.yaml")
    shutil.rmtree(tmp_path / "self-play/iter-001")
    assert job(yaml, 1, "4:6").startswith("iteration 1: 2 units made")
    wanted = units(whole, 1)
    two = ("unit-00004", "unit-00005")
    assert units(tmp_path, 1) == {x: content for x, content in wanted.items() if x[:10] in two}
    start = next((tmp_path / "checkpoints").glob("ep2-*.pt"))
    start.rename(tmp_path / "elsewhere.pt")
    with pytest.raises(InputError, match=r"no whole checkpoint of epoch 2, where iteration 1"):
        play(yaml, [], 1, "all")
    assert job(yaml, 1, "all", f"load_path={tmp_path / 'elsewhere.pt'}").startswith(
        "iteration 1: 8 units made, 2 existed"
    )
    assert units(tmp_path, 1) == wanted


def test_a_checkpoint_of_another_iteration_is_refused(tmp_path, model, whole):
    yaml = write_config(tiny_config(tmp_path, model), tmp_path / "run.yaml")
    last = next((whole / "checkpoints").glob("ep4-*.pt"))
    with pytest.raises(InputError, match=r"iteration 1 is to be played, but .* iteration 2"):
        play(yaml, [f"load_path={last}"], 1, "all")
    assert not (tmp_path / "self-play").exists()


def test_sharded_checkpoints_are_refused_on_one_process(tmp_path, model):
    config = tiny_config(tmp_path, model)
    sharded = tmp_path / "checkpoints/ep2-ba12"
    sharded.mkdir(parents=True)
    (sharded / ".metadata").write_bytes(b"not empty")
    settings = SpinSettings(**config["algorithms"]["spin"])
    with pytest.raises(InputError, match=r"ep2-ba12 is sharded, and one process reads full"):
        job_config(config, settings, PlayOnly(1), "run.yaml", False)


def test_messages_name_of_a_setting_works_on_the_command_line(tmp_path, model):
    yaml = write_config(tiny_config(tmp_path, model), tmp_path / "run.yaml")
    spin = read_yaml(yaml, ["spin.repair=true", "seed=3"]).algorithms.spin
    assert (spin.repair, spin.unit_size) == (True, 5)


@pytest.mark.parametrize(
    ("iteration", "units", "wanted"),
    [
        (2, "all", "--iteration 2 is out of range"),
        (0, "3:3", r"algorithms\.spin\.play_only\.units must be a:b with a < b"),
        (0, "3", r"algorithms\.spin\.play_only\.units must be a:b with a < b"),
        (-1, "all", r"algorithms\.spin\.play_only\.iteration must be an integer >= 0"),
    ],
)
def test_what_cannot_be_played_is_refused_before_anything_is_loaded(
    tmp_path, model, iteration, units, wanted
):
    yaml = write_config(tiny_config(tmp_path, model), tmp_path / "run.yaml")
    with pytest.raises(InputError, match=wanted):
        play(yaml, [], iteration, units)


def test_units_beyond_the_iterations_are_refused_by_their_number():
    assert PlayOnly(0, "2:5").select_units(5) == range(2, 5)
    with pytest.raises(InputError, match="within the 4 units of iteration 0, got '2:5'"):
        PlayOnly(0, "2:5").select_units(4)


def test_a_job_trains_saves_evaluates_and_logs_nothing(tmp_path, model):
    config = tiny_config(tmp_path, model, loggers={"wandb": {}}, callbacks={"hf_checkpointer": {}})
    config["algorithms"]["spin"]["repair"] = True
    settings = SpinSettings(**config["algorithms"]["spin"])
    made = job_config(config, settings, PlayOnly(0, "0:2"), "run.yaml", False)
    assert not {"eval_loader", "callbacks", "loggers", "save_folder"} & set(made)
    assert (made["autoresume"], made["eval_first"]) == (False, False)
    assert made["algorithms"]["spin"]["play_only"] == {"iteration": 0, "units": "0:2"}
    assert "play_only" not in config["algorithms"]["spin"]
    config["save_folder"] = "s3://bucket/checkpoints"
    with pytest.raises(InputError, match=r"no local save_folder to look for it in\. Give"):
        job_config(config, settings, PlayOnly(1), "run.yaml", False)
