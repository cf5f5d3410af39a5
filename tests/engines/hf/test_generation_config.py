"""A checkpoint's own generation_config.json, as hostile as it can be, changes no sample."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from composer.core import Precision
from scipy.stats import chi2

from spin_composer import HFSpinLM
from spin_composer.engines.base import Opponent, make_engine
from spin_composer.errors import InputError
from spin_composer.settings.generation import GenerationSettings
from tests.fixtures.models import tiny_model
from tests.fixtures.tokenizers import byte_level

PROMPTS = [np.array(ids, np.int32) for ids in ([5, 3], [40, 97, 101, 9, 8], [66], [33, 33, 110])]
STOP_ID = 5
HOSTILE: dict[str, Any] = {
    # how a token is drawn
    "do_sample": True, "temperature": 0.01, "top_k": 1, "top_p": 0.1, "min_p": 0.9, "top_h": 0.1,
    "typical_p": 0.2, "epsilon_cutoff": 0.02, "eta_cutoff": 0.02, "renormalize_logits": True,
    "num_beams": 3, "num_beam_groups": 3, "diversity_penalty": 0.5, "penalty_alpha": 0.6,
    "dola_layers": "low", "guidance_scale": 7.0, "watermarking_config": {"bias": 9.0},
    # which tokens may be drawn
    "repetition_penalty": 9.0, "encoder_repetition_penalty": 9.0, "no_repeat_ngram_size": 1,
    "encoder_no_repeat_ngram_size": 1, "suppress_tokens": list(range(20, 200)),
    "begin_suppress_tokens": list(range(200, 380)), "bad_words_ids": [[7], [8, 9]],
    "forced_bos_token_id": 7, "forced_eos_token_id": 8, "forced_decoder_ids": [[1, 9]],
    "sequence_bias": [[[11], 50.0]], "remove_invalid_values": True,
    # where a response ends
    "max_length": 3, "max_new_tokens": 1, "min_length": 40, "min_new_tokens": 7, "max_time": 0.001,
    "eos_token_id": [7, 9, 11], "pad_token_id": 13, "bos_token_id": 17, "stop_strings": ["e", " "],
    "exponential_decay_length_penalty": [1, 50.0], "length_penalty": 9.0, "early_stopping": True,
    # how it is computed, and what is returned
    "use_cache": False, "cache_implementation": "static", "num_return_sequences": 2,
    "return_dict_in_generate": True, "output_scores": True, "output_logits": True,
    "prompt_lookup_num_tokens": 3, "is_assistant": True, "token_healing": True, "low_memory": True,
}  # fmt: skip

if int(transformers.__version__.partition(".")[0]) < 5:  # which does not read them beside do_sample
    HOSTILE = {
        k: v for k, v in HOSTILE.items() if k not in ("num_beam_groups", "diversity_penalty")
    }


def save(folder: Path, family: str, written: dict[str, Any]) -> Path:
    model = tiny_model(family, vocab_size=len(byte_level()))
    model.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(written))
    return folder


def sample(folder: Path, prompts: list[np.ndarray], **settings: Any) -> list[tuple]:
    """Answer prompts by the model of a folder, loaded and asked as in a run."""
    model = HFSpinLM(byte_level(), str(folder))
    given = GenerationSettings(**{"max_new_tokens": 8, "batch_size": 500, **settings})
    opponent = Opponent(
        model, STOP_ID, "any", Precision.FP32, nullcontext, torch.device("cpu"), folder
    )
    with make_engine(given).open(opponent) as generator:
        answers = generator.generate(prompts, seed=3)
    return [(answer.ids.tolist(), answer.finish) for answer in answers]


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # our decode loop, and generate
def test_a_hostile_file_changes_no_sample(family: str, tmp_path: Path) -> None:
    wanted = sample(save(tmp_path / "neutral", family, {}), PROMPTS * 5)
    got = sample(save(tmp_path / "hostile", family, HOSTILE), PROMPTS * 5)
    assert got == wanted
    assert len({tuple(ids) for ids, _ in got}) > 15


def test_one_that_transformers_refuses_is_named(tmp_path: Path) -> None:
    folder = save(tmp_path, "llama", {"max_new_tokens": 0})
    with pytest.raises(InputError, match=r"refuses its generation_config.json .*Correct or remove"):
        sample(folder, PROMPTS)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_first_tokens_have_the_policys_exact_distribution(family: str, tmp_path: Path) -> None:
    folder = save(tmp_path, family, HOSTILE)
    count = 4000
    drawn = [ids[0] for ids, _ in sample(folder, [PROMPTS[0]] * count, max_new_tokens=1)]
    model = HFSpinLM(byte_level(), str(folder)).model.eval()
    with torch.no_grad():
        ids = torch.from_numpy(PROMPTS[0].astype(np.int64))[None]
        logits = model(input_ids=ids).logits[0, -1].double()
    statistics = []
    for temperature in (1.0, 1.5):
        chances = (logits / temperature).softmax(-1).numpy()
        seen = np.bincount(drawn, minlength=len(chances))
        # Tokens of about as many samples together: a bin of one token would hold too few.
        bins = (np.argsort(np.argsort(logits.numpy())) * 12) // len(chances)
        chance = np.bincount(bins, weights=chances)
        found = np.bincount(bins, weights=seen)
        statistics.append(float(((found - count * chance) ** 2 / (count * chance)).sum()))
    limit = chi2.ppf(1 - 1e-3, 11)
    assert statistics[0] < limit
    assert statistics[1] > 2 * limit  # the test would see another temperature
