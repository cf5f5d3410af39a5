"""The data is read, checked and converted without llm-foundry; what needs it says so."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from spin_composer.data.preprocess import FOUNDRY_DATASETS, make_preprocessor
from spin_composer.data.tokenizers import load_tokenizer
from spin_composer.errors import InputError
from spin_composer.settings.dataset import read_config
from tests.data.datasets import check_dataset, convert_dataset
from tests.data.rows import CHAT, PLAIN, load
from tests.fixtures import tokenizers

KINDS = {"plain": PLAIN, "chat": CHAT}


@pytest.fixture
def uninstalled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every import of llm-foundry fail."""
    monkeypatch.setitem(sys.modules, "llmfoundry", None)
    monkeypatch.delitem(sys.modules, "spin_composer.foundry.finetuning", raising=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizers.chatml().save_pretrained(folder)
    return str(folder)


def config(**dataset: Any) -> Any:
    return read_config({"max_seq_len": 64, "split": "train", **dataset})


@pytest.mark.usefixtures("uninstalled")
@pytest.mark.parametrize("kind", KINDS)
def test_all_ways_to_the_ids_work(kind: str, any_tokenizer: Any, jsonl: Any, folder: str, tmp_path):
    path = str(jsonl(KINDS[kind]))
    ids = {way: load(any_tokenizer, hf_name=path, tokenize=way) for way in ("rendering", "turns")}
    assert len(ids["rendering"]) == len(ids["turns"]) == len(KINDS[kind])
    safe = load(any_tokenizer, hf_name=str(Path(path).parent), split="train", safe_load=True)
    assert safe.fingerprint == ids["rendering"].fingerprint
    assert convert_dataset(path, str(tmp_path / "mds")).kind == kind
    for source in ({"local": str(tmp_path / "mds")}, {"remote": str(tmp_path / "mds")}):
        assert load(any_tokenizer, **source).fingerprint == ids["rendering"].fingerprint
    report = check_dataset(path, folder)
    assert report.rows.kept == report.differences.compared == len(KINDS[kind])


@pytest.mark.usefixtures("uninstalled")
def test_what_only_llm_foundry_has_names_the_extra():
    for dataset in (
        {"hf_name": "tatsu-lab/alpaca"},
        {"hf_name": "org/set", "preprocessing_fn": "tatsu-lab/alpaca"},
        {"hf_name": "org/set", "preprocessing_fn": "llmfoundry.data:alpaca"},
    ):
        with pytest.raises(InputError, match=r"alpaca'.*Install '\.\[foundry\]' in the checkout"):
            make_preprocessor(config(**dataset))
    assert make_preprocessor(config(hf_name="org/set")) is None
    with pytest.raises(InputError, match=r"tokenizer='tiktoken' .*Install '\.\[foundry\]'"):
        load_tokenizer("tiktoken")


def test_where_it_is_installed_its_functions_are_used():
    tasks = pytest.importorskip("llmfoundry.data.finetuning.tasks")
    registered = tasks.dataset_constructor._task_preprocessing_registry
    assert set(registered) == FOUNDRY_DATASETS
    for name in FOUNDRY_DATASETS:
        assert make_preprocessor(config(hf_name=name)) is registered[name]
        named = config(hf_name="org/set", preprocessing_fn=name)
        assert make_preprocessor(named) is registered[name]
    with pytest.raises(InputError, match="preprocessing_fn='alpaca' is not registered"):
        make_preprocessor(config(hf_name="org/set", preprocessing_fn="alpaca"))


@pytest.mark.parametrize(
    "kwargs", [{}, {"model_max_length": 77}, {"padding_side": "left"}, {"pad_token": "<|im_end|>"}]
)
def test_tokenizers_are_made_as_llm_foundry_makes_them(kwargs: dict[str, Any], folder: str):
    ours = load_tokenizer(folder, kwargs)
    assert ours.model_max_length == kwargs.get("model_max_length", int(1e30))
    builders = pytest.importorskip("llmfoundry.utils.builders")
    theirs = builders.build_tokenizer(folder, dict(kwargs))
    assert type(ours) is type(theirs)
    for name in ("model_max_length", "padding_side", "pad_token", "chat_template", "init_kwargs",
                 "special_tokens_map", "clean_up_tokenization_spaces"):  # fmt: skip
        assert getattr(ours, name) == getattr(theirs, name), name


def test_a_tokenizer_without_eos_is_refused(tmp_path: Path):
    tokenizer = tokenizers.byte_level()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="has no EOS token"):
        load_tokenizer(str(tmp_path))
