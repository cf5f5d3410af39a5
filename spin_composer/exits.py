"""What a command's exit code says: 2 bad input, 3 a bad self-play store, 4 the environment.

Whatever else goes wrong is a defect, and keeps its traceback and exit code 1.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

from spin_composer.errors import EnvironmentFailure, InputError, StoreError

EXIT_INPUT, EXIT_STORE, EXIT_ENVIRONMENT = 2, 3, 4

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR)
_IO = (errno.EIO, errno.ESTALE)
# What gloo, NCCL and the key-value store say when a rank at the other end has died.
_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "failed to recv, got 0 bytes",
    "remote process exited or there was a network error",
)


def explain(error: BaseException) -> tuple[int, str] | None:
    """Return the exit code of an error that a user can mend and the line that says it.

    Returns:
        None for any other error: a defect, whose traceback should be seen.
    """
    for kind, code in (
        (InputError, EXIT_INPUT),
        (StoreError, EXIT_STORE),
        (EnvironmentFailure, EXIT_ENVIRONMENT),
    ):
        if isinstance(error, kind):
            return code, str(error)
    line = _environment(error)
    return None if line is None else (EXIT_ENVIRONMENT, line)


def _environment(error: BaseException) -> str | None:
    for cause in _chain(error):
        if isinstance(cause, OSError) and cause.filename is not None:
            at = cause.filename
        else:
            at = "a file of the run"
        number = getattr(cause, "errno", None) if isinstance(cause, OSError) else None
        if number in _DISK_FULL:
            return (
                f"the disk is full ({at}: {cause.strerror}). Free space and give the same command "  # pyright: ignore
                "again; what is on the disk is whole, and the run goes on from it."
            )
        if number in _UNWRITABLE:
            return (
                f"{at} cannot be used ({cause.strerror}). Let the run's user write there, or set "  # pyright: ignore
                "spin.store and save_folder to other folders."
            )
        if number in _IO:
            return f"{at}: {cause.strerror}. Look at the disk, then give the same command again."  # pyright: ignore
        if isinstance(cause, RuntimeError) and any(text in str(cause) for text in _LOST):
            said = str(cause).splitlines()[0]
            return f"a rank was lost ({said}). Give the same command again: the run goes on."
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it came from: torch.save wraps the OSError of a full disk."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
