"""Errors of a tokenizer's own code: its chat template and its encoder.

Both are programs of the tokenizer's author, so they can raise anything: a template's own message,
jinja2's errors, a TypeError where it adds None to text, whatever the class of a tokenizer that
came with the model raises. They are caught here, right around the call, and nowhere else: a bug in
our own code is then never mistaken for a row that the template refuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from spin_composer.errors import InputError


class _ForeignError(Exception):
    """Its cause was raised by a tokenizer's own code; the message is the cause's."""

    @property
    def cause_name(self) -> str:
        """The name of the cause's class."""
        return type(self.__cause__).__name__


class TemplateFailure(_ForeignError):
    """The chat template cannot render some turns."""

    @property
    def is_refusal(self) -> bool:
        """Whether the template itself refuses the turns, by ``raise_exception``."""
        from jinja2.exceptions import TemplateError

        return type(self.__cause__) is TemplateError

    def describe(self) -> str:
        """Return the template's message; for other errors, after the name of their class."""
        return str(self) if self.is_refusal else f"{self.cause_name}: {self}"


class TokenizerFailure(_ForeignError):
    """The tokenizer cannot encode a text."""


@contextmanager
def errors_as(failure: type[_ForeignError]) -> Iterator[None]:
    """Convert every error of a block that calls only a tokenizer's own code.

    Args:
        failure: The class to raise; the error becomes its cause.
    """
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        raise failure(str(error)) from error
