"""One pass over all pairs of cells that feeds any number of consumers.

A consumer opens for some rows, is handed every tile of their pairs, and closes; what it keeps is
small. Of the pairs of a set with itself each tile is made once and serves its rows and, mirrored,
its columns. Where the consumers' lists would not fit in memory all at once, rows are taken in bands
and every pair is made twice: memory is then bounded whatever the number of cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from scbraid.metrics._pairs import DOUBT, TILE, Frame, Pairs, rounding

# Lists that a pass may keep at a time.
BUDGET = 224 << 20
NEAR_RANK = 15  # distances up to this rank are used as numbers, beyond it only as an order
_SAMPLE = 512  # columns looked at first, to guess how far the k-th is
_CHUNK = 1024
# No finite distance is farther; that of a cell to itself is infinite, so that no list takes it.
LARGEST = np.finfo(np.float32).max
_ALL = np.uint64(0xFFFFFFFF)
MARK_BITS = np.uint32(3)


class Consumer(Protocol):
    """What is done with tiles of squared distances.

    Attributes
    ----------
    bytes_per_row
        Memory of an open row.
    itself
        What a pair of a cell with itself holds in the tiles.
    """

    bytes_per_row: int
    itself: float

    def open(self, rows: slice, pairs: Pairs) -> None:
        """Prepare for tiles of these rows."""

    def add(self, rows: slice, columns: slice, tile: np.ndarray, *, mirrored: bool) -> None:
        """Take in a tile; mirrored, it stands for the pairs (column, row) as well."""

    def close(self, rows: slice) -> None:
        """Finish these rows: all their pairs were seen."""


def sweep(
    pairs: Pairs,
    consumers: Sequence[Consumer],
    *,
    own: np.ndarray | None = None,
    budget: int = BUDGET,
    after: Callable[[slice], None] | None = None,
) -> None:
    """Hand every pair to every consumer.

    Parameters
    ----------
    pairs
        Which pairs.
    consumers
        Who looks at them.
    own
        Column that is the same cell as each row, shape (n_rows,); symmetric pairs know it.
    budget
        Bytes that the consumers' open rows may take.
    after
        Called with the rows that were closed, in order.
    """
    n_rows, n_columns = pairs.shape
    if pairs.symmetric:
        own = np.arange(n_rows)
    per_row = max(sum(consumer.bytes_per_row for consumer in consumers), 1)
    height = n_rows if n_rows * per_row <= budget else max(budget // per_row, 64)
    whole = pairs.symmetric and height >= n_rows
    order = sorted(consumers, key=lambda consumer: consumer.itself)
    buffer = np.empty(min(TILE, n_rows) * min(TILE, n_columns), pairs.dtype)
    for start in range(0, n_rows, height):
        band = slice(start, min(start + height, n_rows))
        for consumer in consumers:
            consumer.open(band, pairs)
        for top in range(band.start, band.stop, TILE):
            rows = slice(top, min(top + TILE, band.stop))
            for first in range(top if whole else 0, n_columns, TILE):
                columns = slice(first, min(first + TILE, n_columns))
                shape = (rows.stop - rows.start, columns.stop - columns.start)
                tile = buffer[: shape[0] * shape[1]].reshape(shape)
                np.matmul(pairs.left[rows], pairs.right[columns].T, out=tile)
                at: tuple[np.ndarray, np.ndarray] | None = None
                if own is not None:
                    mine = own[rows] - first
                    inside = np.flatnonzero((mine >= 0) & (mine < shape[1]))
                    at = (inside, mine[inside])
                for consumer in order:
                    if at is not None and len(at[0]):
                        tile[at] = consumer.itself
                    consumer.add(rows, columns, tile, mirrored=whole and top != first)
        for consumer in consumers:
            consumer.close(band)
        if after is not None:
            after(band)


class GroupSums:
    """Sums of distances from every row to every group of columns.

    Parameters
    ----------
    row_groups, column_groups
        Codes of the rows and of the columns; both come in runs (sorted is best).
    slots
        By group, the columns of the sums that it adds to, shape (n_groups, 3): the first always,
        the others only among cells whose groups have the same first one; -1 for none.
    n_slots
        Columns of the sums.

    Attributes
    ----------
    sums
        float64 of shape (n_rows, n_slots), in the units of the pairs' frame.
    """

    itself = 0.0

    def __init__(
        self, row_groups: np.ndarray, column_groups: np.ndarray, slots: np.ndarray, n_slots: int
    ) -> None:
        self.row_runs, self.column_runs = _Runs(row_groups), _Runs(column_groups)
        self.slots = slots
        # Sums stay until the end whatever the bands are: they take no part in their choice.
        self.bytes_per_row = 0
        self.sums = np.zeros((len(row_groups), n_slots))

    def open(self, rows: slice, pairs: Pairs) -> None:
        """Nothing to prepare."""

    def add(self, rows: slice, columns: slice, tile: np.ndarray, *, mirrored: bool) -> None:
        """Add the distances of a tile."""
        from scbraid.metrics import _kernels

        _kernels.add_group_distances(
            tile,
            *self.row_runs.of(rows),
            *self.column_runs.of(columns),
            self.slots,
            self.sums[rows],
            self.sums[columns] if mirrored else self.sums[:0],
            mirrored,
        )

    def close(self, rows: slice) -> None:
        """Nothing is left to do."""


class _Runs:
    """Runs of equal codes, found once."""

    def __init__(self, codes: np.ndarray) -> None:
        self.codes = codes
        self.starts = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])

    def of(self, part: slice) -> tuple[np.ndarray, np.ndarray]:
        """Where the runs of a part start, and its end, counted from its first; their codes."""
        first = np.searchsorted(self.starts, part.start, "right")
        last = np.searchsorted(self.starts, part.stop, "left")
        inside = self.starts[first:last]
        starts = np.concatenate(([0], inside - part.start, [part.stop - part.start]))
        return starts, self.codes[np.concatenate(([part.start], inside))]


class _Side:
    """Lists of one side of the pairs."""

    def __init__(self, n_rows: int, k_near: int, k_deep: int) -> None:
        # Pages that are never written to take no memory, so a generous width costs little.
        self.near = np.empty((n_rows if k_near else 0, list_width(k_near)), np.uint64)
        self.near_counts = np.zeros(n_rows, np.int32)
        self.near_limits = np.empty(n_rows, np.uint64)
        self.near_scan = np.empty(n_rows, np.float32)
        self.deep = np.empty((n_rows if k_deep else 0, list_width(k_deep)), np.uint32)
        self.deep_counts = np.zeros(n_rows, np.int32)
        self.deep_scan = np.empty(n_rows, np.float32)
        self.start_from(None, None)

    def start_from(self, near: np.ndarray | None, deep: np.ndarray | None) -> None:
        """Start from guessed limits; a list without a guess takes all finite distances."""
        self.near_scan[:] = LARGEST if near is None else np.maximum(near, 0)
        self.deep_scan[:] = LARGEST if deep is None else np.maximum(deep, 0)
        self.near_limits[:] = self.near_scan.view(np.uint32).astype(np.uint64) << np.uint64(32)
        self.near_limits |= _ALL

    def near_part(self, rows: slice) -> tuple[np.ndarray, ...]:
        """Views of some rows, in the order that the compiled loop takes them."""
        return (
            self.near[rows],
            self.near_counts[rows],
            self.near_limits[rows],
            self.near_scan[rows],
        )

    def deep_part(self, rows: slice) -> tuple[np.ndarray, ...]:
        """Views of some rows, in the order that the compiled loop takes them."""
        return self.deep[rows], self.deep_counts[rows], self.deep_scan[rows]


def list_width(k: int) -> int:
    """Length of a list that is shortened to `k` when it is full."""
    return k + max(k // 2, 24)


class NearestLists:
    """The nearest columns of every row.

    Parameters
    ----------
    row_names, column_names
        Number of every row and column; equal distances are taken in their order.
    k_near
        Columns kept with their numbers; 0 for none.
    k_deep
        Columns of which only the order and two marks are kept; 0 for none.
    row_marks, column_marks
        Codes of shape (n, 2). A deep entry keeps, as two bits, whether the first and the second
        code of row and column are equal.
    use
        Called with rows and their deep entries, sorted, when rows are finished.
    guess
        Whether to guess limits from a sample of the columns; a row whose guess was too low is
        listed in `again`.
    columns
        Lists of the nearest rows of every column, for pairs of two different sets.

    Attributes
    ----------
    near
        int32 of shape (n_rows, k_near): numbers of columns, nearest first.
    values
        float32 of shape (n_rows,): a near squared distance (the 15th smallest at most).
    again
        Rows for which too few columns were kept.
    """

    itself = np.inf

    def __init__(
        self,
        row_names: np.ndarray,
        column_names: np.ndarray,
        *,
        k_near: int = 0,
        k_deep: int = 0,
        row_marks: np.ndarray | None = None,
        column_marks: np.ndarray | None = None,
        use: Callable[[np.ndarray, np.ndarray], None] | None = None,
        guess: bool = True,
        columns: NearestLists | None = None,
    ) -> None:
        n_rows = len(row_names)
        none = np.zeros((0, 2), np.int32)
        self.row_names, self.column_names = row_names, column_names
        self.k_near, self.k_deep = k_near, k_deep
        self.row_marks = none if row_marks is None else row_marks
        self.column_marks = none if column_marks is None else column_marks
        self.use = use
        self.guessed = guess
        self.columns = columns
        self.near = np.empty((n_rows, k_near), np.int32)
        self.values = np.full(n_rows, np.inf, np.float32)
        self.again: list[int] = []
        self.bytes_per_row = 8 * list_width(k_near) * (k_near > 0)
        self.bytes_per_row += 4 * list_width(k_deep) * (k_deep > 0)
        self.side = _Side(0, 0, 0)
        self.start = 0

    def open(self, rows: slice, pairs: Pairs) -> None:
        """Make lists for these rows (and, once, for all columns)."""
        self._open(rows, pairs.left, pairs.right)
        if self.columns is not None and rows.start == 0:
            self.columns._open(slice(0, len(pairs.right)), pairs.right, pairs.left)

    def _open(self, rows: slice, queries: np.ndarray, candidates: np.ndarray) -> None:
        self.start = rows.start
        self.side = _Side(rows.stop - rows.start, self.k_near, self.k_deep)
        if self.guessed:
            guesses = guess_limits(queries[rows], candidates, (self.k_near, self.k_deep))
            self.side.start_from(*guesses)

    def add(self, rows: slice, columns: slice, tile: np.ndarray, *, mirrored: bool) -> None:
        """Offer a tile to the lists."""
        from scbraid.metrics import _kernels

        partner = self if mirrored else self.columns
        here = slice(rows.start - self.start, rows.stop - self.start)
        there = slice(0, 0) if partner is None else columns
        side = self.side if partner is None else partner.side
        if self.k_near:
            _kernels.collect_near(
                tile,
                partner is not None,
                self.row_names[rows],
                *self.side.near_part(here),
                self.column_names[columns],
                *side.near_part(there),
                self.k_near,
            )
        if self.k_deep:
            _kernels.collect_deep(
                tile,
                partner is not None,
                self.row_marks[rows],
                *self.side.deep_part(here),
                self.column_marks[columns],
                *side.deep_part(there),
                self.k_deep,
            )

    def close(self, rows: slice) -> None:
        """Sort the lists of these rows."""
        self._close(rows)
        if self.columns is not None and rows.stop == len(self.row_names):
            self.columns._close(slice(0, len(self.column_names)))

    def _close(self, rows: slice) -> None:
        from scbraid.metrics import _kernels

        side = self.side
        short = np.zeros(rows.stop - rows.start, bool)
        if self.k_deep:
            _kernels.shorten(side.deep, side.deep_counts, self.k_deep)
            side.deep[:, : self.k_deep].sort(axis=1)
            short |= side.deep_counts < self.k_deep
            value = side.deep[:, min(self.k_deep, NEAR_RANK) - 1] & ~MARK_BITS
            self.values[rows] = value.view(np.float32)
        if self.use is not None:
            self.use(np.arange(rows.start, rows.stop), side.deep[:, : self.k_deep])
        # Given back before the near lists are worked on.
        side.deep = side.deep[:0].copy()
        if self.k_near:
            _kernels.shorten(side.near, side.near_counts, self.k_near)
            side.near[:, : self.k_near].sort(axis=1)
            short |= side.near_counts < self.k_near
            for start in range(0, len(side.near), _CHUNK):
                names = side.near[start : start + _CHUNK, : self.k_near] & _ALL
                self.near[rows.start + start : rows.start + start + len(names)] = names
            value = side.near[:, min(self.k_near, NEAR_RANK) - 1] >> np.uint64(32)
            self.values[rows] = value.astype(np.uint32).view(np.float32)
        self.again.extend(np.flatnonzero(short) + rows.start)
        self.side = _Side(0, 0, 0)


def guess_limits(
    queries: np.ndarray, candidates: np.ndarray, ks: Sequence[int]
) -> list[np.ndarray | None]:
    """Guess from above how far the k-th nearest candidate of each query is.

    Parameters
    ----------
    queries, candidates
        Operands of a product that is a squared distance, (n, n_dims + 2) and (m, n_dims + 2).
    ks
        Ranks; 0 for none.

    Returns
    -------
    list
        For each k a squared distance a query, or None where there are too few candidates to guess.

    Notes
    -----
    A regular sample of the candidates holds about ``k s / m`` of the k nearest; the sampled
    distance more than two standard deviations further is below the k-th in less than one row of a
    hundred, and such rows are noticed by their short lists.
    """
    stride = len(candidates) // _SAMPLE
    ranks: list[int | None] = []
    for k in ks:
        expected = k / max(stride, 1)
        rank = math.ceil(expected + 2 * math.sqrt(expected) + 3)
        ranks.append(rank if k and stride > 1 and 2 * rank * stride < len(candidates) else None)
    used = sorted({rank for rank in ranks if rank is not None})
    found = {rank: np.empty(len(queries), np.float32) for rank in used}
    if used:
        sample = candidates[stride // 2 :: stride].copy()
        for top in range(0, len(queries), _CHUNK):
            some = slice(top, min(top + _CHUNK, len(queries)))
            values = (queries[some] @ sample.T).astype(np.float32, copy=False)
            values.partition(used, axis=1)
            for rank in used:
                found[rank][some] = values[:, rank]
    return [None if rank is None else found[rank] for rank in ranks]


def find_nearest(
    X: np.ndarray,
    Y: np.ndarray | None = None,
    *,
    own: np.ndarray | None = None,
    names: np.ndarray | None = None,
    k_near: int = 0,
    k_deep: int = 0,
    marks: tuple[np.ndarray, np.ndarray] | None = None,
    use: Callable[[np.ndarray, np.ndarray], None] | None = None,
    beside: Sequence[Consumer] = (),
    both: bool = False,
    dtype: type = np.float32,
    budget: int = BUDGET,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Search exhaustively, rows in doubt again in double precision.

    Parameters
    ----------
    X, Y
        Cells that ask, and cells that are searched: `X` itself when None.
    own
        Row of `Y` that is the same cell as each of `X`.
    names
        Numbers of the searched cells, by which equal distances are ordered.
    k_near, k_deep, marks, use
        As of :class:`NearestLists`; marks of rows and of columns. `use` may be called a second time
        for a row.
    beside
        Further consumers of the same pass.
    both
        Whether to search `X` for the cells of `Y` as well.
    dtype
        Precision of the pass.
    budget
        Memory of the lists.

    Returns
    -------
    near : numpy.ndarray
        int32 of shape (n_cells, k_near), nearest first.
    reverse : numpy.ndarray or None
        The same of `Y` in `X`, when `both`.
    """
    frame = Frame(X, X if Y is None else Y)
    # In double precision a pair closer than rounding is at distance 0: cells at one place are ties.
    slack = -rounding(dtype, X.shape[1]) if dtype is np.float64 else 0.0
    pairs = Pairs(X, Y, dtype=dtype, slack=slack, frame=frame)
    if Y is None:
        Y, own = X, np.arange(len(X))
    if names is None:
        names = np.arange(len(Y))
    row_names = np.arange(len(X)) if pairs.symmetric is False else names
    row_marks, column_marks = (None, None) if marks is None else marks
    reverse = None
    if both:
        reverse = NearestLists(names, row_names, k_near=k_near)
    lists = NearestLists(
        row_names,
        names,
        k_near=k_near,
        k_deep=k_deep,
        row_marks=row_marks,
        column_marks=column_marks,
        use=use,
        columns=reverse,
    )
    consumers = [lists] if k_near or k_deep else []
    sweep(pairs, [*consumers, *beside], own=own, budget=budget)
    least = 2 * rounding(dtype, X.shape[1]) / DOUBT
    for one, side, norms in (
        (lists, (X, Y, own, names), pairs.left_norms),
        (reverse, (Y, X, None, row_names), pairs.right_norms),
    ):
        if one is None or not consumers:
            continue
        doubtful = one.values <= least * norms
        doubtful[one.again] = True
        rows = np.flatnonzero(doubtful)
        if rows.size:
            _search_in_double(one, rows, *side, frame=frame, budget=budget)
    return lists.near, None if reverse is None else reverse.near


def _search_in_double(
    lists: NearestLists,
    rows: np.ndarray,
    X: np.ndarray,
    Y: np.ndarray,
    own: np.ndarray | None,
    names: np.ndarray,
    *,
    frame: Frame,
    budget: int,
) -> None:
    """Search again for some rows; every column keeps its number, so that ties go by it."""
    slack = -rounding(np.float64, X.shape[1])
    pairs = Pairs(X[rows], Y, dtype=np.float64, slack=slack, frame=frame)
    k = max(lists.k_near, lists.k_deep)
    again = NearestLists(rows, names, k_near=k, guess=False)
    place = np.empty(int(names.max()) + 1, np.int64)
    place[names] = np.arange(len(names))

    def finish(band: slice) -> None:
        near = again.near[band]
        lists.near[rows[band]] = near[:, : lists.k_near]
        if lists.use is not None:
            theirs = lists.column_marks[place[near[:, : lists.k_deep]]]
            same = theirs == lists.row_marks[rows[band], None]
            lists.use(rows[band], (same[..., 0] + 2 * same[..., 1]).astype(np.uint32))

    sweep(
        pairs,
        [again],
        own=None if own is None else own[rows],
        budget=min(budget, 64 << 20),
        after=finish,
    )
