"""Low-dimensional spaces of one layer: principal components and latent semantic indexing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import scipy.sparse as sp

from scbraid.errors import ConfigError, DataError, UnknownNameError
from scbraid.prepare.svd import Solver, truncated_svd
from scbraid.prepare.transforms import (
    as_csr,
    check_non_negative,
    column_sums,
    log1p,
    row_sums,
    scale_rows,
)
from scbraid.registry import near_miss

# What term frequencies are multiplied with before the logarithm, in every form.
LSI_FACTOR = 1e4


@dataclasses.dataclass(frozen=True)
class Pca:
    """Principal components.

    Attributes
    ----------
    scores
        Coordinates of the cells, float32 (n_cells, k).
    loadings
        Orthonormal directions, float64 (k, n_features); the largest entry of each is positive.
    variance
        Variance (ddof = 1) along each direction, float64 (k,).
    variance_ratio
        `variance` over the total variance of all features, float64 (k,).
    """

    scores: np.ndarray
    loadings: np.ndarray
    variance: np.ndarray
    variance_ratio: np.ndarray


def pca(X: sp.spmatrix | np.ndarray, n_components: int, *, seed: int = 0) -> Pca:
    """Return the leading principal components; the matrix is centred implicitly.

    Equal to scikit-learn's ``PCA(svd_solver="full")`` up to rounding and sign.

    Parameters
    ----------
    X
        Shape (n_cells, n_features); a sparse matrix stays sparse. For standardised genes pass
        ``scale(...).sparse``: the constant offset that it leaves out is removed by centring anyway.
    n_components
        1 to min(n_cells, n_features) - 1.
    seed
        Of the start vector of the Lanczos iteration; results agree between seeds to rounding.

    Raises
    ------
    ConfigError
        When `n_components` is outside its range.
    """
    matrix = as_csr(X)
    mean = column_sums(matrix) / matrix.shape[0]
    found = truncated_svd(matrix, n_components, mean=mean, seed=seed)
    variance = found.s**2 / (matrix.shape[0] - 1)
    deviation = matrix.data - mean[matrix.indices]
    unstored = matrix.shape[0] - np.bincount(matrix.indices, minlength=matrix.shape[1])
    total = (deviation**2).sum() + (unstored * mean**2).sum()
    ratio = found.s**2 / total if total > 0 else np.zeros_like(found.s)
    return Pca((found.U * found.s).astype(np.float32), found.Vt, variance, ratio)


@dataclasses.dataclass(frozen=True)
class LsiForm:
    """One form of latent semantic indexing.

    Attributes
    ----------
    weigh
        From counts to the matrix that is decomposed.
    keep_first
        Whether the first component, which follows sequencing depth, is kept.
    singular_values
        Whether the coordinates are U·S; otherwise U.
    standardise_cells
        Whether every cell is brought to mean 0 and standard deviation 1 (ddof = 1) over its
        components.
    """

    weigh: Callable[[sp.csr_matrix], sp.csr_matrix]
    keep_first: bool
    singular_values: bool
    standardise_cells: bool


def _term_frequency(counts: sp.csr_matrix) -> sp.csr_matrix:
    return scale_rows(counts, 1.0 / row_sums(counts))


def _inverse_frequency(counts: sp.csr_matrix) -> np.ndarray:
    return counts.shape[0] / column_sums(counts)


def _scale_columns(matrix: sp.csr_matrix, factors: np.ndarray) -> sp.csr_matrix:
    data = matrix.data * factors[matrix.indices]
    return sp.csr_matrix((data, matrix.indices, matrix.indptr), shape=matrix.shape)


def _glue_weights(counts: sp.csr_matrix) -> sp.csr_matrix:
    weighted = _scale_columns(_term_frequency(counts), _inverse_frequency(counts))
    return log1p(scale_rows(weighted, LSI_FACTOR / row_sums(weighted)))


def _log_idf_weights(counts: sp.csr_matrix) -> sp.csr_matrix:
    idf = np.log1p(_inverse_frequency(counts))
    return log1p(_scale_columns(_term_frequency(counts), LSI_FACTOR * idf))


def _signac1_weights(counts: sp.csr_matrix) -> sp.csr_matrix:
    idf = _inverse_frequency(counts)
    return log1p(_scale_columns(_term_frequency(counts), LSI_FACTOR * idf))


def _signac3_weights(counts: sp.csr_matrix) -> sp.csr_matrix:
    log_tf = log1p(scale_rows(counts, LSI_FACTOR / row_sums(counts)))
    return _scale_columns(log_tf, np.log1p(_inverse_frequency(counts)))


def _us_without_first(weigh: Callable[[sp.csr_matrix], sp.csr_matrix]) -> LsiForm:
    return LsiForm(weigh, keep_first=False, singular_values=True, standardise_cells=False)


LSI_FORMS: dict[str, LsiForm] = {
    "glue": LsiForm(_glue_weights, keep_first=True, singular_values=False, standardise_cells=True),
    "glue_us": _us_without_first(_glue_weights),
    "log_idf": _us_without_first(_log_idf_weights),
    "signac1": _us_without_first(_signac1_weights),
    "signac3": _us_without_first(_signac3_weights),
}


def lsi_form(name: str) -> LsiForm:
    """Return a form of LSI by name; an unknown name raises UnknownNameError."""
    if name not in LSI_FORMS:
        raise UnknownNameError(near_miss(name, LSI_FORMS, "LSI form"))
    return LSI_FORMS[name]


def lsi(
    X: sp.spmatrix | np.ndarray,
    n_components: int,
    *,
    form: str = "glue",
    solver: Solver = "lanczos",
    seed: int = 0,
    features: Sequence[str] | None = None,
) -> np.ndarray:
    """Latent semantic indexing of chromatin accessibility counts.

    With counts x, N cells, tf = x / (total of the cell) and idf = N / (total of the peak), the
    forms decompose

    ============  =========================================  ==================================
    form          matrix                                     coordinates
    ============  =========================================  ==================================
    ``glue``      log1p(1e4 · y), y = tf·idf with every      U, first kept, every cell to mean 0
                  cell divided by its sum                    and standard deviation 1 (ddof = 1)
    ``glue_us``   the same                                   U·S, first dropped
    ``log_idf``   log1p(1e4 · tf · log1p(idf))               U·S, first dropped
    ``signac1``   log1p(1e4 · tf · idf), Signac's method 1   U·S, first dropped
    ``signac3``   log1p(1e4 · tf) · log1p(idf), Signac's     U·S, first dropped
                  method 3
    ============  =========================================  ==================================

    ``glue`` is the form of Cao & Gao (2022), who used a randomised SVD with 15 iterations; that is
    ``solver="randomised"``.

    Parameters
    ----------
    X
        Counts, shape (n_cells, n_peaks), on all peaks; binary values are fine.
    n_components
        Columns of the result (after the first was dropped, where the form drops it).
    form
        Name of the form.
    solver
        See `truncated_svd`.
    seed
        Of the solver's start.
    features
        Names of the peaks, for messages; by default they are called by their position.

    Returns
    -------
    numpy.ndarray
        float32 (n_cells, n_components).

    Raises
    ------
    DataError
        When a peak or a cell has no counts (its weight would be infinite), or a value is negative.
    ConfigError
        When there are too few cells or peaks for `n_components`.
    UnknownNameError
        For another form or solver.
    """
    chosen = lsi_form(form)
    counts = as_csr(X)
    check_non_negative(counts, "LSI")
    _check_totals(column_sums(counts), "peaks", features)
    _check_totals(row_sums(counts), "cells", None)
    if chosen.standardise_cells and n_components < 2:
        msg = f"LSI form {form!r} standardises cells over components; expected 2 or more, got 1"
        raise ConfigError(msg)
    skipped = 0 if chosen.keep_first else 1
    found = truncated_svd(chosen.weigh(counts), n_components + skipped, solver=solver, seed=seed)
    coordinates = found.U * found.s if chosen.singular_values else found.U
    coordinates = coordinates[:, skipped:]
    if chosen.standardise_cells:
        coordinates = coordinates - coordinates.mean(axis=1, keepdims=True)
        coordinates /= coordinates.std(axis=1, ddof=1, keepdims=True)
    return coordinates.astype(np.float32)


def _check_totals(totals: np.ndarray, what: str, names: Sequence[str] | None) -> None:
    empty = np.flatnonzero(totals == 0)
    if len(empty):
        shown = [str(i) if names is None else repr(str(names[i])) for i in empty[:5]]
        more = ", ..." if len(empty) > 5 else ""
        where = "at position " if names is None else ""
        msg = (
            f"LSI needs counts in all {what}; {len(empty):,} of {len(totals):,} {what} "
            f"have none ({where}{', '.join(shown)}{more}); remove them first"
        )
        raise DataError(msg)
