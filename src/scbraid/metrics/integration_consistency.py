"""Integration consistency: whether linked features go together across layers; label-free."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import sparse

from scbraid.errors import NotApplicable
from scbraid.metrics._arrays import as_embedding
from scbraid.metrics._pairs import Frame, Pairs

METACELL_COUNTS = (10, 20, 50, 100, 200)
_N_ROUNDS = 100


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureEdges:
    """Edges between features, self-loops left out.

    Attributes
    ----------
    source_layer, target_layer
        Index of the layer of either end, shape (n_edges,).
    source, target
        Column of either end in the counts of its layer, shape (n_edges,).
    sign
        -1 or 1, shape (n_edges,).
    weight
        Positive, shape (n_edges,).
    """

    source_layer: np.ndarray
    source: np.ndarray
    target_layer: np.ndarray
    target: np.ndarray
    sign: np.ndarray
    weight: np.ndarray

    def __post_init__(self) -> None:
        lengths = {len(getattr(self, field.name)) for field in dataclasses.fields(self)}
        if len(lengths) != 1:
            msg = f"all fields of the edges must have one value an edge. Got lengths {lengths}"
            raise ValueError(msg)


def metacells(X: npt.ArrayLike, n_metacells: int, seed: int = 0) -> np.ndarray:
    """Cluster cells by k-means.

    Parameters
    ----------
    X
        Embedding of shape (n_cells, n_dims).
    n_metacells
        Number of clusters, up to n_cells.
    seed
        Of the first centres, which are drawn by k-means++ (Arthur & Vassilvitskii 2007).

    Returns
    -------
    numpy.ndarray
        int64 of shape (n_cells,) in 0..n_metacells-1; a cluster may be empty where cells coincide.
    """
    X = as_embedding(X)
    if not 0 < n_metacells <= len(X):
        msg = f"n_metacells must be in 1..{len(X)}, the cells. Got {n_metacells}"
        raise ValueError(msg)
    X = Frame(X, X).apply(X)
    rng = np.random.default_rng(seed)
    centres = X[[rng.integers(len(X))]]
    nearest = np.square(X - centres[0]).sum(axis=1)
    while len(centres) < n_metacells:
        total = np.cumsum(nearest)
        if total[-1] == 0.0:
            break
        pick = min(int(np.searchsorted(total, rng.random() * total[-1], side="right")), len(X) - 1)
        centres = np.vstack([centres, X[pick]])
        nearest = np.minimum(nearest, np.square(X - X[pick]).sum(axis=1))
    assigned = np.full(len(X), -1)
    for _ in range(_N_ROUNDS):
        previous = assigned
        assigned = np.empty(len(X), np.int64)
        for rows, strip in Pairs(X, centres, dtype=np.float64).strips():
            assigned[rows] = strip.argmin(axis=1)
        if (assigned == previous).all():
            break
        member = sparse.csr_matrix(
            (np.ones(len(X)), (assigned, np.arange(len(X)))), shape=(len(centres), len(X))
        )
        sizes = np.bincount(assigned, minlength=len(centres))
        filled = sizes > 0
        centres = centres.copy()
        centres[filled] = (member @ X)[filled] / sizes[filled, None]
    return assigned


def integration_consistency(
    embeddings: Sequence[npt.ArrayLike],
    counts: Sequence[sparse.csr_matrix],
    edges: FeatureEdges,
    n_metacells: int,
    seed: int = 0,
) -> float:
    """Correlate linked features across metacells that span all layers.

    All layers' cells are clustered together into metacells; those with cells of every layer are
    kept; counts are summed within them and divided by the metacell's total; each edge gets the
    Spearman correlation of its two ends across metacells; the score is their mean, weighted by
    the edges' weights and signed by their signs: ``sum w s rho / sum w``.

    Parameters
    ----------
    embeddings
        Integrated embedding of each layer, (n_cells, n_dims).
    counts
        Raw counts of each layer, rows in the same order, (n_cells, n_features).
    edges
        Links between features.
    n_metacells
        Number of metacells asked for.
    seed
        Of the clustering.

    Returns
    -------
    float
        In [-1, 1]; above 0.05 at every size when an integration can be trusted, near 0 for layers
        that do not belong together. An edge with an end that does not vary across metacells has no
        correlation and is left out of both sums.

    Raises
    ------
    NotApplicable
        When a layer has fewer cells than metacells are asked for, fewer than two metacells hold
        cells of every layer, or no edge is left.
    """
    arrays = [as_embedding(X) for X in embeddings]
    smallest = min(len(X) for X in arrays)
    if smallest < n_metacells:
        msg = f"{n_metacells} metacells need as many cells in every layer. Got {smallest} in one"
        raise NotApplicable(msg)
    if len(edges.source) == 0:
        msg = "the guidance graph has no edge between different features"
        raise NotApplicable(msg)
    assigned = metacells(np.concatenate(arrays), n_metacells, seed)
    parts = np.split(assigned, np.cumsum([len(X) for X in arrays])[:-1])
    common = np.all([np.bincount(part, minlength=n_metacells) > 0 for part in parts], axis=0)
    n_common = int(common.sum())
    if n_common < 2:
        msg = f"{n_common} of {n_metacells} metacells hold cells of every layer; two are needed"
        raise NotApplicable(msg)
    ranks, offsets, n_before = [], [], 0
    for layer, (part, matrix) in enumerate(zip(parts, counts, strict=True)):
        used = np.unique(
            np.concatenate(
                [
                    edges.source[edges.source_layer == layer],
                    edges.target[edges.target_layer == layer],
                ]
            )
        )
        member = sparse.csr_matrix(
            (np.ones(len(part), np.float32), (part, np.arange(len(part)))),
            shape=(n_metacells, len(part)),
        )
        summed = (member @ matrix)[common].astype(np.float64)
        totals = np.asarray(summed.sum(axis=1)).reshape(-1)
        totals[totals == 0] = 1.0  # a metacell without counts has profile 0
        ranks.append(_standard_ranks(summed.tocsc()[:, used].toarray() / totals[:, None]))
        place = np.full(matrix.shape[1], -1)
        place[used] = np.arange(n_before, n_before + len(used))
        n_before += len(used)
        offsets.append(place)
    table = np.concatenate(ranks, axis=1).T.copy()
    ends = []
    for layer_of_end, column in (
        (edges.source_layer, edges.source),
        (edges.target_layer, edges.target),
    ):
        node = np.empty(len(column), np.int64)
        for layer, place in enumerate(offsets):
            here = layer_of_end == layer
            node[here] = place[column[here]]
        ends.append(node)
    varies = (table != 0).any(axis=1)
    weight = np.where(varies[ends[0]] & varies[ends[1]], edges.weight, 0.0)
    if not weight.any():
        msg = "no edge links two features that vary across metacells"
        raise NotApplicable(msg)
    total = 0.0
    for start in range(0, len(edges.source), 1 << 16):
        some = slice(start, start + (1 << 16))
        correlation = np.einsum("em,em->e", table[ends[0][some]], table[ends[1][some]])
        total += float((weight[some] * edges.sign[some] * correlation).sum())
    return total / float(weight.sum())


def _standard_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks down each column, centred and of unit length; zeros where a column is constant."""
    from scipy.stats import rankdata

    ranks = rankdata(values, axis=0)
    ranks -= ranks.mean(axis=0)
    lengths = np.linalg.norm(ranks, axis=0)
    return np.divide(ranks, lengths, out=np.zeros_like(ranks), where=lengths > 0)
