"""Held-out rows are measured by the very ids that training plays on."""

from __future__ import annotations

import math
import pickle
from typing import Any

import pytest
import torch
from composer import Trainer
from composer.core import Evaluator
from torchmetrics.text import Perplexity

from spin_composer import HFSpinLM, MPTSpinLM, build_spin_evaluator
from spin_composer.data.held_out import IGNORED, METRICS, HeldOutRows
from spin_composer.data.loader import build_spin_dataloader, examples_of
from spin_composer.errors import InputError
from spin_composer.metrics import TokenScores
from spin_composer.model import head
from spin_composer.model.layout.attention import install_segment_attention
from spin_composer.model.layout.choose import LAYOUTS, unsupported_reason
from tests.data.rows import CHAT, PLAIN
from tests.fixtures import models, tokenizers

KINDS = {"plain": PLAIN, "chat": CHAT}
LENGTHS = [PLAIN[i % len(PLAIN)] | {"response": "She sold " * (1 + i) + "."} for i in range(7)]


def build(tokenizer, path, size=2, dataset=None, **loader):
    dataset = {"hf_name": str(path), "max_seq_len": 512, **(dataset or {})}
    return build_spin_evaluator(tokenizer, size, dataset, pin_memory=False, **loader).dataloader


@pytest.mark.parametrize("kind", KINDS)
def test_batches_hold_trainings_ids_and_ask_for_the_responses_only(any_tokenizer, kind, jsonl):
    path = jsonl(KINDS[kind])
    dataset = {"hf_name": str(path), "max_seq_len": 60, "max_prompt_len": 40}
    dataset |= {"truncate_prompt": "left"}
    trained = examples_of(build_spin_dataloader(any_tokenizer, 2, dataset, pin_memory=False))
    spec = build_spin_evaluator(any_tokenizer, 2, dataset, pin_memory=False).dataloader
    rows = iter(trained)
    for batch in spec.dataloader:
        *tensors, spans = batch.values()
        assert {(t.dtype, t.shape) for t in tensors} == {(torch.int64, batch["input_ids"].shape)}
        for ids, labels, mask in zip(*tensors, strict=True):
            row = next(rows)
            prompt, response = row.prompt.tolist(), row.response.tolist()
            length = len(prompt) + len(response)
            assert ids[:length].tolist() == prompt + response
            assert labels[:length].tolist() == [IGNORED] * len(prompt) + response
            assert set(labels[length:].tolist()) <= {IGNORED}
            assert spans.pop(0) == (len(prompt), length)
            assert mask.tolist() == [1] * length + [0] * (len(ids) - length)
    assert next(rows, None) is None, "the remainder batch too"


def test_tokens_are_counted_without_padding(gpt2, jsonl):
    spec = build(gpt2, jsonl(LENGTHS), size=7)
    rows = spec.dataloader.dataset.examples
    (batch,) = spec.dataloader
    assert spec.get_num_samples_in_batch(batch) == 7
    assert spec.get_num_tokens_in_batch(batch) == rows.lengths.sum()
    wanted = rows.lengths[:, 1].sum()
    assert spec.get_num_tokens_in_batch(batch, token_type="loss_generating") == wanted


def spin_lm(family: str, tokenizer: Any) -> Any:
    torch.manual_seed(0)
    if family == "mpt":
        if models.NO_MPT is not None:
            pytest.skip(models.NO_MPT)
        shape = models._MPT | {"vocab_size": len(tokenizer), "max_seq_len": 256}
        return MPTSpinLM(tokenizer, init_device="cpu", **shape)
    model = models.tiny_model(family, vocab_size=len(tokenizer), max_position_embeddings=256)
    return HFSpinLM.from_model(model, tokenizer)


@torch.no_grad()
def mean_nll(model: Any, rows: HeldOutRows) -> float:
    """Return the mean NLL of a response token, one unpadded row at a time."""
    total, count = 0.0, 0
    for row in (rows[i] for i in range(len(rows))):
        ids = torch.tensor([[*row.prompt, *row.response]], dtype=torch.int64)
        logps = model.eval()(input_ids=ids).logits.double().log_softmax(-1)[0, :-1]
        logps = logps.gather(1, ids[0, 1:, None])[len(row.prompt) - 1 :]
        total, count = total - float(logps.sum()), count + len(logps)
    return total / count


@pytest.mark.parametrize("family", ["llama", "mpt"])
def test_nll_is_the_mean_over_tokens_whatever_the_batches(family, jsonl):
    tokenizer = tokenizers.byte_level()
    model = spin_lm(family, tokenizer)
    found = []
    for size, micro in ((7, None), (3, None), (4, 1)):  # with a remainder of one row; of three
        spec = build(tokenizer, jsonl(LENGTHS), size)
        names = ["LanguageCrossEntropy"]
        evaluator = Evaluator(
            label="eval", dataloader=spec, metric_names=names, device_eval_microbatch_size=micro
        )
        trainer = Trainer(model=model, eval_dataloader=evaluator, progress_bar=False, device="cpu")
        trainer.eval()
        found.append(float(trainer.state.eval_metrics["eval"][names[0]].compute()))
        trainer.close()
    wanted = mean_nll(model.model, spec.dataloader.dataset)
    assert abs(wanted - math.log(len(tokenizer))) > 0.05, "not the loss of a uniform guess"
    assert found == pytest.approx([wanted] * 3, abs=1e-5)


def test_the_rows_cannot_be_played_and_go_to_workers(gpt2, jsonl):
    spec = build(gpt2, jsonl(PLAIN), num_workers=1)
    with pytest.raises(InputError, match=r"Set train_loader\.name: spin"):
        examples_of(spec)
    pickle.dumps((spec.dataloader.dataset, spec.dataloader.collate_fn))


def test_what_cannot_work_is_said_of_the_eval_loader(gpt2, jsonl):
    path = jsonl(PLAIN)
    with pytest.raises(InputError, match=r"eval_loader\.num_worker is .* 'num_workers'\?"):
        build(gpt2, path, num_worker=3)
    with pytest.raises(InputError, match=r"device_batch_size='auto' .*device_eval_batch_size"):
        build(gpt2, path, size="auto")
    with pytest.raises(InputError, match=r"eval_loader\.dataset must be a mapping .*, got None"):
        build_spin_evaluator(gpt2, 1)
    with pytest.raises(InputError, match=r"eval_loader\.dataset\.max_seq_len is not set"):
        build_spin_evaluator(gpt2, 1, {"hf_name": str(path)})
    with pytest.raises(InputError, match=r"drop_last=true leaves none of the 4 rows"):
        build(gpt2, path, size=5, drop_last=True)
    too_long = {"max_seq_len": 4, "on_bad_row": "skip"}
    with pytest.raises(InputError, match=r"eval_loader\.dataset: none of the 4 rows"):
        build(gpt2, path, dataset=too_long)


FAMILIES = ["llama", "llama_tied", "gemma2", "gpt2"]


def unpadded(model: Any, longest: int = 256) -> Any:
    install_segment_attention(model.model)
    model.layout, model.longest = LAYOUTS["shared"], longest
    return model


def learn_a_little(model: Any, batch: Any) -> None:
    """Train until some tokens are predicted, and others not."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(8):
        optimizer.zero_grad()
        model({k: v for k, v in batch.items() if k != "spans"}).loss.backward()
        optimizer.step()


@pytest.mark.parametrize("micro", [None, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_without_padding_the_metrics_are_the_padded_ones(family, micro, jsonl):
    tokenizer = tokenizers.byte_level()
    model = spin_lm(family, tokenizer)
    reason = unsupported_reason(model.model, longest=256)
    if reason is not None:  # of an older transformers
        pytest.skip(reason)
    rows = [row | {"prompt": row["prompt"] * (1 + i % 3)} for i, row in enumerate(LENGTHS)]
    spec = build(tokenizer, jsonl(rows), size=3)
    learn_a_little(model, next(iter(spec.dataloader)))
    scores = []
    for take in (lambda _: model, unpadded):
        evaluator = Evaluator(
            label="eval", dataloader=spec, metric_names=list(METRICS),
            device_eval_microbatch_size=micro,
        )  # fmt: skip
        trainer = Trainer(
            model=take(model), eval_dataloader=evaluator, progress_bar=False, device="cpu"
        )
        trainer.eval()
        found = trainer.state.eval_metrics["eval"]
        scores.append([float(found[name].compute()) for name in METRICS])
        trainer.close()
    padded, ours = scores
    assert ours == pytest.approx(padded, rel=1e-6)
    assert 0 < ours[METRICS.index("TokenAccuracy")] < 1


def held_out_batch(tokenizer: Any, jsonl: Any) -> dict[str, Any]:
    return next(iter(build(tokenizer, jsonl(LENGTHS), size=7).dataloader))


def test_no_more_than_a_chunk_of_logits_is_made(jsonl, monkeypatch):
    tokenizer = tokenizers.byte_level()
    model = unpadded(spin_lm("llama", tokenizer)).eval()
    batch = held_out_batch(tokenizer, jsonl)
    whole = model.eval_forward(batch)
    monkeypatch.setattr(head, "_LOGITS", 3 * len(tokenizer))
    rows, linear = [], torch.nn.functional.linear

    def counting(x: Any, weight: Any, bias: Any = None) -> Any:
        if weight is model.model.get_output_embeddings().weight:
            rows.append(len(x))
        return linear(x, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", counting)
    parts = model.eval_forward(batch)
    assert max(rows) == 3
    assert sum(rows) == len(whole.logps)
    torch.testing.assert_close(parts.logps, whole.logps, atol=1e-6, rtol=1e-6)
    assert torch.equal(parts.hits, whole.hits)


def test_what_was_not_tried_without_padding_is_padded(jsonl):
    tokenizer = tokenizers.byte_level()
    model = spin_lm("llama", tokenizer).eval()
    batch = held_out_batch(tokenizer, jsonl)
    longest = max(end for _, end in batch["spans"])

    def answer(model: Any, **changes: Any) -> Any:
        return model.eval_forward({**batch, "labels": batch["labels"].clone(), **changes})

    assert isinstance(answer(model), torch.Tensor), "the layout is padded"
    assert isinstance(answer(unpadded(model, longest - 1)), torch.Tensor), "longer than any tried"
    assert isinstance(answer(unpadded(model, longest)), TokenScores)
    model.val_metrics["Perplexity"] = Perplexity()
    assert isinstance(answer(model), torch.Tensor), "a metric that wants logits"
    del model.val_metrics["Perplexity"]
    others = {k: v.clone() for k, v in batch.items() if k != "spans"}
    assert isinstance(model.eval_forward(others), torch.Tensor), "batches of another loader"
