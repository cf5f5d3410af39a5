"""A server that the run starts answers the run only."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fixtures import models, tokenizers
from fixtures.faulty_server import faulty
from fixtures.served import served, settings

from spin_composer.engines.server import lifecycle
from spin_composer.engines.server.client import HTTPClient
from spin_composer.engines.server.export import export_opponent
from spin_composer.engines.server.generator import ServerGenerator
from spin_composer.engines.server.process import split_command
from spin_composer.engines.server.settings import ServerSettings
from spin_composer.errors import EngineError, InputError

PROMPTS = [np.array([45, 50], np.int32)] * 2
KEY = "a-key-of-this-test"


def test_a_started_server_answers_with_the_runs_key_only_and_the_key_is_written_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = tokenizers.byte_level()
    model = models.tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=256)
    folder = tmp_path / "opponent"

    def export() -> None:
        export_opponent(model, tokenizer, tokenizer.eos_token_id, "one", None, folder)

    keys = []

    def make(url: str, check_alive: Any, api_key: str) -> ServerGenerator:
        keys.append(api_key)
        return ServerGenerator(url, tokenizer, tokenizer.eos_token_id, ours, check_alive, api_key)

    ours = settings()
    caplog.set_level(logging.DEBUG)
    exported = lifecycle.Export(folder, export)
    with lifecycle.serve_opponent(ServerSettings.of(ours), exported, make) as engine:
        assert len(engine.generate(PROMPTS, seed=1)) == 2
        url = engine.client.base_url  # pyright: ignore
        assert HTTPClient(url, 10, 0).requires_key()
        with pytest.raises(EngineError, match=r"40[13]"):
            ServerGenerator(url, tokenizer, tokenizer.eos_token_id, ours).generate(PROMPTS, seed=1)
    (key,) = keys
    assert len(key) >= 24
    assert key not in caplog.text
    assert "answers requests without its key" not in caplog.text
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or key.encode() not in path.read_bytes()


def test_a_server_that_answers_without_the_key_is_seen(tmp_path: Path) -> None:
    with served(tmp_path) as llama:
        assert not HTTPClient(llama.url, 10, 0, api_key=KEY).requires_key()


def test_a_server_that_does_not_answer_without_the_key_plays_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_SERVERS_KEY", KEY)
    opponent = lifecycle.Export(tmp_path / "opponent", (tmp_path / "opponent").mkdir)
    made = []
    with faulty(lambda *_: (0, b""), health=[200]) as (url, asked):
        section = {"reload_command": "true {model}", "api_key_env": "MY_SERVERS_KEY"}
        server = ServerSettings.of(settings({"base_url": url, **section}))
        with lifecycle.serve_opponent(server, opponent, lambda *given: made.append(given)):  # pyright: ignore
            pass
    assert len(asked) == len(made) == 1
    assert "requires its key is not known: a request without it failed" in caplog.text


def test_the_key_of_a_server_that_runs_already_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = {"reload_command": "true {model}", "api_key_env": "MY_SERVERS_KEY"}
    monkeypatch.delenv("MY_SERVERS_KEY", raising=False)
    with served(tmp_path / "served", KEY) as llama:
        server = ServerSettings.of(settings({"base_url": llama.url, **section}))
        opponent = lifecycle.Export(tmp_path / "opponent", (tmp_path / "opponent").mkdir)

        def make(url: str, check_alive: Any, api_key: str) -> Any:
            assert api_key == KEY
            return llama.engine()

        empty = pytest.raises(InputError, match=r"MY_SERVERS_KEY: that variable is empty")
        with empty, lifecycle.serve_opponent(server, opponent, make):
            pass
        (tmp_path / "opponent").rmdir()
        monkeypatch.setenv("MY_SERVERS_KEY", KEY)
        with lifecycle.serve_opponent(server, opponent, make) as engine:
            assert len(engine.generate(PROMPTS, seed=1)) == 2


def test_a_command_may_name_the_key() -> None:
    words = split_command("s --key {api_key} {model}", Path("/m"), 1, api_key=KEY)
    assert words == ["s", "--key", KEY, "/m"]


@pytest.mark.parametrize("key", [KEY + "\n", " " + KEY, KEY + "\N{EN DASH}"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(InputError, match="api_key_env") as caught:
        HTTPClient("http://127.0.0.1:9", 1, 0, api_key=key)
    assert KEY not in str(caught.value)
