"""The settings of engine ``server``: what is accepted, refused, and kept in a manifest."""

from __future__ import annotations

from typing import Any

import pytest

from spin_composer.algorithm import SPIN
from spin_composer.engines.base import make_engine
from spin_composer.engines.server.settings import ServerSettings
from spin_composer.errors import InputError
from spin_composer.settings.generation import GenerationSettings
from spin_composer.settings.section import fill
from spin_composer.settings.spin import SpinSettings

COMMAND = "vllm serve {model} --port {port}"
URL = {"base_url": "http://gpu7:8000", "reload_command": "reload {model}"}

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"engine": "server"}, "generation.server must be a section with command or base_url"),
    ({"server": {"command": COMMAND}}, "generation.server must be absent with hf"),
    (
        {"server": {}},
        "server.command or base_url must be given, exactly one of them, got 'neither'",
    ),
    ({"server": {"command": COMMAND, **URL}}, "exactly one of them, got 'both'"),
    ({"server": {"comand": COMMAND}}, "server.comand is not a setting. Did you mean 'command'?"),
    ({"server": {"command": "vllm serve x --port {port}"}}, "with {model} and {port}"),
    ({"server": {"command": "vllm serve {model}"}}, "with {model} and {port}"),
    ({"server": {"command": "'vllm {model} {port}"}}, "with {model} and {port}"),
    ({"server": {"command": 5}}, "server.command must be a text, or null, got 5"),
    (
        {"server": {"command": COMMAND, "reload_command": "x {model}"}},
        "absent when there is a command",
    ),
    ({"server": {**URL, "base_url": "gpu7:8000"}}, "server.base_url must be like http://host:8000"),
    ({"server": {**URL, "base_url": "http://gpu7/v1/"}}, "without /v1"),
    ({"server": {"base_url": "http://gpu7"}}, "every iteration would play the first opponent"),
    ({"server": {**URL, "reload_command": "reload"}}, "a command with {model} beside base_url"),
    ({"server": {"command": COMMAND, "port": -1}}, "server.port"),
    ({"server": {"command": COMMAND, "port": True}}, "server.port"),
    ({"server": {"command": COMMAND, "retries": -1}}, "server.retries must be an integer >= 0"),
    ({"server": {"command": COMMAND, "concurrency": 0}}, "server.concurrency"),
    ({"server": {"command": COMMAND, "startup_timeout_seconds": 0}}, "server.startup_timeout"),
    ({"server": {"command": COMMAND, "request_timeout_seconds": "1"}}, "server.request_timeout"),
    ({"server": {"command": COMMAND, "logp_tolerance": 0}}, "server.logp_tolerance must be"),
    ({"server": {"command": COMMAND, "keep_export": 1}}, "server.keep_export"),
    ({"server": {"command": COMMAND}, "min_new_tokens": 3}, "min_new_tokens must be 0 with engine"),
    ({"server": {"command": COMMAND}, "repetition_penalty": 1.1}, "repetition_penalty must be 1"),
]


@pytest.mark.parametrize(("given", "said"), WRONG, ids=[str(given) for given, _ in WRONG])
def test_a_wrong_value_is_refused_in_one_line(given: dict[str, Any], said: str) -> None:
    engine = {} if said.endswith("absent with hf") else {"engine": "server"}
    with pytest.raises(InputError) as caught:
        fill(SpinSettings, {"generation": {**engine, **given}})
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith((".", "?"))


def test_an_engine_that_always_merges_refuses_to_keep_adapters_apart() -> None:
    spin = {"engine": "server", "server": {"command": COMMAND}, "merge_adapters": False}
    with pytest.raises(InputError) as caught:
        SPIN(generation=spin)
    assert str(caught.value) == (
        "algorithms.spin.generation.merge_adapters must be true with engine server, got False. It "
        "generates with LoRA adapters merged: remove the setting, or use engine: hf."
    )
    SPIN(generation={"merge_adapters": False})  # engine hf can


def generation(**given: Any) -> GenerationSettings:
    return fill(GenerationSettings, {"engine": "server", **given})


def manifest_fields(settings: GenerationSettings) -> dict[str, Any]:
    return make_engine(settings).manifest_fields()


def test_a_manifest_holds_what_samples_depend_on_and_no_more() -> None:
    one = generation(server={"command": COMMAND, "port": 8000}, batch_size=8)
    moved = generation(server={**URL, "retries": 0, "concurrency": 1}, batch_size=16)
    assert manifest_fields(one) == manifest_fields(moved)
    for changed in ({"temperature": 0.9}, {"max_new_tokens": 5}, {"stop_strings": ["x"]}):
        other = generation(server={"command": COMMAND}, **changed)
        assert manifest_fields(other) != manifest_fields(one)
    hf = GenerationSettings(batch_size=8)
    assert manifest_fields(hf) != manifest_fields(GenerationSettings(batch_size=16))
    assert "server" not in manifest_fields(hf)  # stores of before there was one still fit


def test_a_trailing_slash_is_no_other_url() -> None:
    assert ServerSettings(**{**URL, "base_url": "http://gpu7:8000/"}).base_url == URL["base_url"]
