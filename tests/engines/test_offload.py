"""The optimizer's state is elsewhere during play, and comes back bit for bit. On the CPU only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.runs import tiny_trainer

from spin_composer.engines.offload import offloaded


def trained() -> torch.optim.Optimizer:
    torch.manual_seed(0)
    net = torch.nn.Linear(3, 4)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    return optimizer


def tensors(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [t for state in optimizer.state.values() for t in state.values()]


@pytest.mark.parametrize("fails", [False, True])
def test_state_is_replaced_within_and_back_bit_for_bit(fails: bool) -> None:
    optimizer = trained()
    before = tensors(optimizer)
    try:
        with offloaded([optimizer]) as moved:
            places = {t.data_ptr() for t in tensors(optimizer)}
            assert not places & {t.data_ptr() for t in before}
            assert moved == sum(t.nbytes for t in before)
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    after = tensors(optimizer)
    assert len(after) == len(before) == 6
    for a, b in zip(after, before, strict=True):
        assert (a.dtype, a.device) == (b.dtype, b.device)
        assert torch.equal(a, b)


def test_a_run_is_the_same_with_and_without(tmp_path: Path) -> None:
    def weights(name: str, offload: bool) -> dict[str, Any]:
        spin = {"reset_optimizer": False, "offload_during_play": offload}
        trainer = tiny_trainer(tmp_path / name, spin=spin)
        trainer.fit()
        return trainer.state.model.state_dict()

    plain, moved = weights("plain", False), weights("moved", True)
    assert all(torch.equal(moved[name], tensor) for name, tensor in plain.items())
