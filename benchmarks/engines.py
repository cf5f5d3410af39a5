"""Generation of a unit by each engine and its peers, and its scoring, on a pretrained model.

    python examples/smollm2.py FOLDER
    taskset -c 0 python benchmarks/engines.py --model FOLDER --gguf FILE.gguf \
        --data gsm8k_train.jsonl --out benchmarks/results/engines_cpu.json

All answer the same prompts, rendered by the model's chat template, with at most ``--new`` tokens
from the policy's own distribution (temperature 1, nothing cut), in fp32 with one thread, in turn,
round after round; medians count. Engine ``hf``, Hugging Face ``generate`` and its continuous
batching (``generate_batch``) run in this process; llama.cpp's server and, with ``--vllm`` (the
Python of an environment that has it), vLLM's answer engine ``server``, whose own part counts too.
``llama.cpp, 4 bits`` is another arithmetic: the wheel's own file, named for comparison.

Tokens are those of the responses, the stop token included; reading the prompts is part of the time.
CPU seconds are of this process and the server; wall seconds are longer where the core is shared.
Then the unit that engine ``hf`` made is scored as play scores it, in each layout.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parent))
sys.path.append(str(Path(__file__).resolve().parent / "gpu"))

import numpy as np
import psutil
import torch
from generation import plain_generate, response_length
from record import write
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from spin_composer import HFSpinLM
from spin_composer.data.examples import Example, ExampleDataset
from spin_composer.data.pairs import Ids, PairBatch
from spin_composer.engines.hf.generator import HFGenerator
from spin_composer.engines.server.client import HTTPClient
from spin_composer.engines.server.generator import ServerGenerator
from spin_composer.engines.server.process import free_port, last_lines, run_server
from spin_composer.errors import EngineError
from spin_composer.model.layout.attention import install_segment_attention
from spin_composer.model.layout.choose import LAYOUTS
from spin_composer.play.plan import PlayUnit
from spin_composer.play.player import Player
from spin_composer.settings.generation import GenerationSettings
from spin_composer.store.local import LocalStore

ROOT = Path(__file__).resolve().parents[1]
HF, GENERATE, CONTINUOUS = "engine hf", "generate", "generate_batch"
LLAMA_CPP, FOUR_BITS, VLLM = "llama.cpp", "llama.cpp, 4 bits", "vLLM"
PACKAGES = ("torch", "transformers", "xllamacpp", "numpy")
_PAGE = 32
"""Tokens of a page of the cache of continuous batching."""
_BATCH_TOKENS = 512
"""Tokens of a forward pass of continuous batching; the longest prompt fits in."""
Answer = Callable[[Sequence[Ids], int], Sequence[Ids]]


@dataclass
class Arm:
    """What answers prompts with a seed, and the process that it asks to do it, with its log."""

    answer: Answer
    server: psutil.Process | None = None
    log: Path | None = None

    def server_seconds(self) -> float:
        """Return the CPU seconds of the server so far, with those of its children."""
        if self.server is None:
            return 0.0
        family = [self.server, *self.server.children(recursive=True)]
        return sum(sum(process.cpu_times()[:2]) for process in family)


class Setting:
    """Model, prompts and sampling settings that all have in common."""

    def __init__(self, given: argparse.Namespace):
        self.given = given
        self.tokenizer: Any = AutoTokenizer.from_pretrained(given.model)
        loaded: Any = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32)
        self.policy = HFSpinLM.from_model(loaded, self.tokenizer).eval()
        self.stop = int(self.tokenizer.eos_token_id)
        self.settings = GenerationSettings(max_new_tokens=given.new, batch_size=given.batch_size)
        with open(given.data, encoding="utf-8") as file:
            rows = [json.loads(line) for line, _ in zip(file, range(given.prompts), strict=False)]
        self.examples = ExampleDataset.from_examples([self._example(r) for r in rows], self.stop)
        self.prompts = [self.examples[i].prompt for i in range(len(rows))]

    def _example(self, row: dict[str, str]) -> Example:
        turn = [{"role": "user", "content": row["prompt"]}]
        options = {"add_generation_prompt": True, "return_dict": False}
        prompt = self.tokenizer.apply_chat_template(turn, **options)
        response = self.tokenizer(row["response"], add_special_tokens=False).input_ids
        return Example(
            np.array(prompt, np.int32), np.array([*response, self.stop], np.int32), truncated=False
        )

    def hf(self) -> HFGenerator:
        """Return engine hf's generator."""
        cpu = torch.device("cpu")
        model: Any = self.policy.model
        return HFGenerator(model, self.tokenizer, self.stop, self.settings, cpu)


def local_arms(setting: Setting) -> dict[str, Arm]:
    """Return what generates in this process."""
    engine, model = setting.hf(), setting.policy.model
    size, new, stop = setting.given.batch_size, setting.given.new, setting.stop

    def ours(prompts: Sequence[Ids], seed: int) -> list[Ids]:
        return [response.ids for response in engine.generate(prompts, seed)]

    def generate(prompts: Sequence[Ids], seed: int) -> list[Ids]:
        return plain_generate(model, prompts, seed, size, new, stop)

    found = {HF: Arm(ours), GENERATE: Arm(generate)}
    if hasattr(model, "generate_batch"):
        found[CONTINUOUS] = Arm(partial(continuous, setting))
    return found


def continuous(setting: Setting, prompts: Sequence[Ids], seed: int) -> list[Ids]:
    """Answer by transformers' continuous batching, with a cache that holds the batch's rows.

    Its own sizing takes nearly all of a machine's memory.
    """
    from transformers import ContinuousBatchingConfig

    rows, new = setting.given.batch_size, setting.given.new
    pages = -(-(max(map(len, prompts)) + new) // _PAGE)
    sizes = {"page_size": _PAGE, "num_blocks": rows * pages, "max_batch_tokens": _BATCH_TOKENS}
    model: Any = setting.policy.model
    done = model.generate_batch(
        [prompt.tolist() for prompt in prompts],
        generation_config=GenerationConfig(
            do_sample=True, top_k=0, max_new_tokens=new,
            eos_token_id=setting.stop, pad_token_id=setting.stop,
        ),
        continuous_batching_config=ContinuousBatchingConfig(
            **sizes, max_requests_per_batch=rows, seed=seed
        ),
    )  # fmt: skip
    failed = [output.error for output in done.values() if output.error is not None]
    if failed or len(done) != len(prompts):
        sys.exit(f"generate_batch answered {len(done)} of {len(prompts)} prompts: {failed[:1]}")
    answers = [np.array(output.generated_tokens, np.int32) for output in done.values()]
    return [ids[: response_length(ids, setting.stop)] for ids in answers]


@contextmanager
def server_arm(setting: Setting, command: str, model: Path, log: Path) -> Iterator[Arm]:
    """Yield engine server over a server that runs until the end of the context.

    Args:
        setting: Its prompts' longest context is the server's.
        command: A template with ``{model}`` and ``{port}``.
        model: What the server loads.
        log: Where its output goes.
    """
    port = free_port(0)
    with run_server(command, model, port, log) as server:
        url = f"http://127.0.0.1:{port}"
        HTTPClient(url, 60.0, 0, server.check_alive).wait_until_ready(600.0)
        settings: Any = {"engine": "server", "server": {"command": command}}
        settings = GenerationSettings(**settings, max_new_tokens=setting.given.new)
        generator = ServerGenerator(
            url, setting.tokenizer, setting.stop, settings, server.check_alive
        )

        def answer(prompts: Sequence[Ids], seed: int) -> list[Ids]:
            return [response.ids for response in generator.generate(prompts, seed)]

        yield Arm(answer, psutil.Process(server.process.pid), log)


def server_arms(setting: Setting, stack: ExitStack, logs: Path) -> dict[str, Arm]:
    """Return the servers that the command line names, started."""
    given = setting.given
    context = max(map(len, setting.prompts)) + given.new
    rows = given.batch_size
    llama_cpp = shlex.join([
        sys.executable, str(ROOT / "tests/fixtures/llamacpp.py"), "--model", "{model}",
        "--port", "{port}", "--slots", str(rows), "--context", str(-(-context // 256) * 256),
    ])  # fmt: skip
    wanted = [(LLAMA_CPP, llama_cpp, given.model)]
    if given.gguf is not None:
        wanted.append((FOUR_BITS, llama_cpp, given.gguf))
    if given.vllm is not None:
        os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        vllm = (
            f"{given.vllm} -m vllm.entrypoints.openai.api_server --model {{model}} --port {{port}} "
            f"--dtype float32 --max-model-len {context} --max-num-seqs {rows} "
            "--no-enable-prefix-caching"
        )
        wanted.append((VLLM, vllm, given.model))
    only = given.only.split(";") if given.only else [name for name, *_ in wanted]
    return {
        name: stack.enter_context(server_arm(setting, command, model, logs / f"{name}.log"))
        for name, command, model in wanted
        if name in only
    }


class Scoring:
    """A unit as play makes it: answered by engine hf, both sides scored in each layout."""

    def __init__(self, setting: Setting, folder: Path):
        self.policy, count = setting.policy, len(setting.prompts)
        install_segment_attention(self.policy.model)
        size = max(1, setting.given.batch_size // 2)  # as in a run
        self.player = Player(
            LocalStore(folder), setting.hf(), self._score, setting.examples, 0, size
        )
        self.unit = PlayUnit(np.arange(count))

    @torch.no_grad()
    def _score(self, batch: PairBatch) -> torch.Tensor:
        return self.policy.score(batch)

    def measure(self, turn: int) -> dict[str, float]:
        """Return CPU seconds of answering and, by layout, of scoring a unit."""
        started = time.process_time()
        draft = self.player.draft(turn, 0, self.unit)
        found = {"generated": time.process_time() - started}
        for name in ("shared", "padded"):
            self.policy.layout = LAYOUTS[name]
            started = time.process_time()
            self.player.score_draft(draft)
            found[name] = time.process_time() - started
        return found


def timed(arm: Arm, prompts: Sequence[Ids], seed: int) -> dict[str, float]:
    """Return CPU and wall seconds and tokens of one call."""
    cpu, server, wall = time.process_time(), arm.server_seconds(), time.perf_counter()
    answers = arm.answer(prompts, seed)
    return {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu + arm.server_seconds() - server,
        "tokens": float(sum(map(len, answers))),
    }


def summary(rounds: list[dict[str, float]]) -> dict[str, float]:
    """Return medians over rounds; speeds are of each round's own tokens."""
    by_cpu = [x["tokens"] / x["cpu_s"] for x in rounds]
    return {
        "tokens_per_cpu_second": statistics.median(by_cpu),
        "slowest": min(by_cpu),
        "fastest": max(by_cpu),
        "tokens_per_second": statistics.median(x["tokens"] / x["wall_s"] for x in rounds),
        "tokens": statistics.mean(x["tokens"] for x in rounds),
    }


def measured(
    setting: Setting, arms: dict[str, Arm], scoring: Scoring, keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Return the results of all rounds; ``keep`` gets those so far after each.

    A server that fails is named with its error, and not asked again.
    """
    found: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    failed: dict[str, str] = {}
    units: list[dict[str, float]] = []
    result: dict[str, Any] = {}
    for turn in range(setting.given.rounds):
        for name, arm in arms.items():
            if name in failed:
                continue
            try:
                x = timed(arm, setting.prompts, turn)
            except EngineError as error:
                log = "" if arm.log is None else last_lines(arm.log)
                failed[name] = f"{error} {log}"
                print(f"round {turn} {name:20s} failed: {failed[name]}", flush=True)
                continue
            found[name].append(x)
            print(f"round {turn} {name:20s} {x['tokens'] / x['cpu_s']:7.1f} tokens/s", flush=True)
        units.append(scoring.measure(turn))
        print(f"round {turn} unit {units[-1]}", flush=True)
        result = _result(found, units) | {"rounds": turn + 1, "failed": failed}
        keep(result)
    return result


def _result(
    found: dict[str, list[dict[str, float]]], units: list[dict[str, float]]
) -> dict[str, Any]:
    medians = {name: statistics.median(unit[name] for unit in units) for name in units[0]}
    made = medians["generated"]
    shares = {name: x / (x + made) for name, x in medians.items() if name != "generated"}
    return {
        "engines": {name: summary(rounds) for name, rounds in found.items() if rounds},
        "unit_cpu_s": medians,
        "share_of_scoring": shares,
    }


def origin(setting: Setting) -> dict[str, Any]:
    """Return command, machine, versions and the prompts' mean length."""
    cores = len(os.sched_getaffinity(0))
    return {
        "command": shlex.join(["python", "benchmarks/engines.py", *sys.argv[1:]]),
        "machine": {"processor": _processor(), "cores": cores, "threads": torch.get_num_threads()},
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "prompt_tokens": statistics.mean(map(len, setting.prompts)),
    }


def _processor() -> str:
    """Return the processor's name, as Linux tells it."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a Hugging Face folder")
    parser.add_argument("--gguf", type=Path, help="also served by llama.cpp as it is")
    parser.add_argument("--vllm", help="the Python of an environment with vLLM for CPU")
    parser.add_argument("--data", type=Path, required=True, help="jsonl of prompt and response")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="names of arms, separated by ';'; all")
    parser.add_argument("--out", type=Path)
    setting = Setting(parser.parse_args())
    torch.set_num_threads(1)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        arms = local_arms(setting) | server_arms(setting, stack, scratch)
        only = setting.given.only.split(";") if setting.given.only else list(arms)
        arms = {name: arm for name, arm in arms.items() if name in only}
        result = origin(setting)
        scoring = Scoring(setting, scratch / "store")
        found = measured(setting, arms, scoring, lambda x: write(result | x, setting.given.out))
    for name, x in found["engines"].items():
        wall = f"{x['tokens_per_second']:7.1f} by the clock"
        print(f"{name:20s} {x['tokens_per_cpu_second']:7.1f} tokens per CPU second, {wall}")
    print(found["unit_cpu_s"], found["share_of_scoring"])


if __name__ == "__main__":
    main()
