"""The real runs' YAMLs hold what they promise, and the several-node files start what they say.

Nothing is downloaded: each YAML's model is swapped for a tiny one of the same class, its tokenizer
for a small one made here, its data for a few local rows.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import re
import shlex
import subprocess
import warnings
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from spin_composer.config import validate
from spin_composer.settings import GenerationSettings, SpinSettings
from tests.fixtures.tokenizers import chatml

ROOT = Path(__file__).parent.parent
YAMLS = ROOT / "yamls"
REAL = ("zephyr-7b-ultrachat", "llama-3.1-8b", "mpt-7b")
MCLI = sorted((YAMLS / "mcli").glob("*.yaml"))
VOCAB = 384
MAX_TOKENS = 128

TINY_HF = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": MAX_TOKENS,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
TINY_MPT = {"d_model": 16, "n_heads": 2, "n_layers": 2, "vocab_size": VOCAB, "init_device": "cpu"}
HF_CLASS = {"zephyr-7b-ultrachat": "Mistral", "llama-3.1-8b": "Llama"}


def load(name: str) -> DictConfig:
    cfg = OmegaConf.load(YAMLS / f"{name}.yaml")
    assert isinstance(cfg, DictConfig)
    return cfg


def plain(cfg: DictConfig) -> dict[str, Any]:
    container = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def tiny_overrides(name: str, folder: Path) -> dict[str, Any]:
    """What makes the YAML run here: a tiny model of its class, a tokenizer and a few rows."""
    import transformers

    chatml(VOCAB).save_pretrained(folder / "tokenizer")
    if name in HF_CLASS:
        config = getattr(transformers, f"{HF_CLASS[name]}Config")(**TINY_HF)
        config.save_pretrained(folder / "model")
        model = {
            "pretrained_model_name_or_path": str(folder / "model"),
            "pretrained": False,
            "init_device": "cpu",
        }
    else:
        model = dict(TINY_MPT)
    rows = [
        {"prompt": f"How many clips in {month}?", "response": f"She sold {month} / 2 = 24 clips."}
        for month in ("April", "May", "June", "July", "8", "9")
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {
        "hf_name": "json",
        "hf_kwargs": {"data_files": str(folder / "rows.jsonl")},
        "split": "train",
        "preprocessing_fn": None,
    }
    return {
        "max_seq_len": MAX_TOKENS,
        "model": model,
        "load_path": None,
        "tokenizer": {"name": str(folder / "tokenizer")},
        "train_loader": {"dataset": {**data, "max_prompt_len": 64}},
        "eval_loader": {"dataset": data, "num_workers": 0},
        "algorithms": {
            "spin": {
                "store": str(folder / "self-play"),
                "samples_per_iteration": 4,
                "generation": {"max_new_tokens": 8, "batch_size": 4},
            }
        },
        "global_train_batch_size": 4,
        "device_train_microbatch_size": 2,
        "precision": "fp32",
        "save_folder": str(folder / "checkpoints"),
        "callbacks": {"hf_checkpointer": {"save_folder": str(folder / "hf")}},
        "python_log_level": "warning",
    }


def tiny(name: str, folder: Path) -> dict[str, Any]:
    cfg = plain(OmegaConf.merge(load(name), tiny_overrides(name, folder)))  # type: ignore[arg-type]
    for loader in ("train_loader", "eval_loader"):
        cfg[loader]["dataset"].pop("preprocessing_fn")
    return cfg


@pytest.fixture(scope="module", params=REAL)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_yaml_passes_spins_checks(name: str):
    validate(plain(load(name)))


def test_yaml_explains_every_setting_of_the_game(name: str):
    spin = plain(load(name))["algorithms"]["spin"]
    optional = {"seed", "deterministic"}  # the defaults are explained in the README's table
    assert set(spin) >= {field.name for field in fields(SpinSettings)} - optional
    assert set(spin["generation"]) >= {
        field.name for field in fields(GenerationSettings)
    } - {"stop_strings"}


def test_yaml_has_no_key_that_llm_foundry_does_not_know(name: str):
    from composer.utils.parallelism import FSDPConfig
    from llmfoundry.data.finetuning.dataloader import (
        _ALLOWED_DATASET_KEYS,
        build_finetuning_dataloader,
        dataset_constructor,
    )
    from llmfoundry.utils.config_utils import TRAIN_CONFIG_KEYS

    cfg = plain(load(name))
    assert set(cfg) <= TRAIN_CONFIG_KEYS | {"global_train_batch_size"}
    assert set(cfg["fsdp_config"]) <= {field.name for field in fields(FSDPConfig)}
    loader = set(cfg["eval_loader"]) - {"name", "label"}
    assert loader <= set(inspect.signature(build_finetuning_dataloader).parameters)
    rows = set(inspect.signature(dataset_constructor.build_from_hf).parameters)
    assert set(cfg["eval_loader"]["dataset"]) <= rows | _ALLOWED_DATASET_KEYS | {"hf_name"}


def test_yaml_builds_its_tiny_twin(name: str, tmp_path: Path):
    from composer import ComposerModel
    from llmfoundry.utils.builders import (
        build_algorithm,
        build_callback,
        build_composer_model,
        build_optimizer,
        build_scheduler,
        build_tokenizer,
    )

    cfg = tiny(name, tmp_path)
    validate(cfg)
    tokenizer = build_tokenizer(cfg["tokenizer"]["name"], cfg["tokenizer"]["kwargs"])
    section: dict[str, Any] = dict(cfg["model"])
    model = build_composer_model(section.pop("name"), section, tokenizer)
    assert isinstance(model, ComposerModel)
    expected = {"zephyr-7b-ultrachat": "Mistral", "llama-3.1-8b": "Llama", "mpt-7b": "MPT"}[name]
    assert type(model.model).__name__ == f"{expected}ForCausalLM"
    for key, build in (("optimizer", build_optimizer), ("scheduler", build_scheduler)):
        section = dict(cfg[key])
        build(*([model] if key == "optimizer" else []), section.pop("name"), section)
    for algorithm, settings in cfg["algorithms"].items():
        build_algorithm(algorithm, settings)
    for callback, settings in cfg["callbacks"].items():
        build_callback(callback, settings, train_config=cfg)


# MPT and one HF class; the other one differs from it in its model only.
PLAYED = [pytest.param(n, marks=pytest.mark.slow if n == "llama-3.1-8b" else ()) for n in REAL]


@pytest.mark.parametrize("yaml_name", PLAYED)
def test_yaml_plays_its_iterations_with_the_tiny_twin(yaml_name: str, tmp_path: Path):
    from llmfoundry.command_utils.train import train

    trainer = train(OmegaConf.create(tiny(yaml_name, tmp_path)))
    assert int(trainer.state.timestamp.iteration) == 3
    exported = sorted(path.name for path in (tmp_path / "hf").rglob("ep*"))
    assert exported == ["ep2", "ep4", "ep6"], "one folder per iteration, named in the YAML"


# ------------------------------------------------------------------ several nodes


def composer_arguments(words: list[str], environment: Mapping[str, str]) -> Any:
    """Parse a composer command as the launcher itself does, multi-node checks included."""
    from composer.cli.launcher import _parse_args

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", words)
        for key in [*os.environ]:
            if key in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "BASE_RANK", "MASTER_ADDR"):
                patch.delenv(key)
        for key, value in environment.items():
            patch.setenv(key, value)
        return _parse_args()


def check_training_arguments(module: str, arguments: list[str]) -> None:
    """The launched module is ours, its YAML exists, and its overrides make a valid config."""
    assert module == "spin_composer.train"
    path, *overrides = arguments
    base = OmegaConf.load(ROOT / path)
    known = plain(base)  # type: ignore[arg-type]
    for override in overrides:
        keys = override.partition("=")[0].split(".")
        section: Any = known
        for key in keys:
            assert key in section, f"{override}: {path} has no such key"
            section = section[key]
    validate(plain(OmegaConf.merge(base, OmegaConf.from_dotlist(overrides))))  # type: ignore[arg-type]


@pytest.mark.parametrize("path", MCLI, ids=lambda p: p.stem)
def test_mcli_file_is_a_run_configuration(path: Path):
    from mcli import RunConfig

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # mcli warns of fields that it does not know
        run = RunConfig(**yaml.safe_load(path.read_text(encoding="utf-8")))
    assert run.compute["gpus"] % 8 == 0
    assert run.image
    assert re.fullmatch(r"[a-z][a-z0-9-]*", str(run.name))
    assert run.integrations[0]["integration_type"] == "git_repo"


@pytest.mark.parametrize("path", MCLI, ids=lambda p: p.stem)
def test_mcli_command_fits_the_launcher(path: Path):
    run = yaml.safe_load(path.read_text(encoding="utf-8"))
    script = re.sub(r"<[a-z-]+>", "filled-in", run["command"])
    subprocess.run(["bash", "-n", "-c", script], check=True)
    (line,) = [
        part for part in script.replace("\\\n", " ").splitlines() if part.startswith("composer ")
    ]
    gpus = run["compute"]["gpus"]
    platform = {
        "WORLD_SIZE": str(gpus),
        "LOCAL_WORLD_SIZE": "8",
        "NODE_RANK": "1",
        "MASTER_ADDR": "node-0",
        "MASTER_PORT": "29500",
    }
    args = composer_arguments(shlex.split(line), platform)
    assert (args.module_mode, args.world_size, args.base_rank) == (True, gpus, 8)
    check_training_arguments(args.training_script, args.training_script_args)


def stub(folder: Path, *names: str) -> Path:
    """Programs that print their arguments, one per line."""
    folder.mkdir()
    for program in names:
        (folder / program).write_text('#!/bin/bash\nprintf "%s\\n" "$NODE_RANK" "$0" "$@"\n')
        (folder / program).chmod(0o755)
    return folder


def launched(tmp_path: Path, launcher: str, node: int) -> list[str]:
    """The command that yamls/slurm/node.sh runs on a node: NODE_RANK, the program, its arguments."""
    # Run elsewhere, so that a checkout's own .venv does not come before the stubs.
    stubs = stub(tmp_path / "bin", "composer", "torchrun")
    environment = {
        "PATH": f"{stubs}:{os.environ['PATH']}",
        "LAUNCHER": launcher,
        "SLURM_NNODES": "4",
        "SLURM_NODEID": str(node),
        "MASTER_ADDR": "node-0",
        "MASTER_PORT": "29500",
        "GPUS_PER_NODE": "8",
    }
    done = subprocess.run(
        ["bash", str(YAMLS / "slurm/node.sh"), "yamls/zephyr-7b-ultrachat.yaml", "run_name=four"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


def test_slurm_node_starts_composer(tmp_path: Path):
    _, program, *words = launched(tmp_path, "composer", node=2)
    args = composer_arguments([program, *words], {})
    assert Path(program).name == "composer"
    assert (args.nproc, args.world_size, args.node_rank, args.base_rank) == (8, 32, 2, 16)
    assert (args.master_addr, args.master_port) == ("node-0", 29500)
    assert args.module_mode
    check_training_arguments(args.training_script, args.training_script_args)


def test_slurm_node_starts_torchrun(tmp_path: Path):
    from torch.distributed.run import get_args_parser

    node_rank, program, *words = launched(tmp_path, "torchrun", node=2)
    args = get_args_parser().parse_args(words)
    assert Path(program).name == "torchrun"
    assert node_rank == "2", "Composer reads NODE_RANK, which torchrun does not set"
    assert (args.nnodes, args.nproc_per_node, args.node_rank) == ("4", "8", 2)
    assert (args.master_addr, args.master_port) == ("node-0", 29500)
    assert args.module
    check_training_arguments(args.training_script, args.training_script_args)


def test_slurm_node_says_what_is_missing(tmp_path: Path):
    environment = {"PATH": os.environ["PATH"], "SLURM_NNODES": "2"}
    done = subprocess.run(
        ["bash", str(YAMLS / "slurm/node.sh"), "x.yaml"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "SLURM_NODEID: number of this node" in done.stderr


def test_slurm_batch_file_hands_the_job_to_its_nodes(tmp_path: Path):
    """The whole path sbatch -> srun -> node.sh, with stubs for Slurm's two programs."""
    stubs = stub(tmp_path / "bin", "composer")
    (stubs / "scontrol").write_text("#!/bin/bash\nprintf 'gpu-7\\ngpu-8\\n'\n")
    (stubs / "srun").write_text('#!/bin/bash\n[[ $1 == --kill-on-bad-exit=1 ]] && shift\nexec "$@"\n')
    for program in ("scontrol", "srun"):
        (stubs / program).chmod(0o755)
    with contextlib.suppress(FileExistsError):
        (tmp_path / "yamls").symlink_to(YAMLS)
    environment = {
        "PATH": f"{stubs}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "123456",
        "SLURM_JOB_NODELIST": "gpu-[7-8]",
        "SLURM_NNODES": "2",
        "SLURM_NODEID": "1",
        "SLURM_GPUS_ON_NODE": "4",
    }
    done = subprocess.run(
        ["bash", str(YAMLS / "slurm/spin.sbatch"), "yamls/llama-3.1-8b.yaml"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    _, program, *words = done.stdout.splitlines()
    args = composer_arguments([program, *words], {})
    assert (args.nproc, args.world_size, args.node_rank) == (4, 8, 1)
    assert (args.master_addr, args.master_port) == ("gpu-7", 23456)
    check_training_arguments(args.training_script, args.training_script_args)
