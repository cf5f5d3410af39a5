"""Fixtures of the data tests: tokenizers, rows, files, and the real data where it is at hand."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

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
