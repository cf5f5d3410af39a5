"""Chat templates that write contents as they are, whatever they are: proved by their program.

Most templates read the roles of the turns and put their contents, as they are or without white
space at their ends, between texts of their own. Whether one does is read from its syntax tree: no
condition, loop or function may depend on a content. All else that such a template writes is then
the same for all conversations with the same roles.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, auto
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import nodes

_MOST_PASSES = 8
# What holds for a text holds for each: these tests read the type only.
_TYPE_TESTS = frozenset(
    {"defined", "undefined", "none", "string", "mapping", "iterable", "sequence"}
)
_OF_LOOPS = frozenset({"first", "last", "index", "index0", "revindex", "revindex0", "length"})


class _Kind(Enum):
    """What an expression may be."""

    CLEAN = auto()  # the same for all contents
    MESSAGES = auto()  # a list of turns
    MESSAGE = auto()  # a turn: a role and a content
    CONTENT = auto()  # a content, with or without white space at its ends
    TEXT = auto()  # contents between other texts


class _DependsOnContents(Exception):
    """What the template writes may depend on the contents."""


@lru_cache(maxsize=32)
def writes_contents_as_they_are(template: str) -> bool:
    """Tell whether a template is known to write contents as they are, or stripped, at fixed places.

    Args:
        template: The template, for turns that have a role and a text as content and nothing else.
    """
    from jinja2 import Environment, TemplateSyntaxError

    environment = Environment(extensions=["jinja2.ext.loopcontrols"])
    try:
        _Reader().read(environment.parse(template))
    except (TemplateSyntaxError, _DependsOnContents):
        return False
    return True


class _Reader:
    """Reads a template; raises _DependsOnContents."""

    def __init__(self) -> None:
        self._kinds: dict[str, _Kind] = {"messages": _Kind.MESSAGES}

    def read(self, template: nodes.Template) -> None:
        # A name may be read before the line that sets it, in an earlier round of a loop.
        for _ in range(_MOST_PASSES):
            before = dict(self._kinds)
            self._statements(template.body)
            if self._kinds == before:
                return
        raise _DependsOnContents

    def _statements(self, some: Iterable[nodes.Node]) -> None:
        from jinja2 import nodes

        for node in some:
            if isinstance(node, nodes.Output):
                for part in node.nodes:
                    _require(self._kind(part), _Kind.CLEAN, _Kind.CONTENT, _Kind.TEXT)
            elif isinstance(node, nodes.If):
                self._condition(node.test)
                self._statements([*node.body, *node.elif_, *node.else_])
            elif isinstance(node, nodes.For):
                self._loop(node)
            elif isinstance(node, nodes.Assign):
                self._assign(node.target, self._kind(node.node))
            elif isinstance(node, nodes.ExprStmt):
                _require(self._kind(node.node), _Kind.CLEAN)
            elif not isinstance(node, (nodes.Break, nodes.Continue)):
                raise _DependsOnContents

    def _loop(self, node: nodes.For) -> None:
        over = self._kind(node.iter)
        _require(over, _Kind.CLEAN, _Kind.MESSAGES)
        self._assign(node.target, _Kind.MESSAGE if over == _Kind.MESSAGES else _Kind.CLEAN)
        if node.test is not None:
            self._condition(node.test)
        if node.recursive:
            raise _DependsOnContents
        self._statements([*node.body, *node.else_])

    def _assign(self, target: nodes.Node, kind: _Kind) -> None:
        from jinja2 import nodes

        if not isinstance(target, nodes.Name):  # a namespace's attribute, or several names
            _require(kind, _Kind.CLEAN)
            for name in target.find_all(nodes.Name):
                self._assign(name, kind)
            return
        known = self._kinds.get(target.name, _Kind.CLEAN)
        self._kinds[target.name] = _either(known, kind)

    def _condition(self, node: nodes.Node) -> None:
        """Require that a condition is the same for all contents, as whether there is a turn is."""
        from jinja2 import nodes

        if isinstance(node, nodes.Not):
            self._condition(node.node)
        elif isinstance(node, (nodes.And, nodes.Or)):
            self._condition(node.left)
            self._condition(node.right)
        else:
            _require(self._kind(node), _Kind.CLEAN, _Kind.MESSAGE, _Kind.MESSAGES)

    def _kind(self, node: nodes.Node) -> _Kind:
        from jinja2 import nodes

        if isinstance(node, nodes.Name):
            if node.name == "loop":
                raise _DependsOnContents
            return self._kinds.get(node.name, _Kind.CLEAN)
        if isinstance(node, (nodes.Getitem, nodes.Getattr)):
            return self._part(node)
        if isinstance(node, nodes.Filter):
            return self._filtered(node)
        if isinstance(node, nodes.Test) and node.name in _TYPE_TESTS and not node.args:
            self._kind(node.node)
            return _Kind.CLEAN
        if isinstance(node, nodes.Compare):
            return self._compared(node)
        if isinstance(node, (nodes.Add, nodes.Concat)):
            return self._joined(node)
        if isinstance(node, nodes.CondExpr):
            self._condition(node.test)
            kinds = [self._kind(one) for one in (node.expr1, node.expr2) if one is not None]
            return _either(kinds[0], kinds[-1])
        if isinstance(node, nodes.Call) and self._is_strip(node):
            return _Kind.CONTENT
        for child in node.iter_child_nodes():
            _require(self._kind(child), _Kind.CLEAN)
        return _Kind.CLEAN

    def _part(self, node: nodes.Getitem | nodes.Getattr) -> _Kind:
        """Return the kind of an item or attribute."""
        from jinja2 import nodes

        if isinstance(node.node, nodes.Name) and node.node.name == "loop":
            if isinstance(node, nodes.Getattr) and node.attr in _OF_LOOPS:
                return _Kind.CLEAN
            raise _DependsOnContents
        of = self._kind(node.node)
        key: object = node.attr if isinstance(node, nodes.Getattr) else None
        if isinstance(node, nodes.Getitem):
            _require(self._kind(node.arg), _Kind.CLEAN)
            key = node.arg.value if isinstance(node.arg, nodes.Const) else None
        if of == _Kind.CLEAN:
            return of
        if of == _Kind.MESSAGES and isinstance(node, nodes.Getitem):
            return of if isinstance(node.arg, nodes.Slice) else _Kind.MESSAGE
        if of == _Kind.MESSAGE and isinstance(key, str) and not hasattr(dict, key):
            return _Kind.CONTENT if key == "content" else _Kind.CLEAN  # no other key is there
        raise _DependsOnContents

    def _filtered(self, node: nodes.Filter) -> _Kind:
        if node.node is None:
            raise _DependsOnContents
        kind = self._kind(node.node)
        more = [*node.args, *node.kwargs, node.dyn_args, node.dyn_kwargs]
        if any(more):
            for child in node.iter_child_nodes():
                _require(self._kind(child), _Kind.CLEAN)
        if kind == _Kind.CONTENT and node.name == "trim":
            return kind
        if kind == _Kind.MESSAGES and node.name == "length":
            return _Kind.CLEAN
        return _require(kind, _Kind.CLEAN)

    def _compared(self, node: nodes.Compare) -> _Kind:
        kinds = [self._kind(node.expr), *(self._kind(other.expr) for other in node.ops)]
        asks_for_key = len(node.ops) == 1 and node.ops[0].op in ("in", "notin")
        if asks_for_key and kinds == [_Kind.CLEAN, _Kind.MESSAGE]:
            return _Kind.CLEAN
        for kind in kinds:
            _require(kind, _Kind.CLEAN)
        return _Kind.CLEAN

    def _joined(self, node: nodes.Add | nodes.Concat) -> _Kind:
        from jinja2 import nodes

        parts = [node.left, node.right] if isinstance(node, nodes.Add) else node.nodes
        kinds = [_require(self._kind(one), _Kind.CLEAN, _Kind.CONTENT, _Kind.TEXT) for one in parts]
        return _Kind.CLEAN if set(kinds) == {_Kind.CLEAN} else _Kind.TEXT

    def _is_strip(self, node: nodes.Call) -> bool:
        """Tell whether a call is ``content.strip()``."""
        from jinja2 import nodes

        called = node.node
        if not (isinstance(called, nodes.Getattr) and called.attr == "strip"):
            return False
        more = [*node.args, *node.kwargs, node.dyn_args, node.dyn_kwargs]
        return not any(more) and self._kind(called.node) == _Kind.CONTENT


def _require(kind: _Kind, *allowed: _Kind) -> _Kind:
    if kind not in allowed:
        raise _DependsOnContents
    return kind


def _either(one: _Kind, other: _Kind) -> _Kind:
    """Return the kind of what may be of one of two kinds."""
    if one == other or other == _Kind.CLEAN:
        return one
    if one == _Kind.CLEAN:
        return other
    if {one, other} == {_Kind.CONTENT, _Kind.TEXT}:
        return _Kind.TEXT
    raise _DependsOnContents
