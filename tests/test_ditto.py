"""A run of DITTO: its pairs and metrics, stopped and resumed, after SPIN's and before it."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.runs import NUM_ROWS, tiny_trainer

from spin_composer.errors import PlayDone, StoreError
from spin_composer.metrics import KIND_METRICS
from spin_composer.pair_kinds import PairKind
from spin_composer.play import player
from spin_composer.report.outline import RunOutline
from spin_composer.report.status import read_status
from spin_composer.store.local import LocalStore

SHARES = {"newest": 0.5, "earlier": 0.25, "between": 0.25}
DITTO: dict[str, Any] = {"game": "ditto", "ditto": SHARES, "nll_weight": 0.1}
UNITS = 5 + 3 + 1
"""Of 24 rows in units of 5: played, drawn (12 pairs) and joined (12 pairs)."""


def ditto_trainer(folder: Path, spin: dict[str, Any] | None = None, **settings: Any) -> Any:
    return tiny_trainer(folder, spin={**DITTO, **(spin or {})}, **settings)


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in trainer.state.model.state_dict().items()}


def kinds(store: LocalStore, iteration: int) -> list[PairKind]:
    units = range(store.manifest(iteration)["num_units"])
    return [pair.kind for unit in units for pair in store.read_unit(iteration, unit)]


def contents(store: LocalStore, iteration: int) -> dict[str, bytes]:
    """Return the files of an iteration's units by name; unit.json holds times, and is left out."""
    root = store.folder(iteration) / "units"
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.glob("unit-*/*"))
        if path.name != "unit.json"
    }


def by_batch(trainer: Any, metric: str) -> list[float]:
    """Return a metric of every batch; Composer logs an epoch's last one again, before the next."""
    found = trainer.logger.destinations[0].data[f"metrics/train/{metric}"]
    values = {int(time.batch): float(value) for time, value in found}
    return [values[batch] for batch in range(int(trainer.state.timestamp.batch))]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """An uninterrupted run of three iterations that checkpoints every batch."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = ditto_trainer(
        folder,
        max_duration="3iter",
        save_folder=str(folder / "checkpoints"),
        save_interval="1ba",
        save_filename="ep{epoch}-ba{batch}.pt",
    )
    trainer.fit()
    trainer.close()
    return folder, trainer


def test_iterations_have_the_planned_pairs_of_each_kind(whole: Any) -> None:
    store = LocalStore(whole[0] / "self-play")
    for iteration, wanted in ((0, [24, 0, 0]), (1, [24, 12, 12]), (2, [24, 12, 12])):
        found = kinds(store, iteration)
        assert [found.count(kind) for kind in PairKind] == wanted
        assert store.manifest(iteration)["format_version"] == 3
        assert store.manifest(iteration)["game"] == "ditto"
    assert store.manifest(2)["replayed"] == {"0": 5, "1": 5}


def test_status_counts_the_units_of_all_kinds(whole: Any) -> None:
    status = read_status(RunOutline(whole[0] / "self-play"))
    assert [(one.units, one.num_units) for one in status.iterations] == [
        (5, 5), (UNITS, UNITS), (UNITS, UNITS),
    ]  # fmt: skip
    assert [one.pairs for one in status.iterations] == [24, 48, 48]
    assert not any(one.problem for one in status.iterations)


def test_accuracy_and_margin_are_logged_by_kind(whole: Any) -> None:
    data = whole[1].logger.destinations[0].data
    for metric in KIND_METRICS:
        assert len(by_batch(whole[1], metric.__name__)) == 12 + 24 + 24
    first = by_batch(whole[1], "SpinMarginBetween")[:12]
    assert all(map(math.isnan, first))  # there is none in the first iteration
    assert [value for _, value in data["spin/between_pairs"]] == [12, 12]
    assert [value for _, value in data["spin/replayed_pairs"]] == [0, 12, 12]


def test_the_history_has_means_of_the_batches_with_pairs_of_the_kind(whole: Any) -> None:
    text = (whole[0] / "self-play/iterations.json").read_text()
    assert "NaN" not in text
    records = json.loads(text)["iterations"]
    assert "train/SpinMarginBetween" not in records[0]
    values = by_batch(whole[1], "SpinMarginBetween")[12:36]
    there = [value for value in values if not math.isnan(value)]
    assert 0 < len(there) < 24
    assert records[1]["train/SpinMarginBetween"] == pytest.approx(sum(there) / len(there))


def test_each_iteration_begins_where_policy_equals_opponent(whole: Any) -> None:
    data = whole[1].logger.destinations[0].data
    assert len(data["spin/first_batch_gap"]) == 3
    assert all(float(gap) < 1e-5 for _, gap in data["spin/first_batch_gap"])


@pytest.mark.parametrize("checkpoint", ["ep2-ba12", "ep2-ba20", "ep4-ba36", "ep5-ba50"])
def test_resumed_weights_and_history_are_those_of_the_whole_run(
    whole: Any, checkpoint: str, tmp_path: Path
) -> None:
    folder, trainer = whole
    batch = int(checkpoint.split("ba")[1])
    for k in range(1 + (batch > 12) + (batch > 36)):
        name = f"self-play/iter-{k:03d}"
        shutil.copytree(folder / name, tmp_path / name)
    load_path = str(folder / f"checkpoints/{checkpoint}.pt")
    again = ditto_trainer(tmp_path, max_duration="3iter", load_path=load_path)
    again.fit()
    for name, value in weights(again).items():
        assert torch.equal(value, weights(trainer)[name]), name
    wanted, found = (
        json.loads((root / "self-play/iterations.json").read_text())["iterations"]
        for root in (folder, tmp_path)
    )
    for a, b in zip(wanted, found, strict=True):
        for name in a:
            if "second" not in name and "share" not in name:
                assert a[name] == pytest.approx(b[name], rel=1e-6), name


def test_a_play_killed_before_it_joined_goes_on_to_the_same_store(
    whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = whole
    shutil.copytree(folder / "self-play/iter-000", tmp_path / "self-play/iter-000")
    load_path = str(folder / "checkpoints/ep2-ba12.pt")

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(player, "join_unit", killed)
        trainer = ditto_trainer(tmp_path, load_path=load_path)
        with pytest.raises(KeyboardInterrupt):
            trainer.fit()
        trainer.close()
    store = LocalStore(tmp_path / "self-play")
    assert store.complete_units(1) == set(range(UNITS - 1))
    ditto_trainer(tmp_path, load_path=load_path).fit()
    assert contents(store, 1) == contents(LocalStore(folder / "self-play"), 1)


def test_a_job_leaves_the_joined_pairs_to_the_run(whole: Any, tmp_path: Path) -> None:
    folder, _ = whole
    shutil.copytree(folder / "self-play/iter-000", tmp_path / "self-play/iter-000")
    load_path = str(folder / "checkpoints/ep2-ba12.pt")

    def job(units: str) -> str:
        only = {"play_only": {"iteration": 1, "units": units}}
        with pytest.raises(PlayDone) as done:
            ditto_trainer(tmp_path, spin=only, load_path=load_path).fit()
        return str(done.value)

    assert job("3:7") == "iteration 1: 4 units made, 0 existed, of 4 requested; it has 9."
    assert job("all") == (
        "iteration 1: 4 units made, 4 existed, of 9 requested; it has 9. The last one joins "
        "responses of the others: the run makes it."
    )
    ditto_trainer(tmp_path, load_path=load_path).fit()
    store = LocalStore(tmp_path / "self-play")
    assert contents(store, 1) == contents(LocalStore(folder / "self-play"), 1)


def test_a_run_changes_its_game_between_iterations_and_not_within_one(tmp_path: Path) -> None:
    saves = {
        "save_folder": str(tmp_path / "checkpoints"),
        "save_interval": "1ba",
        "save_filename": "ba{batch}.pt",
    }
    tiny_trainer(tmp_path, max_duration="1iter", **saves).fit()
    store = LocalStore(tmp_path / "self-play")
    assert store.manifest(0)["format_version"] == 2  # SPIN's, as ever
    middle = str(tmp_path / "checkpoints/ba5.pt")
    with pytest.raises(StoreError, match=r"differs in ditto .*format_version .*game "):
        ditto_trainer(tmp_path, load_path=middle).fit()
    end = str(tmp_path / "checkpoints/ba12.pt")
    ditto_trainer(tmp_path, load_path=end, save_overwrite=True, **saves).fit()
    found = kinds(store, 1)
    assert [found.count(kind) for kind in PairKind] == [24, 12, 12]
    later = str(sorted((tmp_path / "checkpoints").glob("ba36.pt"))[0])
    tiny_trainer(tmp_path, load_path=later, max_duration="3iter").fit()
    assert store.manifest(2)["format_version"] == 2
    replayed = kinds(store, 2)  # of DITTO's iteration, what was played
    assert replayed == [PairKind.NEWEST] * (2 * NUM_ROWS)


def test_samples_are_pairs_with_a_real_response(whole: Any) -> None:
    folder, _ = whole
    samples, rows = (
        [json.loads(line) for line in (folder / name).read_text().splitlines()]
        for name in ("self-play/iter-001/samples.jsonl", "rows.jsonl")
    )
    responses = tuple(row["response"] for row in rows)
    assert len(samples) == 8
    assert all(sample["real"].startswith(responses) for sample in samples)
