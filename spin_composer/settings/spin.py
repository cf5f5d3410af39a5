"""The settings of the game: typed, checked where they enter, and free of heavy imports.

A YAML's ``algorithms.spin`` section fills :class:`SpinSettings`, its ``generation`` section
:class:`GenerationSettings`. An unknown key, a wrong type or a value that cannot work is an
:class:`~spin_composer.errors.InputError` that names the field, the value and the remedy.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from spin_composer.errors import InputError
from spin_composer.loss import LOSSES
from spin_composer.settings.fields import SECTION, fill
from spin_composer.settings.fields import check as _check
from spin_composer.settings.fields import is_int as _is_int
from spin_composer.settings.fields import is_number as _is_number
from spin_composer.settings.server import ServerSettings

ENGINES = {
    "hf": "spin_composer.engines.hf.engine:HFEngine",
    "server": "spin_composer.engines.server.engine:ServerEngine",
}
"""Engines by their names, imported when a run opens one."""
ALL = "all"
DECAYS = ("linear", "cosine", "constant")
LOCAL = "file"
STORES = {
    LOCAL: "spin_composer.store.local:LocalStore",
    "s3": "spin_composer.store.remote:RemoteStore",
    "gs": "spin_composer.store.remote:RemoteStore",
    "oci": "spin_composer.store.remote:RemoteStore",
}
"""Stores by the scheme of their URL, imported when a run opens one; ``LOCAL`` without a URL."""
REMOTE_SCHEMES = tuple(scheme for scheme in STORES if scheme != LOCAL)


@dataclass
class GenerationSettings:
    """How the opponent answers the prompts (``algorithms.spin.generation``)."""

    max_new_tokens: int = 512
    """Longest generated response, in tokens, the stop token included. NeMo-Aligner's
    ``length_params.max_length``."""
    min_new_tokens: int = 0
    """The stop token is forbidden before this many tokens."""
    temperature: float = 1.0
    """Sampling temperature; other values than 1 move SPIN's fixed point."""
    top_p: float = 1.0
    """Nucleus sampling's mass; 1 samples from the whole distribution."""
    top_k: int = 0
    """Samples among the k likeliest tokens; 0 among all."""
    repetition_penalty: float = 1.0
    """Divides the logits of tokens that occurred; 1 leaves them."""
    stop_strings: list[str] = field(default_factory=list)
    """A response also ends (without the stop token) where it holds one of these strings."""
    batch_size: int = 32
    """Prompts per generation batch of one rank. NeMo-Aligner's ``rollout_micro_batch_size``."""
    merge_adapters: bool = True
    """Generate with LoRA adapters merged into copies of the weights, which is faster; false saves
    the copies' memory. Engine ``hf`` only; an iteration that has begun goes on as it began."""
    engine: str = "hf"
    """Who generates: ``hf``, the policy itself in the training processes, or ``server``, a
    completion server."""
    server: ServerSettings | None = None
    """The completion server of engine ``server``."""

    def __post_init__(self) -> None:
        """Check every field."""
        at = f"{SECTION}.generation"
        longest = "Set it to the longest response that you train on."
        for name in ("max_new_tokens", "batch_size"):
            value = getattr(self, name)
            remedy = longest if name == "max_new_tokens" else ""
            _check(
                _is_int(value) and value > 0, f"{at}.{name}", value, "a positive integer", remedy
            )
        for name in ("min_new_tokens", "top_k"):
            value = getattr(self, name)
            _check(_is_int(value) and value >= 0, f"{at}.{name}", value, "an integer >= 0")
        _check(
            self.min_new_tokens <= self.max_new_tokens,
            f"{at}.min_new_tokens",
            self.min_new_tokens,
            f"at most max_new_tokens ({self.max_new_tokens})",
        )
        for name in ("temperature", "repetition_penalty"):
            value = getattr(self, name)
            _check(_is_number(value) and value > 0, f"{at}.{name}", value, "a number > 0")
        ok = _is_number(self.top_p) and 0 < self.top_p <= 1
        _check(ok, f"{at}.top_p", self.top_p, "a number in (0, 1]")
        ok = isinstance(self.stop_strings, Sequence) and not isinstance(self.stop_strings, str)
        ok = ok and all(isinstance(s, str) and s for s in self.stop_strings)
        _check(ok, f"{at}.stop_strings", self.stop_strings, "a list of non-empty strings")
        self.stop_strings = list(self.stop_strings)
        ok = self.engine in ENGINES
        _check(ok, f"{at}.engine", self.engine, f"one of {', '.join(ENGINES)}")
        _check(isinstance(self.merge_adapters, bool), f"{at}.merge_adapters", self.merge_adapters,
               "true or false")  # fmt: skip
        self._check_server(at)

    def _check_server(self, at: str) -> None:
        if self.server is not None:
            remedy = "Set engine: server, or remove the section."
            _check(self.engine == "server", f"{at}.server", "a section", "absent with hf", remedy)
            self.server = fill(ServerSettings, self.server, f"{at}.server")
        if self.engine != "server":
            return
        wanted, remedy = "a section with command or base_url", "yamls/ has an example for vLLM."
        _check(self.server is not None, f"{at}.server", None, wanted, remedy)
        for name, neutral in (("min_new_tokens", 0), ("repetition_penalty", 1)):
            value, wanted = getattr(self, name), f"{neutral} with engine server"
            remedy = "Servers do not agree on what it means; remove it, or use engine: hf."
            _check(value == neutral, f"{at}.{name}", value, wanted, remedy)

    def sampling_fields(self) -> dict[str, Any]:
        """Return what a response depends on, for an iteration's manifest.

        Where a server listens, and how it is asked, may change when a run is resumed.
        """
        left_out = ("server", "merge_adapters")
        return {name: value for name, value in asdict(self).items() if name not in left_out}

    @property
    def unfaithful(self) -> list[str]:
        """Names of the settings under which responses are not samples of the policy."""
        neutral = {
            "min_new_tokens": 0,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
            "repetition_penalty": 1.0,
        }
        return [name for name, value in neutral.items() if getattr(self, name) != value]


@dataclass
class PlayOnly:
    """What a job that only plays is to make (``algorithms.spin.play_only``)."""

    iteration: int = 0
    """Which iteration; the run must be at its start."""
    units: str = ALL
    """Its units from a up to, and without, b, as ``a:b``; or ``all``."""

    def __post_init__(self) -> None:
        """Check both fields."""
        at = f"{SECTION}.play_only"
        ok = _is_int(self.iteration) and self.iteration >= 0
        _check(ok, f"{at}.iteration", self.iteration, "an integer >= 0")
        found = re.fullmatch(r"(\d+):(\d+)", str(self.units))
        ok = self.units == ALL or (found is not None and int(found[1]) < int(found[2]))
        _check(ok, f"{at}.units", self.units, "a:b with a < b, or 'all'")

    def of(self, num_units: int) -> range:
        """Return the units to make of an iteration that has ``num_units``.

        Raises:
            InputError: If it has not that many.
        """
        if self.units == ALL:
            return range(num_units)
        first, end = map(int, self.units.split(":"))
        wanted = f"within the {num_units} units of iteration {self.iteration}"
        _check(end <= num_units, f"{SECTION}.play_only.units", self.units, wanted)
        return range(first, end)


@dataclass
class SpinSettings:
    """The game (``algorithms.spin``). Lists hold one value per iteration."""

    iteration_length: str | int = "2ep"
    """Epochs of training per iteration (``2ep`` or ``2``). NeMo-Aligner's ``spin.max_epochs``."""
    beta: float | list[float] = 0.1
    """Strength of the pull towards the opponent, per iteration or one for all. NeMo-Aligner's
    ``ref_policy_kl_penalty``, the paper's lambda."""
    learning_rate: float | list[float] | None = None
    """Peak learning rate, per iteration or one for all; null: the optimizer's."""
    loss: str = "logistic"
    """Which loss of docs/losses.md: ``logistic`` is the paper's."""
    nll_weight: float = 0.0
    """Weight of the real response's mean negative log-likelihood, added to the loss."""
    length_normalised: bool = False
    """Divide each side's log-prob sum by its number of tokens."""
    reset_optimizer: bool = True
    """Start each iteration with a fresh optimizer state."""
    replay: int = 1
    """How many earlier iterations' pairs are mixed in, rescored by the current opponent."""
    samples_per_iteration: int | str = ALL
    """Prompts played per iteration, a fresh subset each time, or ``all``."""
    store: str = "runs/{run_name}/self-play"
    """Folder of the self-play store; ``{run_name}`` is replaced. Shared by all nodes, or with
    ``remote_store`` each node's own."""
    remote_store: str | None = None
    """Where the store lives if nodes share no file system: ``s3://bucket/{run_name}/self-play``,
    or ``gs://``, ``oci://``."""
    play_only: PlayOnly | None = None
    """Make units of one iteration and end; ``spin-composer play`` sets it."""
    unit_size: int = 256
    """Prompts per unit of the store: what a crash in play can cost a rank."""
    seed: int | None = None
    """Seed of play and of the order of pairs; null: the Trainer's seed."""
    deterministic: bool = False
    """Bitwise repeatable runs: deterministic kernels, slower on GPUs."""
    repair: bool = False
    """Set damaged units of the store aside and make them again, at the iteration's start."""
    allow_low_precision_weights: bool = False
    """Train weights that are bf16 or fp16 themselves, whose small updates are rounded away: only
    for an optimizer that keeps fp32 copies of them or rounds stochastically."""
    save_on_signal: bool = False
    """Save a checkpoint before stopping at Ctrl-C, SIGTERM, SIGUSR1 or SIGUSR2 (Slurm's
    ``--signal``), at the end of the batch under way."""
    sample_table_rows: int = 8
    """Rows of the table of samples that each iteration logs."""
    generation: GenerationSettings = field(default_factory=GenerationSettings)
    """How the opponent answers."""

    def __post_init__(self) -> None:
        """Check every field and bring it to its type."""
        self.iteration_length = f"{self._epochs()}ep"
        self.beta = self._numbers("beta", self.beta)
        if self.learning_rate is not None:
            self.learning_rate = self._numbers("learning_rate", self.learning_rate)
        _check(self.loss in LOSSES, f"{SECTION}.loss", self.loss, f"one of {', '.join(LOSSES)}")
        ok = _is_number(self.nll_weight) and self.nll_weight >= 0
        _check(ok, f"{SECTION}.nll_weight", self.nll_weight, "a number >= 0")
        for name in (
            "length_normalised", "reset_optimizer", "repair", "deterministic",
            "save_on_signal", "allow_low_precision_weights",
        ):  # fmt: skip
            value = getattr(self, name)
            _check(isinstance(value, bool), f"{SECTION}.{name}", value, "true or false")
        for name, least in (("replay", 0), ("sample_table_rows", 0), ("unit_size", 1)):
            value = getattr(self, name)
            _check(
                _is_int(value) and value >= least,
                f"{SECTION}.{name}",
                value,
                f"an integer >= {least}",
            )
        samples = self.samples_per_iteration
        ok = samples == ALL or (_is_int(samples) and int(samples) > 0)
        _check(ok, f"{SECTION}.samples_per_iteration", samples, "a positive integer or 'all'")
        ok = self.seed is None or (_is_int(self.seed) and self.seed >= 0)
        _check(ok, f"{SECTION}.seed", self.seed, "an integer >= 0, or null")
        _check_place(f"{SECTION}.store", self.store, "a folder's name")
        if self.remote_store is not None:
            _check_place(f"{SECTION}.remote_store", self.remote_store, "an object store's URL")
            ok = self.remote_store.partition("://")[0] in REMOTE_SCHEMES
            ok = ok and bool(self.remote_store.partition("://")[2].strip("/"))
            wanted = " or ".join(f"{scheme}://bucket/folder" for scheme in REMOTE_SCHEMES)
            remedy = "A folder that all nodes mount goes into algorithms.spin.store."
            _check(ok, f"{SECTION}.remote_store", self.remote_store, wanted, remedy)
        if "://" in self.store:
            remedy = (
                "Give it as algorithms.spin.remote_store, and here a folder of each node's own."
            )
            _check(False, f"{SECTION}.store", self.store, "a folder's name", remedy)
        if self.play_only is not None:
            self.play_only = fill(PlayOnly, self.play_only, f"{SECTION}.play_only")
        self.generation = fill(GenerationSettings, self.generation, f"{SECTION}.generation")

    def _epochs(self) -> int:
        text = str(self.iteration_length)
        digits = text[:-2] if text.endswith("ep") else text
        ok = digits.isdigit() and int(digits) > 0
        remedy = "Give it in whole epochs."
        _check(ok, f"{SECTION}.iteration_length", self.iteration_length, "like '2ep'", remedy)
        return int(digits)

    @staticmethod
    def _numbers(name: str, value: object) -> list[float]:
        values = [value] if _is_number(value) else value
        ok = isinstance(values, Sequence) and not isinstance(values, str) and len(values) > 0
        ok = ok and all(_is_number(v) and v > 0 for v in values)  # pyright: ignore
        _check(ok, f"{SECTION}.{name}", value, "a positive number or a list of them")
        return [float(v) for v in values]  # pyright: ignore

    @property
    def epochs_per_iteration(self) -> int:
        """Epochs of training per iteration."""
        return self._epochs()

    def check_iterations(self, num_iterations: int) -> None:
        """Refuse per-iteration lists that do not fit the number of iterations.

        Raises:
            InputError: If a list has more than one value and not exactly ``num_iterations``.
        """
        for name in ("beta", "learning_rate"):
            values = getattr(self, name)
            if values is not None and len(values) not in (1, num_iterations):
                raise InputError(
                    f"{SECTION}.{name} has {len(values)} values for {num_iterations} "
                    "iterations (max_duration). Give one value, or one per iteration."
                )


def _check_place(name: str, value: object, wanted: str) -> None:
    """Check a text in which only ``{run_name}`` may stand in braces."""
    _check(isinstance(value, str) and bool(value), name, value, wanted)
    try:
        str(value).format(run_name="")
    except (KeyError, IndexError, ValueError):
        _check(False, name, value, f"{wanted} with no braces but {{run_name}}")


def of_iteration(values: float | Sequence[float], iteration: int) -> float:
    """Return the value of an iteration from a list of one per iteration, or one for all."""
    if isinstance(values, (int, float)):
        return values
    return values[0] if len(values) == 1 else values[iteration]


def count_iterations(max_duration: object, epochs_per_iteration: int) -> int:
    """Return the number of iterations T that ``max_duration`` asks for.

    Args:
        max_duration: Composer's: ``3iter``, ``6ep`` or an integer number of epochs.
        epochs_per_iteration: Epochs of training per iteration.

    Raises:
        InputError: If it is in another unit, not positive, or no whole number of iterations.
    """
    text = str(max_duration)
    for suffix, per_iteration in (
        ("iter", 1),
        ("ep", epochs_per_iteration),
        ("", epochs_per_iteration),
    ):
        digits = text.removesuffix(suffix)
        if text.endswith(suffix) and digits.isdigit() and int(digits) > 0:
            if int(digits) % per_iteration:
                raise InputError(
                    f"max_duration={text} is no whole number of iterations of "
                    f"{epochs_per_iteration}ep ({SECTION}.iteration_length). Use e.g. "
                    f"{-(-int(digits) // per_iteration)}iter."
                )
            return int(digits) // per_iteration
    raise InputError(
        f"max_duration must be a positive number of iterations or epochs, got {text}. "
        "Use e.g. 3iter, or 6ep with algorithms.spin.iteration_length=2ep."
    )


def check_scheduler(
    t_warmup: object = "0.1dur", decay: object = "linear", alpha_f: object = 0.0
) -> None:
    """Check the settings of :class:`~spin_composer.schedule.SpinScheduler`.

    Raises:
        InputError: Names the setting and its value.
    """
    time = re.fullmatch(r"(?:\d+ba|(\d*\.?\d+)dur)", str(t_warmup))
    ok = time is not None and float(time[1] or 0) <= 1
    _check(ok, "scheduler.t_warmup", t_warmup, "a part of the iteration (0.1dur) or batches (20ba)")
    _check(decay in DECAYS, "scheduler.decay", decay, f"one of {', '.join(DECAYS)}")
    ok = _is_number(alpha_f) and 0 <= alpha_f <= 1  # pyright: ignore[reportOperatorIssue]
    _check(ok, "scheduler.alpha_f", alpha_f, "a number in [0, 1]")
