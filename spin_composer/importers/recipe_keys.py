"""Keys of recipes that have no counterpart: refused, or explained."""

from __future__ import annotations

from spin_composer.importers.foreign import NO_DROPOUT, Explained, Refused

_QUANTIZED = "quantized bases are not trained here: set it to false"
_NO_HUB = "nothing is uploaded: upload the exported folder (huggingface-cli upload)"
_UNPADDED = "pairs are laid out without padding where the model allows"
_OF_TRAINER = "of transformers' Trainer"
_UNREAD = "uclaml/SPIN does not read it"
_PRECISION = "weights and optimizer are in fp32, and precision says what is computed in"

REFUSED: Refused = {
    "load_in_4bit": ((None, False), _QUANTIZED),
    "load_in_8bit": ((None, False), _QUANTIZED),
    "max_steps": ((None, -1), "SPIN's length is in epochs and iterations: set num_train_epochs"),
    "resume_from_checkpoint": (
        (None, False, True), "a run here resumes its own checkpoints only"
    ),
    "label_smoothing": ((None, 0, 0.0), "no loss here smooths labels"),
    "label_smoothing_factor": ((None, 0, 0.0), "no loss here smooths labels"),
    "model_revision": (
        (None, "main"),
        "download that revision (hf download MODEL --revision REVISION --local-dir FOLDER) and "
        "add model_name_or_path=FOLDER model_revision=main to the command",
    ),
    "dataset_mixture.datasets": (
        (None,),
        "SPIN reads every row of one data set: add '~dataset_mixture' "
        "dataset_name=NAME dataset_train_split=SPLIT to the command",
    ),
    "neftune_noise_alpha": ((None,), "no noise is added to embeddings here"),
    "base_model_revision": (
        (None, "main"), "merge the adapters into their base, and name the folder: "
        "model_name_or_path=FOLDER"
    ),
    "lora_task_type": ((None, "CAUSAL_LM"), "causal LMs are trained"),
    "lr_scheduler_kwargs.*": (
        (None,), "the schedule has no further settings: add '~lr_scheduler_kwargs' to the command"
    ),
}  # fmt: skip
"""Values that would change what is trained, or on what."""

EXPLAINED: Explained = {
    "torch_dtype": _PRECISION,
    "tf32": _PRECISION,
    "bf16_full_eval": _PRECISION,
    "fp16_full_eval": _PRECISION,
    "gradient_checkpointing_kwargs.*": "activation checkpointing is FSDP's, not reentrant",
    "dataset_configs": "name a data set's configuration in hf_kwargs.name",
    "dataset_kwargs.*": "write it in train_loader.dataset",
    "dataset_*": "write it in train_loader.dataset",
    "text_column": "rows are read in the formats of docs/data.md",
    "chat_template": "the tokenizer's own chat template renders the rows",
    "auto_insert_empty_system_msg": "the tokenizer's own chat template renders the rows",
    "eval_on_start": "held-out rows are evaluated before the first iteration",
    "precompute_ref_log_probs": "the opponent's log-probs are computed once, in play",
    "truncation_side": "long prompts are cut at their start (max_prompt_length)",
    "max_train_samples": f"every row is trained on: {_UNREAD}",
    "max_eval_samples": f"every held-out row is evaluated: {_UNREAD}",
    "model_code_revision": _UNREAD,
    "truncation_mode": "long prompts are cut at their start, long responses at their end",
    "hub_*": _NO_HUB,
    "push_to_hub*": _NO_HUB,
    "save_strategy": "checkpoints are at each iteration's end (save_interval: 1iter)",
    "save_steps": "checkpoints are at each iteration's end (save_interval: 1iter)",
    "save_only_model": "checkpoints hold the optimizer too: a run resumes",
    "save_safetensors": "exports are in safetensors",
    "load_best_model_at_end": "each iteration is exported; choose by metrics/eval",
    "metric_for_best_model": "each iteration is exported; choose by metrics/eval",
    "greater_is_better": "each iteration is exported; choose by metrics/eval",
    "overwrite_output_dir": "the same command resumes the run",
    "logging_*": "console_log_interval, and the loggers' own",
    "log_level_replica": "console_log_interval, and the loggers' own",
    "remove_unused_columns": _OF_TRAINER,
    "dataloader_*": "rows are tokenized once, and kept",
    "group_by_length": _UNPADDED,
    "padding_free": _UNPADDED,
    "use_liger_*": "the output layer is computed in parts here, without all logits at once",
    "disable_dropout": NO_DROPOUT,
    "lora_dropout": NO_DROPOUT,
    "lora_*": "adapters are off (use_peft)",
    "use_peft": "the whole model is trained",
    "bnb_*": "quantized bases are not trained here",
    "use_bnb_nested_quant": "quantized bases are not trained here",
    "adam_*": "the optimizer is another",
    "fsdp*": "fsdp_config shards the model",
    "deepspeed*": "fsdp_config shards the model",
    "torch_compile*": "Composer's compile_config compiles the model",
    "ref_model*": "the opponent is the policy at the iteration's start",
    "model_adapter_name": _OF_TRAINER,
    "ref_adapter_name": _OF_TRAINER,
    "is_encoder_decoder": "causal LMs are trained",
    "padding_value": "pairs are not padded",
    "label_pad_token_id": "prompts are never scored",
    "max_target_length": "max_length bounds prompt and response together",
    "do_train": _OF_TRAINER,
    "do_predict": _OF_TRAINER,
    "generate_during_eval": "each iteration logs a table of samples",
    "full_determinism": "algorithms.spin.deterministic",
    "data_seed": "seed orders the rows too",
    "prediction_loss_only": _OF_TRAINER,
    "eval_accumulation_steps": _OF_TRAINER,
}
"""The rest."""
