"""Inputs that cannot work: settings, rows, arguments and stores, by the name of the case."""

from __future__ import annotations

from typing import Any

from inputs import REMOVED

SPIN = "algorithms.spin"
PLAY = f"{SPIN}.generation"
DATA = "train_loader.dataset"
SERVER = f"{PLAY}.server"
COMMAND = "vllm serve {model} --port {port}"

SETTINGS: dict[str, dict[str, Any]] = {
    "an unknown setting of spin": {f"{SPIN}.betta": 1},
    "a setting of spin that is near to none": {f"{SPIN}.zzzz": 1},
    "an unknown setting of generation": {f"{PLAY}.topp": 1},
    "a setting of generation that is near to none": {f"{PLAY}.zzzz": 1},
    "an unknown setting of the server": {f"{PLAY}.engine": "server", f"{SERVER}.prt": 1},
    "a setting of the server that is near to none": {
        f"{PLAY}.engine": "server", f"{SERVER}.zzzz": 1
    },
    "a setting of play_only that is near to none": {f"{SPIN}.play_only.zzzz": 1},
    "spin is a list": {SPIN: [1]},
    "generation is a text": {PLAY: "hf"},
    "a text for an integer": {f"{SPIN}.replay": "one"},
    "true for an integer": {f"{SPIN}.unit_size": True},
    "a text for true or false": {f"{SPIN}.reset_optimizer": "yes"},
    "a negative seed": {f"{SPIN}.seed": -1},
    "a negative weight": {f"{SPIN}.nll_weight": -0.5},
    "no samples": {f"{SPIN}.samples_per_iteration": 0},
    "half an epoch": {f"{SPIN}.iteration_length": "1.5ep"},
    "an unknown loss": {f"{SPIN}.loss": "dpo"},
    "beta is zero": {f"{SPIN}.beta": 0},
    "more betas than iterations": {f"{SPIN}.beta": [0.1, 0.1, 5.0]},
    "more learning rates than iterations": {f"{SPIN}.learning_rate": [0.1, 0.1, 5.0]},
    "top_p above 1": {f"{PLAY}.top_p": 1.5},
    "temperature 0": {f"{PLAY}.temperature": 0},
    "no new tokens": {f"{PLAY}.max_new_tokens": 0},
    "least above most": {f"{PLAY}.min_new_tokens": 11},
    "stop strings are a text": {f"{PLAY}.stop_strings": "dog"},
    "an unknown engine": {f"{PLAY}.engine": "vllm"},
    "a server's section beside engine hf": {f"{SERVER}.command": COMMAND},
    "engine server without a section": {f"{PLAY}.engine": "server"},
    "both command and base_url": {
        f"{PLAY}.engine": "server", f"{SERVER}.command": COMMAND,
        f"{SERVER}.base_url": "http://host:8000",
    },
    "neither command nor base_url": {f"{PLAY}.engine": "server", f"{SERVER}.port": 8000},
    "a command without a port": {
        f"{PLAY}.engine": "server", f"{SERVER}.command": "serve {model}"
    },
    "base_url without reload_command": {
        f"{PLAY}.engine": "server", f"{SERVER}.base_url": "http://host:8000"
    },
    "a server's repetition penalty": {
        f"{PLAY}.engine": "server", f"{SERVER}.command": COMMAND,
        f"{PLAY}.repetition_penalty": 1.1,
    },
    "a store in an object store": {f"{SPIN}.store": "s3://bucket/folder"},
    "a store with unknown braces": {f"{SPIN}.store": "runs/{name}"},
    "a remote store of another scheme": {f"{SPIN}.remote_store": "file://folder"},
    "a remote store without a bucket": {f"{SPIN}.remote_store": "s3://"},
    "play_only units backwards": {f"{SPIN}.play_only": {"units": "3:2"}},
    "play_only iteration -1": {f"{SPIN}.play_only": {"iteration": -1}},
    "save_on_signal without save_folder": {f"{SPIN}.save_on_signal": True, "save_folder": None},
    "no algorithms": {"algorithms": REMOVED},
    "other algorithms": {"algorithms": {"gradient_clipping": {}}},
    "another scheduler": {"scheduler": {"name": "cosine_with_warmup"}},
    "an unknown setting of the scheduler": {"scheduler.warmup": "0.1dur"},
    "a warm-up in epochs": {"scheduler.t_warmup": "1ep"},
    "an unknown decay": {"scheduler.decay": "exponential"},
    "llm-foundry's own model": {"model.name": "hf_causal_lm"},
    "a model for inference": {"model.load_in_8bit": True},
    "llm-foundry's own loader": {"train_loader.name": "finetuning"},
    "an unknown key of the loader": {"train_loader.num_worker": 2},
    "no dataset": {DATA: REMOVED},
    "an unknown key of the dataset": {f"{DATA}.hf_nam": "x"},
    "a key of the dataset that is near to none": {f"{DATA}.zzzz": "x"},
    "packing": {f"{DATA}.packing_ratio": 5.0},
    "all responses": {f"{DATA}.target_responses": "all"},
    "data of two places": {f"{DATA}.streams": {"a": {"local": "x"}}},
    "data of no place": {f"{DATA}.hf_name": REMOVED},
    "no max_seq_len": {f"{DATA}.max_seq_len": REMOVED},
    "max_seq_len is a text": {f"{DATA}.max_seq_len": "80"},
    "a prompt as long as the row": {f"{DATA}.max_prompt_len": 80},
    "cut prompts without a limit": {f"{DATA}.truncate_prompt": "left"},
    "an unknown value of on_bad_row": {f"{DATA}.on_bad_row": "ignore"},
    "half a mapping of columns": {f"{DATA}.preprocessing_fn": {"prompt": "q"}},
    "no tokenizer": {"tokenizer": REMOVED},
    "an optimizer without a name": {"optimizer": {"lr": 1}},
    "no model": {"model": REMOVED},
    "no whole number of iterations": {"max_duration": "3ep"},
    "a duration in batches": {"max_duration": "100ba"},
    "no duration": {"max_duration": REMOVED},
    "no batch size": {"global_train_batch_size": REMOVED},
    "a subset of batches": {"train_subset_num_batches": 5},
    "an unknown key of llm-foundry's": {"sede": 7},
    "three problems at once": {
        f"{SPIN}.replay": -1, "scheduler.name": "linear", "train_loader.name": "finetuning",
    },
    # known once llm-foundry is imported
    "an unknown optimizer": {"optimizer.name": "rmspropp"},
    "an unknown argument of the optimizer": {"optimizer.lrr": 1},
    "an unknown model": {"model.name": "hf_spin_ml"},
    "an unknown callback": {"callbacks": {"hf_checkpointr": {}}},
    "an unknown setting of the adapters": {"model.peft_config": {"peft_type": "LORA", "rr": 4}},
    "bf16 on a CPU": {"precision": "amp_bf16"},
    "automatic microbatches on a CPU": {"device_train_microbatch_size": "auto"},
    # known once data, tokenizer or model are read
    "a file that is not there": {f"{DATA}.hf_kwargs.data_files": "absent.jsonl"},
    "rows that are longer than the model": {
        f"{DATA}.max_seq_len": 200, "max_seq_len": 200, f"{PLAY}.max_new_tokens": 150,
    },
    "a file in a folder's place": {"save_folder": "rows.jsonl"},
    "weights that are not finite": {"model.pretrained_model_name_or_path": "./not-finite"},
}  # fmt: skip

USER = {"role": "user", "content": "red"}
ANSWER = {"role": "assistant", "content": "blue"}
ROWS: dict[str, Any] = {
    "no response": {"prompt": "red"},
    "no prompt": {"response": "blue"},
    "an empty response": {"prompt": "red", "response": ""},
    "an empty prompt": {"prompt": "", "response": "blue"},
    "a number for a text": {"prompt": "red", "response": 5},
    "another's names of columns": {"input": "red", "target": "blue"},
    "two formats in one row": {"prompt": "red", "response": "blue", "messages": [USER, ANSWER]},
    "no turns": {"messages": []},
    "an unknown role": {"messages": [{"role": "robot", "content": "red"}, ANSWER]},
    "a turn without a role": {"messages": [{"content": "red"}, ANSWER]},
    "a turn without content": {"messages": [USER, {"role": "assistant"}]},
    "the answer comes first": {"messages": [ANSWER, USER]},
    "two questions in a row": {"messages": [USER, USER, ANSWER]},
    "no answer": {"messages": [USER]},
    "an empty answer": {"messages": [USER, {"role": "assistant", "content": ""}]},
    "a chat row after a plain one": {"messages": [USER, ANSWER]},
    "a response that holds the stop token": {"prompt": "red", "response": " blue<|end|> red"},
    "a prompt that is too long": {"prompt": "red" + " red" * 90, "response": " blue"},
    "a token that spans prompt and response": {"prompt": "red ", "response": "blue"},
    "a preference without a prompt": {"chosen": "blue", "rejected": "red"},
    "tokenized already": {"input_ids": [1, 2], "labels": [1, 2]},
}  # fmt: skip

CHECK = "data check good.jsonl --tokenizer model"
ARGUMENTS: dict[str, str] = {
    "an unknown command": "trian run.yaml",
    "an unknown option": "report self-play --polt x",
    "train without a YAML": "train",
    "train a YAML that is not there": "train absent.yaml",
    "train a YAML that is a list": "train list.yaml",
    "train a YAML that is broken": "train broken.yaml",
    "train with a word": "train run.yaml beta",
    "play without an iteration": "play run.yaml",
    "play units of letters": "play run.yaml --iteration 0 --units a:b",
    "play an iteration that the run has not": "play run.yaml --iteration 9",
    "check a file that is not there": "data check absent.jsonl --tokenizer model",
    "check without a tokenizer": "data check good.jsonl",
    "check with a tokenizer that is not there": "data check good.jsonl --tokenizer ./absent",
    "check with an unknown key": f"{CHECK} max_seq_leng=9",
    "check with a word": f"{CHECK} train",
    "check an unknown split": f"{CHECK} --split test",
    "check with a broken mapping": f"{CHECK} --preprocessing-fn {{prompt",
    "check shows a row that is not there": f"{CHECK} --row 9",
    "check a YAML without data": "data check no-data.yaml",
    "convert a file that is not there": "data convert absent.jsonl out",
    "convert a bad row": "data convert bad.jsonl out",
    "convert to a folder that is there": "data convert good.jsonl model",
    "report of a store that is not there": "report absent",
    "report of damaged books": "report damaged-books",
    "report of a store of an unknown scheme": "report http://host/store",
    "status of a store that is not there": "status absent",
    "status of a text": "status good.jsonl",
    "status of a YAML that is not there": "status absent.yaml",
    "status of a damaged manifest": "status damaged-manifest",
    # good ones
    "check good rows": CHECK,
    "check with bad rows left out": "data check bad.jsonl --tokenizer model --on-bad-row skip",
    "convert good rows": "data convert good.jsonl converted",
    "check what was converted": "data check converted --tokenizer model",
}

STORES: dict[str, dict[str, Any]] = {
    "played with another seed": {"seed": 8},
    "played at another temperature": {f"{PLAY}.temperature": 0.5},
    "played of other data": {f"{DATA}.hf_kwargs.data_files": "others.jsonl"},
    "played with other units": {f"{SPIN}.unit_size": 6},
    "finished": {"save_folder": "checkpoints"},
    "has a flipped byte": {},
    "has a unit without a report": {},
    "has no manifest": {},
    "has units of another run": {f"{SPIN}.play_only": {"iteration": 0, "units": "0:99"}},
}
"""Of the store of the run with full weights; a case's damage is done in record.py."""
