"""Checks of the arrays that metrics are handed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def as_embedding(X: npt.ArrayLike, name: str = "embedding") -> np.ndarray:
    """Return `X` as a floating array of shape (n_cells, n_dims), refusing anything else.

    Parameters
    ----------
    X
        Anything that converts to a two-dimensional array of finite real numbers.
    name
        How to call it in an error.

    Raises
    ------
    ValueError
        When it has other than two dimensions, no column, or a value that is not finite.
    """
    X = np.asarray(X)
    if X.ndim != 2 or X.shape[1] == 0:
        msg = f"{name} must have shape (n_cells, n_dims) with n_dims > 0. Got {X.shape}"
        raise ValueError(msg)
    if X.dtype not in (np.float32, np.float64):
        X = X.astype(np.float64 if X.dtype.kind in "iu" else np.float32)
    n_bad = int((~np.isfinite(X)).any(axis=1).sum())
    if n_bad:
        msg = f"{name} must be finite; remove other rows first. Got {n_bad} with NaN or infinity"
        raise ValueError(msg)
    return X


def same_width(embeddings: Sequence[np.ndarray]) -> None:
    """Refuse embeddings that do not lie in one common space.

    Raises
    ------
    ValueError
        When their numbers of columns differ.
    """
    widths = sorted({X.shape[1] for X in embeddings})
    if len(widths) > 1:
        msg = f"embeddings must have the same number of dimensions. Got {widths}"
        raise ValueError(msg)


def encode(labels: npt.ArrayLike, n_cells: int | None = None, name: str = "labels") -> np.ndarray:
    """Return codes 0, 1, ... of the labels that occur, int64 of shape (n_cells,).

    Levels without a cell (of a categorical, say) get no code. The order of codes follows the order
    of the sorted labels; no metric depends on it.

    Raises
    ------
    ValueError
        When the shape is not (n_cells,) or a label is missing (None or NaN).
    """
    values = np.asarray(labels)
    if values.ndim != 1 or (n_cells is not None and len(values) != n_cells):
        msg = f"{name} must have shape ({'n_cells' if n_cells is None else n_cells},). "
        msg += f"Got {values.shape}"
        raise ValueError(msg)
    if values.dtype.kind == "O":
        missing = np.fromiter((v is None or v != v for v in values), bool, len(values))
    else:
        missing = values != values  # true of NaN alone
    if missing.any():
        msg = f"{name} must be known for every cell. Got {int(missing.sum())} missing"
        raise ValueError(msg)
    if values.dtype.kind == "O":
        values = values.astype(str)
    return np.unique(values, return_inverse=True)[1].reshape(-1).astype(np.int64)


def share_of(n_cells: int, fraction: float = 0.01) -> int:
    """Return the neighbour count that is a share of the cells: ``max(round(fraction * n), 1)``."""
    return max(round(fraction * n_cells), 1)
