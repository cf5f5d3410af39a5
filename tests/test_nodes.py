"""The Slurm, MCLI, Kubernetes and SkyPilot files start, on several nodes, what they say."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from fixtures.yamls import ROOT, YAMLS, plain, tiny
from omegaconf import OmegaConf

from spin_composer.settings.yaml import validate

MCLI = sorted((YAMLS / "mcli").glob("*.yaml"))
NODE = str(YAMLS / "slurm" / "node.sh")


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
    assert run.integrations[0]["pip_install"] == "-e .[foundry]"  # what a run's YAML needs


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
    """The command that node.sh runs on a node: NODE_RANK, the program, its arguments."""
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
        ["bash", NODE, "yamls/zephyr-7b-ultrachat.yaml", "run_name=four"],
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


def test_slurm_node_waits_for_ranks_that_a_signal_makes_save(tmp_path: Path):
    stubs = stub(tmp_path / "bin", "composer")
    # Slurm signals every process of a step: the shell, the launcher, which dies of SIGUSR1 unless
    # it is ignored, and the ranks.
    (stubs / "composer").write_text(
        "#!/bin/bash\nkill -USR1 $PPID $$\nkill -TERM $PPID\nsleep 0.3\necho saved\nexit 138\n"
    )
    environment = {
        "PATH": f"{stubs}:{os.environ['PATH']}",
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "MASTER_ADDR": "node-0",
        "MASTER_PORT": "29500",
        "GPUS_PER_NODE": "8",
    }
    done = subprocess.run(
        ["bash", NODE, "x.yaml"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (138, "saved\n")


def test_slurm_node_says_what_is_missing(tmp_path: Path):
    environment = {"PATH": os.environ["PATH"], "SLURM_NNODES": "2"}
    done = subprocess.run(
        ["bash", NODE, "x.yaml"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "SLURM_NODEID: number of this node" in done.stderr


def test_slurm_batch_file_hands_the_job_to_its_nodes(tmp_path: Path):
    """The whole path sbatch -> srun -> node.sh, with stubs for Slurm's two programs."""
    stubs = stub(tmp_path / "bin", "composer")
    (stubs / "scontrol").write_text("#!/bin/bash\nprintf 'gpu-7\\ngpu-8\\n'\n")
    (stubs / "srun").write_text(
        '#!/bin/bash\n[[ $1 == --kill-on-bad-exit=1 ]] && shift\nexec "$@"\n'
    )
    for program in ("scontrol", "srun"):
        (stubs / program).chmod(0o755)
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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# A node has shared memory of its own, and Streaming names its blocks alike on all nodes.
OWN_SHM = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs tmpfs /dev/shm && exec "$@"', "node"]


def can_have_own_shm() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*OWN_SHM, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.foundry
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not can_have_own_shm(), reason="needs user namespaces (unshare -rm)")
@pytest.mark.parametrize("launcher", ["composer", "torchrun"])
def test_two_nodes_play_together_on_loopback(launcher: str, tmp_path: Path):
    """Two nodes of one rank each, by the very script that Slurm runs, under FSDP2 on the CPU."""
    path = tmp_path / "tiny.yaml"
    OmegaConf.save(OmegaConf.create(tiny("zephyr-7b-ultrachat", tmp_path)), path)
    environment = {
        **os.environ,
        "LAUNCHER": launcher,
        "SLURM_NNODES": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "GPUS_PER_NODE": "1",
        "FSDP_VERSION": "2",
        "OMP_NUM_THREADS": "1",
    }
    job = tmp_path / "job"  # whose environment is that of the tests, wherever they were installed
    (job / ".venv").mkdir(parents=True)
    (job / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    # The rows hold four pairs per step: two for each rank.
    nodes = [
        subprocess.Popen(
            [*OWN_SHM, "bash", NODE, str(path), "max_duration=2iter", "algorithms.spin.beta=0.1",
             "algorithms.spin.learning_rate=1.0e-4"],
            cwd=job, env={**environment, "SLURM_NODEID": str(node)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for node in range(2)
    ]  # fmt: skip
    printed = [node.communicate(timeout=800)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(p[-3000:] for p in printed)
    assert sorted(p.name for p in (tmp_path / "hf").rglob("iter*")) == ["iter0", "iter1"]


def started(script: str, tmp_path: Path, environment: Mapping[str, str]) -> Any:
    """Run a script of a node with a stub of Composer's launcher; return what that was given."""
    stubs = stub(tmp_path / "bin", "composer")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").touch()
    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=tmp_path, env={"PATH": f"{stubs}:{os.environ['PATH']}", "NODE_RANK": "", **environment},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    _, program, *words = done.stdout.splitlines()
    args = composer_arguments([program, *words], {})
    assert args.module_mode
    check_training_arguments(args.training_script, args.training_script_args)
    return args


def test_kubernetes_job_starts_a_pod_for_each_node(tmp_path: Path):
    text = (YAMLS / "kubernetes/spin.yaml").read_text(encoding="utf-8")
    service, job = yaml.safe_load_all(re.sub(r"<[a-z-]+>", "filled-in", text))
    assert (service["apiVersion"], service["kind"]) == ("v1", "Service")
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert spec["completionMode"] == "Indexed"
    (container,) = pod["containers"]
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    assert spec["completions"] == spec["parallelism"] == int(variables["NODES"])
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
    program, flag = container["command"]
    assert (program, flag) == ("bash", "-c")
    (script,) = container["args"]
    args = started(script, tmp_path, {**variables, "JOB_COMPLETION_INDEX": "1"})
    gpus = container["resources"]["limits"]["nvidia.com/gpu"]
    assert (args.nproc, args.world_size, args.base_rank) == (gpus, 2 * gpus, gpus)
    # The first pod's name, as Kubernetes makes it: job, index and the headless service.
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert pod["subdomain"] == service["metadata"]["name"]
    assert args.master_addr == f"{job['metadata']['name']}-0.{pod['subdomain']}"


def test_skypilot_task_starts_every_node(tmp_path: Path):
    task = yaml.safe_load((YAMLS / "skypilot/spin.yaml").read_text(encoding="utf-8"))
    assert set(task) == {"name", "resources", "num_nodes", "workdir", "setup", "run"}
    assert task["setup"] == "make install"
    gpus = int(task["resources"]["accelerators"].partition(":")[2])
    environment = {
        "SKYPILOT_NUM_NODES": str(task["num_nodes"]),
        "SKYPILOT_NUM_GPUS_PER_NODE": str(gpus),
        "SKYPILOT_NODE_RANK": "1",
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
    }
    args = started(task["run"], tmp_path, environment)
    assert (args.nproc, args.world_size, args.base_rank) == (gpus, 2 * gpus, gpus)
    assert (args.master_addr, args.master_port) == ("10.0.0.1", 29500)
