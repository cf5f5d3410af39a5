"""Ranks together: what rank 0 finds is known, or raised, on all of them."""

from __future__ import annotations

from pathlib import Path

from fixtures.ranks import on_ranks

from spin_composer.distributed import from_rank_zero, node_folder
from spin_composer.errors import InputError


def raise_on_rank_zero(rank: int) -> None:
    def make() -> None:
        assert rank == 0, "others do not read it"
        raise InputError("model: no config.\ntokenizer: too large.")

    from_rank_zero(make)


def test_what_rank_zero_finds_every_rank_raises():
    said = ("InputError", "model: no config.\ntokenizer: too large.", 2)
    assert on_ranks(raise_on_rank_zero) == {0: said, 1: said}


def folder_of_node(_: int) -> str:
    return node_folder()


def test_ranks_of_a_node_share_one_new_folder_and_nodes_do_not():
    node = on_ranks(folder_of_node, timeout_seconds=60, one_node=True)
    assert len(set(node.values())) == 1
    nodes = on_ranks(folder_of_node, timeout_seconds=60)
    assert len({*node.values(), *nodes.values()}) == 3
    for folder in {*node.values(), *nodes.values()}:
        Path(folder).rmdir()  # it is there, and empty
