"""Makes the shared fixtures importable as ``fixtures`` and keeps every test offline."""

from __future__ import annotations

import logging
import os
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Triton's kernels run on CPU tensors then; it must be set before anything imports triton.
# Where there is a GPU they are to run on it: TRITON_INTERPRET=0 (make gpu).
os.environ.setdefault("TRITON_INTERPRET", "1")

# The models are tiny: threads would only get in each other's way, and in that of the other worker.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Nothing of a test stays in its user's cache; the tests of the cache name a folder.
os.environ["SPIN_COMPOSER_CACHE"] = ""

# What a test asks is on this machine, whatever proxy its user has, and no line is cut at the
# width of a terminal.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"
os.environ["COLUMNS"] = "120"

sys.path.insert(0, str(Path(__file__).parent))

# Files of long runs, the longest first: begun last, they would keep one worker while the other
# idles.
LONGEST = (
    "test_yaml_runs.py", "kernels/test_linear_log_softmax_gather.py", "test_interrupt.py",
    "store/test_remote.py", "test_resume.py", "kernels/test_pair_pass.py",
    "judge/test_callback.py", "test_remote_run.py", "play/test_sharing.py", "test_small_world.py",
    "test_chaos.py", "test_refused_runs.py", "export/test_callback.py", "test_new_families.py",
    "kernels/test_linear_pair_loss.py", "test_evidence.py", "test_ditto.py", "test_algorithm.py",
    "engines/server/test_faults.py", "test_before.py",
)  # fmt: skip
_TESTS = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files of long runs first; the order within a file stays. Skip what cannot run."""
    if find_spec("llmfoundry") is None:
        for item in items:
            if item.get_closest_marker("foundry"):
                item.add_marker(pytest.mark.skip(reason="llm-foundry is not installed"))
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.relative_to(_TESTS).as_posix(), len(rank)))


@pytest.fixture(autouse=True)
def _one_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put os.environ back after a test: datasets 5 leaves a copy there, which others do not see."""
    monkeypatch.setattr(os, "environ", os.environ)


@pytest.fixture(autouse=True)
def _no_handler_of_a_closed_stream() -> None:
    """Forget log handlers of runs before in this process: the streams they write to are closed."""
    for handler in list(logging.root.handlers):
        if getattr(getattr(handler, "stream", None), "closed", False):
            logging.root.removeHandler(handler)
