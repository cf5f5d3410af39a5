"""Versions outside the tested ranges are a line in the log, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from spin_composer.versions import TESTED_VERSIONS, version_warnings


def test_the_docs_name_the_ranges() -> None:
    page = (Path(__file__).parents[1] / "docs/versions.md").read_text()
    for package, ranges in TESTED_VERSIONS.items():
        ends = [" to ".join(f"{major}.{minor}" for major, minor in ends) for ends in ranges]
        assert f"{package} {' and '.join(ends)}" in page


def test_this_environment_is_one_that_is_known() -> None:
    assert version_warnings() == []


@pytest.mark.parametrize("torch", ["2.7.0", "2.11.0+cu128", "2.15.1"])
@pytest.mark.parametrize("transformers", ["4.51.3", "4.57.6", "5.17.0", "5.24.0.dev0"])
def test_versions_that_were_run_are_not_told_of(torch: str, transformers: str) -> None:
    assert version_warnings({"torch": torch, "transformers": transformers}) == []


@pytest.mark.parametrize(
    ("package", "found"),
    [("torch", "2.6.0"), ("torch", "3.0.0a1"), ("transformers", "4.60.1"), ("transformers", "6.0")],
)
def test_others_are_one_line_that_names_them_and_the_remedy(package: str, found: str) -> None:
    known = {"torch": "2.7.0", "transformers": "5.24.0"}
    (line,) = version_warnings({**known, package: found})
    assert "\n" not in line
    assert line.startswith(f"{package} {found} is outside the tested ranges, ")
    assert "docs/versions.md" in line
