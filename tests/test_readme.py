"""What the README and the pages about settings and Python say is what the code does."""

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
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LONGEST = 150
"""Lines of the README: one is read to its end."""


def test_the_readme_is_short():
    assert len(README.splitlines()) <= LONGEST


def test_the_table_names_settings_with_their_defaults():
    page = (ROOT / "docs/choosing.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split("|") for line in page.splitlines() if line.startswith("| `")]
    known = {field.name: field.default for field in fields(SpinSettings)}
    known |= {f"generation.{field.name}": field.default for field in fields(GenerationSettings)}
    known |= {"generation.stop_strings": [], "max_duration": "-"}
    assert len(rows) > 10
    for row in rows:
        name, shown = row[0].split("`")[1], row[2].strip().strip("`")
        default = known[name]
        assert shown == (default if isinstance(default, str) else json.dumps(default)), name


def test_the_python_example_runs(tmp_path, monkeypatch):
    page = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)[1]  # pyright: ignore
    model = save_model(tmp_path)
    rows = write_rows(tmp_path / "sft.jsonl")
    write_rows(tmp_path / "heldout.jsonl", num_rows=7, seed=1)
    code = code.replace("alignment-handbook/zephyr-7b-sft-full", str(model))
    code = code.replace("sft.jsonl", str(rows)).replace("2048", "48")
    code = code.replace('"max_new_tokens": 512', '"max_new_tokens": 8')
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)  # the page's own lines
    state = names["trainer"].state
    assert int(state.timestamp.iteration) == 3
    nll = float(state.eval_metrics["eval"]["LanguageCrossEntropy"].compute())
    assert 0 < nll < 10


ROOMS = "yamls|kernels|spin_composer|docs|examples|benchmarks|tests"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_on_a_page_exists(page):
    named = re.findall(rf"`((?:{ROOMS})/[\w./-]+)`", page.read_text(encoding="utf-8"))
    assert not [path for path in named if not (ROOT / path.rstrip("./")).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    inside = [link for link in links if "://" not in link]
    assert not [link for link in inside if not (page.parent / link).exists()]
