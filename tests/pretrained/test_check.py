"""What the tokenizer and the rows must fit is checked before the model's weights are read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from fixtures import models, tokenizers
from fixtures.runs import tiny_trainer, write_rows
from fixtures.yaml_run import iteration_records, save_model, tiny_config, write_config
from typer.testing import CliRunner

from spin_composer import HFSpinLM, build_spin_dataloader
from spin_composer.cli import app
from spin_composer.errors import InputError
from spin_composer.pretrained.limits import ModelLimits
from spin_composer.pretrained.tokenizer_limits import check_tokenizer
from spin_composer.train import main


def test_ids_that_the_embedding_lacks_are_named():
    tokenizer = tokenizers.byte_level()
    size = len(tokenizer)
    check_tokenizer(tokenizer, ModelLimits(vocabulary_size=size), may_resize=False)
    check_tokenizer(
        tokenizer, ModelLimits(vocabulary_size=2 * size, pad_token_id=size), may_resize=False
    )
    check_tokenizer(tokenizer, ModelLimits(vocabulary_size=size - 1), may_resize=True)
    with pytest.raises(InputError, match="it has 1 tokens beside special ones"):
        check_tokenizer(tokenizers.of_letters("a"), ModelLimits(), may_resize=False)
    check_tokenizer(tokenizers.of_letters("ab"), ModelLimits(), may_resize=False)
    with pytest.raises(InputError, match=f"it has {size} tokens, and the model's embedding 9"):
        check_tokenizer(tokenizer, ModelLimits(vocabulary_size=9), may_resize=False)
    with pytest.raises(InputError, match=f"pad_token_id={size} and an embedding of {size}"):
        check_tokenizer(
            tokenizer, ModelLimits(vocabulary_size=size, pad_token_id=size), may_resize=False
        )


def test_a_model_in_memory_refuses_a_tokenizer_that_does_not_fit_it(tmp_path: Path):
    tokenizer = tokenizers.byte_level()
    small = models.tiny_model("llama", vocab_size=100)
    small.save_pretrained(tmp_path)
    for make in (
        lambda: HFSpinLM.from_model(small, tokenizer),
        lambda: HFSpinLM(tokenizer, str(tmp_path)),
    ):
        with pytest.raises(InputError, match=r"the model's embedding 100\. Give the model's own"):
            make()
    HFSpinLM(tokenizer, str(tmp_path), allow_embedding_resizing=True)


def test_an_empty_tokenizer_is_named_before_any_row_of_the_data(tmp_path: Path):
    rows = write_rows(tmp_path / "rows.jsonl")
    tokenizer = tokenizers.of_letters("")
    tokenizer.name_or_path = "a/folder"
    with pytest.raises(InputError, match=r"^tokenizer='a/folder': it has 0 tokens beside special"):
        build_spin_dataloader(tokenizer, 4, {"hf_name": str(rows), "split": "train"})


# --- by YAML, with a model folder that has no weights ----------------------------------------


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    """A GPT-2's folder without its weights: reading them would be another error."""
    folder = save_model(tmp_path_factory.mktemp("gpt2"), "gpt2", n_positions=48)
    (folder / "model.safetensors").unlink()
    return folder


def few_positions(folder: Path) -> None:
    edit(folder / "config.json", n_positions=24)


def small_vocabulary(folder: Path) -> None:
    edit(folder / "config.json", vocab_size=100)


def sampling_without_sampling(folder: Path) -> None:
    edit(folder / "generation_config.json", do_sample=False, temperature=0.6)


def broken_sentencepiece(folder: Path) -> None:
    """As a tokenizer read from a GGUF leaves it: transformers copies the file, nobody reads it."""
    edit(folder / "config.json", vocab_size=400)
    edit(folder / "tokenizer_config.json", tokenizer_class="LlamaTokenizerFast")
    (folder / "tokenizer.model").write_bytes(b"GGUF\x03\x00\x00\x00 no sentencepiece model")


def no_config(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


def no_vocabulary(folder: Path) -> None:
    for name in ("tokenizer.json", "vocab.json", "merges.txt"):
        (folder / name).unlink(missing_ok=True)
    edit(folder / "tokenizer_config.json", tokenizer_class="GPT2Tokenizer")


def no_eos(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", eos_token=None)
    for path in folder.glob("special_tokens_map.json"):  # transformers 5 writes none
        edit(path, eos_token=None)


def as_it_is(folder: Path) -> None:
    del folder


CASES: dict[str, tuple[Callable[[Path], None], list[str], list[str]]] = {
    "rows longer than the positions": (
        few_positions, ["eval_loader.dataset.max_seq_len=24"],
        ["more than the model's 24 positions. Lower train_loader.dataset.max_seq_len",
         "algorithms.spin.generation.max_new_tokens=12 after the longest prompt ("],
    ),
    "responses longer than the positions": (
        as_it_is, ["algorithms.spin.generation.max_new_tokens=40"],
        ["algorithms.spin.generation.max_new_tokens=40 after the longest prompt ("],
    ),
    "held-out rows longer than the positions": (
        as_it_is, ["eval_loader.name=finetuning", "eval_loader.dataset.max_seq_len=64"],
        ["eval_loader.dataset.max_seq_len=64 is more than the model's 48 positions, which are"],
    ),
    "a tokenizer larger than the embedding": (
        small_vocabulary, [], ["tokenizer: it has 384 tokens, and the model's embedding 100."],
    ),
    "fewer rows than a batch": (
        as_it_is, ["global_train_batch_size=32"],
        ["global_train_batch_size=32 pairs is more than the 24 rows: an iteration would have no"],
    ),
    "fewer good rows than a batch": (
        as_it_is,
        ["train_loader.dataset.max_prompt_len=8", "train_loader.dataset.on_bad_row=skip",
         "global_train_batch_size=24"],
        ["bad ones were left out)"],
    ),
    "fewer samples than a batch": (
        as_it_is, ["algorithms.spin.samples_per_iteration=3"],
        ["global_train_batch_size=4 pairs is more than algorithms.spin.samples_per_iteration=3"],
    ),
    "a generation config that cannot be saved": (
        sampling_without_sampling, [], ["its generation_config.json cannot be saved, so the first"],
    ),
    "a tokenizer that checkpoints cannot hold": (
        broken_sentencepiece, [],
        ["so the first checkpoint would fail", "remove the file tokenizer.model beside it"],
    ),
    "SPIN's held-out rows longer than the positions": (
        few_positions,
        [
            "train_loader.dataset.max_seq_len=24",
            "train_loader.dataset.on_bad_row=skip",
            "train_loader.dataset.max_prompt_len=20",
            "algorithms.spin.generation.max_new_tokens=4",
        ],
        ["more than the model's 24 positions. Lower eval_loader.dataset.max_seq_len"],
    ),
    "held-out rows for less than a batch": (
        as_it_is,
        ["eval_loader.name=finetuning", "eval_loader.drop_last=true", "device_eval_batch_size=64"],
        ["samples, but your minimum batch size is 64"],
    ),
    "a value that llm-foundry cannot hold": (as_it_is, ["seed=often"], ["seed"]),
    "a folder that holds no tokenizer": (
        no_tokenizer,
        [],
        ["is a folder without a tokenizer's files. Save the model's there (tokenizer.save_pre"],
    ),
    "a tokenizer without EOS": (
        no_eos,
        [],
        ["must have an eos_token"],
    ),
    "LoRA on modules that are not there": (
        as_it_is,
        ["model.peft_config={peft_type: LORA, task_type: CAUSAL_LM, target_modules: [q_proj]}"],
        ["target_modules=['q_proj'] names no module of a GPT2LMHeadModel. It has c_attn, c_fc"],
    ),
    "no model's config": (no_config, [], ["its config cannot be read (ValueError"]),
    "an override that the config does not have": (
        as_it_is, ["model.config_overrides.n_poistions=3"],
        ["config_overrides.n_poistions=3: a GPT2Config has no such setting. Did you mean"],
    ),
}  # fmt: skip


if int(transformers.__version__.split(".")[0]) >= 5:
    del CASES["a generation config that cannot be saved"]  # it saves one that it has read
    del CASES["a tokenizer that checkpoints cannot hold"]  # it leaves that file out
    CASES["a folder that holds no vocabulary"] = (
        no_vocabulary, [], ["it has 0 tokens beside special ones, so no text can be written with"],
    )  # fmt: skip


@pytest.mark.foundry
@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_before_the_weights_and_nothing_is_written(case, gpt2, tmp_path, capsys):
    change, overrides, said = CASES[case]
    model = tmp_path / "model"
    shutil.copytree(gpt2, model)
    change(model)
    path = write_config(tiny_config(tmp_path, model), tmp_path / "run.yaml")
    before = sorted(tmp_path.rglob("*"))
    assert main([str(path), *overrides]) == 2
    errors = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    for text in said:
        assert any(text in line for line in errors), errors
    assert sorted(tmp_path.rglob("*")) == before


MPT = {
    "name": "mpt_spin_lm", "d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 384,
    "attn_config": {"attn_impl": "torch"},
}  # fmt: skip


@pytest.mark.foundry
@pytest.mark.skipif(models.NO_MPT is not None, reason=str(models.NO_MPT))
@pytest.mark.parametrize("attn", [{"alibi": True}, {}], ids=["alibi", "learned"])
def test_mpts_rows_must_fit_before_it_is_made(attn, tmp_path, capsys):
    model = {**MPT, "max_seq_len": 24, "attn_config": {"attn_impl": "torch", **attn}}
    config = tiny_config(tmp_path, model=model)
    config["eval_loader"]["dataset"]["max_seq_len"] = 24
    assert main([str(write_config(config, tmp_path / "run.yaml"))]) == 2
    assert "tokens, more than the model's 24 positions" in capsys.readouterr().err


@pytest.mark.foundry
def test_a_run_without_an_eval_loader_trains_without_a_held_out_metric(tmp_path):
    config = tiny_config(tmp_path, max_duration="1iter")
    del config["eval_loader"]
    assert main([str(write_config(config, tmp_path / "run.yaml"))]) == 0
    (record,) = iteration_records(tmp_path)
    assert record["batches"] == 12
    assert not [name for name in record if name.startswith("eval/")]
    printed = CliRunner().invoke(app, ["report", str(tmp_path / "self-play")])
    assert printed.exit_code == 0, printed.output


# --- in Python -------------------------------------------------------------------------------


def test_in_python_it_is_refused_when_the_trainer_is_made(tmp_path):
    tokenizer = tokenizers.byte_level()

    def model(**config: Any) -> Any:
        return HFSpinLM.from_model(models.tiny_model("gpt2", vocab_size=384, **config), tokenizer)

    with pytest.raises(InputError, match="more than the model's 24 positions"):
        tiny_trainer(tmp_path, model(n_positions=24))
    with pytest.raises(InputError, match=r"more than algorithms\.spin\.samples_per_iteration=3"):
        tiny_trainer(tmp_path, model(n_positions=96), spin={"samples_per_iteration": 3})
    with pytest.raises(InputError, match="=25 pairs is more than the 24 rows"):
        tiny_trainer(tmp_path, model(n_positions=96), device_batch_size=25)
    assert not (tmp_path / "self-play").exists()
