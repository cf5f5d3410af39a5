"""A folder in an object store (``s3://``, ``gs://``, ``oci://``), through Composer's clients.

The same ones that write checkpoints there: credentials and endpoints are set alike
(``S3_ENDPOINT_URL``, ``AWS_PROFILE``, ``GOOGLE_APPLICATION_CREDENTIALS``, ...).
"""

from __future__ import annotations

import http.client
import logging
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from composer.utils import maybe_create_object_store_from_uri, parse_uri

from spin_composer.errors import EnvironmentFailure
from spin_composer.settings.fields import check
from spin_composer.settings.spin import REMOTE_SCHEMES

log = logging.getLogger(__name__)

T = TypeVar("T")

_ATTEMPTS = 6
# Not the global generator, whose state belongs to training.
_RANDOM = random.SystemRandom()
_FIRST_PAUSE_SECONDS = 0.5
_CLIENTS = frozenset(
    {"botocore", "boto3", "s3transfer", "google", "oci", "libcloud", "composer", "urllib3"}
)
"""Packages whose errors are the transport's or the store's; OSErrors are as well."""


class ObjectFolder:
    """Objects under one URL, by their names below it. Methods may be called from many threads.

    Args:
        url: ``s3://bucket/folder``.

    Raises:
        InputError: If the URL is of another kind of store.
        EnvironmentFailure: If the client cannot be made (a package or credentials are missing).
    """

    def __init__(self, url: str):
        scheme = url.partition("://")[0]
        wanted = "one of " + ", ".join(f"{known}://" for known in REMOTE_SCHEMES)
        check(scheme in REMOTE_SCHEMES, "the object store's URL", url, wanted)
        self.url = url.rstrip("/")
        self._prefix = f"{parse_uri(self.url)[2].strip('/')}/".lstrip("/")
        self._client: Any = self._tried("opened", lambda: maybe_create_object_store_from_uri(url))

    def names(self, prefix: str = "") -> list[str]:
        """Return the names of the objects that begin with ``prefix``, sorted."""
        start = self._prefix + prefix
        keys = self._tried(f"listed ({prefix})", lambda: self._client.list_objects(start))
        return sorted(key.removeprefix(self._prefix) for key in keys)

    def upload(self, path: Path, name: str) -> None:
        """Write a file as an object, whole or not at all, replacing one that is there."""
        self._tried(f"written ({name})", lambda: self._client.upload_object(self._key(name), path))

    def download(self, name: str, path: Path) -> None:
        """Write an object to a file.

        Raises:
            FileNotFoundError: If there is no such object.
        """

        def get() -> None:
            self._client.download_object(self._key(name), path, overwrite=True)

        self._tried(f"read ({name})", get)

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
            return path.read_text(errors="replace")  # a damaged one is its reader's to refuse

    def _key(self, name: str) -> str:
        return self._prefix + name

    def _tried(self, what: str, call: Callable[[], T]) -> T:
        """Return what ``call`` returns, tried several times with growing pauses between.

        Raises:
            FileNotFoundError: If there is no such object.
            EnvironmentFailure: If it fails for good.
        """
        for attempt in range(_ATTEMPTS):
            try:
                return call()
            except FileNotFoundError:
                raise
            except Exception as error:  # each client has its own kinds
                if not _is_the_clients(error):
                    raise
                said = " ".join(str(error).split()) or type(error).__name__
                if attempt + 1 == _ATTEMPTS or _is_final(error):
                    raise EnvironmentFailure(
                        f"{self.url} cannot be {what}: {said}. See that the bucket exists and "
                        "that this machine's credentials may list, read and write there; then "
                        "give the same command again: the run goes on."
                    ) from error
                log.warning(f"{self.url} cannot be {what}, tried again: {said}")
            time.sleep(_FIRST_PAUSE_SECONDS * 2**attempt * _RANDOM.uniform(0.5, 1.5))
        raise AssertionError("unreachable")


def _is_the_clients(error: Exception) -> bool:
    """Tell an error of the transport or the store from one of the local file or a defect."""
    if isinstance(error, OSError):
        return error.filename is None
    if isinstance(error, (ImportError, http.client.HTTPException)):
        return True
    kinds = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return bool(kinds & _CLIENTS) or "interpreter shutdown" in str(error)


def _is_final(error: Exception) -> bool:
    """Tell whether an error will not pass: a missing package, bucket, credential or right."""
    answer = getattr(error, "response", None)  # botocore's
    code = str(answer.get("Error", {}).get("Code")) if isinstance(answer, dict) else ""
    final = ("NoSuchBucket", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403")
    return (
        isinstance(error, ImportError)
        or code in final
        or "interpreter shutdown" in str(error)
        or type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "InvalidUri")
    )
