"""Whole runs whose store is in an object store, by a real S3 server on loopback."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fixtures.s3 import BUCKET, S3, s3_server
from fixtures.steps import steps_without_times
from fixtures.yaml_run import iteration_records, save_model, tiny_config, write_config
from test_nodes import OWN_SHM, can_have_own_shm, free_port
from typer.testing import CliRunner

from spin_composer.cli import app
from spin_composer.train import main, train

pytestmark = pytest.mark.foundry

URL = f"s3://{BUCKET}/{{run_name}}/self-play"
SAVING = {"save_interval": "1ep"}


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    with s3_server() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model) -> Path:
    """A run with its store on the file system."""
    folder = tmp_path_factory.mktemp("whole")
    train(write_config(tiny_config(folder, model, **SAVING), folder / "run.yaml"))
    return folder


def remote_yaml(folder: Path, model: Path, **overrides: Any) -> Path:
    config = tiny_config(folder, model, **{**SAVING, **overrides})
    config["algorithms"]["spin"]["remote_store"] = URL
    return write_config(config, folder / "run.yaml")


def weights(folder: Path, iteration: int = 1) -> bytes:
    return (folder / f"checkpoints/huggingface/iter{iteration}/model.safetensors").read_bytes()


def units(store: Path) -> dict[str, bytes]:
    """Return the units' files of a store, but unit.json, which holds times."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.glob("iter-*/units/unit-*/*"))
        if path.name != "unit.json"
    }


def test_a_run_in_an_object_store_goes_on_where_its_folder_is_lost(tmp_path, s3, model, whole):
    yaml = remote_yaml(tmp_path, model)
    train(yaml)
    assert weights(tmp_path) == weights(whole)
    assert units(tmp_path / "self-play") == units(whole / "self-play")
    # During iteration 1, on a new machine: no store, and a checkpoint of epoch 3.
    shutil.rmtree(tmp_path / "self-play")
    shutil.rmtree(tmp_path / "checkpoints/huggingface/iter1")
    for path in (tmp_path / "checkpoints").glob("ep4-*.pt"):
        path.unlink()
    printed = CliRunner().invoke(app, ["status", str(yaml)], env={"COLUMNS": "200"}).output
    assert f"s3://{BUCKET}/tiny/self-play: 2 of 2 iterations begun" in printed
    assert "10 of 10" in printed
    assert "the same command trains iteration 1 from epoch 3, batch 24" in printed
    assert main([str(yaml)]) == 0
    assert weights(tmp_path) == weights(whole)
    wanted = units(whole / "self-play")  # iteration 0 is not needed any more
    assert units(tmp_path / "self-play") == {x: wanted[x] for x in wanted if "iter-001" in x}
    assert iteration_records(tmp_path)[1]["spin/pairs"] == iteration_records(whole)[1]["spin/pairs"]
    assert (
        s3.read("tiny/self-play/iterations.json")
        == (tmp_path / "self-play/iterations.json").read_bytes()
    )
    steps = (tmp_path / "self-play/steps.jsonl").read_bytes()
    assert s3.read("tiny/self-play/steps.jsonl") == steps
    wanted_steps = steps_without_times(whole / "self-play")  # also those of the lost folder
    assert steps_without_times(tmp_path / "self-play") == wanted_steps
    assert s3.read("tiny/self-play/run.lock") == b""
    page = tmp_path / "page.html"
    url = f"s3://{BUCKET}/tiny/self-play"
    report = CliRunner().invoke(app, ["report", url, "--html", str(page)])
    assert report.exit_code == 0, report.output
    shown = page.read_text()
    assert url in shown
    assert shown.count("<article") == 16  # of both iterations
    assert shown.count('data-margin="') == 16
    assert 'data-margin=""' not in shown


def test_an_object_store_that_fails_in_play_exits_4_and_the_same_command_goes_on(
    tmp_path, s3, model, whole, capsys
):
    yaml = remote_yaml(tmp_path, model, run_name="failing", max_duration="1iter")
    s3.requests.clear()
    s3.fault = lambda method, path: method == "PUT" and "/units/unit-00003" in path
    assert main([str(yaml)]) == 4
    assert "cannot be written (iter-000/units/unit-00003" in capsys.readouterr().err
    s3.fault = lambda *_: False
    assert s3.read("failing/self-play/run.lock") == b""  # given back
    assert main([str(yaml)]) == 0
    # The unit that was whole on this machine was uploaded, not made again.
    local = tmp_path / "self-play/iter-000/units/unit-00003/index.json"
    assert local.read_bytes() == units(whole / "self-play")["iter-000/units/unit-00003/index.json"]
    assert weights(tmp_path, iteration=0) == weights(whole, iteration=0)


def node(tmp_path: Path, rank: int, port: int, s3: S3, *arguments: str) -> subprocess.Popen[str]:
    """Start python on a node of one rank, whose folder ``local`` and shared memory are its own."""
    own = tmp_path / f"node-{rank}"
    own.mkdir(exist_ok=True)
    (tmp_path / "local").mkdir(exist_ok=True)
    *unshare, mount, name = OWN_SHM
    mount = mount.replace("exec", f"mount --bind {own} {tmp_path / 'local'} && exec")
    command = [*unshare, mount, name, sys.executable]
    environment = {
        **os.environ, **s3.environment, "FSDP_VERSION": "2", "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank),
        "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "NODE_RANK": str(rank),
    }  # fmt: skip
    scratch = tmp_path / f"scratch-{rank}"  # llm-foundry's signal files have one name on all nodes
    scratch.mkdir(exist_ok=True)
    with open(tmp_path / f"output-{rank}.txt", "a") as output:
        return subprocess.Popen(
            [*command, *arguments], cwd=scratch, env=environment, text=True,
            stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def two_nodes(tmp_path: Path, s3: S3, *arguments: str) -> list[subprocess.Popen[str]]:
    port = free_port()
    return [node(tmp_path, rank, port, s3, *arguments) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not can_have_own_shm(), reason="needs user namespaces (unshare -rm)")
def test_two_nodes_with_folders_of_their_own_share_a_store(tmp_path, s3, model):
    yaml = remote_yaml(tmp_path, model, run_name="nodes")
    text = yaml.read_text().replace(str(tmp_path / "self-play"), str(tmp_path / "local/self-play"))
    yaml.write_text(text)
    nodes = two_nodes(tmp_path, s3, "-m", "spin_composer.train", str(yaml))
    deadline = time.monotonic() + 400
    while len(s3.names("nodes/self-play/iter-000/done/")) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in nodes:  # kill -9 of all in play
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    made = s3.names("nodes/self-play/iter-000/done/")
    assert 2 <= len(made) < 5, (tmp_path / "output-0.txt").read_text()[-3000:]
    shutil.rmtree(tmp_path / "node-1")  # and node 1 is replaced by a new machine
    nodes = two_nodes(tmp_path, s3, "-m", "spin_composer.train", str(yaml))
    codes = [process.wait(timeout=400) for process in nodes]
    said = [(tmp_path / f"output-{rank}.txt").read_text()[-3000:] for rank in range(2)]
    assert codes == [0, 0], "\n".join(said)
    assert set(made) <= set(s3.names("nodes/self-play/iter-000/done/"))
    stores = [units(tmp_path / f"node-{rank}/self-play") for rank in range(2)]
    assert stores[0] == stores[1]
    assert len({name.split("/units/")[0] for name in stores[0]}) == 2
    assert (tmp_path / "checkpoints/huggingface/iter1/model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not can_have_own_shm(), reason="needs user namespaces (unshare -rm)")
def test_a_job_on_two_nodes_plays_what_a_run_elsewhere_trains_on(tmp_path, s3, model, whole):
    yaml = remote_yaml(tmp_path, model, run_name="job")
    text = yaml.read_text().replace(str(tmp_path / "self-play"), str(tmp_path / "local/self-play"))
    (tmp_path / "job.yaml").write_text(text)
    code = "from spin_composer.cli import main; import sys; sys.argv[1:] = ['play', "
    code += f"'{tmp_path / 'job.yaml'}', '--iteration', '0', '--units', '0:4']; main()"
    nodes = two_nodes(tmp_path, s3, "-c", code)
    codes = [process.wait(timeout=400) for process in nodes]
    said = [(tmp_path / f"output-{rank}.txt").read_text()[-3000:] for rank in range(2)]
    assert codes == [0, 0], "\n".join(said)
    assert "4 units made, 0 existed, of 4 requested; it has 5" in said[1]
    done = s3.names("job/self-play/iter-000/done/")
    assert len(done) == 4
    assert main([str(yaml)]) == 0
    assert set(done) <= set(s3.names("job/self-play/iter-000/done/"))
    assert weights(tmp_path) == weights(whole)
