"""Keys of NeMo-Aligner's SPIN config that have no counterpart: refused, or explained."""

from __future__ import annotations

from spin_composer.importers.foreign import NO_DROPOUT, Explained, Refused

_OF_CHECKPOINT = "the model's own config says it"
_OF_MEGATRON = "Megatron's; Composer and FSDP have no such setting"
_SHARDED = "FSDP shards the model over all GPUs in place of tensor and pipeline parallelism"
_TIME_LIMIT = "stop by the launcher; the same command resumes the run"
_CUT = "long responses are cut at their end; truncate_prompt cuts long prompts"
_OWN_LOOP = "NeMo's own loop; the counts of trainer.spin are used"

REFUSED: Refused = {
    "trainer.spin.max_steps": (
        (None, -1), "SPIN's length is in epochs and iterations: set trainer.spin.max_epochs"
    ),
    "model.spin.sampling_params.use_greedy": (
        (None, False), "SPIN samples the opponent's responses: set it to False"
    ),
    "model.data.*_ds.concat_sampling_probabilities": (
        (None,), "SPIN reads every row once: write the mixture as one file, and set it to null"
    ),
    "model.data.*_ds.packed_sequence": (
        (None, False), "SPIN does not pack rows: give the rows as jsonl"
    ),
    "model.data.*_ds.min_seq_length": (
        (None, 1), "SPIN has no least length of a row: leave short rows out of the file"
    ),
    "model.answer_only_loss": ((None, True), "SPIN never trains on prompts: set it to True"),
    "model.peft.restore_from_path": (
        (None,), "merge these adapters into the model that --model names"
    ),
    "model.seq_len_interpolation_factor": (
        (None, 1, 1.0), "write the scaling of positions into the model's own config.json"
    ),
    "model.resume_from_checkpoint": (
        (None,), "a run here resumes its own checkpoints only; --model is where it begins"
    ),
    "model.expert_model_parallel_size": ((None, 1), "there is no expert parallelism here"),
    "model.freeze_layers": ((None,), "whole models or LoRA adapters are trained"),
}  # fmt: skip
"""Values that would change what is trained, or on what."""

EXPLAINED: Explained = {
    "trainer.accelerator": "the GPUs of the launcher are used",
    "trainer.logger": _OWN_LOOP,
    "trainer.enable_checkpointing": _OWN_LOOP,
    "trainer.use_distributed_sampler": _OWN_LOOP,
    "trainer.replace_sampler_ddp": _OWN_LOOP,
    "trainer.max_epochs": _OWN_LOOP,
    "trainer.max_steps": _OWN_LOOP,
    "trainer.max_time": _TIME_LIMIT,
    "trainer.val_check_interval": _OWN_LOOP,
    "trainer.limit_val_batches": _OWN_LOOP,
    "trainer.limit_train_batches": _OWN_LOOP,
    "trainer.limit_test_batches": _OWN_LOOP,
    "trainer.accumulate_grad_batches": "follows from global_train_batch_size",
    "trainer.gradient_clip_val": "trainer.spin.gradient_clip_val is used",
    "trainer.benchmark": _OWN_LOOP,
    "trainer.enable_model_summary": _OWN_LOOP,
    "trainer.num_sanity_val_steps": "held-out rows are evaluated before the first iteration",
    "trainer.spin.save_interval": "checkpoints are at each iteration's end (save_interval: 1iter)",
    "exp_manager.exp_dir": "explicit_log_dir is used",
    "exp_manager.create_tensorboard_logger": "add loggers.tensorboard for it",
    "exp_manager.summary_writer_kwargs.*": "add loggers.tensorboard for it",
    "exp_manager.create_mlflow_logger": "add loggers.mlflow for it",
    "exp_manager.mlflow_logger_kwargs.*": "add loggers.mlflow for it",
    "exp_manager.resume_if_exists": "the same command resumes the run (autoresume)",
    "exp_manager.resume_ignore_no_checkpoint": "the same command resumes the run (autoresume)",
    "exp_manager.create_checkpoint_callback": "checkpoints are at each iteration's end",
    "exp_manager.checkpoint_callback_params.*": (
        "checkpoints are at each iteration's end, the newest are kept"
    ),
    "exp_manager.use_datetime_version": "the run's name names its folders",
    "exp_manager.name": "run_name, if there is no W&B name",
    "exp_manager.log_step_timing": "spin-composer report and callbacks.speed_monitor have times",
    "exp_manager.step_timing_kwargs.*": "callbacks.speed_monitor has times",
    "exp_manager.max_time_per_run": _TIME_LIMIT,
    "exp_manager.*_early_stopping*": "add callbacks.early_stopper for it",
    "model.mcore_gpt": _OF_MEGATRON,
    "model.megatron_amp_O2": "weights, optimizer and log-prob sums are in fp32 (precision)",
    "model.precision": "trainer.precision is used",
    "model.encoder_seq_length": "the rows' max_seq_length is used",
    "model.max_position_embeddings": _OF_CHECKPOINT,
    "model.num_layers": _OF_CHECKPOINT,
    "model.hidden_size": _OF_CHECKPOINT,
    "model.ffn_hidden_size": _OF_CHECKPOINT,
    "model.num_attention_heads": _OF_CHECKPOINT,
    "model.num_query_groups": _OF_CHECKPOINT,
    "model.kv_channels": _OF_CHECKPOINT,
    "model.init_method_std": _OF_CHECKPOINT,
    "model.normalization": _OF_CHECKPOINT,
    "model.layernorm_epsilon": _OF_CHECKPOINT,
    "model.activation": _OF_CHECKPOINT,
    "model.bias": _OF_CHECKPOINT,
    "model.rotary_*": _OF_CHECKPOINT,
    "model.position_embedding_type": _OF_CHECKPOINT,
    "model.share_embeddings_and_output_weights": _OF_CHECKPOINT,
    "model.make_vocab_size_divisible_by": _OF_CHECKPOINT,
    "model.override_vocab_size": _OF_CHECKPOINT,
    "model.tokenizer.*": "the tokenizer of --model, or --tokenizer, is used",
    "model.hidden_dropout": NO_DROPOUT,
    "model.attention_dropout": NO_DROPOUT,
    "model.ffn_dropout": NO_DROPOUT,
    "model.tensor_model_parallel_size": _SHARDED,
    "model.pipeline_model_parallel_size": _SHARDED,
    "model.virtual_pipeline_model_parallel_size": _SHARDED,
    "model.context_parallel_size": _SHARDED,
    "model.sequence_parallel": _SHARDED,
    "model.activations_checkpoint_method": "whole layers are recomputed (fsdp_config)",
    "model.activations_checkpoint_num_layers": "whole layers are recomputed (fsdp_config)",
    "model.activations_checkpoint_*": "whole layers are recomputed (fsdp_config)",
    "model.gradient_as_bucket_view": _OF_MEGATRON,
    "model.grad_div_ar_fusion": _OF_MEGATRON,
    "model.gradient_accumulation_fusion": _OF_MEGATRON,
    "model.bias_activation_fusion": _OF_MEGATRON,
    "model.bias_dropout_add_fusion": _OF_MEGATRON,
    "model.masked_softmax_fusion": _OF_MEGATRON,
    "model.apply_rope_fusion": _OF_MEGATRON,
    "model.apply_query_key_layer_scaling": _OF_MEGATRON,
    "model.dist_ckpt_*": _OF_MEGATRON,
    "model.fp8*": _OF_MEGATRON,
    "model.transformer_engine": _OF_MEGATRON,
    "model.use_cpu_initialization": _OF_MEGATRON,
    "model.use_flash_attention": "model.attn_implementation chooses the attention",
    "model.nsys_profile.*": "Composer's profiler takes its place",
    "model.ub_tp_comm_overlap*": _OF_MEGATRON,
    "model.tp_comm_overlap*": _OF_MEGATRON,
    "model.sync_batch_comm": _OF_MEGATRON,
    "model.save_nemo_on_validation_end": "callbacks.hf_exporter writes a folder per iteration",
    "model.data.sample": "rows are shuffled in each epoch",
    "model.data.num_workers": "the loader of pairs needs no processes",
    "model.data.dataloader_type": "rows are shuffled in each epoch",
    "model.data.data_impl": "rows are read as jsonl",
    "model.data.splits_string": "training and held-out rows are files of their own",
    "model.data.data_prefix": "train_ds.file_path and validation_ds.file_path are used",
    "model.data.index_mapping_dir": "there are no index files",
    "model.data.seq_length": "train_ds.max_seq_length is used",
    "model.data.skip_warmup": _OF_MEGATRON,
    "model.data.reset_position_ids": "pairs do not see each other",
    "model.data.reset_attention_mask": "pairs do not see each other",
    "model.data.eod_mask_loss": "responses are scored to their stop token",
    "model.data.chat_prompt_tokens.*": (
        "the tokenizer's chat template renders the rows: it must write these tokens"
    ),
    "model.data.train_ds.global_batch_size": "model.global_batch_size is used",
    "model.data.train_ds.micro_batch_size": "model.micro_batch_size is used",
    "model.data.validation_ds.global_batch_size": "device_eval_batch_size rows per GPU",
    "model.data.*_ds.shuffle": "rows are shuffled in each epoch",
    "model.data.*_ds.memmap_workers": "rows are tokenized once, and kept",
    "model.data.*_ds.drop_last": "an epoch has whole batches",
    "model.data.*_ds.add_eos": "responses end with the stop token (README, Data)",
    "model.data.*_ds.add_sep": "nothing stands between prompt and response",
    "model.data.*_ds.add_bos": "BOS is where the tokenizer puts it",
    "model.data.*_ds.truncation_field": _CUT,
    "model.data.*_ds.truncation_method": _CUT,
    "model.data.*_ds.index_mapping_dir": "there are no index files",
    "model.data.*_ds.hf_dataset": "rows are read by Hugging Face datasets",
    "model.data.*_ds.tokens_to_generate": "model.spin.length_params.max_length is used",
    "model.data.*_ds.pad_to_max_length": "pairs are not padded",
    "model.data.*_ds.truncate_method": "long responses are cut at their end",
    "model.data.*_ds.output_original_text": "the table of samples has the texts",
    "model.data.validation_ds.max_seq_length": "train_ds.max_seq_length is used for both",
    "model.data.validation_ds.context_key": "train_ds's is used for both",
    "model.data.validation_ds.label_key": "train_ds's is used for both",
    "model.data.validation_ds.prompt_template": "train_ds's is used for both",
    "model.data.validation_ds.names": "the held-out metric is metrics/eval",
    "model.data.test_ds.*": "evaluate the exported folders",
    "model.spin.log_prob_forward_micro_batch_size": "log-probs are computed with training's batch",
    "model.spin.forward_micro_batch_size": "log-probs are computed with training's batch",
    "model.spin.trt_llm.*": "play by TensorRT-LLM is generation.engine: server with its own server",
    "model.spin.sampling_params.add_BOS": "BOS is where the tokenizer puts it",
    "model.spin.sampling_params.all_probs": "NeMo's generation only",
    "model.spin.sampling_params.compute_logprob": "NeMo's generation only",
    "model.optim.bucket_cap_mb": _OF_MEGATRON,
    "model.optim.overlap_*": _OF_MEGATRON,
    "model.optim.contiguous_*": _OF_MEGATRON,
    "model.optim.grad_sync_dtype": "fsdp_config.mixed_precision reduces gradients in fp32",
    "model.optim.dtype": "weights and optimizer are in fp32",
    "model.optim.store_*": _OF_MEGATRON,
    "model.optim.sched.constant_steps": "the rate decays after the warm-up, in each iteration",
    "model.optim.sched.max_steps": "the schedule's length is the iteration's",
    "model.optim.sched.monitor": _OWN_LOOP,
    "model.optim.sched.reduce_on_plateau": _OWN_LOOP,
    "model.peft.*": "adapters are off (peft_scheme)",
    "inference.*": "NeMo's generation only",
    "run.*": "Slurm's and the launcher's",
    "cluster_type": "the launcher's",
    "defaults": "Hydra's",
    "hydra.*": "Hydra's",
}
"""The rest."""
