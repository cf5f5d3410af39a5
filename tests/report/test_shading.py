from __future__ import annotations

from dataclasses import replace

import pytest
from fixtures.reported_run import sample

from spin_composer.report.samples import ResponseTokens
from spin_composer.report.shading import first_tokens, show


def test_tokens_are_darker_the_less_likely_they_are() -> None:
    tokens = ResponseTokens(list("abc"), [0.0, -3.2, -40.0])
    shown = show(replace(sample(), real_tokens=tokens))
    assert [token.shades for token in shown.real.tokens] == ["o0", "o3", "o9"]


def test_what_an_iteration_changed_is_up_or_down() -> None:
    tokens = ResponseTokens(list("ab"), [-3.0, -1.0], [-1.0, -2.5])
    shown = show(replace(sample(), real_tokens=tokens))
    assert [token.shades for token in shown.real.tokens] == ["o3 p1 u4", "o1 p2 d3"]
    assert shown.real.tokens[0].hint == "opponent -3.00, policy -1.00, change +2.00"


def test_the_margin_is_the_real_gain_less_the_generated_one() -> None:
    assert show(sample()).margin == pytest.approx(0.5 - (-3.5))
    assert show(sample(trained=False)).margin is None


def test_first_tokens_are_told_from_the_others() -> None:
    (found,) = first_tokens([sample(index=i) for i in range(2)])
    assert (found.real_first, found.generated_first, found.gap) == (-1.0, -0.5, 0.5)
    assert (found.real_others, found.generated_others) == (-1.0, -1.0)
    # gains of the first tokens 0.5 and -1.5, of the others 0 and -2 or -3
    assert found.share_of_margin == pytest.approx(2.0 / 4.5)


def test_a_table_of_an_older_version_says_nothing_of_tokens() -> None:
    old = replace(sample(), real_tokens=None, generated_tokens=None)
    assert first_tokens([old]) == []
    assert show(old).real.tokens == []
