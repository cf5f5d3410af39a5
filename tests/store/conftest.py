"""Fixtures of the store's tests: an object store of their own, and two nodes with a store in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fixtures.s3 import BUCKET, s3_server

from spin_composer.play.prepare import check_iteration
from spin_composer.store import object_folder
from spin_composer.store.object_folder import ObjectFolder
from spin_composer.store.remote import RemoteStore
from tests.play.test_prepare import EXAMPLES, MANIFEST, UNITS
from tests.store.test_local import commit, make_rows


@pytest.fixture(scope="module")
def server():
    with s3_server() as server:
        yield server


@pytest.fixture
def s3(server, monkeypatch):
    monkeypatch.setattr(object_folder, "_FIRST_PAUSE_SECONDS", 0.01)
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    server.reset()
    return server


def node(tmp_path: Path, name: str) -> RemoteStore:
    return RemoteStore(tmp_path / name, ObjectFolder(f"s3://{BUCKET}/run/self-play"))


def reopen(store: RemoteStore, repair: bool = False, **other: Any) -> None:
    manifest = {**MANIFEST, **other}
    check_iteration(store, manifest, UNITS, EXAMPLES, repair, range(len(UNITS)))
    store.open_iteration(manifest)


@pytest.fixture
def a(s3, tmp_path) -> RemoteStore:
    """Node a's store, with two units of iteration 0."""
    store = node(tmp_path, "a")
    reopen(store)
    commit(store, 0, make_rows(5, seed=1))
    commit(store, 1, make_rows(4, seed=2))
    return store


@pytest.fixture
def b(a, tmp_path) -> RemoteStore:
    """Node b's, whose folder is empty."""
    return node(tmp_path, "b")
