"""Exports are found where the exporters write them, by iteration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spin_composer.errors import InputError
from spin_composer.judge.exports import exports_in, exports_of_run


def make(*folders: Path) -> None:
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")


def names(config: dict[str, Any]) -> list[tuple[str, str]]:
    return [(one.name, one.folder.name) for one in exports_of_run(config, "run.yaml")]


def test_each_exporters_folders_are_found_in_the_order_of_iterations(tmp_path: Path):
    make(*(tmp_path / f"own/tiny/iter{i}" for i in (10, 9, 0)))
    own = {"hf_exporter": {"save_folder": f"{tmp_path}/own/{{run_name}}"}}
    wanted = [("iter-000", "iter0"), ("iter-009", "iter9"), ("iter-010", "iter10")]
    assert names({"run_name": "tiny", "callbacks": own}) == wanted
    make(tmp_path / "saved/huggingface/iter0")
    assert names({"save_folder": f"{tmp_path}/saved"}) == [("iter-000", "iter0")]
    make(tmp_path / "named/huggingface/ba7", tmp_path / "named/huggingface/ba14")
    foundry = {"hf_checkpointer": {"save_folder": f"{tmp_path}/named"}}
    assert names({"callbacks": foundry}) == [("ba7", "ba7"), ("ba14", "ba14")]


def test_of_an_iteration_the_last_export_counts(tmp_path: Path):
    make(*(tmp_path / f"iter{i}-ba{b}" for i, b in ((0, 5), (0, 10), (1, 15))))
    own = {"save_folder": str(tmp_path), "huggingface_folder_name": "iter{iteration}-ba{batch}"}
    found = names({"callbacks": {"hf_exporter": own}})
    assert found == [("iter-000", "iter0-ba10"), ("iter-001", "iter1-ba15")]


@pytest.mark.parametrize(
    ("folders", "wanted"),
    [
        (("iter0-bf16", "iter1-bf16", "iter10-bf16"), ("iter-000", "iter-001", "iter-010")),
        (("iter0/hf", "iter1/hf"), ("iter-000", "iter-001")),
        (("2026-iteration_3", "filter7"), ("iter-003", "filter7")),
        (("ep10-iter0", "ep1-iter1", "MyIter=2"), ("iter-000", "iter-001", "iter-002")),
        (("0", "1", "10"), ("iter-000", "iter-001", "iter-010")),
        (("ba7/hf", "ba14/hf"), ("ba7/hf", "ba14/hf")),
        (("iter0-ba5", "iter0-ba10"), ("iter-000",)),
    ],
)
def test_exports_in_a_folder_have_the_number_after_iter(
    tmp_path: Path, folders: tuple[str, ...], wanted: tuple[str, ...]
):
    make(*(tmp_path / name for name in folders))
    found = exports_in(tmp_path)
    assert tuple(one.name for one in found) == wanted
    assert found[-1].folder == tmp_path / folders[-1]


def test_exports_of_two_runs_are_not_mixed(tmp_path: Path):
    make(*(tmp_path / f"seed{seed}/iter{k}" for seed in (1, 2) for k in (0, 1)))
    with pytest.raises(InputError, match="several exports of iteration 0: "):
        exports_in(tmp_path)


def test_nested_exports_without_an_iteration_are_all_found(tmp_path: Path):
    make(tmp_path / "ba7/hf", tmp_path / "ba14/hf")
    own = {"save_folder": str(tmp_path), "huggingface_folder_name": "ba{batch}/hf"}
    found = names({"callbacks": {"hf_exporter": own}})
    assert found == [("ba7/hf", "hf"), ("ba14/hf", "hf")]


def test_a_link_to_the_best_and_adapters_are_told_apart(tmp_path: Path):
    make(tmp_path / "iter0")
    (tmp_path / "iter0/config.json").rename(tmp_path / "iter0/adapter_config.json")
    (tmp_path / "best").symlink_to("iter0")
    (found,) = exports_in(tmp_path)
    assert found.name == "iter-000"
    assert found.only_adapters


def test_exports_in_an_object_store_are_not_read(tmp_path: Path):
    with pytest.raises(InputError, match="Download them to a folder"):
        names({"callbacks": {"hf_exporter": {"save_folder": "s3://bucket/hf"}}})
