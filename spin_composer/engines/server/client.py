"""JSON over HTTP to a completion server: time limits, retries with backoff, errors in one line."""

from __future__ import annotations

import json
import random
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import requests
from tenacity import (
    RetryCallState,
    RetryError,
    Retrying,
    retry_if_exception_type,
    retry_if_result,
    stop_after_attempt,
    wait_exponential,
)
from urllib3.exceptions import HTTPError as TransportError
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from spin_composer.errors import EngineError, InputError, format_value

_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 30.0
_POLL_SECONDS = 0.2
_PROBE_SECONDS = 5.0
# Not the global generator, whose state belongs to training.
_RANDOM = random.SystemRandom()
_TRANSIENT_ERRORS = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    requests.exceptions.ContentDecodingError,
)
"""Connection failures that are retried; so are the statuses of :func:`_is_busy`."""


class HTTPClient:
    """Sends requests to one server; its methods are thread-safe.

    Args:
        base_url: ``http://host:port``.
        timeout_seconds: Timeout of one request.
        retries: How often a request is retried after a transient failure.
        check_alive: Raises an EngineError if the server is known to have exited.
        api_key: Sent with each request unless it is empty.

    Raises:
        InputError: If the key cannot be sent in a header.
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
        self.timeout_seconds = timeout_seconds
        self.retries = retries
        self.check_alive = check_alive
        if not (api_key.isascii() and api_key.isprintable() and api_key == api_key.strip()):
            raise InputError(
                "The server's key (algorithms.spin.generation.server.api_key_env) contains a line "
                "break, surrounding spaces or other characters that an HTTP header cannot hold. "
                "Set it to the key alone."
            )
        self._headers = {"Content-Type": "application/json", "Connection": "close"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def get(self, path: str) -> Any:
        """Return the JSON at a path, requested once.

        Raises:
            OSError: If the server cannot be reached, or answers with an error status.
            EngineError: If the response is not JSON.
        """
        response = self._probe("GET", path)
        if not response.ok:
            raise OSError(_status(response))
        return self._json(path, response)

    def post(self, path: str, body: Mapping[str, object], stop: threading.Event) -> Any:
        """Send a request and return the JSON of the response.

        Args:
            path: Below the base URL.
            body: Sent as JSON.
            stop: Once it is set, no further attempt is made.

        Raises:
            EngineError: If the server rejects it, its response is not JSON, or ``retries`` + 1
                attempts fail.
        """

        def pause(seconds: float) -> None:
            if stop.wait(seconds):
                raise EngineError(f"{self.base_url}{path}: the request is canceled.")

        # A Session's own retries (urllib3's Retry) sleep uninterruptibly, draw their jitter from
        # the global random generator, and cannot check whether the server is alive.
        retrying = Retrying(
            retry=retry_if_exception_type(_TRANSIENT_ERRORS) | retry_if_result(_is_busy),
            stop=stop_after_attempt(self.retries + 1),
            wait=self._pause_seconds,
            sleep=pause,
            after=lambda _: self.check_alive(),
        )
        data = json.dumps(body).encode()
        try:
            response = retrying(self._send, "POST", path, self.timeout_seconds, data)
        except RetryError as error:
            last = error.last_attempt
            failure = last.exception()
            reason = _reason(failure, self.timeout_seconds) if failure else _status(last.result())
            raise EngineError(
                f"{self.base_url}{path} failed {last.attempt_number} times in a row, at last with "
                f"{reason}. See the server's log; raise algorithms.spin.generation.server.retries "
                "or request_timeout_seconds if it is only slow."
            ) from None
        except requests.RequestException as error:
            reason = _reason(error, self.timeout_seconds)
            raise EngineError(f"{self.base_url}{path} cannot be requested: {reason}.") from None
        if not response.ok:
            raise EngineError(
                f"{self.base_url}{path} refused a request ({response.status_code}): "
                f"{_message(response)}"
            )
        return self._json(path, response)

    def wait_until_ready(self, seconds: float) -> None:
        """Wait until the server lists its models and, if it has ``/health``, reports healthy.

        Raises:
            EngineError: If that takes longer than ``seconds``, or the server exits.
        """
        deadline = time.monotonic() + seconds
        failure = ""
        while time.monotonic() < deadline:
            self.check_alive()
            try:
                self.get("/v1/models")  # llama.cpp's lists them while it still loads
                if self._is_healthy():
                    return
                failure = "it reports that it is not healthy yet"
            except (OSError, EngineError) as error:
                failure = str(error)
            time.sleep(_POLL_SECONDS)
        raise EngineError(
            f"{self.base_url} does not answer after {seconds:g} s ({failure}). See the server's "
            "log; raise algorithms.spin.generation.server.startup_timeout_seconds if it only needs "
            "longer."
        )

    def requires_key(self) -> bool:
        """Return whether the server rejects a completion request without the key.

        Raises:
            OSError: If the server does not answer it.
        """
        anonymous = HTTPClient(self.base_url, self.timeout_seconds, 0)
        response = anonymous._probe("POST", "/v1/completions", b"{}")
        return response.status_code in (401, 403)

    def _is_healthy(self) -> bool:
        return self._probe("GET", "/health").status_code < 500  # many have none and say 404

    def _probe(self, method: str, path: str, data: bytes | None = None) -> requests.Response:
        timeout = min(_PROBE_SECONDS, self.timeout_seconds)
        try:
            return self._send(method, path, timeout, data)
        except requests.RequestException as error:
            raise OSError(_reason(error, timeout)) from error

    def _send(
        self, method: str, path: str, timeout: float, data: bytes | None
    ) -> requests.Response:
        # One connection, and so one Session, per request. llama.cpp's server uses a thread per open
        # connection, so connections kept alive starve others (48 clients on 4 slots: 6 s instead of
        # 0.2 s for the slowest). A load balancer's cookie would pin all requests to one replica.
        with requests.Session() as session:
            # No proxy: the server is within the cluster. No ~/.netrc: it would replace the key.
            session.trust_env = False
            # Trust the system's or SSL_CERT_FILE's certificates, not those that requests ships.
            trusted = ssl.get_default_verify_paths()
            session.verify = trusted.cafile or trusted.capath or True
            session.headers.update(self._headers)
            return session.request(method, self.base_url + path, data=data, timeout=timeout)

    def _json(self, path: str, response: requests.Response) -> Any:
        try:
            return json.loads(response.content)
        except ValueError:
            raise EngineError(
                f"{self.base_url}{path} answered no JSON: {format_value(response.content)}."
            ) from None

    def _pause_seconds(self, state: RetryCallState) -> float:
        """Return the pause before the next attempt: the server's Retry-After, or the backoff."""
        longest = wait_exponential(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS)(state)
        backoff = longest * _RANDOM.uniform(0.5, 1.0)
        assert state.outcome is not None
        if state.outcome.failed:
            return backoff
        try:
            asked = Retry().parse_retry_after(state.outcome.result().headers["Retry-After"])
        except (KeyError, InvalidHeader):
            return backoff
        # Never wait longer than a request's timeout, whatever the server asks for.
        return max(backoff, min(asked, self.timeout_seconds))


def _is_busy(response: requests.Response) -> bool:
    """Return whether a request should be retried."""
    return response.status_code == 429 or response.status_code >= 500


def _status(response: requests.Response) -> str:
    return f"{response.status_code}: {_message(response)}"


def _message(response: requests.Response) -> str:
    """Return an error response's message, in one line."""
    text = response.content.decode(errors="replace")
    try:
        found = json.loads(text)
        found = found.get("error", found)
        text = str(found.get("message", found) if isinstance(found, dict) else found)
    except (ValueError, AttributeError):
        pass
    return " ".join(text.split())[:300] or "no message"


def _reason(error: BaseException, timeout: float) -> str:
    """Return why a request failed, in one line: the innermost cause of the libraries' errors."""
    wrappers = (requests.RequestException, TransportError)
    while isinstance(error, wrappers) and (cause := error.__cause__ or error.__context__):
        error = cause
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout:g} s"
    return " ".join(str(error).split()) or type(error).__name__
