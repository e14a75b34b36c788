"""Minibatches of cells: which rows of every layer a step sees, and when their data are read.

A sampler plans a pass over the cells in windows, each a list of minibatches. `Prefetch` reads what
a window needs while the one before it is trained on; without it the windows are only planned. Both
orders of cells, the full shuffle and the block shuffle, serve data in memory and on disk alike.
"""

from __future__ import annotations

import abc
import itertools
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from scbraid.errors import DataError

# (rows, drawn), both (n, n_layers): row of each layer, and whether it was drawn or filled in.
Minibatch = tuple[np.ndarray, np.ndarray]
Window = list[Minibatch]

SPLITS = ("train", "validation")

# Cells of each layer whose data are held at once (and again for the window that is read ahead).
WINDOW_ROWS = 1 << 15
# Neighbouring cells that a block shuffle moves together, and the fewest blocks it makes of a group.
BLOCK_ROWS = 1 << 10
MIN_BLOCKS = 64


class Sampler(abc.ABC):
    """Minibatches of cells, in an order that a seed decides and that can be taken up again.

    A pass goes once over a part of the split. An epoch is a pass; or, where a pass has more than
    `max_steps` steps, that many steps of it: the next epoch goes on where this one ended, and pass
    follows pass, so that all cells are seen equally often. Validation is cut in the same ratio.

    Parameters
    ----------
    sizes
        Ids in each part of the split.
    batch_size
        Cells of each layer in a step.
    seed
        Seed of split, order and fills.
    max_steps
        Training steps of an epoch at most; None for whole passes.

    Attributes
    ----------
    through
        What the windows of a pass go through to become minibatches, such as a `Prefetch`.
    """

    def __init__(
        self, sizes: Mapping[str, int], batch_size: int, seed: int, max_steps: int | None = None
    ) -> None:
        self.batch_size = batch_size
        self.seed = seed
        self.through: Callable[[Iterator[Window]], Iterator[Minibatch]] = (
            itertools.chain.from_iterable
        )
        # Training drops an incomplete last minibatch, unless it is the only one.
        train = max(1, sizes["train"] // batch_size)
        validation = -(-sizes["validation"] // batch_size)
        self.pass_steps = {"train": train, "validation": validation}
        self.epoch_steps = dict(self.pass_steps)
        self.cuts_passes = max_steps is not None and max_steps < train
        if max_steps is not None and self.cuts_passes:
            self.epoch_steps = {
                "train": max_steps,
                "validation": math.ceil(validation * max_steps / train),
            }
        # Passes done, the steps done of the pass that is under way, and that pass where it is.
        self._passes = dict.fromkeys(SPLITS, 0)
        self._steps = dict.fromkeys(SPLITS, 0)
        self._under_way: dict[str, Iterator[Minibatch]] = {}

    @abc.abstractmethod
    def windows(self, split: str) -> Iterator[Window]:
        """Plan the next pass; where epochs cut passes, by its number and the seed alone."""

    def generator(self, split: str) -> np.random.Generator:
        """Return the generator of the next pass, which depends on its number and the seed alone."""
        return np.random.default_rng([self.seed, 1 + SPLITS.index(split), self._passes[split]])

    def epoch(self, split: str, start: int = 0) -> Iterator[Minibatch]:
        """Yield (rows, drawn): both (n, n_layers); `drawn` is False where a row was filled in.

        Training batches drop an incomplete last one of a pass, unless it is the only one. An epoch
        that is left before its end ends its pass, too.

        Parameters
        ----------
        split
            ``train`` or ``validation``.
        start
            Steps of the epoch to leave out, because they were done before an interruption.
        """
        position, stop = 0, self.epoch_steps[split]
        complete = False
        try:
            while position < stop:
                done = self._steps[split]
                n_steps = min(stop - position, self.pass_steps[split] - done)
                skip = min(max(start - position, 0), n_steps)
                if skip or split not in self._under_way:
                    self._close(split)
                    planned = _without(self.windows(split), done + skip)
                    self._under_way[split] = self.through(planned)
                under_way = self._under_way[split]
                yield from itertools.islice(under_way, n_steps - skip)
                position += n_steps
                self._steps[split] += n_steps
                if self._steps[split] == self.pass_steps[split]:
                    # What is planned is drawn, even if all of it is left out.
                    next(under_way, None)
                    self._next_pass(split)
            complete = True
        finally:
            if not complete:
                self._next_pass(split)

    def close(self) -> None:
        """Let go of passes that are under way, of their threads and data; the place is kept."""
        for split in SPLITS:
            self._close(split)

    def _close(self, split: str) -> None:
        under_way = self._under_way.pop(split, None)
        if isinstance(under_way, Generator):
            under_way.close()

    def _next_pass(self, split: str) -> None:
        self._close(split)
        self._passes[split] += 1
        self._steps[split] = 0

    def state_dict(self) -> dict[str, Any]:
        """Where the sampler is between two epochs, in plain values: order, seed, passes, steps."""
        return {
            "order": type(self).__name__,
            "seed": self.seed,
            "passes": dict(self._passes),
            "steps": dict(self._steps),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a saved state: the next epochs yield what would have come next.

        Raises
        ------
        DataError
            When the state is of another kind of sampler, or of one with another seed.
        """
        for name, own in (("order", type(self).__name__), ("seed", self.seed)):
            if state[name] != own:
                msg = (
                    f"the saved order of cells has the {name} {state[name]}, this one {own}; "
                    "continue with the options that the training was begun with"
                )
                raise DataError(msg)
        self.close()
        self._passes = {split: int(state["passes"][split]) for split in SPLITS}
        self._steps = {split: int(state["steps"][split]) for split in SPLITS}


def _without(windows: Iterator[Window], steps: int) -> Iterator[Window]:
    """Leave out the first steps; a window that is left out entirely is never read."""
    for window in windows:
        if steps < len(window):
            yield window[steps:]
        steps = max(0, steps - len(window))


def cut(rows: np.ndarray, batch_size: int, *, keep_rest: bool) -> list[np.ndarray]:
    """Cut rows into minibatches; an incomplete last one is kept if asked for, or if alone."""
    n_rows = len(rows)
    stop = n_rows if keep_rest else n_rows - n_rows % batch_size
    return [rows[first : first + batch_size] for first in range(0, stop or n_rows, batch_size)]


class BlockSampler(Sampler):
    """A shuffle that reads the disk in blocks of neighbouring cells.

    A pass brings the blocks of all layers into random order and lays them end to end; what falls
    into a window of some 32,000 cells is permuted and cut into minibatches. Every id comes once a
    pass. A layer in which drawn cells do not exist is filled up from a second pass over its own
    blocks, also in random order, so that fills are spread evenly over its cells. Validation holds
    out whole blocks.

    Parameters
    ----------
    cells
        (n_ids, n_layers) rows of each cell in each layer, -1 where absent.
    batch_size
        Cells of each layer in a step.
    val_split
        Share of ids held out, in each group of ids that are present in the same layers.
    seed
        Seed of split, order and fills.
    max_steps
        Training steps of an epoch at most; None for whole passes.
    block_rows, window_rows
        Cells of a block (fewer in small groups, so that they have 64 blocks), and of a window.

    Notes
    -----
    Where the cells are in random order on disk, as in every prepared input, a minibatch is a
    uniform sample without replacement; what is lost against a full shuffle is that two cells of one
    block can meet in a minibatch in every epoch (docs/scale.md).
    """

    def __init__(
        self,
        cells: np.ndarray,
        batch_size: int,
        val_split: float,
        seed: int,
        max_steps: int | None = None,
        *,
        block_rows: int = BLOCK_ROWS,
        window_rows: int = WINDOW_ROWS,
    ) -> None:
        self._cells = cells
        rng = np.random.default_rng([seed, 0])
        present = (cells >= 0) @ (1 << np.arange(cells.shape[1]))
        anchor = cells[np.arange(len(cells)), (cells >= 0).argmax(axis=1)]
        # Ids of one group follow each other in the order of the file.
        order = np.lexsort((anchor, present))
        ends = np.flatnonzero(np.diff(present[order], append=-1)) + 1
        blocks: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
        for ids in np.split(order, ends[:-1]):
            held, rest = _hold_out(ids, val_split, block_rows, rng)
            blocks["validation"] += held
            blocks["train"] += rest
        self._blocks: dict[str, list[np.ndarray]] = {}
        self._pools: dict[str, list[list[np.ndarray]]] = {}
        for split in SPLITS:
            found = blocks[split]
            for k in range(cells.shape[1]):
                if not any((cells[ids, k] >= 0).any() for ids in found):
                    # With a handful of cells a split may miss a layer: it then draws from all.
                    found.append(np.flatnonzero(cells[:, k] >= 0)[:1])
            self._blocks[split] = found
            in_layer = [[cells[ids, k] for ids in found] for k in range(cells.shape[1])]
            self._pools[split] = [
                [rows for rows in (part[part >= 0] for part in parts) if len(rows)]
                for parts in in_layer
            ]
        sizes = {split: sum(map(len, self._blocks[split])) for split in SPLITS}
        super().__init__(sizes, batch_size, seed, max_steps)
        steps = max(1, window_rows // batch_size)
        self._window_rows = dict.fromkeys(SPLITS, steps * batch_size)
        if self.cuts_passes:
            # A window of training is held meanwhile; order is of no matter here.
            steps = min(steps, self.epoch_steps["validation"])
            self._window_rows["validation"] = steps * batch_size

    def windows(self, split: str) -> Iterator[Window]:
        """Plan the next pass; a function of its number and the seed alone."""
        return self._plan(split, self.generator(split))

    def _plan(self, split: str, rng: np.random.Generator) -> Iterator[Window]:
        blocks = self._blocks[split]
        ids = np.concatenate([blocks[b] for b in rng.permutation(len(blocks))])
        if split == "train" and len(ids) >= self.batch_size:
            ids = ids[: len(ids) - len(ids) % self.batch_size]
        fills = [_Fills(pool, rng) for pool in self._pools[split]]
        size = self._window_rows[split]
        for first in range(0, len(ids), size):
            rows = self._cells[rng.permutation(ids[first : first + size])]
            drawn = rows >= 0
            for k, fill in enumerate(fills):
                absent = np.flatnonzero(~drawn[:, k])
                rows[absent, k] = rng.permutation(fill.take(len(absent)))
            yield list(
                zip(
                    cut(rows, self.batch_size, keep_rest=True),
                    cut(drawn, self.batch_size, keep_rest=True),
                    strict=True,
                )
            )


def _hold_out(
    ids: np.ndarray, share: float, block_rows: int, rng: np.random.Generator
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Cut ids into blocks and hold out random ones; the last of these may be cut in two."""
    size = max(1, min(block_rows, len(ids) // MIN_BLOCKS))
    blocks = np.split(ids, np.arange(size, len(ids), size))
    n_held = round(share * len(ids))
    held: list[np.ndarray] = []
    rest: list[np.ndarray] = []
    for b in rng.permutation(len(blocks)):
        block = blocks[b]
        taken = min(len(block), n_held)
        n_held -= taken
        if taken:
            held.append(block[:taken])
        if taken < len(block):
            rest.append(block[taken:])
    return held, rest


class _Fills:
    """Rows of one layer, block after block in random order, again and again."""

    def __init__(self, blocks: list[np.ndarray], rng: np.random.Generator) -> None:
        self._blocks = blocks
        self._rng = rng
        self._order: list[int] = []
        self._left = np.zeros(0, np.int64)

    def take(self, n: int) -> np.ndarray:
        """Return the next `n` rows."""
        parts = []
        while n > 0:
            if not len(self._left):
                if not self._order:
                    self._order = self._rng.permutation(len(self._blocks)).tolist()
                self._left = self._blocks[self._order.pop()]
            parts.append(self._left[:n])
            n -= len(parts[-1])
            self._left = self._left[len(parts[-1]) :]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)


class RowStore(Protocol):
    """One layer's data on disk, of which some rows are held at a time."""

    def read(self, rows: np.ndarray) -> Any:
        """Read ascending rows; called from another thread."""
        ...

    def hold(self, part: Any) -> None:
        """Serve the rows that `read` returned, and no others."""
        ...


class Prefetch:
    """Reads the rows of the next window in a thread while the present one is worked on.

    Parameters
    ----------
    stores
        Where each layer's rows are read, None for a layer that is in memory.
    """

    def __init__(self, stores: Sequence[RowStore | None]) -> None:
        self._stores = list(enumerate(stores))

    def __call__(self, windows: Iterable[Window]) -> Iterator[Minibatch]:
        """Yield the minibatches, each while its rows are held."""
        planned = iter(windows)
        first = next(planned, None)
        if first is None:
            return
        with ThreadPoolExecutor(1, "scbraid-read") as thread:
            ahead = thread.submit(self._read, first)
            for following in itertools.chain(planned, [None]):
                window, parts = ahead.result()
                if following is not None:
                    ahead = thread.submit(self._read, following)
                for batch in window:
                    # Each time, because validation between two of them holds others.
                    for store, part in parts:
                        store.hold(part)
                    yield batch

    def _read(self, window: Window) -> tuple[Window, list[tuple[RowStore, Any]]]:
        parts = []
        for k, store in self._stores:
            if store is not None:
                rows = np.unique(np.concatenate([rows[:, k] for rows, _ in window]))
                parts.append((store, store.read(rows)))
        return window, parts
