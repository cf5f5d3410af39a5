"""A server as a process: watched, and ended with all that it started, however its rank ends."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.processes import until

from spin_composer.engines.server import process as server_process
from spin_composer.engines.server.client import HTTPClient
from spin_composer.engines.server.process import free_port, run_and_wait, run_server, split_command
from spin_composer.errors import EngineError, InputError

CHILD = "import os, time; print('pid', os.getpid(), flush=True); time.sleep(60)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {CHILD}"
WITH_CHILD = (
    f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {STUBBORN!r}]);"
    "time.sleep(60)"
)


def python(code: str) -> str:
    return shlex.join([sys.executable, "-c", code])


def pid_in(log: Path) -> int:
    until(lambda: log.exists() and "\npid " in f"\n{log.read_text()}".replace("$ ", ""))
    line = next(x for x in log.read_text().splitlines() if x.startswith("pid "))
    return int(line.split()[1])


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_server_that_ends_is_noticed_at_once_with_its_last_lines(tmp_path: Path) -> None:
    code = python("import sys; print('loading'); print('no such model'); sys.exit(7)")
    with run_server(code, tmp_path, 1, tmp_path / "log") as server:
        client = HTTPClient("http://127.0.0.1:9", 1, 0, server.check_alive)
        with pytest.raises(EngineError, match=r"exit status 7.*loading \| no such model") as caught:
            client.wait_until_ready(3600)
    assert "\n" not in str(caught.value)


def test_a_command_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with (
        run_server("no-such-server {model} {port}", tmp_path, 1, tmp_path / "log") as server,
        pytest.raises(EngineError, match="no-such-server: No such file or directory"),
    ):
        until(server.check_alive)


def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    with (
        run_server(python(CHILD), tmp_path, 1, tmp_path / "log") as server,
        pytest.raises(EngineError, match=r"does not answer after 0.5 s .*startup_timeout_seconds"),
    ):
        HTTPClient("http://127.0.0.1:9", 1, 0, server.check_alive).wait_until_ready(0.5)


@pytest.mark.parametrize("code", [CHILD, STUBBORN, WITH_CHILD], ids=["plain", "stubborn", "child"])
def test_the_whole_group_is_ended_also_when_play_raises(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_process, "_GRACE_SECONDS", 1.0)
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    play = contextlib.ExitStack()
    play.enter_context(run_server(python(code), tmp_path, 1, tmp_path / "log"))
    pid = pid_in(tmp_path / "log")
    assert os.getpgid(pid) not in (os.getpgid(0), os.getpgid(bystander.pid))
    with pytest.raises(ZeroDivisionError), play:
        1 / 0  # noqa: B018
    until(lambda: is_gone(pid))
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()


def test_a_rank_that_is_killed_takes_its_server_with_it(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = (
        "import time; from pathlib import Path;"
        "from spin_composer.engines.server.process import run_server;"
        f"\nwith run_server({python(CHILD)!r}, Path('.'), 1, Path({str(log)!r})): time.sleep(60)"
    )
    rank = subprocess.Popen([sys.executable, "-c", code])
    pid = pid_in(log)
    assert not is_gone(pid)
    rank.send_signal(signal.SIGKILL)
    rank.wait()
    until(lambda: is_gone(pid))


def test_the_launchers_environment_is_not_the_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"]
    for name in names:
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    names.append("CUDA_VISIBLE_DEVICES")
    code = python(f"import os; print([name for name in {names} if name in os.environ])")
    run_and_wait(code, tmp_path, tmp_path / "log", 20)
    assert (tmp_path / "log").read_text().splitlines()[-1] == "['CUDA_VISIBLE_DEVICES']"


def test_templates_are_filled_word_by_word() -> None:
    words = split_command("""curl -d '{"model_path": "{model}"}' x:{port}""", Path("/a b/m"), 81)
    assert words == ["curl", "-d", '{"model_path": "/a b/m"}', "x:81"]


def test_the_log_shows_a_command_without_its_secrets(tmp_path: Path) -> None:
    command = f'{python("pass")} -H "Authorization: Bearer sk-abc" --api-key abc {{model}}'
    run_and_wait(command, tmp_path, tmp_path / "log", 20)
    shown = (tmp_path / "log").read_text()
    assert "-H 'Authorization: ***' --api-key '***'" in shown
    assert "abc" not in shown.replace(str(tmp_path), "")


def test_a_reload_command_that_fails_or_hangs_is_one_line(tmp_path: Path) -> None:
    fails = python("import sys; print('{model} is not a model'); sys.exit(3)")
    with pytest.raises(EngineError, match=r"reload_command failed \(exit status 3\): .*is not a m"):
        run_and_wait(fails, tmp_path / "m", tmp_path / "log", 20)
    with pytest.raises(EngineError, match=r"did not end within 0\.3 s"):
        run_and_wait(python(CHILD), tmp_path / "m", tmp_path / "log", 0.3)


def test_a_port_that_is_taken_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port={port} is taken by another process"):
            free_port(port)
    assert free_port(0) > 0


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.7"])
def test_a_command_is_told_the_address_that_the_ranks_ask(host):
    words = split_command("x {model} --host {host} --port {port}", Path("/m"), 81, host)
    assert words == ["x", "/m", "--host", host, "--port", "81"]
