"""The settings of the engine ``server``: the completion server's address, limits and checks."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field, model_validator
from typing_extensions import Self

from spin_composer.settings.engines import EngineSettings
from spin_composer.settings.fields import (
    SECTION,
    Count,
    Positive,
    PositiveInt,
    Requirement,
    Text,
    require,
)
from spin_composer.settings.section import Config, section

if TYPE_CHECKING:
    from spin_composer.settings.generation import GenerationSettings

MODEL, PORT, HOST, API_KEY = "{model}", "{port}", "{host}", "{api_key}"
"""Placeholders of a command template: the opponent's folder, port, address and API key."""


CUSTOM_CLASS = "only transformers' own classes load elsewhere as they are here"
"""Why a server cannot serve a custom model class."""


def unservable_message(what: str, why: str) -> str:
    """Return the error message for a model that a server cannot serve."""
    return f"{SECTION}.generation.engine=server cannot serve {what}: {why}. Use engine: hf."


def _starting(command: str) -> str:
    remedy = f"For example: vllm serve {MODEL} --host {HOST} --port {PORT}."
    ok = MODEL in command and PORT in command and _splits(command)
    require(ok, "", command, f"a command with {MODEL} and {PORT}", remedy)
    return command


def _url(url: str) -> str:
    ok = url.startswith(("http://", "https://")) and not url.rstrip("/").endswith("/v1")
    require(ok, "", url, "like http://host:8000, without /v1")
    return url.rstrip("/")


def _splits(command: str) -> bool:
    try:
        return bool(shlex.split(command))
    except ValueError:
        return False


@section(f"{SECTION}.generation.server")
class ServerSettings(EngineSettings):
    """A completion server (``algorithms.spin.generation.server``).

    Either each iteration starts one with its opponent (``command``), or it is there already
    (``base_url`` and ``reload_command``).
    """

    command: Annotated[Text, AfterValidator(_starting)] | None = None
    """Starts the server: ``vllm serve {model} --host {host} --port {port} ...``. ``{model}``
    is replaced by the exported opponent's folder, ``{port}`` by the port, ``{host}`` by the address
    that ranks connect to (127.0.0.1 on one machine): without it vLLM listens on every network.
    ``{api_key}`` is replaced by a key generated for this start; ``VLLM_API_KEY`` and
    ``LLAMA_API_KEY`` are set to it too, so that vLLM and llama.cpp need no option. The command is
    not run by a shell. Rank 0 starts it in each iteration and ends it after play."""
    base_url: Annotated[Text, AfterValidator(_url)] | None = None
    """URL of a server that runs already: ``http://host:8000``, without ``/v1``."""
    reload_command: Text | None = None
    """Makes the server at ``base_url`` serve the folder ``{model}``, which it must be able to read;
    rank 0 runs it in each iteration and waits for it."""
    api_key_env: Text | None = None
    """Environment variable of rank 0 with the API key of the server at ``base_url``."""
    host: Text | None = None
    """Host name by which all ranks reach the started server; null: this machine, or rank 0's
    address (``MASTER_ADDR``) on several nodes."""
    port: Annotated[int, Field(ge=0, lt=65536), Requirement("a port, or 0 for a free one")] = 0
    """Port of the started server; 0: a free one."""
    startup_timeout_seconds: Positive = 1800.0
    """How long the server, or ``reload_command``, may take to become ready."""
    request_timeout_seconds: Positive = 600.0
    """How long one response may take."""
    retries: Count = 6
    """How often a request is retried after a lost connection, a timeout, a 429 or a 5xx; pauses
    between attempts grow to half a minute."""
    concurrency: PositiveInt = 64
    """Concurrent requests per rank."""
    logp_tolerance: Positive | None = None
    """Largest accepted mean difference, per unit and in nats per token, of the server's log-probs
    of its responses from ours; if it is exceeded, the server serves another model and the run
    stops. null: 0.01 in fp32, else 0.05."""
    keep_export: bool = False
    """Keep the exported opponent (``iter-<k>/opponent`` of the store) after play."""

    @classmethod
    def of(cls, generation: GenerationSettings) -> ServerSettings:
        """Return the section of a run whose engine is ``server``."""
        section = generation.engine_section
        assert isinstance(section, cls)
        return section

    @classmethod
    def check_generation(cls, generation: GenerationSettings) -> None:
        """See :class:`EngineSettings`."""
        section, wanted = generation.engine_section, "a section with command or base_url"
        remedy = "yamls/ has an example for vLLM."
        require(section is not None, ".server", None, wanted, remedy)
        for name, neutral in (("min_new_tokens", 0), ("repetition_penalty", 1)):
            value, wanted = getattr(generation, name), f"{neutral} with engine server"
            remedy = "Servers do not agree on what it means; remove it, or use engine: hf."
            require(value == neutral, f".{name}", value, wanted, remedy)

    def launch_problems(self, cfg: Config) -> Iterator[str]:
        """See :class:`EngineSettings`; only rank 0's machine runs the commands."""
        if cfg["model"]["name"] == "mpt_spin_lm":
            yield unservable_message("llm-foundry's MPT", CUSTOM_CLASS)
        if (os.environ.get("RANK") or "0") != "0":
            return
        for key in ("command", "reload_command"):
            command = getattr(self, key)
            words = shlex.split(command) if command else []
            if words[:1] == ["env"]:
                words = [word for word in words[1:] if "=" not in word and word[0] != "-"]
            if words and shutil.which(words[0]) is None:
                yield (
                    f"{SECTION}.generation.server.{key} starts {words[0]}, which is not found on "
                    "this machine (no shell runs it). Install it, or give its whole path."
                )

    @model_validator(mode="after")
    def _one_server(self) -> Self:
        one = (self.command is None) != (self.base_url is None)
        both = "neither" if self.command is None else "both"
        remedy = "Give the command that starts the server, or the URL of one that runs."
        wanted = "given, exactly one of them"
        require(one, ".command or base_url", both, wanted, remedy)
        if self.base_url is not None:
            command = self.reload_command
            ok = command is not None and MODEL in command and _splits(command)
            remedy = "Without it every iteration would play the first opponent."
            wanted = f"a command with {MODEL} beside base_url"
            require(ok, ".reload_command", command, wanted, remedy)
            return self
        for name, remedy in (
            ("reload_command", "Remove it: the started server is another one in each iteration."),
            ("api_key_env", "Remove it: the started server gets a key of its own."),
        ):
            value = getattr(self, name)
            require(value is None, f".{name}", value, "absent when there is a command", remedy)
        return self
