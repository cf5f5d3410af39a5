"""The request that each kind of completion server expects, and how its response is parsed.

Requests always ask for the policy's own distribution: they set every sampling parameter that a
server would otherwise take from its defaults or the model's ``generation_config.json``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spin_composer.settings.generation import GenerationSettings

Answer = Mapping[str, Any]
"""A server's JSON response, or an object in it, not validated yet."""


@dataclass(frozen=True)
class Reply:
    """A server's parsed response to one prompt."""

    ids: list[int] | None
    """Token ids of the response; None if the server returns none."""
    text: str
    finish: str
    """``stop`` or ``length``."""
    stopped_by: str | int | None
    """The stop string or token, if the server reports it."""
    prompt_tokens: int | None
    completion_tokens: int | None
    logps: list[float] | None = None
    """Log-prob of each of ``ids``, in nats; None if the server does not return all of them."""


@dataclass(frozen=True)
class Dialect:
    """The API of one kind of server.

    Args:
        name: Name for messages.
        path: Path of the completion endpoint.
        request: Returns the fields of a request that are specific to this kind of server.
        read: Parses a response to a :class:`Reply`; raises KeyError, TypeError or IndexError if
            it is malformed.
        ids_include_stop: The returned ids include the stop token.
        stop_strings: Stop strings can be sent to the server: its ids still include every sampled
            token. Otherwise responses are generated in full and cut here.
        logps: Which log-probs it returns: ``policy``, the model's own; ``sampler``, those after
            temperature, top_p and top_k (in some versions); None, none.
    """

    name: str
    path: str
    request: Callable[[GenerationSettings, int], dict[str, object]]
    read: Callable[[Answer], Reply]
    ids_include_stop: bool
    stop_strings: bool
    logps: str | None = None

    def gives_policy_logps(self, settings: GenerationSettings) -> bool:
        """Return whether the server's log-probs are the policy's with these settings."""
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
    # The probabilities omit tokens whose text is an incomplete UTF-8 character.
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
    # return_token_ids since 0.10.2; older versions return ids as names of the log-probs' tokens.
    # A watermark configured on the server (0.33) is applied unless a request disables it.
    return {
        "top_k": _top_k(settings, -1), "min_p": 0.0, "repetition_penalty": 1.0,
        "presence_penalty": 0.0, "frequency_penalty": 0.0, "min_tokens": 0,
        "stop_token_ids": [stop_token_id], "skip_special_tokens": False,
        "return_token_ids": True, "return_tokens_as_token_ids": True, "logprobs": 1,
        "watermarking": False,
    }  # fmt: skip


def _sglang(settings: GenerationSettings, stop_token_id: int) -> dict[str, object]:
    # As of 0.5.23: seed is called sampling_seed; a watermark may be enabled by default.
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
    # Its own endpoint: the OpenAI one omits ids whose text is an incomplete UTF-8 character. Only
    # the listed samplers run, in transformers' order. A prompt cache would make results depend on
    # the order of requests.
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
