"""Making Composer's HuggingFaceModel without importing every model of transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from composer.models import huggingface


@contextmanager
def as_causal_lm() -> Iterator[None]:
    """Tell HuggingFaceModel that its model is a causal LM, which it would find out.

    It compares the model with each causal LM that transformers registers, and so imports about
    200 modules: 2 to 4 seconds on each rank. Where ``shift_labels`` is true, as here, nothing
    depends on the answer.
    """
    find_out = huggingface._is_registered_causal_lm
    huggingface._is_registered_causal_lm = lambda model: True
    try:
        yield
    finally:
        huggingface._is_registered_causal_lm = find_out
