"""Which features vary more than their mean explains."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scbraid.errors import ConfigError, DataError
from scbraid.prepare.transforms import as_csr, column_moments, column_sums


def highly_variable(
    counts: sp.spmatrix | np.ndarray,
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
        Raw counts, shape (n_cells, n_features).
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
    matrix = as_csr(counts)
    n_cells, n_features = matrix.shape
    if not 1 <= n_top <= n_features:
        msg = f"n_top is {n_top}; expected 1 to {n_features} (the number of features)"
        raise ConfigError(msg)
    if (matrix.data < 0).any() or (matrix.data != np.round(matrix.data)).any():
        msg = "highly_variable needs raw counts; found negative or fractional values"
        raise DataError(msg)
    groups = np.zeros(n_cells, dtype=np.int64) if batch is None else np.asarray(batch)
    if groups.shape != (n_cells,):
        msg = f"batch has shape {groups.shape}; expected ({n_cells},)"
        raise DataError(msg)
    names = np.unique(groups)
    scores = np.empty((len(names), n_features))
    for row, name in enumerate(names):
        part = matrix if len(names) == 1 else matrix[groups == name]
        where = "" if batch is None else f" in batch {str(name)!r}"
        scores[row] = _standardised_variance(part, span, where)

    ranks = np.argsort(np.argsort(-scores, axis=1), axis=1).astype(np.float64)
    ranks[ranks >= n_top] = np.nan
    n_batches = np.isfinite(ranks).sum(axis=0)
    rank = np.full(n_features, np.nan)
    ranked = n_batches > 0
    rank[ranked] = np.nanmedian(ranks[:, ranked], axis=0)

    order = np.lexsort((-n_batches, np.where(ranked, rank, np.inf)))
    chosen = np.zeros(n_features, dtype=bool)
    chosen[order[:n_top]] = True
    means, variances = column_moments(matrix)
    return pd.DataFrame(
        {
            "means": means,
            "variances": variances,
            "variances_norm": scores.mean(axis=0),
            "highly_variable_rank": rank,
            "highly_variable_nbatches": n_batches,
            "highly_variable": chosen,
        }
    )


def _standardised_variance(counts: sp.csr_matrix, span: float, where: str) -> np.ndarray:
    n_cells = counts.shape[0]
    mean, variance = column_moments(counts)
    expected = expected_deviation(mean, variance, span, where)
    # Clipping raw counts here is clipping standardised values at √n_cells.
    bound = expected * np.sqrt(n_cells) + mean
    clipped = sp.csr_matrix(
        (np.minimum(counts.data, bound[counts.indices]), counts.indices, counts.indptr),
        shape=counts.shape,
    )
    sums = column_sums(clipped)
    clipped.data **= 2
    squares = column_sums(clipped)
    return (n_cells * mean**2 + squares - 2 * sums * mean) / ((n_cells - 1) * expected**2)


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


def most_variable(values: sp.csr_matrix, n_top: int) -> np.ndarray:
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
