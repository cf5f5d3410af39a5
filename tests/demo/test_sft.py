"""SFT beside SPIN: the rates of its steps are those of SPIN's schedule."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures import models, tokenizers
from torch.optim.optimizer import register_optimizer_step_pre_hook

from spin_composer.demo.sft import SftRecipe, sft


@pytest.mark.parametrize(("t_warmup", "wanted"), [
    ("0ba", [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
    ("2ba", [0, 1 / 2, 1, 3 / 4, 2 / 4, 1 / 4]),
])  # fmt: skip
def test_each_step_has_the_rate_of_its_own_place(
    t_warmup: str, wanted: list[float], tmp_path: Path
) -> None:
    tokenizer = tokenizers.byte_level()
    models.tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    rows = tmp_path / "rows.jsonl"
    row = json.dumps({"prompt": "one :", "response": " two"})
    rows.write_text(f"{row}\n" * 8, encoding="utf-8")
    recipe = SftRecipe(
        duration="6ba", batch_size=4, microbatch_size=4, optimizer={"name": "rmsprop", "lr": 0.001},
        t_warmup=t_warmup, gradient_clipping=1.0, max_seq_len=32, seed=0,
    )  # fmt: skip
    rates: list[float] = []
    hook = register_optimizer_step_pre_hook(
        lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"])
    )
    try:
        sft(tmp_path / "start", rows, rows, tmp_path / "trained", recipe)
    finally:
        hook.remove()
    assert rates == pytest.approx([0.001 * share for share in wanted])
