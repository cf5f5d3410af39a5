"""JSON over HTTP to a completion server: time limits, retries with back-off, errors in one line."""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from spin_composer.errors import EngineError, shown

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 30.0
_POLL_SECONDS = 0.2
_PROBE_SECONDS = 5.0


class HTTPClient:
    """Asks one server; its methods may be called from many threads.

    Args:
        base_url: ``http://host:port``.
        timeout_seconds: Of one request.
        retries: How often a request is sent again after a failure that may pass.
        check_alive: Raises an EngineError if the server is known to be gone for good.
        api_key: Sent with each request, unless it is empty.
    """

    def __init__(
        self,
        base_url: str,
        timeout_seconds: float,
        retries: int,
        check_alive: Callable[[], None] = lambda: None,
        api_key: str = "",
    ):
        self.base_url = base_url
        self._api_key = api_key
        self.timeout_seconds = timeout_seconds
        self.retries = retries
        self.check_alive = check_alive
        # A cluster's proxy is not for servers within the cluster.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        # Not the global generator, whose state belongs to training.
        self._random = random.SystemRandom()

    def get(self, path: str) -> Any:
        """Return the JSON at a path, asked for once; OSError if the server cannot be reached."""
        return self._send(path, None, min(_PROBE_SECONDS, self.timeout_seconds))

    def post(self, path: str, body: Mapping[str, Any], stop: threading.Event) -> Any:
        """Return the JSON that a request is answered with.

        Raises:
            EngineError: If the server refuses it, answers no JSON, or fails ``retries`` + 1 times.
        """
        data = json.dumps(body).encode()
        for attempt in range(self.retries + 1):
            try:
                return self._send(path, data, self.timeout_seconds)
            except urllib.error.HTTPError as error:
                if error.code != 429 and error.code < 500:
                    raise EngineError(
                        f"{self.base_url}{path} refused a request ({error.code}): {_said(error)}"
                    ) from None
                failure = f"{error.code}: {_said(error)}"
            except (OSError, http.client.HTTPException) as error:
                failure = _named(error, self.timeout_seconds)
            self.check_alive()
            pause = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2**attempt)
            if attempt < self.retries and stop.wait(pause * self._random.uniform(0.5, 1.0)):
                break
        raise EngineError(
            f"{self.base_url}{path} failed {attempt + 1} times in a row, at last with {failure}. "
            "See the server's log; raise algorithms.spin.generation.server.retries or "
            "request_timeout_seconds if it is only slow."
        )

    def wait_until_ready(self, seconds: float) -> None:
        """Return when the server lists its models, and calls itself healthy if it has ``/health``.

        Raises:
            EngineError: If it does not within ``seconds``, or is gone before.
        """
        deadline = time.monotonic() + seconds
        failure = ""
        while time.monotonic() < deadline:
            self.check_alive()
            try:
                self.get("/v1/models")  # llama.cpp's lists them while it still loads
                if self._is_healthy():
                    return
                failure = "it says that it is not healthy yet"
            except (OSError, http.client.HTTPException, EngineError) as error:
                failure = _named(error, _PROBE_SECONDS)
            time.sleep(_POLL_SECONDS)
        raise EngineError(
            f"{self.base_url} does not answer after {seconds:g} s ({failure}). See the server's "
            "log; raise algorithms.spin.generation.server.startup_timeout_seconds if it only needs "
            "longer."
        )

    def answers_strangers(self) -> bool:
        """Tell whether a request without the key gets further than its refusal."""
        stranger = HTTPClient(self.base_url, self.timeout_seconds, 0)
        try:
            stranger._open("/v1/completions", b"{}", _PROBE_SECONDS)
        except urllib.error.HTTPError as error:
            return error.code not in (401, 403)
        return True

    def _is_healthy(self) -> bool:
        try:
            self._open("/health", None, _PROBE_SECONDS)
        except urllib.error.HTTPError as error:
            return error.code < 500  # there is none
        return True

    def _open(self, path: str, data: bytes | None, timeout: float) -> bytes:
        headers = {"Content-Type": "application/json"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        request = urllib.request.Request(self.base_url + path, data, headers)
        with self._opener.open(request, timeout=timeout) as response:
            return response.read()

    def _send(self, path: str, data: bytes | None, timeout: float) -> Any:
        text = self._open(path, data, timeout)
        try:
            return json.loads(text)
        except ValueError:
            raise EngineError(f"{self.base_url}{path} answered no JSON: {shown(text)}.") from None


def _said(error: urllib.error.HTTPError) -> str:
    """Return an error answer's message, in one line."""
    try:
        text = error.read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        text = ""
    try:
        found = json.loads(text)
        found = found.get("error", found)
        text = str(found.get("message", found) if isinstance(found, dict) else found)
    except (ValueError, AttributeError):
        pass
    return " ".join(text.split())[:300] or "no message"


def _named(error: BaseException, timeout: float) -> str:
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return f"no answer within {timeout:g} s"
    return " ".join(str(reason).split()) or type(reason).__name__
