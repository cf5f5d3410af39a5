from __future__ import annotations

import json
from pathlib import Path

import pytest

from spin_composer.demo import run
from spin_composer.demo.results import DemoResults, ModelResult, report
from spin_composer.demo.run import Paths
from spin_composer.demo.scoring import Score
from spin_composer.errors import InputError


def model(nll: float, share: float) -> ModelResult:
    return ModelResult(nll, Score(share, 9.5, 1000))


FIGURES = DemoResults(
    base=model(0.7, 0.4),
    spin=[model(0.69, 0.5), model(0.68, 0.6)],
    sft=[model(0.71, 0.45), model(0.8, 0.5)],
    records=[
        {"batches": 48, "spin/pairs": 1590, "train/SpinAccuracy": 0.7, "train/SpinMargin": 1.5},
        {"batches": 47, "spin/pairs": 1580, "train/SpinAccuracy": 0.6, "train/SpinMargin": 1.0},
    ],
    tokens={"spin": 252196, "sft_continuation": 250053},
    seconds={"playing": 30.0, "scoring": 10.0},
)


def test_last_line_is_json_with_the_figures_per_iteration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    few = DemoResults(**{**vars(FIGURES), "base": model(0.6, 0.7)})
    report(FIGURES, few, tmp_path)
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["base"] == {"held_out_nll": 0.7, "valid": 0.4, "generated_length": 9.5}
    assert [it["valid"] for it in figures["iterations"]] == [0.5, 0.6]
    assert [it["steps"] for it in figures["iterations"]] == [48, 47]
    assert figures["iterations"][1]["sft_continuation"]["held_out_nll"] == 0.8
    assert figures["seconds"]["total"] == 40.0
    assert figures["few_rows"]["base"]["valid"] == 0.7
    assert len(figures["few_rows"]["iterations"]) == 2
    assert (tmp_path / "curves.png").exists()
    assert (tmp_path / "curves-few-rows.png").exists()


def test_table_shows_the_rival_even_where_it_wins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    better = DemoResults(**{**vars(FIGURES), "sft": [model(0.6, 0.9), model(0.5, 0.95)]})
    report(FIGURES, better, tmp_path)
    printed = capsys.readouterr().out
    assert "95.0%" in printed
    assert "60.0%" in printed


def test_folder_of_an_earlier_demo_is_emptied(tmp_path: Path):
    paths = Paths(tmp_path / "demo")
    run.prepare(paths)
    (paths.folder / "old").touch()
    run.prepare(paths)
    assert not (paths.folder / "old").exists()


def test_folder_of_something_else_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="contains something other than a demo"):
        run.prepare(Paths(tmp_path))
    assert (tmp_path / "thesis.tex").exists()


def test_yaml_of_the_demo_passes_the_checks_of_a_real_run(tmp_path: Path):
    from omegaconf import OmegaConf

    from spin_composer.settings.yaml import read_yaml, validate

    paths = Paths(tmp_path / "demo")
    run.prepare(paths)
    config = OmegaConf.to_container(read_yaml(paths.yaml, ["variables.folder=elsewhere"]))
    settings = validate(config)
    assert settings.store == "elsewhere/spin/self-play"
    assert config["eval_loader"]["dataset"]["hf_name"].startswith("elsewhere/")
