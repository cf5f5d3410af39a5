"""Exit codes: 2 bad input, 3 a bad store, 4 the environment; a defect keeps its traceback."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import pickle
import resource
from collections.abc import Iterator

import pytest
import safetensors.torch
import torch
from torch.distributed import checkpoint as distributed_checkpoint

from spin_composer import train
from spin_composer.errors import EnvironmentFailure, InputError, StoreError
from spin_composer.exits import explain


@pytest.mark.parametrize(
    ("error", "code"),
    [(InputError("x"), 2), (StoreError("x"), 3), (EnvironmentFailure("x"), 4)],
)
def test_our_errors_have_a_code_each_and_keep_their_line(error, code):
    assert explain(error) == (code, "x")
    assert explain(pickle.loads(pickle.dumps(error))) == (code, "x")  # rank 0's, on other ranks


def test_a_disk_that_is_full_is_the_environments_failure():
    with pytest.raises(OSError, match="No space left") as caught, open("/dev/full", "w") as file:
        file.write("x")
    code, line = explain(caught.value)  # pyright: ignore[reportGeneralTypeIssues]
    assert code == 4
    assert "the disk is full" in line
    assert "same command again" in line


def test_a_full_disk_under_a_checkpoint_is_found_behind_torchs_own_error():
    with pytest.raises(Exception, match=r"(?s).") as caught, open("/dev/full", "wb", 0) as file:
        torch.save({"weight": torch.zeros(10**6)}, file)
    assert explain(caught.value)[0] == 4  # pyright: ignore[reportOptionalSubscript]


@contextlib.contextmanager
def files_at_most(num_bytes: int) -> Iterator[None]:
    """Let no file grow beyond a size, as root or as a user; Python ignores the signal."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_limit_of_the_files_size_is_found_in_all_ways_of_saving(tmp_path):
    weights = {"weight": torch.zeros(10**5)}

    def checkpoint() -> None:
        with open(tmp_path / "whole.pt", "wb") as file:
            torch.save(weights, file)

    for save in (
        checkpoint,
        lambda: safetensors.torch.save_file(weights, tmp_path / "export.safetensors"),
        lambda: (tmp_path / "text").write_text("x" * 10**5),
    ):
        with files_at_most(10**4), pytest.raises(Exception, match=r"(?s).") as caught:
            save()
        code, line = explain(caught.value)  # pyright: ignore[reportGeneralTypeIssues]
        assert code == 4
        assert "`ulimit -f`" in line
        assert "\n" not in line


def test_a_sharded_save_that_fails_on_a_full_disk_is_the_environments_failure(tmp_path):
    (tmp_path / "__0_0.distcp").symlink_to("/dev/full")
    with pytest.raises(BaseException, match="CheckpointException") as caught:
        distributed_checkpoint.save({"weight": torch.zeros(10**5)}, checkpoint_id=tmp_path)
    assert not isinstance(caught.value, Exception)  # so `except Exception` would let it pass
    code, line = explain(caught.value)  # pyright: ignore[reportGeneralTypeIssues]
    assert code == 4
    assert "the disk is full" in line
    # Errors of other ranks come without what they came from.
    code, line = explain(RuntimeError("[enforce fail] . unexpected pos 704 vs 598"))  # pyright: ignore
    assert code == 4
    assert "could not be written to its end" in line


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EDQUOT])
def test_a_folder_that_cannot_be_written_is_named(number):
    code, line = explain(OSError(number, os.strerror(number), "/runs/x"))  # pyright: ignore
    assert code == 4
    assert "/runs/x" in line
    assert "\n" not in line


def test_a_file_in_a_folders_place_is_named_and_other_files_that_exist_are_defects(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError) as caught:
        os.makedirs(tmp_path / "file", exist_ok=True)
    assert explain(caught.value)[0] == 4  # pyright: ignore[reportOptionalSubscript]
    with pytest.raises(FileExistsError) as caught:
        os.mkdir(tmp_path)
    assert explain(caught.value) is None


def test_shared_memory_that_another_run_took_is_no_defect():
    # Streaming looks for a free name first, and then makes it: two runs may come between.
    error = FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), "/000140_locals")
    code, line = explain(error)  # pyright: ignore[reportGeneralTypeIssues]
    assert code == 4
    assert "Give the same command again" in line


def test_a_lost_rank_is_the_environments_failure():
    text = "[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4242"
    code, line = explain(RuntimeError(text))  # pyright: ignore[reportGeneralTypeIssues]
    assert code == 4
    assert line.startswith("a rank was lost")


@pytest.mark.parametrize(
    "error",
    [RuntimeError("mat1 and mat2"), KeyError("x"), OSError("no such model"), FileExistsError("x")],
)
def test_a_defect_is_not_explained_away(error):
    assert explain(error) is None


@pytest.mark.parametrize(("error", "code"), [(StoreError("bad store"), 3), (OSError(28, "x"), 4)])
def test_the_training_command_exits_so(error, code, monkeypatch):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(train, "train", fail)
    said = io.StringIO()
    monkeypatch.setattr("sys.stderr", said)
    assert train.main(["run.yaml"]) == code
    assert said.getvalue().startswith("error: ")
    assert said.getvalue().count("\n") == 1


def test_a_weight_that_a_sharded_checkpoint_lacks_is_named():
    from torch.distributed.checkpoint.api import CheckpointException

    said = "Missing key in checkpoint state_dict: state.model.model.lm_head.weight."
    found = explain(CheckpointException("load", {0: (RuntimeError(said), [])}))
    assert found is not None
    assert found[0] == 2
    assert found[1].startswith("the checkpoint lacks model.lm_head.weight, which is trained: ")
