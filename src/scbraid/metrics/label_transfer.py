"""Label transfer: types of one layer's cells told from the cells of another."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from scbraid.errors import NotApplicable
from scbraid.metrics._arrays import as_embedding, same_width
from scbraid.metrics.neighbors import nearest_neighbors

TRANSFER_NEIGHBORS = 15
# More than half of the votes: 8 of 15.
TRANSFER_THRESHOLD = 0.5
_CHUNK = 1 << 14


def transfer_labels(
    X: npt.ArrayLike, Y: npt.ArrayLike, labels: npt.ArrayLike, k: int = TRANSFER_NEIGHBORS
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
    same_width([X, Y])
    return vote(labels[nearest_neighbors(X, min(k, len(Y)), Y).indices])[0]


def vote(votes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count votes.

    Parameters
    ----------
    votes
        Codes of the labels of the voters of every cell, nearest first, shape (n_cells, k).

    Returns
    -------
    won : numpy.ndarray
        Code with the most votes, shape (n_cells,); of equals that of the nearest voter.
    share : numpy.ndarray
        Share of the votes that it got, shape (n_cells,), in (0, 1].
    """
    won = np.empty(len(votes), votes.dtype)
    share = np.empty(len(votes))
    for start in range(0, len(votes), _CHUNK):
        some = votes[start : start + _CHUNK]
        # Votes that the label of each voter got: the first voter of the best label decides.
        support = np.zeros(some.shape, np.int16)
        for voter in range(some.shape[1]):
            support += some == some[:, voter, None]
        best = support.argmax(axis=1)
        cells = np.arange(len(some))
        won[start : start + _CHUNK] = some[cells, best]
        share[start : start + _CHUNK] = support[cells, best] / some.shape[1]
    return won, share


def decided_accuracy(
    won: np.ndarray, share: np.ndarray, truth: np.ndarray, threshold: float = TRANSFER_THRESHOLD
) -> tuple[float, float]:
    """Accuracy of label transfer that abstains where the vote is close.

    Parameters
    ----------
    won, share
        From :func:`vote`.
    truth
        Codes of the true labels, shape (n_cells,).
    threshold
        Share of the votes below which a cell gets no label.

    Returns
    -------
    accuracy, abstained : float
        Share of right labels among the cells that got one, NaN where none did, and share of the
        cells that got none. Read them together: abstaining more raises the first.
    """
    decided = share >= threshold
    accuracy = float((won == truth)[decided].mean()) if decided.any() else float("nan")
    return accuracy, float(1.0 - decided.mean())


def label_transfer_accuracy(
    X: npt.ArrayLike,
    labels: npt.ArrayLike,
    Y: npt.ArrayLike,
    reference_labels: npt.ArrayLike,
    k: int = TRANSFER_NEIGHBORS,
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
