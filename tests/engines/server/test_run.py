"""Runs whose opponent is served by llama.cpp's own server, from start to end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures.runs import NUM_ROWS, tiny_trainer
from fixtures.served import COMMAND, Served, served, settings
from fixtures.yaml_run import iteration_records, launch, save_model, tiny_config, write_config

from spin_composer.engines.server import lifecycle
from spin_composer.engines.server.lifecycle import Export
from spin_composer.engines.server.process import ServerProcess
from spin_composer.engines.server.settings import ServerSettings
from spin_composer.errors import EngineError
from spin_composer.store.local import LocalStore

pytest.importorskip("xllamacpp", reason="llama.cpp's server comes with the extra `test`")


def generation(command: str = COMMAND, **server: Any) -> dict[str, Any]:
    section = {"command": command, "retries": 2, **server}
    return {"engine": "server", "max_new_tokens": 12, "server": section}


def trainer(folder: Path, **changes: Any) -> Any:
    return tiny_trainer(folder, spin={"generation": generation(**changes)}, max_duration="1iter")


def rows(folder: Path) -> list[tuple[int, list[int], float]]:
    store = LocalStore(folder / "self-play")
    return [
        (row.index, row.generated.tolist(), row.opponent_generated)
        for unit in range(5)
        for row in store.read_unit(0, unit)
    ]


def test_a_killed_server_costs_a_unit_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer(tmp_path / "whole", keep_export=True).fit()
    wanted = rows(tmp_path / "whole")
    assert len(wanted) == NUM_ROWS
    assert (tmp_path / "whole/self-play/iter-000/opponent/model.safetensors").exists()

    store = LocalStore(tmp_path / "killed/self-play")
    check = ServerProcess.check_alive

    def killed_after_a_unit(server: ServerProcess) -> None:
        if 0 in store.complete_units(0):
            server._signal(9)
            time.sleep(0.2)
        check(server)

    with monkeypatch.context() as patch:
        patch.setattr(ServerProcess, "check_alive", killed_after_a_unit)
        with pytest.raises(EngineError, match="the completion server ended") as caught:
            trainer(tmp_path / "killed").fit()
    assert "\n" not in str(caught.value)
    units = store.folder(0) / "units"
    kept = sorted(path.name for path in units.iterdir())
    # The second one is stored if it was answered while the first was scored.
    assert kept == ["unit-00000", "unit-00001"][: max(1, len(kept))]
    assert store.complete_units(0) == set(range(len(kept)))  # nothing half-written

    trainer(tmp_path / "killed").fit()
    found = rows(tmp_path / "killed")
    assert [row[:2] for row in found] == [row[:2] for row in wanted]
    assert np.allclose([r[2] for r in found], [r[2] for r in wanted], atol=1e-4)
    assert not (store.folder(0) / "opponent").exists()  # taken away after play

    # All is there: the command, which could not start anything, is not run.
    trainer(tmp_path / "killed", command="false {model} {port}", concurrency=3).fit()


def of_one(folder: Path, model_folder: Path) -> dict[str, Any]:
    config = tiny_config(folder, model_folder)
    config["algorithms"]["spin"]["generation"] = generation()
    return config


@pytest.mark.foundry
@pytest.mark.slow
def test_two_sharded_ranks_play_in_rounds_what_one_rank_plays(tmp_path: Path) -> None:
    model = save_model(tmp_path)
    # Five units: in the last round a rank has none.
    for ranks, folder in ((1, tmp_path / "one"), (2, tmp_path / "two")):
        config = of_one(folder, model)
        path = write_config(config, folder / "run.yaml")
        done = launch("python", "-m", "spin_composer.train", str(path), ranks=ranks)
        assert done.returncode == 0, done.stderr[-3000:]
        for record in iteration_records(folder):
            assert record["spin/pairs"] > 0
        logs = [folder / f"self-play/iter-00{k}/server.log" for k in (0, 1)]
        assert all(log.read_text().count("listening at") == 1 for log in logs)
        assert not list(folder.glob("self-play/iter-*/opponent"))
    one, two = (LocalStore(tmp_path / name / "self-play") for name in ("one", "two"))
    assert one.manifest(0) == two.manifest(0)  # the opponent's fingerprint is in it
    wanted, found = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert [row[:2] for row in found] == [row[:2] for row in wanted]
    assert np.allclose([r[2] for r in found], [r[2] for r in wanted], rtol=0, atol=1e-5)


# --- a server that runs already ---------------------------------------------------------------


def play(llama: Served, folder: Path, reload_command: str) -> list[Any]:
    generation = settings({"base_url": llama.url, "reload_command": reload_command})
    opponent = Export(folder / "opponent", (folder / "opponent").mkdir)

    def make(url: str, check_alive: Callable[[], None], api_key: str) -> Any:
        assert (url, api_key) == (llama.url, "")
        return llama.engine()

    with lifecycle.serve_opponent(ServerSettings.of(generation), opponent, make) as engine:
        assert opponent.folder.exists()
        return engine.generate([np.array([45, 50], np.int32)] * 3, seed=1)


def test_a_server_that_runs_already_is_reloaded_and_left_running(tmp_path: Path) -> None:
    threads = threading.active_count()  # some may be other tests'
    with served(tmp_path / "served") as llama:
        folder = tmp_path / "run"
        folder.mkdir()
        responses = play(llama, folder, f"cp -r {{model}} {folder}/seen")
        assert (folder / "seen").is_dir()
        assert len(responses) == 3
        assert not (folder / "opponent").exists()
        llama.process.check_alive()
        with pytest.raises(EngineError, match=r"reload_command failed \(exit status 1\)"):
            play(llama, folder, "cp {model}/nothing .")
        assert (folder / "opponent").exists()  # for the run that goes on
    assert threading.active_count() < threads + 50
