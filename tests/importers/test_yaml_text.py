"""A YAML edited in place: the rest of its text stays."""

from __future__ import annotations

import pytest
import yaml

from spin_composer.errors import InputError
from spin_composer.importers import yaml_text
from spin_composer.importers.yaml_text import YamlText, scalar_text

TEXT = """\
# above: \u00e9\u4e2d\U0001f642
a:  # of a
  b: 1  # of b

  # above c
  c:
    - x
    - y
  # below c
d: {e: 1, f: [1, 2], g: text}
h:
i: |
  two
  lines

# the end
"""


LOADERS = [yaml.SafeLoader, yaml_text._LOADER]


@pytest.fixture(params=LOADERS, ids=lambda loader: loader.__name__, autouse=True)
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyYAML's own and, where it was built with it, libyaml's."""
    monkeypatch.setattr(yaml_text, "_LOADER", request.param)


def edited() -> YamlText:
    return YamlText(TEXT, "x.yaml")


def comments(text: str) -> list[str]:
    return [line[line.index("#") :] for line in text.splitlines() if "#" in line]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("a.b", 2), ("a.b", {"n": 1}), ("a.c", "z"), ("a.new", 5.0e-7), ("a.new.deep", [1, 2.5]),
        ("d.e", None), ("d.f", True), ("d.new", "a: b"), ("h", "filled"), ("h.inner", 1),
        ("i", "one"), ("top", {"m": {"n": "${a.b}"}}), ("d.e", {"x": 1}),
    ],
)  # fmt: skip
def test_a_value_is_set_and_all_else_stays(path: str, value: object):
    text = edited()
    expected = yaml.safe_load(TEXT)
    *above, name = path.split(".")
    inner = expected
    for key in above:
        inner[key] = inner.get(key) or {}
        inner = inner[key]
    inner[name] = value
    text.set(path, value, "why")
    assert yaml.safe_load(text.text) == expected
    assert set(comments(TEXT)) - {"# of b"} <= set(comments(text.text))
    assert "# spin: why" in text.text


@pytest.mark.parametrize("path", ["a.b", "a.c", "d", "d.e", "d.f", "d.g", "h", "i"])
def test_a_removed_key_takes_only_its_own_comment(path: str):
    text = edited()
    expected = yaml.safe_load(TEXT)
    *above, name = path.split(".")
    inner = expected[above[0]] if above else expected
    del inner[name]
    text.remove(path, "gone")
    assert yaml.safe_load(text.text) == expected
    assert set(comments(TEXT)) - {"# of b"} <= set(comments(text.text))


def test_what_is_removed_last_leaves_an_empty_mapping():
    text = YamlText("a: {b: 1}\nc:\n  d: 1\n", "x.yaml")
    text.remove("a.b")
    text.remove("c.d")
    assert yaml.safe_load(text.text) == {"a": {}, "c": {}}
    text.set("c.e", 1)
    assert yaml.safe_load(text.text) == {"a": {}, "c": {"e": 1}}


@pytest.mark.parametrize("value", [5.0e-7, 1e22, 0.1, True, None, "yes", "1", "a b", 3, "${x.y}"])
def test_a_scalar_is_read_back(value: object):
    assert yaml.safe_load(f"a: {scalar_text(value)}")["a"] == value


@pytest.mark.parametrize("text", ["- 1\n", "a: [\n", "a: &x 1\nb: *x\n"])
def test_what_cannot_be_edited_is_refused_by_name(text: str):
    with pytest.raises(InputError, match=r"bad\.yaml"):
        YamlText(text, "bad.yaml")
