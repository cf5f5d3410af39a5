"""Measures say what they promise of texts whose answer is known, and their intervals are right."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

from spin_composer.errors import InputError
from spin_composer.judge.answers import GSM8K_ANSWER, compile_answer, final_answer
from spin_composer.judge.classifier import SPREAD, out_of_fold_hits
from spin_composer.judge.diversity import distinct_shares, self_bleu_scores
from spin_composer.judge.estimate import Bootstrap
from spin_composer.judge.measures import UNITS, Measures, measure

NOUNS = ["cat", "dog", "sun", "moon", "tree", "river", "stone", "bird", "hill", "road"]
VERBS = ["sees", "likes", "finds", "meets", "hears", "calls"]
PROMPTS = [f"question {i}" for i in range(200)]


def write(seed: int, favorite: float = 0.0) -> list[str]:
    """Return a response to each prompt; a share of the nouns is the favorite one."""
    rng = random.Random(seed)
    noun = lambda: "cat" if rng.random() < favorite else rng.choice(NOUNS)  # noqa: E731
    return [
        " ".join(
            f"the {noun()} {rng.choice(VERBS)} the {noun()}." for _ in range(rng.randint(1, 4))
        )
        for _ in PROMPTS
    ]


@pytest.fixture(scope="module")
def real() -> list[str]:
    return write(1)


@pytest.fixture(scope="module")
def same(real: list[str]) -> Measures:
    return measure(real, write(2), PROMPTS, resamples=300)


def test_responses_of_the_same_distribution_cannot_be_told_apart(same: Measures):
    assert same.classifier_accuracy.low < 0.5 < same.classifier_accuracy.high
    for accuracy in (same.classifier_accuracy, same.classifier_control):
        assert accuracy.value == pytest.approx(0.5, abs=3 * accuracy.standard_error)
        assert 0 < accuracy.standard_error < 0.05


def test_the_further_from_the_data_the_better_a_classifier_tells_them(
    real: list[str], same: Measures
):
    near = measure(real, write(2, favorite=0.2), PROMPTS, resamples=300)
    far = measure(real, write(2, favorite=0.7), PROMPTS, resamples=300)
    assert far.classifier_accuracy.value > 0.8
    for farther, nearer in ((far, near), (far, same)):
        assert farther.classifier_accuracy.minus(nearer.classifier_accuracy).low > 0
    # the control is of the real responses alone
    assert far.classifier_control == near.classifier_control == same.classifier_control


def test_no_fold_sees_another_response_to_its_prompts():
    # Each prompt has a real word and a sampled one of its own, ten times: with one of its rows in
    # training, the others would be told without a miss.
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=8)) for _ in range(80)]
    rows = [i % 40 for i in range(400)]
    real, own = [words[i] for i in rows], [words[40 + i] for i in rows]
    found = measure(real, own, [f"prompt {i}" for i in rows], resamples=100)
    assert found.classifier_accuracy.low < 0.5 < found.classifier_accuracy.high
    alone = measure(real, own, [f"prompt {i}" for i in range(400)], resamples=100)
    assert alone.classifier_accuracy.value == 1.0, "what a leak would give"


def test_the_control_is_right_as_often_as_chance_over_many_sets():
    rates = []
    for seed in range(10):
        found = measure(
            write(seed)[:60], write(seed + 99)[:60], PROMPTS[:60], resamples=2, seed=seed
        )
        rates += [found.classifier_accuracy.value, found.classifier_control.value]
    assert abs(np.mean(rates) - 0.5) < 3 * np.std(rates) / np.sqrt(len(rates))


def test_a_model_with_little_to_say_is_less_diverse(real: list[str], same: Measures):
    dull = measure(real, [real[0]] * 200, PROMPTS, resamples=50)
    assert dull.distinct_1.value < dull.distinct_2.value < same.distinct_2.value / 2
    assert same.self_bleu.high < dull.self_bleu.value == 1
    for ours, theirs in (
        (same.distinct_2, same.real_distinct_2),
        (same.self_bleu, same.real_self_bleu),
    ):
        assert ours.value == pytest.approx(theirs.value, abs=4 * theirs.standard_error)


def test_several_responses_to_a_prompt_are_not_less_diverse(real: list[str], same: Measures):
    own = write(2) + write(3) + write(4)
    thrice = measure(real * 3, own, PROMPTS * 3, resamples=300)
    for name in ("distinct_1", "distinct_2", "self_bleu"):
        for measured in (name, f"real_{name}"):
            assert getattr(thrice, measured) == getattr(same, measured)
    parts, totals = distinct_shares(own, 2)
    assert parts.sum() / totals.sum() < same.distinct_2.low, "what they are beside 200 real ones"


def test_distinct_n_is_the_share_of_different_ngrams():
    parts, totals = distinct_shares(["a b a b", "b a", ""], 2)
    assert parts.sum() == pytest.approx(2)
    assert totals.tolist() == [3, 1, 0]
    parts, totals = distinct_shares(["a, a"], 1)
    assert parts.sum() / totals.sum() == pytest.approx(2 / 3)


def test_self_bleu_is_that_of_the_definition():
    texts = ["the cat sees the dog", "the cat sees a dog", "one two three four five six"]
    scores = self_bleu_scores(texts)
    # by hand, of the first against the others: 4 of 5 words, 2 of 4 pairs, 1 of 3, none of 2
    assert scores[0] == pytest.approx((4 / 5 * 2 / 4 * 1 / 3 * 0.1 / 2) ** 0.25)
    assert scores[2] == 0
    assert self_bleu_scores(["a b c d e"] * 3).tolist() == [1, 1, 1]
    # closest is 4 words long: a brevity penalty of exp(1 - 4 / 3)
    short = self_bleu_scores(["a b c", "a b c d", "a b c d e f g"])
    assert short[0] == pytest.approx(np.exp(1 - 4 / 3))


def test_what_was_measured_by_tokens_is_what_the_numbers_say(real: list[str]):
    found = measure(
        real, real, PROMPTS, resamples=100,
        real_tokens=[10] * 200, sampled_tokens=[10, 14] * 100, stopped=[True, False] * 100,
        real_logps=[-5.0, -15.0] * 100,
    )  # fmt: skip
    values = {name: estimate.value for name, estimate in found.known().items()}
    wanted = {"nll": 1, "stop_rate": 0.5, "length": 12, "real_length": 10, "length_distance": 2}
    assert {name: values[name] for name in wanted} == pytest.approx(wanted)
    assert found.nll is not None
    assert found.nll.low < 1 < found.nll.high
    assert found.exact_match is None, "these rows have no answer"
    assert set(found.as_json()) == set(values) <= set(UNITS)


def test_exact_match_counts_rows_with_an_answer_and_responses_that_stopped():
    real = ["so #### 1,200", "no answer", "#### 3", "first #### 8 then\n#### 7"] * 5
    said = ["#### 1200", "#### 5", "#### 3", "#### 7"] * 5
    ended = [True, True, False, True] * 5
    prompts = [str(i) for i in range(20)]
    found = measure(real, said, prompts, stopped=ended, resamples=50)
    assert found.exact_match is not None
    assert found.exact_match.value == pytest.approx(2 / 3)
    marked = {"answer": r"A: (\w)", "resamples": 50}
    found = measure(["A: b"] * 20, ["A: b", "A: c"] * 10, prompts, **marked)
    assert found.exact_match is not None
    assert found.exact_match.value == 0.5


def test_the_last_answer_counts():
    pattern = compile_answer(GSM8K_ANSWER)
    assert final_answer("#### 4\n#### -5.50", pattern) == "-5.50"
    assert final_answer("#### none", pattern) is None


def test_an_interval_holds_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        level = np.repeat(rng.normal(size=40), 3)  # three rows of a prompt are not independent
        bootstrap = Bootstrap(np.repeat(np.arange(40), 3), 200, seed=trial)
        found = bootstrap.mean(level + 0.1 * rng.normal(size=120))
        hits += found.low < 0 < found.high
    assert 0.88 < hits / 200 < 0.98


def test_intervals_of_few_prompts_are_as_wide_as_they_say():
    # The percentiles of the replicates themselves hold the mean in 90% of such trials.
    rng, bootstrap = np.random.default_rng(11), Bootstrap(np.arange(10), 4000)
    found = [bootstrap.mean(rng.normal(size=10)) for _ in range(1000)]
    assert 0.925 < np.mean([one.low <= 0 <= one.high for one in found]) < 0.97
    assert np.mean([one.standard_error**2 for one in found]) == pytest.approx(1 / 10, rel=0.1)


def test_a_widened_estimate_has_the_value_and_a_wider_interval():
    found = Bootstrap(np.arange(50)).mean(np.arange(50.0))
    wide = found.widened(1.5)
    assert wide.value == found.value
    assert wide.standard_error == pytest.approx(1.5 * found.standard_error)
    assert wide.high - wide.value == pytest.approx(1.5 * (found.high - found.value))
    change = wide.minus(found.widened(1.5))
    assert change.low == change.high == 0


@pytest.mark.slow
@pytest.mark.parametrize("favorite", [0.0, 0.4])
def test_two_models_of_one_distribution_seldom_differ(favorite: float):
    """The classifiers share training rows; docs/judge.md has what a larger simulation gave."""
    groups, bootstrap = np.arange(50), Bootstrap(np.arange(50), 500)
    differ, held, values = 0, [], []
    for trial in range(60):
        real, one, other = (
            write(3 * trial + i, share)[:50] for i, share in enumerate((0.0, favorite, favorite))
        )
        found = [
            bootstrap.mean(out_of_fold_hits(real, own, groups)).widened(SPREAD)
            for own in (one, other)
        ]
        change = found[1].minus(found[0])
        differ += change.low > 0 or change.high < 0
        held.append((found[0].low, found[0].high))
        values += [estimate.value for estimate in found]
    assert differ / 60 <= 0.12
    assert np.mean([low <= np.mean(values) <= high for low, high in held]) > 0.85


def test_paired_differences_are_narrower_than_what_they_are_made_of():
    rng = np.random.default_rng(0)
    common, groups = rng.normal(size=50), np.arange(50)
    one, other = Bootstrap(groups).mean(common), Bootstrap(groups).mean(common + 0.1)
    difference = other.minus(one)
    assert difference.value == pytest.approx(0.1)
    assert difference.low == pytest.approx(0.1) == difference.high
    with pytest.raises(ValueError, match="not paired"):
        one.minus(Bootstrap(groups, resamples=10).mean(common))


def test_the_same_rows_and_seed_give_the_same_measures(real: list[str]):
    first, again = (measure(real, write(3), PROMPTS, resamples=50, seed=5) for _ in range(2))
    assert first == again
    assert first != measure(real, write(3), PROMPTS, resamples=50, seed=6)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda r: measure(r[:9], r[:9], PROMPTS[:9]), "9 prompts are too few for folds=5"),
        (lambda r: measure(r, r[:9], PROMPTS), "sampled has 9 rows, and real has 200"),
        (lambda r: measure(r, r, PROMPTS, answer="("), "answer='.' is no regular expression"),
        (lambda r: measure(r, r, PROMPTS, answer="x"), "answer='x' has no group"),
    ],
)
def test_what_cannot_be_measured_is_said(
    call: Callable[[list[str]], Measures], said: str, real: list[str]
):
    with pytest.raises(InputError, match=said):
        call(real)


def test_a_missing_package_is_named_with_its_extra(
    real: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"scikit-learn and scipy, not installed.*\[judge\]"):
        measure(real, real, PROMPTS)
