"""The package does what it did before it was restructured: see tests/before/README.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from before.record import HERE, RECORD, make

pytestmark = pytest.mark.other_stacks

CHANGED: dict[str, dict[str, str | None]] = json.loads(
    (HERE / "changed.json").read_text(encoding="utf-8")
)
LINES = ("help", "settings", "rows", "arguments", "stores", "surface")
RECORDED_ON = "4.51."
"""The transformers of the record: others add otherwise, name other files, say other words."""
FOREIGN_TEXTS = {("arguments", "check with a tokenizer that is not there")}
"""What transformers says of it is part of the line."""
RUNS = {"full": 5e-3, "lora": 5e-2}
"""The runs, and what rounding may make of their weights: a few of RMSprop's steps."""


def recorded(name: str, folder: Path = RECORD) -> Any:
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


CASES = [(name, case) for name in LINES for case in recorded(name)]


def as_recorded() -> bool:
    return transformers.__version__.startswith(RECORDED_ON)


def without_tokenizers(files: dict[str, list[str]]) -> dict[str, list[str]]:
    """Return a run's files, of exports the model's alone: the tokenizer's are transformers'."""
    return {
        part: [
            name for name in names
            if not name.startswith("huggingface/") or "/adapter" in name or "/model" in name
        ]
        for part, names in files.items()
    }  # fmt: skip


@pytest.fixture(scope="module")
def today(tmp_path_factory) -> Path:
    """The folder of a record made with today's code."""
    folder = tmp_path_factory.mktemp("today")
    make(folder)
    return folder


@pytest.fixture(scope="module")
def same_sums(today) -> bool:
    """Whether this environment's sums are those of the one that recorded."""
    return as_recorded() and (today / "probe.txt").read_text() == (RECORD / "probe.txt").read_text()


def replaced(lines: list[str]) -> list[str]:
    """Return recorded lines, those that were changed on purpose as they are now."""
    found: list[str] = []
    for line in lines:
        now = CHANGED[line]["now"] if line in CHANGED else line
        found += [] if now is None else now.split("\n")
    return found


@pytest.mark.parametrize(("name", "case"), CASES, ids=[": ".join(case) for case in CASES])
def test_the_commands_say_what_they_said(today, name, case):
    if (name, case) in FOREIGN_TEXTS and not as_recorded():
        pytest.skip("another transformers says it in other words")
    assert recorded(name, today)[case] == replaced(recorded(name)[case])


@pytest.mark.parametrize("name", LINES)
def test_every_case_is_recorded(today, name):
    assert list(recorded(name, today)) == list(recorded(name))


def test_what_was_changed_on_purpose_was_recorded_and_has_a_reason():
    lines = {line for name in LINES for said in recorded(name).values() for line in said}
    assert set(CHANGED) <= lines
    assert all(set(entry) == {"now", "why"} and entry["why"] for entry in CHANGED.values())


@pytest.mark.parametrize("run", RUNS)
def test_a_run_leaves_and_logs_the_same_names(today, run):
    found, wanted = (recorded(f"run_{run}", folder) for folder in (today, RECORD))
    if as_recorded():
        assert found["files"] == wanted["files"]
    assert without_tokenizers(found["files"]) == without_tokenizers(wanted["files"])
    assert list(found["metrics"]) == list(wanted["metrics"])
    for name, entries in wanted["metrics"].items():
        assert [entry[:2] for entry in found["metrics"][name]] == [e[:2] for e in entries], name


@pytest.mark.parametrize("run", RUNS)
def test_a_run_plays_the_same_prompts_with_the_same_manifest(today, run):
    found, wanted = (recorded(f"run_{run}", folder) for folder in (today, RECORD))
    for record in (found, wanted):  # what hangs on sums is compared below
        for manifest in record["manifests"].values():
            assert manifest.pop("opponent")
        for pair in (pair for pairs in record["pairs"].values() for pair in pairs):
            del pair["generated"], pair["opponent_real"], pair["opponent_generated"]
            del pair["finish"]
    assert found["manifests"] == wanted["manifests"]
    assert found["pairs"] == wanted["pairs"]


@pytest.mark.parametrize("run", RUNS)
def test_a_run_is_the_same_bit_for_bit(today, same_sums, run):
    if not same_sums:
        pytest.skip("this machine adds in another order than the one that recorded")
    found, wanted = (recorded(f"run_{run}", folder) for folder in (today, RECORD))
    assert list(found) == list(wanted)
    for part, value in wanted.items():
        assert found[part] == value, part


@pytest.mark.parametrize(("run", "atol"), RUNS.items(), ids=RUNS)
def test_a_run_ends_with_weights_and_losses_that_are_close(today, run, atol):
    with (
        np.load(today / f"run_{run}.npz") as found,
        np.load(RECORD / f"run_{run}.npz") as wanted,
    ):
        assert list(found) == list(wanted)
        for name in wanted:
            np.testing.assert_allclose(found[name], wanted[name], rtol=0, atol=atol, err_msg=name)
    losses, before = (
        [value for *_, value in recorded(f"run_{run}", folder)["metrics"]["loss/train/total"]]
        for folder in (today, RECORD)
    )
    assert losses == pytest.approx(before, abs=0.05)
