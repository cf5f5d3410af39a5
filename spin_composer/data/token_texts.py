"""The text of each token of a response: what it adds to the text of those before it."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from spin_composer.data.pairs import Ids

_INCOMPLETE = "\ufffd"
"""How tokenizers decode bytes that are no whole character."""


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Ids) -> list[str]:
    """Return the text of each token: joined, they are the text of all.

    A tokenizer decodes a token alone otherwise than within a text (white space, characters of
    several tokens), so each one is decoded behind the few before it: the time grows with the
    number of tokens, not with its square.

    Args:
        tokenizer: The policy's.
        ids: The response.

    Returns:
        A text per token; "" for one that ends within a character, whose text the token has that
        ends it.
    """
    texts: list[str] = []
    first = done = 0  # the tokens first to done are decoded already, the later ones are not
    for end in range(1, len(ids) + 1):
        before = str(tokenizer.decode(ids[first:done]))
        text = str(tokenizer.decode(ids[first:end]))
        if text.endswith(_INCOMPLETE) and end < len(ids):
            texts.append("")
            continue
        texts.append(text[len(before) :])
        first, done = done, end
    return texts
