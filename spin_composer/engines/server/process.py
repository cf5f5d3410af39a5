"""A completion server as a child process: start it, watch it, and end its process group."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from spin_composer.engines.server.settings import API_KEY, HOST, MODEL, PORT
from spin_composer.errors import EngineError, InputError, format_value
from spin_composer.settings.secrets import HIDDEN, without_secrets

_GRACE_SECONDS = 30.0
_POLL_SECONDS = 0.1
_TAIL_LINES, _TAIL_BYTES = 5, 16_384
# With these variables a server would act as a rank of the training run.
_LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
# Variables that servers read their API key from; other users cannot see them in `ps`.
_API_KEY_VARIABLES = ("VLLM_API_KEY", "LLAMA_API_KEY")
_LAUNCHER_PREFIXES = ("LOCAL_", "GROUP_", "ROLE_", "TORCHELASTIC_", "TORCH_NCCL_")


class ServerProcess:
    """A running server; created by :func:`run_server`."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path):
        self.process = process
        self.log = log

    def check_alive(self) -> None:
        """Raise if the server has ended.

        Raises:
            EngineError: With its exit status and the last lines of its log.
        """
        status = self.exit_status()
        if status is not None:
            raise EngineError(
                f"the completion server ended (exit status {status}): {last_lines(self.log)} Fix "
                f"algorithms.spin.generation.server.command; its log is {self.log.absolute()}."
            )

    def end(self) -> None:
        """End the server's process group: SIGTERM, then SIGKILL after a grace period."""
        self._signal(signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_SECONDS
        while self.exit_status() is None and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        self._signal(signal.SIGKILL)  # processes of the group that remain
        self.process.wait()

    def exit_status(self) -> int | None:
        """Return the exit status, or None while it runs.

        The process is not reaped before :meth:`end`, so that its id, which is the group's id, is
        not reused.
        """
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        found = os.waitid(os.P_PID, self.process.pid, options)
        return None if found is None else found.si_status

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


@contextmanager
def run_server(
    command: str, model: Path, port: int, log: Path, host: str = "127.0.0.1", api_key: str = ""
) -> Iterator[ServerProcess]:
    """Start a server and yield it; it is ended on exit, also after an error.

    Args:
        command: A template with ``{model}`` and ``{port}``.
        model: Folder of the opponent.
        port: Port to listen on.
        log: File that its output is appended to.
        host: Address to listen on, replaces ``{host}``.
        api_key: Replaces ``{api_key}``, and is set in the variables that servers read it from; the
            log shows ``***`` for it and for other secrets of the command.
    """
    words = split_command(command, model, port, host, api_key)
    shown_words = without_secrets(split_command(command, model, port, host, HIDDEN))
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in _LAUNCHER_VARIABLES and not name.startswith(_LAUNCHER_PREFIXES)
    }
    if api_key:
        environment |= dict.fromkeys(_API_KEY_VARIABLES, api_key)
    supervisor = Path(__file__).with_name("supervise.py")
    with open(log, "ab") as file:
        file.write(f"$ {shlex.join(shown_words)}\n".encode())
        file.flush()
        process = subprocess.Popen(
            [sys.executable, "-S", str(supervisor), str(os.getpid()), *words],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    server = ServerProcess(process, log)
    try:
        yield server
    finally:
        server.end()


def run_and_wait(command: str, model: Path, log: Path, seconds: float) -> None:
    """Run a command template with ``{model}`` and wait for it.

    Raises:
        EngineError: If it fails, or takes longer than ``seconds``.
    """
    with run_server(command, model, 0, log) as started:
        deadline = time.monotonic() + seconds
        while (status := started.exit_status()) is None:
            if time.monotonic() > deadline:
                raise EngineError(
                    "algorithms.spin.generation.server.reload_command did not end within "
                    f"{seconds:g} s; its log is {log.absolute()}. Raise startup_timeout_seconds if "
                    "it needs longer."
                )
            time.sleep(_POLL_SECONDS)
    if status != 0:
        raise EngineError(
            f"algorithms.spin.generation.server.reload_command failed (exit status {status}): "
            f"{last_lines(log)} Its log is {log.absolute()}."
        )


def split_command(
    command: str, model: Path, port: int, host: str = "127.0.0.1", api_key: str = ""
) -> list[str]:
    """Return the words of a command template with values filled in; they may contain spaces."""
    values = {PORT: str(port), HOST: host, API_KEY: api_key, MODEL: str(model.absolute())}
    words = shlex.split(command)
    for name, value in values.items():
        words = [word.replace(name, value) for word in words]
    return words


def free_port(wanted: int) -> int:
    """Return ``wanted``, or a free port if it is 0.

    Raises:
        InputError: If another process uses the port.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", wanted))
        except OSError:
            raise InputError(
                f"algorithms.spin.generation.server.port={wanted} is taken by another process. End "
                "it, or set port: 0 for a free one."
            ) from None
        return probe.getsockname()[1]


def last_lines(log: Path) -> str:
    """Return the last lines of a log, joined to one line."""
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        text = file.read().decode(errors="replace")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    return format_value(" | ".join([line for line in lines if line][-_TAIL_LINES:]), 700)
