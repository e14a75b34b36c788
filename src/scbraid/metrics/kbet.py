"""kBET: whether batches stand around a cell in the shares they have overall."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from scbraid.errors import NotApplicable
from scbraid.metrics._arrays import as_embedding, encode
from scbraid.metrics._sweep import find_nearest
from scbraid.metrics.bras import cells_by_code
from scbraid.metrics.neighbors import Neighbors
from scbraid.metrics.sampling import Estimate, Sample

KBET_NEIGHBORS = 50
_LEVEL = 0.05
_FEWEST_CELLS = 10
_FEWEST_NEIGHBORS, _MOST_NEIGHBORS = 10, 70


def accepted(
    indices: np.ndarray,
    batches: np.ndarray,
    level: float = _LEVEL,
    shares: np.ndarray | None = None,
) -> np.ndarray:
    """Test for every cell whether its neighbours are an even draw of the batches.

    Parameters
    ----------
    indices
        Neighbours, shape (n_cells, k).
    batches
        Codes 0..B-1 of the cells that the indices point at, shape (n_all_cells,); every code
        occurs.
    level
        Of the test.
    shares
        Share of each batch, by default that among `batches`.

    Returns
    -------
    numpy.ndarray
        bool of shape (n_cells,): Pearson's chi-square statistic of the counts of the batches, with
        B - 1 degrees of freedom, is not significant at the level.
    """
    from scipy.special import chdtri

    sizes = np.bincount(batches)
    n_batches = len(sizes)
    expected = (sizes / sizes.sum() if shares is None else shares) * indices.shape[1]
    passed = np.empty(len(indices), bool)
    limit = chdtri(n_batches - 1, level)
    for start in range(0, len(indices), 1 << 14):
        rows = slice(start, min(start + (1 << 14), len(indices)))
        place = np.arange(rows.stop - rows.start)[:, None] * n_batches + batches[indices[rows]]
        counts = np.bincount(place.reshape(-1), minlength=(rows.stop - rows.start) * n_batches)
        difference = counts.reshape(-1, n_batches) - expected
        passed[rows] = (np.square(difference) / expected).sum(axis=1) <= limit
    return passed


def kbet(neighbors: Neighbors, batches: npt.ArrayLike, level: float = _LEVEL) -> float:
    """Share of cells whose nearest cells are an even draw of the batches.

    Parameters
    ----------
    neighbors
        The nearest others of every cell; 50 of them for the definition ``knn-50-noself``.
    batches
        Shape (n_cells,).
    level
        Of the chi-square test.

    Returns
    -------
    float
        Acceptance rate in [0, 1], 1 - `level` expected of perfect mixing.

    Raises
    ------
    NotApplicable
        When there is one batch.

    Notes
    -----
    Büttner et al. (2019), on every cell, with a fixed number of neighbours. The cell itself is not
    counted.
    """
    codes = encode(batches, neighbors.n_cells, "batches")
    if codes.max(initial=0) == 0:
        msg = "there is one batch only"
        raise NotApplicable(msg)
    return float(accepted(neighbors.indices, codes, level).mean())


def kbet_per_label(
    X: npt.ArrayLike, labels: npt.ArrayLike, batches: npt.ArrayLike, level: float = _LEVEL
) -> float:
    """Mean over cell types of the acceptance rate among the cells of the type.

    Parameters
    ----------
    X
        Embedding, shape (n_cells, n_dims).
    labels, batches
        Cell types and batches, shape (n_cells,).
    level
        Of the chi-square test.

    Returns
    -------
    float
        In [0, 1]. Types of one batch or with fewer than ten cells are left out.

    Raises
    ------
    NotApplicable
        When no type is left.

    Notes
    -----
    As in scib, a type with batches of m cells on average is tested with
    ``k = min(70, max(10, floor(m / 4)))`` neighbours (at most all its other cells) against the
    shares of the batches within the type. Neighbours are the nearest cells of the type in the
    embedding: the diffusion step by which scib completes the fragments of a graph is not needed
    for them and left out. Every cell is tested; nothing is drawn.
    """
    return kbet_label_estimate(X, labels, batches, level).value


def kbet_label_estimate(
    X: npt.ArrayLike,
    labels: npt.ArrayLike,
    batches: npt.ArrayLike,
    level: float = _LEVEL,
    sample: Sample | None = None,
) -> Estimate:
    """Acceptance rate among the cells of each type, of all cells or of drawn ones.

    Parameters
    ----------
    X, labels, batches, level
        As in :func:`kbet_per_label`.
    sample
        Cells that are tested, each among all cells of its type; all cells when None.

    Returns
    -------
    Estimate
        Mean over types; `n_cells` counts the tested cells of the types that are not left out.
    """
    X = as_embedding(X)
    label, batch = encode(labels, len(X)), encode(batches, len(X), "batches")
    rates, errors, n_tested = [], [], 0
    for one, cells in enumerate(cells_by_code(label)):
        present, codes = np.unique(batch[cells], return_inverse=True)
        if len(cells) < _FEWEST_CELLS or len(present) < 2:
            continue
        quarter = math.floor(len(cells) / len(present) / 4)
        k = min(_MOST_NEIGHBORS, max(_FEWEST_NEIGHBORS, quarter), len(cells) - 1)
        if sample is None:
            indices = find_nearest(X[cells], k_near=k)[0]
            rate, error = float(accepted(indices, codes.reshape(-1), level).mean()), 0.0
        else:
            among = label[sample.rows] == one
            # Cells of a type are increasing, as drawn cells are.
            asked = np.searchsorted(cells, sample.rows[among])
            indices = find_nearest(X[cells[asked]], X[cells], own=asked, k_near=k)[0]
            passed = np.zeros(len(among))
            passed[among] = accepted(indices, codes.reshape(-1), level)
            rate, error = sample.mean(passed, among)
        rates.append(rate)
        errors.append(error)
        n_tested += len(indices)
    if not rates:
        msg = f"no cell type stands in two batches with {_FEWEST_CELLS} cells"
        raise NotApplicable(msg)
    error = float(np.linalg.norm(errors)) / len(rates)
    return Estimate(float(np.mean(rates)), None if sample is None else error, n_tested)
