"""The model works where llm-foundry cannot be imported: it loads, trains, saves and has LoRA."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fixtures.models import tiny_model

RUN = """
import sys

sys.modules["llmfoundry"] = None  # import llmfoundry is an error now
import torch
from composer import DataSpec, Trainer
from tests.fixtures.lm import check_pair_batches, evaluated, sft_batch, word_tokenizer
from tests.fixtures.models import pair_batch
from spin_composer import HFSpinLM
from spin_composer.data.pairs import num_pairs, num_tokens, split_pairs
from spin_composer.errors import InputError
from spin_composer.loss import PairLoss

folder, saved = sys.argv[1:]
tokenizer = word_tokenizer()
check_pair_batches(HFSpinLM(tokenizer, folder))
lora = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "target_modules": ["q_proj"]}
for name, peft_config in (("whole", None), ("lora", lora)):
    model = HFSpinLM(tokenizer, folder, peft_config=peft_config)
    model.pair_loss = PairLoss("logistic", 1.0)
    batch = pair_batch(2)
    batch["opponent_logps"] = model.score(batch)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    data = DataSpec(
        [batch],
        split_batch=split_pairs,
        get_num_samples_in_batch=num_pairs,
        get_num_tokens_in_batch=num_tokens,
    )
    trainer = Trainer(
        model=model,
        train_dataloader=data,
        optimizers=torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1),
        max_duration="1ba",
        device_train_microbatch_size=2,
        device="cpu",
        progress_bar=False,
        save_folder=f"{saved}/{name}",
    )
    trainer.fit()
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[key], after[key]) for key in before), name
    assert all(("lora_" in key) == (name == "lora") for key in after)
    trainer.close()
    assert evaluated(model, sft_batch())["LanguageCrossEntropy"] > 0
try:
    HFSpinLM(tokenizer, folder, additional_eval_metrics=["masked_accuracy"])
except InputError as error:
    print(error)
assert sys.modules["llmfoundry"] is None
print("done")
"""


@pytest.mark.other_stacks
def test_the_model_loads_trains_saves_and_has_lora_without_llm_foundry(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    tiny_model("llama").save_pretrained(tmp_path / "model")
    command = [sys.executable, "-c", RUN, str(tmp_path / "model"), str(tmp_path / "saved")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout.splitlines()
    assert said[-1] == "done"
    assert "Install '.[foundry]' in the checkout" in said[-2]
    for name in ("whole", "lora"):
        assert list((tmp_path / "saved" / name).glob("*.pt"))
