"""The decode loop gives what generate and whole forward passes give, whoever joins and leaves."""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from scipy.stats import chi2
from torch.utils._python_dispatch import TorchDispatchMode

from spin_composer.engines.hf import cache, decode
from spin_composer.engines.hf import generator as engines
from spin_composer.engines.hf.families import DECODE_FAMILIES, unsupported_reason
from spin_composer.engines.hf.generator import HFGenerator
from spin_composer.engines.hf.sampling import sample_inverse_cdf
from spin_composer.model.unwrap import inner_model
from spin_composer.settings.generation import GenerationSettings
from tests.engines.hf.test_generator import assert_equals_recomputing, engine, plain
from tests.fixtures.models import tiny_model
from tests.fixtures.tokenizers import byte_level

VOCAB = 11
DRAW = np.random.default_rng(5)
PROMPTS = [DRAW.integers(3, VOCAB, n).astype(np.int32) for n in (3, 9, 1, 6, 2, 9, 4, 12, 5, 1, 7)]
SHORT = {"batch_size": 3, "max_new_tokens": 14}


@pytest.fixture(autouse=True)
def _small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let rows come and go, and the cache grow, within a few tokens."""
    monkeypatch.setattr(cache, "BLOCK", 4)
    monkeypatch.setattr(decode, "SYNC_EVERY", 3)


@pytest.fixture
def by_generate(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes an engine answer through Hugging Face generate."""

    def ask(hf: HFGenerator, prompts: Any = PROMPTS, seed: int = 0) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(engines, "unsupported_reason", lambda *_: "the test asks for it")
            return plain(hf.generate(prompts, seed))

    return ask


def model_with_stops(family: str = "llama", **overrides: Any) -> Any:
    """A model whose greedy responses end by the stop token after different numbers of tokens."""
    return tiny_model(family, seed=4, vocab_size=VOCAB, initializer_range=0.6, **overrides)


# --- the same ids as generate -----------------------------------------------------------------

GREEDY = {"top_k": 1}
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "repetition_penalty": {"repetition_penalty": 1.6},
    "min_new_tokens": {"min_new_tokens": 6},
    "all": {"repetition_penalty": 1.3, "min_new_tokens": 3, "temperature": 0.7, "top_p": 0.9},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_the_loop_gives_the_ids_of_generate(settings: dict[str, Any], by_generate: Any) -> None:
    hf = engine(model=model_with_stops(), **SHORT, **GREEDY, **settings)
    wanted = by_generate(hf)
    assert plain(hf.generate(PROMPTS, 0)) == wanted
    assert len({len(ids) for ids, _ in wanted}) > 1  # rows leave at different times


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["llama_tied", "mistral", "qwen2", "granite", "cohere"])
def test_families_give_the_ids_of_generate(family: str, attention: str, by_generate: Any) -> None:
    model = model_with_stops(family)
    model.config._attn_implementation = attention
    assert unsupported_reason(model, 26) is None
    hf = engine(model=model, **SHORT, **GREEDY)
    assert plain(hf.generate(PROMPTS, 0)) == by_generate(hf)


def test_stop_strings_end_what_generate_ends(by_generate: Any) -> None:
    tokenizer = byte_level()
    model = tiny_model("llama", vocab_size=len(tokenizer), initializer_range=0.6)
    strings = {"stop_strings": ["e", "o", "th", "in"], "max_new_tokens": 24, "batch_size": 3}
    hf = engine(model=model, tokenizer=tokenizer, **strings, **GREEDY)
    prompts = [np.array(tokenizer(t).input_ids, np.int32) for t in ("red green", "o", "the one")]
    wanted = by_generate(hf, prompts * 3)
    assert plain(hf.generate(prompts * 3, 0)) == wanted


SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": VOCAB,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
         "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3,
         "max_position_embeddings": 64, "num_experts": 4, "num_local_experts": 4,
         "num_experts_per_tok": 2, "moe_intermediate_size": 16,
         "shared_expert_intermediate_size": 16}  # fmt: skip
LATENT = {"num_key_value_heads": 4, "head_dim": 4, "q_lora_rank": 16, "kv_lora_rank": 8,
          "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8, "n_routed_experts": 4,
          "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(DECODE_FAMILIES))
def test_every_family_of_the_table_equals_recomputing(model_type: str) -> None:
    if model_type not in transformers.CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {model_type}")
    config = transformers.AutoConfig.for_model(
        model_type, **{**SMALL, **(LATENT if model_type == "deepseek_v3" else {})}
    )
    torch.manual_seed(0)
    for attention in ("eager", "sdpa"):
        config._attn_implementation = attention
        model = transformers.AutoModelForCausalLM.from_config(config)
        model.config._attn_implementation = attention
        assert unsupported_reason(model, 20) is None
        assert_equals_recomputing(engine(model=model, temperature=1e-5, max_new_tokens=6))


def test_flash_attention_is_left_for_one_that_takes_the_mask(by_generate: Any) -> None:
    hf = engine(model=model_with_stops(), **SHORT, **GREEDY)
    wanted = by_generate(hf)
    hf.model.config._attn_implementation = "flash_attention_2"
    assert plain(hf.generate(PROMPTS, 0)) == wanted
    assert hf.model.config._attn_implementation == "flash_attention_2"


def test_under_autocast_the_cache_is_bf16_and_tokens_are_the_policys() -> None:
    def bf16() -> Any:
        return torch.autocast("cpu", torch.bfloat16)

    model = tiny_model("llama", vocab_size=VOCAB)
    model.config._attn_implementation = "sdpa"
    settings = GenerationSettings(top_k=1, **SHORT)
    hf = HFGenerator(model, None, 2, settings, torch.device("cpu"), bf16)
    seen = set()
    update = cache.RowCache.update

    def spied(self: Any, *arguments: Any, **more: Any) -> Any:
        keys, values = update(self, *arguments, **more)
        seen.update({keys.dtype, values.dtype})
        return keys, values

    cache.RowCache.update = spied
    try:
        responses = hf.generate(PROMPTS, 0)
    finally:
        cache.RowCache.update = update
    assert seen == {torch.bfloat16}
    for prompt, response in zip(PROMPTS, responses, strict=True):
        ids = torch.from_numpy(np.concatenate([prompt, response.ids])).long()[None]
        with torch.no_grad(), bf16():
            logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
        chosen = logits.gather(1, ids[0, len(prompt) :, None])[:, 0]
        # two roundings of bf16 at this size of logits
        assert bool((chosen >= logits.max(-1).values - logits.abs().max() / 64).all())


# --- the distribution -------------------------------------------------------------------------


def exact_chances(model: Any, prompt: np.ndarray, length: int, vocab: int) -> dict[Any, float]:
    """Probability of every response of up to ``length`` tokens; token 2 ends one."""
    chances: dict[tuple[int, ...], float] = {}
    for tokens in product(range(vocab), repeat=length):
        end = tokens.index(2) + 1 if 2 in tokens else length
        if tokens[:end] in chances:
            continue
        ids = torch.tensor([[*prompt.tolist(), *tokens[:end]]])
        with torch.no_grad():
            logps = model(input_ids=ids).logits[0].double().log_softmax(-1)
        first = len(prompt) - 1
        chances[tokens[:end]] = float(
            sum(logps[first + i, t] for i, t in enumerate(tokens[:end])).exp()  # pyright: ignore
        )
    return chances


@pytest.mark.parametrize("path", ["loop", pytest.param("generate", marks=pytest.mark.slow)])
def test_whole_responses_have_their_exact_probabilities(path: str, by_generate: Any) -> None:
    vocab, length, count = 5, 3, 3000
    model = tiny_model("llama", vocab_size=vocab)
    hf = engine(model=model, max_new_tokens=length, batch_size=256)
    prompt = np.array([3, 4], np.int32)
    asked = [prompt, np.array([4, 3, 3, 4], np.int32)] * count
    answers = plain(hf.generate(asked, 7)) if path == "loop" else by_generate(hf, asked, 7)
    seen = Counter(tuple(ids) for ids, _ in answers[::2])
    chances = exact_chances(model, prompt, length, vocab)
    assert sum(chances.values()) == pytest.approx(1)
    statistic = sum(
        (seen[tokens] - count * p) ** 2 / (count * p) for tokens, p in chances.items()
    )
    assert statistic < chi2.ppf(1 - 1e-3, len(chances) - 1)


def test_a_token_without_probability_is_never_drawn() -> None:
    scores = torch.tensor([[-torch.inf, 0.0, -torch.inf]])
    for uniform in (0.0, 0.5, 1 - 2**-53):
        tokens, sound = sample_inverse_cdf(scores, torch.tensor([uniform], dtype=torch.float64))
        assert (int(tokens), bool(sound)) == (1, True)


# --- who sits beside whom ---------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"repetition_penalty": 1.4, "min_new_tokens": 2}])
def test_rows_that_join_and_leave_change_nothing(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = PROMPTS * 3
    model = tiny_model("llama", vocab_size=VOCAB)
    runs = []
    sizes = ((64, 30, 1, 8192, 1024), (3, 1, 99, 1, 1), (5, 7, 1, 20, 1024), (64, 5, 8, 8192, 8))
    for batch_size, look, change, tokens, enough in sizes:
        monkeypatch.setattr(decode, "SYNC_EVERY", look)
        monkeypatch.setattr(decode, "COMPACTION_RATIO", change)
        monkeypatch.setattr(decode, "PREFILL_TOKENS", tokens)
        monkeypatch.setattr(decode, "WORTH_A_PASS", enough)
        hf = engine(model=model, batch_size=batch_size, max_new_tokens=24, **settings)
        runs.append(plain(hf.generate(prompts, 9)))
    assert runs[0] == runs[1] == runs[2] == runs[3]


def test_a_pass_that_is_full_enough_takes_no_prompt_that_would_be_padded_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(decode, "WORTH_A_PASS", 40)
    passes: list[list[int]] = []
    prefill = decode.Decoder._prefill

    def spied(self: Any, indices: list[int], prompts: Any, uniforms: Any) -> Any:
        passes.append([len(prompts[index]) for index in indices])
        return prefill(self, indices, prompts, uniforms)

    monkeypatch.setattr(decode.Decoder, "_prefill", spied)
    engine(batch_size=99, max_new_tokens=2).generate(PROMPTS * 6, 0)
    taken = [length for lengths in passes for length in lengths]
    assert sorted(taken) == sorted(len(prompt) for prompt in PROMPTS * 6)
    assert len(passes) > 3
    for lengths in passes[:-1]:
        assert sum(lengths) >= 40
        while sum(lengths) - lengths[-1] >= 40:  # what came when it was full enough
            padding = max(lengths) * len(lengths) - sum(lengths)
            assert padding * decode.PADDING_RATIO <= sum(lengths)
            lengths.pop()


def test_a_prompt_gets_its_own_response_whatever_the_order() -> None:
    hf = engine(model=model_with_stops(), **SHORT, **GREEDY)
    answers = plain(hf.generate(PROMPTS, 0))
    assert plain(hf.generate(PROMPTS[::-1], 1)) == answers[::-1]


def test_the_cache_never_outgrows_the_longest_sequence() -> None:
    hf = engine(batch_size=4, max_new_tokens=20)
    largest = 0
    reserve = cache.RowCache.reserve

    def spied(self: Any, columns: int) -> bool:
        nonlocal largest
        grown = reserve(self, columns)
        largest = max(largest, self.capacity)
        return grown

    cache.RowCache.reserve = spied
    try:
        hf.generate(PROMPTS * 6, 3)
    finally:
        cache.RowCache.reserve = reserve
    assert 24 < largest <= cache.round_up(12 + 20 + decode.SYNC_EVERY + 2)


# --- the host does not wait -------------------------------------------------------------------


class HostReads(TorchDispatchMode):
    """Counts the operations whose result the host must wait for."""

    names = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique")
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in func.name() for name in self.names):
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_step_makes_the_host_wait_for_nothing(attention: str, by_generate: Any) -> None:
    tokenizer = byte_level()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    model.config._attn_implementation = attention
    settings = {"top_p": 0.9, "top_k": 50, "temperature": 0.8, "repetition_penalty": 1.2,
                "min_new_tokens": 3, "stop_strings": ["zq"]}  # fmt: skip
    hf = engine(model=model, tokenizer=tokenizer, max_new_tokens=12, batch_size=4, **settings)
    counts: list[int] = []
    step = decode.Decoder._step

    def counted(self: Any, rows: Any) -> None:
        with HostReads() as reads:
            step(self, rows)
        counts.append(reads.count)

    decode.Decoder._step = counted
    try:
        hf.generate(PROMPTS[:8], 0)
    finally:
        decode.Decoder._step = step
    assert len(counts) > 10
    assert sum(counts) == 0
    with HostReads() as reads:
        by_generate(hf, PROMPTS[:4])
    assert reads.count >= 12  # generate waits at every token: the count sees it


# --- what it does not run ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "overrides", "said"),
    [
        ("gpt2", {}, "GPT2LMHeadModel"),
        ("mpt", {}, "MPTForCausalLM"),
        ("gemma2", {}, "Gemma2ForCausalLM"),
        ("mistral", {"sliding_window": 5}, "sliding window of 5"),
    ],
)
def test_other_models_take_generate_and_the_log_says_so_once(
    family: str, overrides: Any, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    engines._log_once.cache_clear()
    hf = engine(model=tiny_model(family, vocab_size=VOCAB, **overrides))
    hf.generate(PROMPTS[:2], 0)
    hf.generate(PROMPTS[:2], 1)
    lines = [r.message for r in caplog.records if "Hugging Face generate" in r.message]
    assert len(lines) == 1
    assert said in lines[0]


def test_weights_that_are_not_finite_are_an_error() -> None:
    model = tiny_model("llama", vocab_size=VOCAB)
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    with pytest.raises(RuntimeError, match="not finite"):
        engine(model=model).generate(PROMPTS, 0)


def test_the_inner_model_is_found() -> None:
    model = tiny_model("llama", vocab_size=VOCAB)
    assert inner_model(model) is model
