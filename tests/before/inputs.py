"""The inputs of the recorded runs: a tiny model, a tokenizer, rows and a YAML.

Everything is computed from integers, nothing is trained or drawn by torch, so that every machine
and version makes the same bytes.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

WORDS = ("red", "green", "blue", "one", "two", "three", "cat", "dog", "bird", "sees", "not")
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
REMOVED = object()
"""The value of a key that :func:`changed` removes."""

_DATASET = {
    "hf_name": "json",
    "split": "train",
    "max_seq_len": 80,
    "hf_kwargs": {"data_files": "rows.jsonl"},
}
_LOADER = {"name": "spin", "num_workers": 0, "pin_memory": False, "drop_last": False}
RUN: dict[str, Any] = {
    "seed": 7,
    "run_name": "before",
    "max_seq_len": 80,
    "max_duration": "2iter",
    "model": {
        "name": "hf_spin_lm",
        "pretrained_model_name_or_path": "./model",
        "init_device": "cpu",
        "use_auth_token": False,
    },
    "tokenizer": {"name": "./model", "kwargs": {"model_max_length": 80}},
    "train_loader": {**_LOADER, "dataset": _DATASET},
    "eval_loader": {
        **_LOADER,
        "dataset": {**_DATASET, "hf_kwargs": {"data_files": "heldout.jsonl"}},
    },
    "algorithms": {
        "spin": {
            "layout": "padded",  # as all was when the record was made: sums are rounded otherwise
            "beta": [0.5, 1.0],
            "iteration_length": "2ep",
            "replay": 1,
            "store": "self-play",
            "unit_size": 5,
            "deterministic": True,
            "sample_table_rows": 4,
            "generation": {"max_new_tokens": 10, "batch_size": 4, "stop_strings": ["dog"]},
        }
    },
    "scheduler": {"name": "spin"},
    "optimizer": {"name": "rmsprop", "lr": 0.001},
    "global_train_batch_size": 4,
    "device_train_microbatch_size": 2,
    "device_eval_batch_size": 4,
    "precision": "fp32",
    "save_folder": "checkpoints",
    "save_interval": "1iter",
    "progress_bar": False,
    "log_to_console": False,
    "python_log_level": "warning",
}
LORA = {
    "model.peft_config": {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj"],
    },
    "optimizer.lr": 0.01,
}  # fmt: skip
"""What differs in the run that trains adapters."""


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """Return the run's config with dotted keys set, or taken out where the value is REMOVED."""
    config = copy.deepcopy(RUN)
    for dotted, value in changes.items():
        *path, last = dotted.split(".")
        section = config
        for key in path:
            section = section.setdefault(key, {})
        if value is REMOVED:
            section.pop(last)
        else:
            section[last] = value
    return config


def write_yaml(path: Path, changes: dict[str, Any]) -> str:
    """Write the run's YAML with changes; return its path as the command is given it."""
    import yaml

    path.write_text(yaml.safe_dump(changed(changes), sort_keys=False))
    return str(path)


def tokenizer() -> Any:
    """Return a byte-level BPE whose merges spell the words, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<|end|>": 0, "<|user|>": 1, "<|assistant|>": 2}
    for letter in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[letter] = len(vocabulary)
    merges = []
    for word in ("Ġ" + word for word in WORDS):
        for end in range(2, len(word) + 1):
            pair = (word[: end - 1], word[end - 1])
            if pair not in merges:
                merges.append(pair)
                vocabulary[word[:end]] = len(vocabulary)
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|end|>", pad_token="<|end|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
    )  # fmt: skip
    fast.chat_template = TEMPLATE
    return fast


def save_model(folder: Path) -> None:
    """Save the model and its tokenizer.

    All embeddings share a direction to which the stop token's row of the head leans, so that a
    part of the responses ends by itself.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    tok = tokenizer()
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tok), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=96,
            bos_token_id=None, eos_token_id=0, pad_token_id=0, use_cache=False,
            tie_word_embeddings=False,
        )
    )  # fmt: skip
    numbers = np.random.RandomState(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                drawn = numbers.randint(-1000, 1001, tuple(weight.shape))
                weight.copy_(torch.from_numpy(drawn.astype(np.float32) / 3000))
        model.model.embed_tokens.weight[:, 0] += 0.75
        model.lm_head.weight[0] = 0
        model.lm_head.weight[0, 0] = 1.25
    model.save_pretrained(folder)
    tok.save_pretrained(folder)


def write_rows(path: Path, num_rows: int, seed: int) -> None:
    """Write chat rows of one and of two turns."""
    numbers = np.random.RandomState(seed)

    def text(most: int) -> str:
        return "".join(f" {WORDS[i]}" for i in numbers.randint(len(WORDS), size=1 + seed % most))

    rows = []
    for i in range(num_rows):
        seed += 1
        turns = [("user", 3), ("assistant", 4)] * (1 + i % 2)
        rows.append({"messages": [{"role": role, "content": text(n)} for role, n in turns]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def prepare() -> None:
    """Write model, tokenizer and rows to the working directory."""
    save_model(Path("model"))
    write_rows(Path("rows.jsonl"), 16, seed=0)
    write_rows(Path("heldout.jsonl"), 5, seed=100)
    write_rows(Path("others.jsonl"), 16, seed=200)


def probe() -> str:
    """Return a hash of some steps of transformers' own on the model.

    Where it is the recorded one, this machine's sums are bit for bit those of the machine that
    made the record; kernels of other CPUs and versions add in other orders.
    """
    import hashlib

    from transformers import AutoModelForCausalLM

    lm: Any = AutoModelForCausalLM.from_pretrained("model", attn_implementation="eager").train()
    optimizer = torch.optim.RMSprop(lm.parameters(), lr=0.001)
    for step in range(3):
        ids = torch.arange(3 * 24).add(step).mul(37).remainder(lm.config.vocab_size).reshape(3, 24)
        optimizer.zero_grad()
        lm(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    digest = hashlib.sha256()
    for _, parameter in sorted(lm.named_parameters()):
        digest.update(parameter.grad.numpy().tobytes() + parameter.detach().numpy().tobytes())
    return digest.hexdigest()
