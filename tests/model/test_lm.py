"""The ComposerModel of any causal LM: pair batches play the game, others are evaluated as text."""

from __future__ import annotations

import math
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from composer import DataSpec, Trainer
from composer.loggers import InMemoryLogger
from composer.models import HuggingFaceModel
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedTokenizerFast
from transformers.models.auto import modeling_auto

from spin_composer.data.pairs import Pair, collate_pairs, num_pairs, num_tokens, split_pairs
from spin_composer.errors import InputError
from spin_composer.loss import PairLoss
from spin_composer.metrics import PAIR_METRICS
from spin_composer.model.head import ScoringHead
from spin_composer.model.lm import HFSpinLM
from tests.fixtures.lm import check_pair_batches, sft_batch, word_tokenizer
from tests.fixtures.models import (
    VOCAB,
    batch_of,
    padded_inputs,
    pair_batch,
    sequences_of,
    tiny_model,
)

LORA = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_dropout": 0.1}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny GPT-2 that has dropout, as from_pretrained loads it."""
    path = tmp_path_factory.mktemp("gpt2")
    tiny_model("gpt2", attn_pdrop=0.1, resid_pdrop=0.1, embd_pdrop=0.1).save_pretrained(path)
    return path


def test_remote_code_is_not_trusted_unless_asked_for() -> None:
    assert signature(HFSpinLM).parameters["trust_remote_code"].default is False


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_pair_batch_gives_sums_and_the_loss_of_its_four_vectors(
    kind: str, folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    if kind == "gpt2":
        model = HFSpinLM(tokenizer, str(folder))
    else:
        model = HFSpinLM.from_model(tiny_model("llama"), tokenizer)
    check_pair_batches(model)


@pytest.mark.parametrize("kind", ["llama", "llama_tied", "gemma2", "granite", "cohere"])
@pytest.mark.parametrize(
    "loss",
    [
        PairLoss("logistic", 0.3),
        PairLoss("logistic", 0.3, nll_weight=0.1, length_normalised=True),
        PairLoss("space", parameters={"space_mu": 2.0}),
        PairLoss("dpop", 0.3, parameters={"dpop_lambda": 5.0}),
    ],
    ids=["logistic", "anchored", "space", "dpop"],
)
def test_gradient_made_in_forward_equals_autograd_through_the_models_logits(
    kind: str, loss: PairLoss, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = HFSpinLM.from_model(tiny_model(kind), tokenizer).train()
    model.pair_loss = loss
    batch = pair_batch(3, seed=3)
    batch["opponent_logps"] = torch.linspace(-40, -5, 6).view(3, 2)
    leaves = list(model.parameters())
    ours = torch.autograd.grad(0.25 * model.loss(model(batch), batch), leaves)

    inputs, rows = padded_inputs(batch)
    logits = model.model(**inputs).logits.flatten(0, 1)[rows]
    logps = logits.log_softmax(-1).gather(1, batch["targets"][:, None])[:, 0]
    policy = torch.stack([part.sum() for part in logps.split(batch["cu_scored"].diff().tolist())])
    lengths = batch["cu_scored"].diff().view(-1, 2)
    losses = model.pair_loss(policy.view(-1, 2), batch["opponent_logps"], lengths)
    theirs = torch.autograd.grad(0.25 * losses.mean(), leaves)
    for mine, plain in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, plain, atol=1e-6, rtol=1e-4)


def test_first_loss_is_log_two_when_the_opponent_is_the_policy(
    folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = HFSpinLM(tokenizer, str(folder)).train()
    model.pair_loss = PairLoss("logistic", 5.0)
    batch = pair_batch(4)
    # scored one pair at a time, trained on together
    pairs = sequences_of(batch)
    alone = [model.score(batch_of(pairs[i : i + 2])) for i in range(0, 8, 2)]
    batch["opponent_logps"] = torch.cat(alone)
    assert float(model.loss(model(batch), batch)) == pytest.approx(math.log(2), abs=1e-4)


def test_pair_batch_without_the_algorithm_says_how_to_add_it(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = HFSpinLM.from_model(tiny_model("llama"), tokenizer)
    batch = pair_batch(1)
    with pytest.raises(RuntimeError, match="algorithms: spin"):
        model.loss(model(batch), batch)


def test_pair_metrics_take_pair_batches_only_and_the_others_the_rest(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model: Any = HFSpinLM.from_model(tiny_model("llama"), tokenizer)
    model.pair_loss = PairLoss("logistic", 0.3)
    train, held_out = model.get_metrics(is_train=True), model.get_metrics(is_train=False)
    assert list(train) == [metric.__name__ for metric in PAIR_METRICS]
    assert "LanguagePerplexity" in held_out
    batch = pair_batch(2)
    outputs = model.eval_forward(batch)
    for metric in [*train.values(), *held_out.values()]:
        model.update_metric(batch, outputs, metric)
    assert float(train["SpinRewardReal"].compute()) == pytest.approx(
        0.3 * float(outputs["policy_logps"][:, 0].mean()), rel=1e-5
    )
    assert int(train["SpinMargin"].count) == 2
    sft = sft_batch()
    outputs = model.eval_forward(sft)
    model.update_metric(sft, outputs, train["SpinMargin"])
    assert int(train["SpinMargin"].count) == 2


def test_train_metrics_can_be_switched_off(folder: Path, tokenizer: Any) -> None:
    assert HFSpinLM(tokenizer, str(folder), use_train_metrics=False).get_metrics(True) == {}


def test_lora_by_the_yaml_trains_adapters_only(
    folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    model: Any = HFSpinLM(
        tokenizer, str(folder), peft_config={**LORA, "target_modules": ["c_attn"]}
    ).train()
    model.pair_loss = PairLoss("logistic", 0.3)
    batch = pair_batch(2)
    assert torch.equal(model.response_logps(batch), model.response_logps(batch))  # no dropout
    model.loss(model(batch), batch).backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained
    assert all("lora_" in name for name in trained | set(model.state_dict()))
    with pytest.raises(InputError, match="target_modules names lm_head, the output layer"):
        HFSpinLM(tokenizer, str(folder), peft_config={**LORA, "target_modules": ["lm_head"]})


def test_peft_model_in_memory_is_taken(tokenizer: PreTrainedTokenizerFast) -> None:
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    model = HFSpinLM.from_model(get_peft_model(tiny_model("llama"), config), tokenizer)
    assert model.using_peft
    assert model(pair_batch(1))["policy_logps"].requires_grad


def test_embeddings_resized_for_the_tokenizer_are_scored(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    tiny_model("llama", vocab_size=VOCAB - 20).save_pretrained(tmp_path)
    model = HFSpinLM(tokenizer, str(tmp_path), allow_embedding_resizing=True)
    head = model.model.get_output_embeddings()
    assert isinstance(head, ScoringHead)
    assert head.weight.shape[0] == VOCAB
    model.check_head(pair_batch(2))


class _Unread(dict):
    def values(self) -> Any:
        raise AssertionError("every model of transformers is imported")


def test_a_model_is_made_without_importing_the_others(
    folder: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modeling_auto, "MODEL_FOR_CAUSAL_LM_MAPPING", _Unread())
    assert HFSpinLM.from_model(tiny_model("llama"), tokenizer).shift_labels
    assert HFSpinLM(tokenizer, str(folder)).shift_labels
    with pytest.raises(AssertionError):  # a model of Composer's own finds out as ever
        HuggingFaceModel(tiny_model("llama"), tokenizer)


def test_composers_trainer_trains_on_pairs_and_logs_the_metrics(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model: Any = HFSpinLM.from_model(tiny_model("llama"), tokenizer)
    model.pair_loss = PairLoss("logistic", 1.0)
    batches = [pair_batch(2, seed=0)]
    batches[0]["opponent_logps"] = model.score(batches[0])
    log = InMemoryLogger()
    trainer = Trainer(
        model=model,
        train_dataloader=DataSpec(
            batches,
            split_batch=split_pairs,
            get_num_samples_in_batch=num_pairs,
            get_num_tokens_in_batch=num_tokens,
        ),
        optimizers=torch.optim.SGD(model.parameters(), lr=0.05),
        max_duration="6ba",
        device_train_microbatch_size=1,
        device="cpu",
        loggers=[log],
        progress_bar=False,
    )
    trainer.fit()
    losses = [float(x) for _, x in log.data["loss/train/total"]]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert losses[-1] < 0.5 * losses[0]
    accuracy = [float(x) for _, x in log.data["metrics/train/SpinAccuracy"]]
    assert accuracy[-1] == 1
    assert float(log.data["metrics/train/SpinMargin"][-1][1]) > 0.5
    trainer.close()


def test_batches_of_these_tests_are_those_of_the_collator() -> None:
    batch = pair_batch(3)
    sequences = sequences_of(batch)
    pairs = [
        Pair(*(x.int().numpy() for x in (prompt, real, generated)))
        for (prompt, real), (_, generated) in zip(sequences[::2], sequences[1::2], strict=True)
    ]
    made = collate_pairs(pairs)
    torch.testing.assert_close(made, batch, rtol=0, atol=0)
