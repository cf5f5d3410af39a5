"""Fixtures of the data tests: tokenizers, rows, files, and the real data where it is at hand."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spin_composer.data import load, source_identity
from spin_composer.data.examples import ExampleDataset
from spin_composer.data.load import load_examples
from spin_composer.settings.dataset import read_config
from tests.fixtures import tokenizers

Json = Callable[..., Path]


@pytest.fixture(scope="session", params=list(tokenizers.ALL))
def any_tokenizer(request):
    return tokenizers.ALL[request.param]()


@pytest.fixture(scope="session")
def llama():
    return tokenizers.sentencepiece_like()


@pytest.fixture(scope="session")
def gpt2():
    return tokenizers.byte_level()


@pytest.fixture(scope="session")
def chatml():
    return tokenizers.chatml()


@pytest.fixture
def jsonl(tmp_path) -> Json:
    """Return a function that writes rows (objects, or text as it stands) to a jsonl file."""

    def write(rows: list[Any], name: str = "train.jsonl") -> Path:
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real data, which lies beside the checkout."""
    beside = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("SPIN_SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder} (set SPIN_SHARED_DATA)")
    return folder


@pytest.fixture
def nothing_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep examples of small files too, and trust files that have just changed."""
    monkeypatch.setattr(source_identity, "_SMALL_BYTES", 0)
    monkeypatch.setattr(source_identity, "_PRECISION_NS", 0)


@pytest.fixture
def kept(tmp_path: Path) -> Callable[..., ExampleDataset]:
    """Return a function that loads rows with the cache of the test."""

    def made(path: object, tokenizer: Any = None, **keys: Any) -> ExampleDataset:
        given = {"max_seq_len": 100, "hf_name": str(path), "cache_dir": str(tmp_path / "cache")}
        return load_examples(read_config({**given, **keys}), tokenizer or tokenizers.chatml())

    return made


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return a list that grows whenever rows are read."""
    seen: list[Any] = []
    read = load.read_rows

    def counted(config: Any, *rest: Any) -> Any:
        seen.append(config.source)
        return read(config, *rest)

    monkeypatch.setattr(load, "read_rows", counted)
    return seen
