"""Which features vary more than their mean explains."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scbraid.data.backed import BackedMatrix, RowBlocks, row_blocks
from scbraid.errors import ConfigError, DataError
from scbraid.prepare.transforms import ColumnMoments, as_csr, column_moments, column_sums


def highly_variable(
    counts: sp.spmatrix | np.ndarray | BackedMatrix,
    n_top: int = 2000,
    *,
    batch: np.ndarray | None = None,
    span: float = 0.3,
) -> pd.DataFrame:
    """Select highly variable features from raw counts: the ``seurat_v3`` flavour of scanpy.

    In every batch a local quadratic regression of log10 variance on log10 mean gives each feature
    an expected variance; counts are standardised with it, clipped at √n_cells, and their variance
    ranks the features (Stuart et al. 2019). With several batches the median of the ranks below
    `n_top` decides, then the number of batches that rank the feature below `n_top`.

    Parameters
    ----------
    counts
        Raw counts, shape (n_cells, n_features), in memory or on disk, where they are read twice.
    n_top
        Number of features to flag, 1 to n_features.
    batch
        Batch of each cell, shape (n_cells,); one batch when None.
    span
        Share of the features used by each local regression.

    Returns
    -------
    pandas.DataFrame
        One row a feature, in order: means, variances, variances_norm, highly_variable_rank (NaN
        where no batch ranks it below `n_top`), highly_variable_nbatches, highly_variable. Equal to
        ``scanpy.pp.highly_variable_genes(flavor="seurat_v3")``.

    Raises
    ------
    DataError
        When counts are not integral, or the regression fails (too few cells or features).
    ConfigError
        When `n_top` is outside its range.
    """
    matrix = counts if isinstance(counts, BackedMatrix) else as_csr(counts)
    n_cells, n_features = matrix.shape
    if not 1 <= n_top <= n_features:
        msg = f"n_top is {n_top}; expected 1 to {n_features} (the number of features)"
        raise ConfigError(msg)
    groups = np.zeros(n_cells, dtype=np.int64) if batch is None else np.asarray(batch)
    if groups.shape != (n_cells,):
        msg = f"batch has shape {groups.shape}; expected ({n_cells},)"
        raise DataError(msg)
    names, codes = np.unique(groups, return_inverse=True)
    total, moments = _moments_by_batch(matrix, codes, len(names))
    expected = [
        expected_deviation(
            own.mean, own.variance, span, "" if batch is None else f" in batch {str(name)!r}"
        )
        for own, name in zip(moments, names, strict=True)
    ]
    scores = _standardised_variances(matrix, codes, moments, expected)

    ranks = np.argsort(np.argsort(-scores, axis=1), axis=1).astype(np.float64)
    ranks[ranks >= n_top] = np.nan
    n_batches = np.isfinite(ranks).sum(axis=0)
    rank = np.full(n_features, np.nan)
    ranked = n_batches > 0
    rank[ranked] = np.nanmedian(ranks[:, ranked], axis=0)

    order = np.lexsort((-n_batches, np.where(ranked, rank, np.inf)))
    chosen = np.zeros(n_features, dtype=bool)
    chosen[order[:n_top]] = True
    return pd.DataFrame(
        {
            "means": total.mean,
            "variances": total.variance,
            "variances_norm": scores.mean(axis=0),
            "highly_variable_rank": rank,
            "highly_variable_nbatches": n_batches,
            "highly_variable": chosen,
        }
    )


def _moments_by_batch(
    matrix: sp.csr_matrix | BackedMatrix, codes: np.ndarray, n_batches: int
) -> tuple[ColumnMoments, list[ColumnMoments]]:
    """Moments over all cells and over those of each batch, in one pass."""
    total = ColumnMoments()
    moments = [ColumnMoments() for _ in range(n_batches)] if n_batches > 1 else [total]
    for first, block in row_blocks(matrix):
        if (block.data < 0).any() or (block.data != np.round(block.data)).any():
            msg = "highly_variable needs raw counts; found negative or fractional values"
            raise DataError(msg)
        total.add(block)
        if n_batches > 1:
            own = codes[first : first + block.shape[0]]
            for code, found in enumerate(moments):
                found.add(block[own == code])
    return total, moments


def _standardised_variances(
    matrix: sp.csr_matrix | BackedMatrix,
    codes: np.ndarray,
    moments: list[ColumnMoments],
    expected: list[np.ndarray],
) -> np.ndarray:
    """Variance of the clipped standardised counts in every batch, (n_batches, n_features)."""
    # Clipping raw counts here is clipping standardised values at √n_cells.
    bounds = [
        deviation * np.sqrt(own.n_rows) + own.mean
        for own, deviation in zip(moments, expected, strict=True)
    ]
    sums = np.zeros((len(moments), matrix.shape[1]))
    squares = np.zeros_like(sums)
    for first, block in row_blocks(matrix):
        batches = codes[first : first + block.shape[0]]
        for code, bound in enumerate(bounds):
            part = block if len(bounds) == 1 else block[batches == code]
            clipped = sp.csr_matrix(
                (np.minimum(part.data, bound[part.indices]), part.indices, part.indptr),
                shape=part.shape,
            )
            sums[code] += column_sums(clipped)
            clipped.data **= 2
            squares[code] += column_sums(clipped)
    scores = np.empty_like(sums)
    for code, (own, deviation) in enumerate(zip(moments, expected, strict=True)):
        n_cells, mean = own.n_rows, own.mean
        scores[code] = (n_cells * mean**2 + squares[code] - 2 * sums[code] * mean) / (
            (n_cells - 1) * deviation**2
        )
    return scores


def expected_deviation(
    mean: np.ndarray, variance: np.ndarray, span: float = 0.3, where: str = ""
) -> np.ndarray:
    """Return the standard deviation that the mean of each feature lets expect.

    Parameters
    ----------
    mean, variance
        Of raw counts, shape (n_features,).
    span
        Share of the features used by each local regression.
    where
        Completes the sentence of an error, such as " in batch 'a'".

    Returns
    -------
    numpy.ndarray
        float64 (n_features,); 1 for constant features.
    """
    from skmisc.loess import loess

    varying = variance > 0
    fitted = np.zeros(len(mean))
    model = loess(np.log10(mean[varying]), np.log10(variance[varying]), span=span, degree=2)
    try:
        model.fit()
    except ValueError as error:
        msg = (
            f"the regression of variance on mean fails{where}, with {varying.sum():,} varying "
            f"features ({error}); leave out batches with very few cells, or keep all features "
            f"(n_top_genes of at least the number of features)"
        )
        raise DataError(msg) from error
    fitted[varying] = model.outputs.fitted_values
    return np.sqrt(10**fitted)


def most_variable(values: sp.csr_matrix | RowBlocks, n_top: int) -> np.ndarray:
    """Flag the `n_top` features of largest variance, for layers that hold no counts.

    Parameters
    ----------
    values
        Shape (n_cells, n_features).
    n_top
        Number of features, 1 to n_features; ties keep feature order.

    Returns
    -------
    numpy.ndarray
        bool (n_features,).
    """
    _, variance = column_moments(values)
    chosen = np.zeros(len(variance), dtype=bool)
    chosen[np.argsort(-variance, kind="stable")[:n_top]] = True
    return chosen
