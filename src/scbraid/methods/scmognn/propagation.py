"""Parameter-free propagation of dense cell-feature matrices (scMoGNN, matching and joint)."""

from __future__ import annotations

import numpy as np


def standardised(A: np.ndarray) -> np.ndarray:
    """(A − mean)/sd with one mean and one sample sd over all entries; zeros where A is constant."""
    centred = A - A.mean(dtype=np.float64)
    spread = np.sqrt((centred**2).sum(dtype=np.float64) / max(A.size - 1, 1))
    # A constant matrix leaves rounding behind.
    if spread <= 1e-7 * np.abs(A).max(initial=0.0):
        return np.zeros_like(A)
    return (centred / spread).astype(A.dtype)


def scaled(W: np.ndarray, scaling: str) -> np.ndarray:
    """Columns with mean 0 (``centre``), with deviation 1 as well (``unit``), or as they are.

    The mean profile is by far the largest component of values that are not centred, and the
    propagation, a power iteration, leaves little else.
    """
    if scaling == "none":
        return W
    centred = W - W.mean(axis=0, dtype=np.float64)
    if scaling == "unit":
        spread = centred.std(axis=0)
        centred /= np.where(spread > 0, spread, 1.0)
    return centred.astype(np.float32)


def standardised_rows(W: np.ndarray) -> np.ndarray:
    """Rows with mean 0 and deviation 1; zeros where a row is constant."""
    centred = W - W.mean(axis=1, keepdims=True, dtype=np.float64)
    spread = centred.std(axis=1, keepdims=True)
    # A constant row leaves rounding behind.
    kept = spread > 1e-7 * np.abs(W).max(axis=1, keepdims=True, initial=0.0)
    return np.divide(centred, spread, out=np.zeros_like(centred), where=kept).astype(np.float32)


def propagate(W: np.ndarray, n_iterations: int) -> np.ndarray:
    """States of cells after every iteration but the first.

    F⁰ = I and H⁰ = 0; H' = std(W F), F' = std(Wᵀ H), both of the old states; then
    H ← std(½H + ½H') and F ← std(½F + ½F').

    Parameters
    ----------
    W
        Cells by components, (n_cells, k), of any sign.
    n_iterations
        Iterations L; 0 gives std(W) itself.

    Returns
    -------
    ndarray
        float32 (max(L − 1, 1), n_cells, k).
    """
    W = np.asarray(W, np.float32)
    if n_iterations == 0:
        return standardised(W)[None]
    features = np.eye(W.shape[1], dtype=np.float32)
    cells = np.zeros_like(W)
    found = []
    for _ in range(n_iterations):
        new_cells = standardised(W @ features)
        new_features = standardised(W.T @ cells)
        cells = standardised((cells + new_cells) / 2)
        features = standardised((features + new_features) / 2)
        found.append(cells)
    return np.stack(found[1:] or found)
