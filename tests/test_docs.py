"""The pages of docs/: those made from the code say what it says, and the site builds."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import spin_composer
from spin_composer.errors import EnvironmentFailure, InputError, NotFiniteError, StoreError

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = runpy.run_path(str(DOCS / "generate.py"))["PAGES"]
ANY = "…"
"""What a page writes in place of a message's values."""


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_what_the_code_says(name: str) -> None:
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name](), (
        "run `make docs` and commit what it writes"
    )


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs")
    run = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(run, check=False, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "troubleshooting" / "index.html").exists()


def test_the_files_of_a_store_are_those_of_the_code() -> None:
    tree = ast.parse((ROOT / "spin_composer/store/layout.py").read_text(encoding="utf-8"))
    named = re.findall(r"^    (<(?:store|url)>\S+.*)$", ast.get_docstring(tree) or "", re.MULTILINE)
    page = (DOCS / "store.md").read_text(encoding="utf-8")
    assert len(named) > 8
    assert not [line for line in named if line not in page]


def said(node: ast.AST) -> str:
    """A text of the code, its values as ANY; "" if it is none."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(said(part) or ANY for part in node.values)
    return ""


def texts() -> Iterator[str]:
    for path in (ROOT / "spin_composer").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if text := said(node):
                yield text


def test_every_message_of_the_troubleshooting_page_is_one_of_the_code() -> None:
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    headings = re.findall(r"^### `(.+)`$", page, re.MULTILINE)
    assert len(headings) > 10
    known = [re.sub(f"{ANY}+", ANY, text) for text in texts()]
    for heading in headings:
        parts = [re.escape(part) for part in heading.split(ANY)]
        pattern = re.compile(".*".join(parts), re.DOTALL)
        assert any(pattern.search(text) for text in known), heading


def test_the_exit_codes_of_the_page_are_those_of_the_errors() -> None:
    page = (DOCS / "resuming.md").read_text(encoding="utf-8")
    codes = {int(code) for code in re.findall(r"^\| (\d) \|", page, re.MULTILINE)}
    kinds = (InputError, StoreError, EnvironmentFailure, NotFiniteError)
    assert codes == {0, 1, *(kind.exit_code for kind in kinds)}


def test_the_page_on_python_names_the_whole_api() -> None:
    page = (DOCS / "python.md").read_text(encoding="utf-8")
    rows = [row for row in page.splitlines() if row.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)", row.split("|")[1])}
    assert named == {*spin_composer.__all__} - {"__version__"}
