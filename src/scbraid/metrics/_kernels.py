"""Compiled loops over tiles of distances, neighbour lists and graphs.

This module imports numba and is itself imported where a loop runs, never before. Compiled code is
kept on disk, beside this file or where ``NUMBA_CACHE_DIR`` says. The relaxed arithmetic allows sums
to be reordered, so that they run eight or sixteen at a time; infinities and NaN keep their
meaning, because infinity marks a cell's pair with itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

try:
    import numba
    from llvmlite import ir
    from numba import types
    from numba.core import cgutils
    from numba.extending import intrinsic
except ImportError as error:  # pragma: no cover - depends on the environment
    msg = "metrics over pairs of cells need numba; install scbraid[workflow] (or numba)"
    raise ImportError(msg) from error

_RELAXED = {"reassoc", "contract", "nsz", "arcp"}
_WORD = 64  # comparisons made at once
PAIRS = 64  # of a chunk
_ONE = np.uint64(1)
_HALF = np.uint64(32)  # bits of a key that are its name
_FLAGS = np.uint32(3)


def compiled(loop: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a loop on its first call, or take it from disk."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": _RELAXED}
    try:
        return numba.njit(cache=True, **options)(loop)
    except RuntimeError:
        # No folder to write to: compile in every process.
        return numba.njit(**options)(loop)


def instructions(write: Callable[..., Any]) -> Callable[..., Any]:
    """Let compiled loops call a function that writes its instructions itself."""
    return intrinsic(write)


@compiled
def add_group_distances(
    tile: np.ndarray,
    row_starts: np.ndarray,
    row_groups: np.ndarray,
    column_starts: np.ndarray,
    column_groups: np.ndarray,
    slots: np.ndarray,
    row_sums: np.ndarray,
    column_sums: np.ndarray,
    mirrored: bool,
) -> None:
    """Add square roots of a tile to the sums of its rows and, mirrored, of its columns.

    Rows and columns come in runs of one group; ``slots[group]`` holds the column of the sums that
    every cell adds to, and two more that only cells with the same first slot add to (-1: none).
    """
    n_columns = tile.shape[1]
    waiting = np.zeros(n_columns, tile.dtype)
    zero = tile.dtype.type(0)
    for a in range(len(row_starts) - 1):
        mine = row_groups[a]
        for top in range(row_starts[a], row_starts[a + 1], 256):
            bottom = min(top + 256, row_starts[a + 1])
            for i in range(top, bottom):
                for b in range(len(column_starts) - 1):
                    first, last = column_starts[b], column_starts[b + 1]
                    values = tile[i, first:last]
                    total = zero
                    if mirrored:
                        below = waiting[first:last]
                        for j in range(len(values)):
                            distance = np.sqrt(max(values[j], zero))
                            total += distance
                            below[j] += distance
                    else:
                        for j in range(len(values)):
                            total += np.sqrt(max(values[j], zero))
                    theirs = column_groups[b]
                    row_sums[i, slots[theirs, 0]] += total
                    if slots[theirs, 0] == slots[mine, 0]:
                        for s in range(1, 3):
                            if slots[theirs, s] >= 0:
                                row_sums[i, slots[theirs, s]] += total
            if mirrored:
                for b in range(len(column_starts) - 1):
                    same = slots[column_groups[b], 0] == slots[mine, 0]
                    for j in range(column_starts[b], column_starts[b + 1]):
                        column_sums[j, slots[mine, 0]] += waiting[j]
                        if same:
                            for s in range(1, 3):
                                if slots[mine, s] >= 0:
                                    column_sums[j, slots[mine, s]] += waiting[j]
                        waiting[j] = zero


@compiled
def count_closer(
    tile: np.ndarray,
    row_limits: np.ndarray,
    column_limits: np.ndarray,
    row_counts: np.ndarray,
    column_counts: np.ndarray,
) -> None:
    """Count the values of a tile below the limit of their row and below that of their column."""
    n_columns = tile.shape[1]
    below = np.zeros(n_columns, np.int32)
    for i in range(tile.shape[0]):
        values = tile[i]
        limit = row_limits[i]
        total = np.int32(0)
        for j in range(n_columns):
            total += np.int32(values[j] < limit)
            below[j] += np.int32(values[j] < column_limits[j])
        row_counts[i] += total
    for j in range(n_columns):
        column_counts[j] += below[j]


@compiled
def select_smallest(keys: np.ndarray, n_keys: int, k: int) -> None:
    """Bring the `k` smallest of the first `n_keys` keys to the front, the largest of them last."""
    low, high = 0, n_keys - 1
    target = k - 1
    while low < high:
        # Median of three as the pivot: neither sorted nor reversed keys are a bad case.
        x, y, z = keys[low], keys[(low + high) // 2], keys[high]
        pivot = max(min(x, y), min(max(x, y), z))
        # Every key is swapped, wanted or not: a branch on random keys costs more than a swap.
        place = low
        for i in range(low, high + 1):
            x = keys[i]
            keys[i] = keys[place]
            keys[place] = x
            place += x < pivot
        if target < place:
            high = place - 1
        elif place > low:
            low = place
        else:
            # Nothing is below the pivot: bring its equals to the front.
            for i in range(low, high + 1):
                x = keys[i]
                keys[i] = keys[place]
                keys[place] = x
                place += x == pivot
            if target < place:
                return
            low = place


@compiled
def _bits(value: float) -> np.uint32:
    # The bits of a float32 that is not negative sort as the number does.
    return np.float32(max(value, 0.0)).view(np.uint32)


@compiled
def _number(bits: np.uint32) -> np.float32:
    return np.uint32(bits).view(np.float32)


# Sixty-four comparisons are made at once and become the bits of one number, so that the few values
# that a list wants are found without a look at the others. What is done with each of them stands
# in the collectors themselves: to hand an array to a function counts references to it, which
# costs more than to put a value on a list.


@instructions
def _within(typing: Any, tile: Any, i: Any, first: Any, limit: Any) -> Any:
    """Mark, of the up to 64 columns of row `i` from `first` on, those that are within a limit.

    `limit` is one number, or an array that holds a limit for every column. Bit 0 of the result
    stands for column `first`.
    """
    each = isinstance(limit, types.Array)
    if tile.layout != "C" or tile.ndim != 2 or (each and (limit.layout != "C" or limit.ndim != 1)):
        msg = "tiles and limits are contiguous"
        raise TypeError(msg)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(tile)(context, builder, arguments[0])
        n_columns = cgutils.unpack_tuple(builder, array.shape)[1]
        row, column = arguments[1:3]
        place = builder.gep(array.data, [builder.add(builder.mul(row, n_columns), column)])
        limits = None
        if each:
            others = context.make_array(limit)(context, builder, arguments[3]).data
            limits = builder.gep(others, [column])
        left = builder.sub(n_columns, column)
        bits = cgutils.alloca_once_value(builder, ir.Constant(ir.IntType(_WORD), 0))
        whole = builder.icmp_signed(">=", left, ir.Constant(left.type, _WORD))
        with builder.if_else(whole, likely=True) as (all_of_them, some_of_them):
            with all_of_them:
                values = _load(context, builder, place, tile)
                if limits is None:
                    width = ir.VectorType(ir.IntType(32), _WORD)
                    nothing = ir.Constant(values.type, ir.Undefined)
                    zero = ir.Constant(ir.IntType(32), 0)
                    one = builder.insert_element(nothing, arguments[3], zero)
                    bound = builder.shuffle_vector(one, nothing, ir.Constant(width, [0] * _WORD))
                else:
                    bound = _load(context, builder, limits, limit)
                    if bound.type != values.type:
                        bound = builder.fpext(bound, values.type)
                marks = builder.fcmp_ordered("<=", values, bound)
                builder.store(builder.bitcast(marks, ir.IntType(_WORD)), bits)
            with some_of_them, cgutils.for_range(builder, left) as loop:
                value = builder.load(builder.gep(place, [loop.index]))
                bound = arguments[3]
                if limits is not None:
                    bound = builder.load(builder.gep(limits, [loop.index]))
                    if bound.type != value.type:
                        bound = builder.fpext(bound, value.type)
                mark = builder.zext(builder.fcmp_ordered("<=", value, bound), ir.IntType(_WORD))
                mark = builder.shl(mark, loop.index)
                builder.store(builder.or_(builder.load(bits), mark), bits)
        return builder.load(bits)

    return types.uint64(tile, types.intp, types.intp, limit if each else tile.dtype), generate


def _load(context: Any, builder: Any, place: Any, kind: Any) -> Any:
    """Load 64 neighbouring values of an array."""
    lanes = ir.VectorType(context.get_value_type(kind.dtype), _WORD)
    address = builder.bitcast(place, lanes.as_pointer())
    return builder.load(address, align=kind.dtype.bitwidth // 8)


@instructions
def _lowest(typing: Any, bits: Any) -> Any:
    """Place of the lowest bit that is set; one must be."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.intp(types.uint64), generate


@compiled
def collect_near(
    tile: np.ndarray,
    mirrored: bool,
    row_names: np.ndarray,
    row_keys: np.ndarray,
    row_counts: np.ndarray,
    row_limits: np.ndarray,
    row_scan: np.ndarray,
    column_names: np.ndarray,
    column_keys: np.ndarray,
    column_counts: np.ndarray,
    column_limits: np.ndarray,
    column_scan: np.ndarray,
    k: int,
) -> None:
    """Offer the small values of a tile, with names, to the lists of rows and, mirrored, columns.

    A list holds (distance, name); a full one is shortened to its `k` smallest.
    """
    n_rows, n_columns = tile.shape
    for i in range(n_rows):
        scan, limit, n_keys = row_scan[i], row_limits[i], row_counts[i]
        for first in range(0, n_columns, _WORD):
            bits = _within(tile, i, first, scan)
            while bits != 0:
                j = first + _lowest(bits)
                bits &= bits - _ONE
                key = (np.uint64(_bits(tile[i, j])) << _HALF) | np.uint64(column_names[j])
                if key <= limit:
                    row_keys[i, n_keys] = key
                    n_keys += 1
                    if n_keys == row_keys.shape[1]:
                        select_smallest(row_keys[i], n_keys, k)
                        n_keys = k
                        limit = row_keys[i, k - 1]
        row_counts[i], row_limits[i] = n_keys, limit
        row_scan[i] = _number(np.uint32(limit >> _HALF))
        if not mirrored:
            continue
        name = np.uint64(row_names[i])
        for first in range(0, n_columns, _WORD):
            bits = _within(tile, i, first, column_scan)
            while bits != 0:
                j = first + _lowest(bits)
                bits &= bits - _ONE
                key = (np.uint64(_bits(tile[i, j])) << _HALF) | name
                if key <= column_limits[j]:
                    n_keys = column_counts[j]
                    column_keys[j, n_keys] = key
                    n_keys += 1
                    if n_keys == column_keys.shape[1]:
                        select_smallest(column_keys[j], n_keys, k)
                        n_keys = k
                        limit = column_keys[j, k - 1]
                        column_limits[j] = limit
                        column_scan[j] = _number(np.uint32(limit >> _HALF))
                    column_counts[j] = n_keys


@compiled
def _below(bits: np.uint32) -> np.float32:
    """The largest number below that of some bits; nothing is below 0."""
    return _number(np.uint32(bits - np.uint32(1))) if bits > 0 else np.float32(-1.0)


@compiled
def collect_deep(
    tile: np.ndarray,
    mirrored: bool,
    row_marks: np.ndarray,
    row_keys: np.ndarray,
    row_counts: np.ndarray,
    row_scan: np.ndarray,
    column_marks: np.ndarray,
    column_keys: np.ndarray,
    column_counts: np.ndarray,
    column_scan: np.ndarray,
    k: int,
) -> None:
    """Offer the small values of a tile, with marks, to the lists of rows and, mirrored, columns.

    A list holds (distance, which of both marks are equal); a full one is shortened to its `k`
    smallest, and equal distances beyond the k-th are of no use to it any more.
    """
    n_rows, n_columns = tile.shape
    for i in range(n_rows):
        one, two = row_marks[i, 0], row_marks[i, 1]
        scan, n_keys = row_scan[i], row_counts[i]
        for first in range(0, n_columns, _WORD):
            bits = _within(tile, i, first, scan)
            while bits != 0:
                j = first + _lowest(bits)
                bits &= bits - _ONE
                flags = np.uint32(column_marks[j, 0] == one)
                flags |= np.uint32(column_marks[j, 1] == two) << np.uint32(1)
                row_keys[i, n_keys] = (_bits(tile[i, j]) & ~_FLAGS) | flags
                n_keys += 1
                if n_keys == row_keys.shape[1]:
                    select_smallest(row_keys[i], n_keys, k)
                    n_keys = k
                    row_scan[i] = _below(np.uint32(row_keys[i, k - 1] & ~_FLAGS))
        row_counts[i] = n_keys
        if not mirrored:
            continue
        for first in range(0, n_columns, _WORD):
            bits = _within(tile, i, first, column_scan)
            while bits != 0:
                j = first + _lowest(bits)
                bits &= bits - _ONE
                flags = np.uint32(column_marks[j, 0] == one)
                flags |= np.uint32(column_marks[j, 1] == two) << np.uint32(1)
                n_keys = column_counts[j]
                column_keys[j, n_keys] = (_bits(tile[i, j]) & ~_FLAGS) | flags
                n_keys += 1
                if n_keys == column_keys.shape[1]:
                    select_smallest(column_keys[j], n_keys, k)
                    n_keys = k
                    column_scan[j] = _below(np.uint32(column_keys[j, k - 1] & ~_FLAGS))
                column_counts[j] = n_keys


@compiled
def shorten(keys: np.ndarray, counts: np.ndarray, k: int) -> None:
    """Bring the `k` smallest keys of every list to its front, in no order."""
    for i in range(len(keys)):
        if counts[i] > k:
            select_smallest(keys[i], counts[i], k)
            counts[i] = k


@compiled
def average_precisions(keys: np.ndarray, k: int, precisions: np.ndarray) -> None:
    """Average precision of the first flag along sorted keys."""
    for i in range(len(keys)):
        found = 0
        total = 0.0
        for rank in range(k):
            if keys[i, rank] & 1:
                found += 1
                total += found / (rank + 1)
        precisions[i] = total / found if found > 0 else 0.0


@compiled
def count_second_flags(keys: np.ndarray, k: int, counts: np.ndarray) -> None:
    """Count the second flag among the first `k` keys."""
    for i in range(len(keys)):
        total = 0
        for rank in range(k):
            total += (keys[i, rank] >> 1) & 1
        counts[i] = total


@compiled
def refine(
    X: np.ndarray,
    Y: np.ndarray,
    indices: np.ndarray,
    k: int,
    found: np.ndarray,
    lengths: np.ndarray,
) -> None:
    """Sort lists of candidates by exact distance, then index, and keep `k`."""
    n_candidates = indices.shape[1]
    distances = np.empty(n_candidates)
    order = np.empty(n_candidates, np.int64)
    for i in range(len(X)):
        mine = X[i]
        for a in range(n_candidates):
            other = Y[indices[i, a]]
            total = 0.0
            for d in range(len(mine)):
                difference = np.float64(mine[d]) - np.float64(other[d])
                total += difference * difference
            # Nearly sorted already: insertion moves little.
            b = a
            index = indices[i, a]
            while b > 0 and (
                distances[b - 1] > total or (distances[b - 1] == total and order[b - 1] > index)
            ):
                distances[b] = distances[b - 1]
                order[b] = order[b - 1]
                b -= 1
            distances[b] = total
            order[b] = index
        for a in range(k):
            found[i, a] = order[a]
            lengths[i, a] = np.sqrt(distances[a])


@compiled
def tighten(lists: np.ndarray, counts: np.ndarray, scan: np.ndarray, start: int, rank: int) -> None:
    """Keep the `rank` smallest of every list from `start` on, and take nothing above them."""
    for i in range(start, len(lists)):
        if counts[i] > rank:
            select_smallest(lists[i], counts[i], rank)
            counts[i] = rank
            scan[i] = _number(np.uint32(lists[i, rank - 1]))


@compiled
def _drop_far(pool: np.ndarray, chunks: np.ndarray, i: int, first: float, second: float) -> int:
    """Drop the pairs of a full list that are beyond either limit by now; -1 if none is."""
    width = chunks.shape[1] * pool.shape[1]
    kept = 0
    for a in range(width):
        old, new = chunks[i, a // PAIRS], chunks[i, kept // PAIRS]
        one, two = pool[old, a % PAIRS, 0], pool[old, a % PAIRS, 1]
        if one <= first and two <= second:
            pool[new, kept % PAIRS, 0] = one
            pool[new, kept % PAIRS, 1] = two
            kept += 1
    return kept if kept < width else -1


@compiled
def collect_shared(
    first: np.ndarray,
    second: np.ndarray,
    mirrored: bool,
    row_first: np.ndarray,
    row_first_counts: np.ndarray,
    row_first_scan: np.ndarray,
    row_second: np.ndarray,
    row_second_counts: np.ndarray,
    row_second_scan: np.ndarray,
    row_chunks: np.ndarray,
    row_both_counts: np.ndarray,
    column_first: np.ndarray,
    column_first_counts: np.ndarray,
    column_first_scan: np.ndarray,
    column_second: np.ndarray,
    column_second_counts: np.ndarray,
    column_second_scan: np.ndarray,
    column_chunks: np.ndarray,
    column_both_counts: np.ndarray,
    pool: np.ndarray,
    n_used: np.ndarray,
    k: int,
) -> None:
    """Keep the small values of two tiles of the same pairs, and the pairs small in both.

    Lists of pairs take chunks of a common pool as they grow; `n_used` of them are taken. A list
    that is too short for its ties gets the count -1: its row is to be done in another way.
    """
    n_rows, n_columns = first.shape
    width = row_chunks.shape[1] * PAIRS
    for i in range(n_rows):
        here, there = row_first_scan[i], row_second_scan[i]
        n_first, n_second, n_both = row_first_counts[i], row_second_counts[i], row_both_counts[i]
        for start in range(0, n_columns, _WORD):
            near = _within(first, i, start, here)
            other = _within(second, i, start, there)
            both = near & other
            while near != 0:
                j = start + _lowest(near)
                near &= near - _ONE
                row_first[i, n_first] = _bits(first[i, j])
                n_first += 1
                if n_first == row_first.shape[1]:
                    select_smallest(row_first[i], n_first, k)
                    n_first = k
                    row_first_scan[i] = _number(np.uint32(row_first[i, k - 1]))
            while other != 0:
                j = start + _lowest(other)
                other &= other - _ONE
                row_second[i, n_second] = _bits(second[i, j])
                n_second += 1
                if n_second == row_second.shape[1]:
                    select_smallest(row_second[i], n_second, k)
                    n_second = k
                    row_second_scan[i] = _number(np.uint32(row_second[i, k - 1]))
            while both != 0 and n_both >= 0:
                j = start + _lowest(both)
                both &= both - _ONE
                chunk = row_chunks[i, n_both // PAIRS]
                if chunk < 0:
                    chunk = n_used[0]
                    n_used[0] += 1
                    row_chunks[i, n_both // PAIRS] = chunk
                pool[chunk, n_both % PAIRS, 0] = first[i, j]
                pool[chunk, n_both % PAIRS, 1] = second[i, j]
                n_both += 1
                if n_both == width:
                    n_both = _drop_far(pool, row_chunks, i, row_first_scan[i], row_second_scan[i])
        row_first_counts[i], row_second_counts[i], row_both_counts[i] = n_first, n_second, n_both
        if not mirrored:
            continue
        for start in range(0, n_columns, _WORD):
            near = _within(first, i, start, column_first_scan)
            other = _within(second, i, start, column_second_scan)
            both = near & other
            while near != 0:
                j = start + _lowest(near)
                near &= near - _ONE
                n_first = column_first_counts[j]
                column_first[j, n_first] = _bits(first[i, j])
                n_first += 1
                if n_first == column_first.shape[1]:
                    select_smallest(column_first[j], n_first, k)
                    n_first = k
                    column_first_scan[j] = _number(np.uint32(column_first[j, k - 1]))
                column_first_counts[j] = n_first
            while other != 0:
                j = start + _lowest(other)
                other &= other - _ONE
                n_second = column_second_counts[j]
                column_second[j, n_second] = _bits(second[i, j])
                n_second += 1
                if n_second == column_second.shape[1]:
                    select_smallest(column_second[j], n_second, k)
                    n_second = k
                    column_second_scan[j] = _number(np.uint32(column_second[j, k - 1]))
                column_second_counts[j] = n_second
            while both != 0:
                j = start + _lowest(both)
                both &= both - _ONE
                n_both = column_both_counts[j]
                if n_both < 0:
                    continue
                chunk = column_chunks[j, n_both // PAIRS]
                if chunk < 0:
                    chunk = n_used[0]
                    n_used[0] += 1
                    column_chunks[j, n_both // PAIRS] = chunk
                pool[chunk, n_both % PAIRS, 0] = first[i, j]
                pool[chunk, n_both % PAIRS, 1] = second[i, j]
                n_both += 1
                if n_both == width:
                    n_both = _drop_far(
                        pool, column_chunks, j, column_first_scan[j], column_second_scan[j]
                    )
                column_both_counts[j] = n_both


@compiled
def count_shared(
    pool: np.ndarray,
    chunks: np.ndarray,
    both_counts: np.ndarray,
    first_limits: np.ndarray,
    second_limits: np.ndarray,
    shared: np.ndarray,
) -> None:
    """Count the pairs of every list that are within both final limits."""
    for i in range(len(chunks)):
        total = 0
        for a in range(both_counts[i]):
            chunk, b = chunks[i, a // PAIRS], a % PAIRS
            one, two = pool[chunk, b, 0], pool[chunk, b, 1]
            total += one <= first_limits[i] and two <= second_limits[i]
        shared[i] = total


@compiled
def simpson_indices(
    distances: np.ndarray,
    indices: np.ndarray,
    codes: np.ndarray,
    n_codes: np.ndarray,
    perplexity: float,
    simpson: np.ndarray,
) -> None:
    """Simpson index of several label sets among neighbours weighted to one perplexity.

    Weights are ``exp(-beta * distance)``, beta such that their entropy is the logarithm of the
    perplexity; beta does not depend on labels and is found once for all sets.
    """
    n_cells, k = distances.shape
    n_sets = len(codes)
    target = np.log(perplexity)
    weights = np.empty(k)
    excess = np.empty(k)
    shares = np.zeros(max(n_codes.max(), 1))
    guess = 1.0
    for i in range(n_cells):
        nearest = np.float64(distances[i, 0])
        mean = 0.0
        for a in range(k):
            excess[a] = distances[i, a] - nearest
            mean += excess[a]
        mean /= k
        at_nearest = 0
        for a in range(k):
            at_nearest += excess[a] == 0.0
        if mean == 0.0 or at_nearest >= perplexity:
            # No beta reaches so low an entropy; the limit shares the weight among the nearest.
            for a in range(k):
                weights[a] = 1.0 if excess[a] == 0.0 else 0.0
        else:
            # Newton's steps on log(beta), kept between bounds that close in.
            beta = guess / mean
            low, high = 0.0, np.inf
            for _ in range(200):
                total = first = second = 0.0
                for a in range(k):
                    weight = np.exp(-beta * excess[a])
                    weights[a] = weight
                    total += weight
                    first += weight * excess[a]
                    second += weight * excess[a] * excess[a]
                first /= total
                second /= total
                error = np.log(total) + beta * first - target
                if abs(error) < 1e-9:
                    break
                if error > 0:
                    low = beta
                else:
                    high = beta
                slope = beta * beta * (second - first * first)
                step = beta * np.exp(min(max(error / slope, -2.0), 2.0)) if slope > 0 else high
                if not low < step < high:
                    step = beta * 4.0 if high == np.inf else 0.5 * (low + high)
                if step == beta:
                    break
                beta = step
            guess = beta * mean
        total = 0.0
        for a in range(k):
            total += weights[a]
        for s in range(n_sets):
            shares[: n_codes[s]] = 0.0
            for a in range(k):
                shares[codes[s, indices[i, a]]] += weights[a] / total
            index = 0.0
            for c in range(n_codes[s]):
                index += shares[c] * shares[c]
            simpson[s, i] = index
