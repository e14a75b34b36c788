"""Label transfer: types of one layer's cells told from the cells of another."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from scbraid.errors import NotApplicable
from scbraid.metrics._arrays import as_embedding
from scbraid.metrics.neighbors import neighbor_strips


def transfer_labels(
    X: npt.ArrayLike, Y: npt.ArrayLike, labels: npt.ArrayLike, k: int = 15
) -> np.ndarray:
    """Give every cell of `X` the commonest label among its nearest cells of `Y`.

    Parameters
    ----------
    X, Y
        Embeddings of the cells that ask, (n_cells, n_dims), and of those that vote,
        (m_cells, n_dims).
    labels
        Codes 0..n_labels-1 of the voting cells, shape (m_cells,).
    k
        Votes of a cell (all of `Y` where it has fewer).

    Returns
    -------
    numpy.ndarray
        Codes of shape (n_cells,). Among labels with equally many votes the one wins whose nearest
        voter is nearest, so that no label has an advantage by its name.
    """
    X, Y = as_embedding(X), as_embedding(Y)
    labels = np.asarray(labels)
    if len(Y) == 0 or len(X) == 0:
        msg = "a layer without labelled cells can neither give nor take labels"
        raise NotApplicable(msg)
    k = min(k, len(Y))
    won = np.empty(len(X), np.int64)
    for rows, indices in neighbor_strips(X, k, Y):
        votes = labels[indices]
        # Votes that the label of each voter got: the first voter of the best label decides.
        support = (votes[:, :, None] == votes[:, None, :]).sum(axis=2)
        best = support.argmax(axis=1)
        won[rows] = votes[np.arange(len(votes)), best]
    return won


def label_transfer_accuracy(
    X: npt.ArrayLike,
    labels: npt.ArrayLike,
    Y: npt.ArrayLike,
    reference_labels: npt.ArrayLike,
    k: int = 15,
) -> float:
    """Share of cells whose label is told rightly by their nearest cells in another layer.

    Parameters
    ----------
    X, labels
        Cells that are given a label, (n_cells, n_dims), and their true ones, (n_cells,).
    Y, reference_labels
        Cells that vote, (m_cells, n_dims), and their labels, (m_cells,).
    k
        Number of votes.

    Returns
    -------
    float
        In [0, 1]. Compare with :func:`majority_share`. A cell whose label no voter has counts as
        wrong.
    """
    names, codes = np.unique(
        np.concatenate([np.asarray(labels), np.asarray(reference_labels)]), return_inverse=True
    )
    del names
    truth, voters = codes[: len(np.asarray(labels))], codes[len(np.asarray(labels)) :]
    return float((transfer_labels(X, Y, voters, k) == truth).mean())


def majority_share(labels: npt.ArrayLike) -> float:
    """Share of the commonest label: the accuracy of always guessing it, in (0, 1]."""
    counts = np.unique(np.asarray(labels), return_counts=True)[1]
    if len(counts) == 0:
        msg = "no labelled cell"
        raise NotApplicable(msg)
    return float(counts.max() / counts.sum())
