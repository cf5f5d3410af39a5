"""Play scores both sides in the layout that training has, whatever engine made the responses."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from fixtures.runs import tiny_trainer
from fixtures.served import COMMAND

from spin_composer.data.pairs import collate_pairs
from spin_composer.model.unwrap import composer_model
from spin_composer.play.player import Player

ENGINES = {
    "hf": {"max_new_tokens": 12, "batch_size": 8},
    "server": {
        "engine": "server", "max_new_tokens": 12, "batch_size": 8, "server": {"command": COMMAND}
    },
}  # fmt: skip


@pytest.mark.parametrize("layout", ["shared", "padded"])
@pytest.mark.parametrize("engine", ENGINES)
def test_both_sides_are_scored_in_the_layout_of_training(
    engine: str, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine == "server" and importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("llama.cpp's server comes with the extra `test`")
    spin = {"layout": layout, "generation": ENGINES[engine]}
    trainer = tiny_trainer(tmp_path, spin=spin, max_duration="1iter")
    model = composer_model(trainer.state)
    rescore, scored = Player._rescore, []

    def noting(_: Any, args: Any, inputs: dict[str, Any]) -> None:
        scored.append(inputs["input_ids"].shape)

    def watched(player: Player, pairs: Any) -> Any:
        size, first = player.score_batch_size, len(scored)
        handle = model.model.register_forward_pre_hook(noting, with_kwargs=True)
        try:
            return rescore(player, pairs)
        finally:
            handle.remove()
            batch = collate_pairs(pairs[:size])
            assert scored[first] == model.layout.arrange(batch).kwargs["input_ids"].shape

    monkeypatch.setattr(Player, "_rescore", watched)
    trainer.fit(duration="1ba")
    assert model.layout.name == layout
    assert scored
    assert all((rows == 1) == (layout == "shared") for rows, _ in scored)
