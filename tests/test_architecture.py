"""The layers of the packages: who may import whom, and where the heavy dependencies stay."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures import tokenizers
from fixtures.runs import write_rows
from fixtures.yaml_run import tiny_config, write_config

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "spin_composer"
KERNELS = ROOT / "kernels" / "spin_kernels"

# A module may import those of its own package, and of the layers below: not of another package of
# its layer. Every module has its place here: a new one belongs in this list before it belongs in
# the package. A package whose modules are of several layers names them: the longest name counts.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"interrupt", "pair_kinds", "startup", "store.layout", "versions"}),
    frozenset({"errors"}),
    frozenset({"extras"}),
    frozenset({"save_folder", "shared_memory", "distributed", "foundry.installed"})
    | {"store.durable"},
    frozenset({"foundry.compat"}),
    frozenset({"fsdp", "hybrid_sharding", "foundry.finetuning", "foundry.exporter"}),
    frozenset({"loss", "alarms.rules"}),
    frozenset({"judge.words", "judge.estimate", "judge.answers"}),
    frozenset({"judge.classifier", "judge.diversity"}),
    frozenset({"judge.measures"}),
    frozenset({"settings", "metrics"}),
    frozenset({"foundry.mpt_config", "foundry.registry"}),
    frozenset({"report", "pretrained"}),
    frozenset({"data"}),
    frozenset({"model"}),
    frozenset({"store"}),
    frozenset({"export", "alarms"}),
    frozenset({"engines"}),
    frozenset({"play"}),
    frozenset({"preflight", "hooks", "schedule"}),
    frozenset({"game"}),
    frozenset({"algorithm"}),
    frozenset({"judge"}),
    frozenset({"foundry"}),
    frozenset({"train", "data_commands", "importers", "forecast", "doctor", "report_command"}),
    frozenset({"play_job", "demo"}),
    frozenset({"cli"}),
    frozenset({"__main__"}),
)
LAYER_OF = {name: number for number, names in enumerate(LAYERS) for name in names}

# What takes seconds to import. The command line's help and checks must not wait for any of it.
HEAVY = frozenset(
    {"torch", "triton", "numpy", "composer", "llmfoundry", "streaming", "transformers"}
    | {"datasets", "matplotlib", "mlflow"}
)
MAX_LINES = 400


def python_files(*roots: Path) -> list[Path]:
    return sorted(path for root in roots for path in root.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Absolute names of everything that a file imports anywhere, functions included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import; write the absolute one"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def top(name: str) -> str:
    return name.split(".")[0]


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_of(path: Path) -> str:
    """The dotted name below spin_composer: ``data.pairs`` for spin_composer/data/pairs.py."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def unit_of(module: str) -> str | None:
    """The longest name in the layers that a module below spin_composer, or a name in it, is of."""
    parts = module.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((name for name in names if name in LAYER_OF), None)


def test_kernels_need_only_torch_and_triton():
    allowed = set(sys.stdlib_module_names) | {"torch", "triton", "spin_kernels"}
    for path in python_files(KERNELS):
        foreign = {top(name) for name in imported(path)} - allowed
        assert not foreign, f"{short(path)} imports {sorted(foreign)}"


def test_triton_stays_behind_the_kernels():
    for path in python_files(PACKAGE):
        assert "triton" not in map(top, imported(path)), short(path)


def test_llm_foundry_stays_behind_its_wall():
    for path in python_files(PACKAGE):
        if path.parent.name != "foundry":
            assert "llmfoundry" not in map(top, imported(path)), short(path)


def at_import(path: Path) -> Iterator[str]:
    """Names of the modules that a file imports when it is imported itself."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)


@pytest.mark.parametrize("path", python_files(PACKAGE), ids=short)
def test_what_is_outside_the_wall_is_imported_without_llm_foundry(path: Path):
    if path.parent.name == "foundry":
        return
    for name in at_import(path):
        if name.startswith("spin_composer.foundry."):
            inner = PACKAGE / "foundry" / f"{name.split('.')[2]}.py"
            assert "llmfoundry" not in map(top, at_import(inner)), f"{short(path)} imports {name}"


# torch's private names of FSDP, the attributes of its private classes among them.
FSDP_PRIVATE = frozenset(
    {"_get_fsdp_state", "_fsdp_param_group", "_module_info", "_local_tensor", "_handle"}
    | {"_fwd_bwd_param_dtype", "_orig_param_dtype", "_param_infos", "_shared_param_infos"}
    | {"_fsdp_wrapped_module", "_unpadded_unsharded_size", "_full_param_padded"}
    | {"fsdp_params", "sharded_param", "post_forward_mesh_info", "flat_param"}
    | {"uses_sharded_strategy", "training_state"}
)


def private_fsdp(path: Path) -> Iterator[str]:
    """Name torch's private parts of FSDP that a file imports or looks up."""
    yield from (name for name in imported(path) if name.startswith("torch.distributed.fsdp._"))
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and node.attr in FSDP_PRIVATE:
            if not (isinstance(node.value, ast.Name) and node.value.id == "self"):  # our own
                yield node.attr
        elif isinstance(node, ast.Constant) and str(node.value).strip(".") in FSDP_PRIVATE:
            yield str(node.value)


def test_private_names_of_fsdp_stay_in_one_module():
    for path in python_files(PACKAGE):
        if module_of(path) != "fsdp":
            assert not list(private_fsdp(path)), short(path)
    assert list(private_fsdp(PACKAGE / "fsdp.py"))


def test_every_module_has_a_layer():
    missing = [
        path for path in python_files(PACKAGE)
        if unit_of(module_of(path)) is None and module_of(path) != "__init__"
    ]  # fmt: skip
    assert not missing, "give these modules a layer in tests/test_architecture.py"


@pytest.mark.parametrize("path", python_files(PACKAGE), ids=short)
def test_imports_point_downward(path: Path):
    own = unit_of(module_of(path))
    if own is None:  # spin_composer itself: a test below holds that it imports nothing at run time
        return
    for name in imported(path):
        package, _, module = name.partition(".")
        unit = unit_of(module) if package == "spin_composer" else None
        if unit is not None:
            lower = LAYER_OF[unit] < LAYER_OF[own]
            assert unit == own or lower, f"{short(path)} imports {name}"


PICKLES = frozenset({"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"})
# Functions that unpickle, or make objects, of a file; np.load does if allow_pickle says so.
UNPICKLERS = frozenset(
    {"torch.load", "torch.distributed.checkpoint", "pandas.read_pickle"}
    | {"yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load"}
)


def unpickling(path: Path) -> Iterator[str]:
    """Name what in a file can unpickle: imports, calls, and arguments that allow it."""
    yield from (name for name in imported(path) if top(name) in PICKLES or name in UNPICKLERS)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in UNPICKLERS:
            yield ast.unparse(node)
        if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "allow_unsafe_types"):
            given = ast.unparse(node.value)
            yield from [] if given == "False" else [f"{node.arg}={given}"]


@pytest.mark.parametrize("path", python_files(PACKAGE, ROOT / "kernels"), ids=short)
def test_nothing_of_ours_unpickles(path: Path):
    # Composer's torch.load of checkpoints is Composer's, and docs/exports.md says so.
    assert not list(unpickling(path))


def test_what_unpickles_is_found(tmp_path: Path):
    bad = tmp_path / "bad.py"
    for line in (
        "import pickle",
        "from torch import load",
        "def f():\n    import dill as d",
        "import torch\ntorch.load('x')",
        "import torch\nread = torch.load",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "from streaming import StreamingDataset\nStreamingDataset(allow_unsafe_types=flag)",
        "import yaml\nyaml.load('x', yaml.Loader)",
    ):
        bad.write_text(line)
        assert list(unpickling(bad)), line


def test_report_reads_files_only():
    for path in python_files(PACKAGE):
        if unit_of(module_of(path)) == "report":
            names = list(imported(path))
            own = {unit_of(name[14:]) for name in names if name.startswith("spin_composer.")}
            allowed = {"errors", "report", "save_folder", "settings", "store.layout"}
            allowed |= {"alarms.rules"}
            assert own <= allowed, f"{short(path)} imports {sorted(own)}"
            assert not set(map(top, names)) & (HEAVY - {"matplotlib", "numpy"})


@pytest.mark.parametrize(
    "module",
    [
        *("cli", "errors", "loss", "report.history", "report.status", "save_folder"),
        "settings.yaml",
    ],
)
def test_light_modules_load_nothing_heavy(module: str):
    code = f"import sys, spin_composer.{module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())


def loaded_by(*commands: list[str]) -> set[str]:
    """Return the packages that a process has imported after these commands."""
    code = (
        "import sys; from typer.testing import CliRunner; from spin_composer.cli import app\n"
        f"for command in {list(commands)!r}:\n"
        "    done = CliRunner().invoke(app, command)\n"
        "    assert done.exit_code == 0, (command, done.output, done.exception)\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_help_and_status_load_nothing_heavy(tmp_path: Path):
    yaml = write_config(tiny_config(tmp_path, tmp_path), tmp_path / "run.yaml")
    (tmp_path / "self-play").mkdir()
    commands = (["--help"], ["train", "--help"], ["data", "check", "--help"], ["status", str(yaml)])
    assert not HEAVY & loaded_by(*commands)


def test_data_commands_load_neither_composer_nor_llm_foundry(tmp_path: Path):
    rows, folder = write_rows(tmp_path / "rows.jsonl"), str(tmp_path / "tokenizer")
    tokenizers.byte_level().save_pretrained(folder)
    loaded = loaded_by(["data", "check", str(rows), "--tokenizer", folder])
    assert "transformers" in loaded
    assert not {"composer", "llmfoundry", "streaming", "datasets", "torchvision"} & loaded


def test_kernels_folder_is_no_package():
    # It would shadow the PyPI package `kernels`, which transformers imports.
    assert not (ROOT / "kernels" / "__init__.py").exists()


@pytest.mark.parametrize("path", python_files(PACKAGE, ROOT / "kernels"), ids=short)
def test_one_file_one_noun(path: Path):
    assert path.name != "utils.py"
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{short(path)} has {lines} lines: split it by noun"
