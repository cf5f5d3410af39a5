"""Model cards of exports: what they say, and that a user's own is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fixtures import models, tokenizers
from fixtures.runs import tiny_trainer
from fixtures.s3 import BUCKET, s3_server
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig

from spin_composer import HuggingFaceExporter
from spin_composer.export.card import CARD, is_own_card, keep_card, neutral_generation_config

VOCAB = len(tokenizers.byte_level())


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    trainer = tiny_trainer(folder, callbacks=[HuggingFaceExporter(str(folder / "hf"))])
    trainer.fit()
    return folder


def test_a_card_says_what_was_trained_on_what_and_how(exported: Path):
    card = (exported / "hf/iter1" / CARD).read_text()
    assert is_own_card(card)
    assert "# tiny, iteration 1" in card
    assert "2 of 2, 2 epochs" in card
    assert f"{exported}/rows.jsonl, 24 rows" in card
    assert "- `beta`: [0.5]" in card
    assert "- `generation.max_new_tokens`: 12" in card
    assert "torch " in card
    assert "License" in card
    assert "\nlicense:" not in card


def test_a_card_has_the_figures_of_the_iterations_so_far(exported: Path):
    rows = {
        name: [line for line in (exported / f"hf/{name}" / CARD).read_text().splitlines()
               if line.startswith(("| 0 |", "| 1 |"))]
        for name in ("iter0", "iter1")
    }  # fmt: skip
    history = json.loads((exported / "self-play/iterations.json").read_text())["iterations"]
    assert len(rows["iter0"]) == 1
    assert len(rows["iter1"]) == len(history) == 2
    accuracy = history[1]["train/SpinAccuracy"]
    assert f"{accuracy:.3f}" in rows["iter1"][1]


def test_what_a_card_says_of_loading_works(exported: Path, tmp_path: Path):
    card = (exported / "hf/iter1" / CARD).read_text()
    code = card.split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code.replace("this folder", str(exported / "hf/iter1")), names)
    assert names["tokenizer"]("one")["input_ids"]
    assert names["model"].config.vocab_size == VOCAB


def test_texts_end_at_the_stop_token_and_are_the_models_own(exported: Path):
    config = GenerationConfig.from_pretrained(exported / "hf/iter1")
    assert config.do_sample
    assert (config.temperature or 1.0, config.top_p or 1.0, config.top_k) == (1.0, 1.0, 0)
    assert config.eos_token_id == tokenizers.byte_level().eos_token_id
    assert neutral_generation_config(7, 2, None).eos_token_id == [7, 2]
    assert neutral_generation_config(7, 7, 0).pad_token_id == 0


def test_adapters_have_a_card_that_loads_them(tmp_path: Path):
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(models.tiny_model("llama", vocab_size=VOCAB), lora)
    exporter = HuggingFaceExporter(str(tmp_path / "hf"))
    tiny_trainer(tmp_path, model, max_duration="1iter", callbacks=[exporter]).fit()
    card = (tmp_path / "hf/iter0" / CARD).read_text()
    assert card.startswith("---\nlibrary_name: peft\n")
    assert "PeftModel.from_pretrained" in card


@pytest.mark.parametrize("change", ["# Mine\n", "license: mit\n", ""])
def test_a_card_that_its_user_changed_is_kept(exported: Path, tmp_path: Path, change: str):
    ours = (exported / "hf/iter1" / CARD).read_text()
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
    (new / CARD).write_text("a new card")
    (old / CARD).write_text(ours.replace("# tiny", "# older") + change if change else ours)
    keep_card(old, new)
    kept = (new / CARD).read_text()
    assert kept == ((old / CARD).read_text() if change else "a new card")


def test_a_license_that_its_user_wrote_at_the_top_is_kept(exported: Path, tmp_path: Path):
    ours = (exported / "hf/iter1" / CARD).read_text()
    (tmp_path / CARD).write_text(ours.replace("---\n", "---\nlicense: mit\n", 1))
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / CARD).write_text("a new card")
    keep_card(tmp_path, tmp_path / "new")
    assert "license: mit" in (tmp_path / "new" / CARD).read_text()


@pytest.mark.slow
def test_a_changed_card_in_an_object_store_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        server.client().put_object(Bucket=BUCKET, Key="hf/iter0/README.md", Body=b"# Mine")
        exporter = HuggingFaceExporter(f"s3://{BUCKET}/hf")
        trainer = tiny_trainer(tmp_path, max_duration="2iter", callbacks=[exporter])
        trainer.fit()
        trainer.close()
        cards = [server.read(f"hf/iter{k}/README.md") for k in (0, 1)]
    assert cards[0] == b"# Mine"
    assert b"# tiny, iteration 1" in cards[1]
