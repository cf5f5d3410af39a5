"""Train from a YAML: ``python -m spin_composer.train YAML key=value ...``.

Checks the YAML without loading anything heavy, then hands it to llm-foundry's training command.
Every launcher starts this module: ``composer -n 8 -m spin_composer.train YAML``, torchrun,
Slurm, MCLI.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from spin_composer import interrupt
from spin_composer.errors import InputError, PlayDone, RunEnded, collect_errors, explain
from spin_composer.foundry.installed import require_foundry
from spin_composer.settings.yaml import read_yaml

if TYPE_CHECKING:
    from composer import Trainer
    from omegaconf import DictConfig

_FINISHED = "less than or equal to the elapsed training duration"


def train(path: str | Path, overrides: Sequence[str] = ()) -> Trainer:
    """Check a YAML and train it; return Composer's Trainer.

    Raises:
        InputError: If something in the YAML or the data cannot work.
        StoreError: If the self-play store is not this run's, or is damaged.
        EnvironmentFailure: If the machine does not give what the run needs.
    """
    return train_config(read_yaml(path, overrides), path)


def train_config(config: DictConfig, where: str | Path = "the config") -> Trainer:
    """Check a config and train it; see :func:`train`. Messages call the config ``where``."""
    from spin_composer.settings.yaml import (
        check_launch,
        check_other_run,
        is_spin,
        to_mapping,
        validate,
    )

    plain = to_mapping(config)
    checks: list[Callable[[], None]] = [lambda: require_foundry("a run's YAML")]
    if is_spin(plain):
        settings = validate(plain)
        world_size = int(os.environ.get("WORLD_SIZE") or 1)
        checks.append(lambda: check_launch(plain, settings, world_size))
    else:
        check_other_run(plain, where)
    collect_errors(*checks)
    from spin_composer.foundry.command import train

    if interrupt.owns_process():
        interrupt.install()  # Composer, just imported, has installed its own
    return train(config)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 0, or one of :mod:`spin_composer.errors`."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments:
        print("usage: python -m spin_composer.train YAML [key=value ...]", file=sys.stderr)
        return InputError.exit_code
    return exit_code(lambda: train(arguments[0], arguments[1:]), arguments[0])


def exit_code(run: Callable[[], object], name: str) -> int:
    """Execute a run, print errors that a user can correct in one line, return the exit code."""
    try:
        interrupt.install(owns_process=True)
        run()
    except (PlayDone, RunEnded) as done:
        print(f"{name}: {done}", file=sys.stderr)
    except BaseException as error:  # the error of a failed sharded save is not an Exception
        if number := interrupt.signal_causing(error):
            interrupt.announce()
            return 128 + number
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        if isinstance(error, ValueError) and _FINISHED in str(error):  # raised by Trainer.fit()
            module = sys.modules.get("spin_composer.hooks.early_end")
            reason = module.EarlyEnd.reason if module is not None else ""
            why = f" ({reason})" if reason else ""
            print(
                f"{name}: the run is finished already{why}; nothing to do. Other rows or settings "
                "need another run_name.",
                file=sys.stderr,
            )
            return 0
        explained = explain(error)
        if explained is None:
            raise
        code, line = explained
        for part in line.splitlines():  # one per problem
            print(f"error: {part}", file=sys.stderr)
        return code
    finally:
        release_locks()
        interrupt.uninstall()
    return 0


def release_locks() -> None:
    """Release the locks of a failed run while threads can still be started."""
    module = sys.modules.get("spin_composer.store.lock")  # absent if the run did not start
    if module is not None:
        module.release_all()


if __name__ == "__main__":
    interrupt.exit_process(main())
