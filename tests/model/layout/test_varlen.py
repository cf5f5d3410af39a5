"""A row at once by FlashAttention: what it is given, and when it is used."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from spin_composer.data.pairs import collate_pairs
from spin_composer.model.head import install_head
from spin_composer.model.layout import mechanism
from spin_composer.model.layout.attention import (
    AttentionCall,
    attend_within,
    install_segment_attention,
    latest_call,
    set_kernel,
)
from spin_composer.model.layout.choose import LAYOUTS, unsupported_reason
from spin_composer.model.layout.mechanism import refusal, use_kernel
from spin_composer.model.layout.segments import Segment, Segments
from spin_composer.model.layout.varlen import VarlenKernel, flash_kernel
from spin_composer.model.logprobs import response_logps
from tests.fixtures.models import VOCAB, tiny_model
from tests.model.layout.test_packed import PAIRS
from tests.test_new_families import tiny

NEITHER = "it supports neither soft caps of scores nor attention sinks"
WINDOWED = ("olmo3", "gemma3_text")
CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or flash_kernel() is None,
    reason="needs a CUDA GPU, and torch 2.10 for varlen_attn",
)
CASES = {
    "shared": (Segment(0, 3, 4, 5), Segment(12, 6, 1, 1), Segment(20, 1, 7, 2)),
    "long responses": (Segment(0, 2, 4, 17), Segment(23, 1, 1, 9), Segment(34, 3, 2, 1)),
    "packed": (Segment(0, 0, 5, 0), Segment(5, 0, 1, 0), Segment(6, 0, 9, 0)),
}


def reference(
    query: Tensor, key: Tensor, value: Tensor, query_bounds: Tensor, key_bounds: Tensor,
    most_queries: int, most_keys: int, *, scale: float | None, window_size: tuple[int, int],
) -> Tensor:  # fmt: skip
    """What FlashAttention says of itself: causal, the last query at the last key."""
    assert query_bounds.dtype == key_bounds.dtype == torch.int32
    assert (most_queries, most_keys) == (query_bounds.diff().max(), key_bounds.diff().max())
    assert (query_bounds[-1], key_bounds[-1]) == (len(query), len(key))
    left, right = window_size
    assert right == 0
    shared_by = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(shared_by, dim=1) for x in (key, value))
    parts = []
    for i in range(len(query_bounds) - 1):
        q = query[query_bounds[i] : query_bounds[i + 1]].transpose(0, 1)
        k, v = (x[key_bounds[i] : key_bounds[i + 1]].transpose(0, 1) for x in (key, value))
        place = torch.arange(k.shape[1])
        back = place[-q.shape[1] :, None] - place
        hidden = (back < 0) | (back > left) if left >= 0 else back < 0
        scores = q @ k.transpose(1, 2) * (q.shape[-1] ** -0.5 if scale is None else scale)
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
        parts.append((weights @ v).transpose(0, 1))
    return torch.cat(parts)


def skip_if_padded(model: Any) -> None:
    reason = unsupported_reason(model, longest=40)
    if reason is not None:  # of an older transformers
        pytest.skip(reason)


def kernel(attend: Any = reference, *dtypes: torch.dtype) -> VarlenKernel:
    return VarlenKernel(attend, frozenset(dtypes or (torch.float32, torch.bfloat16)))


def top_left(query: Tensor, key: Tensor, *rest: Any, **how: Any) -> Tensor:
    """What aligns the first query with the first key, as cuDNN does."""
    value, query_bounds, key_bounds, *most = rest
    first = torch.cat([
        torch.arange(int(k), int(k + q))
        for k, q in zip(key_bounds[:-1], query_bounds.diff(), strict=True)
    ])  # fmt: skip
    return reference(
        query, key[first], value[first], query_bounds, query_bounds, most[0], most[0], **how
    )


@pytest.mark.parametrize("window", [None, 1, 4])
@pytest.mark.parametrize("case", CASES)
def test_a_row_at_once_is_the_row_branch_by_branch(case: str, window: int | None) -> None:
    segments = CASES[case]
    draw = torch.Generator().manual_seed(1)
    shapes = [(1, heads, segments[-1].end, 8) for heads in (4, 2, 2)]
    leaves = [torch.randn(s, generator=draw, dtype=torch.float64) for s in shapes]
    found = []
    for how in (None, kernel(reference, torch.float64)):
        given = [x.clone().requires_grad_() for x in leaves]
        out = attend_within(*given, Segments(segments), 0.3, window, kernel=how)
        found.append((out, *torch.autograd.grad(out.square().sum(), given)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


def test_queries_are_not_moved_and_plain_sequences_are_not_gathered() -> None:
    shared, packed = (Segments(CASES[case]).sequences(CPU) for case in ("shared", "packed"))
    assert shared.query_bounds.tolist() == [0, 7, 12, 19, 20, 28, 30]
    assert shared.key_bounds.tolist() == [0, 7, 15, 22, 29, 37, 40]
    assert shared.keys is not None
    assert shared.keys[:15].tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 7, 8, 9, 10, 11]
    assert packed.keys is None
    assert packed.key_bounds is packed.query_bounds


@pytest.mark.parametrize("layout", ["shared", "packed"])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", *WINDOWED])
def test_models_compute_the_same_by_it(family: str, layout: str) -> None:
    model: Any = (
        tiny_model(family) if family in ("llama", "mistral", "qwen2") else tiny(family, VOCAB)
    )
    skip_if_padded(model)
    install_head(model)
    layers = install_segment_attention(model.eval())
    batch, taken = collate_pairs(PAIRS), []

    def noting(*args: Any, **how: Any) -> Tensor:
        taken.append(how["window_size"])
        return reference(*args, **how)

    found = []
    for how in (None, kernel(noting)):
        set_kernel(layers, how)
        logps = response_logps(model, batch, LAYOUTS[layout])
        leaves = [p for p in model.parameters() if p.requires_grad]
        gradients = torch.autograd.grad(logps.square().sum(), leaves, allow_unused=True)
        found.append((logps, torch.cat([g.flatten() for g in gradients if g is not None])))
    (theirs, wanted), (ours, gradient) = found
    assert len(taken) == len(layers)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)
    assert (gradient - wanted).norm() <= 1e-5 * wanted.norm()


def call_of(**changes: Any) -> AttentionCall:
    plain = {
        "heads": 4, "key_heads": 2, "size": 16, "value_size": 16, "dtype": torch.bfloat16,
        "scaling": None, "window": None, "plain": True,
    }  # fmt: skip
    return AttentionCall(**{**plain, **changes})


def scaled(factor: float) -> Any:
    return lambda *args, **how: factor * reference(*args, **how)


def failing(*args: Any, **how: Any) -> Tensor:
    raise RuntimeError("head dimension 20\nis not supported")


class ForwardOnly(torch.autograd.Function):
    """A kernel whose gradients are wrong."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return 1.1 * gradients[0]


def only_forward(query: Tensor, *rest: Any, **how: Any) -> Tensor:
    return reference(ForwardOnly.apply(query), *rest, **how)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "how", "reason"),
    [
        (call_of(), kernel(), None),
        (call_of(window=3000, scaling=0.2), kernel(), None),
        (call_of(plain=False), kernel(), NEITHER),
        (call_of(dtype=torch.float16), kernel(), "it does not support float16"),
        (call_of(), kernel(failing), "RuntimeError: head dimension 20 is not supported"),
        (call_of(), kernel(scaled(1.05)), "its relative error is"),
        (call_of(), kernel(scaled(float("nan"))), "its relative error is nan"),
        (call_of(), kernel(top_left), "its relative error is"),
        (call_of(), kernel(only_forward), "its relative error is"),
        (
            call_of(window=70),
            kernel(lambda *args, **how: reference(*args, **{**how, "window_size": (-1, 0)})),
            "its relative error is",
        ),
    ],
)  # fmt: skip
def test_a_kernel_is_refused_if_it_differs(
    call: AttentionCall, how: VarlenKernel, reason: str | None
) -> None:
    found = refusal([call], CPU, how)
    assert found is None if reason is None else reason in str(found)


def used_by_a_model(model: Any, how: VarlenKernel, caplog: Any, differs: Any = None) -> list[Any]:
    """Have a model use a kernel if it can; return what each of its layers has then."""
    skip_if_padded(model)
    install_head(model)
    layers = install_segment_attention(model.eval())
    with torch.no_grad():
        response_logps(model, collate_pairs(PAIRS), LAYOUTS["shared"])
    with caplog.at_level(logging.INFO, mechanism.__name__):
        use_kernel(how, layers, CPU, differs or (lambda: None))
    return [layer.spin_switch.kernel for layer in layers]


def test_a_model_uses_an_exact_one(caplog: pytest.LogCaptureFixture) -> None:
    how = kernel()
    assert used_by_a_model(tiny_model("llama").bfloat16(), how, caplog) == [how, how]
    assert caplog.messages == ["Packed rows use FlashAttention, one call per layer"]


@pytest.mark.parametrize(
    ("family", "differs", "reason"),
    [
        ("gemma2", None, NEITHER),
        ("llama", lambda: "the log-probs differ", "the log-probs differ"),
    ],
)
def test_another_stays_with_sdpa_and_says_why_once(
    family: str, differs: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert used_by_a_model(tiny_model(family).bfloat16(), kernel(), caplog, differs) == [None, None]
    assert caplog.messages == [f"Packed rows use SDPA, not FlashAttention: {reason}"]


def test_what_a_kernel_does_not_compute_goes_by_sdpa() -> None:
    model: Any = tiny_model("llama")
    install_head(model)
    set_kernel(install_segment_attention(model.eval()), kernel(failing, torch.bfloat16))
    response_logps(model, collate_pairs(PAIRS), LAYOUTS["shared"])
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(RuntimeError, match="dimension 20"):
        response_logps(model, collate_pairs(PAIRS), LAYOUTS["shared"])


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("window", [None, 64])
@pytest.mark.parametrize("heads", [(4, 4, 64), (8, 2, 128)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_flash_attention_is_sdpa_by_branch(
    dtype: torch.dtype, heads: tuple[int, int, int], window: int | None
) -> None:
    how = flash_kernel()
    assert how is not None
    call = call_of(heads=heads[0], key_heads=heads[1], size=heads[2], value_size=heads[2],
                   dtype=dtype, window=window)  # fmt: skip
    assert refusal([call], torch.device("cuda"), how) is None


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("layout", ["shared", "packed"])
def test_a_model_on_a_gpu_computes_the_same_by_flash_attention(layout: str) -> None:
    how = flash_kernel()
    assert how is not None
    model: Any = tiny_model("llama").cuda()
    install_head(model)
    layers = install_segment_attention(model.eval())
    batch: Any = {
        k: x.cuda() if isinstance(x, Tensor) else x for k, x in collate_pairs(PAIRS).items()
    }
    found = []
    for precision, kernel_used in (
        (torch.float32, None),
        (torch.bfloat16, None),
        (torch.bfloat16, how),
    ):
        set_kernel(layers, kernel_used)
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == torch.bfloat16):
            logps = response_logps(model, batch, LAYOUTS[layout])
        gradients = torch.autograd.grad(logps.square().sum(), list(model.parameters()))
        found.append(torch.cat([x.detach().double().flatten() for x in (logps, *gradients)]))
    call = latest_call(layers[0])
    assert call is not None
    assert call.can_use(how)
    truth, by_branch, at_once = found
    assert (at_once - truth).norm() <= 2 * (by_branch - truth).norm()
