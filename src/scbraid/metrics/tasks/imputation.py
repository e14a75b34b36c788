"""Imputed accessibility: how well values rank the peaks that were hidden."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse

from scbraid.errors import NotApplicable
from scbraid.metrics.tasks.ranking import auroc, average_precision_score

# Peaks of neighbouring frequencies are joined until a bin has so many.
MIN_BIN = 20
# Types of fewer cells have no mean worth comparing.
MIN_TYPE_CELLS = 10
# Peaks of fewer hidden entries say little by themselves.
MIN_HIDDEN = 3

Entries: TypeAlias = sparse.sparray | sparse.spmatrix


def hidden_auroc(values: npt.ArrayLike, hidden: Entries, shown: Entries) -> tuple[float, int]:
    """AUROC of hidden entries above closed ones within each cell, mean over cells.

    Parameters
    ----------
    values
        Imputed values (n_cells, n_peaks), higher for peaks that are likelier open.
    hidden, shown
        True where an open peak was hidden from the method, and where it was shown, sparse of the
        same shape. Entries that were shown are left out; the others are closed.

    Returns
    -------
    tuple
        The mean, in [0, 1] and 0.5 by chance, and the number of cells with hidden and closed
        entries. Values of different cells are never compared, so depth is of no use; that some
        peaks are open in most cells is.

    Raises
    ------
    NotApplicable
        When no cell has both.
    ValueError
        When shapes differ, a value is not finite, or an entry is hidden and shown.
    """
    return _mean_over_cells(auroc, values, hidden, shown)


def hidden_average_precision(
    values: npt.ArrayLike, hidden: Entries, shown: Entries
) -> tuple[float, int]:
    """Average precision of hidden entries among hidden and closed ones, mean over cells.

    Parameters, results and errors are those of :func:`hidden_auroc`; by chance it is the share of
    hidden entries.
    """
    return _mean_over_cells(average_precision_score, values, hidden, shown)


def hidden_auroc_matched(
    values: npt.ArrayLike, hidden: Entries, shown: Entries, open_in: npt.ArrayLike
) -> tuple[float, int]:
    """Chance that a hidden entry ranks above a closed one of the same cell and peak frequency.

    The mean over hidden entries of the share of closed entries of their cell and bin that have a
    lower value, ties counting half. Bins hold peaks that the method saw open in equally many cells;
    bins of fewer than 20 peaks are joined with the next frequencies. What is the same for all
    cells, or for all peaks of a cell, scores 0.5, but for what frequencies still differ in joined
    bins.

    Parameters
    ----------
    values, hidden, shown
        As for :func:`hidden_auroc`.
    open_in
        Cells of the input in which each peak was shown as open, (n_peaks,): of all cells, also
        those that are not scored.

    Returns
    -------
    tuple
        In [0, 1], 0.5 by chance, and the number of hidden entries with a closed one to compare
        with.

    Raises
    ------
    NotApplicable
        When there is no such entry.
    ValueError
        As :func:`hidden_auroc`, or when `open_in` is not one number a peak.
    """
    table, hidden, shown = _checked(values, hidden, shown)
    n_peaks = table.shape[1]
    open_in = np.asarray(open_in)
    if open_in.shape != (n_peaks,):
        msg = f"open_in must hold one number a peak, ({n_peaks},). Got shape {open_in.shape}"
        raise ValueError(msg)
    bins = frequency_bins(open_in)
    order = np.argsort(bins, kind="stable")
    bounds = np.searchsorted(bins[order], np.arange(bins.max(initial=-1) + 2))
    total, n = 0.0, 0
    closed = np.ones(n_peaks, dtype=bool)
    for cell in range(len(table)):
        own = hidden.indices[hidden.indptr[cell] : hidden.indptr[cell + 1]]
        seen = shown.indices[shown.indptr[cell] : shown.indptr[cell + 1]]
        closed[own] = closed[seen] = False
        for code in np.unique(bins[own]):
            peers = order[bounds[code] : bounds[code + 1]]
            others = np.sort(table[cell, peers[closed[peers]]])
            if len(others):
                mine = table[cell, own[bins[own] == code]]
                below = np.searchsorted(others, mine, "left")
                within = np.searchsorted(others, mine, "right")
                total += float((below + within).sum()) / (2 * len(others))
                n += len(mine)
        closed[own] = closed[seen] = True
    if not n:
        msg = "no hidden entry has a closed one of its cell and peak frequency beside it"
        raise NotApplicable(msg)
    return total / n, n


def hidden_auroc_per_peak(
    values: npt.ArrayLike, hidden: Entries, shown: Entries
) -> tuple[float, int]:
    """AUROC of hidden entries above closed ones within each peak, mean over peaks.

    Peaks with fewer than 3 hidden entries are left out. A constant scores 0.5; cells of high depth
    have more hidden entries, so that depth alone scores above it.

    Parameters and errors are those of :func:`hidden_auroc`; the number is that of peaks.
    """
    table, hidden, shown = _checked(values, hidden, shown)
    hidden, shown = hidden.tocsc(), shown.tocsc()
    n_hidden = hidden.getnnz(axis=0)
    n_closed = len(table) - n_hidden - shown.getnnz(axis=0)
    chosen = np.flatnonzero((n_hidden >= MIN_HIDDEN) & (n_closed > 0))
    if not len(chosen):
        msg = f"no peak has {MIN_HIDDEN} hidden entries and a closed one"
        raise NotApplicable(msg)
    total = 0.0
    for peak in chosen:
        lost = hidden.indices[hidden.indptr[peak] : hidden.indptr[peak + 1]]
        compared = np.ones(len(table), dtype=bool)
        compared[shown.indices[shown.indptr[peak] : shown.indptr[peak + 1]]] = False
        positive = np.zeros(len(table), dtype=bool)
        positive[lost] = True
        total += auroc(table[compared, peak], positive[compared])
    return total / len(chosen), len(chosen)


def type_profile_correlation(
    values: npt.ArrayLike, hidden: Entries, types: npt.ArrayLike
) -> tuple[float, int]:
    """Correlation of what is special to cell types, imputed and hidden.

    A type's profile is the sum over its cells, divided by its total over peaks (imputed values
    below 0 count as 0); from every peak its mean over types is taken. Pearson correlation over all
    types and peaks of the profiles of imputed values and of hidden entries.

    Parameters
    ----------
    values, hidden
        As for :func:`hidden_auroc`. What the method was shown plays no part.
    types
        Cell types, texts (n_cells,), empty where unknown. Types of fewer than 10 cells are left
        out.

    Returns
    -------
    tuple
        In [-1, 1]; 0 when all types are given the same profile. And the number of cells.

    Raises
    ------
    NotApplicable
        When fewer than two types have enough cells and hidden entries.
    """
    table, hidden, _ = _checked(values, hidden, sparse.csr_matrix(np.shape(values), dtype=bool))
    types = np.asarray(types)
    if types.shape != (len(table),):
        msg = f"types must hold one text a cell, ({len(table)},). Got shape {types.shape}"
        raise ValueError(msg)
    names, codes, counts = np.unique(types, return_inverse=True, return_counts=True)
    kept = np.flatnonzero((counts >= MIN_TYPE_CELLS) & (names != ""))
    member = sparse.csr_matrix(
        (np.ones(len(codes)), (codes, np.arange(len(codes)))), shape=(len(names), len(codes))
    )[kept]
    expected = np.asarray((member @ hidden.astype(np.float64)).todense())
    found = member @ np.maximum(table, 0).astype(np.float64)
    enough = (expected.sum(axis=1) > 0) & (found.sum(axis=1) > 0)
    if enough.sum() < 2:
        msg = (
            f"{int(enough.sum())} cell types have {MIN_TYPE_CELLS} cells, a hidden entry and an "
            "imputed value above 0; two are needed"
        )
        raise NotApplicable(msg)
    profiles = []
    for table_of_types in (found[enough], expected[enough]):
        shares = table_of_types / table_of_types.sum(axis=1, keepdims=True)
        profiles.append(shares - shares.mean(axis=0))
    lengths = [float(np.linalg.norm(part)) for part in profiles]
    # Rounding alone tells types apart.
    constant = min(lengths) <= 1e-12
    value = 0.0 if constant else float((profiles[0] * profiles[1]).sum() / np.prod(lengths))
    return value, int(counts[kept][enough].sum())


def frequency_bins(open_in: npt.ArrayLike) -> np.ndarray:
    """Bin of every peak, int64 (n_peaks,), by the number of cells it is open in.

    From the rarest peaks up; frequencies are joined until a bin has 20 peaks, and the last ones
    with the bin before where they are fewer.
    """
    frequencies, place, sizes = np.unique(
        np.asarray(open_in), return_inverse=True, return_counts=True
    )
    code, filled = 0, 0
    codes = np.empty(len(frequencies), np.int64)
    for i, size in enumerate(sizes):
        codes[i] = code
        filled += size
        if filled >= MIN_BIN:
            code, filled = code + 1, 0
    if filled and code:
        codes[codes == code] = code - 1
    return codes[place.reshape(-1)]


def _mean_over_cells(
    measure: Callable[[np.ndarray, np.ndarray], float],
    values: npt.ArrayLike,
    hidden: Entries,
    shown: Entries,
) -> tuple[float, int]:
    table, hidden, shown = _checked(values, hidden, shown)
    total, n = 0.0, 0
    for cell in range(len(table)):
        own = hidden.indices[hidden.indptr[cell] : hidden.indptr[cell + 1]]
        compared = np.ones(table.shape[1], dtype=bool)
        compared[shown.indices[shown.indptr[cell] : shown.indptr[cell + 1]]] = False
        if not len(own) or len(own) == compared.sum():
            continue
        positive = np.zeros(table.shape[1], dtype=bool)
        positive[own] = True
        total += measure(table[cell, compared], positive[compared])
        n += 1
    if not n:
        msg = f"none of {len(table):,} cells has a hidden and a closed entry"
        raise NotApplicable(msg)
    return total / n, n


def _checked(values: npt.ArrayLike, hidden: Entries, shown: Entries) -> tuple[np.ndarray, Any, Any]:
    table = np.asarray(values)
    if table.ndim != 2 or table.dtype.kind not in "uif":
        msg = f"values must be a table of numbers, (n_cells, n_peaks). Got {table.dtype} "
        msg += f"of shape {table.shape}"
        raise ValueError(msg)
    n_bad = int((~np.isfinite(table)).sum())
    if n_bad:
        msg = f"values must be finite. Got {n_bad} entries with NaN or infinity"
        raise ValueError(msg)
    masks = []
    for name, mask in (("hidden", hidden), ("shown", shown)):
        if mask.shape != table.shape:
            msg = f"{name} must have the shape of the values, {table.shape}. Got {mask.shape}"
            raise ValueError(msg)
        own = sparse.csr_matrix(mask, dtype=bool)
        own.eliminate_zeros()
        masks.append(own)
    both = masks[0].multiply(masks[1]).nnz
    if both:
        msg = f"an entry is hidden or shown. Got {both} that are both"
        raise ValueError(msg)
    return table, masks[0], masks[1]
