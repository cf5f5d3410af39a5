"""Make the run of ``<commit>.tar.xz`` with the code that is imported: see README.md.

    PYTHONPATH=<old checkout>:<old checkout>/kernels python tests/old_runs/make_run.py <commit>

Imports nothing of the tests, so that it runs with the package of any commit.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
KILL = "OLD_RUN_KILL"
STOPS = {
    "boundary": "iteration 1 1",
    "in_play": "unit 1 2",
    "mid_epoch": "batch 16 1",
}
"""Where the run kills itself, in the order in which it comes there: moment, number, hits."""

# Zephyr's: the response follows plain text, so a Metaspace tokenizer writes it in other ids than
# the same text alone.
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
WORDS = ("red", "green", "blue", "one", "two", "three", "The", "cat", "dog", "bird", "sees", "not")

RUN: dict[str, Any] = {
    "seed": 7,
    "run_name": "old",
    "max_seq_len": 96,
    "max_duration": "3iter",
    "model": {
        "name": "hf_spin_lm",
        "pretrained_model_name_or_path": "./model",
        "init_device": "cpu",
        "use_auth_token": False,
    },
    "tokenizer": {"name": "./model", "kwargs": {"model_max_length": 96}},
    "train_loader": {
        "name": "spin",
        "dataset": {
            "hf_name": "json",
            "split": "train",
            "max_seq_len": 96,
            "hf_kwargs": {"data_files": "rows.jsonl"},
        },
        "num_workers": 0,
        "pin_memory": False,
    },
    "eval_loader": {
        "name": "finetuning",
        "dataset": {
            "hf_name": "json",
            "split": "train",
            "max_seq_len": 96,
            "decoder_only_format": True,
            "hf_kwargs": {"data_files": "heldout.jsonl"},
            "shuffle": False,
        },
        "drop_last": False,
        "num_workers": 0,
        "pin_memory": False,
        "prefetch_factor": None,
        "persistent_workers": False,
    },
    "algorithms": {
        "spin": {
            "beta": 0.5,
            "replay": 1,
            "store": "self-play",
            "unit_size": 5,
            "generation": {"max_new_tokens": 10, "batch_size": 4},
        }
    },
    "scheduler": {"name": "spin"},
    "optimizer": {"name": "rmsprop", "lr": 0.001},
    "global_train_batch_size": 4,
    "device_train_microbatch_size": 2,
    "device_eval_batch_size": 4,
    "precision": "fp32",
    "save_folder": "checkpoints",
    "save_interval": "5ba",
    "progress_bar": False,
    "log_to_console": False,
    "python_log_level": "warning",
}


def tokenizer() -> Any:
    """Return a small tokenizer as Llama 2's: pieces begin with a prepended space."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    made.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=160, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>",
        initial_alphabet=[chr(c) for c in range(33, 127)], show_progress=False,
    )  # fmt: skip
    made.train_from_iterator([f"{a} {b}\n{b}{a}" for a in WORDS for b in WORDS], trainer)
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
        pad_token="</s>",
    )  # fmt: skip
    fast.chat_template = TEMPLATE
    return fast


def write_rows(path: Path, num_rows: int, seed: int) -> None:
    """Write chat rows of one and of two turns."""
    rng = random.Random(seed)

    def text(most: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))

    rows = []
    for _ in range(num_rows):
        messages = []
        for _ in range(rng.randint(1, 2)):
            messages.append({"role": "user", "content": text(4)})
            messages.append({"role": "assistant", "content": text(5)})
        rows.append({"messages": messages})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def prepare(folder: Path) -> None:
    """Write model, tokenizer, rows and YAML."""
    from omegaconf import OmegaConf
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True)
    tok = tokenizer()
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tok), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
            bos_token_id=1, eos_token_id=2, pad_token_id=2, initializer_range=0.2,
            use_cache=False, tie_word_embeddings=False,
        )
    )  # fmt: skip
    model.save_pretrained(folder / "model")
    tok.save_pretrained(folder / "model")
    write_rows(folder / "rows.jsonl", 12, seed=0)
    write_rows(folder / "heldout.jsonl", 4, seed=1)
    OmegaConf.save(OmegaConf.create(RUN), folder / "run.yaml")


def probe(model: Path) -> str:
    """Return a hash of a forward and backward pass of transformers' own.

    Where it is the one that was kept, this machine's sums are bit for bit those of the machine
    that made the run; kernels of other CPUs and versions add in other orders.
    """
    from transformers import AutoModelForCausalLM

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    lm: Any = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager").train()
    vocab = lm.config.vocab_size
    ids = torch.arange(3 * 24).mul(37).remainder(vocab).reshape(3, 24)
    lm(input_ids=ids, labels=ids).loss.backward()
    optimizer = torch.optim.RMSprop(lm.parameters(), lr=0.001)
    optimizer.step()
    torch.set_num_threads(threads)
    digest = hashlib.sha256()
    for _, parameter in sorted(lm.named_parameters()):
        digest.update(parameter.grad.numpy().tobytes() + parameter.detach().numpy().tobytes())
    return digest.hexdigest()


def run_once(stop: str | None) -> None:
    """Give the run's command in the working directory; with ``stop``, until it kills itself."""
    from spin_composer.game import Game
    from spin_composer.hooks.iteration_log import IterationLog
    from spin_composer.store.local import LocalStore
    from spin_composer.train import main

    torch.set_num_threads(1)
    if stop is not None:
        moment, number, hits = stop.split()
        seen = []

        def at(name: str, value: int) -> None:
            seen.extend([1] if (name, value) == (moment, int(number)) else [])
            if len(seen) == int(hits):
                os.kill(os.getpid(), signal.SIGKILL)

        start, commit, add_batch = (
            Game.start_iteration,
            LocalStore.commit_unit,
            IterationLog.add_batch,
        )

        def started(game: Any, state: Any, logger: Any) -> Any:
            at("iteration", int(state.timestamp.iteration))
            return start(game, state, logger)

        def committed(self: Any, iteration: int, *args: Any) -> None:
            commit(self, iteration, *args)
            at("unit", iteration)

        def counted(self: Any, state: Any) -> None:
            add_batch(self, state)
            at("batch", int(state.timestamp.batch))

        Game.start_iteration = started
        LocalStore.commit_unit = committed
        IterationLog.add_batch = counted
    sys.exit(main(["run.yaml"]))


def give(folder: Path, stop: str | None = None) -> int:
    """Run the command in a process of its own; return its exit code."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {KILL: stop} if stop else {}
    command = [sys.executable, str(HERE / Path(__file__).name), "--once"]
    return subprocess.run(command, cwd=folder, env=environment, check=False).returncode


def keep(folder: Path, target: Path, checkpoints: bool) -> None:
    """Copy what a run has on the disk, without the lock: it names the machine."""
    shutil.copytree(
        folder / "self-play", target / "self-play", ignore=shutil.ignore_patterns("run.lock*")
    )
    if checkpoints:  # one, for the size's sake, and without the exports
        newest = (folder / "checkpoints/latest-rank0.pt").resolve()
        (target / "checkpoints").mkdir()
        shutil.copy2(newest, target / "checkpoints")
        (target / "checkpoints/latest-rank0.pt").symlink_to(newest.name)


def main() -> None:
    """Make the archive of a commit's run."""
    if sys.argv[1] == "--once":
        run_once(os.environ.get(KILL))
    with tempfile.TemporaryDirectory() as scratch:
        base, kept = Path(scratch, "base"), Path(scratch, "kept")
        prepare(base)
        shutil.copytree(base, Path(scratch, "whole"))
        shutil.copytree(base, Path(scratch, "stopped"))
        shutil.copytree(base, kept)
        (kept / "probe.txt").write_text(probe(base / "model") + "\n")
        assert give(Path(scratch, "whole")) == 0
        keep(Path(scratch, "whole"), kept / "whole", checkpoints=False)
        final = "checkpoints/huggingface/ep6/model.safetensors"
        shutil.copy2(Path(scratch, "whole", final), kept / "whole")
        for name, stop in STOPS.items():
            assert give(Path(scratch, "stopped"), stop) == -signal.SIGKILL, name
            keep(Path(scratch, "stopped"), kept / name, checkpoints=True)
        assert give(Path(scratch, "stopped")) == 0
        weights = [Path(scratch, name, final).read_bytes() for name in ("whole", "stopped")]
        assert weights[0] == weights[1], "the old code itself did not resume bit-equal"
        with tarfile.open(HERE / f"{sys.argv[1]}.tar.xz", "w:xz", preset=9) as archive:
            for path in sorted(kept.iterdir()):
                archive.add(path, path.name, filter=anonymous)


def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Drop the owner's name."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


if __name__ == "__main__":
    main()
