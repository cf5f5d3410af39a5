"""Without llm-foundry: what needs it says so in one line and writes nothing; the rest works."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.yaml_run import tiny_config, write_config
from omegaconf import OmegaConf

from spin_composer.errors import InputError
from spin_composer.train import train_config

MISSING = "import sys; sys.modules['llmfoundry'] = None; "  # as good as uninstalled
COMMANDS = {
    "python -m spin_composer train": "import runpy; sys.argv.insert(1, 'train'); "
    "runpy.run_module('spin_composer', run_name='__main__')",
    "python -m spin_composer.train": "from spin_composer.train import main; "
    "sys.exit(main(sys.argv[1:]))",
    "spin-composer train": "from spin_composer.cli import main; "
    "sys.argv.insert(1, 'train'); main()",
    "spin-composer play": "from spin_composer.cli import main; "
    "sys.argv[1:1] = ['play', '--iteration', '0']; main()",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_yaml_names_the_extra_to_install(command: str, tmp_path: Path):
    path = write_config(tiny_config(tmp_path / "run"), tmp_path / "run.yaml")
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", MISSING + COMMANDS[command], str(path)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr[-2000:]
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: a run's YAML needs llm-foundry, which is not installed.")
    assert "Install '.[foundry]' in the checkout" in line
    assert sorted(tmp_path.rglob("*")) == before


def test_the_missing_extra_stands_beside_the_other_problems_of_a_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "llmfoundry", None)
    with pytest.raises(InputError) as refused:
        train_config(OmegaConf.create({**tiny_config(tmp_path / "run"), "sede": 7}))
    extra, other = str(refused.value).splitlines()
    assert extra.startswith("a run's YAML needs llm-foundry")
    assert other.startswith("sede is not a key")


@pytest.mark.other_stacks
def test_importing_the_public_names_needs_no_llm_foundry():
    names = ("SPIN", "HFSpinLM", "SpinScheduler", "HuggingFaceExporter", "build_spin_dataloader",
             "build_spin_evaluator")  # fmt: skip
    code = MISSING + f"import spin_composer; [getattr(spin_composer, n) for n in {names}]"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
