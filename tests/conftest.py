"""Makes the shared fixtures importable as ``fixtures`` and keeps every test offline."""

from __future__ import annotations

import os
import sys
from pathlib import Path

for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Triton's kernels run on CPU tensors then; it must be set before anything imports triton.
# Where there is a GPU they are to run on it: TRITON_INTERPRET=0 (make gpu).
os.environ.setdefault("TRITON_INTERPRET", "1")

# The models are tiny: threads would only get in each other's way, and in that of the other worker.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What a test asks is on this machine, whatever proxy its user has, and no line is cut at the
# width of a terminal.
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"
os.environ["COLUMNS"] = "120"

sys.path.insert(0, str(Path(__file__).parent))
