"""Low-dimensional spaces of one layer: principal components and latent semantic indexing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import scipy.sparse as sp

from scbraid.data.backed import BackedMatrix, row_blocks
from scbraid.errors import ConfigError, DataError, UnknownNameError
from scbraid.prepare.streamed import MappedRows, right_vectors
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
# Singular values below this share of the largest are rounding.
RANK_CUTOFF = 1e-6


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


def pca_blocks(
    X: BackedMatrix | MappedRows, n_components: int, *, seed: int = 0
) -> Iterator[tuple[int, np.ndarray]]:
    """Return the leading principal components of a matrix on disk, block by block.

    Parameters
    ----------
    X, n_components, seed
        As of `pca`. Exact up to 4,096 features, see `scbraid.prepare.streamed.right_vectors`.

    Yields
    ------
    tuple
        First row of a block, and its scores, float32 (n_rows, n_components).
    """
    found = right_vectors(X, n_components, centred=True, seed=seed)
    for first, scores in found.coordinates(X):
        yield first, scores.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class LsiForm:
    """One form of latent semantic indexing.

    Attributes
    ----------
    weigh
        From counts and idf to the matrix that is decomposed; cell by cell.
    keep_first
        Whether the first component, which follows sequencing depth, is kept.
    singular_values
        Whether the coordinates are U·S; otherwise U.
    standardise_cells
        Whether every cell is brought to mean 0 and standard deviation 1 (ddof = 1) over its
        components.
    """

    weigh: Callable[[sp.csr_matrix, np.ndarray], sp.csr_matrix]
    keep_first: bool
    singular_values: bool
    standardise_cells: bool

    def finish(self, U: np.ndarray, s: np.ndarray) -> np.ndarray:
        """From left vectors and singular values to the coordinates of the cells, float32."""
        found = U * s if self.singular_values else U
        found = found[:, 0 if self.keep_first else 1 :]
        if self.standardise_cells:
            found = found - found.mean(axis=1, keepdims=True)
            found /= found.std(axis=1, ddof=1, keepdims=True)
        return found.astype(np.float32)


def _term_frequency(counts: sp.csr_matrix) -> sp.csr_matrix:
    return scale_rows(counts, 1.0 / row_sums(counts))


def _scale_columns(matrix: sp.csr_matrix, factors: np.ndarray) -> sp.csr_matrix:
    data = matrix.data * factors[matrix.indices]
    return sp.csr_matrix((data, matrix.indices, matrix.indptr), shape=matrix.shape)


def _glue_weights(counts: sp.csr_matrix, idf: np.ndarray) -> sp.csr_matrix:
    weighted = _scale_columns(_term_frequency(counts), idf)
    return log1p(scale_rows(weighted, LSI_FACTOR / row_sums(weighted)))


def _log_idf_weights(counts: sp.csr_matrix, idf: np.ndarray) -> sp.csr_matrix:
    return log1p(_scale_columns(_term_frequency(counts), LSI_FACTOR * np.log1p(idf)))


def _signac1_weights(counts: sp.csr_matrix, idf: np.ndarray) -> sp.csr_matrix:
    return log1p(_scale_columns(_term_frequency(counts), LSI_FACTOR * idf))


def _signac3_weights(counts: sp.csr_matrix, idf: np.ndarray) -> sp.csr_matrix:
    log_tf = log1p(scale_rows(counts, LSI_FACTOR / row_sums(counts)))
    return _scale_columns(log_tf, np.log1p(idf))


def _us_without_first(weigh: Callable[[sp.csr_matrix, np.ndarray], sp.csr_matrix]) -> LsiForm:
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
    idf = _checked_idf(counts, features)
    _check_width(form, n_components)
    skipped = 0 if chosen.keep_first else 1
    weights = chosen.weigh(counts, idf)
    found = truncated_svd(weights, n_components + skipped, solver=solver, seed=seed)
    return chosen.finish(found.U, found.s)


def lsi_blocks(
    X: BackedMatrix,
    n_components: int,
    *,
    form: str = "glue",
    seed: int = 0,
    features: Sequence[str] | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Latent semantic indexing of counts on disk, block by block; arguments as of `lsi`.

    Exact up to 4,096 peaks; `scbraid.prepare.streamed.right_vectors` says what it is beyond.

    Yields
    ------
    tuple
        First row of a block, and its coordinates, float32 (n_rows, n_components).

    Raises
    ------
    DataError
        As of `lsi`, and when ``glue`` asks for more components than the rank of the matrix.
    """
    chosen = lsi_form(form)
    idf = _checked_idf(X, features)
    _check_width(form, n_components)
    skipped = 0 if chosen.keep_first else 1
    weights = MappedRows(X, X.shape[1], lambda _, block: chosen.weigh(block, idf))
    found = right_vectors(weights, n_components + skipped, centred=False, seed=seed)
    # Left vectors are the image over the singular values, which must be more than rounding.
    least = RANK_CUTOFF * found.s[0]
    rank = int((found.s > least).sum())
    if not chosen.singular_values and rank < len(found.s):
        msg = (
            f"LSI asks for {len(found.s)} components of a matrix of rank {rank}; ask for {rank} "
            "at most (n_lsi)"
        )
        raise DataError(msg)
    for first, image in found.coordinates(weights):
        yield first, chosen.finish(image / np.maximum(found.s, least), found.s)


def _checked_idf(
    counts: sp.csr_matrix | BackedMatrix, features: Sequence[str] | None
) -> np.ndarray:
    """Cells over the total of each peak, after a look for what has no weight."""
    of_peaks = np.zeros(counts.shape[1])
    of_cells = []
    for _, block in row_blocks(counts):
        check_non_negative(block, "LSI")
        of_peaks += column_sums(block)
        of_cells.append(row_sums(block))
    _check_totals(of_peaks, "peaks", features)
    _check_totals(np.concatenate(of_cells), "cells", None)
    return counts.shape[0] / of_peaks


def _check_width(form: str, n_components: int) -> None:
    if lsi_form(form).standardise_cells and n_components < 2:
        msg = f"LSI form {form!r} standardises cells over components; expected 2 or more, got 1"
        raise ConfigError(msg)


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
