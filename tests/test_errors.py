"""Exit codes: 2 bad input, 3 a bad store, 4 the environment; a defect keeps its traceback.

Other programs' errors are raised by those programs: a text that none of them says any more fails.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import pickle
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tokenizers import Tokenizer, models
from torch.distributed import checkpoint as distributed_checkpoint
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast

from spin_composer import errors, train
from spin_composer.errors import EnvironmentFailure, InputError, StoreError, explain


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


def test_a_checkpoint_cut_short_is_known_without_the_systems_error():
    with pytest.raises(RuntimeError) as caught:
        torch.save({"weight": torch.zeros(10**5)}, "/dev/full")
    sent = pickle.loads(pickle.dumps(caught.value))  # another rank's, without what it came from
    for error in (caught.value, sent):
        code, line = explain(error)  # pyright: ignore[reportGeneralTypeIssues]
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
    from streaming.base.shared import SharedMemory

    name = f"{os.getpid():07d}_locals"
    taken = SharedMemory(name=name, create=True, size=8)
    with pytest.raises(FileExistsError) as caught:
        SharedMemory(name=name, create=True, size=8)
    taken.cleanup()
    code, line = explain(caught.value)  # pyright: ignore[reportGeneralTypeIssues]
    assert code == 4
    assert "Run the same command again" in line


def test_a_lost_rank_is_the_environments_failure():
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "fixtures/lost_ranks.py")],
        capture_output=True, text=True, check=True, timeout=600,
    )  # fmt: skip
    found = json.loads(done.stdout)
    for said, explained in found:
        assert explained, said
        assert explained[0] == 4
        assert explained[1].startswith("a rank was lost")
    heard = [said.lower() for said, _ in found]
    for text in errors._CONNECTION_LOST:
        assert any(text in said for said in heard), text


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


def test_a_weight_that_a_sharded_checkpoint_lacks_is_named(tmp_path):
    model = {"model.embed.weight": torch.zeros(2)}
    distributed_checkpoint.save({"state": {"model": model}}, checkpoint_id=tmp_path)
    more = {"state": {"model": {**model, "model.lm_head.weight": torch.zeros(2)}}}
    with pytest.raises(BaseException, match="CheckpointException") as caught:
        distributed_checkpoint.load(more, checkpoint_id=tmp_path)
    found = explain(caught.value)
    assert found is not None
    assert found[0] == 2
    assert found[1].startswith("the checkpoint lacks model.lm_head.weight, which is trained: ")


# What transformers says of a name, asked of a hub on this machine that knows none.
NO_SUCH_NAME = """
import os, sys, threading
from http.server import BaseHTTPRequestHandler, HTTPServer

class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
    def log_message(self, *_): pass

server = HTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ |= {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "NO_PROXY": "127.0.0.1"}
os.environ |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": sys.argv[1]}
from transformers import AutoConfig
from spin_composer.errors import explain
try:
    AutoConfig.from_pretrained("no/such")
except OSError as error:
    print(*explain(error))
"""


def test_a_name_that_the_hub_does_not_know_is_bad_input(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", NO_SUCH_NAME, str(tmp_path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith("2 no/such is not a local folder and is not a valid model ident")


def _name_that_is_not_downloaded(_: Path) -> None:
    AutoConfig.from_pretrained("no/such")


def _folder_without_tokenizer(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama"}')
    AutoTokenizer.from_pretrained(folder)


def _folder_without_its_code(folder: Path) -> None:
    (folder / "config.json").write_text('{"auto_map": {"AutoConfig": "code.Config"}}')
    AutoConfig.from_pretrained(folder, trust_remote_code=True)


def _tokenizer_without_eos(folder: Path) -> None:
    from llmfoundry.utils.builders import build_tokenizer

    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    build_tokenizer(str(folder), {})


@pytest.mark.parametrize(
    "load",
    [_name_that_is_not_downloaded, _folder_without_tokenizer, _folder_without_its_code,
     _tokenizer_without_eos],
)  # fmt: skip
def test_a_name_or_folder_that_cannot_be_loaded_is_bad_input(
    load: Callable[[Path], None], tmp_path: Path
):
    with pytest.raises((OSError, ValueError)) as caught:
        load(tmp_path)
    code, line = explain(caught.value)  # pyright: ignore[reportGeneralTypeIssues]
    assert code == 2
    assert line.endswith("(See tokenizer.name and the model's name.)")
    assert "\n" not in line
