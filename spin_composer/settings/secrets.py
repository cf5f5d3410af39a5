"""Commands without the secrets in them, as a run keeps and shows them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

HIDDEN = "***"
_HARMLESS = (
    r"(?:[\w.-]*[._-])?(?:(?:stop|bos|eos|pad|unk|sep|cls|mask|image)[_-]token"
    r"|(?:text|prompt|response|sort|image)[_-]key|monkey)(?![\w.-])"
)
_SECRET = (
    "token|secret|password|passwd|passphrase|key|api[_-]?keys|key[_-]?id|credentials?|signature"
    r"|(?<![^\W\d_])(?:sig|auth)"
)
# From its beginning on: else each of its letters begins one, and a long word takes minutes.
_NAME = rf"(?<![\w.-])(?!{_HARMLESS})[\w.-]*(?:{_SECRET})"
_VALUE = r"""(?:"[^"]*"|'[^']*'|\S+)"""
_GIVEN = re.compile(
    r"""(?isx)
    ( (?:authorization|cookie)["']?[=:]\s* ) .+         # a header: to the end of the word
    | ( \bbearer\s+ ) \S+
    | ( NAME["']?[=:]\s* | (?=-)NAME\s+ ) VALUE         # use_auth_token=hf_..., --api-key ...
    | ( (?<!\S)(?:-u|--user)[=\s]\s*[^\s:]+: ) \S+      # curl's name and password
    | ( ://[^/\s:@]*: ) [^/\s]+(?=@)                    # https://name:password@host
    | ( (?<!oci):// ) (?!git@)[^/\s:@?#]+(?=@)          # https://token@host; oci://bucket@namespace
    """.replace("NAME", _NAME).replace("VALUE", _VALUE)
)
"""A secret within a word, which may be a whole command: ``reload_command=curl ...``, ``sh -c``."""
_FLAG = re.compile(rf"(?i)(?=-){_NAME}")
"""``--api-key``, whose value is the next word."""
_LOGIN = re.compile(r"[^\s:]+:")


def without_secrets(command: Sequence[str]) -> list[str]:
    """Return a command's words; what a name says to be a secret is replaced by asterisks."""
    words = [_GIVEN.sub(lambda found: found[found.lastindex or 0] + HIDDEN, x) for x in command]
    for before, after in zip(range(len(words)), range(1, len(words)), strict=False):
        if _FLAG.fullmatch(words[before]):
            words[after] = HIDDEN
        elif words[before] in ("-u", "--user") and (name := _LOGIN.match(words[after])):
            words[after] = name[0] + HIDDEN
    return words


def text_without_secrets(text: str) -> str:
    """Return a command's text, as it is if it has no secrets.

    Args:
        text: As a shell reads it, so that a quoted header is one word; or a single word.
    """
    try:
        words = shlex.split(text)
    except ValueError:  # a name with a quotation mark, and not a command
        words = [text]
    if len(words) < 2:
        return without_secrets([text])[0]
    shown = without_secrets(words)
    return text if shown == words else shlex.join(shown)
