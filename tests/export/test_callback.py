"""Hugging Face folders of the policy: named by iteration, whole, and what the policy is."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from composer.core import Callback
from fixtures import models, tokenizers
from fixtures.ranks import on_ranks
from fixtures.runs import tiny_trainer, write_rows
from fixtures.s3 import BUCKET, S3, s3_server
from peft import LoraConfig, PeftModel, get_peft_model
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from transformers import AutoModelForCausalLM, AutoTokenizer

from spin_composer import HuggingFaceExporter, build_spin_dataloader
from spin_composer.data.chat_template import ChatTemplate
from spin_composer.errors import EnvironmentFailure, InputError
from spin_composer.export.folder import written_aside
from spin_composer.fsdp import is_sharded
from spin_composer.store import object_folder

VOCAB = len(tokenizers.byte_level())
INTERVALS = ["1iter", "2iter", "100ba", "0.5dur", "1dur", "4ep", "7ba"]
IDS = torch.tensor([[5, 9, 33, 7, 120, 4]])


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")


def test_whatever_the_interval_the_run_ends_with_an_export_of_its_policy(tmp_path: Path):
    name = "iter{iteration}-ba{batch}"
    exporters = [HuggingFaceExporter(str(tmp_path / i), i, name) for i in INTERVALS]
    trainer = tiny_trainer(tmp_path, callbacks=exporters, max_duration="3iter")
    trainer.fit()
    last = trainer.state.model.model.state_dict()
    batches = int(trainer.state.timestamp.batch)
    for interval in INTERVALS:
        names = [path.name for path in (tmp_path / interval).iterdir()]
        assert f"iter2-ba{batches}" in names, (interval, names)
        saved = load(tmp_path / interval / f"iter2-ba{batches}").state_dict()
        assert all(torch.equal(saved[name], last[name]) for name in saved), interval
    every = sorted(path.name for path in (tmp_path / "1iter").iterdir())
    assert [name.partition("-")[0] for name in every] == ["iter0", "iter1", "iter2"]
    within = sorted(path.name for path in (tmp_path / "7ba").iterdir())
    assert within[0] == "iter0-ba7"  # its number is the iteration's that is trained


def test_the_folder_holds_tokenizer_configs_and_weights_of_the_precision_asked_for(tmp_path: Path):
    model = models.tiny_model("llama_tied", vocab_size=VOCAB)
    model.generation_config.update(do_sample=True, temperature=0.7)  # not in the export
    exporter = HuggingFaceExporter(str(tmp_path / "out"), precision="bfloat16")
    tiny_trainer(tmp_path / "run", model, max_duration="1iter", callbacks=[exporter]).fit()
    folder = tmp_path / "out/iter0"
    config = json.loads((folder / "config.json").read_text())
    assert config.get("dtype", config.get("torch_dtype")) == "bfloat16"  # transformers 5 and 4
    assert config["tie_word_embeddings"]
    assert config["use_cache"]
    assert model.config.use_cache is False
    loaded = AutoModelForCausalLM.from_pretrained(folder, torch_dtype="auto")
    assert loaded.dtype == torch.bfloat16
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert loaded.generation_config.temperature in (None, 1.0)  # transformers 5 and 4
    for ours, theirs in zip(model.parameters(), loaded.parameters(), strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours.bfloat16(), theirs)
    again, given = AutoTokenizer.from_pretrained(folder), tokenizers.byte_level()
    assert again("one two")["input_ids"] == given("one two")["input_ids"]
    assert again.chat_template == given.chat_template


@pytest.mark.parametrize("kind", ["chat", "plain"])
def test_a_tokenizer_without_a_template_is_exported_with_the_one_that_chats_were_rendered_by(
    kind: str, tmp_path: Path
):
    tokenizer = tokenizers.chatml()
    tokenizer.chat_template = None
    rows = write_rows(tmp_path / "plain.jsonl")
    if kind == "chat":
        chats = [
            [{"role": "user", "content": row["prompt"]},
             {"role": "assistant", "content": row["response"]}]
            for row in map(json.loads, rows.read_text().splitlines())
        ]  # fmt: skip
        rows = tmp_path / "chats.jsonl"
        rows.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    model = models.tiny_model("llama", vocab_size=VOCAB, max_position_embeddings=128)
    loader = build_spin_dataloader(
        tokenizer, 4, dataset={"hf_name": str(rows), "split": "train", "max_seq_len": 128}
    )
    exporter = HuggingFaceExporter(str(tmp_path / "out"))
    tiny_trainer(
        tmp_path / "run", model, max_duration="1iter", tokenizer=tokenizer, train_dataloader=loader,
        callbacks=[exporter], spin={"iteration_length": "1ep"},
    ).fit()  # fmt: skip
    written = AutoTokenizer.from_pretrained(tmp_path / "out/iter0")
    assert tokenizer.chat_template is None
    if kind == "plain":
        assert written.chat_template is None
        return
    text = written.apply_chat_template(chats[0], tokenize=False)
    assert text == ChatTemplate(tokenizer)(chats[0])


def adapted(**settings: Any) -> Any:
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **settings)
    return get_peft_model(models.tiny_model("llama", vocab_size=VOCAB), lora)


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("saved", [None, ["lm_head"]])
def test_adapters_load_beside_their_base_or_merged_into_it(
    saved: list[str] | None, merged: bool, tmp_path: Path
):
    models.tiny_model("llama", vocab_size=VOCAB).save_pretrained(tmp_path / "base")
    lora = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=saved, task_type="CAUSAL_LM")
    model = get_peft_model(load(tmp_path / "base").train(), lora)
    exporter = HuggingFaceExporter(str(tmp_path / "out"), merge_adapters=merged)
    tiny_trainer(tmp_path / "run", model, max_duration="1iter", callbacks=[exporter]).fit()
    folder = tmp_path / "out/iter0"
    assert (folder / "adapter_config.json").exists() is not merged
    assert (logits(load(folder)) - logits(model)).abs().max() < 1e-5
    assert (logits(load(tmp_path / "base")) - logits(model)).abs().max() > 1e-3
    AutoTokenizer.from_pretrained(folder)


def test_adapters_are_found_where_activation_checkpointing_wraps_their_layers(tmp_path: Path):
    model = adapted(modules_to_save=["gate_proj"])
    wrapped = checkpoint_wrapper(model.base_model.model.model.layers[1])
    model.base_model.model.model.layers[1] = wrapped
    exporter = HuggingFaceExporter(str(tmp_path / "out"))
    tiny_trainer(tmp_path / "run", model, max_duration="1iter", callbacks=[exporter]).fit()
    base = models.tiny_model("llama", vocab_size=VOCAB)
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "out/iter0"))
    assert (logits(loaded) - logits(model)).abs().max() < 1e-5


def test_folders_in_an_object_store_are_uploaded_before_the_trainer_closes(s3: S3, tmp_path: Path):
    exporter = HuggingFaceExporter(f"s3://{BUCKET}/{{run_name}}/hf")
    trainer = tiny_trainer(tmp_path, max_duration="1iter", callbacks=[exporter])
    trainer.fit()
    trainer.close()
    names = s3.names("tiny/hf/")
    for name in names:
        (tmp_path / "got").mkdir(exist_ok=True)
        (tmp_path / "got" / Path(name).name).write_bytes(s3.read(name))
    assert {Path(name).parent.name for name in names} == {"iter0"}
    assert torch.equal(logits(load(tmp_path / "got")), logits(trainer.state.model.model))
    AutoTokenizer.from_pretrained(tmp_path / "got")


class Listing(Callback):
    """Lists the object store at the moment at which Composer saves a checkpoint."""

    def __init__(self, server: S3):
        self.server, self.found = server, []

    def iteration_checkpoint(self, state: Any, logger: Any) -> None:
        del logger
        self.found.append((int(state.timestamp.iteration), self.server.names("tiny/hf/")))


def test_a_checkpoint_follows_when_the_whole_folder_is_uploaded(s3: S3, tmp_path: Path):
    listing = Listing(s3)
    exporter = HuggingFaceExporter(f"s3://{BUCKET}/{{run_name}}/hf")
    trainer = tiny_trainer(tmp_path, max_duration="1iter", callbacks=[exporter, listing])
    trainer.fit()
    trainer.close()
    assert listing.found == [(1, s3.names("tiny/hf/"))]
    assert "tiny/hf/iter0/model.safetensors" in listing.found[0][1]


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    monkeypatch.setattr(object_folder, "_FIRST_PAUSE_SECONDS", 0.001)
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


def fail(server: S3, name: str, times: int) -> None:
    """Have the server fail so many times to take an object."""
    failures = iter(range(times))
    server.fault = lambda method, path: (
        method == "PUT" and path.endswith(name) and next(failures, None) is not None
    )


@pytest.mark.parametrize("times", [3, 8])
def test_an_upload_that_fails_is_tried_again_at_once_and_later(
    s3: S3, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
    times: int,
):  # fmt: skip
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    fail(s3, "iter0/model.safetensors", times)  # it is tried six times at once
    exporter = HuggingFaceExporter(f"s3://{BUCKET}/hf")
    saved = {"save_folder": str(tmp_path / "saved"), "save_interval": "1iter"}
    tiny_trainer(tmp_path, callbacks=[exporter], **saved).fit()
    assert {"hf/iter0/model.safetensors", "hf/iter1/model.safetensors"} <= set(s3.names("hf/"))
    late = [one for one in caplog.messages if "is tried again at the next export" in one]
    assert len(late) == (times > 6)
    assert not list(scratch.glob("spin-export-*"))


def test_an_upload_that_fails_until_training_ends_is_made_then(s3: S3, tmp_path: Path):
    fail(s3, "iter0/model.safetensors", 6)  # at once
    exporter = HuggingFaceExporter(f"s3://{BUCKET}/hf")
    tiny_trainer(tmp_path, max_duration="1iter", callbacks=[exporter]).fit()
    assert "hf/iter0/config.json" in s3.names("hf/")


def test_an_export_that_cannot_be_uploaded_costs_no_checkpoint(s3: S3, tmp_path: Path):
    fail(s3, "iter0/model.safetensors", 1000)
    exporter = HuggingFaceExporter(f"s3://{BUCKET}/hf")
    saved = {"save_folder": str(tmp_path / "saved"), "save_interval": "1iter"}
    trainer = tiny_trainer(tmp_path, max_duration="1iter", callbacks=[exporter], **saved)
    with pytest.raises(EnvironmentFailure, match="has not all exports: hf/iter0") as caught:
        trainer.fit()
    assert (tmp_path / "saved/latest-rank0.pt").exists()
    found = re.search(r"\(in (.*?)\)", str(caught.value))
    assert found is not None
    assert torch.equal(logits(load(Path(found[1]))), logits(trainer.state.model.model))
    shutil.rmtree(Path(found[1]).parent)


def test_a_run_killed_while_the_store_took_nothing_writes_the_export_when_resumed(
    s3: S3, tmp_path: Path
):
    saved = {"save_folder": str(tmp_path / "saved"), "save_interval": "1iter", "autoresume": True}

    def run(duration: str) -> None:
        exporter = HuggingFaceExporter(f"s3://{BUCKET}/hf")
        tiny_trainer(tmp_path, max_duration=duration, callbacks=[exporter], **saved).fit()

    fail(s3, "iter0/config.json", 1000)
    with pytest.raises(EnvironmentFailure) as caught:
        run("1iter")
    [owed] = re.findall(r"\(in (.*?)\)", str(caught.value))
    wanted = logits(load(Path(owed)))
    shutil.rmtree(Path(owed).parent)  # the machine is gone
    assert "hf/iter0/config.json" not in s3.names("hf/")
    s3.fault = lambda *_: False
    run("2iter")
    for name in s3.names("hf/iter0/"):
        (tmp_path / "got").mkdir(exist_ok=True)
        (tmp_path / "got" / Path(name).name).write_bytes(s3.read(name))
    assert torch.equal(logits(load(tmp_path / "got")), wanted)
    assert "hf/iter1/config.json" in s3.names("hf/iter1/")


def export_sharded(folder: str, rank: int) -> Any:
    """Train a model that FSDP2 shards, with adapters and without; return the whole weights."""
    os.environ["FSDP_VERSION"] = "2"
    whole = {}
    for kind in ("plain", "adapters"):
        torch.manual_seed(0)
        model = adapted() if kind == "adapters" else None
        trainer = tiny_trainer(
            Path(folder) / f"rank-{rank}" / kind,
            model,
            max_duration="1iter",
            device_train_microbatch_size=4,
            spin={"store": f"{folder}/{kind}/self-play"},
            parallelism_config={"fsdp": {}},
            callbacks=[HuggingFaceExporter(f"{folder}/{kind}")],
        )
        assert is_sharded(trainer.state.model)
        trainer.fit()
        named = trainer.state.model.model.named_parameters()
        whole[kind] = {name: p.detach().full_tensor() for name, p in named if p.requires_grad}
        trainer.close()
    return whole


def test_a_sharded_policy_is_exported_whole(tmp_path: Path):
    found = on_ranks(functools.partial(export_sharded, str(tmp_path)), timeout_seconds=60)
    assert set(found) == {0, 1}, found
    assert isinstance(found[0], dict), found[0]
    saved = load(tmp_path / "plain/iter0").state_dict()
    assert all(torch.equal(saved[name], value) for name, value in found[0]["plain"].items())
    from safetensors.torch import load_file

    saved = load_file(tmp_path / "adapters/iter0/adapter_model.safetensors")
    wanted = {name.replace(".default.", "."): value for name, value in found[0]["adapters"].items()}
    assert saved.keys() == wanted.keys()
    assert all(torch.equal(saved[name], value) for name, value in wanted.items())


def test_what_could_not_be_loaded_again_is_refused_at_the_start(tmp_path: Path):
    class Mine(type(models.tiny_model("llama"))):
        pass

    own = Mine(models.tiny_model("llama", vocab_size=VOCAB).config)
    exporter = HuggingFaceExporter(str(tmp_path / "out"))
    with pytest.raises(InputError, match="cannot export a Mine"):
        tiny_trainer(tmp_path / "a", own, callbacks=[exporter])
    exporter = HuggingFaceExporter(str(tmp_path / "out"), merge_adapters=True)
    with pytest.raises(InputError, match=r"adapters of kind DoRA.*Set it to false"):
        tiny_trainer(tmp_path / "b", adapted(use_dora=True), callbacks=[exporter])
    with pytest.raises(InputError, match="precision='fp8' must be one of float32, bfloat16"):
        HuggingFaceExporter(str(tmp_path / "out"), precision="fp8")
    assert not (tmp_path / "out").exists()


def test_what_a_killed_process_left_is_removed_and_an_older_folder_replaced(tmp_path: Path):
    for name in (".iter0.0123abcd", "iter0", ".mine"):
        (tmp_path / "out" / name).mkdir(parents=True)
        for file in ("model.safetensors", "config.json", "older.json"):
            (tmp_path / "out" / name / file).touch()
    exporter = HuggingFaceExporter(str(tmp_path / "out"))
    tiny_trainer(tmp_path / "run", max_duration="1iter", callbacks=[exporter]).fit()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".mine", "iter0"]
    load(tmp_path / "out/iter0")
    assert not (tmp_path / "out/iter0/older.json").exists()


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)], ids=oct)
def test_other_users_may_read_an_export_if_the_umask_lets_them(
    umask: int, mode: int, tmp_path: Path
):
    before = os.umask(umask)
    try:
        exporter = HuggingFaceExporter(str(tmp_path / "out"))
        tiny_trainer(tmp_path / "run", max_duration="1iter", callbacks=[exporter]).fit()
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*")}
    assert modes.pop("iter0") == 0o777 & ~umask
    assert "model.safetensors" in modes
    assert set(modes.values()) == {mode}, modes


@pytest.mark.parametrize("name", ["", ".", "./", "..", "../checkpoints", "a/../..", "/elsewhere"])
def test_a_name_that_leads_out_of_the_save_folder_is_refused(name: str, tmp_path: Path):
    with pytest.raises(InputError, match=r"huggingface_folder_name=.* must name a folder within"):
        HuggingFaceExporter(str(tmp_path), huggingface_folder_name=name)


OTHERS = [["latest-rank0.pt"], ["config.json", "self-play/run.lock"], ["iter0/config.json"]]


@pytest.mark.parametrize("files", OTHERS, ids=str)
def test_a_folder_that_is_no_export_is_refused_at_the_start_and_not_replaced(
    files: list[str], tmp_path: Path
):
    for file in files:
        (tmp_path / "out/kept" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out/kept" / file).touch()
    before = sorted((tmp_path / "out").rglob("*"))
    exporter = HuggingFaceExporter(str(tmp_path / "out"), huggingface_folder_name="kept")
    with pytest.raises(InputError, match=r"kept is not replaced by an export: it exists"):
        tiny_trainer(tmp_path / "run", callbacks=[exporter])
    with pytest.raises(InputError, match="is not replaced"), written_aside(tmp_path / "out/kept"):
        pass
    assert sorted((tmp_path / "out").rglob("*")) == before


def test_an_export_with_several_chat_templates_is_replaced(tmp_path: Path):
    tokenizer = tokenizers.chatml()
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool": "{{ messages }}"}
    for word in ("older", "newer"):
        with written_aside(tmp_path / "out") as aside:
            tokenizer.save_pretrained(aside)
            (aside / "config.json").write_text(word)
    assert (tmp_path / "out/config.json").read_text() == "newer"
