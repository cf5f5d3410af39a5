"""A world so small that a model's distance from the data's distribution is exact.

A response is ``L`` symbols of an order-2 Markov chain over ``V`` symbols, to one prompt. All
V**L responses are enumerated, so total variation has no sampling error.

Dimensions: V symbols, L symbols of a response, S = V**L responses.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from examples.evidence.demo_world import ADAMW, YAML
from examples.evidence.settings import set_all
from examples.evidence.worlds import Setting, World
from spin_composer.demo.sft import SftRecipe, sft
from spin_composer.demo.world import Row, write_rows
from spin_composer.settings.yaml import read_yaml, to_mapping

if TYPE_CHECKING:
    from torch import Tensor

V, L = 6, 6
PROMPT = ":"
STOP = "<stop>"
MAX_SEQ_LEN = 16
_PEAKEDNESS = 1.5
"""Standard deviation of the chain's logits."""
_TRAIN, _VALIDATION, _TEST = 500, 250, 500


@lru_cache(maxsize=1)
def data_distribution() -> Tensor:
    """Return p_data [S] fp64 of all responses, in lexicographic order."""
    import torch

    rng = torch.Generator().manual_seed(0)
    logits = _PEAKEDNESS * torch.randn(V + 1, V + 1, V, generator=rng, dtype=torch.float64)
    table = logits.softmax(-1)  # [two symbols before, symbol before, symbol]; V before the start
    responses = sequences(L)
    start = torch.full((len(responses), 2), V)
    context = torch.cat([start, responses], dim=1)
    p = torch.ones(len(responses), dtype=torch.float64)
    for i in range(L):
        p *= table[context[:, i], context[:, i + 1], context[:, i + 2]]
    return p


def sequences(length: int) -> Tensor:
    """Return all sequences [V**length, length] of symbols, in lexicographic order."""
    import torch

    return torch.cartesian_prod(*[torch.arange(V)] * length).view(-1, length)


def total_variation(model: Path) -> float:
    """Return the total variation distance of a saved model from p_data: 0 to 1, exact."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    policy = AutoModelForCausalLM.from_pretrained(model).eval()
    symbols = torch.tensor(tokenizer.convert_tokens_to_ids([str(i) for i in range(V)]))
    q = []
    for part in sequences(L).split(8192):
        prompt = torch.full((len(part), 1), tokenizer.convert_tokens_to_ids(PROMPT))
        stop = torch.full((len(part), 1), tokenizer.eos_token_id)
        ids = torch.cat([prompt, symbols[part], stop], dim=1)  # [part, L + 2]
        with torch.no_grad():
            logps = policy(input_ids=ids[:, :-1]).logits.double().log_softmax(-1)
        q.append(logps.gather(2, ids[:, 1:, None]).sum((1, 2)).exp())
    found = torch.cat(q)  # what is missing to 1 is the mass of all other responses
    return float((found - data_distribution()).abs().sum() + (1 - found.sum())) / 2


@dataclass(frozen=True)
class ExactWorld(World):
    """500 responses of six symbols from a Markov chain of order 2, to one prompt.

    The start had a little SFT on them. Total variation is over all 46,656 responses.
    """

    name: str = "exact"
    start_steps: int = 40
    changes: tuple[tuple[str, Any], ...] = ()

    def config(self) -> dict[str, Any]:
        """Return the demo's settings, with this world's sizes."""
        here = {
            "max_duration": "5iter",
            "max_seq_len": MAX_SEQ_LEN,
            "train_loader.dataset.max_seq_len": MAX_SEQ_LEN,
            "eval_loader.dataset.max_seq_len": MAX_SEQ_LEN,
            "tokenizer.kwargs.model_max_length": MAX_SEQ_LEN,
            "algorithms.spin.beta": 2.0,
            "algorithms.spin.unit_size": _TRAIN,
            "algorithms.spin.generation.max_new_tokens": L + 2,
            "algorithms.spin.generation.batch_size": _TRAIN,
            "optimizer": {"name": "rmsprop", "lr": 5.0e-4},
            "scheduler.alpha_f": 1.0,  # constant after the warm-up
            "global_train_batch_size": 48,
            "device_train_microbatch_size": 48,
            **dict(self.changes),
        }
        return set_all(to_mapping(read_yaml(YAML, [])), here)

    def make(self, folder: Path, seed: int) -> None:
        """Draw the rows, and give a model of random weights a little SFT."""
        import torch

        setting = Setting.of(folder)
        rng = torch.Generator().manual_seed(seed)
        total = _TRAIN + _VALIDATION + _TEST
        drawn = torch.multinomial(data_distribution(), total, replacement=True, generator=rng)
        rows = [Row(PROMPT, "".join(f" {s}" for s in one)) for one in sequences(L)[drawn].tolist()]
        write_rows(rows[:_TRAIN], setting.train)
        write_rows(rows[_TRAIN : _TRAIN + _VALIDATION], setting.validation)
        write_rows(rows[_TRAIN + _VALIDATION :], setting.test)
        _save_untrained(folder / "untrained", seed)
        recipe = SftRecipe(
            duration=f"{self.start_steps}ba",
            batch_size=48,
            microbatch_size=48,
            optimizer={**ADAMW, "lr": 5e-3},
            t_warmup="0ba",
            gradient_clipping=1.0,
            max_seq_len=MAX_SEQ_LEN,
            seed=seed,
        )
        sft(folder / "untrained", setting.train, setting.validation, setting.start, recipe)

    def measure(self, model: Path, setting: Setting, responses: list[str]) -> dict[str, float]:
        """Return the total variation distance."""
        del setting, responses
        return {"total_variation": total_variation(model)}


def _save_untrained(folder: Path, seed: int) -> None:
    """Save a tokenizer of the symbols, and a Llama of random weights."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = [*map(str, range(V)), PROMPT, STOP]
    level: Any = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=STOP))
    level.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=level, eos_token=STOP, pad_token=STOP, model_max_length=MAX_SEQ_LEN
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": MAX_SEQ_LEN,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(folder)
