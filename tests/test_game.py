"""An iteration of the game: planned once, and what it does where memory is full or it has begun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import models, tokenizers
from fixtures.runs import tiny_trainer

from spin_composer.engines.hf.generator import HFGenerator
from spin_composer.errors import EnvironmentFailure
from spin_composer.store.local import LocalStore

pytest.importorskip("peft", reason="LoRA comes with the extra `test`")


def adapted() -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = models.tiny_model("llama", vocab_size=len(tokenizers.byte_level()))
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return get_peft_model(model, config)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
    ],
    ids=["cuda", "cpu"],
)
def test_where_memory_is_full_in_play_the_settings_that_help_are_named(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise error

    monkeypatch.setattr(HFGenerator, "generate", full)
    trainer = tiny_trainer(tmp_path)
    with pytest.raises(EnvironmentFailure) as caught:
        trainer.fit()
    trainer.close()
    said = str(caught.value)
    assert "\n" not in said
    for name in ("batch_size (4", "merge_adapters=false", "engine=server"):
        assert f"algorithms.spin.generation.{name}" in said
    assert LocalStore(tmp_path / "self-play").complete_units(0) == set()


def test_a_half_played_iteration_merges_adapters_as_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged: list[bool] = []
    generate = HFGenerator.generate

    def counting(self: HFGenerator, *args: Any) -> Any:
        if len(merged) == 2:
            merged.append(self.merge)
            raise KeyboardInterrupt
        merged.append(self.merge)
        return generate(self, *args)

    monkeypatch.setattr(HFGenerator, "generate", counting)
    trainer = tiny_trainer(tmp_path, adapted(), max_duration="1iter")
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    trainer.close()
    generation = {"max_new_tokens": 12, "batch_size": 4, "merge_adapters": False}
    trainer = tiny_trainer(
        tmp_path, adapted(), max_duration="1iter", spin={"generation": generation}
    )
    trainer.fit()
    trainer.close()
    assert len(merged) > 4
    assert all(merged)
    assert LocalStore(tmp_path / "self-play").manifest(0)["merged"] is True


def test_adapters_are_not_merged_where_the_setting_says_so(tmp_path: Path) -> None:
    generation = {"max_new_tokens": 12, "batch_size": 4, "merge_adapters": False}
    trainer = tiny_trainer(
        tmp_path, adapted(), max_duration="1iter", spin={"generation": generation}
    )
    trainer.fit()
    trainer.close()
    manifest = LocalStore(tmp_path / "self-play").manifest(0)
    assert manifest["merged"] is False
    assert "merge_adapters" not in manifest["generation"]


def test_a_resumed_play_lists_the_store_once_and_asks_for_what_is_missing_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = tiny_trainer(tmp_path, max_duration="1iter")
    first.fit()
    first.close()
    store = LocalStore(tmp_path / "self-play")
    store.set_unit_aside(0, 1)
    listed: list[int] = []
    answered: list[int] = []
    complete_units, generate = LocalStore.complete_units, HFGenerator.generate

    def listing(self: LocalStore, iteration: int) -> set[int]:
        listed.append(iteration)
        return complete_units(self, iteration)

    def counting(self: HFGenerator, prompts: Any, *args: Any) -> Any:
        answered.append(len(prompts))
        return generate(self, prompts, *args)

    monkeypatch.setattr(LocalStore, "complete_units", listing)
    monkeypatch.setattr(HFGenerator, "generate", counting)
    again = tiny_trainer(tmp_path, max_duration="1iter")
    again.fit()
    again.close()
    assert listed == [0]
    assert answered == [5]
