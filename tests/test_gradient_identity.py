"""grad L_SPIN at the start of an iteration = (beta / 2) * grad L_SFT, in expectation over y'.

At policy = opponent the loss's slope is beta / 2 on both sides (mu / (1 + mu) of SPACE), and the
expected gradient of log p(y') over the policy's own responses is zero. On a vocabulary of five with
responses of at most four tokens every y' is enumerated, so the expectation is exact.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from spin_composer.loss import PairLoss
from spin_composer.model.head import install_head
from spin_composer.model.logprobs import response_logps, sequence_sums
from tests.fixtures.models import batch_of, tiny_model

VOCAB, STOP, LONGEST = 5, 4, 4


def responses() -> list[Tensor]:
    """Return every response: ends with the stop token, or is cut at the greatest length."""
    found = []
    for length in range(1, LONGEST + 1):
        for tokens in itertools.product(range(VOCAB), repeat=length):
            stops = tokens[-1] == STOP or length == LONGEST
            if STOP not in tokens[:-1] and stops:
                found.append(torch.tensor(tokens))
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2", "mpt"])
@pytest.mark.parametrize(
    ("loss", "slope"),
    [
        (PairLoss("logistic", 0.1), 0.05),
        (PairLoss("logistic", 2.0), 1.0),
        (PairLoss("dpop", 2.0, parameters={"dpop_lambda": 50.0}), 1.0),
        (PairLoss("space", parameters={"space_mu": 1.0}), 1 / 2),
        (PairLoss("space", parameters={"space_mu": 3.0}), 3 / 4),
    ],
    ids=["beta=0.1", "beta=2", "dpop", "space", "mu=3"],
)
def test_first_gradient_is_the_slope_times_the_sft_gradient(
    family: str, loss: PairLoss, slope: float
) -> None:
    model = tiny_model(family, vocab_size=VOCAB, bos_token_id=None, eos_token_id=None).double()
    install_head(model)
    leaves = [p for p in model.parameters() if p.requires_grad]
    prompt, real = torch.tensor([1, 3]), torch.tensor([2, 0, STOP])
    generated = responses()
    batch = batch_of([(prompt, y) for pair in ((real, y) for y in generated) for y in pair])

    def gradient(loss: Tensor) -> Tensor:
        grads = torch.autograd.grad(loss, leaves, retain_graph=True)
        return torch.cat([g.flatten() for g in grads])

    policy = sequence_sums(response_logps(model, batch), batch["cu_scored"]).view(-1, 2)
    chances = policy[:, 1].detach().exp()
    assert float(chances.sum()) == pytest.approx(1, abs=1e-12)  # every response is there, once
    losses = loss(policy, policy.detach(), torch.ones(len(policy), 2))
    spin = gradient((losses.double() * chances).sum())
    sft = gradient(-policy[0, 0])
    assert float(torch.cosine_similarity(spin, sft, dim=0)) > 0.99999
    assert float(spin.norm() / sft.norm()) == pytest.approx(slope, rel=1e-4)
