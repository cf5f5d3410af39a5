"""Custom operators whose arguments are declared in one place, a named tuple.

``torch.library`` takes an operator's schema from the signature of its implementation, and calls its
fake implementation with the same arguments. With more than a few arguments, two hand-written
signatures drift apart; here both come from the fields of one class.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

import torch


def define_custom_op(
    name: str,
    arguments: type[Any],
    compute: Callable[[Any], Any],
    fake: Callable[[Any], Any],
) -> Any:
    """Register a custom operator that mutates none of its arguments.

    Args:
        name: "namespace::name".
        arguments: a ``NamedTuple`` class; its fields, in order, are the operator's arguments.
        compute: the implementation. It receives one instance of ``arguments``; the annotation of
            its return value is that of the operator.
        fake: returns tensors of the same shapes, dtypes and devices without computing them.

    Returns:
        The operator (``torch.library.CustomOpDef``), called with the fields as its arguments.
    """
    hints = get_type_hints(arguments)
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD

    def implementation(*args: Any, **kwargs: Any) -> Any:
        return compute(arguments(*args, **kwargs))

    # What torch.library infers the schema from.
    implementation.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(field, kind, annotation=hints[field])
            for field in arguments._fields  # type: ignore[attr-defined]
        ],
        return_annotation=get_type_hints(compute)["return"],
    )
    operator = torch.library.custom_op(name, implementation, mutates_args=())
    operator.register_fake(lambda *args, **kwargs: fake(arguments(*args, **kwargs)))
    return operator
