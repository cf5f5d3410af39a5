"""The completion server of an iteration: export the opponent, serve it, and clean up."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from composer.utils import dist

from spin_composer.distributed import from_rank_zero, on_all_ranks
from spin_composer.engines.server.client import HTTPClient
from spin_composer.engines.server.generator import ServerGenerator
from spin_composer.engines.server.process import free_port, run_and_wait, run_server
from spin_composer.engines.server.settings import ServerSettings
from spin_composer.errors import InputError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Export:
    """The exported model that a server serves.

    Args:
        folder: Target folder; the server's log is next to it.
        export: Writes the folder unless it exists already.
    """

    folder: Path
    export: Callable[[], None]


@contextmanager
def serve_opponent(
    settings: ServerSettings,
    exported: Export,
    make_generator: Callable[[str, Callable[[], None], str], ServerGenerator],
) -> Iterator[ServerGenerator]:
    """Yield the generator of a server that serves the opponent; entering is a collective.

    Rank 0 exports the opponent, starts (or reloads) the server and stops it; the others wait.
    If play fails, the export is kept for the run that finishes it.

    Args:
        settings: The server's address, or the command that starts it.
        exported: The opponent.
        make_generator: Called with the server's URL, a check that it is alive, and its API key.

    Raises:
        EngineError: If the server does not start, or the reload command fails.
    """
    with ExitStack() as stack:
        checks: list[Callable[[], None]] = []

        def start() -> tuple[str, str]:
            exported.export()
            key = secrets.token_urlsafe(24) if settings.command else _configured_key(settings)
            url, check = _start(settings, exported, stack, key)
            checks.append(check)
            return url, key

        url, key = from_rank_zero(start)
        yield on_all_ranks(lambda: make_generator(url, checks[0] if checks else lambda: None, key))
    if dist.get_global_rank() == 0 and not settings.keep_export:
        shutil.rmtree(exported.folder, ignore_errors=True)


def _start(
    settings: ServerSettings, exported: Export, stack: ExitStack, api_key: str
) -> tuple[str, Callable[[], None]]:
    """Return the URL of a server that is ready, and a check that it is alive."""
    log_file = exported.folder.with_name("server.log")
    seconds = settings.startup_timeout_seconds
    if settings.command is None:
        assert settings.base_url is not None
        assert settings.reload_command is not None
        run_and_wait(settings.reload_command, exported.folder, log_file, seconds)
        url, check = settings.base_url, lambda: None
    else:
        port = free_port(settings.port)
        host = settings.host or _server_host()
        server = stack.enter_context(
            run_server(settings.command, exported.folder, port, log_file, host, api_key)
        )
        url, check = f"http://{host}:{port}", server.check_alive
        log.info(f"waiting for the completion server at {url}; its log is {log_file}")
    client = HTTPClient(url, settings.request_timeout_seconds, 0, check, api_key)
    client.wait_until_ready(seconds)
    if api_key:
        _warn_if_open(client)
    return url, check


def _warn_if_open(client: HTTPClient) -> None:
    """Warn of a server that answers without its key too, or that could not be asked."""
    url = client.base_url
    try:
        if client.requires_key():
            return
    except OSError as error:
        log.warning(
            f"whether the completion server at {url} requires its key is not known: a request "
            f"without it failed ({error})."
        )
        return
    log.warning(
        f"the completion server at {url} answers requests without its key too: whoever reaches "
        "its address can use it. Let it listen at {host} only, or give it {api_key}."
    )


def _configured_key(settings: ServerSettings) -> str:
    """Return the API key of a server that runs already; empty without one.

    Raises:
        InputError: If the environment variable with the key is not set.
    """
    if settings.api_key_env is None:
        return ""
    key = os.environ.get(settings.api_key_env, "")
    if not key:
        raise InputError(
            f"algorithms.spin.generation.server.api_key_env={settings.api_key_env}: that variable "
            "is empty or not set on rank 0. Set it to the server's key, or remove the setting."
        )
    return key


def _server_host() -> str:
    """Return the host name by which all ranks reach rank 0's machine."""
    if dist.get_world_size() == dist.get_local_world_size():
        return "127.0.0.1"
    return os.environ.get("MASTER_ADDR", "127.0.0.1")
