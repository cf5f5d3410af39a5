"""Our model is what llm-foundry's hf_causal_lm makes: weights, metrics, wrapping, and a YAML's."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torchmetrics import MeanMetric

from spin_composer.errors import InputError
from spin_composer.metrics import PairMetric, SpinMargin, TokenAccuracy
from spin_composer.model.lm import HFSpinLM
from spin_composer.model.wrapping import prepare_for_fsdp
from tests.fixtures import models
from tests.fixtures.lm import evaluated, sft_batch, word_tokenizer
from tests.fixtures.yaml_run import tiny_config

pytest.importorskip("llmfoundry")
loads_4 = pytest.mark.skipif(
    int(transformers.__version__.split(".")[0]) >= 5,
    reason="llm-foundry's hf_causal_lm does not load models with transformers 5",
)
LORA = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("gpt2")
    models.tiny_model("gpt2", attn_pdrop=0.1).save_pretrained(path)
    return str(path)


def both(folder: str, **settings: Any) -> tuple[Any, Any]:
    """Return our model and llm-foundry's, of the same seed."""
    from llmfoundry.models.hf import ComposerHFCausalLM

    made: list[Any] = []
    for kind in (HFSpinLM, ComposerHFCausalLM):
        torch.manual_seed(5)
        made.append(kind(word_tokenizer(), folder, trust_remote_code=False, **settings))
    return made[0], made[1]


@loads_4
def test_sft_batches_get_the_same_loss_and_metrics(folder: str) -> None:
    ours, plain = both(folder)
    figures = evaluated(ours, sft_batch())
    assert figures["LanguageCrossEntropy"] > 1
    assert figures == evaluated(plain, sft_batch())
    batch = sft_batch()
    assert torch.equal(ours.loss(ours(batch), batch), plain.loss(plain(batch), batch))


@loads_4
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"pretrained": False},
        {"pretrained": False, "init_device": "mixed", "config_overrides": {"n_layer": 1}},
        {"peft_config": {**LORA, "target_modules": ["c_attn"]}},
        {"peft_config": LORA, "should_save_peft_only": False},
        {"config_overrides": {"initializer_range": 0.5}, "pretrained": False},
    ],
    ids=str,
)
def test_weights_keys_and_config_are_the_same_bit_for_bit(
    settings: dict[str, Any], folder: str
) -> None:
    ours, plain = both(folder, **settings)
    torch.testing.assert_close(ours.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert list(ours.state_dict()) == list(plain.state_dict())
    mine, theirs = (
        {k: v for k, v in m.model.config.to_dict().items() if "drop" not in k}
        for m in (ours, plain)
    )
    assert mine == theirs
    mine, theirs = (m.model.generation_config.to_dict() for m in (ours, plain))
    assert mine == theirs


def decisions(model: Any) -> dict[str, bool]:
    """Return what Composer wraps of a model, by module."""
    wrap = model.fsdp_wrap_fn
    return {
        name: bool(getattr(module, "_fsdp_wrap", wrap(module)))
        for name, module in list(model.named_modules())[1:]
    }


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("family", models.FAMILIES)
def test_fsdp_wraps_the_same_modules(family: str, lora: bool) -> None:
    from llmfoundry.models.hf.hf_fsdp import prepare_hf_model_for_fsdp
    from peft import LoraConfig, get_peft_model

    made: list[dict[str, bool]] = []
    checkpointed: list[list[str]] = []
    for prepare in (prepare_for_fsdp, lambda model: prepare_hf_model_for_fsdp(model, "cpu")):
        model: Any = models.tiny_model(family)
        if lora:
            target = ["Wqkv"] if "mpt" in family else "all-linear"
            config = LoraConfig(r=2, target_modules=target, task_type="CAUSAL_LM")
            model = get_peft_model(model, config)
        prepare(model)
        made.append(decisions(model))
        checkpoints = model.activation_checkpointing_fn
        checkpointed.append([name for name, m in model.named_modules() if checkpoints(m)])
    assert made[0] == made[1]
    assert any(made[0].values())
    assert checkpointed[0] == checkpointed[1]


def test_token_accuracy_has_llm_foundrys_name_and_value() -> None:
    from llmfoundry.metrics import TokenAccuracy as Theirs

    assert TokenAccuracy.__name__ == Theirs.__name__
    ours, theirs = TokenAccuracy(), Theirs()
    for seed in range(3):
        rng = torch.Generator().manual_seed(seed)
        logits = torch.randn(4, 7, 5, generator=rng)
        labels = torch.randint(-1, 5, (4, 7), generator=rng)
        labels[labels < 0] = -100
        ours.update(logits, labels)
        theirs.update(logits, labels)
    assert torch.equal(ours.compute(), theirs.compute())


def test_metrics_are_added_by_their_registered_names(folder: str) -> None:
    model = HFSpinLM(
        word_tokenizer(),
        folder,
        additional_eval_metrics=["masked_accuracy", MeanMetric()],
        additional_train_metrics=["spin_margin"],
    )
    assert list(model.get_metrics(is_train=False))[3:] == ["MaskedAccuracy", "MeanMetric"]
    assert all(isinstance(m, PairMetric) for m in model.get_metrics(is_train=True).values())
    assert SpinMargin.__name__ in model.get_metrics(is_train=True)
    with pytest.raises(InputError, match="TokenAccuracy takes no pairs"):
        HFSpinLM(word_tokenizer(), folder, additional_train_metrics=["token_accuracy"])
    with pytest.raises(InputError, match="additional_eval_metrics=maskd_accuracy is not regis"):
        HFSpinLM(word_tokenizer(), folder, additional_eval_metrics=["maskd_accuracy"])


def test_a_yaml_with_tasks_of_in_context_learning_has_their_metrics(tmp_path: Path) -> None:
    from spin_composer.foundry.plugin import transform
    from spin_composer.model.metrics import held_out_metrics

    config = tiny_config(tmp_path)
    plain = transform(copy.deepcopy(config))
    config["model"]["additional_eval_metrics"] = ["masked_accuracy"]
    names = transform(copy.deepcopy(config))["model"]["additional_eval_metrics"]
    assert names == ["masked_accuracy"]
    tasks = transform({**config, "icl_tasks": [{"label": "x"}]})
    names = tasks["model"]["additional_eval_metrics"]
    assert names[0] == "masked_accuracy"
    classes = [type(metric).__name__ for metric in held_out_metrics(names)]
    assert "InContextLearningLMAccuracy" in classes
    assert len(set(classes)) == len(classes)
    assert "additional_eval_metrics" not in plain["model"]
