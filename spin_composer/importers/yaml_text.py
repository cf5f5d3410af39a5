"""A YAML as text that is edited in place: what is not edited stays as it is, comments too."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from yaml import MappingNode, Node, ScalarNode, SequenceNode

from spin_composer.errors import InputError
from spin_composer.settings.yaml_file import malformed, not_a_mapping

_WIDTH = 100
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's, which is ten times as fast, where PyYAML was built with it."""
_MARK = "# spin: "
"""Beginning of the comments that are put in."""


class YamlText:
    """The text, and edits of it by dotted names of keys (``train_loader.dataset.split``).

    Args:
        text: A YAML mapping.
        where: The file's name in messages.

    Raises:
        InputError: If it is no YAML mapping, or uses anchors, whose values stand in several places.
    """

    def __init__(self, text: str, where: str) -> None:
        self.text = text if text.endswith("\n") else text + "\n"
        self.where = where
        self._parsed: tuple[str, Node | None] | None = None
        root = self._root()
        if not isinstance(root, MappingNode):
            raise not_a_mapping(where)
        if re.search(r"(?m)^[^#'\"]*[:-]\s+[&*]\w", text):
            raise InputError(
                f"{where} uses YAML anchors (& and *), which cannot be edited in place. Write "
                "their values out, or use ${...}."
            )

    def names(self, path: str = "") -> list[str]:
        """Return the keys of a mapping; none if it is absent or no mapping."""
        node = self._node(path)
        return [key.value for key, _ in node.value] if isinstance(node, MappingNode) else []

    def length(self, path: str) -> int | None:
        """Return the number of a list's items; None if it is no list."""
        node = self._node(path)
        return len(node.value) if isinstance(node, SequenceNode) else None

    def has(self, path: str) -> bool:
        """Return whether a key is there, whatever its value."""
        return self._node(path) is not None

    def raw(self, path: str) -> Any:
        """Return a value as it is written, ``${...}`` unresolved; None if it is absent."""
        node = self._node(path)
        return None if node is None else yaml.SafeLoader("").construct_document(node)

    def set(self, path: str, value: object, comment: str = "") -> None:
        """Replace a value, or add the key at the end of its mapping.

        Args:
            path: The key; mappings above it are made where they are missing.
            value: A scalar, or mappings and lists of them.
            comment: Stands above the key.
        """
        if not self.has(path):
            self._add(path, value)
        elif self._is_inline(path, value):
            self._replace_inline(path, value)
        else:
            key, node = self._item(path)
            first, last = key.start_mark.line, _last_line(self.text, key, node)
            indent = key.start_mark.column
            name = self._lines[first][indent : key.end_mark.column]
            self._lines_between(first, last, _block(name, value, indent))
        self.comment(path, comment)

    def remove(self, path: str, comment: str = "") -> None:
        """Remove a key with its value; a comment stands in its place."""
        parent = path.rpartition(".")[0]
        if self.names(parent) == [path.rpartition(".")[2]] and parent:
            self.comment(parent, comment)
            self.set(parent, {})
            return
        key, node = self._item(path)
        self.comment(path, comment)
        key, node = self._item(path)
        siblings = self._node(parent)
        assert isinstance(siblings, MappingNode)
        if siblings.flow_style:
            pairs = siblings.value
            place = [k.value for k, _ in pairs].index(key.value)
            start, end = key.start_mark.index, node.end_mark.index
            if place + 1 < len(pairs):
                end = pairs[place + 1][0].start_mark.index
            else:
                start = pairs[place - 1][1].end_mark.index
            self.text = self.text[:start] + self.text[end:]
        else:
            self._lines_between(key.start_mark.line, _last_line(self.text, key, node), [])

    def comment(self, path: str, text: str) -> None:
        """Put a comment above a key."""
        if not text:
            return
        line, indent = self._item(path)[0].start_mark.line, 0
        while self._lines[line][indent] == " ":
            indent += 1
        self._lines_between(line, line - 1, comment_lines(text, indent))

    def append(self, text: str) -> None:
        """Put lines at the end."""
        self.text += text

    @property
    def _lines(self) -> list[str]:
        return self.text.split("\n")

    def _lines_between(self, first: int, last: int, new: Sequence[str]) -> None:
        lines = self._lines
        lines[first : last + 1] = new
        self.text = "\n".join(lines)

    def _root(self) -> Node | None:
        if self._parsed is None or self._parsed[0] != self.text:
            self._parsed = (self.text, self._compose())
        return self._parsed[1]

    def _compose(self) -> Node | None:
        try:
            return yaml.compose(self.text, Loader=_LOADER)
        except yaml.YAMLError as error:
            raise malformed(self.where, error) from None

    def _node(self, path: str) -> Node | None:
        node = self._root()
        for name in path.split(".") if path else []:
            if isinstance(node, MappingNode):
                node = next((value for key, value in node.value if key.value == name), None)
            elif isinstance(node, SequenceNode) and name.isdigit() and int(name) < len(node.value):
                node = node.value[int(name)]
            else:
                return None
        return node

    def _item(self, path: str) -> tuple[Node, Node]:
        """Return the nodes of a key and of its value."""
        parent, _, name = path.rpartition(".")
        node = self._node(parent)
        assert isinstance(node, MappingNode)
        return next((key, value) for key, value in node.value if key.value == name)

    def _is_inline(self, path: str, value: object) -> bool:
        """Return whether the new value can stand where the old one does, in its line."""
        key, node = self._item(path)
        parent = self._node(path.rpartition(".")[0])
        if isinstance(parent, MappingNode) and parent.flow_style:
            return True
        in_one_line = key.start_mark.line == _last_line(self.text, key, node)
        old = isinstance(node, ScalarNode) or bool(getattr(node, "flow_style", False))
        return in_one_line and old and not (isinstance(value, Mapping) and value)

    def _replace_inline(self, path: str, value: object) -> None:
        key, node = self._item(path)
        start, end = node.start_mark.index, node.end_mark.index
        parent = self._node(path.rpartition(".")[0])
        new = flow_text(value) if getattr(parent, "flow_style", False) else _line(value)
        if _is_empty(node):
            start = end = self.text.index(":", key.end_mark.index) + 1
            new = f" {new}"
        self.text = self.text[:start] + new + self.text[end:]

    def _add(self, path: str, value: object) -> None:
        parent, _, name = path.rpartition(".")
        node = self._node(parent)
        if not (isinstance(node, MappingNode) and node.value):
            self.set(parent, {name: value})
        elif node.flow_style:
            at = node.value[-1][1].end_mark.index
            self.text = f"{self.text[:at]}, {name}: {flow_text(value)}{self.text[at:]}"
        else:
            last = _last_line(self.text, *node.value[-1])
            lines = _block(name, value, node.value[0][0].start_mark.column)
            self._lines_between(last + 1, last, lines)


def comment_lines(text: str, indent: int = 0) -> list[str]:
    """Return a text as lines of comments."""
    prefix = " " * indent + _MARK
    more = " " * indent + "#" + " " * (len(_MARK) - 1)
    return textwrap.wrap(
        text, _WIDTH, initial_indent=prefix, subsequent_indent=more, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def scalar_text(value: object) -> str:
    """Return a scalar as YAML: 5.0e-7, true, null, quoted text where it must be."""
    if isinstance(value, float):
        text = repr(value)
        if "e" in text:
            digits, _, exponent = text.partition("e")
            digits += "" if "." in digits else ".0"
            return f"{digits}e{int(exponent):+d}"
        return text
    dumped = yaml.safe_dump([value], default_flow_style=True, width=1 << 30, allow_unicode=True)
    return dumped.strip()[1:-1]


def flow_text(value: object) -> str:
    """Return a value in one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {flow_text(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(flow_text, value)) + "]"
    return scalar_text(value)


def _line(value: object) -> str:
    """Return a value in the line of its key, where braces within a text need no quotes."""
    if isinstance(value, str) and re.fullmatch(r"[\w./$-][\w./{}$-]*", value) and "{" in value:
        return value
    return flow_text(value)


def _block(name: str, value: object, indent: int) -> list[str]:
    """Return the lines of a key with its value; mappings as blocks, lists in one line."""
    start = " " * indent + f"{name}:"
    if not isinstance(value, Mapping) or not value:
        return [f"{start} {_line(value)}"]
    inner = [line for key, one in value.items() for line in _block(key, one, indent + 2)]
    return [start, *inner]


def _is_empty(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.start_mark.index == node.end_mark.index


def _last_line(text: str, key: Node, node: Node) -> int:
    """Return the line that a key's value ends in; comments below are not of it."""
    if _is_empty(node):
        return key.end_mark.line
    if isinstance(node, ScalarNode):
        if node.style in ("|", ">"):
            body = text[node.start_mark.index : node.end_mark.index].rstrip()
            return node.start_mark.line + body.count("\n")
        return node.end_mark.line
    assert isinstance(node, (MappingNode, SequenceNode))
    if node.flow_style or not node.value:
        return node.end_mark.line
    last = node.value[-1]
    inner = last if isinstance(node, MappingNode) else (last, last)
    return _last_line(text, *inner)
