"""An iteration's plan: as it was begun, whatever is set today."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import pytest
import torch
from fixtures import models, tokenizers
from fixtures.runs import NUM_ROWS, tiny_trainer
from peft import LoraConfig, get_peft_model

from spin_composer import HFSpinLM
from spin_composer.engines.hf.generator import HFGenerator
from spin_composer.errors import StoreError
from spin_composer.store.local import LocalStore
from spin_composer.store.manifest import manifest_value


@pytest.fixture(scope="module")
def boundary(tmp_path_factory):
    """Folders of runs that trained iteration 0, by its settings, and their checkpoints."""
    made = {}

    def make(**spin):
        key = json.dumps(spin)
        if key not in made:
            folder = tmp_path_factory.mktemp("boundary")
            trainer = tiny_trainer(
                folder,
                spin=spin,
                save_folder=str(folder / "checkpoints"),
                save_interval="1iter",
                save_filename="ep{epoch}.pt",
            )
            trainer.fit(duration="1iter")
            trainer.close()
            made[key] = folder
        return made[key]

    return make


def gone_on(before, folder, **spin):
    """Play and train one batch of iteration 1 with other settings; return its store."""
    shutil.copytree(before / "self-play", folder / "self-play")
    trainer = tiny_trainer(folder, spin=spin, load_path=str(before / "checkpoints/ep2.pt"))
    trainer.fit(duration="1ba")
    trainer.close()
    return LocalStore(folder / "self-play")


def rows(store, iteration, kind):
    """Count the rows of the data in an iteration's units of a kind."""
    units = store.manifest(iteration)["num_units"]
    return Counter(
        row.index
        for unit in range(units)
        if store.report(iteration, unit).kind == kind
        for row in store.read_unit(iteration, unit)
    )


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"unit_size": 5}, {"unit_size": 12}),
        ({"unit_size": 12}, {"unit_size": 5}),
        ({"samples_per_iteration": 9}, {"samples_per_iteration": "all"}),
        ({"samples_per_iteration": "all"}, {"samples_per_iteration": 9}),
    ],
    ids=str,
)
def test_all_that_was_played_is_replayed_whatever_is_set_today(first, second, boundary, tmp_path):
    before = boundary(**first)
    store = gone_on(before, tmp_path, **second)
    played = rows(LocalStore(before / "self-play"), 0, "play")
    counts = [9 if 9 in spin.values() else NUM_ROWS for spin in (first, second)]
    assert [sum(played.values()), sum(rows(store, 1, "play").values())] == counts
    assert rows(store, 1, "replay") == played


def test_an_iteration_to_replay_that_is_gone_is_named(boundary, tmp_path):
    before = boundary(unit_size=5)
    trainer = tiny_trainer(tmp_path, load_path=str(before / "checkpoints/ep2.pt"))
    with pytest.raises(StoreError, match=r"iter-000 is missing, and iteration 1 replays its pairs"):
        trainer.fit()
    assert not list(tmp_path.glob("self-play/iter-*"))


def lora_trainer(folder, **overrides):
    tokenizer = tokenizers.byte_level()
    base = models.tiny_model("llama", vocab_size=len(tokenizer))
    torch.manual_seed(0)
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = HFSpinLM.from_model(get_peft_model(base, lora), tokenizer)
    return tiny_trainer(folder, model, max_duration="1iter", **overrides)


@pytest.mark.parametrize("merged", [True, False])
def test_adapters_are_merged_as_for_the_units_that_are_there(merged, tmp_path, monkeypatch):
    trainer = lora_trainer(tmp_path)
    trainer.fit(duration="1ba")
    trainer.close()
    store = LocalStore(tmp_path / "self-play")
    assert manifest_value(store.manifest(0), "merged") is True  # here is room
    path = store.folder(0) / "manifest.json"
    path.write_text(json.dumps(store.manifest(0) | {"merged": merged}))
    shutil.rmtree(store.unit_folder(0, 2))
    merges = []
    init = HFGenerator.__init__

    def noted(self, *args, **kwargs):
        merges.append(kwargs["merge"])
        init(self, *args, **kwargs)

    monkeypatch.setattr(HFGenerator, "__init__", noted)
    trainer = lora_trainer(tmp_path)
    trainer.fit(duration="1ba")
    trainer.close()
    assert merges == [merged]
    assert store.manifest(0)["merged"] is merged


def test_without_adapters_the_manifest_says_nothing_of_merging(boundary):
    assert LocalStore(boundary(unit_size=5) / "self-play").manifest(0)["merged"] is None
