"""A run that an earlier version began goes on, and ends as that version would have ended it.

The archives of tests/old_runs hold a run stopped in play, mid-epoch and at an iteration's end,
and how it ended uninterrupted. Sums are compared bit for bit where this machine's are bit for bit
those of the machine that made the run, which a pass of transformers' own shows; elsewhere (other
CPUs, other versions of torch) to what RMSprop makes of rounding in thirty steps of 0.001.
"""

from __future__ import annotations

import pytest
import torch
import transformers
from fixtures import old_run
from make_run import probe
from omegaconf import OmegaConf

from spin_composer.train import main

pytestmark = pytest.mark.foundry

EVERY = [(commit, stop) for commit in old_run.COMMITS for stop in old_run.STOPS]


@pytest.fixture(scope="module", params=EVERY, ids="-".join)
def gone_on(request, tmp_path_factory):
    """A run that was stopped and gone on with by today's code: kept archive, folder, log."""
    commit, stop = request.param
    kept = old_run.unpack(commit, tmp_path_factory.mktemp("kept"))
    folder = old_run.stopped(kept, stop, tmp_path_factory.mktemp("run"))
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        torch.set_num_threads(1)
        try:
            code = main(["run.yaml"])
        finally:
            torch.set_num_threads(threads)
    return kept, folder, stop, code


def test_it_goes_on_with_the_same_pairs(gone_on):
    kept, folder, _, code = gone_on
    assert code == 0
    for iteration in range(3):
        found, wanted = (
            old_run.pairs(x, iteration) for x in (folder / "self-play", kept / "whole/self-play")
        )
        for field in (0, 1, 2):  # row, prompt, real response: of the data and its tokenizing
            assert [pair[field] for pair in found] == [pair[field] for pair in wanted]
        if same_sums(kept):
            assert found == wanted


def same_sums(kept) -> bool:
    if not transformers.__version__.startswith("4.51."):  # of the run that was kept
        return False
    return probe(kept / "model") == (kept / "probe.txt").read_text().strip()


def test_it_keeps_the_units_that_were_there(gone_on):
    kept, folder, stop, _ = gone_on
    for path in (kept / stop / "self-play").glob("iter-*/units/unit-*/*"):
        assert (folder / path.relative_to(kept / stop)).read_bytes() == path.read_bytes()


def test_it_ends_with_the_same_losses_and_weights(gone_on):
    kept, folder, _, _ = gone_on
    exports = sorted((folder / "checkpoints/huggingface").iterdir())
    found = old_run.weights(exports[-1] / "model.safetensors")
    wanted = old_run.weights(kept / "whole/model.safetensors")
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if same_sums(kept):
            assert torch.equal(found[name], value), name
        else:
            torch.testing.assert_close(found[name], value, rtol=0, atol=5e-3)
    stores = (folder / "self-play", kept / "whole/self-play")
    for a, b in zip(*map(old_run.iteration_records, stores), strict=True):
        for name in ("batches", "spin/replayed_pairs", "spin/generated_length"):
            assert a[name] == b[name]
        assert a["loss/train/total"] == pytest.approx(b["loss/train/total"], abs=1e-3)


def test_its_rows_tell_the_two_ways_of_tokenizing_apart(tmp_path):
    from transformers import AutoTokenizer

    from spin_composer.data.sources import read_rows
    from spin_composer.data.tokenization import build_examples
    from spin_composer.settings.dataset import read_config

    kept = old_run.unpack(old_run.COMMITS[0], tmp_path)
    dataset = OmegaConf.to_container(OmegaConf.load(kept / "run.yaml").train_loader.dataset)
    dataset["hf_kwargs"] = {"data_files": str(kept / "rows.jsonl")}
    config = read_config(dataset)
    tokenizer = AutoTokenizer.from_pretrained(kept / "model")
    examples = build_examples(read_rows(config), tokenizer, config)
    assert examples.fingerprint != examples.retokenized("turns").fingerprint
