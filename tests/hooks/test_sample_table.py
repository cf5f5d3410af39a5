"""The table of samples reaches the run folder and the loggers that people use."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from fixtures.runs import tiny_trainer

from spin_composer.report.samples import Sample, read_samples
from spin_composer.store.local import LocalStore


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


def test_a_prompt_that_is_answered_several_times_is_one_row(tmp_path):
    spin = {"sample_table_rows": 3, "responses_per_prompt": 4}
    trainer = tiny_trainer(tmp_path, max_duration="1iter", spin=spin)
    trainer.fit()
    trainer.close()
    samples = read_samples(tmp_path / "self-play")
    assert len({sample.index for sample in samples}) == 3
    assert all(s.real_tokens is not None and s.real_tokens.policy for s in samples)


SAVES = {"save_interval": "5ba", "save_filename": "ep{epoch}-ba{batch}.pt"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two iterations, with checkpoints within them."""
    folder = tmp_path_factory.mktemp("run")
    trainer = tiny_trainer(folder, save_folder=str(folder / "ck"), **SAVES)
    trainer.fit()
    trainer.close()
    return folder


def test_the_opponents_log_probs_of_tokens_sum_to_the_stores(run: Path) -> None:
    store, samples = LocalStore(run / "self-play"), read_samples(run / "self-play")
    assert len(samples) == 16
    for iteration in range(2):
        of_iteration = [s for s in samples if s.iteration == iteration]
        units = (pair for unit in range(2) for pair in store.read_unit(iteration, unit))
        for sample, pair in zip(of_iteration, units, strict=False):
            real, generated = sample.real_tokens, sample.generated_tokens
            assert real is not None
            assert generated is not None
            assert (sample.index, len(real.texts)) == (pair.index, len(pair.real))
            assert sum(real.opponent) == pytest.approx(pair.opponent_real, abs=1e-2)
            assert sum(generated.opponent) == pytest.approx(pair.opponent_generated, abs=1e-2)
            assert ("".join(real.texts), "".join(generated.texts)) == (
                sample.real, sample.generated
            )  # fmt: skip


def test_the_policy_has_learned_what_the_iteration_taught(run: Path) -> None:
    margins = [sample.margin() for sample in read_samples(run / "self-play")]
    assert None not in margins
    assert sum(m for m in margins if m is not None) > 0


def policies(samples: list[Sample]) -> list[tuple]:
    return [
        (side.opponent, side.policy)
        for sample in samples
        for side in (sample.real_tokens, sample.generated_tokens)
        if side is not None
    ]


def test_a_resumed_run_completes_the_table(run: Path, tmp_path: Path) -> None:
    name = "self-play/iter-000"
    shutil.copytree(run / name, tmp_path / name)
    table = tmp_path / name / "samples.jsonl"
    begun = [json.loads(line) for line in table.read_text().splitlines()]
    for row in begun:
        row["real_tokens"]["policy"] = row["generated_tokens"]["policy"] = []
    table.write_text("".join(f"{json.dumps(row)}\n" for row in begun))
    trainer = tiny_trainer(tmp_path, load_path=str(run / "ck/ep0-ba5.pt"))
    trainer.fit()
    trainer.close()
    assert policies(read_samples(tmp_path / "self-play")) == policies(
        read_samples(run / "self-play")
    )


@pytest.mark.parametrize("text", [None, "{", "older"])
def test_a_table_that_cannot_be_completed_ends_no_run(
    run: Path, tmp_path: Path, text: str | None
) -> None:
    name = "self-play/iter-000"
    shutil.copytree(run / name, tmp_path / name)
    table = tmp_path / name / "samples.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    table.unlink()
    if text is not None:
        kept = [{k: v for k, v in row.items() if not k.endswith("tokens")} for row in rows]
        older = "".join(f"{json.dumps(row)}\n" for row in kept)
        table.write_text(older if text == "older" else text)
    trainer = tiny_trainer(tmp_path, load_path=str(run / "ck/ep1-ba10.pt"), max_duration="1iter")
    trainer.fit()
    trainer.close()
    assert not table.exists() or table.read_text() in ("{", older)
