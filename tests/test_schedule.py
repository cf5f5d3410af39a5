"""The learning rate warms up and decays within each iteration, and starts again with the next."""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from composer import Callback
from composer.core import Timestamp
from composer.optim import ConstantScheduler, LinearScheduler
from composer.optim.scheduler import compile_composer_scheduler

from spin_composer import HFSpinLM, SpinScheduler
from spin_composer.errors import InputError
from spin_composer.schedule import refresh_learning_rates, require_spin_scheduler
from spin_composer.settings.scheduler import SchedulerSettings
from spin_composer.settings.spin import SpinSettings
from tests.fixtures.models import tiny_model
from tests.fixtures.runs import tiny_trainer
from tests.fixtures.tokenizers import byte_level

BATCHES_PER_EPOCH = 5
"""Iterations of two epochs: ten batches."""


def clock(iteration: int, batch: int, lr: float = 1e-3, **settings: Any) -> Any:
    """Return what the scheduler reads of Composer's state at a batch of an iteration."""
    epoch, batch_in_epoch = divmod(batch, BATCHES_PER_EPOCH)
    group = {"lr": lr, "initial_lr": lr}
    return SimpleNamespace(
        dataloader_len=BATCHES_PER_EPOCH,
        timestamp=Timestamp(
            iteration=iteration,
            epoch_in_iteration=epoch,
            batch_in_epoch=batch_in_epoch,
            epoch=2 * iteration + epoch,
            batch=10 * iteration + batch,
        ),
        optimizers=[SimpleNamespace(param_groups=[group])],
        algorithms=[SimpleNamespace(settings=SpinSettings(**settings))],
    )


def curve(scheduler: SpinScheduler, iteration: int, **settings: Any) -> list[float]:
    return [scheduler(clock(iteration, batch, **settings)) for batch in range(10)]


LINEAR = [0, 1 / 2, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]


@pytest.mark.parametrize("t_warmup", ["0.2dur", "2ba"])
@pytest.mark.parametrize("iteration", [0, 1, 5])
def test_every_iteration_has_the_same_warm_up_and_decay(t_warmup: str, iteration: int) -> None:
    assert curve(SpinScheduler(t_warmup), iteration) == pytest.approx(LINEAR)


def test_the_defaults_are_those_of_the_yamls_section() -> None:
    defaults = {name: p.default for name, p in signature(SpinScheduler).parameters.items()}
    assert defaults == vars(SchedulerSettings())


def test_the_decay_ends_at_alpha_f_and_has_its_shape() -> None:
    half = curve(SpinScheduler("2ba", alpha_f=0.5), 1)
    assert half[2:] == pytest.approx([1 - 0.5 * i / 8 for i in range(8)])
    constant = curve(SpinScheduler("2ba", decay="constant"), 1)
    assert constant == pytest.approx([0, 0.5, *[1] * 8])
    cosine = curve(SpinScheduler("2ba", decay="cosine"), 1)
    assert cosine[:3] == pytest.approx([0, 0.5, 1])
    assert cosine[6] == pytest.approx(0.5)
    assert sorted(cosine[2:], reverse=True) == cosine[2:]
    assert curve(SpinScheduler("0ba"), 0)[0] == 1


@pytest.mark.parametrize("length", ["6ep", 6])
def test_a_longer_schedule_is_left_unfinished_and_starts_again(length: str | int) -> None:
    authors = SpinScheduler("0.1dur", schedule_length=length)  # three batches of thirty
    for iteration in (0, 1):
        expected = [0, 1 / 3, 2 / 3, *[1 - i / 27 for i in range(7)]]
        assert curve(authors, iteration) == pytest.approx(expected)


def test_a_schedule_of_the_iterations_length_is_the_default() -> None:
    assert curve(SpinScheduler("2ba", schedule_length="2ep"), 0) == pytest.approx(LINEAR)
    state = clock(0, 0)
    state.schedulers = [_compiled(SpinScheduler(schedule_length="2ep"), state)]
    require_spin_scheduler(state)


def test_a_schedule_that_ends_before_the_iteration_is_refused_at_the_start() -> None:
    state = clock(0, 0)
    state.schedulers = [_compiled(SpinScheduler(schedule_length=1), state)]
    with pytest.raises(InputError, match=r"^scheduler.schedule_length=1ep ends before"):
        require_spin_scheduler(state)


def _compiled(scheduler: SpinScheduler, state: Any) -> Any:
    """Return what Composer makes of a scheduler before there is a loader."""
    state.optimizers = [torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)]
    state.dataloader_len = None
    return compile_composer_scheduler(scheduler, state)


def test_each_iteration_has_its_peak() -> None:
    rates = {"learning_rate": [1e-3, 4e-3, 5e-4]}
    for iteration, peak in enumerate(rates["learning_rate"]):
        found = [1e-3 * m for m in curve(SpinScheduler("2ba"), iteration, **rates)]
        assert found == pytest.approx([peak * m for m in LINEAR])
    assert curve(SpinScheduler("2ba"), 7, learning_rate=2e-3) == pytest.approx(
        [2 * m for m in LINEAR]
    )


def test_nothing_is_trained_before_there_is_a_loader() -> None:
    state = clock(0, 3)
    state.dataloader_len = None
    assert SpinScheduler()(state) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"t_warmup": "1ep"},
        {"t_warmup": "1iter"},
        {"t_warmup": "-1ba"},
        {"t_warmup": "1.5dur"},
        {"t_warmup": "soon"},
        {"t_warmup": None},
        {"decay": "exponential"},
        {"alpha_f": -0.1},
        {"alpha_f": 1.1},
        {"alpha_f": float("nan")},
        {"alpha_f": "0"},
        {"schedule_length": 0},
        {"schedule_length": "6iter"},
        {"schedule_length": 2.5},
    ],
)
def test_wrong_settings_are_refused_by_name(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(InputError, match=f"^scheduler.{name} must be") as caught:
        SpinScheduler(**wrong)
    assert "\n" not in str(caught.value)


class Rates(Callback):
    """Notes the learning rates that each optimizer step uses."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []

    def after_backward(self, state: Any, logger: Any) -> None:
        self.seen.append([group["lr"] for group in state.optimizers[0].param_groups])


def test_a_run_trains_with_the_curve_of_each_iteration(tmp_path: Path) -> None:
    rates = Rates()
    trainer = tiny_trainer(
        tmp_path,
        spin={"replay": 1, "learning_rate": [1e-3, 3e-3]},
        schedulers=SpinScheduler("0.25dur"),
        callbacks=[rates],
        device_train_microbatch_size=4,
    )
    trainer.fit()
    trainer.close()
    first, second = 12, 24  # the replayed pairs make the second iteration longer

    def expected(batches: int, peak: float) -> list[float]:
        warm = batches // 4
        up = [peak * i / warm for i in range(warm)]
        return up + [peak * (1 - i / (batches - warm)) for i in range(batches - warm)]

    assert len(rates.seen) == first + second
    seen = [rate for (rate,) in rates.seen]
    assert seen[:first] == pytest.approx(expected(first, 1e-3))
    assert seen[first:] == pytest.approx(expected(second, 3e-3))


def test_parameter_groups_keep_their_ratio() -> None:
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [weights[0]], "lr": 1e-3}, {"params": [weights[1]], "lr": 1e-4}]
    optimizer = torch.optim.SGD(groups)
    state = clock(1, 4, learning_rate=[1.0, 2e-3])
    state.optimizers = [optimizer]
    scheduler = SpinScheduler("2ba")
    compiled = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: scheduler(state))
    state.schedulers = [compiled]
    for group in optimizer.param_groups:
        group["lr"] = 7.0
    refresh_learning_rates(state)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([1.5e-3, 1.5e-4])


@pytest.mark.parametrize(
    ("schedulers", "named"),
    [
        (LinearScheduler(), "LinearScheduler"),
        ([SpinScheduler(), ConstantScheduler()], "SpinScheduler, ConstantScheduler"),
        (None, "none"),
    ],
    ids=["another", "two", "none"],
)
def test_other_schedulers_are_refused(schedulers: Any, named: str, tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path, schedulers=schedulers)
    with pytest.raises(InputError, match=f"must be one SpinScheduler, got {named}"):
        trainer.fit()
    trainer.close()


def test_a_learning_rate_of_0_is_refused_beside_a_peak(tmp_path: Path) -> None:
    tokenizer = byte_level()
    model = HFSpinLM.from_model(tiny_model("llama", vocab_size=len(tokenizer)), tokenizer)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    with pytest.raises(InputError, match=r"optimizer\.lr must be a positive number beside .*got 0"):
        tiny_trainer(tmp_path, model, optimizers=optimizer, spin={"learning_rate": 1e-3}).fit()
    assert not (tmp_path / "self-play/iter-000").exists()


def test_the_scheduler_alone_says_that_it_needs_the_algorithm() -> None:
    state = clock(0, 0)
    state.algorithms = []
    with pytest.raises(InputError, match="needs the algorithm `spin`"):
        SpinScheduler()(state)
    state.schedulers = []
    with pytest.raises(InputError, match="got none"):
        require_spin_scheduler(state)
