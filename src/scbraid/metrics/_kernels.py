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
except ImportError as error:  # pragma: no cover - depends on the environment
    msg = "metrics over pairs of cells need numba; install scbraid[workflow] (or numba)"
    raise ImportError(msg) from error

_RELAXED = {"reassoc", "contract", "nsz", "arcp"}
_WORD = 8  # bytes of a mask that are looked at together
_FLAGS = np.uint32(3)


def compiled(loop: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a loop on its first call, or take it from disk."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": _RELAXED}
    try:
        return numba.njit(cache=True, **options)(loop)
    except RuntimeError:
        # No folder to write to: compile in every process.
        return numba.njit(**options)(loop)


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


# Small loops that are compiled by themselves run sixteen values at a time; within a loop that
# writes to many arrays they would not. None of them has a branch that cannot be foreseen: a wrong
# guess of the processor costs more than all that is done with a value.


@compiled
def _places_of(mask: np.ndarray, words: np.ndarray, places: np.ndarray) -> int:
    """Write down where a mask is set; eight bytes that are all 0 are skipped."""
    n_places = 0
    for word in range(len(words)):
        if words[word] != 0:
            for j in range(word * _WORD, (word + 1) * _WORD):
                places[n_places] = j
                n_places += mask[j]
    return n_places


@compiled
def _mark(values: np.ndarray, limit: float, mask: np.ndarray) -> None:
    for j in range(len(values)):
        mask[j] = 1 if values[j] <= limit else 0


@compiled
def _mark_columns(values: np.ndarray, limits: np.ndarray, mask: np.ndarray) -> None:
    for j in range(len(values)):
        mask[j] = 1 if values[j] <= limits[j] else 0


@compiled
def _mark_both(mask: np.ndarray, other: np.ndarray, both: np.ndarray) -> None:
    for j in range(len(mask)):
        both[j] = mask[j] & other[j]


@compiled
def _put_near(
    values: np.ndarray,
    places: np.ndarray,
    n_places: int,
    names: np.ndarray,
    keys: np.ndarray,
    counts: np.ndarray,
    limits: np.ndarray,
    scan: np.ndarray,
    i: int,
    k: int,
) -> None:
    """Put (distance, name) of some columns on the list of row `i`; shorten it when it is full."""
    mine, n_keys, limit = keys[i], counts[i], limits[i]
    for a in range(n_places):
        j = places[a]
        key = (np.uint64(_bits(values[j])) << np.uint64(32)) | np.uint64(names[j])
        if key <= limit:
            mine[n_keys] = key
            n_keys += 1
            if n_keys == len(mine):
                select_smallest(mine, n_keys, k)
                n_keys = k
                limit = mine[k - 1]
    counts[i], limits[i] = n_keys, limit
    scan[i] = _number(np.uint32(limit >> np.uint64(32)))


@compiled
def _put_near_columns(
    values: np.ndarray,
    places: np.ndarray,
    n_places: int,
    name: int,
    keys: np.ndarray,
    counts: np.ndarray,
    limits: np.ndarray,
    scan: np.ndarray,
    k: int,
) -> None:
    """Put (distance, name) of one row on the lists of some columns."""
    for a in range(n_places):
        j = places[a]
        key = (np.uint64(_bits(values[j])) << np.uint64(32)) | np.uint64(name)
        if key <= limits[j]:
            n_keys = counts[j]
            keys[j, n_keys] = key
            n_keys += 1
            if n_keys == keys.shape[1]:
                select_smallest(keys[j], n_keys, k)
                n_keys = k
                limits[j] = keys[j, k - 1]
                scan[j] = _number(np.uint32(limits[j] >> np.uint64(32)))
            counts[j] = n_keys


@compiled
def _below(bits: np.uint32) -> np.float32:
    """The largest number below that of some bits; nothing is below 0."""
    return _number(np.uint32(bits - np.uint32(1))) if bits > 0 else np.float32(-1.0)


@compiled
def _put_deep(
    values: np.ndarray,
    places: np.ndarray,
    n_places: int,
    mark: np.ndarray,
    marks: np.ndarray,
    keys: np.ndarray,
    counts: np.ndarray,
    scan: np.ndarray,
    i: int,
    k: int,
) -> None:
    """Put (distance, equal marks) of some columns on the list of row `i`."""
    mine, n_keys = keys[i], counts[i]
    first, second = mark[0], mark[1]
    for a in range(n_places):
        j = places[a]
        flags = np.uint32(marks[j, 0] == first) | (np.uint32(marks[j, 1] == second) << np.uint32(1))
        mine[n_keys] = (_bits(values[j]) & ~_FLAGS) | flags
        n_keys += 1
        if n_keys == len(mine):
            select_smallest(mine, n_keys, k)
            n_keys = k
            # Equal distances beyond the k-th are of no use.
            scan[i] = _below(np.uint32(mine[k - 1] & ~_FLAGS))
    counts[i] = n_keys


@compiled
def _put_deep_columns(
    values: np.ndarray,
    places: np.ndarray,
    n_places: int,
    mark: np.ndarray,
    marks: np.ndarray,
    keys: np.ndarray,
    counts: np.ndarray,
    scan: np.ndarray,
    k: int,
) -> None:
    """Put (distance, equal marks) of one row on the lists of some columns."""
    first, second = mark[0], mark[1]
    for a in range(n_places):
        j = places[a]
        flags = np.uint32(marks[j, 0] == first) | (np.uint32(marks[j, 1] == second) << np.uint32(1))
        n_keys = counts[j]
        keys[j, n_keys] = (_bits(values[j]) & ~_FLAGS) | flags
        n_keys += 1
        if n_keys == keys.shape[1]:
            select_smallest(keys[j], n_keys, k)
            n_keys = k
            scan[j] = _below(np.uint32(keys[j, k - 1] & ~_FLAGS))
        counts[j] = n_keys


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
    """Offer the small values of a tile, with names, to the lists of rows and, mirrored, columns."""
    mask = np.zeros((tile.shape[1] + _WORD - 1) // _WORD * _WORD, np.uint8)
    words = mask.view(np.uint64)
    places = np.empty(len(mask) + 1, np.int64)
    for i in range(tile.shape[0]):
        values = tile[i]
        _mark(values, row_scan[i], mask)
        n_places = _places_of(mask, words, places)
        if n_places > 0:
            _put_near(
                values, places, n_places, column_names, row_keys, row_counts, row_limits, row_scan,
                i, k,
            )  # fmt: skip
        if mirrored:
            _mark_columns(values, column_scan, mask)
            n_places = _places_of(mask, words, places)
            if n_places > 0:
                _put_near_columns(
                    values, places, n_places, row_names[i], column_keys, column_counts,
                    column_limits, column_scan, k,
                )  # fmt: skip


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
    """Offer the small values of a tile, with marks, to the lists of rows and, mirrored, columns."""
    mask = np.zeros((tile.shape[1] + _WORD - 1) // _WORD * _WORD, np.uint8)
    words = mask.view(np.uint64)
    places = np.empty(len(mask) + 1, np.int64)
    for i in range(tile.shape[0]):
        values = tile[i]
        _mark(values, row_scan[i], mask)
        n_places = _places_of(mask, words, places)
        if n_places > 0:
            _put_deep(
                values, places, n_places, row_marks[i], column_marks, row_keys, row_counts,
                row_scan, i, k,
            )  # fmt: skip
        if mirrored:
            _mark_columns(values, column_scan, mask)
            n_places = _places_of(mask, words, places)
            if n_places > 0:
                _put_deep_columns(
                    values, places, n_places, row_marks[i], column_marks, column_keys,
                    column_counts, column_scan, k,
                )  # fmt: skip


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
def _put_number(
    values: np.ndarray,
    places: np.ndarray,
    n_places: int,
    lists: np.ndarray,
    counts: np.ndarray,
    scan: np.ndarray,
    i: int,
    k: int,
) -> None:
    """Put the distances of some columns on the list of row `i`."""
    mine, n_keys = lists[i], counts[i]
    for a in range(n_places):
        mine[n_keys] = _bits(values[places[a]])
        n_keys += 1
        if n_keys == len(mine):
            select_smallest(mine, n_keys, k)
            n_keys = k
            scan[i] = _number(np.uint32(mine[k - 1]))
    counts[i] = n_keys


@compiled
def _put_number_columns(
    values: np.ndarray,
    places: np.ndarray,
    n_places: int,
    lists: np.ndarray,
    counts: np.ndarray,
    scan: np.ndarray,
    k: int,
) -> None:
    """Put the distances of one row on the lists of some columns."""
    for a in range(n_places):
        j = places[a]
        n_keys = counts[j]
        lists[j, n_keys] = _bits(values[j])
        n_keys += 1
        if n_keys == lists.shape[1]:
            select_smallest(lists[j], n_keys, k)
            n_keys = k
            scan[j] = _number(np.uint32(lists[j, k - 1]))
        counts[j] = n_keys


@compiled
def tighten(lists: np.ndarray, counts: np.ndarray, scan: np.ndarray, start: int, rank: int) -> None:
    """Keep the `rank` smallest of every list from `start` on, and take nothing above them."""
    for i in range(start, len(lists)):
        if counts[i] > rank:
            select_smallest(lists[i], counts[i], rank)
            counts[i] = rank
            scan[i] = _number(np.uint32(lists[i, rank - 1]))


@compiled
def _put_both(
    first: float,
    second: float,
    both: np.ndarray,
    counts: np.ndarray,
    first_scan: np.ndarray,
    second_scan: np.ndarray,
    i: int,
) -> None:
    """Put a pair that is near in both spaces on the list of row `i`."""
    n_pairs = counts[i]
    if n_pairs < 0:
        return
    both[i, n_pairs, 0] = first
    both[i, n_pairs, 1] = second
    n_pairs += 1
    if n_pairs == both.shape[1]:
        # Limits have fallen since: forget what is above them now.
        kept = 0
        for a in range(n_pairs):
            if both[i, a, 0] <= first_scan[i] and both[i, a, 1] <= second_scan[i]:
                both[i, kept, 0] = both[i, a, 0]
                both[i, kept, 1] = both[i, a, 1]
                kept += 1
        # Too many ties for the list: the row is to be done in another way.
        n_pairs = kept if kept < both.shape[1] else -1
    counts[i] = n_pairs


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
    row_both: np.ndarray,
    row_both_counts: np.ndarray,
    column_first: np.ndarray,
    column_first_counts: np.ndarray,
    column_first_scan: np.ndarray,
    column_second: np.ndarray,
    column_second_counts: np.ndarray,
    column_second_scan: np.ndarray,
    column_both: np.ndarray,
    column_both_counts: np.ndarray,
    k: int,
) -> None:
    """Keep the small values of two tiles of the same pairs, and the pairs small in both."""
    width = (first.shape[1] + _WORD - 1) // _WORD * _WORD
    mask, other, both = (
        np.zeros(width, np.uint8),
        np.zeros(width, np.uint8),
        np.zeros(width, np.uint8),
    )
    words, other_words, both_words = (
        mask.view(np.uint64),
        other.view(np.uint64),
        both.view(np.uint64),
    )
    places = np.empty(width + 1, np.int64)
    for i in range(first.shape[0]):
        values, others = first[i], second[i]
        _mark(values, row_first_scan[i], mask)
        _mark(others, row_second_scan[i], other)
        _mark_both(mask, other, both)
        n_places = _places_of(mask, words, places)
        _put_number(values, places, n_places, row_first, row_first_counts, row_first_scan, i, k)
        n_places = _places_of(other, other_words, places)
        _put_number(others, places, n_places, row_second, row_second_counts, row_second_scan, i, k)
        for a in range(_places_of(both, both_words, places)):
            j = places[a]
            _put_both(
                values[j], others[j], row_both, row_both_counts, row_first_scan, row_second_scan, i
            )
        if mirrored:
            _mark_columns(values, column_first_scan, mask)
            _mark_columns(others, column_second_scan, other)
            _mark_both(mask, other, both)
            n_places = _places_of(mask, words, places)
            _put_number_columns(
                values, places, n_places, column_first, column_first_counts, column_first_scan, k
            )
            n_places = _places_of(other, other_words, places)
            _put_number_columns(
                others, places, n_places, column_second, column_second_counts, column_second_scan, k
            )
            for a in range(_places_of(both, both_words, places)):
                j = places[a]
                _put_both(
                    values[j], others[j], column_both, column_both_counts, column_first_scan,
                    column_second_scan, j,
                )  # fmt: skip


@compiled
def count_shared(
    both: np.ndarray,
    both_counts: np.ndarray,
    first_limits: np.ndarray,
    second_limits: np.ndarray,
    shared: np.ndarray,
) -> None:
    """Count the pairs of every list that are within both final limits."""
    for i in range(len(both)):
        total = 0
        for a in range(both_counts[i]):
            total += both[i, a, 0] <= first_limits[i] and both[i, a, 1] <= second_limits[i]
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
