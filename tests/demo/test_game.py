"""The demo's training, on a smaller world: by Composer's Trainer, without llm-foundry."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from spin_composer.demo import run
from spin_composer.demo.base import ModelSize, SFTConfig, make_base
from spin_composer.demo.optimizer import make_optimizer
from spin_composer.demo.run import Paths, prepare
from spin_composer.demo.sft import SftRecipe, SftResult, sft
from spin_composer.demo.world import make_world, read_rows, write_rows
from spin_composer.errors import InputError

SIZE = ModelSize(vocab_size=400, width=32, layers=1, heads=2)
ADAMW = {"name": "decoupled_adamw", "lr": 1e-3, "betas": (0.9, 0.98), "weight_decay": 0.0}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    paths = Paths(tmp_path_factory.mktemp("demo") / "demo")
    prepare(paths)
    made = make_world(seed=1, num_careless=200, num_careful=32, num_valid=40)
    write_rows(made.careless_train, paths.data("careless"))
    write_rows(made.careless_valid, paths.data("careless-heldout"))
    write_rows(made.careful_train, paths.data("train"))
    write_rows(made.careful_valid, paths.data("heldout"))
    return paths


@pytest.fixture(scope="module")
def base(world: Paths) -> SftResult:
    training = SFTConfig(epochs=3, batch_size=16, microbatch_size=8)
    rows = world.data("careless"), world.data("careless-heldout")
    return make_base(*rows, world.base, SIZE, training)


def test_sft_trains_whole_epochs_and_leaves_a_model_that_loads(base: SftResult, world: Paths):
    assert base.steps == 3 * (200 // 16)
    assert 1.0 < base.held_out_nll < 5.0  # far below log 400 after some steps
    tokenizer = AutoTokenizer.from_pretrained(base.folder)
    model = AutoModelForCausalLM.from_pretrained(base.folder)
    assert len(tokenizer) == model.config.vocab_size
    # an epoch's tokens: prompt, response and the stop token of each of the rows in whole batches
    rows = [json.loads(line) for line in world.data("careless").read_text().splitlines()]
    lengths = [len(tokenizer(row["prompt"] + row["response"])["input_ids"]) + 1 for row in rows]
    assert base.tokens == pytest.approx(3 * 192 * sum(lengths) / len(lengths), rel=0.02)


def test_microbatches_do_not_change_what_sft_learns(world: Paths, base: SftResult, tmp_path: Path):
    found = [
        sft(
            base.folder,
            world.data("train"),
            world.data("heldout"),
            tmp_path / str(size),
            SftRecipe(
                duration="3ba",
                batch_size=16,
                microbatch_size=size,
                optimizer=ADAMW,
                t_warmup="0ba",
                gradient_clipping=1.0,
                max_seq_len=SIZE.max_seq_len,
                seed=3,
            ),
        )
        for size in (16, 5)
    ]
    assert found[0].held_out_nll == pytest.approx(found[1].held_out_nll, rel=1e-4)
    assert found[0].held_out_nll < base.held_out_nll


def test_sft_that_stops_early_keeps_the_weights_with_the_lowest_nll(
    world: Paths, base: SftResult, tmp_path: Path
):
    recipe = SftRecipe(
        duration="12ba",
        batch_size=32,
        microbatch_size=32,
        optimizer={**ADAMW, "lr": 3.0},  # so high that it does harm
        t_warmup="0ba",
        alpha_f=1.0,
        gradient_clipping=1.0,
        max_seq_len=SIZE.max_seq_len,
        seed=3,
        stop_early="2ba",
    )
    rows = world.data("careless"), world.data("heldout")
    best = sft(base.folder, *rows, tmp_path / "best", recipe)
    last = sft(base.folder, *rows, tmp_path / "last", replace(recipe, stop_early=None))
    assert best.steps == last.steps == last.best_step == 12
    assert best.best_step in range(0, 12, 2)
    assert best.held_out_nll < last.held_out_nll
    again = sft(
        best.folder, *rows, tmp_path / "again",
        replace(recipe, duration="1ba", optimizer={**ADAMW, "lr": 1e-9}),
    )  # fmt: skip
    assert again.held_out_nll == pytest.approx(best.held_out_nll, abs=1e-6)  # it was saved


def test_the_rows_that_exhausted_sft_is_stopped_by_are_not_those_that_are_reported(
    world: Paths, base: SftResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, value in (("_SCORED_ROWS", 25), ("_FEW_ROWS", 32), ("_FEW_ROWS_EPOCHS", 2)):
        monkeypatch.setattr(run, name, value)
    few = Paths(tmp_path / "few-rows")
    made = run._exhaust_sft(world, few, seed=3)
    held_out, validation = read_rows(few.data("heldout")), read_rows(few.data("validation"))
    assert [*held_out, *validation] == read_rows(world.data("heldout"))
    assert (len(held_out), len(validation)) == (25, 15)
    still = SftRecipe(
        duration="1ba", batch_size=32, microbatch_size=32, optimizer={**ADAMW, "lr": 1e-9},
        t_warmup="0ba", gradient_clipping=1.0, max_seq_len=SIZE.max_seq_len, seed=3,
    )  # fmt: skip
    again = sft(few.base, few.data("once"), few.data("validation"), tmp_path / "again", still)
    assert made.held_out_nll == pytest.approx(again.held_out_nll, abs=1e-6)


def test_an_optimizer_of_another_name_is_refused():
    with pytest.raises(InputError, match=r"optimizer.name must be one of decoupled_adamw, rmsprop"):
        make_optimizer([], {"name": "lion", "lr": 1.0})


WITHOUT_FOUNDRY = """
import sys
sys.modules["llmfoundry"] = None  # as good as uninstalled
from spin_composer.demo.game import play_game
trainer = play_game(sys.argv[1], sys.argv[2:])
assert int(trainer.state.timestamp.iteration) == 2
trainer.close()
"""


@pytest.mark.other_stacks
def test_the_game_of_the_yaml_is_played_and_exported_without_llm_foundry(
    world: Paths, base: SftResult
):
    command = [sys.executable, "-c", WITHOUT_FOUNDRY, str(world.yaml)]
    sizes = ["max_duration=2iter", "global_train_batch_size=16", "device_eval_batch_size=16",
             "device_train_microbatch_size=16", "algorithms.spin.unit_size=16"]  # fmt: skip
    done = subprocess.run(
        [*command, f"variables.folder={world.folder}", *sizes],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    history = json.loads((world.game / "self-play/iterations.json").read_text())
    assert "eval/eval/LanguageCrossEntropy" in history["baseline"]
    assert len(history["iterations"]) == 2
    assert sorted(path.name for path in world.export(0).parent.iterdir()) == ["iter0", "iter1"]
    AutoModelForCausalLM.from_pretrained(world.export(1))
