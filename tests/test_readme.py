"""What the README says is what the code does."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest
from fixtures.runs import write_rows
from fixtures.yaml_run import save_model

from spin_composer.settings.generation import GenerationSettings
from spin_composer.settings.spin import SpinSettings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def table(section: str) -> dict[str, list[str]]:
    """Return the rows of a section's first table by their first cell's name."""
    body = README.split(f"## {section}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in body.splitlines() if line.startswith("| `")]
    return {row[0].split("`")[1]: [cell.strip() for cell in row] for row in rows}


def test_the_table_names_settings_with_their_defaults():
    known = {field.name: field.default for field in fields(SpinSettings)}
    known |= {f"generation.{field.name}": field.default for field in fields(GenerationSettings)}
    known |= {"generation.stop_strings": [], "max_duration": "-"}
    for name, cells in table("Settings").items():
        default = known[name]
        shown = default if isinstance(default, str) else json.dumps(default)
        assert cells[2].strip("`") == shown, name


def test_the_python_example_runs(tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]  # pyright: ignore
    model = save_model(tmp_path)
    rows = write_rows(tmp_path / "sft.jsonl")
    write_rows(tmp_path / "heldout.jsonl", num_rows=7, seed=1)
    code = code.replace("alignment-handbook/zephyr-7b-sft-full", str(model))
    code = code.replace("sft.jsonl", str(rows)).replace("2048", "48")
    code = code.replace('"max_new_tokens": 512', '"max_new_tokens": 8')
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)  # the README's own lines
    state = names["trainer"].state
    assert int(state.timestamp.iteration) == 3
    nll = float(state.eval_metrics["eval"]["LanguageCrossEntropy"].compute())
    assert 0 < nll < 10


ROOMS = "yamls|kernels|spin_composer|docs|examples|benchmarks"


@pytest.mark.parametrize("path", re.findall(rf"`?((?:{ROOMS})/[\w./-]+)", README))
def test_every_path_in_the_readme_exists(path):
    assert (ROOT / path.rstrip("./")).exists()


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_every_link_in_the_docs_leads_to_a_file(page):
    links = re.findall(r"\]\(([^):]+)\)", page.read_text())
    assert links
    assert not [link for link in links if not (page.parent / link).exists()]
