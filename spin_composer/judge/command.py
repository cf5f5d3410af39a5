"""``spin-composer judge``: the measures of a run's start model and of each exported iteration."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from composer.core import Precision
from composer.core.precision import get_precision_context
from composer.devices import DeviceCPU, DeviceGPU
from rich.console import Console

from spin_composer.data.tokenizers import load_tokenizer
from spin_composer.judge.held_out import choose_rows, read_held_out
from spin_composer.judge.kept import (
    START,
    Kept,
    find_kept,
    kept_name,
    make_key,
    way_of_judging,
    write_kept,
)
from spin_composer.judge.result import Result, judge, print_result
from spin_composer.judge.run import JudgedRun
from spin_composer.judge.sampling import JudgedModel, JudgedRow, sample_rows, sampling_settings
from spin_composer.model.fingerprint import fingerprint
from spin_composer.model.lm import HFSpinLM
from spin_composer.pretrained.limits import read_limits

_COLUMNS = 120
_WEIGHTS_AND_CONFIG = (".safetensors", ".bin", ".json")


def judge_run(run: JudgedRun, as_json: bool = False) -> Result:
    """Judge a run; print the table, and write ``judge.json`` into the run's store.

    Models that are kept from an earlier call, or from the callback, are not sampled again.

    Args:
        run: Of :func:`~spin_composer.judge.run.read_run`.
        as_json: Print what ``judge.json`` holds in place of the table.

    Raises:
        InputError: Rows or models cannot be read.
    """
    result = RunJudge(run, Console(stderr=True)).result()
    result.write(run.folder)
    if as_json:
        print(json.dumps(result.as_json(), indent=1))
    else:
        console = Console()
        print_result(result, Console(width=max(console.width, _COLUMNS)))
    return result


class RunJudge:
    """Samples what is not kept yet, model by model, and judges.

    Args:
        run: What to judge.
        console: Where progress is shown.

    Raises:
        InputError: The tokenizer or the held-out rows cannot be read, or are too few.
    """

    def __init__(self, run: JudgedRun, console: Console) -> None:
        self.run = run
        self.console = console
        self.tokenizer = load_tokenizer(*run.tokenizer)
        self.sampling = sampling_settings(run.settings, run.generation)
        limits = read_limits({"pretrained_model_name_or_path": run.start, **run.model})
        examples, self.held_out = read_held_out(run.dataset, self.tokenizer)
        self.rows = choose_rows(examples, run.settings, self.sampling.max_new_tokens, limits)

    def result(self) -> Result:
        """Return the run's result.

        Raises:
            InputError: A model cannot be loaded.
        """
        start = self._kept(START, self.run.start, self.run.start_adapters)
        iterations = []
        for export in self.run.exports:
            whole = not export.only_adapters
            base = str(export.folder) if whole else self.run.start
            kept = self._kept(export.name, base, None if whole else str(export.folder))
            iterations.append((export.name, kept))
        return judge(start, iterations, self.run.settings, self.held_out, known={})

    def _kept(self, name: str, base: str, adapters: str | None) -> Kept:
        """Return a model's rows: kept ones, if they are of these weights and rows."""
        files = _file_states(base) | _file_states(adapters)
        way = way_of_judging(self.rows, self.sampling, self.run.settings.seed)
        own = self.run.folder / kept_name(name, way)
        # The callback's, or of an older version's command: read, and never replaced.
        others = self.run.folder / kept_name(name)
        known = [kept for path in (own, others) if (kept := find_kept(path)) is not None]
        for kept in known:
            weights = str(kept.key.get("weights"))
            if files and kept.files == files and kept.key == self._key(weights):
                return kept
        self.console.print(f"{name}: loading {adapters or base}", style="dim", markup=False)
        judged = self._load(base, adapters)
        key = self._key(fingerprint(judged.model))
        rows = next((kept.rows for kept in known if kept.key == key), None)
        kept = Kept(key, rows or self._sample(name, judged), files, adapters or base)
        write_kept(own, kept)
        return kept

    def _key(self, weights: str) -> dict[str, Any]:
        return make_key(weights, self.rows, self.sampling, self.run.settings.seed)

    def _sample(self, name: str, judged: JudgedModel) -> list[JudgedRow]:
        with self.console.status(f"{name}: answering") as status:

            def tell(done: int) -> None:
                status.update(f"{name}: {done} of {len(self.rows)} responses")

            return sample_rows(judged, self.rows, self.sampling, self.run.settings.seed, tell)

    def _load(self, base: str, adapters: str | None) -> JudgedModel:
        model = HFSpinLM(
            self.tokenizer, base, pretrained_lora_id_or_path=adapters, **self.run.model
        ).eval()
        if not torch.cuda.is_available():
            return JudgedModel(model, DeviceCPU(), nullcontext)
        device, precision = DeviceGPU(), Precision(self.run.precision)
        autocast = partial(get_precision_context, precision)
        return JudgedModel(device.module_to_device(model), device, autocast)


def _file_states(folder: str | None) -> dict[str, list[int]]:
    """Return size and time of change of a model's files; empty of a name on the Hub."""
    if folder is None or not Path(folder).is_dir():
        return {}
    files = [path for path in Path(folder).iterdir() if path.suffix in _WEIGHTS_AND_CONFIG]
    states = {str(path): os.stat(path) for path in sorted(files)}
    return {name: [state.st_size, state.st_mtime_ns] for name, state in states.items()}
