"""Run a command and end it when its parent process is gone: ``supervise.py PID COMMAND``.

A training rank that is killed with SIGKILL cannot end the completion server that it started, which
would keep its GPU memory and port. This process, in the server's process group, can. It uses the
standard library only and is run as a script.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

_POLL_SECONDS = 0.5
_GRACE_SECONDS = 20.0


def main() -> int:
    """Run the command; return its exit status."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    # The command gets the signal too and handles it; exec does not inherit this handler.
    signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        child = subprocess.Popen(command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        return 127
    deadline = None
    while (status := child.poll()) is None:
        if deadline is None and os.getppid() != parent:
            os.killpg(os.getpgrp(), signal.SIGTERM)
            deadline = time.monotonic() + _GRACE_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            os.killpg(os.getpgrp(), signal.SIGKILL)  # and this process with it
        time.sleep(_POLL_SECONDS)
    if os.getppid() != parent:  # no other process will end the command's children
        os.killpg(os.getpgrp(), signal.SIGKILL)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
