"""Generation by a completion server: token ids in, token ids out."""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from typing import TYPE_CHECKING

import numpy as np
from composer.utils import dist

from spin_composer import interrupt
from spin_composer.data.pairs import LENGTH, STOP, STRING, Ids, Pair
from spin_composer.engines.base import OnProgress, Response, ignore_progress
from spin_composer.engines.server.client import HTTPClient
from spin_composer.engines.server.dialects import DIALECTS, UNKNOWN_SERVER, Dialect, Reply
from spin_composer.engines.server.logprob_gap import FP32_TOLERANCE, LogprobGap
from spin_composer.engines.server.settings import ServerSettings
from spin_composer.errors import EngineError, format_value
from spin_composer.settings.generation import GenerationSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

_POLL_SECONDS = 1.0
_TAIL_TOKENS = 8
_USE_IDS = "Use a server that returns token ids (vLLM, a recent SGLang, TensorRT-LLM, llama.cpp)"
_Request = tuple[Future[Response], Ids, int]
"""A pending request: the future of its response, the prompt, and the row's seed."""


class ServerGenerator:
    """Requests the responses to many prompts concurrently from a completion server.

    Responses do not depend on the order of requests: each row has its own seed. Whether a seed
    reproduces a response bit for bit depends on the server, whose batch sizes affect rounding.

    Args:
        base_url: ``http://host:port`` of the server, which serves the opponent.
        tokenizer: For stop strings, and for servers that return text only.
        stop_token_id: The token that ends a response.
        settings: Sampling settings, with the engine's section.
        check_alive: Raises an EngineError if the server is known to have exited.
        api_key: The server's API key, or empty.
        logp_tolerance: Largest accepted difference of its log-probs from ours, in nats per token.
    """

    def __init__(
        self,
        base_url: str,
        tokenizer: PreTrainedTokenizerBase,
        stop_token_id: int,
        settings: GenerationSettings,
        check_alive: Callable[[], None] = lambda: None,
        api_key: str = "",
        logp_tolerance: float = FP32_TOLERANCE,
    ):
        self.tokenizer = tokenizer
        self.stop_token_id = stop_token_id
        self.settings = settings
        server = ServerSettings.of(settings)
        self.concurrency = server.concurrency
        self.client = HTTPClient(
            base_url, server.request_timeout_seconds, server.retries, check_alive, api_key
        )
        self.model, self.dialect = self._detect_dialect()
        self.gap = LogprobGap(logp_tolerance, self)
        self._comparable = self.dialect.gives_policy_logps(settings)
        if not self._comparable and dist.get_global_rank() == 0:
            log.info(
                f"{self} gives no log-probs of the policy under these sampling settings: that it "
                "serves the exported opponent is not checked."
            )

    def __str__(self) -> str:
        return f"{self.dialect.name} at {self.client.base_url}"

    def _detect_dialect(self) -> tuple[str, Dialect]:
        """Return the name of the served model and the server's dialect."""
        try:
            first = self.client.get("/v1/models")["data"][0]
            return str(first["id"]), DIALECTS.get(str(first.get("owned_by")), UNKNOWN_SERVER)
        except (KeyError, TypeError, IndexError, AttributeError):
            raise EngineError(f"{self.client.base_url}/v1/models lists no model.") from None
        except OSError as error:
            raise EngineError(
                f"{self.client.base_url} cannot be reached from here ({error}). On several nodes "
                "set algorithms.spin.generation.server.host to a name that all know, and let the "
                "server listen there (--host {host} in its command)."
            ) from None

    def generate(
        self, prompts: Sequence[Ids], seed: int, on_progress: OnProgress = ignore_progress
    ) -> list[Response]:
        """Answer the prompts; see :class:`~spin_composer.engines.base.Generator`.

        Raises:
            EngineError: If a request fails after all retries; the others are abandoned.
        """
        stop = threading.Event()
        rows = zip(prompts, row_seeds(seed, len(prompts)), strict=True)
        waiting: deque[_Request] = deque((Future(), prompt, row_seed) for prompt, row_seed in rows)
        futures = [future for future, *_ in waiting]
        # Daemon threads, not an executor's, which Python joins at exit: after an error one may be
        # blocked until the request's timeout.
        for number in range(min(self.concurrency, len(prompts))):
            work, name = (waiting, stop), f"completion-{number}"
            threading.Thread(
                target=self._answer_requests, args=work, name=name, daemon=True
            ).start()
        try:
            self._wait(futures, on_progress)
            return [future.result() for future in futures]
        finally:
            stop.set()

    def check_logps(
        self, pairs: Sequence[Pair], logps: Sequence[float | None], noise: float
    ) -> float | None:
        """See :class:`~spin_composer.engines.base.Generator`."""
        return self.gap.check(pairs, logps, noise)

    def _answer_requests(self, waiting: deque[_Request], stop: threading.Event) -> None:
        """Send requests until none is left, or ``stop`` is set."""
        while not stop.is_set():
            try:
                future, prompt, seed = waiting.popleft()  # of a deque: threads may share it
            except IndexError:
                return
            try:
                future.set_result(self._answer(prompt, seed, stop))
            except BaseException as error:  # raised again by future.result()
                future.set_exception(error)
                return

    def _wait(self, futures: list[Future[Response]], on_progress: OnProgress) -> None:
        """Wait until all are done, or raise the first error of any of them."""
        waiting = set(futures)
        answered = tokens = 0
        while waiting:
            done, waiting = wait(waiting, _POLL_SECONDS, FIRST_EXCEPTION)
            interrupt.check()
            for future in done:
                tokens += len(future.result().ids)
            answered += len(done)
            on_progress(answered, tokens)
            self.client.check_alive()

    def _answer(self, prompt: Ids, seed: int, stop: threading.Event) -> Response:
        ids = [int(i) for i in prompt]
        body = self.dialect.body(self.model, ids, seed, self.settings, self.stop_token_id)
        answer = self.client.post(self.dialect.path, body, stop)
        try:
            reply = self.dialect.read(answer)
        except (KeyError, TypeError, IndexError, ValueError, AttributeError):
            raise self._error(f"gave no completion but {format_value(answer)}") from None
        return self._response(ids, reply)

    def _response(self, prompt: list[int], reply: Reply) -> Response:
        if reply.prompt_tokens not in (None, len(prompt)):
            raise self._error(
                f"read a prompt of {len(prompt)} tokens as {reply.prompt_tokens}: it changes "
                "prompts, e.g. adds a BOS. Use a server that takes token ids as they are"
            )
        ids = self._retokenize(prompt, reply) if reply.ids is None else reply.ids
        stop = ids.index(self.stop_token_id) if self.stop_token_id in ids else None
        end = self._stop_string_end(prompt, ids[:stop])
        if end is not None:
            return self._make_response(ids[:end], STRING, reply)
        if stop is not None:
            return self._make_response(ids[: stop + 1], STOP, reply)
        self._check_count(ids, reply)
        if reply.finish == "length":
            if len(ids) != self.settings.max_new_tokens:
                raise self._error(
                    f"ended a response after {len(ids)} of {self.settings.max_new_tokens} tokens: "
                    "its context is too short. Raise it (vLLM: --max-model-len)"
                )
            return self._make_response(ids, LENGTH, reply)
        if reply.finish != "stop":
            raise self._error(f"ended a response with finish_reason {format_value(reply.finish)}")
        if reply.stopped_by in self.settings.stop_strings:
            return self._make_response(ids, STRING, reply)
        if reply.stopped_by not in (None, self.stop_token_id) or (
            reply.ids is not None and self.dialect.ids_include_stop
        ):
            raise self._error(
                f"ended a response at {format_value(reply.stopped_by or ids[-1:])}, not at the "
                f"run's stop token {self.stop_token_id}. Let it take EOS from the exported folder, "
                "which names only that one"
            )
        return self._make_response([*ids, self.stop_token_id], STOP, reply)

    def _make_response(self, ids: Sequence[int], finish: int, reply: Reply) -> Response:
        logp = None
        if self._comparable and reply.logps is not None and len(reply.logps) >= len(ids):
            logp = math.fsum(reply.logps[: len(ids)])
        return Response(np.array(ids, np.int32), finish, logp)

    def _check_count(self, ids: list[int], reply: Reply) -> None:
        """Compare the number of ids with the number of sampled tokens that the server reports."""
        stopped = reply.finish == "stop" and not self.dialect.ids_include_stop
        if reply.completion_tokens not in (None, len(ids), len(ids) + 1 if stopped else None):
            what = "its text is of" if reply.ids is None else "its ids are"
            raise self._error(
                f"sampled {reply.completion_tokens} tokens but {what} {len(ids)}: other ones than "
                f"were sampled. {_USE_IDS}"
            )

    def _retokenize(self, prompt: list[int], reply: Reply) -> list[int]:
        """Return the ids of a reply's text, if they decode to that text after the prompt."""
        for text in (reply.text, reply.text.removeprefix(" ")):
            ids = [int(i) for i in self.tokenizer(text, add_special_tokens=False).input_ids]
            if self._text(prompt, ids) == reply.text:
                return ids
        raise self._error(
            f"gives text only, and {format_value(reply.text)} tokenized again is another text. "
            f"{_USE_IDS}"
        )

    def _text(self, prompt: list[int], ids: list[int]) -> str:
        """Return the text of ``ids`` after the prompt, including a leading space."""
        tail, decode = prompt[-_TAIL_TOKENS:], self.tokenizer.decode
        before, whole = (
            str(decode(x, skip_special_tokens=False, clean_up_tokenization_spaces=False))
            for x in (tail, tail + ids)
        )
        return whole[len(before) :]

    def _stop_string_end(self, prompt: list[int], ids: list[int]) -> int | None:
        """Return the length of the shortest prefix of ``ids`` that contains a stop string."""

        def holds(length: int) -> bool:
            text = self._text(prompt, ids[:length])
            return any(string in text for string in self.settings.stop_strings)

        if not self.settings.stop_strings or not holds(len(ids)):
            return None
        low, high = 0, len(ids)  # the prefix of length low contains none, that of length high does
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if holds(middle) else (middle, high)
        return high

    def _error(self, what: str) -> EngineError:
        return EngineError(f"{self} {what}.")


def row_seeds(seed: int, count: int) -> list[int]:
    """Return a sampling seed per row of a unit: 31 bits, which every server accepts."""
    states = np.random.SeedSequence(seed).generate_state(count, np.uint32)
    return [int(state >> np.uint32(1)) for state in states]
