"""Which of two implementations of the heavy terms runs: compiled loops, or operations of torch.

The compiled ones (`scbraid.nn.compiled`, numba) are for float32 on a CPU. On any other device, in
any other precision and where numba is not installed, torch does the same mathematics.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import functools
import gc
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from scbraid.train.devices import has_numba

T = TypeVar("T")

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
    following = itertools.count()

    def take(slot: int) -> None:
        with torch.no_grad():  # which other threads do not inherit
            while (block := next(following)) < n_blocks:
                work(block, slot)

    _on_threads(take, min(n_slots(), n_blocks))


def share(loop: Callable[..., None], *arguments: Any) -> None:
    """Call ``loop(counter, slot, *arguments)`` of `scbraid.nn.compiled` on each of these threads.

    As `each_block`, for loops that take their blocks themselves, by the counter, and need Python
    no more until none is left.
    """
    counter = np.zeros(1, np.int64)
    _on_threads(lambda slot: loop(counter, slot, *arguments), n_slots())


def _on_threads(work: Callable[[int], None], n_threads: int) -> None:
    if n_threads <= 1:
        work(0)
        return
    with contextlib.nullcontext() if _reserved else one_thread():
        threads = _threads(n_slots() - 1)
        others = [threads.submit(work, slot) for slot in range(1, n_threads)]
        try:
            work(0)
        finally:
            # A thread that is busy with something else has not begun, and need not any more.
            others = [other for other in others if not other.cancel()]
            concurrent.futures.wait(others)
    for other in others:
        other.result()


@contextlib.contextmanager
def beside(work: Callable[[], T]) -> Iterator[Callable[[], T]]:
    """Do `work` on another thread while the block runs; give what returns its result after it.

    For two things that need nothing of each other, inside `one_thread`. Where there is no second
    thread, the work is done before the block. One of the two at most may draw from torch's
    generators, so that their order is the same in both cases. Leaving the block waits for the work
    and raises what it raised.
    """
    if _reserved <= 1:
        result = work()
        yield lambda: result
        return
    future = _threads(_reserved - 1).submit(work)
    try:
        yield future.result
    finally:
        concurrent.futures.wait([future])
    future.result()


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
def product_address() -> int:
    """Return the address of SGEMM, which compiled loops call: torch's own, or else SciPy's."""
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib", "torch_cpu.dll"):
        if (folder / name).exists():
            function = getattr(ctypes.CDLL(str(folder / name)), "sgemm_", None)
            if function is not None:
                return int(ctypes.cast(function, ctypes.c_void_p).value or 0)
    from numba.extending import get_cython_function_address

    return int(get_cython_function_address("scipy.linalg.cython_blas", "sgemm"))


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
