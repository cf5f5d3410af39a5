"""A tiny tokenizer and a tiny Llama, trained on rows of SFT data from scratch.

``python -m spin_composer.demo.base TRAIN.jsonl HELDOUT.jsonl FOLDER`` creates a base model for any
data; the demo uses the same functions.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from spin_composer.demo.sft import SftRecipe, SftResult, sft
from spin_composer.demo.world import read_rows
from spin_composer.store.durable import apply_umask

END_OF_TEXT = "<|endoftext|>"
_ADAMW = {"betas": (0.9, 0.98), "weight_decay": 0.0}


@dataclass(frozen=True)
class ModelSize:
    """Size of a tiny Llama."""

    vocab_size: int = 600
    """At most; a small text holds fewer tokens."""
    width: int = 64
    layers: int = 2
    heads: int = 4
    max_seq_len: int = 64


@dataclass(frozen=True)
class SFTConfig:
    """How the base model is trained."""

    epochs: int = 6
    batch_size: int = 64
    microbatch_size: int = 64
    learning_rate: float = 3e-3
    seed: int = 17


def make_base(
    train_rows: Path,
    held_out_rows: Path,
    folder: Path,
    size: ModelSize,
    training: SFTConfig,
    progress_bar: bool = False,
) -> SftResult:
    """Train a tokenizer and a model on rows by SFT; save both to ``folder``.

    Args:
        train_rows: jsonl of prompt and response.
        held_out_rows: The same, for the held-out NLL.
        folder: Where model and tokenizer go; the untrained ones go to ``untrained`` in it.
        size: Of the model.
        training: Of the training.
        progress_bar: Show one.
    """
    untrained = folder / "untrained"
    texts = (row.prompt + row.response for row in read_rows(train_rows))
    _save_untrained(texts, untrained, size, training.seed)
    return sft(
        untrained,
        train_rows,
        held_out_rows,
        folder,
        SftRecipe(
            duration=f"{training.epochs}ep",
            batch_size=training.batch_size,
            microbatch_size=training.microbatch_size,
            optimizer={"name": "decoupled_adamw", "lr": training.learning_rate, **_ADAMW},
            t_warmup="0.1dur",
            gradient_clipping=1.0,
            max_seq_len=size.max_seq_len,
            seed=training.seed,
        ),
        progress_bar,
    )


def _save_untrained(texts: Iterable[str], folder: Path, size: ModelSize, seed: int) -> None:
    """Save a byte-level BPE tokenizer of the texts, and a Llama of random weights."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe: Any = Tokenizer(models.BPE())  # the library's stubs know neither setters nor options
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    options: dict[str, Any] = {
        "vocab_size": size.vocab_size,
        "special_tokens": [END_OF_TEXT],
        "initial_alphabet": pre_tokenizers.ByteLevel.alphabet(),
        "show_progress": False,
    }
    bpe.train_from_iterator(texts, trainers.BpeTrainer(**options))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=size.max_seq_len,
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": size.width,
        "intermediate_size": 2 * size.width,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads,
        "max_position_embeddings": size.max_seq_len,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(folder)
    apply_umask(folder)


def main(
    train_rows: Annotated[Path, typer.Argument(help="jsonl of prompt and response.")],
    held_out_rows: Annotated[Path, typer.Argument(help="The same, for the held-out NLL.")],
    folder: Annotated[Path, typer.Argument(help="New folder of the model and tokenizer.")],
    vocab_size: Annotated[int, typer.Option(help="Tokens of the vocabulary, at most.")] = 2048,
    width: Annotated[int, typer.Option(help="Of the residual stream.")] = 128,
    layers: Annotated[int, typer.Option()] = 4,
    heads: Annotated[int, typer.Option()] = 4,
    max_seq_len: Annotated[int, typer.Option(help="Positions of the model.")] = 512,
    epochs: Annotated[int, typer.Option()] = 1,
    batch_size: Annotated[int, typer.Option(help="Rows per optimizer step.")] = 16,
    microbatch_size: Annotated[int, typer.Option(help="Rows per forward pass.")] = 4,
    learning_rate: Annotated[float, typer.Option(help="Peak.")] = 2e-3,
    seed: Annotated[int, typer.Option()] = 17,
) -> None:
    """Train a tiny tokenizer and a tiny Llama on SFT rows, on the CPU."""
    if (folder / "config.json").exists():
        print(f"error: {folder} holds a model already. Delete it to train again.", file=sys.stderr)
        raise typer.Exit(2)
    size = ModelSize(vocab_size, width, layers, heads, max_seq_len)
    training = SFTConfig(epochs, batch_size, microbatch_size, learning_rate, seed)
    result = make_base(train_rows, held_out_rows, folder, size, training, progress_bar=True)
    print(
        f"{result.folder}: {result.steps} steps, {result.tokens} tokens, held-out NLL "
        f"{result.held_out_nll:.3f} nats per token"
    )


if __name__ == "__main__":
    typer.run(main)
