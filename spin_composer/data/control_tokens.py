"""Control tokens that are spelled out in data: find them, or encode them as plain text.

Control tokens are the tokenizer's special tokens, tokens that its template contains or writes
between turns, and tokens that look like control tokens (``<|fim_prefix|>``), even if they are not
marked as special. Paired tags such as ``<think>`` and ``</think>`` are content, unless the
tokenizer names them (as BOS, EOS, ...), marks them as special (``<img>``) without being of a known
kind, or they are SentencePiece's (``<s>``, ``</s>``), which it may have renamed its EOS from.
"""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from spin_composer.data.text_tokenizer import text_tokenizer
from spin_composer.data.tokenizer_errors import TokenizerFailure, errors_as
from spin_composer.errors import InputError, format_value

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# <|im_start|>, DeepSeek's with full-width bars, [INST].
_SHAPE = re.compile(r"<\|.+\|>|<\uff5c.+\uff5c>|\[/?[A-Z_]+\]")
_TAG = re.compile(r"</?[^/|<>]+>")
_CONTENT_TAG = re.compile(
    r"</?(think(ing)?|thoughts?|reason(ing)?|reflection|scratchpad|answer|solution|tools?"
    r"|tool_(calls?|response|results?)|function(_call|_calls|s)?|(tool|function)_output)>"
)
_PIECE = re.compile(r"</?(s|pad|unk|bos|eos|cls|sep|mask)>", re.IGNORECASE)
_MARK, _PLACE = "\U0010f8f0", "\U0010f8f1"
MARKS = re.compile(f"[{_MARK}{_PLACE}]")
"""Finds the characters by which :class:`TextEncoder` tells control tokens from text."""


def control_tokens(tokenizer: PreTrainedTokenizerBase, between_turns: str = "") -> dict[str, int]:
    """Return the ids of control tokens by their text.

    Args:
        tokenizer: The model's tokenizer.
        between_turns: Text that the chat template writes between two turns.
    """
    source = str(tokenizer.chat_template or "")
    added = {token.content: (i, token.special) for i, token in
             tokenizer.added_tokens_decoder.items()}  # fmt: skip
    named = {
        text for key, text in tokenizer.special_tokens_map.items()
        if key != "additional_special_tokens" and isinstance(text, str)
    }  # fmt: skip
    found: dict[str, int] = {}
    for text, (i, special) in added.items():
        structure = text in between_turns and not text.isalnum()
        structure |= text in source and not text.isalnum() and not _TAG.fullmatch(text)
        structure |= _SHAPE.fullmatch(text) is not None
        known = special or structure or text in tokenizer.all_special_tokens
        content = is_tag(text, added) and (not special or _CONTENT_TAG.fullmatch(text))
        always = text in named or _PIECE.fullmatch(text)
        if text.strip() and (always or (known and not content)):
            found[text] = i
    return found


def is_tag(text: str, added: Mapping[str, object]) -> bool:
    """Return whether an added token is an opening or closing tag of a pair of added tokens."""
    if not _TAG.fullmatch(text):
        return False
    twin = "<" + text[2:] if text.startswith("</") else "</" + text[1:]
    return twin in added


def compile_pattern(control: Mapping[str, int]) -> re.Pattern[str] | None:
    """Return a pattern that matches any control token; None if there are none."""
    return _compile_cached(tuple(sorted(control, key=len, reverse=True)))


@lru_cache(maxsize=8)
def _compile_cached(texts: tuple[str, ...]) -> re.Pattern[str] | None:
    return re.compile("|".join(map(re.escape, texts))) if texts else None


def iter_texts(value: object) -> Iterator[str]:
    """Yield every text of a turn or of tools, except roles."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key != "role":
                yield from iter_texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from iter_texts(item)


def map_texts(value: object, change: Callable[[str], str]) -> Any:
    """Return a copy with a function applied to every text, except roles."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {k: v if k == "role" else map_texts(v, change) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [map_texts(item, change) for item in value]
    return value


class ControlTokenFinder:
    """Finds control tokens that a text spells out, also if only after the tokenizer's normalizer.

    NFKC turns full-width letters into ``<|im_start|>``. For the few texts where a normalized form
    matches, the tokenizer itself is asked whether it encodes it as the control token.

    Args:
        tokenizer: The model's tokenizer.
        control: The ids of control tokens by their text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, control: dict[str, int]) -> None:
        self._tokenizer = text_tokenizer(tokenizer)
        self._control = control
        self._pattern = compile_pattern(control)
        self._normalize = _normalizer(tokenizer)
        self._forms: dict[str, set[str]] = {}
        self._normalized = None
        if self._normalize is not None:
            for text in control:
                for form in {text, self._normalize(text)}:
                    self._forms.setdefault(form, set()).add(text)
            self._normalized = compile_pattern(dict.fromkeys(filter(None, self._forms), 0))
            # Most normalizers do not change ASCII, and most texts are ASCII.
            self._ascii = self._normalize(string.printable) != string.printable

    def __call__(self, text: str) -> list[str]:
        """Return the control tokens, in order."""
        if self._pattern is None:
            return []
        found = self._pattern.findall(text)
        if self._normalize is None or self._normalized is None or (
            text.isascii() and not self._ascii
        ):  # fmt: skip
            return found
        forms = self._normalized.findall(self._normalize(text))
        if forms and forms != found:
            ids = set(self._tokenizer(text, add_special_tokens=False)["input_ids"])
            made = (token for form in forms for token in sorted(self._forms[form]))
            found += [token for token in made if self._control[token] in ids]
        return list(dict.fromkeys(found))


def _normalizer(tokenizer: Any) -> Callable[[str], str] | None:  # fast or not: no type has both
    """Return the tokenizer's normalizer; None if it has none."""
    if not tokenizer.is_fast:  # SentencePiece's own, unless the model has another
        return lambda text: unicodedata.normalize("NFKC", text)
    normalizer = tokenizer.backend_tokenizer.normalizer
    return None if normalizer is None else normalizer.normalize_str


class TextEncoder:
    """Encodes control tokens in contents as plain text, and those of the template as such.

    It uses a copy of the tokenizer in which each control token is renamed to something that occurs
    in no text. Control tokens in contents are hidden before the template is rendered; those that
    the rendering then contains come from the template and are replaced by the new name.

    Raises:
        InputError: The tokenizer is not a fast one, or encodes plain text as control tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, control: dict[str, int]) -> None:
        self._name = format_value(tokenizer.name_or_path)
        if not tokenizer.is_fast:
            raise self._unsupported("it has no fast tokenizer")
        from tokenizers import Tokenizer

        self._texts = sorted(control, key=len, reverse=True)
        self._pattern = compile_pattern(control)
        self._number = {text: str(n) for n, text in enumerate(self._texts)}
        content = json.loads(tokenizer.backend_tokenizer.to_str())  # pyright: ignore
        content |= {"post_processor": None, "truncation": None, "padding": None}
        by_name: dict[str, int] = {}
        for token in content["added_tokens"]:
            text = token["content"]
            name = self._mark(text) if text in control else text
            by_name[name], token["content"] = token["id"], name
        self._inner = Tokenizer.from_str(json.dumps(content))
        self._original_ids: dict[int, int] = {
            cast(int, self._inner.token_to_id(name)): i for name, i in by_name.items()
        }
        ids = set(control.values())
        for text in self._texts:
            if ids & set(self(f"a {text} a")):
                raise self._unsupported(f"its vocabulary holds {text!r} as text, too")
            if self(self._mark(text)) != [control[text]]:
                raise self._unsupported(f"{text!r} cannot be distinguished from text")

    def _unsupported(self, why: str) -> InputError:
        return InputError(
            f"train_loader.dataset.special_tokens_in_text='text': the tokenizer {self._name} "
            f"cannot encode control tokens as text ({why}). Set it to warn or error."
        )

    def _mark(self, text: str) -> str:
        return f"{_MARK}{self._number[text]}{_MARK}"

    def hide(self, text: str) -> str:
        """Replace control tokens in a content, so that they are not seen as the template's."""
        if self._pattern is None:
            return text
        return self._pattern.sub(lambda m: f"{_PLACE}{self._number[m[0]]}{_PLACE}", text)

    def restore(self, rendered: str) -> str:
        """Mark the template's control tokens in a rendering, and restore those of contents."""
        if self._pattern is None:
            return rendered
        marked = self._pattern.sub(lambda m: self._mark(m[0]), rendered)
        return re.sub(f"{_PLACE}(\\d+){_PLACE}", lambda m: self._texts[int(m[1])], marked)

    def __call__(self, text: str) -> list[int]:
        """Encode a text: marked control tokens as such, spelled ones as plain text."""
        with errors_as(TokenizerFailure):
            ids: list[int] = self._inner.encode(text, add_special_tokens=False).ids
        return [self._original_ids.get(i, i) for i in ids]
