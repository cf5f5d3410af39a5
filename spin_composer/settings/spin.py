"""The algorithm's settings: a YAML's ``algorithms.spin`` fills :class:`SpinSettings`.

An unknown key, a wrong type or an invalid value raises
:class:`~spin_composer.errors.InputError`, which names the field, the value and the remedy.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import field, fields
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    model_validator,
)
from pydantic_core import ArgsKwargs
from typing_extensions import Self

from spin_composer.alarms.rules import ALARMS
from spin_composer.errors import InputError
from spin_composer.loss import LOSSES, REAL_ONLY, loss_parameters
from spin_composer.settings.ditto import DITTO, DittoSettings, GameName
from spin_composer.settings.fields import (
    SECTION,
    Count,
    Epochs,
    Number,
    OneOf,
    PositiveInt,
    Requirement,
    check,
    count_epochs,
    is_number,
    require,
    suggest_key,
)
from spin_composer.settings.generation import GenerationSettings
from spin_composer.settings.section import section, section_validator

LayoutName = Literal["auto", "shared", "packed", "padded"]
ALL = "all"
LOCAL = "file"
STORES = {
    LOCAL: "spin_composer.store.local:LocalStore",
    "s3": "spin_composer.store.remote:RemoteStore",
    "gs": "spin_composer.store.remote:RemoteStore",
    "oci": "spin_composer.store.remote:RemoteStore",
}
"""Stores by URL scheme, imported when a run opens one; ``LOCAL`` is used without a URL."""


def url_schemes() -> list[str]:
    """Return the schemes of the stores that have a URL."""
    return [scheme for scheme in STORES if scheme != LOCAL]


_FOLDER, _URL = "a folder's name", "an object store's URL"


def _units(given: str) -> str:
    found = re.fullmatch(r"(\d+):(\d+)", given)
    if given != ALL and (found is None or int(found[1]) >= int(found[2])):
        raise ValueError
    return given


@section(f"{SECTION}.play_only")
class PlayOnly:
    """What a play-only job generates (``algorithms.spin.play_only``)."""

    iteration: Count = 0
    """Index of the iteration; the loaded checkpoint must be at its start."""
    units: Annotated[
        str, BeforeValidator(str), AfterValidator(_units), Requirement("a:b with a < b, or 'all'")
    ] = ALL
    """Its units from a up to but excluding b, as ``a:b``; or ``all``."""

    def select_units(self, num_units: int) -> range:
        """Return the selected units of an iteration that has ``num_units``.

        Raises:
            InputError: If the selection exceeds them.
        """
        if self.units == ALL:
            return range(num_units)
        first, end = map(int, self.units.split(":"))
        wanted = f"within the {num_units} units of iteration {self.iteration}"
        check(end <= num_units, f"{SECTION}.play_only.units", self.units, wanted)
        return range(first, end)


def _as_list(given: object) -> object:
    return [given] if is_number(given) else given


def _check_braces(given: str, wanted: str) -> str:
    """Reject a text with a placeholder other than ``{run_name}``."""
    try:
        given.format(run_name="")
    except (KeyError, IndexError, ValueError):
        require(False, "", given, f"{wanted} with no braces but {{run_name}}")
    return given


def _switches(given: object) -> dict[str, bool]:
    """Return which alarms are on or off, of those that are named."""
    if _switch(given) is False:
        return dict.fromkeys(ALARMS, False)
    if not isinstance(given, Mapping):
        raise ValueError
    found: dict[str, bool] = {}
    for name, value in given.items():
        require(name in ALARMS, f".{name}", value, "absent", suggest_key(name, list(ALARMS)))
        found[name] = bool(_switch(value))
        require(_switch(value) is not None, f".{name}", value, "on or off")
    return found


def _switch(given: object) -> bool | None:
    """Return whether a value says on or off; None if it says neither."""
    if isinstance(given, bool):  # what YAML makes of a bare on or off
        return given
    return {"on": True, "off": False}.get(given) if isinstance(given, str) else None


def _folder(given: str) -> str:
    remedy = f"Give it as {SECTION}.remote_store, and here a folder of each node's own."
    require("://" not in given, "", given, _FOLDER, remedy)
    return _check_braces(given, _FOLDER)


def _remote(given: str) -> str:
    scheme, _, path = given.partition("://")
    schemes = url_schemes()
    ok = scheme in schemes and bool(path.strip("/"))
    wanted = " or ".join(f"{known}://bucket/folder" for known in schemes)
    require(ok, "", given, wanted, f"A folder that all nodes mount goes into {SECTION}.store.")
    return _check_braces(given, _URL)


_Rate = Annotated[float, Field(gt=0)]
_Rates = Annotated[list[_Rate], Field(min_length=1)]
_PerIteration = Requirement("a positive number or a list of them")
# Gradients grow to mu, to beta times lambda, and the squared loss's, whose target is
# 1 / (2 beta), to 1 / beta: beyond these bounds, their squares (norms, Adam's) would leave fp32's
# range.
_Beta = Annotated[float, Field(ge=1e-6, le=1e6)]
_Betas = Annotated[list[_Beta], Field(min_length=1)]
_BetaPerIteration = Requirement(
    "a number from 1e-6 to 1e6 or a list of them", "The paper's are 0.1 and 5."
)
_Weight = Annotated[Number, Field(ge=0, le=1e6), Requirement("a number from 0 to 1e6")]
_Mu = Annotated[
    Number,
    Field(ge=1e-15, le=1e15),
    Requirement("a number from 1e-15 to 1e15", "The paper's is 1."),
]


@section(SECTION)
class SpinSettings:
    """The game (``algorithms.spin``). Lists hold one value per iteration."""

    iteration_length: Epochs = "2ep"
    """Epochs of training per iteration (``2ep`` or ``2``). NeMo-Aligner's ``spin.max_epochs``."""
    beta: Annotated[_Beta | _Betas, BeforeValidator(_as_list), _BetaPerIteration] = 0.1
    """Strength of the pull toward the opponent, per iteration or one for all. NeMo-Aligner's
    ``ref_policy_kl_penalty``, the paper's lambda. Not of the loss ``space``, which has none."""
    learning_rate: Annotated[float | _Rates, BeforeValidator(_as_list), _PerIteration] | None = None
    """Peak learning rate, per iteration or one for all; null: the optimizer's."""
    loss: Annotated[str, OneOf(LOSSES)] = "logistic"
    """Which loss of docs/losses.md: ``logistic`` is the paper's. A setting that only another loss
    takes (``beta``, ``space_mu``, ``dpop_lambda``) is refused, unless it is null."""
    space_mu: _Mu = 1.0
    """Of the loss ``space``: weight of the generated side, the paper's mu."""
    dpop_lambda: _Weight = 50.0
    """Of the loss ``dpop``: weight of the fall of a real response below the opponent's log-prob."""
    nll_weight: _Weight = 0.0
    """Weight of the real response's mean negative log-likelihood, added to the loss."""
    length_normalised: bool = False
    """Divide each side's log-prob sum by its number of tokens."""
    reset_optimizer: bool = True
    """Start each iteration with a fresh optimizer state, as the paper does."""
    game: GameName = "spin"
    """``spin``: each real response over one of the opponent. ``ditto``: also over earlier
    opponents', and the newest over those, for tens of demonstrations (docs/ditto.md)."""
    ditto: Annotated[DittoSettings, section_validator(DittoSettings)] = field(
        default_factory=DittoSettings
    )
    """Of ``game: ditto``: the shares of its kinds of pairs."""
    replay: Count = 1
    """How many earlier iterations' pairs are mixed in, rescored by the current opponent. Not of
    ``game: ditto``, which draws from all of them."""
    samples_per_iteration: PositiveInt | Literal["all"] = ALL
    """Prompts played per iteration, a fresh subset each time, or ``all``."""
    responses_per_prompt: PositiveInt = 1
    """Responses generated to each prompt, each a pair of its own with the real one: more pairs of
    few rows."""
    store: Annotated[str, Field(min_length=1), AfterValidator(_folder), Requirement(_FOLDER)] = (
        "runs/{run_name}/self-play"
    )
    """Folder of the self-play store; ``{run_name}`` is replaced. Shared by all nodes, or with
    ``remote_store`` each node's own."""
    remote_store: Annotated[
        Annotated[str, Field(min_length=1), AfterValidator(_remote)] | None,
        Requirement(_URL),
    ] = None
    """Where the store lives if nodes share no file system: ``s3://bucket/{run_name}/self-play``,
    or ``gs://``, ``oci://``."""
    play_only: Annotated[PlayOnly | None, section_validator(PlayOnly)] = None
    """Make units of one iteration and end; ``spin-composer play`` sets it."""
    unit_size: PositiveInt = 256
    """Prompts per unit of the store: what a crash in play can cost a rank."""
    seed: Count | None = None
    """Seed of play and of the order of pairs; null: the Trainer's seed."""
    layout: LayoutName = "auto"
    """How pairs are laid out for the model. ``shared``: a pair's prompt once, no padding;
    ``packed``: no padding; ``padded``: a row per sequence. ``auto``: shared where the model, tried
    at the start, gives the same log-probs, else padded."""
    device_train_microbatch_tokens: PositiveInt | None = None
    """Most tokens that a microbatch has on a device, in place of a number of pairs. Composer's
    ``device_train_microbatch_size`` is then the device's whole batch, or ``auto``, which halves
    this when memory runs out."""
    deterministic: bool = False
    """Bitwise repeatable runs: deterministic kernels, slower on GPUs."""
    repair: bool = False
    """Set damaged units of the store aside and make them again, at the iteration's start."""
    allow_low_precision_weights: bool = False
    """Train weights that are bf16 or fp16 themselves, whose small updates are rounded away: only
    for an optimizer that keeps fp32 copies of them or rounds stochastically."""
    save_on_signal: bool = False
    """Save a checkpoint before stopping at Ctrl-C, SIGTERM, SIGUSR1 or SIGUSR2 (Slurm's
    ``--signal``), at the end of the current batch."""
    alarms: Annotated[
        dict[str, bool],
        BeforeValidator(_switches),
        Requirement("a mapping of alarms to on or off, or off"),
    ] = field(default_factory=dict)
    """Alarms of docs/alarms.md to switch off, as ``{high_accuracy: off}``; ``off``: all of them."""
    sample_table_rows: Count = 8
    """Rows of the table of samples that each iteration logs."""
    generation: Annotated[GenerationSettings, section_validator(GenerationSettings)] = field(
        default_factory=GenerationSettings
    )
    """How the opponent answers."""

    @model_validator(mode="wrap")
    @classmethod
    def _of_loss_and_game(cls, given: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Refuse what only another loss or game takes; a default does not count as given.

        Nor does a default of a copy, which gives every field, nor a null: so ``beta=null`` on the
        command line makes room for ``space`` in a YAML that has beta.
        """
        keys = dict(given.kwargs or {} if isinstance(given, ArgsKwargs) else given)
        parameters = {name for loss in LOSSES for name in loss_parameters(loss)}
        for name in parameters | {"replay", "ditto"}:
            if name in keys and keys[name] is None:
                del keys[name]
        settings = handler(ArgsKwargs((), keys))
        wanted = f"a loss of better and worse with game: {DITTO}"
        remedy = "It judges the real response alone, and DITTO has pairs without one: use logistic."
        ok = settings.game != DITTO or settings.loss not in REAL_ONLY
        require(ok, ".loss", settings.loss, wanted, remedy)
        own = loss_parameters(settings.loss)
        others = parameters - set(own)
        of_loss = ("loss", settings.loss, f"It takes {', '.join(own)}: ")
        because: dict[str, tuple[str, str, str]] = dict.fromkeys(others, of_loss)
        if settings.game == DITTO:
            because["replay"] = ("game", DITTO, "It draws from all earlier iterations: ")
        else:
            because["ditto"] = ("game", settings.game, f"Set game: {DITTO}, or ")
        refused = set(because) & set(keys)
        if set(keys) >= {declared.name for declared in fields(settings)}:
            plain = type(settings)(loss=settings.loss, game=settings.game)
            refused = {x for x in refused if getattr(settings, x) != getattr(plain, x)}
        for name in sorted(refused):
            setting, value, remedy = because[name]
            wanted = f"absent with {setting}: {value}"
            require(False, f".{name}", keys[name], wanted, f"{remedy}remove {name}.")
        return settings

    @property
    def epochs_per_iteration(self) -> int:
        """Epochs of training per iteration."""
        return count_epochs(self.iteration_length)

    def check_iterations(self, num_iterations: int) -> None:
        """Reject per-iteration lists whose length does not match the number of iterations.

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


def value_for_iteration(values: float | Sequence[float], iteration: int) -> float:
    """Return an iteration's value of a setting that has one value, or one per iteration."""
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
                    f"max_duration={text} is not a whole number of iterations of "
                    f"{epochs_per_iteration}ep ({SECTION}.iteration_length). Use e.g. "
                    f"{-(-int(digits) // per_iteration)}iter."
                )
            return int(digits) // per_iteration
    raise InputError(
        f"max_duration must be a positive number of iterations or epochs, got {text}. "
        "Use e.g. 3iter, or 6ep with algorithms.spin.iteration_length=2ep."
    )
