"""Exit codes: 2 bad input, 3 a bad store, 4 the environment; a defect keeps its traceback."""

from __future__ import annotations

import errno
import io
import os
import pickle

import pytest
import torch

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


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EDQUOT])
def test_a_folder_that_cannot_be_written_is_named(number):
    code, line = explain(OSError(number, os.strerror(number), "/runs/x"))  # pyright: ignore
    assert code == 4
    assert "/runs/x" in line
    assert "\n" not in line


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
