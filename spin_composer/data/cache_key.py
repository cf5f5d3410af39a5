"""The key of kept examples: a hash of everything that they depend on."""

from __future__ import annotations

import inspect
import json
import platform
import site
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import asdict
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import xxhash

from spin_composer.data.chat_template import renders_itself
from spin_composer.data.preprocess import runs_custom_code
from spin_composer.settings.dataset import DatasetConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What does not change which rows are read, or their ids. Rows that on_bad_row leaves out are kept
# with the examples: who opens them decides.
_NO_MATTER = frozenset(
    {"num_proc", "cache_dir", "on_bad_row", "download_retry", "download_timeout", "keep_zip"}
)
_PACKAGES = (
    "spin-composer", "tokenizers", "transformers", "jinja2", "datasets", "pyarrow", "numpy",
    "mosaicml-streaming", "llm-foundry",
)  # fmt: skip
_PACKAGE = Path(__file__).parent.parent


def cache_key(
    source: str,
    tokenizer: PreTrainedTokenizerBase,
    config: DatasetConfig,
    legacy: bool,
    next_turn_stops: bool,
) -> str | None:
    """Return the key of examples.

    Args:
        source: What the rows are, of ``source_identity``.
        tokenizer: Its content counts, not its name alone.
        config: The checked ``dataset:`` block.
        legacy: As of ``build_examples``.
        next_turn_stops: As of ``build_examples``.

    Returns:
        None if it cannot be known what the examples depend on: a tokenizer without a backend that
        can be written, or a ``preprocessing_fn`` of the user's.
    """
    parts: list[object] = [source, legacy, next_turn_stops, _versions(), _code(_PACKAGE)]
    settings = {key: value for key, value in asdict(config).items() if key not in _NO_MATTER}
    said = _tokenizer(tokenizer)
    if said is None or runs_custom_code(config):
        return None
    if config.date_string is None and (
        "date" in said or "strftime" in said or renders_itself(tokenizer)
    ):
        parts.append(date.today().isoformat())  # it may be printed
    text = json.dumps([*parts, settings, said], sort_keys=True, default=repr)
    return xxhash.xxh3_128(text.encode("utf-8", "surrogatepass")).hexdigest()


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _code(folder: Path) -> str:
    """Return a hash of the code in a folder: a checkout changes without its version."""
    digest = xxhash.xxh3_128()
    for file in sorted(folder.rglob("*.py")):
        digest.update(str(file.relative_to(folder)).encode() + file.read_bytes())
    return digest.hexdigest()


def _tokenizer(tokenizer: Any) -> str | None:  # fast or not: no type has both
    """Return the tokenizer's content; None if it is not known."""
    if not tokenizer.is_fast:
        return None
    backend = tokenizer.backend_tokenizer
    # Its calls set both anew; a file may say otherwise until the first one.
    if backend.truncation is not None:
        backend.no_truncation()
    if backend.padding is not None:
        backend.no_padding()
    try:
        content = backend.to_str()
    except Exception:  # the library's, of a part that is written in Python
        return None
    code = _sources(type(tokenizer))
    if code is None:
        return None
    names = ("split_special_tokens", "add_bos_token", "add_eos_token", "legacy")
    return repr([
        xxhash.xxh3_128(content.encode("utf-8", "surrogatepass")).hexdigest(), code,
        tokenizer.name_or_path, tokenizer.chat_template, tokenizer.special_tokens_map,
        tokenizer.all_special_ids, sorted(map(repr, tokenizer.added_tokens_decoder.items())),
        [getattr(tokenizer, name, None) for name in names],
    ])  # fmt: skip


def _sources(of: Any) -> str | None:
    """Return a hash of the modules that a class is of, and of what those import.

    Installed packages and ours count by their version.
    """
    digest, seen = xxhash.xxh3_128(), set[str]()
    waiting = [of, *getattr(of, "__mro__", ())]
    if getattr(inspect.getmodule(of), "__file__", None) is None:
        return None
    while waiting:
        module = inspect.getmodule(waiting.pop())
        file = getattr(module, "__file__", None)
        # Without a file: built in, or made by an extension that is installed.
        if module is None or file is None or module.__name__ in seen or _is_installed(module):
            continue
        seen.add(module.__name__)
        try:
            digest.update(Path(file).read_bytes())
        except OSError:
            return None
        waiting += _used(module)
    return f"{sorted(seen)} {digest.hexdigest()}"


def _is_installed(module: ModuleType) -> bool:
    if module.__name__.partition(".")[0] in sys.stdlib_module_names:
        return True
    paths = [sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")]
    homes = [*paths, *site.getsitepackages(), site.getusersitepackages(), str(_PACKAGE)]
    return any(Path(str(module.__file__)).is_relative_to(home) for home in homes)


def _used(module: ModuleType) -> Iterator[object]:
    """Yield the modules, classes and functions among a module's names."""
    for value in vars(module).values():
        named = isinstance(value, ModuleType) or inspect.isclass(value) or inspect.isroutine(value)
        if named and inspect.getmodule(value) is not None:
            yield value
