"""The settings of the engine ``server``: where the completion server is, and how it is asked."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from spin_composer.settings.fields import SECTION, check, is_int, is_number

MODEL, PORT, HOST, API_KEY = "{model}", "{port}", "{host}", "{api_key}"
"""What a command template has in place of the opponent's folder, port, address and key."""

_AT = f"{SECTION}.generation.server"


@dataclass
class ServerSettings:
    """A completion server (``algorithms.spin.generation.server``).

    Either each iteration starts one with its opponent (``command``), or it is there already
    (``base_url`` and ``reload_command``).
    """

    command: str | None = None
    """Starts the server: ``vllm serve {model} --host {host} --port {port} ...``. ``{model}``
    becomes the exported opponent's folder, ``{port}`` the port, ``{host}`` the address that ranks
    ask (127.0.0.1 on one machine): without it vLLM listens to every network. ``{api_key}`` becomes
    a key made for this start, which ``VLLM_API_KEY`` and ``LLAMA_API_KEY`` hold too, so that vLLM
    and llama.cpp need no word of it. No shell runs it. Rank 0 starts it in each iteration
    and ends it after play."""
    base_url: str | None = None
    """Of a server that runs already: ``http://host:8000``, without ``/v1``."""
    reload_command: str | None = None
    """Makes the server at ``base_url`` serve the folder ``{model}``, which it must see; run by
    rank 0 in each iteration, and waited for."""
    api_key_env: str | None = None
    """Environment variable of rank 0 with the key of the server at ``base_url``."""
    host: str | None = None
    """Name under which all ranks reach the started server; null: this machine, or rank 0's address
    (``MASTER_ADDR``) where there are several nodes."""
    port: int = 0
    """Port of the started server; 0: a free one."""
    startup_timeout_seconds: float = 1800.0
    """How long the server, or ``reload_command``, may take until it answers."""
    request_timeout_seconds: float = 600.0
    """How long one response may take."""
    retries: int = 6
    """How often a request is sent again after a lost connection, a timeout, 429 or a 5xx; the
    pauses between grow to half a minute."""
    concurrency: int = 64
    """Requests in flight at a time, per rank."""
    logp_tolerance: float | None = None
    """Nats per token, of a unit's mean, by which the server's log-probs of its responses may differ
    from ours; beyond, it serves another model and the run stops. null: 0.01 in fp32, else 0.05."""
    keep_export: bool = False
    """Keep the exported opponent (``iter-<k>/opponent`` of the store) after play."""

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("command", "base_url", "reload_command", "host", "api_key_env"):
            value = getattr(self, name)
            ok = value is None or (isinstance(value, str) and bool(value.strip()))
            check(ok, f"{_AT}.{name}", value, "a text, or null")
        remedy = "Give the command that starts the server, or the URL of one that runs."
        one = (self.command is None) != (self.base_url is None)
        both = "neither" if self.command is None else "both"
        check(one, f"{_AT}.command or base_url", both, "given, exactly one of them", remedy)
        if self.command is not None:
            self._check_command()
        else:
            self._check_url()
        ok = is_int(self.port) and 0 <= self.port < 65536
        check(ok, f"{_AT}.port", self.port, "a port, or 0 for a free one")
        for name in ("startup_timeout_seconds", "request_timeout_seconds"):
            value = getattr(self, name)
            check(is_number(value) and value > 0, f"{_AT}.{name}", value, "a number > 0")
        ok = is_int(self.retries) and self.retries >= 0
        check(ok, f"{_AT}.retries", self.retries, "an integer >= 0")
        ok = is_int(self.concurrency) and self.concurrency > 0
        check(ok, f"{_AT}.concurrency", self.concurrency, "a positive integer")
        value = self.logp_tolerance
        ok = value is None or (is_number(value) and value > 0)
        check(ok, f"{_AT}.logp_tolerance", value, "a number > 0, or null")
        check(isinstance(self.keep_export, bool), f"{_AT}.keep_export", self.keep_export, "a bool")

    def _check_command(self) -> None:
        wanted = f"a command with {MODEL} and {PORT}"
        remedy = f"For example: vllm serve {MODEL} --host {HOST} --port {PORT}."
        ok = all(part in str(self.command) for part in (MODEL, PORT)) and _splits(self.command)
        check(ok, f"{_AT}.command", self.command, wanted, remedy)
        remedy = "Remove it: the started server is another one in each iteration."
        check(self.reload_command is None, f"{_AT}.reload_command", self.reload_command,
              "absent beside command", remedy)  # fmt: skip
        remedy = "Remove it: the started server gets a key of its own."
        check(self.api_key_env is None, f"{_AT}.api_key_env", self.api_key_env,
              "absent beside command", remedy)  # fmt: skip

    def _check_url(self) -> None:
        url = str(self.base_url)
        ok = url.startswith(("http://", "https://")) and not url.rstrip("/").endswith("/v1")
        check(ok, f"{_AT}.base_url", self.base_url, "like http://host:8000, without /v1")
        self.base_url = url.rstrip("/")
        ok = MODEL in str(self.reload_command) and _splits(self.reload_command)
        wanted = f"a command with {MODEL} beside base_url"
        remedy = "Without it every iteration would play the first opponent."
        check(ok, f"{_AT}.reload_command", self.reload_command, wanted, remedy)


def _splits(command: str | None) -> bool:
    try:
        return bool(shlex.split(command or ""))
    except ValueError:
        return False
