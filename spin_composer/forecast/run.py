"""Everything about a run that can be known without a GPU: ``spin-composer check``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from spin_composer.data.check import CheckReport, make_report
from spin_composer.data.loader import read_examples
from spin_composer.data.row_limits import check_first_batch_is_whole, check_rows
from spin_composer.data.tokenizers import load_tokenizer
from spin_composer.errors import InputError, collect_errors
from spin_composer.forecast.game import (
    count_tokens,
    game_section,
    plan_game,
    time_section,
    warmup_note,
)
from spin_composer.forecast.memory import memory_section
from spin_composer.forecast.outputs import outputs_section
from spin_composer.forecast.parameters import Parameters, count_parameters
from spin_composer.foundry.installed import foundry_is_installed
from spin_composer.foundry.plugin import loader_run
from spin_composer.play.plan import plan_units, too_few_units_warning
from spin_composer.preflight.sampling import off_policy_warning
from spin_composer.pretrained.check import check_run
from spin_composer.report.figures import Figures, Section, count_text
from spin_composer.settings.dataset import read_config
from spin_composer.settings.eval_loaders import loaders
from spin_composer.settings.launch import launch_checks
from spin_composer.settings.scheduler import SchedulerSettings
from spin_composer.settings.section import Config, fill
from spin_composer.settings.spin import SpinSettings, count_iterations
from spin_composer.settings.yaml import check_keys, is_spin, validate
from spin_composer.versions import version_warnings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from spin_composer.pretrained.limits import ModelLimits

_WITHOUT_FOUNDRY = (
    "llm-foundry is not installed here: whether it knows the optimizer, the callbacks and the "
    "loggers by these names is not checked. The run itself needs it (docs/versions.md)."
)
_QUANTILES = (50, 90, 99, 100)


@dataclass(frozen=True)
class Speeds:
    """Measured tokens per second of all GPUs together; None: not measured."""

    play: float | None = None
    train: float | None = None


def forecast_run(
    cfg: dict[str, Any], title: str, gpus: int | None = None, speeds: Speeds | None = None
) -> tuple[Figures, CheckReport]:
    """Check a run's YAML, its data and its model's config, and say what it will take.

    Args:
        cfg: The YAML as a mapping, resolved.
        title: Its name.
        gpus: Number of ranks; one if the YAML does not shard.
        speeds: Measured speeds.

    Returns:
        The forecast, and the report on the training rows, whose bad ones are counted, not raised.

    Raises:
        InputError: A line for each problem that would stop the run at its start.
    """
    settings, ranks = _check_settings(cfg, title, gpus)
    run = loader_run(cfg, settings)
    dataset = read_config(cfg["train_loader"]["dataset"])
    named = cfg["tokenizer"]
    tokenizer = load_tokenizer(named["name"], named.get("kwargs"))
    limits = check_run(run, tokenizer)
    counting = {**cfg["train_loader"]["dataset"], "on_bad_row": "skip"}
    examples = read_examples(counting, tokenizer, "train_loader", run["legacy_turns"])
    report = make_report(examples, tokenizer, dataset.source, dataset.on_bad_row)
    batch = int(cfg["global_train_batch_size"])
    samples, responses = settings.samples_per_iteration, settings.responses_per_prompt
    longest = settings.generation.max_new_tokens
    _, _, held_out, found = collect_errors(
        lambda: check_first_batch_is_whole(examples, samples, batch, responses),
        lambda: check_rows(examples, limits, longest),
        lambda: _read_held_out(cfg, tokenizer, limits),
        lambda: count_parameters(cfg["model"]),
    )
    epochs = settings.epochs_per_iteration
    game = plan_game(settings, count_iterations(cfg["max_duration"], epochs), len(examples), batch)
    whole = examples.max_prompt_tokens + longest
    tokens, given = count_tokens(settings, game, examples), speeds or Speeds()
    sections = [
        _rows_section(report, settings, held_out),
        _template_section(report),
        game_section(settings, game, batch),
        _model_section(cfg, found, ranks),
        memory_section(cfg, settings, found, ranks, whole),
        time_section(tokens, given.play, given.train),
        outputs_section(cfg, settings, game, examples, found),
    ]
    scheduler = fill(SchedulerSettings, {k: v for k, v in cfg["scheduler"].items() if k != "name"})
    notes = [
        warmup_note(scheduler, game),
        too_few_units_warning(plan_units(settings, 0, 0, len(examples), {}), ranks),
        off_policy_warning(settings),
        None if foundry_is_installed() else _WITHOUT_FOUNDRY,
        *report.rows.notes,
        *version_warnings(),
    ]
    return Figures(title, sections, [note for note in notes if note]), report


def _check_settings(cfg: dict[str, Any], title: str, gpus: int | None) -> tuple[SpinSettings, int]:
    """Run the checks of the settings; return the algorithm's and the number of ranks."""
    if not is_spin(cfg):
        raise InputError(f"{title} is no run of SPIN. An SFT's YAML: spin-composer init {title}.")
    settings = validate(cfg)
    if gpus is None and cfg.get("fsdp_config") and cfg["model"].get("init_device") == "mixed":
        raise InputError(
            f"{title} shards the model (fsdp_config), and the number of GPUs is not known. Give "
            "it: --gpus 8."
        )
    ranks = 1 if gpus is None else gpus
    cfg.setdefault("device_train_microbatch_size", "auto")
    collect_errors(lambda: check_keys(cfg), *launch_checks(cfg, settings, ranks))
    if foundry_is_installed():
        from spin_composer.foundry.registered import check_names  # imports llm-foundry

        check_names(cfg)
    return settings, ranks


def _read_held_out(
    cfg: Config, tokenizer: PreTrainedTokenizerBase, limits: ModelLimits
) -> dict[str, int]:
    """Read the rows of SPIN's evaluation loaders; return their numbers by loader."""
    counts: dict[str, int] = {}
    for where, loader in loaders(cfg):
        if loader.get("name") == "spin":
            examples = read_examples(loader["dataset"], tokenizer, where, False)
            check_rows(examples, limits, 0, where)
            counts[where] = len(examples)
    return counts


def _rows_section(report: CheckReport, settings: SpinSettings, held_out: dict[str, int]) -> Section:
    section, rows = Section("rows"), report.rows
    section.add("data", report.source)
    section.add("read", rows.rows)
    section.add("kept", rows.kept, f"{rows.kept} ({report.kind})")
    skipped = sum(rows.dropped.values())
    reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(rows.dropped.items()))
    section.add("skipped", skipped, f"{skipped} ({reasons})" if reasons else "0")
    section.add("prompts cut", rows.truncated_prompts)
    section.add("responses cut", rows.truncated_responses)
    section.add("held out", held_out, ", ".join(f"{k}: {n}" for k, n in held_out.items()) or "none")
    both = report.prompt_lengths + report.response_lengths
    for name, lengths in (
        ("prompt tokens", report.prompt_lengths), ("response tokens", report.response_lengths),
        ("row tokens", both),
    ):  # fmt: skip
        values = [int(np.percentile(lengths, q, method="higher")) for q in _QUANTILES]
        shown = ", ".join(f"{q}% {v}" for q, v in zip(_QUANTILES[:-1], values, strict=False))
        quantiles = {f"p{q}": v for q, v in zip(_QUANTILES, values, strict=True)}
        section.add(name, quantiles, f"{shown}, max {values[-1]}")
    longest = settings.generation.max_new_tokens
    longer = float((report.response_lengths > longest).mean())
    section.add(
        "real responses longer than max_new_tokens", longer, f"{longer:.1%} (of {longest} tokens)"
    )
    return section


def _template_section(report: CheckReport) -> Section:
    section = Section("template")
    section.add("stop token", report.stop_token)
    section.add("stop token is", report.stop_token_source, report.stop_token_source or "EOS")
    shown = "none" if report.generation_prompt is None else repr(report.generation_prompt)
    section.add("generation prompt", report.generation_prompt, shown)
    section.add("prompt ends with", report.prompt_end, " ".join(map(repr, report.prompt_end)))
    section.add("response begins with", report.response_start,
                " ".join(map(repr, report.response_start)))  # fmt: skip
    return section


def _model_section(cfg: Config, found: Parameters | None, ranks: int) -> Section:
    section = Section("model")
    section.add("name", cfg["model"].get("pretrained_model_name_or_path") or cfg["model"]["name"])
    section.add("GPUs", ranks)
    section.add("precision", cfg.get("precision", "amp_bf16"))
    if found is None:
        section.add("parameters", None, "unknown: the layers of MPT are llm-foundry's")
        return section
    section.add("parameters", found.total, count_text(found.total))
    share = "" if found.trained == found.total else f" ({found.trained / found.total:.2%})"
    section.add("trained", found.trained, f"{count_text(found.trained)}{share}")
    return section
