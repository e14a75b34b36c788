"""Which of two implementations of the heavy terms runs: compiled loops, or operations of torch.

The compiled ones (`scbraid.nn.compiled`, numba) are for float32 on a CPU. On any other device, in
any other precision and where numba is not installed, torch does the same mathematics.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import gc
import itertools
from collections.abc import Callable, Iterator
from types import ModuleType

import torch
from torch import Tensor

from scbraid.train.devices import has_numba

# Threads of blocks while torch is kept to one; 0 when it is not.
_reserved = 0


def for_tensors(*tensors: Tensor) -> ModuleType | None:
    """Return `scbraid.nn.compiled` where it can work on all of the tensors, else None."""
    for tensor in tensors:
        if tensor.device.type != "cpu" or tensor.dtype != torch.float32:
            return None
    return _compiled()


def each_block(work: Callable[[int, int], None], n_blocks: int) -> None:
    """Call ``work(block, slot)`` for every block, on as many threads as torch may use.

    Blocks are taken in no fixed order: what a call writes must be its block's own, and sums over
    blocks are for the caller, in their order. Then the number of threads changes no byte. The slot,
    below `n_slots`, is that of the thread, for scratch memory. torch keeps to one thread meanwhile:
    a product of a block that is shared takes several times as long (50 x 1,024 x 128 on two threads
    of one core: 0.59 ms, on one 0.08 ms), and its idle threads would take turns with ours.
    """
    n_threads = min(n_slots(), n_blocks)
    if n_threads <= 1:
        for block in range(n_blocks):
            work(block, 0)
        return
    following = itertools.count()

    def take(slot: int) -> None:
        with torch.no_grad():  # which other threads do not inherit
            while (block := next(following)) < n_blocks:
                work(block, slot)

    with one_thread():
        others = [_threads(n_threads - 1).submit(take, slot) for slot in range(1, n_threads)]
        try:
            take(0)
        finally:
            concurrent.futures.wait(others)
    for other in others:
        other.result()


def n_slots() -> int:
    """Return the number of slots `each_block` uses at most."""
    return _reserved or torch.get_num_threads()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread; `each_block` goes on with as many as torch had.

    For a training whose time is spent in blocks: the threads that torch keeps waiting between its
    operations are in their way.
    """
    global _reserved
    before = torch.get_num_threads(), _reserved
    _reserved = n_slots()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        n_threads, _reserved = before
        torch.set_num_threads(n_threads)


@functools.cache
def _threads(size: int) -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(size, "scbraid-blocks")


@functools.cache
def _compiled() -> ModuleType | None:
    if not has_numba():
        return None
    # Half a second and a hundred MiB, spent where something is trained; a third more with the
    # collector searching all that is being made. The first call fills numba's tables.
    collects = gc.isenabled()
    gc.disable()
    try:
        from scbraid.nn import compiled

        compiled.digamma(1.0)
    finally:
        if collects:
            gc.enable()
    return compiled
