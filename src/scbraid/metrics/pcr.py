"""PCR: the share of a space's variance that batches, or other covariates, explain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from scbraid.errors import NotApplicable
from scbraid.metrics._arrays import as_embedding, encode

_CHUNK = 1 << 14
_LEAST = 1e-12  # a share of the variance that is nothing but rounding


def explained_by_groups(X: npt.ArrayLike, groups: npt.ArrayLike) -> float:
    """Share of the variance of a space between groups of its cells.

    Parameters
    ----------
    X
        Space of shape (n_cells, n_dims).
    groups
        Shape (n_cells,).

    Returns
    -------
    float
        In [0, 1]: ``tr(S_between) / tr(S_total)``.

    Raises
    ------
    NotApplicable
        When there is one group, or the cells do not vary.

    Notes
    -----
    Principal component regression weighs each component's R^2 by its variance, ``sum_i lambda_i
    R_i^2 / sum_i lambda_i``. R_i^2 lambda_i is the variance of the fitted values of component i, so
    that the sum is the trace of their covariance, which no rotation changes: the components need
    not be found.
    """
    X = as_embedding(X)
    codes = encode(groups, len(X), "groups")
    n_groups = int(codes.max(initial=-1)) + 1
    if n_groups < 2:
        msg = "variance between batches needs two of them; there is one batch only"
        raise NotApplicable(msg)
    centre = X.mean(axis=0, dtype=np.float64)
    sums = np.zeros((n_groups, X.shape[1]))
    total = 0.0
    for start in range(0, len(X), _CHUNK):
        rows = slice(start, start + _CHUNK)
        block = X[rows] - centre
        total += float(np.square(block).sum())
        member = np.zeros((n_groups, len(block)))
        member[codes[rows], np.arange(len(block))] = 1.0
        sums += member @ block
    if total <= 0.0:
        msg = "the cells of the space do not vary"
        raise NotApplicable(msg)
    between = float((np.square(sums).sum(axis=1) / np.bincount(codes)).sum())
    return min(between / total, 1.0)


def explained_by_covariates(X: npt.ArrayLike, covariates: npt.ArrayLike) -> float:
    """Share of the variance of a space that numbers explain linearly.

    Parameters
    ----------
    X
        Space of shape (n_cells, n_dims).
    covariates
        Shape (n_cells, n_covariates), finite.

    Returns
    -------
    float
        In [0, 1]: the trace of the covariance of the values fitted by least squares (with an
        intercept) over that of the space.

    Raises
    ------
    NotApplicable
        When the covariates or the cells do not vary.
    """
    X = as_embedding(X)
    C = as_embedding(covariates, "covariates").astype(np.float64)
    if len(C) != len(X):
        msg = f"covariates must have {len(X)} rows. Got {len(C)}"
        raise ValueError(msg)
    block = X - X.mean(axis=0, dtype=np.float64)
    total = float(np.square(block).sum())
    C = C - C.mean(axis=0)
    left, lengths, _ = np.linalg.svd(C, full_matrices=False)
    used = lengths > 1e-10 * max(float(lengths.max(initial=0.0)), 1e-300)
    if total <= 0.0 or not used.any() or not lengths.any():
        msg = "neither a space nor covariates that do not vary can explain anything"
        raise NotApplicable(msg)
    return min(float(np.square(left[:, used].T @ block).sum()) / total, 1.0)


def pcr_comparison(before: float, after: float) -> float:
    """Compare shares of variance before and after: ``max((before - after) / before, 0)``.

    Parameters
    ----------
    before, after
        Shares in the input's own space and in the embedding.

    Returns
    -------
    float
        In [0, 1]; 1 when nothing is left of the batches, 0 when as much as before, or more.

    Raises
    ------
    NotApplicable
        When there was nothing to remove (0/0).
    """
    if before <= _LEAST:
        msg = "batches explain nothing of the input's own space: there is nothing to remove"
        raise NotApplicable(msg)
    return float(np.clip((before - after) / before, 0.0, 1.0))


def batch_pcr_comparison(
    references: Sequence[npt.ArrayLike],
    embeddings: Sequence[npt.ArrayLike],
    batches: Sequence[npt.ArrayLike],
    n_dims: int = 50,
) -> float:
    """Mean over layers of :func:`pcr_comparison` of the layer's own space and its embedding.

    Parameters
    ----------
    references, embeddings
        Own space (its first `n_dims` columns are used) and embedding of each layer's cells.
    batches
        Of each layer's cells.
    n_dims
        Columns of the own spaces.

    Returns
    -------
    float
        In [0, 1]. Layers of one batch, or whose batches explained nothing, are left out.

    Raises
    ------
    NotApplicable
        When no layer is left.
    """
    values = []
    reason = "no layer has two batches"
    for reference, X, groups in zip(references, embeddings, batches, strict=True):
        try:
            before = explained_by_groups(np.asarray(reference)[:, :n_dims], groups)
            after = explained_by_groups(X, groups)
            values.append(pcr_comparison(before, after))
        except NotApplicable as error:
            reason = str(error)
    if not values:
        raise NotApplicable(reason)
    return float(np.mean(values))
