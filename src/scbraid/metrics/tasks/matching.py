"""Matching of cells of two layers: probability on the true partner, and its chance level."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse

from scbraid.errors import NotApplicable

# What the organisers of the NeurIPS 2021 competition accept: stored entries a cell, and how far the
# sum of a row may be from 1.
MAX_ENTRIES = 1000
SUM_TOLERANCE = 1e-5

Matching: TypeAlias = npt.ArrayLike | sparse.sparray | sparse.spmatrix


def row_stochastic(weights: Matching) -> sparse.csr_array:
    """Turn weights of matches into probabilities: negative ones to 0, each row over its sum.

    Parameters
    ----------
    weights
        Shape (n_cells, n_candidates).

    Returns
    -------
    scipy.sparse.csr_array
        float64, rows of sum 1, only positive entries stored.

    Raises
    ------
    ValueError
        When a weight is not finite or a row has no positive weight.
    """
    found = _as_csr(weights)
    found.data = np.maximum(found.data, 0.0)
    found.eliminate_zeros()
    sums = np.asarray(found.sum(axis=1)).reshape(-1)
    empty = np.flatnonzero(sums == 0)
    if empty.size:
        msg = (
            f"{empty.size} of {len(sums)} cells have no positive weight (first: row {empty[0]}); "
            "give a cell that matches nothing equal weights over its candidates"
        )
        raise ValueError(msg)
    found.data /= np.repeat(sums, np.diff(found.indptr))
    return found


def matching_probability(
    matching: Matching, partner: npt.ArrayLike, max_entries: int | None = MAX_ENTRIES
) -> float:
    """Mean probability on the true partner.

    Parameters
    ----------
    matching
        Probabilities, shape (n_cells, n_candidates), rows of sum 1; best sparse. See
        :func:`row_stochastic`.
    partner
        Column of every cell's true partner, shape (n_cells,); -1 leaves a cell out.
    max_entries
        Stored entries allowed, times n_cells; 1,000 as in the competition. None: any number.

    Returns
    -------
    float
        In [0, 1]. A permutation scores its accuracy; equal probabilities score
        :func:`matching_chance`.

    Raises
    ------
    ValueError
        When an entry is negative or not finite, a row does not sum to 1 within 1e-5, more entries
        are stored than allowed, or a partner is no column.
    NotApplicable
        When no cell has a partner.

    Notes
    -----
    As the organisers' programs, with two differences. They set negative entries to 0 and divide by
    row sums while scoring; here that is :func:`row_stochastic`'s, and asked for. Their check of row
    sums is relative and over all rows together; here every row must pass.
    """
    checked, rows, columns = _checked(matching, partner, max_entries)
    return float(_entries(checked, rows, columns).mean())


def matching_top1(
    matching: Matching, partner: npt.ArrayLike, max_entries: int | None = MAX_ENTRIES
) -> float:
    """Share of cells whose most probable candidate is the true partner.

    Of t candidates that share the largest probability, the true partner counts 1/t: what choosing
    among them at random gets on average, and independent of their order. Parameters and errors are
    those of :func:`matching_probability`.

    Returns
    -------
    float
        In [0, 1].
    """
    checked, rows, columns = _checked(matching, partner, max_entries)
    # Every row sums to 1 and so has an entry: no segment is empty.
    largest = np.maximum.reduceat(checked.data, checked.indptr[:-1])
    at_top = checked.data == np.repeat(largest, np.diff(checked.indptr))
    n_top = np.add.reduceat(at_top.astype(np.int64), checked.indptr[:-1])
    won = _entries(checked, rows, columns) == largest[rows]
    return float((won / n_top[rows]).mean())


def assignment_accuracy(assigned: npt.ArrayLike, partner: npt.ArrayLike) -> float:
    """Share of cells that are assigned their true partner.

    Parameters
    ----------
    assigned
        Column that each cell is assigned, shape (n_cells,); -1 (none) counts as wrong.
    partner
        Column of the true partner, shape (n_cells,); -1 leaves a cell out.

    Returns
    -------
    float
        In [0, 1].
    """
    assigned, partner = np.asarray(assigned), np.asarray(partner)
    if assigned.ndim != 1 or assigned.shape != partner.shape:
        msg = (
            "assigned and partner must have one column a cell. "
            f"Got {assigned.shape} and {partner.shape}"
        )
        raise ValueError(msg)
    for name, columns in (("assigned", assigned), ("partner", partner)):
        if columns.dtype.kind not in "iu":
            msg = f"{name} must hold columns, whole numbers from -1. Got {columns.dtype}"
            raise ValueError(msg)
    known = partner >= 0
    if not known.any():
        msg = "no cell has a known partner"
        raise NotApplicable(msg)
    return float((assigned[known] == partner[known]).mean())


def matching_chance(
    n_candidates: int, groups: npt.ArrayLike | None = None, others: npt.ArrayLike | None = None
) -> float:
    """Expected score of equal probabilities, or of a random choice.

    Parameters
    ----------
    n_candidates
        Number of columns.
    groups, others
        Group (batch, say) of every cell and of every candidate, where a match is sought within it;
        shapes (n_cells,) and (n_candidates,).

    Returns
    -------
    float
        ``1 / n_candidates``; with groups the mean over cells of one over the candidates in the
        cell's group, which for groups of equal size is their number over n_candidates.

    Raises
    ------
    ValueError
        When a group has a cell and no candidate.
    """
    if groups is None or others is None:
        if n_candidates < 1 or (groups is None) != (others is None):
            msg = "chance needs candidates, and groups of both sides or of none"
            raise ValueError(msg)
        return 1.0 / n_candidates
    groups, others = np.asarray(groups), np.asarray(others)
    if others.shape != (n_candidates,) or groups.ndim != 1:
        msg = (
            f"others must have shape ({n_candidates},), one group a candidate, and groups "
            f"(n_cells,). Got {others.shape} and {groups.shape}"
        )
        raise ValueError(msg)
    names, counts = np.unique(others, return_counts=True)
    if len(names) == 0 or len(groups) == 0:
        msg = "chance needs cells and candidates"
        raise ValueError(msg)
    place = np.minimum(np.searchsorted(names, groups), len(names) - 1)
    lost = names[place] != groups
    if lost.any():
        msg = f"group {str(groups[lost][0])!r} has cells but no candidate among {n_candidates}"
        raise ValueError(msg)
    return float((1.0 / counts[place]).mean())


def _as_csr(matching: Matching) -> sparse.csr_array:
    """Copy to float64 CSR, repeated entries added; refuse what is not finite."""
    table: Any = matching if sparse.issparse(matching) else np.asarray(matching)
    if table.ndim != 2:
        msg = f"a matching must have shape (n_cells, n_candidates). Got {table.shape}"
        raise ValueError(msg)
    found = sparse.csr_array(table, dtype=np.float64, copy=True)
    found.sum_duplicates()
    n_bad = int((~np.isfinite(found.data)).sum())
    if n_bad:
        msg = f"a matching must be finite. Got {n_bad} entries with NaN or infinity"
        raise ValueError(msg)
    return found


def _checked(
    matching: Matching, partner: npt.ArrayLike, max_entries: int | None
) -> tuple[sparse.csr_array, np.ndarray, np.ndarray]:
    """Return the matching, the cells with a partner, and the column of each one's partner."""
    found = _as_csr(matching)
    n_cells, n_candidates = found.shape
    partner = np.asarray(partner)
    if partner.shape != (n_cells,) or partner.dtype.kind not in "iu":
        msg = f"partner must hold one column a cell, whole numbers of shape ({n_cells},). "
        msg += f"Got {partner.dtype} of shape {partner.shape}"
        raise ValueError(msg)
    if n_cells and (partner.min() < -1 or partner.max() >= n_candidates):
        msg = f"partner must lie in -1..{n_candidates - 1}. Got {partner.min()} to {partner.max()}"
        raise ValueError(msg)
    if max_entries is not None and found.nnz > max_entries * n_cells:
        msg = (
            f"a matching may store {max_entries:,} entries a cell, {max_entries * n_cells:,} of "
            f"{n_cells:,} cells. Got {found.nnz:,}; keep the largest of each row"
        )
        raise ValueError(msg)
    if found.nnz and found.data.min() < 0:
        msg = (
            f"probabilities of matches must not be negative. Got {int((found.data < 0).sum())} "
            f"negative entries, down to {found.data.min():.3g}; row_stochastic sets them to 0"
        )
        raise ValueError(msg)
    sums = np.asarray(found.sum(axis=1)).reshape(-1)
    wrong = np.flatnonzero(np.abs(sums - 1) > SUM_TOLERANCE)
    if wrong.size:
        worst = wrong[np.abs(sums[wrong] - 1).argmax()]
        msg = (
            f"every row of a matching must sum to 1 (within {SUM_TOLERANCE:g}). Got {wrong.size} "
            f"of {n_cells} that do not; row {worst} sums to {sums[worst]:.6g}; "
            "row_stochastic divides by the sums"
        )
        raise ValueError(msg)
    rows = np.flatnonzero(partner >= 0)
    if rows.size == 0:
        msg = "no cell has a known partner"
        raise NotApplicable(msg)
    return found, rows, partner[rows]


def _entries(matching: sparse.csr_array, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Entries at (row, column), 0 where none is stored."""
    asked = sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=matching.shape)
    return np.asarray(matching.multiply(asked).sum(axis=1)).reshape(-1)[rows]
