"""A hash of a model's weights that does not depend on their sharding."""

from __future__ import annotations

import torch
import xxhash
from torch import nn

from spin_composer.fsdp import iter_full_parameters

_SAMPLED_ELEMENTS = 4096


@torch.no_grad()
def fingerprint(root: nn.Module) -> str:
    """Return a hash of a model's parameters; a collective under FSDP.

    Hashes at least 4096 evenly spaced elements of every parameter (or all): reading all weights of
    a 70B model would take minutes. Equal weights have equal fingerprints on any number of ranks,
    sharded or not.

    Args:
        root: The outermost module, as for :func:`iter_full_parameters`.

    Returns:
        16 hexadecimal digits.
    """
    digests = {}
    for whole in iter_full_parameters(root):
        stride = max(1, whole.tensor.numel() // _SAMPLED_ELEMENTS)
        # Always a copy: numpy() would keep the storage that FSDP frees.
        sample = whole.tensor.reshape(-1)[::stride].to("cpu", torch.float32, copy=True)
        digest = xxhash.xxh64(str(tuple(whole.tensor.shape)).encode())
        digest.update(sample.contiguous().numpy().tobytes())
        digests[whole.name] = digest.hexdigest()
        del whole  # else it would stay in memory together with the next one
    return xxhash.xxh64(repr(sorted(digests.items())).encode()).hexdigest()
