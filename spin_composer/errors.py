"""Errors that a user can correct, ours and other packages', with an exit code and one line each.

Exit codes: 2 bad input, 3 a bad self-play store, 4 the environment, 5 NaN; 128 plus the number of
the signal that ended the process. Any other error is a bug, and keeps its traceback and exit
code 1.

Other packages' errors are recognized by their type or the system's error number; where that is not
possible, by their message, which ``tests/test_errors.py`` provokes.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from spin_composer import interrupt

RESUME_REMEDY = "Run the same command again: the run resumes."
OTHER_WEIGHTS = (
    "it was saved by a run that trained other weights, or by a version that left out what is "
    "trained besides the adapters"
)
"""Why a checkpoint may lack trained weights."""


class UserError(Exception):
    """An error that a user can correct; its message is one line and says how."""

    exit_code: ClassVar[int]
    """The exit code of a command that fails with it."""


class InputError(UserError, ValueError):
    """An invalid setting, file or row: the message names it, its value and the remedy."""

    exit_code = 2


class StoreError(UserError, RuntimeError):
    """A self-play store that is damaged or does not belong to this run."""

    exit_code = 3


class EnvironmentFailure(UserError, RuntimeError):
    """The environment lacks what the run needs: disk space, a writable folder, another rank."""

    exit_code = 4


class NotFiniteError(UserError, RuntimeError):
    """A loss, a gradient, a log-prob or a weight is NaN or infinite."""

    exit_code = 5


class EngineError(EnvironmentFailure):
    """A completion server that does not start, or whose response is wrong."""


class PlayDone(Exception):
    """Ends a play-only job whose units are in the store. Not an error."""


class RunEnded(Exception):
    """Ends a run that a callback stopped before it started. Not an error."""


def format_value(value: object, limit: int = 60) -> str:
    """Return ``repr(value)`` shortened to ``limit`` characters, for error messages."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def collect_errors(*checks: Callable[[], object]) -> list[Any]:
    """Run all checks and return their results.

    Raises:
        InputError: One line for each check that failed.
    """
    results: list[Any] = []
    faults: list[str] = []
    for check in checks:
        try:
            results.append(check())
        except InputError as error:
            faults.append(str(error))
    if faults:
        raise InputError("\n".join(faults))
    return results


_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR)
_IO = (errno.EIO, errno.ESTALE)
_RUST_OS_ERROR = re.compile(r"\(os error (\d+)\)")
"""A system error in messages of libraries written in Rust (safetensors)."""
_SHARED_MEMORY = re.compile(r"/\d{6,}_[a-z_]+")
_TRUNCATED_FILE = "unexpected pos "
"""torch.save's message if it cannot write a whole file, without the underlying system error: it
opened the file itself, or the system error occurred on another rank."""
_CONNECTION_LOST = (
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "failed to recv, got 0 bytes",
)
"""Messages of gloo and the key-value store, in lower case, if a rank has died."""
_MISSING_KEY = re.compile(r"Missing key in checkpoint state_dict: state\.model\.([\w.]+\w)")
"""torch's message for a sharded checkpoint that lacks a weight."""

_FOUNDRY_USER_ERROR = "llmfoundry.utils.exceptions.UserError"
_FOUNDRY_LOSS_ERRORS = ("LossSpikeError", "HighLossError")
"""llm-foundry's user errors that are not: its callbacks stop a run because of its loss."""
_OMEGACONF_ERROR = "omegaconf.errors.OmegaConfBaseException"
_NOT_FOUND = (
    "is not a valid model identifier",
    "Can't load tokenizer for",
    "does not appear to have a file named",
    "We couldn't connect to",
    "Couldn't instantiate the backend tokenizer",  # transformers 5, of a folder without one
    "must have an eos_token",
)
"""Messages of transformers and of llm-foundry's tokenizer builder for a bad name or folder."""


def explain(error: BaseException) -> tuple[int, str] | None:
    """Return exit code and message of an error that a user can correct.

    Returns:
        None for any other error: a bug, whose traceback should be shown.
    """
    if isinstance(error, UserError):
        return error.exit_code, str(error)
    if isinstance(error, interrupt.Interrupted):
        return 128 + error.number, interrupt.MESSAGE
    if (line := _explain_checkpoint(error)) is not None:
        return InputError.exit_code, line
    if (line := _explain_foundry(error)) is not None:
        return InputError.exit_code, line
    line = _explain_environment(error)
    return None if line is None else (EnvironmentFailure.exit_code, line)


def already_registered(what: str) -> ValueError:
    """Return the error for a name that is already taken."""
    return ValueError(f"{what} is registered already. Choose another name.")


def rebuild_error(code: int, line: str) -> BaseException:
    """Rebuild another rank's error from its exit code and message."""
    if code > 128:
        return interrupt.exception_for(code - 128)
    kinds = (InputError, StoreError, EnvironmentFailure, NotFiniteError)
    return next((kind for kind in kinds if kind.exit_code == code), RuntimeError)(line)


def _explain_checkpoint(error: BaseException) -> str | None:
    """Return the message for a sharded checkpoint that lacks trained weights, or None."""
    for cause in _iter_causes(error):
        if found := _MISSING_KEY.search(str(cause)):
            return (
                f"the checkpoint lacks {found.group(1)}, which is trained: {OTHER_WEIGHTS}. Train "
                "the same weights, start over with another run_name and other "
                "folders, or, to begin with the base model's, name it in load_ignore_keys."
            )
    return None


def _explain_foundry(error: BaseException) -> str | None:
    """Return the message of llm-foundry or transformers about bad user input, or None."""
    kinds = {f"{kind.__module__}.{kind.__name__}" for kind in type(error).__mro__}
    said = " ".join(str(error).split())
    if _OMEGACONF_ERROR in kinds:  # a value of the wrong type for llm-foundry's training config
        return said
    if _FOUNDRY_USER_ERROR in kinds and type(error).__name__ not in _FOUNDRY_LOSS_ERRORS:
        return said
    named = isinstance(error, (OSError, ValueError)) and any(text in said for text in _NOT_FOUND)
    return f"{said[:400]} (See tokenizer.name and the model's name.)" if named else None


def _explain_environment(error: BaseException) -> str | None:
    causes = list(_iter_causes(error))
    for cause in causes:
        if (number := _find_errno(cause)) and (line := _explain_errno(cause, number)):
            return line
        if isinstance(cause, RuntimeError) and any(
            text in str(cause).lower() for text in _CONNECTION_LOST
        ):
            said = str(cause).splitlines()[0]
            return f"a rank was lost ({said}). {RESUME_REMEDY}"
    if any(isinstance(cause, RuntimeError) and _TRUNCATED_FILE in str(cause) for cause in causes):
        return (
            "a checkpoint could not be written to its end. Check that the disk has space and "
            "works, then run the same command again; the run resumes from the checkpoint before."
        )
    return None


def _find_errno(error: BaseException) -> int | None:
    """Return the errno behind an exception, or None."""
    if isinstance(error, OSError):
        return error.errno
    found = _RUST_OS_ERROR.search(str(error))
    return int(found.group(1)) if found else None


def _explain_errno(error: BaseException, number: int) -> str | None:
    """Return the message for a system error, or None."""
    at = getattr(error, "filename", None) or "a file of the run"
    said = os.strerror(number)
    if number in _DISK_FULL:
        return (
            f"the disk is full ({at}: {said}). Free space and run the same command again; what is "
            "on the disk is whole, and the run resumes from it."
        )
    if number == errno.EFBIG:
        return (
            f"{at} is larger than its file system or `ulimit -f` lets a file be ({said}). Raise "
            "the limit, or set algorithms.spin.store and save_folder to other folders; then run "
            "the same command again."
        )
    if number == errno.EEXIST and _SHARED_MEMORY.fullmatch(str(at)):
        return (
            f"another program on this machine took the shared memory {at} of Streaming at the same "
            f"moment. {RESUME_REMEDY}"
        )
    a_file = number == errno.EEXIST and os.path.isfile(at)  # a file instead of a folder
    if number in _UNWRITABLE or a_file:
        return (
            f"{at} cannot be used ({said}). Let the run's user write there, or set "
            "algorithms.spin.store and save_folder to other folders."
        )
    if number in _IO:
        return f"{at}: {said}. Check the disk, then run the same command again."
    return None


def _iter_causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes.

    torch.save wraps the OSError of a full disk; the error of a sharded save has those of all ranks
    as ``failures``.
    """
    pending, seen = [error], set()
    while pending:
        error = pending.pop(0)
        if id(error) in seen:
            continue
        seen.add(id(error))
        yield error
        cause = error.__cause__ or error.__context__
        failures = getattr(error, "failures", None)
        ranks = failures.values() if isinstance(failures, dict) else ()
        causes = [cause, *(part for failure in ranks for part in failure)]
        pending += [cause for cause in causes if isinstance(cause, BaseException)]
