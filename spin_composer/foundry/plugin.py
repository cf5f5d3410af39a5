"""SPIN's transform of llm-foundry's training config, found by its entry point."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from spin_composer import startup
from spin_composer.pretrained.check import LoaderRun
from spin_composer.settings.eval_loaders import check_eval_loaders, route_eval_loaders
from spin_composer.settings.fields import is_int
from spin_composer.settings.launch import EVALUATIONS, EXPORTERS
from spin_composer.settings.section import Config
from spin_composer.settings.spin import SpinSettings
from spin_composer.settings.yaml import check_launch, is_spin, validate
from spin_composer.store.original_tokenization import started_with_legacy_turns


def transform(cfg: dict[str, Any]) -> dict[str, Any]:
    """Check a training config and set SPIN's defaults in it; llm-foundry's config transform.

    Defaults: validation before the first iteration, a Hugging Face export at each iteration's end
    if the run saves checkpoints, and ``autoresume`` if the run can be resumed.

    Raises:
        InputError: If a setting is invalid; see :func:`validate`.
    """
    startup.process_clock().rename_all("imports")
    try:
        return _transformed(cfg)
    finally:
        startup.begin("tokenizer and loggers")


def _transformed(cfg: dict[str, Any]) -> dict[str, Any]:
    from spin_composer.foundry.compat import patch_foundry  # imports transformers

    patch_foundry()
    _measure_icl_tasks(cfg)
    if not is_spin(cfg):
        check_eval_loaders(cfg, training=None)  # an SFT run may use SPIN's evaluation loader
        route_eval_loaders(cfg)
        return cfg
    from spin_composer.foundry.registered import check_registered  # imports llm-foundry

    settings = validate(cfg)
    cfg.setdefault("device_train_microbatch_size", "auto")
    check_launch(cfg, settings, int(os.environ.get("WORLD_SIZE") or 1))
    check_registered(cfg)
    route_eval_loaders(cfg)
    _pass_limits_to_loaders(cfg, loader_run(cfg, settings))
    cfg.setdefault("eval_first", any(cfg.get(key) for key in EVALUATIONS))
    if cfg.get("save_folder") and not cfg.get("save_weights_only"):
        callbacks = cfg["callbacks"] = cfg.get("callbacks") or {}
        if not EXPORTERS & set(callbacks):
            callbacks["hf_checkpointer"] = {
                "save_folder": cfg["save_folder"],
                "save_interval": "1iter",
                "huggingface_folder_name": "iter{iteration}",
            }
    if cfg.get("autoresume") is None:
        cfg["autoresume"] = _can_resume_itself(cfg)
    return cfg


def _measure_icl_tasks(cfg: dict[str, Any]) -> None:
    """Add the metrics of in-context learning to our model if a YAML has such tasks."""
    model = cfg.get("model")
    if not isinstance(model, dict) or model.get("name") != "hf_spin_lm":
        return
    if cfg.get("icl_tasks") or cfg.get("icl_tasks_str"):
        from spin_composer.foundry.registry import icl_metrics  # imports llm-foundry

        given = list(model.get("additional_eval_metrics") or [])
        model["additional_eval_metrics"] = given + [n for n in icl_metrics() if n not in given]


def _pass_limits_to_loaders(cfg: dict[str, Any], run: LoaderRun) -> None:
    """Pass the limits of rows to SPIN's loaders, which llm-foundry builds before the model."""
    cfg["train_loader"]["run"] = run
    for loader in _evaluated(cfg):
        if isinstance(loader, dict) and loader.get("name") == "spin":
            loader["run"] = run | {"max_new_tokens": 0, "saves": False}


def _evaluated(cfg: Config) -> list[Any]:
    given = cfg.get("eval_loader") or cfg.get("eval_loaders") or []
    return given if isinstance(given, list) else [given]


def loader_run(cfg: Config, settings: SpinSettings) -> LoaderRun:
    """Return what SPIN's loaders check their rows against.

    Args:
        cfg: A SPIN run's config.
        settings: Its algorithm's.
    """
    from spin_composer.engines.base import engine_class  # imports torch and Composer

    limits: list[object] = [
        (loader.get("dataset") or {}).get("max_seq_len")
        for loader in _evaluated(cfg)
        if isinstance(loader, Mapping) and loader.get("name") == "finetuning"
    ]
    saves = cfg.get("save_folder") or engine_class(settings.generation).exports_model
    return {
        "model": dict(cfg["model"]),
        "max_new_tokens": settings.generation.max_new_tokens,
        "samples_per_iteration": settings.samples_per_iteration,
        "responses_per_prompt": settings.responses_per_prompt,
        "max_eval_tokens": max((limit for limit in limits if is_int(limit)), default=0),
        "saves": bool(saves or EXPORTERS & set(cfg.get("callbacks") or {})),
        "legacy_turns": started_with_legacy_turns(settings, str(cfg.get("run_name") or "")),
    }


def _can_resume_itself(cfg: Config) -> bool:
    """Return whether the same command can resume from the last checkpoint.

    Not if the YAML excludes it (``save_overwrite``), if no complete checkpoint is kept, or with
    several concurrent uploads, for which Composer rejects ``autoresume``.
    """
    loggers = cfg.get("loggers")
    uploader = loggers.get("remote_uploader_downloader") if isinstance(loggers, Mapping) else None
    uploads = uploader.get("num_concurrent_uploads", 1) if isinstance(uploader, Mapping) else 1
    return bool(
        cfg.get("run_name")
        and cfg.get("save_folder")
        and not cfg.get("save_overwrite")
        and not cfg.get("save_weights_only")
        and cfg.get("save_num_checkpoints_to_keep", -1) != 0
        and uploads == 1
    )
