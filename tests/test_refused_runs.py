"""The command on a bad store or machine: refused before training, in one line, by exit code."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import models, tokenizers
from fixtures.runs import write_rows
from fixtures.yaml_run import iteration_records, save_model, tiny_config, write_config
from test_errors import files_at_most
from transformers import AutoModelForCausalLM

from spin_composer.train import main

pytestmark = pytest.mark.foundry

UNWRITABLE = "/sys/spin-composer-test"
"""A folder that neither root nor a user can make."""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny matrices are slower on several threads, by much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a finished run of two iterations, saved every fifth batch."""
    folder = tmp_path_factory.mktemp("finished")
    config = tiny_config(folder, save_interval="5ba")
    assert main([str(write_config(config, folder / "run.yaml"))]) == 0
    return folder


class Run:
    """A copy of the finished run as it was after a batch, and its command."""

    def __init__(self, finished: Path, folder: Path, capsys: pytest.CaptureFixture[str]):
        self.finished, self.folder, self.capsys = finished, folder, capsys

    def stopped_after(self, batch: int) -> Run:
        """Copy store and checkpoints; of the checkpoints only those up to a batch."""
        shutil.copytree(self.finished / "self-play", self.folder / "self-play")
        (self.folder / "checkpoints").mkdir()
        for path in (self.finished / "checkpoints").glob("ep*.pt"):
            if int(path.stem.split("-")[1].removeprefix("ba")) <= batch:
                shutil.copy2(path, self.folder / "checkpoints")
        return self

    def command(self, *changes: str, **overrides: Any) -> tuple[int, str]:
        """Give the command; return its exit code and the last line that it said."""
        self.folder.mkdir(exist_ok=True)
        overrides = {"save_interval": "5ba", **overrides}
        config = tiny_config(self.folder, self.finished / "model", **overrides)
        self.capsys.readouterr()
        code = main([str(write_config(config, self.folder / "run.yaml")), *changes])
        said = self.capsys.readouterr().err
        assert "Traceback" not in said
        return code, (said.splitlines() or [""])[-1]

    def batches(self) -> int:
        """Return the batch of the newest checkpoint."""
        names = [path.stem for path in (self.folder / "checkpoints").glob("ep*.pt")]
        return max((int(name.split("-")[1].removeprefix("ba")) for name in names), default=0)


@pytest.fixture
def run(finished, tmp_path, capsys) -> Run:
    return Run(finished, tmp_path / "run", capsys)


def first_of(names: Iterable[str], number: int) -> list[Any]:
    """Return the cases, those after the first few marked slow."""
    cases = list(names)
    slow = [pytest.param(name, marks=pytest.mark.slow) for name in cases[number:]]
    return [*cases[:number], *slow]


# --- another run's store --------------------------------------------------------------------


def another_model(folder: Path) -> str:
    save_model(folder)
    torch.manual_seed(99)
    other = models.tiny_model("llama", vocab_size=len(tokenizers.byte_level()))
    torch.nn.init.normal_(other.lm_head.weight)
    other.save_pretrained(folder / "model")
    return f"model.pretrained_model_name_or_path={folder / 'model'}"


def another_tokenizer(folder: Path) -> str:
    path = save_model(folder) / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": "{{ x }}"}))
    return f"tokenizer.name={folder / 'model'}"


def other_data(folder: Path) -> str:
    folder.mkdir()
    rows = write_rows(folder / "rows.jsonl", seed=3)
    return f"train_loader.dataset.hf_kwargs.data_files={rows}"


OTHERS: dict[str, Callable[[Path], str]] = {
    "opponent": another_model,
    "tokenizer": another_tokenizer,
    "data": other_data,
    "generation": lambda _: "algorithms.spin.generation.temperature=0.5",
    "seed": lambda _: "seed=8",
    "unit_size": lambda _: "algorithms.spin.unit_size=6",
}


@pytest.mark.parametrize("field", first_of(OTHERS, 4))
def test_a_store_that_another_run_played_is_refused_by_the_field(field, run, tmp_path):
    run.stopped_after(0)
    code, line = run.command(OTHERS[field](tmp_path / "other"))
    assert code == 3
    assert line.startswith("error: ")
    assert "was played by another run; it differs in " in line
    assert f"{field} (store " in line
    assert "Delete it to play again, or set algorithms.spin.store to another folder." in line
    assert run.batches() == 0


def test_a_manifest_that_the_checkpoint_was_not_trained_on_is_refused(run):
    path = run.stopped_after(25).folder / "self-play/iter-001/manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "opponent": "another"}))
    code, line = run.command()
    assert code == 3
    assert "it differs in opponent (store 'another'" in line
    assert run.batches() == 25


# --- a damaged store ------------------------------------------------------------------------


def truncate(units: Path) -> None:
    path = next((units / "unit-00002").glob("shard.*"))
    path.write_bytes(path.read_bytes()[:-5])


def flip(units: Path) -> None:
    path = next((units / "unit-00002").glob("shard.*"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a truncated shard": truncate,
    "a missing manifest": lambda units: (units.parent / "manifest.json").unlink(),
    "a flipped byte": flip,
    "a missing unit": lambda units: shutil.rmtree(units / "unit-00002"),
    "a missing report": lambda units: (units / "unit-00002/unit.json").unlink(),
}


@pytest.mark.parametrize("damage", first_of(DAMAGES, 2))
def test_damage_found_in_training_is_one_line_with_the_way_back(damage, run):
    DAMAGES[damage](run.stopped_after(25).folder / "self-play/iter-001/units")
    code, line = run.command()
    assert code == 3
    assert line.startswith("error: ")
    assert "estore " in line  # "restore it from a copy, or ...", "Restore the store, or ..."
    assert run.batches() == 25


def test_damage_at_an_iterations_start_is_one_line_and_repair_mends_it(finished, run):
    truncate(run.stopped_after(12).folder / "self-play/iter-001/units")
    code, line = run.command()
    assert code == 3
    assert "algorithms.spin.repair=true" in line
    assert run.command("algorithms.spin.repair=true")[0] == 0
    same_weights(finished, run.folder)


def test_a_damaged_manifest_is_one_line_and_repair_plays_its_iteration_again(finished, run):
    (run.stopped_after(12).folder / "self-play/iter-001/manifest.json").write_text("{")
    code, line = run.command()
    assert code == 3
    assert "iter-001" in line
    assert "algorithms.spin.repair=true" in line
    assert run.command("algorithms.spin.repair=true")[0] == 0
    same_weights(finished, run.folder)


# --- the machine ----------------------------------------------------------------------------


def same_weights(one: Path, other: Path) -> None:
    a, b = (
        AutoModelForCausalLM.from_pretrained(f / "checkpoints/huggingface/iter1").state_dict()
        for f in (one, other)
    )
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "change",
    [
        f"algorithms.spin.store={UNWRITABLE}",
        f"save_folder={UNWRITABLE}",
        f"callbacks.hf_checkpointer={{save_folder: {UNWRITABLE}, save_interval: 1iter}}",
    ],
)
def test_a_folder_that_cannot_be_written_is_named_before_play(change, run):
    code, line = run.command(change)
    assert code == 4
    assert line.startswith("error: /sys/")
    assert "cannot be used (" in line
    assert "Let the run's user write there, or set algorithms.spin.store and save_folder" in line
    assert not list((run.folder / "self-play").glob("iter-*"))


@pytest.mark.parametrize("folder", ["save_folder", "algorithms.spin.store"])
def test_a_file_in_a_folders_place_is_named_before_play(folder, run, tmp_path):
    (tmp_path / "file").touch()
    code, line = run.command(f"{folder}={tmp_path / 'file'}")
    assert code == 4
    assert str(tmp_path / "file") in line
    assert not list((run.folder / "self-play").glob("iter-*"))


@pytest.mark.parametrize(
    ("most_bytes", "interval", "saved"),
    [
        pytest.param(
            *(300_000, "5ba", "checkpoint"),
            id="while a checkpoint is written",
            marks=pytest.mark.slow,
        ),
        pytest.param(100_000, "1iter", "export", id="while the export is written"),
    ],
)
def test_no_room_while_saving_exits_4_and_the_same_command_goes_on(
    most_bytes, interval, saved, finished, run
):
    with files_at_most(most_bytes):
        code, line = run.command(save_interval=interval)
    assert code == 4
    assert "run the same command again" in line
    exported = (run.folder / "checkpoints/huggingface/iter0").exists()
    assert exported == (saved == "export")
    assert run.command(save_interval=interval)[0] == 0
    same_weights(finished, run.folder)
    assert [b["batches"] for b in iteration_records(run.folder)] == [12, 24]


def test_a_store_in_use_is_refused_and_its_owner_named(run):
    store = run.stopped_after(12).folder / "self-play"
    code = (
        "import sys; from pathlib import Path; "
        "from spin_composer.store.lock import LockFile, StoreLock; "
        "StoreLock(LockFile(Path(sys.argv[1]))).acquire('another'); "
        "print('held', flush=True); input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(store)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        exit_code, line = run.command()
        assert exit_code == 3
        assert f"is in use by run 'another' (process {holder.pid} on " in line
        assert run.batches() == 12
    finally:
        holder.kill()
        holder.communicate()


# --- what a refused run leaves ----------------------------------------------------------------

SERVER = "{engine: server, max_new_tokens: 12, server: {command: 'false {model} {port}'}}"
REFUSALS: dict[str, tuple[int, str | Callable[[Path], str]]] = {
    "other data": (3, other_data),
    "another tokenizer": (3, another_tokenizer),
    "another seed": (3, "algorithms.spin.seed=8"),
    "a server that does not start": (4, f"algorithms.spin.generation={SERVER}"),
    "a damaged unit that is replayed": (3, "algorithms.spin.repair=false"),
}


def files(*folders: Path) -> dict[str, bytes]:
    """Return the contents of all files below folders, but for the server's log and its model.

    With these a user sees why it did not start; the next start of it takes the model as it is.
    """
    return {
        str(path): path.read_bytes()
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and not {"server.log", "opponent"} & set(path.parts)
    }


def test_refused_runs_write_nothing_and_the_original_command_goes_on(finished, run, tmp_path):
    run.stopped_after(12)
    shutil.rmtree(run.folder / "self-play/iter-001")
    newest = next((run.folder / "checkpoints").glob("ep2-ba12*.pt"))
    (run.folder / "checkpoints/latest-rank0.pt").symlink_to(newest.name)
    shard = next((run.folder / "self-play/iter-000/units/unit-00001").glob("shard.*"))
    whole = shard.read_bytes()
    for name, (wanted, change) in REFUSALS.items():
        if "damaged" in name:
            shard.write_bytes(whole[:-1])
        given = change if isinstance(change, str) else change(tmp_path / name)
        run.folder.joinpath("run.yaml").unlink(missing_ok=True)
        before = files(run.folder / "self-play", run.folder / "checkpoints")
        code, line = run.command(given)
        assert (code, name) == (wanted, name), line
        assert files(run.folder / "self-play", run.folder / "checkpoints") == before, name
    shard.write_bytes(whole)
    assert run.command()[0] == 0
    same_weights(finished, run.folder)
