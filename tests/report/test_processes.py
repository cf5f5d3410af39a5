from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fixtures.reported_run import process

from spin_composer.errors import StoreError
from spin_composer.report.processes import as_json, parse_processes, read_processes


def test_processes_are_read_as_they_are_written() -> None:
    made = [process(exports=["hf"]), process(iteration=1, batch=20, exports=[])]
    assert parse_processes(as_json(made), "run.json") == made


def test_what_a_newer_version_adds_is_left_out() -> None:
    content = json.loads(as_json([process()]))
    content["processes"][0] |= {"weather": "fine"}
    content["processes"][0]["training"] |= {"moon": 1}
    (found,) = parse_processes(json.dumps(content), "run.json")
    assert found.facts.optimizer == "RMSprop"


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"processes": [{"run_name": "x"}]}',
        as_json([replace(process(), settings={})]),
        as_json([process(settings={"iteration_length": "two"})]),
    ],
)
def test_a_damaged_file_is_named(text: str) -> None:
    with pytest.raises(StoreError, match=r"^run\.json is damaged"):
        parse_processes(text, "run.json")


def test_a_run_of_an_older_version_has_none(tmp_path: Path) -> None:
    assert read_processes(tmp_path) == []
