"""llm-foundry's MPT plays, and its text batches are evaluated as before."""

from __future__ import annotations

import copy
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from spin_composer.errors import InputError
from spin_composer.foundry.mpt_config import check_mpt_runs
from tests.fixtures import models
from tests.fixtures.lm import check_pair_batches, evaluated, sft_batch, word_tokenizer

MPT: dict[str, Any] = {
    "vocab_size": models.VOCAB,
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 4,
    "max_seq_len": models.MAX_TOKENS,
    "attn_config": {"attn_impl": "torch"},
}
runs_mpt = pytest.mark.skipif(models.NO_MPT is not None, reason=str(models.NO_MPT))


def mpt(**settings: Any) -> Any:
    from spin_composer.foundry.mpt import MPTSpinLM

    return MPTSpinLM(word_tokenizer(), **copy.deepcopy(MPT), **settings)


@runs_mpt
def test_sft_batches_get_the_same_loss_and_metrics_as_from_llm_foundry() -> None:
    from llmfoundry.models import ComposerMPTCausalLM

    plain = ComposerMPTCausalLM(
        word_tokenizer(), loss_fn="torch_crossentropy", **copy.deepcopy(MPT)
    )
    ours = mpt()
    ours.load_state_dict(plain.state_dict())
    assert evaluated(ours, sft_batch()) == evaluated(plain, sft_batch())
    batch = sft_batch()
    assert torch.equal(ours.loss(ours(batch), batch), plain.loss(plain(batch), batch))


@runs_mpt
def test_pair_batch_gives_sums_and_the_loss_of_its_four_vectors() -> None:
    check_pair_batches(mpt())


@runs_mpt
def test_train_metrics_can_be_switched_off() -> None:
    assert mpt(use_train_metrics=False).get_metrics(True) == {}


@runs_mpt
def test_flops_of_a_pair_batch_are_those_of_its_sequences() -> None:
    model = mpt()
    sequence = (torch.arange(3, 9), torch.arange(3, 7))
    same = {"input_ids": torch.zeros(4, 10, dtype=torch.long)}
    assert model.flops_per_batch(models.batch_of([sequence] * 4)) == pytest.approx(
        model.flops_per_batch(same)
    )


def test_a_transformers_that_is_too_new_is_named_with_the_lock_that_has_the_right_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("llmfoundry")
    newer = SimpleNamespace(__version__="5.24.0")
    monkeypatch.setattr("spin_composer.foundry.mpt_config.transformers", newer)
    with pytest.raises(InputError, match=r"transformers 5\.24\.0.*requirements-foundry\.lock") as e:
        check_mpt_runs()
    assert "\n" not in str(e.value)


def test_without_llm_foundry_mpt_says_which_extra_to_install() -> None:
    code = (
        "import sys; sys.modules['llmfoundry'] = None\n"
        "import spin_composer\n"
        "try:\n    spin_composer.MPTSpinLM\n"
        "except ValueError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Install '.[foundry]' in the checkout" in done.stdout
