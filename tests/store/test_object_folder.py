"""A folder in an object store: objects by name, retries, errors in one line with the remedy."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from boto3.exceptions import S3UploadFailedError
from botocore.exceptions import ClientError, EndpointConnectionError
from fixtures.s3 import BUCKET, s3_server

from spin_composer.errors import EnvironmentFailure
from spin_composer.store import object_folder
from spin_composer.store.object_folder import PERMANENT_ERRORS, STORE_ERRORS, ObjectFolder


@pytest.fixture
def s3(monkeypatch):
    monkeypatch.setattr(object_folder, "_FIRST_PAUSE_SECONDS", 0.01)
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def folder(s3) -> ObjectFolder:
    return ObjectFolder(f"s3://{BUCKET}/runs/a/")


def test_what_is_written_is_listed_and_read_by_its_name(folder, s3, tmp_path):
    folder.write_text("x/one.json", "1")
    (tmp_path / "two").write_bytes(b"\0two")
    folder.upload(tmp_path / "two", "x/two")
    s3.write("runs/ab/other", b"")
    assert folder.names() == ["x/one.json", "x/two"]
    assert folder.names("x/t") == ["x/two"]
    assert s3.names("runs/a/") == ["runs/a/x/one.json", "runs/a/x/two"]
    folder.download("x/two", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"\0two"
    assert folder.read_text("x/one.json") == "1"


def test_a_bucket_itself_can_be_the_folder(s3):
    folder = ObjectFolder(f"s3://{BUCKET}")
    folder.write_text("a", "b")
    assert folder.names() == s3.names() == ["a"]


def test_an_absent_object_is_none_and_is_not_asked_for_twice(folder, s3, tmp_path):
    assert folder.read_text("nothing") is None
    with pytest.raises(FileNotFoundError):
        folder.download("nothing", tmp_path / "x")
    assert folder.names("nothing") == []


def test_failures_that_pass_are_tried_again(folder, s3):
    failures: Counter[str] = Counter()

    def fault(method: str, path: str) -> bool:
        failures[method] += method in ("PUT", "GET")
        return method in ("PUT", "GET") and failures[method] <= 4

    s3.fault = fault
    folder.write_text("a", "b")
    assert folder.read_text("a") == "b"
    assert failures["PUT"] == 5


def test_pauses_leave_the_generator_of_training_alone(folder):
    failures = [
        ConnectionResetError("reset"),
        TimeoutError("late"),
        EndpointConnectionError(endpoint_url="x"),
    ]

    def unreliable(*_: object, **__: object) -> None:
        if failures:
            raise failures.pop()

    folder._client.upload_object = unreliable
    before = random.getstate()
    folder.write_text("a", "b")
    assert random.getstate() == before
    assert not failures


def test_a_failure_that_lasts_is_one_line_with_the_remedy(folder, s3):
    s3.fault = lambda method, _: method == "PUT"
    with pytest.raises(EnvironmentFailure) as caught:
        folder.write_text("a", "b")
    said = str(caught.value)
    assert said.startswith(f"s3://{BUCKET}/runs/a cannot be written (a): ")
    assert "run the same command again: the run resumes" in said
    assert "\n" not in said


def test_a_bucket_that_does_not_exist_is_said_at_once(s3):
    folder = ObjectFolder("s3://no-such-bucket/x")
    with pytest.raises(EnvironmentFailure, match=r"cannot be listed.*See that the bucket exists"):
        folder.names()
    assert len(s3.requests) < 8  # the client may look for its region; nothing was tried again


def test_missing_credentials_are_said_at_once(s3, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    folder = ObjectFolder(f"s3://{BUCKET}/x")
    before = len(s3.requests)
    with pytest.raises(EnvironmentFailure, match=r"[Cc]redentials"):
        folder.names()
    assert len(s3.requests) == before


def test_a_full_local_disk_keeps_its_own_error(folder, tmp_path):
    folder.write_text("a", "b")
    with pytest.raises(OSError, match="No such file or directory") as caught:
        folder.upload(tmp_path / "absent", "c")
    assert not isinstance(caught.value, EnvironmentFailure)


def test_a_defect_is_neither_tried_again_nor_called_the_stores(folder):
    asked = []

    def broken(*_: object, **__: object) -> None:
        asked.append(1)
        raise TypeError("an argument too many")

    folder._client.upload_object = broken
    with pytest.raises(TypeError, match="an argument too many"):
        folder.write_text("a", "b")
    assert len(asked) == 1


@pytest.mark.parametrize("name", [*STORE_ERRORS, *PERMANENT_ERRORS])
def test_every_error_in_the_lists_exists_in_its_client(name):
    module, _, kind = name.rpartition(".")
    found = getattr(pytest.importorskip(module), kind)
    assert f"{found.__module__}.{found.__qualname__}" == name


def test_a_right_that_is_missing_is_said_at_once(folder):
    asked = []

    def denied(*_: object, **__: object) -> None:
        asked.append(1)
        answer = {"Error": {"Code": "AccessDenied", "Message": "no\nright"}}
        try:
            raise ClientError(answer, "PutObject")
        except ClientError as error:
            raise S3UploadFailedError(f"Failed to upload: {error}")  # noqa: B904 - as boto3 does

    folder._client.upload_object = denied
    with pytest.raises(EnvironmentFailure, match=r"cannot be written \(a\): .*AccessDenied"):
        folder.write_text("a", "b")
    assert len(asked) == 1
