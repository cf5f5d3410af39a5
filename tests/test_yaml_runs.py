"""Runs by YAML, as users start them: one process, two ranks under FSDP2, llm-foundry's command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from fixtures import models
from fixtures.yaml_run import iteration_records, launch, save_model, tiny_config, write_config
from transformers import AutoModelForCausalLM, AutoTokenizer

from spin_composer.report.samples import read_samples
from spin_composer.store.local import LocalStore
from spin_composer.train import train

pytestmark = pytest.mark.foundry

COUNT_GATHERS = Path(__file__).parent / "fixtures" / "count_gathers.py"
PLAYED = ("generated_length", "truncated_fraction", "degenerate_fraction", "pairs")


def run_in_process(folder: Path, **overrides):
    config = tiny_config(folder, **overrides)
    return train(write_config(config, folder / "run.yaml"))


def rows(folder: Path, iteration: int) -> list:
    store = LocalStore(folder / "self-play")
    num_units = store.manifest(iteration)["num_units"]
    return [row for unit in range(num_units) for row in store.read_unit(iteration, unit)]


def assert_same_store(one: Path, other: Path) -> None:
    """The rows are the same in the same order; sums agree to 1e-5 per token."""
    for iteration in (0, 1):
        for a, b in zip(rows(one, iteration), rows(other, iteration), strict=True):
            assert (a.index, a.finish) == (b.index, b.finish)
            for name in ("prompt", "real", "generated"):
                assert getattr(a, name).tolist() == getattr(b, name).tolist()
            assert a.opponent_real == pytest.approx(b.opponent_real, abs=1e-4)
            assert a.opponent_generated == pytest.approx(b.opponent_generated, abs=1e-4)


def assert_same_records(one: Path, other: Path, rel: float) -> None:
    for a, b in zip(iteration_records(one), iteration_records(other), strict=True):
        for name in a:
            if name.startswith(("train/", "loss/", "eval/")) or name.endswith(PLAYED):
                assert a[name] == pytest.approx(b[name], rel=rel, abs=rel), name


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory):
    """A run of one process: its folder and Trainer."""
    folder = tmp_path_factory.mktemp("one")
    return folder, run_in_process(folder)


def assert_same_samples(wanted: Path, found: Path) -> None:
    """Check that the samples of two runs have the same tokens, and log-probs but for rounding."""
    for a, b in zip(*(read_samples(f / "self-play") for f in (wanted, found)), strict=True):
        assert (a.index, a.prompt, a.real, a.generated) == (b.index, b.prompt, b.real, b.generated)
        for c, d in ((a.real_tokens, b.real_tokens), (a.generated_tokens, b.generated_tokens)):
            assert c is not None
            assert d is not None
            assert c.texts == d.texts
            assert c.opponent == pytest.approx(d.opponent, abs=2e-3)
            assert len(c.policy) == len(c.texts)
            assert c.policy == pytest.approx(d.policy, abs=2e-3)


def test_two_ranks_under_fsdp2_give_the_same_store_and_losses(one_rank, tmp_path):
    folder, _ = one_rank
    config = tiny_config(tmp_path, model_folder=folder / "model", code_paths=[str(COUNT_GATHERS)])
    yaml = write_config(config, tmp_path / "run.yaml")
    command = ("composer", "-m", "spin_composer.train", str(yaml))
    result = launch(*command, ranks=2, GATHERS_FOLDER=str(tmp_path))
    assert result.returncode == 0, result.stderr[-2000:]
    for rank in range(2):  # the head's check, at the start: two layers and the rest, never all
        gathers = json.loads((tmp_path / f"gathers-{rank}.json").read_text())
        assert gathers["groups"] == 3
        assert 1 <= gathers["whole_at_once"] < 3
        assert (gathers["whole_afterwards"], gathers["explicit"]) == (0, 0)
    assert_same_store(folder, tmp_path)
    assert_same_samples(folder, tmp_path)
    assert_same_records(folder, tmp_path, rel=1e-5)
    one, two = (
        AutoModelForCausalLM.from_pretrained(f / "checkpoints/huggingface/iter1").state_dict()
        for f in (folder, tmp_path)
    )
    for name, value in one.items():  # by norms: RMSprop makes a step of a gradient that is rounding
        assert (value - two[name]).norm() <= 1e-4 * value.norm(), name


@pytest.fixture(scope="module")
def sharded(one_rank, tmp_path_factory):
    """A run of two ranks with sharded checkpoints: its folder, command and records."""
    folder = tmp_path_factory.mktemp("sharded")
    config = tiny_config(folder, model_folder=one_rank[0] / "model", save_interval="5ba")
    config["fsdp_config"]["state_dict_type"] = "sharded"
    yaml = write_config(config, folder / "run.yaml")
    command = ("composer", "-m", "spin_composer.train", str(yaml))
    result = launch(*command, ranks=2)
    assert result.returncode == 0, result.stderr[-2000:]
    return folder, command, iteration_records(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "checkpoint",
    # the second: an iteration's end, which save_interval: 5ba does not hit, but SPIN adds
    ["ep0-ba5", "ep2-ba12"],
)
def test_two_ranks_resume_sharded_checkpoints_alike(sharded, checkpoint, tmp_path):
    folder, command, whole = sharded
    shutil.rmtree(folder / "self-play/iter-001")
    saved = folder / "checkpoints" / checkpoint
    result = launch(*command, f"load_path={saved}", f"save_folder={tmp_path}", ranks=2)
    assert result.returncode == 0, result.stderr[-2000:]
    for a, b in zip(whole, iteration_records(folder), strict=True):
        assert a["train/SpinMargin"] == pytest.approx(b["train/SpinMargin"], rel=1e-6)
        assert a["loss/train/total"] == pytest.approx(b["loss/train/total"], rel=1e-6)


@pytest.mark.slow
def test_two_ranks_without_fsdp_give_the_same_store_and_losses(one_rank, tmp_path):
    folder, _ = one_rank
    config = tiny_config(tmp_path, model_folder=folder / "model", fsdp_config=None)
    yaml = write_config(config, tmp_path / "run.yaml")
    result = launch("composer", "-m", "spin_composer.train", str(yaml), ranks=2)
    assert result.returncode == 0, result.stderr[-2000:]
    assert_same_store(folder, tmp_path)
    assert_same_records(folder, tmp_path, rel=1e-5)


@pytest.mark.slow
def test_rank_0_warns_of_ranks_that_play_nothing(one_rank, tmp_path):
    config = tiny_config(tmp_path, model_folder=one_rank[0] / "model", max_duration="1iter")
    config["algorithms"]["spin"]["unit_size"] = 24
    yaml = write_config(config, tmp_path / "run.yaml")
    result = launch("composer", "-m", "spin_composer.train", str(yaml), ranks=2)
    assert result.returncode == 0, result.stderr[-2000:]
    warning = (
        "iteration 0: 1 unit(s) for 2 ranks: 1 of them are idle. Set "
        "algorithms.spin.unit_size to 12"
    )
    assert (result.stdout + result.stderr).count(warning) == 1


@pytest.mark.slow
def test_a_finished_run_started_again_says_so_and_exits_0(one_rank):
    folder, _ = one_rank
    last = folder / "checkpoints/ep4-ba36-rank0.pt"
    command = ("train", str(folder / "run.yaml"), f"load_path={last}", "save_folder=null")
    result = launch("spin-composer", *command)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "the run is finished already" in result.stderr


@pytest.mark.other_stacks
def test_llmfoundry_train_runs_the_same_yaml_alike(one_rank, tmp_path):
    folder, _ = one_rank
    config = tiny_config(tmp_path, model_folder=folder / "model")
    yaml = write_config(config, tmp_path / "run.yaml")
    result = launch("llmfoundry", "train", str(yaml))
    assert result.returncode == 0, result.stderr[-2000:]
    assert_same_records(folder, tmp_path, rel=1e-6)


def test_each_iteration_exports_a_folder_that_transformers_loads_with_equal_logits(one_rank):
    folder, trainer = one_rank
    exports = folder / "checkpoints/huggingface"
    assert sorted(path.name for path in exports.iterdir()) == ["iter0", "iter1"]
    tokenizer = AutoTokenizer.from_pretrained(exports / "iter1")
    eager = {"attn_implementation": "eager"}  # as trained; others round differently
    model = AutoModelForCausalLM.from_pretrained(exports / "iter1", **eager)
    ids = torch.tensor([tokenizer("red green blue :")["input_ids"]])
    trained = trainer.state.model.model.eval()
    assert torch.equal(model.eval()(ids).logits, trained(ids).logits)


def test_validation_runs_before_the_first_iteration_and_at_each_iterations_end(one_rank):
    folder, _ = one_rank
    log = json.loads((folder / "self-play/iterations.json").read_text())
    name = "eval/eval/LanguageCrossEntropy"
    values = [log["baseline"][name], *(record[name] for record in log["iterations"])]
    assert len(set(values)) == 3


@pytest.mark.skipif(models.NO_MPT is not None, reason=str(models.NO_MPT))
def test_mpt_plays_and_exports_with_equal_logits(tmp_path):
    mpt = {
        "name": "mpt_spin_lm",
        "d_model": 32,
        "n_heads": 4,
        "n_layers": 2,
        "expansion_ratio": 2,
        "max_seq_len": 48,
        "vocab_size": 384,
        "no_bias": True,
        "attn_config": {"attn_impl": "torch", "rope": False},
        "init_config": {"name": "small_init_"},
    }
    trainer = run_in_process(tmp_path, model=mpt, max_duration="1iter")
    assert iteration_records(tmp_path)[0]["batches"] == 12
    export = tmp_path / "checkpoints/huggingface/iter0"
    model = AutoModelForCausalLM.from_pretrained(export, trust_remote_code=True).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    mine = trainer.state.model.model.eval()
    assert torch.allclose(model(ids).logits, mine(ids).logits, atol=1e-6)


def test_lora_trains_the_adapters_only_and_exports_them(tmp_path):
    lora = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8}
    model = save_model(tmp_path)
    before = AutoModelForCausalLM.from_pretrained(model)
    trainer = run_in_process(
        tmp_path,
        model={
            "name": "hf_spin_lm",
            "pretrained_model_name_or_path": str(model),
            "peft_config": {**lora, "target_modules": ["q_proj", "v_proj"]},
        },
        max_duration="1iter",
        optimizer={"name": "rmsprop", "lr": 0.01},
    )
    trained = trainer.state.model.model.get_base_model().state_dict()
    assert torch.equal(trained["lm_head.weight"], before.lm_head.weight)
    assert iteration_records(tmp_path)[0]["train/SpinMargin"] > 0
    files = {path.name for path in (tmp_path / "checkpoints/huggingface/iter0").iterdir()}
    assert "adapter_config.json" in files


def test_bad_yaml_is_one_line_and_exit_code_2(tmp_path):
    config = tiny_config(tmp_path, model_folder=tmp_path)
    config["algorithms"]["spin"]["betta"] = 1
    yaml = write_config(config, tmp_path / "run.yaml")
    result = launch("spin-composer", "train", str(yaml))
    assert result.returncode == 2
    assert result.stderr.strip().splitlines() == [
        "error: algorithms.spin.betta is not a setting. Did you mean 'beta'?"
    ]
    shutil.rmtree(tmp_path)
