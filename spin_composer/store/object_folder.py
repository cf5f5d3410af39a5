"""A folder in an object store (``s3://``, ``gs://``, ``oci://``), through Composer's clients.

The same clients write checkpoints, so credentials and endpoints are configured in the same way
(``S3_ENDPOINT_URL``, ``AWS_PROFILE``, ``GOOGLE_APPLICATION_CREDENTIALS``, ...).
"""

from __future__ import annotations

import logging
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from composer.utils import maybe_create_object_store_from_uri, parse_uri
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential,
)

from spin_composer.errors import EnvironmentFailure

log = logging.getLogger(__name__)

T = TypeVar("T")

_ATTEMPTS = 6
_FIRST_PAUSE_SECONDS = 0.5
# Not the global generator (which tenacity's own jitter draws from): its state belongs to training.
_RANDOM = random.SystemRandom()

STORE_ERRORS = (
    "builtins.OSError",
    "http.client.HTTPException",
    "urllib3.exceptions.HTTPError",
    "composer.utils.object_store.object_store.ObjectStoreTransientError",
    # S3
    "botocore.exceptions.BotoCoreError",
    "botocore.exceptions.ClientError",
    "boto3.exceptions.Boto3Error",
    "s3transfer.exceptions.RetriesExceededError",
    "s3transfer.exceptions.S3DownloadFailedError",
    "s3transfer.exceptions.S3UploadFailedError",
    "s3transfer.exceptions.S3ValidationError",
    # Google Cloud
    "google.api_core.exceptions.GoogleAPIError",
    "google.auth.exceptions.GoogleAuthError",
    "google.resumable_media.common.DataCorruption",
    "google.resumable_media.common.InvalidResponse",
    # Oracle Cloud
    "oci.exceptions.ChecksumVerificationError",
    "oci.exceptions.ClientError",
    "oci.exceptions.DownloadFailedIncorrectDownloadSize",
    "oci.exceptions.DownloadTerminated",
    "oci.exceptions.MultipartUploadError",
    "oci.exceptions.ResumableDownloadException",
    "oci.exceptions.ServiceError",
)
"""Errors of transport and stores, by name, so that unused clients need not be imported."""

PERMANENT_ERRORS = (
    "builtins.ImportError",  # of the store's client
    "botocore.exceptions.NoCredentialsError",
    "botocore.exceptions.PartialCredentialsError",
    "oci.exceptions.ClientError",  # of the configuration file
)
_PERMANENT_CODES = (
    "NoSuchBucket",
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "403",
)
"""Codes of S3 error responses that are not retried."""


class ObjectFolder:
    """The objects below one URL, by relative name; thread-safe.

    Args:
        url: ``s3://bucket/folder``.

    Raises:
        EnvironmentFailure: If the client cannot be made (a package or credentials are missing).
    """

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self._prefix = f"{parse_uri(self.url)[2].strip('/')}/".lstrip("/")
        client = self._with_retries("opened", lambda: maybe_create_object_store_from_uri(url))
        assert client is not None, f"{url} is not the URL of an object store"
        self._client = client

    def names(self, prefix: str = "") -> list[str]:
        """Return the names of the objects that begin with ``prefix``, sorted."""
        start = self._prefix + prefix
        keys = self._with_retries(f"listed ({prefix})", lambda: self._client.list_objects(start))
        return sorted(key.removeprefix(self._prefix) for key in keys)

    def upload(self, path: Path, name: str) -> None:
        """Upload a file as an object, atomically, replacing an existing one."""
        self._with_retries(
            f"written ({name})", lambda: self._client.upload_object(self._key(name), path)
        )

    def download(self, name: str, path: Path) -> None:
        """Write an object to a file.

        Raises:
            FileNotFoundError: If there is no such object.
        """

        def get() -> None:
            self._client.download_object(self._key(name), path, overwrite=True)

        self._with_retries(f"read ({name})", get)

    def write_text(self, name: str, text: str) -> None:
        """Write a small object."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "object"
            path.write_text(text, encoding="utf-8")
            self.upload(path, name)

    def read_text(self, name: str) -> str | None:
        """Return a small object's text; None if there is no such object."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "object"
            try:
                self.download(name, path)
            except FileNotFoundError:
                return None
            return path.read_text(errors="replace")  # the reader detects a damaged one

    def _key(self, name: str) -> str:
        return self._prefix + name

    def _with_retries(self, what: str, call: Callable[[], T]) -> T:
        return with_retries(self.url, what, call)


def with_retries(where: str, what: str, call: Callable[[], T]) -> T:
    """Return what a call of an object store's client returns; retry transient errors with pauses.

    Args:
        where: URL, for messages.
        what: What cannot be done if it fails: ``written (a/b)``.
        call: The call.

    Raises:
        FileNotFoundError: If there is no such object.
        EnvironmentFailure: If all attempts fail.
    """

    def warn(state: RetryCallState) -> None:
        assert state.outcome is not None
        log.warning(
            f"{where} cannot be {what}, tried again: {_error_text(state.outcome.exception())}"
        )

    retrying = Retrying(
        retry=retry_if_exception(_is_transient),
        stop=stop_after_attempt(_ATTEMPTS),
        wait=_pause_seconds,
        before_sleep=warn,
        reraise=True,
    )
    try:
        return retrying(call)
    except FileNotFoundError:
        raise
    except Exception as error:
        if not (_is_store_error(error) or _is_permanent(error)):
            raise
        raise EnvironmentFailure(
            f"{where} cannot be {what}: {_error_text(error)}. See that the bucket exists "
            "and that this machine's credentials may list, read and write there; then run the "
            "same command again: the run resumes."
        ) from error


def _pause_seconds(state: RetryCallState) -> float:
    return wait_exponential(_FIRST_PAUSE_SECONDS)(state) * _RANDOM.uniform(0.5, 1.5)


def _error_text(error: BaseException | None) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _is_one_of(error: BaseException, names: Sequence[str]) -> bool:
    return any(f"{kind.__module__}.{kind.__qualname__}" in names for kind in type(error).__mro__)


def _is_store_error(error: BaseException) -> bool:
    """Return whether an error comes from the transport or the store, not from a local file."""
    if isinstance(error, OSError) and error.filename is not None:
        return False
    cause = error.__cause__  # Composer's client of Oracle Cloud makes ValueErrors of them
    return _is_one_of(error, STORE_ERRORS) or (
        isinstance(error, ValueError) and cause is not None and _is_one_of(cause, STORE_ERRORS)
    )


def _is_permanent(error: BaseException) -> bool:
    """Return whether retrying is useless: a missing package, bucket, credential or permission."""
    return (
        _is_one_of(error, PERMANENT_ERRORS)
        or _s3_code(error) in _PERMANENT_CODES
        or "interpreter shutdown" in str(error)  # a RuntimeError: no thread can start any more
    )


def _s3_code(error: BaseException) -> str | None:
    """Return the code of the error response, which boto3 wraps in an error of the transfer."""
    for part in (error, error.__cause__, error.__context__):
        response = getattr(part, "response", None)
        if isinstance(response, dict):
            return response.get("Error", {}).get("Code")
    return None


def _is_transient(error: BaseException) -> bool:
    absent = isinstance(error, FileNotFoundError)  # the object
    return _is_store_error(error) and not _is_permanent(error) and not absent
