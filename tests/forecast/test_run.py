"""What a run will take, said beforehand, is what it takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures.runs import write_rows
from fixtures.yaml_run import save_model, tiny_config, write_config
from safetensors import safe_open
from typer.testing import CliRunner

from spin_composer.cli import app
from spin_composer.errors import InputError
from spin_composer.forecast.run import Speeds, forecast_run
from spin_composer.importers.nemo import convert_nemo
from spin_composer.importers.read import read_config
from spin_composer.importers.recipe import convert_recipe
from spin_composer.importers.sft import convert_sft

FOREIGN = Path(__file__).parents[1] / "importers/foreign"
LORA = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "target_modules": ["q_proj"]}


def forecast(config: dict[str, Any], **options: Any) -> dict[str, Any]:
    found, _ = forecast_run(config, "run.yaml", **options)
    return json.loads(found.as_json())


def on_cpu(folder: Path, **changes: Any) -> dict[str, Any]:
    config = tiny_config(folder, **changes)
    del config["fsdp_config"]
    return config


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def test_figures_of_a_run_are_those_of_its_rows_and_its_model(tmp_path: Path, model: Path):
    config = on_cpu(tmp_path, model_folder=model)
    found = forecast(config, speeds=Speeds(play=2.0))
    with safe_open(model / "model.safetensors", "pt") as file:
        numbers = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118
    assert found["model"]["parameters"] == found["model"]["trained"] == numbers
    memory = found["memory_per_gpu"]
    assert memory["weights_bytes"] == memory["gradients_bytes"] == 4 * numbers
    assert memory["optimizer_bytes"] == 4 * numbers  # RMSprop's one number
    assert found["rows"]["kept"] == 24
    assert found["rows"]["held_out"] == {"eval_loader": 7}
    assert found["game"]["pairs"] == [24, 48]
    assert found["game"]["steps_per_epoch"] == [6, 12]
    assert found["game"]["steps"] == 36
    assert found["time"]["play_seconds"] == 24 * 2 * 12 / 2
    assert found["time"]["training_seconds"] is None
    assert found["disk"]["checkpoints"]["bytes"] == 2 * 2 * 4 * numbers


@pytest.mark.foundry
def test_the_run_has_as_many_pairs_and_a_store_no_larger(tmp_path: Path, model: Path):
    from spin_composer.train import train

    config = on_cpu(tmp_path, model_folder=model)
    found = forecast(config)
    path = write_config(config, tmp_path / "run.yaml")
    trainer = train(path)
    assert int(trainer.state.timestamp.batch) == found["game"]["steps"]
    size = sum(path.stat().st_size for path in (tmp_path / "self-play/").rglob("*.mds"))
    assert 0 < size <= found["disk"]["store"]["bytes"]
    weights = sum(p.numel() for p in trainer.state.model.parameters())
    assert weights == found["model"]["parameters"]


def test_lora_trains_saves_and_exports_adapters_alone(tmp_path: Path, model: Path):
    config = on_cpu(tmp_path, model_folder=model)
    config["model"]["peft_config"] = LORA
    found = forecast(config)
    trained = found["model"]["trained"]
    assert trained == 2 * 2 * (32 + 32)  # two layers, rank 2, 32 x 32
    assert found["memory_per_gpu"]["gradients_bytes"] == 4 * trained
    assert found["disk"]["checkpoints"]["bytes"] == 2 * 8 * trained


def test_gpus_share_weights_and_their_batch(tmp_path: Path, model: Path):
    config = tiny_config(tmp_path, model_folder=model)
    config["model"]["init_device"] = "mixed"
    config["global_train_batch_size"] = 8
    with pytest.raises(InputError, match="--gpus 8"):
        forecast(config)
    alone = on_cpu(tmp_path, model_folder=model, global_train_batch_size=8)
    one, four = forecast(alone), forecast(config, gpus=4)
    weights = "weights_bytes"
    assert four["memory_per_gpu"][weights] == one["memory_per_gpu"][weights] // 4
    with pytest.raises(InputError, match="not a multiple of the 3 ranks"):
        forecast(config, gpus=3)


def test_problems_are_all_named(tmp_path: Path, model: Path):
    config = on_cpu(tmp_path, model_folder=model)
    config["algorithms"]["spin"]["generation"]["max_new_tokens"] = 40  # 48 positions
    config["global_train_batch_size"] = 30
    with pytest.raises(InputError) as error:
        forecast(config)
    lines = str(error.value).splitlines()
    assert any("global_train_batch_size=30" in line for line in lines)
    assert any("max_new_tokens=40" in line for line in lines)


def test_a_warm_up_longer_than_an_iteration_is_noted(tmp_path: Path, model: Path):
    config = on_cpu(tmp_path, model_folder=model, scheduler={"name": "spin", "t_warmup": "50ba"})
    assert any("never reaches its peak" in note for note in forecast(config)["notes"])


def test_bad_rows_are_counted_and_then_an_error(tmp_path: Path, model: Path):
    config = on_cpu(tmp_path, model_folder=model)
    path = write_config(config, tmp_path / "run.yaml")
    with (tmp_path / "rows.jsonl").open("a") as rows:
        rows.write(json.dumps({"prompt": "one", "response": ""}) + "\n")
    done = CliRunner().invoke(app, ["check", str(path), "--json"])
    assert isinstance(done.exception, InputError)
    assert "rows.jsonl" in str(done.exception)
    assert json.loads(done.stdout)["rows"]["skipped"] == 1
    done = CliRunner().invoke(app, ["check", str(path), "train_loader.dataset.on_bad_row=skip"])
    assert done.exit_code == 0, (done.output, done.exception)


def test_an_sft_yaml_is_told_how_to_become_spins(tmp_path: Path):
    with pytest.raises(InputError, match=r"spin-composer init run\.yaml"):
        forecast({"model": {"name": "hf_causal_lm"}})


SFT = """\
max_seq_len: 48
model: {{name: hf_causal_lm, pretrained_model_name_or_path: {model}, init_device: cpu}}
tokenizer: {{name: {model}, kwargs: {{model_max_length: 48}}}}
train_loader:
  name: finetuning
  dataset: {{hf_name: {rows}, split: train, max_seq_len: 48, packing_ratio: auto, shuffle: true}}
  drop_last: true
  num_workers: 0
eval_loader:
  name: finetuning
  dataset: {{hf_name: {rows}, split: train, max_seq_len: 48, packing_ratio: 2.0}}
scheduler: {{name: linear_decay_with_warmup, t_warmup: 2ba, alpha_f: 0}}
optimizer: {{name: decoupled_lionw, lr: 5.0e-4, betas: [0.9, 0.95], weight_decay: 0}}
max_duration: 2ep
global_train_batch_size: 8
device_train_microbatch_size: 2
precision: fp32
"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")


def test_a_yaml_of_init_passes_the_check(model: Path, rows: Path):
    draft = convert_sft(SFT.format(model=model, rows=rows), "sft.yaml")
    found = forecast(draft.config())
    assert found["rows"]["kept"] == 24
    assert found["game"]["iterations"] == 3


def test_a_yaml_of_import_nemo_passes_the_check(model: Path, rows: Path, tmp_path: Path):
    plain = tmp_path / "nemo.jsonl"
    written = [json.loads(line) for line in rows.read_text().splitlines()]
    texts = [{"input": row["prompt"], "output": row["response"]} for row in written]
    plain.write_text("".join(json.dumps(row) + "\n" for row in texts))
    overrides = [
        f"pretrained_checkpoint.restore_from_path={model}", "model.data.chat=False",
        f"model.data.train_ds.file_path={plain}", f"model.data.validation_ds.file_path={plain}",
        "model.data.train_ds.prompt_template='{input}{output}'", "trainer.num_nodes=1",
        "model.encoder_seq_length=48", "model.global_batch_size=8", "trainer.precision=32",
        f"exp_manager.explicit_log_dir={tmp_path}/run",
    ]  # fmt: skip
    draft = convert_nemo(read_config(FOREIGN / "gpt_spin.yaml", overrides), "gpt_spin.yaml")
    found = forecast(yaml.safe_load(yaml.safe_dump(draft.config())), gpus=8)
    assert found["rows"]["kept"] == 24
    assert found["disk"]["store"]["place"] == f"{tmp_path}/run/self-play"


def test_a_yaml_of_import_recipe_passes_the_check(model: Path, rows: Path):
    overrides = [
        f"model_name_or_path={model}", "max_length=48", "max_prompt_length=30",
        "use_flash_attention_2=false", "dataset_splits=[train]", "per_device_train_batch_size=4",
    ]  # fmt: skip
    values = read_config(FOREIGN / "spin_config.yaml", overrides)
    values["dataset_mixer"] = {str(rows): 1.0}
    config = convert_recipe(values, "config.yaml", gpus=2).config()
    config["algorithms"]["spin"]["generation"]["max_new_tokens"] = 12
    assert forecast(config, gpus=2)["game"]["iterations"] == 3
