"""The table of samples reaches the run folder and the loggers that people use."""

from __future__ import annotations

import json

from fixtures.runs import tiny_trainer


def test_each_iteration_writes_its_samples_to_the_run_folder(tmp_path):
    tiny_trainer(tmp_path, spin={"sample_table_rows": 3}).fit()
    for iteration in (0, 1):
        path = tmp_path / f"self-play/iter-{iteration:03d}/samples.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row["iteration"] for row in rows] == [iteration] * 3
        assert all(
            row["prompt"].endswith(" :") and row["real"] and row["generated"] for row in rows
        )
        assert {row["finish"] for row in rows} <= {"stop", "length"}
