"""The HTTP client by itself: pauses, cancellation, servers that load or died."""

from __future__ import annotations

import threading

import pytest
from fixtures.faulty_server import faulty, good
from fixtures.processes import until

from spin_composer.engines.server.client import HTTPClient
from spin_composer.errors import EngineError


def test_a_server_may_ask_for_a_longer_pause() -> None:
    stop = threading.Event()
    with faulty(lambda *_: (503, b""), headers={"Retry-After": "3600"}) as (url, asked):
        client = HTTPClient(url, 36000.0, 1)
        failures: list[EngineError] = []

        def post() -> None:
            with pytest.raises(EngineError) as caught:
                client.post("/v1/completions", {"prompt": []}, stop)
            failures.append(caught.value)

        waiting = threading.Thread(target=post)
        waiting.start()
        until(lambda: asked)
        stop.set()  # nor does an hour's pause keep the others' error from ending the run
        waiting.join(600)
    assert len(asked) == 1
    assert "the request is canceled" in str(failures[0])


def test_a_server_that_died_for_good_is_not_asked_again() -> None:
    def gone() -> None:
        raise EngineError("the server ended with status 1")

    with faulty(lambda *_: (500, b"")) as (url, asked):
        client = HTTPClient(url, 5, 3, gone)
        with pytest.raises(EngineError, match="ended with status 1"):
            client.post("/v1/completions", {"prompt": []}, threading.Event())
    assert len(asked) == 1


def test_a_server_that_says_it_loads_is_waited_for() -> None:
    with faulty(lambda b, _: good(b), health=[503, 503, 200]) as (url, _):
        HTTPClient(url, 5, 0).wait_until_ready(20)
        with pytest.raises(EngineError, match="it reports that it is not healthy yet"):
            HTTPClient(url, 5, 0).wait_until_ready(0.5)
