"""From similarities of cells to an answer: the heaviest full matching, or a transport plan."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import maximum_bipartite_matching, min_weight_full_bipartite_matching
from scipy.special import softmax

from scbraid.errors import DataError

# From here on a graph is as good as complete, and the dense solver is quicker.
_DENSE_SHARE = 0.25
_COST_STEPS = 2.0**32
_SINKHORN_STEPS = 200
_SINKHORN_TOLERANCE = 1e-6


@dataclasses.dataclass(frozen=True)
class Assignment:
    """One candidate for every cell.

    Attributes
    ----------
    columns
        int64 (n_rows,). With as many cells as candidates a permutation.
    quantile
        Below which entries were left out in the end; 0 for the whole matrix.
    """

    columns: np.ndarray
    quantile: float


def match_weights(similarity: np.ndarray) -> np.ndarray:
    """softmax over rows plus softmax over columns, in (0, 2), of the same shape."""
    return softmax(similarity, axis=1) + softmax(similarity, axis=0)


def assign(weights: np.ndarray, quantile: float) -> Assignment:
    """Heaviest full matching of the entries that are large in their row or their column.

    Entries below both their row's and their column's quantile are left out. Where what is left has
    no full matching, twice as many are kept, until it has one; at last the matrix is taken whole.

    Parameters
    ----------
    weights
        Positive, (n_rows, n_columns).
    quantile
        To begin with, in [0, 1).

    Returns
    -------
    Assignment
        Of unequal sides all cells of the smaller one are matched one to one; rows that are left
        over get the candidate of their largest weight, which is then not theirs alone.

    Raises
    ------
    DataError
        When a weight is not finite or not above 0, or a side is empty.
    """
    # A tenth of a second that no other method should pay for.
    from scipy.optimize import linear_sum_assignment

    weights = np.asarray(weights, np.float64)
    if 0 in weights.shape:
        msg = f"weights have shape {weights.shape}; a matching needs cells on both sides"
        raise DataError(msg)
    if not (np.isfinite(weights).all() and weights.min() > 0):
        msg = "weights of a matching must be finite and above 0; check the embeddings"
        raise DataError(msg)
    kept_share = 1 - quantile
    while kept_share < _DENSE_SHARE:
        graph = _sparsified(weights, 1 - kept_share)
        if graph.nnz < _DENSE_SHARE * weights.size and _has_full_matching(graph):
            rows, columns = min_weight_full_bipartite_matching(_costs(graph))
            return Assignment(_one_each(weights, rows, columns), 1 - kept_share)
        kept_share *= 2
    rows, columns = linear_sum_assignment(weights, maximize=True)
    return Assignment(_one_each(weights, rows, columns), 0.0)


def _sparsified(weights: np.ndarray, quantile: float) -> sp.csr_matrix:
    """Entries that reach the quantile of their row or of their column."""
    by_row = np.quantile(weights, quantile, axis=1, keepdims=True)
    by_column = np.quantile(weights, quantile, axis=0, keepdims=True)
    rows, columns = np.nonzero((weights >= by_row) | (weights >= by_column))
    return sp.csr_matrix((weights[rows, columns], (rows, columns)), shape=weights.shape)


def _costs(graph: sp.csr_matrix) -> sp.csr_matrix:
    """Weights below the largest one in whole numbers from 1 on, to 2^-32 of their range.

    SciPy's sparse solver does not come back from some weights whose sums it has to round (seen with
    66 x 66 cells). Sums of up to a million of these numbers are exact.
    """
    lowest, highest = graph.data.min(), graph.data.max()
    steps = (highest - graph.data) / max(highest - lowest, np.finfo(np.float64).tiny)
    found = graph.copy()
    found.data = np.round(steps * _COST_STEPS) + 1
    return found


def _has_full_matching(graph: sp.csr_matrix) -> bool:
    found = maximum_bipartite_matching(graph, perm_type="column")
    return int((found >= 0).sum()) == min(graph.shape)


def _one_each(weights: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    found = weights.argmax(axis=1).astype(np.int64)
    found[rows] = columns
    return found


def transport(similarity: np.ndarray, temperature: float) -> np.ndarray:
    """Rows of the entropic transport plan between uniform masses (Cuturi 2013), in logarithms.

    The plan maximises ⟨P, similarity⟩ + temperature · entropy(P) among matrices whose row sums and
    whose column sums are equal. Steps end when the columns' sums are off by 1e-6 of their size at
    most, or after 200; rows sum to 1 in any case.

    Parameters
    ----------
    similarity
        Shape (n_rows, n_columns).
    temperature
        Above 0: small ones come near to the heaviest assignment, large ones to equal weights.

    Returns
    -------
    ndarray
        float64, rows of sum 1.
    """
    log_kernel = np.asarray(similarity, np.float64) / temperature
    n_rows, n_columns = log_kernel.shape
    # Mass 1 a row, n_rows/n_columns a column.
    target = np.log(n_rows / n_columns)
    potential = np.zeros((1, n_columns))
    for _ in range(_SINKHORN_STEPS):
        rows = -_log_sums(log_kernel + potential, 1)
        sums = _log_sums(log_kernel + rows, 0)
        new = target - sums
        off = np.abs(np.expm1(potential + sums - target)).max()
        potential = new
        if off <= _SINKHORN_TOLERANCE:
            break
    return softmax(log_kernel + potential, axis=1)


def _log_sums(logs: np.ndarray, axis: int) -> np.ndarray:
    """Logarithm of sums of exponentials along an axis, which is kept; for finite numbers alone."""
    highest = logs.max(axis=axis, keepdims=True)
    return highest + np.log(np.exp(logs - highest).sum(axis=axis, keepdims=True))


def largest_entries(rows: np.ndarray, n: int) -> sp.csr_matrix:
    """Keep the `n` largest entries of every row, divided by their sum, as CSR."""
    n = min(n, rows.shape[1])
    columns = np.sort(np.argpartition(-rows, n - 1, axis=1)[:, :n], axis=1)
    values = np.take_along_axis(rows, columns, axis=1)
    values /= values.sum(axis=1, keepdims=True)
    starts = np.arange(0, rows.shape[0] * n + 1, n)
    found = sp.csr_matrix((values.ravel(), columns.ravel(), starts), shape=rows.shape)
    found.eliminate_zeros()
    return found
