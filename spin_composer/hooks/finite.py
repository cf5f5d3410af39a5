"""Detection of NaN and infinity before they reach the weights or a checkpoint.

A batch's losses and gradients are checked before the optimizer's step, on all ranks; the weights at
the start and before each save. The run stops on the first NaN: the step could not be undone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from composer.callbacks import CheckpointSaver
from composer.core import Event, Precision, State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor, nn

from spin_composer.errors import NotFiniteError
from spin_composer.export.exporters import export_is_due
from spin_composer.fsdp import local_tensor, plain_name
from spin_composer.hooks.first_batch import sync_after_backward

_SHOWN_ROWS = 16
_SHOWN_NAMES = 3


class FiniteMonitor:
    """Checks each batch's losses and gradients before the optimizer's step."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._rows: list[list[int]] = []

    def before_train_batch(self, state: State, logger: Logger) -> None:
        """Start a batch, or restart one that ran out of memory and is split further."""
        del state, logger
        self._losses, self._rows = [], []

    def after_loss(self, state: State, logger: Logger) -> None:
        """Keep a microbatch's losses, without a collective or synchronization."""
        del logger
        outputs = cast(Mapping[str, Tensor], state.outputs)
        losses = outputs.get("pair_losses")
        if losses is None:
            losses = torch.as_tensor(state.loss).detach().reshape(1)
        self._losses.append(losses.detach())
        self._rows.append(list(state.batch.get("indices", [])))

    def after_train_batch(self, state: State, logger: Logger) -> None:
        """Check the batch; a collective.

        With a gradient scaler (amp_fp16) gradients overflow by design, and the scaler skips the
        step: they are an error only if the scale cannot be reduced further.

        Raises:
            NotFiniteError: On all ranks, if a loss or a gradient of any rank is not finite.
        """
        del logger
        sync_after_backward(state)
        loss = torch.cat([loss.reshape(-1) for loss in self._losses]).isfinite().all()
        gradient = gradients_are_finite(state.model).to(loss.device)
        flags = torch.stack((~loss, ~gradient)).int()
        dist.all_reduce(flags, reduce_operation="MAX")
        bad_loss, bad_gradient = flags.tolist()
        if bad_loss or (bad_gradient and not _is_scaled(state)):
            raise NotFiniteError(self._line(state, bool(bad_loss)))

    def _line(self, state: State, bad_loss: bool) -> str:
        rows = []
        for losses, indices in zip(self._losses, self._rows, strict=True):
            bad = (~losses.isfinite()).tolist() if bad_loss else [True] * len(indices)
            rows += [index for index, is_bad in zip(indices, bad, strict=False) if is_bad]
        found = sorted({row for of_rank in dist.all_gather_object(rows) for row in of_rank})
        t = state.timestamp
        what = "loss" if bad_loss else "gradient"
        return (
            f"iteration {int(t.iteration)}, batch {int(t.batch)}: the {what} is not finite "
            f"(training rows {_format_names(found, _SHOWN_ROWS)} of the data). The run stopped "
            "before the optimizer's step, and nothing was saved. Check these rows, lower the "
            "learning rate or clip gradients; the same command resumes from the newest checkpoint."
        )


def gradients_are_finite(model: nn.Module) -> Tensor:
    """Return whether this rank's part of the gradient has a finite norm: a bool tensor."""
    gradients = [local_tensor(p.grad) for p in model.parameters() if p.grad is not None]
    gradients = [gradient for gradient in gradients if gradient.numel()]
    if not gradients:
        return torch.tensor(True)
    norms = torch._foreach_norm(gradients, 2, dtype=torch.float32)
    return torch.stack([norm.to(norms[0].device) for norm in norms]).isfinite().all()


def _is_scaled(state: State) -> bool:
    scaler = state.scaler
    scaled = state.precision == Precision.AMP_FP16 and scaler is not None and scaler.is_enabled()
    return scaled and scaler.get_scale() > 1.0  # pyright: ignore[reportOptionalMemberAccess]


def require_finite_weights(state: State) -> None:
    """Stop unless the model's weights are finite; a collective.

    Raises:
        NotFiniteError: Names the first of those that are not, and what to do.
    """
    mine = sorted(_not_finite_error(state.model))
    bad = sorted({name for names in dist.all_gather_object(mine) for name in names})
    if not bad:
        return
    total = len(dict(state.model.named_parameters()))
    t = state.timestamp
    which = f"{len(bad)} of the model's {total} weights are not finite ({_format_names(bad)})"
    if int(t.batch) == 0:
        raise NotFiniteError(f"{which}, before training. Use a base model that is whole.")
    raise NotFiniteError(
        f"{which} after batch {int(t.batch)}. They are not saved. Lower the learning rate, and "
        "run the same command again: it resumes from the newest checkpoint. If that one is at "
        "fault, move it out of save_folder."
    )


def is_saved_after_batch(state: State) -> bool:
    """Return whether the weights are saved or exported after this batch."""
    event = Event.BATCH_CHECKPOINT
    savers = (c for c in state.callbacks if isinstance(c, CheckpointSaver))
    return any(saver.save_interval(state, event) for saver in savers) or export_is_due(state, event)


@torch.no_grad()
def _not_finite_error(model: nn.Module) -> list[str]:
    # A sum is finite only if all that is added is; the other way around it may have overflowed.
    sums = [(name, local_tensor(p), local_tensor(p).sum(dtype=torch.float32))
            for name, p in model.named_parameters()]  # fmt: skip
    return [
        plain_name(name).removeprefix("module.").removeprefix("model.")
        for name, values, total in sums
        if not (total.isfinite() or values.isfinite().all())
    ]


def _format_names(items: Sequence[object], most: int = _SHOWN_NAMES) -> str:
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more
