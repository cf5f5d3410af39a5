"""What each completion server is asked, and where in its answer the token ids are.

All are asked for the policy's own distribution: a sampling setting that a server would otherwise
take from its defaults, or from the model's ``generation_config.json``, is always sent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spin_composer.settings.generation import GenerationSettings

Answer = Mapping[str, Any]
"""A server's JSON answer, or an object in it, as it came: nothing is checked yet."""


@dataclass(frozen=True)
class Reply:
    """What a server answered to one prompt."""

    ids: list[int] | None
    """Token ids of the response; None if the server gives none."""
    text: str
    finish: str
    """``stop`` or ``length``."""
    stopped_by: str | int | None
    """The stop string or token, where the server says which."""
    prompt_tokens: int | None
    completion_tokens: int | None
    logps: list[float] | None = None
    """Log-prob of each of ``ids``, in nats; None if the server gives none, or not of all."""


@dataclass(frozen=True)
class Dialect:
    """How one kind of server is spoken to.

    Args:
        name: For messages.
        path: Of the completion endpoint.
        request: What is sent besides what all servers are sent, from settings and stop token.
        read: Returns the :class:`Reply` in an answer; KeyError, TypeError or IndexError if the
            answer is malformed.
        ids_include_stop: The ids end with the stop token of a response that stopped at it.
        stop_strings: The server may look for stop strings: its ids still hold every token that was
            sampled. Where it may not, responses are cut here, after their full length was made.
        logps: Which log-probs it gives: ``policy``, the model's own; ``sampler``, those after
            temperature, top_p and top_k, or after they in some versions; None, none.
    """

    name: str
    path: str
    request: Callable[[GenerationSettings, int], dict[str, object]]
    read: Callable[[Answer], Reply]
    ids_include_stop: bool
    stop_strings: bool
    logps: str | None = None

    def gives_policy_logps(self, settings: GenerationSettings) -> bool:
        """Tell whether the server's log-probs are the policy's under these settings."""
        neutral = (settings.temperature, settings.top_p, settings.top_k) == (1, 1, 0)
        return self.logps == "policy" or (self.logps == "sampler" and neutral)

    def body(
        self,
        model: str,
        prompt: Sequence[int],
        seed: int,
        settings: GenerationSettings,
        stop_token_id: int,
    ) -> dict[str, object]:
        """Return the JSON of one request."""
        body: dict[str, object] = {
            "model": model,
            "prompt": list(prompt),
            "n": 1,
            "stream": False,
            "max_tokens": settings.max_new_tokens,
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "seed": seed,
            **self.request(settings, stop_token_id),
        }
        if settings.stop_strings and self.stop_strings:
            body["stop"] = settings.stop_strings
        return body


def _openai_reply(answer: Answer) -> Reply:
    choice, usage = answer["choices"][0], answer.get("usage") or {}
    ids = _ids(choice)
    return Reply(
        ids=ids,
        text=choice.get("text") or "",
        finish=choice["finish_reason"],
        stopped_by=choice.get("stop_reason", choice.get("matched_stop")),
        prompt_tokens=usage.get("prompt_tokens"),
        completion_tokens=usage.get("completion_tokens"),
        logps=_if_complete(ids, (choice.get("logprobs") or {}).get("token_logprobs")),
    )


def _ids(choice: Answer) -> list[int] | None:
    if choice.get("token_ids") is not None:
        return [int(i) for i in choice["token_ids"]]
    tokens = (choice.get("logprobs") or {}).get("tokens")
    if tokens is not None and all(str(t).startswith("token_id:") for t in tokens):
        return [int(t.removeprefix("token_id:")) for t in tokens]
    return None


def _if_complete(ids: list[int] | None, logps: list[float] | None) -> list[float] | None:
    return logps if ids and logps and len(ids) == len(logps) else None


def _llama_cpp_reply(answer: Answer) -> Reply:
    ids = [int(i) for i in answer["tokens"]]
    # Tokens whose text is no whole UTF-8 character are left out of the probabilities.
    logps = [found["logprob"] for found in answer.get("completion_probabilities") or []]
    return Reply(
        ids=ids,
        text=answer["content"],
        finish={"limit": "length", "eos": "stop", "word": "stop"}[answer["stop_type"]],
        stopped_by=answer.get("stopping_word") or None,
        prompt_tokens=answer.get("tokens_evaluated"),
        completion_tokens=answer.get("tokens_predicted"),
        logps=_if_complete(ids, logps),
    )


def _top_k(settings: GenerationSettings, none: int) -> int:
    return settings.top_k or none


def _vllm(settings: GenerationSettings, stop_token_id: int) -> dict[str, object]:
    # return_token_ids since 0.10.2; older ones give the ids as the names of the log-probs' tokens.
    # A watermark that the server was given (0.33) is on unless a request says no.
    return {
        "top_k": _top_k(settings, -1), "min_p": 0.0, "repetition_penalty": 1.0,
        "presence_penalty": 0.0, "frequency_penalty": 0.0, "min_tokens": 0,
        "stop_token_ids": [stop_token_id], "skip_special_tokens": False,
        "return_token_ids": True, "return_tokens_as_token_ids": True, "logprobs": 1,
        "watermarking": False,
    }  # fmt: skip


def _sglang(settings: GenerationSettings, stop_token_id: int) -> dict[str, object]:
    # Read in 0.5.23: seed is sampling_seed there; a watermark may be the server's default.
    return {
        "top_k": _top_k(settings, -1), "min_p": 0.0, "repetition_penalty": 1.0,
        "presence_penalty": 0.0, "frequency_penalty": 0.0, "min_tokens": 0,
        "stop_token_ids": [stop_token_id], "skip_special_tokens": False,
        "return_token_ids": True, "logprobs": 1, "watermark": {"enabled": False},
    }  # fmt: skip


def _tensorrt_llm(settings: GenerationSettings, stop_token_id: int) -> dict[str, object]:
    return {
        "top_k": _top_k(settings, 0), "min_p": 0.0, "repetition_penalty": 1.0,
        "presence_penalty": 0.0, "frequency_penalty": 0.0,
        "stop_token_ids": [stop_token_id], "detokenize": False,
    }  # fmt: skip


def _llama_cpp(settings: GenerationSettings, stop_token_id: int) -> dict[str, object]:
    # Its own endpoint: the OpenAI one leaves out ids whose text is no whole UTF-8 character. The
    # samplers named are all that run, in transformers' order. A prompt cache would make results
    # depend on the order of requests.
    del stop_token_id
    return {
        "n_predict": settings.max_new_tokens, "top_k": _top_k(settings, -1), "min_p": 0.0,
        "samplers": ["temperature", "top_k", "top_p"], "repeat_penalty": 1.0,
        "cache_prompt": False, "return_tokens": True, "n_probs": 1, "post_sampling_probs": False,
    }  # fmt: skip


def _unknown_server(settings: GenerationSettings, stop_token_id: int) -> dict[str, object]:
    del stop_token_id
    return {"top_k": settings.top_k} if settings.top_k else {}


_PATH = "/v1/completions"
UNKNOWN_SERVER = Dialect("unknown server", _PATH, _unknown_server, _openai_reply, False, False)
DIALECTS = {
    "vllm": Dialect("vLLM", _PATH, _vllm, _openai_reply, True, True, "sampler"),
    "sglang": Dialect("SGLang", _PATH, _sglang, _openai_reply, True, True, "sampler"),
    "tensorrt_llm": Dialect("TensorRT-LLM", _PATH, _tensorrt_llm, _openai_reply, False, False),
    "llamacpp": Dialect(
        "llama.cpp", "/completion", _llama_cpp, _llama_cpp_reply, True, True, "policy"
    ),
}
"""By the ``owned_by`` of the server's ``/v1/models``."""
