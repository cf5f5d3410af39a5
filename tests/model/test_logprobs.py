"""The scoring head on every family of models: exact, invariant to the batch, and invisible else."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from spin_composer.errors import InputError
from spin_composer.model.dropout import disable_dropout
from spin_composer.model.head import find_head, install_head
from spin_composer.model.logit_transforms import LOGIT_TRANSFORMS
from spin_composer.model.logprobs import check_head, response_logps, sequence_sums
from tests.fixtures.models import (
    FAMILIES,
    MAX_TOKENS,
    VOCAB,
    batch_of,
    padded_inputs,
    pair_batch,
    sequences_of,
    tiny_model,
)


def scored_model(family: str, **overrides: Any) -> Any:
    model = tiny_model(family, **overrides)
    install_head(model)
    return model


def own_logps(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Return the log-softmax of the model's own full logits at the scored rows."""
    inputs, rows = padded_inputs(batch)
    logps = model(**inputs).logits.flatten(0, 1)[rows].log_softmax(-1)
    return logps.gather(1, batch["targets"][:, None])[:, 0]


def relative(a: list[Tensor], b: list[Tensor]) -> float:
    return max(float((x - y).norm() / y.norm().clamp_min(1e-6)) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_head_equals_log_softmax_of_the_models_own_logits(family: str) -> None:
    plain = tiny_model(family)
    keys = list(plain.state_dict())
    before = own_logps(plain, pair_batch(3))
    model = scored_model(family)
    assert list(model.state_dict()) == keys
    logps = response_logps(model, pair_batch(3))
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps, before, atol=1e-5, rtol=0)
    # and the model's own logits are what they were, after a request as before it
    assert torch.equal(own_logps(model, pair_batch(3)), before)
    check_head(model, pair_batch(1, seed=4))


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_equals_autograd_through_the_full_logits(family: str) -> None:
    model, batch = scored_model(family), pair_batch(3, seed=1)
    weights = torch.linspace(-1, 1, len(batch["targets"]))
    leaves = [p for p in model.parameters() if p.requires_grad]
    ours = torch.autograd.grad((response_logps(model, batch) * weights).sum(), leaves)
    theirs = torch.autograd.grad((own_logps(model, batch) * weights).sum(), leaves)
    assert relative(list(ours), list(theirs)) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_logps_do_not_depend_on_the_batch(family: str) -> None:
    model, batch = scored_model(family), pair_batch(4, seed=2)
    together = response_logps(model, batch)
    sequences = sequences_of(batch)
    alone = torch.cat([response_logps(model, batch_of([s])) for s in sequences])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    reverse = response_logps(model, batch_of(sequences[::-1]))
    parts = reverse.split([len(response) for _, response in sequences[::-1]])[::-1]
    torch.testing.assert_close(together, torch.cat(parts), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mpt", "mpt_untied"])
def test_generate_is_untouched(family: str) -> None:
    prompt = torch.tensor([[5, 6, 7], [8, 9, 10]])
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(prompt)
    plain = tiny_model(family).eval().generate(prompt, attention_mask=mask, **options)
    model = scored_model(family).eval()
    response_logps(model, pair_batch(1))
    assert torch.equal(model.generate(prompt, attention_mask=mask, **options), plain)


# A value of each kind of step that is far from 1: one left out, or taken twice, is seen.
STRONG = {"softcap": 2.0, "scale": 0.25, "divisor": 4.0}
MOE = {"num_local_experts": 2, "num_experts_per_tok": 1, "shared_intermediate_size": 16}
OF_TYPE: dict[str, dict[str, Any]] = {
    "gemma3n_text": {
        "num_kv_shared_layers": 0, "vocab_size_per_layer_input": VOCAB, "laurel_rank": 4,
        "hidden_size_per_layer_input": 8, "activation_sparsity_pattern": [0.0, 0.0],
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "granitemoehybrid": {
        "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8,
        "layer_types": ["attention", "attention"],
    },
}  # fmt: skip


def transformed_model(model_type: str) -> Any:
    """Return a tiny model of a type of the table that takes all of its steps."""
    if model_type == "mpt":  # llm-foundry's, which transformers' config of that name is not
        return tiny_model("mpt_scaled")
    numbers = {step.attribute: STRONG[step.kind] for step in LOGIT_TRANSFORMS[model_type]}
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8,
             "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
             "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2,
             "use_cache": False, "max_position_embeddings": MAX_TOKENS}  # fmt: skip
    more = OF_TYPE.get(model_type, {})
    config = AutoConfig.for_model(model_type, **sizes, **MOE, **numbers, **more)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return model.train()


@pytest.mark.parametrize("model_type", [t for t in LOGIT_TRANSFORMS if t in CONFIG_MAPPING])
def test_every_type_of_the_table_takes_its_steps_once(model_type: str) -> None:
    model = transformed_model(model_type)
    install_head(model)
    check_head(model, pair_batch(2))
    head = find_head(model)
    assert [step.value for step in head._transforms if step.value is not None]
    head._transforms = []  # the step is strong enough for the check to mean it
    with pytest.raises(RuntimeError, match=r"differ from the model's own by"):
        check_head(model, pair_batch(2))


class DoubledLlama(LlamaForCausalLM):
    """A model with a step after its output layer that nobody told us about."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 2
        return output


class SlicedLlama(LlamaForCausalLM):
    """A model that shows its output layer the last position only."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **{**kwargs, "logits_to_keep": 1})


def test_unknown_step_after_the_head_is_refused_by_name() -> None:
    model = scored_model("llama")
    model.__class__ = DoubledLlama
    with pytest.raises(RuntimeError, match=r"DoubledLlama: the head's log-probs differ"):
        check_head(model, pair_batch(2))


def test_model_that_drops_positions_is_refused() -> None:
    model = scored_model("llama")
    model.__class__ = SlicedLlama
    with pytest.raises(RuntimeError, match="drops positions before its output layer"):
        response_logps(model, pair_batch(1))


@pytest.mark.parametrize("family", ["gemma2", "granite", "cohere", "mpt_scaled"])
def test_error_while_scoring_leaves_the_model_as_it_was(family: str) -> None:
    model, batch = scored_model(family), pair_batch(2)
    before = own_logps(model, batch)
    wrong = {**batch, "targets": batch["targets"] + VOCAB}
    with pytest.raises(ValueError, match="targets"):
        response_logps(model, wrong)
    assert torch.equal(own_logps(model, batch), before)


def test_model_without_head_says_what_to_call() -> None:
    with pytest.raises(RuntimeError, match=r"Call install_head\(model\)"):
        response_logps(tiny_model("llama"), pair_batch(1))


def test_second_install_changes_nothing() -> None:
    model = scored_model("llama")
    kind = type(model.lm_head)
    install_head(model)
    assert type(model.lm_head) is kind


def test_unknown_output_layer_is_refused_by_name() -> None:
    class Odd(nn.Linear):
        pass

    model = tiny_model("llama")
    model.lm_head.__class__ = Odd
    with pytest.raises(InputError, match="output layer of LlamaForCausalLM is a Odd"):
        install_head(model)


def lora(model: Any, **settings: Any) -> Any:
    names = {"target_modules": ["q_proj", "v_proj"], **settings}
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=8, **names))


def test_lora_model_is_scored_and_only_adapters_get_gradients() -> None:
    model = lora(tiny_model("llama"), init_lora_weights=False)
    keys = list(model.state_dict())
    install_head(model)
    assert list(model.state_dict()) == keys
    batch = pair_batch(2)
    logps = response_logps(model, batch)
    torch.testing.assert_close(logps, own_logps(model, batch), atol=1e-5, rtol=0)
    logps.sum().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained
    assert all("lora_" in name for name in trained)


def test_lora_on_the_output_layer_is_refused_by_name() -> None:
    model = lora(tiny_model("llama"), target_modules=["q_proj", "lm_head"])
    with pytest.raises(InputError, match="target_modules names lm_head, the output layer"):
        install_head(model)


def test_fully_trained_output_layer_beside_lora_is_scored() -> None:
    model = lora(tiny_model("llama"), modules_to_save=["lm_head"])
    install_head(model)
    batch = pair_batch(2)
    torch.testing.assert_close(
        response_logps(model, batch), own_logps(model, batch), atol=1e-5, rtol=0
    )
    check_head(model, batch)


def test_fp64_model_is_scored_in_fp64() -> None:
    model, batch = scored_model("llama").double(), pair_batch(2)
    logps = response_logps(model, batch)
    assert logps.dtype == torch.float64
    torch.testing.assert_close(logps, own_logps(model, batch), atol=1e-12, rtol=0)


@pytest.mark.parametrize("family", ["llama", "gemma2", "mpt"])
def test_bf16_autocast_gives_fp32_logps_near_the_models_own(family: str) -> None:
    model, batch = scored_model(family), pair_batch(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logps = response_logps(model, batch)
        check_head(model, batch)
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps, response_logps(model, batch), atol=0.2, rtol=0)
    logps.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    batch, grads = pair_batch(2), []
    for checkpointing in (False, True):
        model = scored_model("llama")
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        response_logps(model, batch).sum().backward()
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


class WidestRows(TorchDispatchMode):
    """Counts the rows of the largest tensor over the vocabulary that any operation makes."""

    rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, tuple) else (out,):
            # at least V wide: the kernels pad the vocabulary, and nothing else is as wide
            if isinstance(made, Tensor) and made.dim() > 1 and made.shape[-1] >= VOCAB:
                self.rows = max(self.rows, made.numel() // made.shape[-1])
        return out


def test_only_scored_rows_reach_the_vocabulary() -> None:
    model = scored_model("llama")
    prompt, response = torch.arange(3, 30), torch.tensor([3, 4])
    batch = batch_of([(prompt, response), (prompt, response[:1])])
    with WidestRows() as seen:
        response_logps(model, batch)
    assert seen.rows == 3  # of 58: the logits that are kept for backward
    with WidestRows() as full:
        own_logps(model, batch)
    assert full.rows == 58


def test_padding_keeps_tokens_and_places() -> None:
    sequences = [(torch.tensor([5, 6]), torch.tensor([7])), (torch.tensor([8]), torch.arange(3, 7))]
    inputs, rows = padded_inputs(batch_of(sequences))
    assert inputs["input_ids"].tolist() == [[5, 6, 7, 0, 0], [8, 3, 4, 5, 6]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert rows.tolist() == [1, 5, 6, 7, 8]  # each predicts the token after it


def test_sequence_sums_are_exact_and_zero_for_an_empty_sequence() -> None:
    logps = -torch.rand(1000, generator=torch.Generator().manual_seed(0))
    cu = torch.tensor([0, 0, 700, 701, 1000, 1000], dtype=torch.int32)
    logps.requires_grad_()
    sums = sequence_sums(logps, cu)
    exact = [logps[a:b].double().sum().float() for a, b in pairwise(cu)]
    assert torch.equal(sums, torch.stack(exact))
    assert sums[0] == sums[-1] == 0
    (grad,) = torch.autograd.grad((sums * torch.arange(5.0)).sum(), logps)
    assert grad.unique(return_counts=True)[1].tolist() == [700, 1, 299]
    assert sequence_sums(torch.zeros(0), torch.zeros(3, dtype=torch.int32)).tolist() == [0, 0]


DROPOUTS = [
    ("gpt2", {"attn_pdrop": 0.1, "resid_pdrop": 0.1, "embd_pdrop": 0.1}),
    ("llama", {"attention_dropout": 0.1}),
    ("mpt", {"attn_config": {"attn_impl": "torch", "attn_pdrop": 0.1}, "resid_pdrop": 0.1}),
    ("mpt", {"emb_pdrop": 0.1}),
]


@pytest.mark.parametrize(("family", "settings"), DROPOUTS)
def test_without_dropout_train_mode_equals_eval_mode(family: str, settings: dict) -> None:
    model, batch = scored_model(family, **settings), pair_batch(3)
    assert not torch.equal(response_logps(model, batch), response_logps(model, batch))
    assert disable_dropout(model) > 0
    assert model.training
    first = response_logps(model, batch)
    assert torch.equal(response_logps(model, batch), first)
    torch.testing.assert_close(response_logps(model.eval(), batch), first, atol=1e-6, rtol=0)
    assert disable_dropout(model) == 0


def test_dropout_of_lora_is_switched_off() -> None:
    model = lora(tiny_model("llama"), lora_dropout=0.2, init_lora_weights=False).train()
    install_head(model)
    batch = pair_batch(2)
    assert not torch.equal(response_logps(model, batch), response_logps(model, batch))
    disable_dropout(model)
    assert torch.equal(response_logps(model, batch), response_logps(model, batch))


def test_dropout_read_from_the_config_and_router_jitter_are_switched_off() -> None:
    class Router(nn.Module):
        def __init__(self, config: Any) -> None:
            super().__init__()
            self.config, self.jitter_noise = config, 0.1

    config = tiny_model("llama").config
    config.hidden_dropout = 0.1  # as Falcon has it
    router = Router(config)
    assert disable_dropout(router) == 2
    assert config.hidden_dropout == router.jitter_noise == 0.0
