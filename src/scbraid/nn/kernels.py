"""Which of two implementations of the heavy terms runs: compiled loops, or operations of torch.

The compiled ones (`scbraid.nn.compiled`, numba) are for float32 on a CPU. On any other device, in
any other precision and where numba is not installed, torch does the same mathematics.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor

from scbraid.train.devices import has_numba


def for_tensors(*tensors: Tensor) -> ModuleType | None:
    """Return `scbraid.nn.compiled` where it can work on all of the tensors, else None."""
    for tensor in tensors:
        if tensor.device.type != "cpu" or tensor.dtype != torch.float32:
            return None
    return _compiled()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread, for many small matrix products in turn with compiled loops.

    Shared between threads a product of a block takes several times as long (50 x 1,024 x 128 on two
    threads of one core: 0.59 ms, on one 0.08 ms).
    """
    n_threads = torch.get_num_threads()
    if n_threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


@functools.cache
def _compiled() -> ModuleType | None:
    if not has_numba():
        return None
    # Half a second and tens of MiB, spent where something is trained.
    from scbraid.nn import compiled

    return compiled
