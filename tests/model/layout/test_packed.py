"""Packed and shared pairs: the log-probs, losses and gradients of each sequence alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from spin_composer.data.pairs import Pair, collate_pairs, split_pairs
from spin_composer.loss import PairLoss
from spin_composer.model.head import install_head
from spin_composer.model.layout.attention import install_segment_attention
from spin_composer.model.layout.choose import unsupported_reason
from spin_composer.model.layout.packed import PackedLayout, SharedLayout
from spin_composer.model.layout.padded import PADDED
from spin_composer.model.logprobs import response_logps, response_pair_loss
from tests.fixtures.models import VOCAB, tiny_model
from tests.test_new_families import FAMILIES as NEW_FAMILIES
from tests.test_new_families import tiny

LAYOUTS = {layout.name: layout for layout in (SharedLayout(), PackedLayout())}
OWN = ("llama", "llama_tied", "mistral", "qwen2", "gemma2", "granite", "cohere", "gpt2")
NEW = tuple(
    name
    for name in NEW_FAMILIES
    if name not in ("qwen3_next", "granitemoehybrid", "llama4_text")  # see test_choose.py
)


def pairs_of(*lengths: tuple[int, int, int], seed: int = 0) -> list[Pair]:
    draw = np.random.default_rng(seed)
    return [
        Pair(*(draw.integers(3, VOCAB, size=n, dtype=np.int32) for n in sizes), index=i)
        for i, sizes in enumerate(lengths)
    ]


PAIRS = pairs_of((5, 9, 7), (1, 1, 1), (12, 1, 10), (3, 14, 1), (20, 2, 2), (1, 2, 12))


def scored(model: Any) -> Any:
    install_head(model)
    assert len(install_segment_attention(model)) >= 2
    return model


def alone(model: Any, pairs: list[Pair]) -> torch.Tensor:
    return torch.cat([response_logps(model, collate_pairs([pair]), PADDED) for pair in pairs])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("family", OWN + NEW)
def test_log_probs_and_gradients_are_those_of_each_pair_alone(family: str, layout: str) -> None:
    model = scored(tiny(family, VOCAB) if family in NEW else tiny_model(family)).eval()
    reason = unsupported_reason(model, longest=40)
    if reason is not None:  # of an older transformers
        pytest.skip(reason)
    leaves = [p for p in model.parameters() if p.requires_grad]
    weights = torch.randn(sum(len(p.real) + len(p.generated) for p in PAIRS))

    def gradients(logps: torch.Tensor) -> torch.Tensor:
        found = torch.autograd.grad((logps * weights).sum(), leaves, allow_unused=True)
        return torch.cat([g.flatten() for g in found if g is not None])

    truth = alone(model, PAIRS)
    ours = response_logps(model, collate_pairs(PAIRS), LAYOUTS[layout])
    torch.testing.assert_close(ours, truth, atol=2e-5, rtol=0)
    wanted = gradients(truth)
    assert (gradients(ours) - wanted).norm() <= 1e-5 * wanted.norm()


@pytest.mark.parametrize("family", ["olmo3", "gemma3_text", "gpt_oss"])
def test_windows_bite_in_these_sequences(family: str) -> None:
    model = scored(tiny(family, VOCAB)).eval()
    reason = unsupported_reason(model, longest=40)
    if reason is not None:
        pytest.skip(reason)
    batch = collate_pairs(PAIRS)
    windowed = response_logps(model, batch, LAYOUTS["shared"])
    for module in model.modules():
        if hasattr(module, "sliding_window"):
            module.sliding_window = None
    assert (response_logps(model, batch, LAYOUTS["shared"]) - windowed).abs().max() > 1e-2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_pair_loss_is_the_padded_layouts_and_batch_mates_change_nothing(layout: str) -> None:
    model = scored(tiny_model("llama")).train()
    batch = collate_pairs(PAIRS)
    loss = PairLoss("logistic", 0.3)

    def run(part: Any, how: Any) -> Any:
        lengths = part["cu_scored"].long().diff().view(-1, 2)
        return response_pair_loss(
            model, part,
            lambda a, b: loss(torch.stack((a, b), 1), part["opponent_logps"], lengths), how,
        )  # fmt: skip

    padded, ours = run(batch, PADDED), run(batch, LAYOUTS[layout])
    torch.testing.assert_close(ours.pair_losses, padded.pair_losses, atol=1e-5, rtol=1e-6)
    one_by_one = [run(part, LAYOUTS[layout]).pair_losses for part in split_pairs(batch, 1)]
    torch.testing.assert_close(torch.cat(one_by_one), ours.pair_losses, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_checkpointed_layers_see_the_same_segments_again(layout: str, reentrant: bool) -> None:
    model = scored(tiny_model("llama")).train()
    batch = collate_pairs(PAIRS)
    leaves = list(model.parameters())
    plain = response_logps(model, batch, LAYOUTS[layout])
    wanted = torch.autograd.grad(plain.square().sum(), leaves)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    model.zero_grad()
    response_logps(model, batch, LAYOUTS[layout]).square().sum().backward()
    for leaf, gradient in zip(leaves, wanted, strict=True):
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, gradient)


def test_what_is_no_table_is_computed_as_before() -> None:
    model = tiny_model("llama").eval()
    ids = torch.arange(3, 20)[None]
    before = model(input_ids=ids).logits
    scored(model)
    response_logps(model, collate_pairs(PAIRS), LAYOUTS["shared"])
    assert torch.equal(model(input_ids=ids).logits, before)
    assert model.config._attn_implementation == "eager"


def test_an_error_leaves_the_attention_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model = scored(tiny_model("llama")).eval()
    batch = collate_pairs(PAIRS)

    def broken(*args: Any) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(model.model.layers[1].self_attn.o_proj, "forward", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        response_logps(model, batch, LAYOUTS["shared"])
    monkeypatch.undo()
    assert model.config._attn_implementation == "eager"
    torch.testing.assert_close(
        response_logps(model, batch, LAYOUTS["shared"]), alone(model, PAIRS), atol=2e-5, rtol=0
    )


def test_shared_rows_hold_each_prompt_once_and_packed_rows_no_padding() -> None:
    batch = collate_pairs(pairs_of((3, 2, 4), (2, 1, 1)))
    shared, packed = (LAYOUTS[name].arrange(batch) for name in ("shared", "packed"))
    assert (shared.num_positions, packed.num_positions) == (13, 18)
    assert shared.kwargs["position_ids"].tolist() == [[0, 1, 2, 3, 4, 3, 4, 5, 6, 0, 1, 2, 2]]
    assert shared.rows.tolist() == [2, 3, 2, 5, 6, 7, 10, 10]
    assert packed.kwargs["position_ids"].tolist() == [
        [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 0, 1, 2]
    ]
    assert packed.rows is batch["scored_rows"]
    ids = batch["input_ids"].tolist()
    assert shared.kwargs["input_ids"].tolist() == [ids[:5] + ids[8:12] + ids[12:15] + ids[17:18]]
