"""What a run writes at its end is tried at its start, and read back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from fixtures import models, tokenizers
from fixtures.runs import tiny_trainer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from spin_composer import HFSpinLM, HuggingFaceExporter
from spin_composer.errors import InputError
from spin_composer.pretrained.dry_run import dry_run_export, dry_run_metadata, dry_run_tokenizer

CONFIG = models.tiny_model("llama").config


def exporter(folder: Path) -> HuggingFaceExporter:
    return HuggingFaceExporter(str(folder))


@pytest.mark.parametrize("name", tokenizers.ALL)
def test_a_tokenizer_that_comes_back_as_it_was_passes(name):
    dry_run_tokenizer(tokenizers.ALL[name](), CONFIG)


@pytest.mark.parametrize("family", models.FAMILIES)
def test_models_that_can_be_exported_pass_and_are_left_as_they_are(family, tmp_path):
    model = models.tiny_model(family)
    before = (model.config.to_dict(), model.generation_config.to_dict())
    ids = [id(parameter) for parameter in model.parameters()]
    dry_run_export(model, exporter(tmp_path).exported_config)
    assert (model.config.to_dict(), model.generation_config.to_dict()) == before
    assert ids == [id(parameter) for parameter in model.parameters()]


@pytest.mark.skipif(
    int(transformers.__version__.split(".")[0]) >= 5,
    reason="transformers 5 leaves that file out of what it saves",
)
def test_a_file_that_sentencepiece_cannot_read_is_named_with_the_remedy(tmp_path):
    tokenizers.byte_level().save_pretrained(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    given = json.loads(config.read_text()) | {"tokenizer_class": "LlamaTokenizerFast"}
    config.write_text(json.dumps(given))
    dry_run_tokenizer(AutoTokenizer.from_pretrained(tmp_path), CONFIG)
    (tmp_path / "tokenizer.model").write_bytes(b"GGUF\x03\x00")
    with pytest.raises(InputError) as caught:
        dry_run_tokenizer(AutoTokenizer.from_pretrained(tmp_path), CONFIG)
    message = str(caught.value)
    assert "\n" not in message
    assert str(tmp_path) in message
    assert "so the first checkpoint would fail" in message
    assert "remove the file tokenizer.model beside it" in message


class Forgetful(PreTrainedTokenizerFast):
    """A tokenizer with a state that its files do not hold."""

    lower = False

    def __call__(self, text: Any, *args: Any, **kwargs: Any) -> Any:
        return super().__call__(text.lower() if self.lower else text, *args, **kwargs)


class Templateless(PreTrainedTokenizerFast):
    def save_pretrained(self, *args: Any, **kwargs: Any) -> Any:
        kept, self.chat_template = self.chat_template, None
        try:
            return super().save_pretrained(*args, **kwargs)
        finally:
            self.chat_template = kept


def test_a_tokenizer_that_comes_back_as_another_is_refused_with_both_ids():
    inner = tokenizers.chatml()
    tokenizer = Forgetful(tokenizer_object=inner._tokenizer, eos_token="<|endoftext|>")
    dry_run_tokenizer(tokenizer, CONFIG)
    tokenizer.lower = True
    with pytest.raises(InputError, match=r"makes other ids of 'The cat .*: \['T.* not \['t"):
        dry_run_tokenizer(tokenizer, CONFIG)


def test_a_chat_template_that_is_not_saved_is_refused():
    inner = tokenizers.chatml()
    tokenizer = Templateless(tokenizer_object=inner._tokenizer, eos_token="<|endoftext|>")
    tokenizer.chat_template = tokenizers.CHATML
    with pytest.raises(InputError, match="its chat template is not in an export's files"):
        dry_run_tokenizer(tokenizer, CONFIG)


def test_checkpoint_metadata_of_a_spin_model_passes():
    model = models.tiny_model("llama", vocab_size=384)
    dry_run_metadata(HFSpinLM.from_model(model, tokenizers.chatml()))


def test_tensors_that_share_memory_unknown_to_the_model_are_refused_as_the_export_would_be(
    tmp_path, monkeypatch
):
    model = models.tiny_model("llama", vocab_size=384)
    layers = model.model.layers
    layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
    with pytest.raises(InputError, match="a LlamaForCausalLM cannot be exported, so the first"):
        dry_run_export(model, exporter(tmp_path).exported_config)
    monkeypatch.setattr("spin_composer.algorithm.dry_run_outputs", lambda *_: None)
    callbacks = [exporter(tmp_path / "hf")]
    trainer = tiny_trainer(tmp_path, model, callbacks=callbacks, max_duration="1iter")
    with pytest.raises(RuntimeError, match="contained shared tensors"):
        trainer.fit()


def test_a_run_whose_export_would_fail_stops_when_the_trainer_is_made(tmp_path):
    model = models.tiny_model("llama", vocab_size=384)
    model.generation_config.do_sample, model.generation_config.temperature = False, 0.6
    spin = HFSpinLM.from_model(model, tokenizers.byte_level())
    trainer = tiny_trainer(tmp_path / "without", spin)  # nothing is exported
    assert torch.is_grad_enabled()
    trainer.close()
    with pytest.raises(InputError, match=r"LlamaForCausalLM: its generation_config\.json cannot"):
        tiny_trainer(tmp_path / "with", spin, callbacks=[exporter(tmp_path / "hf")])
    assert not (tmp_path / "with/self-play").exists()
    assert not (tmp_path / "hf").exists()
