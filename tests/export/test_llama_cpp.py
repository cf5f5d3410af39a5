"""llama.cpp's converters take the exports, and its server answers as transformers does.

    LLAMA_CPP=path/of/llama.cpp python -m pytest -m slow tests/export/test_llama_cpp.py

The converters are scripts in a checkout of llama.cpp (also of the source of llama-cpp-python, in
``vendor/llama.cpp``). The tokenizer is of Llama 2's kind: others are known to llama.cpp by a list.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures import models
from fixtures.runs import tiny_trainer
from fixtures.served import COMMAND, STARTUP_SECONDS
from fixtures.tokenizers import with_byte_fallback
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from spin_composer import HFSpinLM, HuggingFaceExporter
from spin_composer.engines.server.client import HTTPClient
from spin_composer.engines.server.process import free_port, run_server

CHECKOUT = Path(os.environ.get("LLAMA_CPP") or "llama.cpp")
PROMPTS = ([5, 40, 41], [60, 7, 33, 12, 90], [200])

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHECKOUT / "convert_hf_to_gguf.py").exists(),
        reason="llama.cpp's converters are in no package; LLAMA_CPP=folder of a checkout",
    ),
]


def convert(script: str, folder: Path, target: Path, *further: str) -> Path:
    """Convert a Hugging Face folder to GGUF by a script of llama.cpp's."""
    done = subprocess.run(
        [sys.executable, str(CHECKOUT / script), str(folder), "--outtype", "f32",
         "--outfile", str(target), *further],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return target


def answers_of_llama_cpp(gguf: Path, folder: Path, lora: Path | None = None) -> list[list[int]]:
    """Return the greedy responses of llama.cpp's server, which serves a GGUF file."""
    command = COMMAND if lora is None else f"{COMMAND} --lora {lora}"
    port = free_port(0)
    with run_server(command, gguf, port, folder / "server.log") as process:
        client = HTTPClient(f"http://127.0.0.1:{port}", 30, 0, process.check_alive)
        client.wait_until_ready(STARTUP_SECONDS)
        asked = {"temperature": 0, "n_predict": 12, "return_tokens": True}
        bodies = [{**asked, "prompt": prompt} for prompt in PROMPTS]
        return [client.post("/completion", b, threading.Event())["tokens"] for b in bodies]


def answers_of_transformers(model: Any) -> list[list[int]]:
    with torch.no_grad():
        return [
            model.eval()
            .generate(input_ids=torch.tensor([ids]), do_sample=False, max_new_tokens=12)[
                0, len(ids) :
            ]
            .tolist()
            for ids in PROMPTS
        ]


def start_model(folder: Path) -> Any:
    tokenizer = with_byte_fallback()
    model = models.tiny_model(
        "llama", vocab_size=len(tokenizer), max_position_embeddings=256, use_cache=True
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def train(model: Any, folder: Path, *exporters: HuggingFaceExporter) -> None:
    tokenizer = with_byte_fallback()
    trainer = tiny_trainer(
        folder,
        HFSpinLM.from_model(model, tokenizer),
        tokenizer=tokenizer,
        max_duration="1iter",
        callbacks=list(exporters),
    )
    trainer.fit()


def test_an_export_is_converted_and_answers_as_in_transformers(tmp_path: Path) -> None:
    import gguf

    train(start_model(tmp_path / "base"), tmp_path, HuggingFaceExporter(str(tmp_path / "hf")))
    export = tmp_path / "hf/iter0"
    made = convert("convert_hf_to_gguf.py", export, tmp_path / "model.gguf")
    loaded = AutoModelForCausalLM.from_pretrained(export)
    assert answers_of_llama_cpp(made, tmp_path) == answers_of_transformers(loaded)
    stop = gguf.GGUFReader(made).get_field("tokenizer.ggml.eos_token_id")
    assert stop is not None
    assert stop.contents() == AutoTokenizer.from_pretrained(export).eos_token_id


def test_adapters_are_converted_merged_or_beside_their_base(tmp_path: Path) -> None:
    base = tmp_path / "base"
    lora = LoraConfig(r=4, target_modules=["q_proj", "k_proj", "v_proj"], task_type="CAUSAL_LM")
    alone, merged = str(tmp_path / "adapters"), str(tmp_path / "merged")
    exporters = HuggingFaceExporter(alone), HuggingFaceExporter(merged, merge_adapters=True)
    train(get_peft_model(start_model(base), lora), tmp_path, *exporters)
    start = AutoModelForCausalLM.from_pretrained(base)
    before = answers_of_transformers(start)
    wanted = answers_of_transformers(PeftModel.from_pretrained(start, f"{alone}/iter0"))
    assert wanted != before
    whole = convert("convert_hf_to_gguf.py", Path(merged, "iter0"), tmp_path / "merged.gguf")
    assert answers_of_llama_cpp(whole, tmp_path) == wanted
    beneath = convert("convert_hf_to_gguf.py", base, tmp_path / "base.gguf")
    adapters = convert(
        "convert_lora_to_gguf.py", Path(alone, "iter0"), tmp_path / "lora.gguf", "--base", str(base)
    )
    assert answers_of_llama_cpp(beneath, tmp_path, adapters) == wanted
    assert answers_of_llama_cpp(beneath, tmp_path) == before
