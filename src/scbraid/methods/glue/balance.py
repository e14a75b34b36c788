"""Balancing weights: how much of each layer's clusters the other layers also have."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable

import numpy as np

Clustering = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Balance:
    """Weights of each layer's rows (mean 1 in a layer) and the clusters behind them.

    Where rows stand for several cells, `member_weights` are those of each row's cells (mean 1 over
    the cells of a layer).
    """

    weights: list[np.ndarray]
    n_clusters: list[int]
    member_weights: list[np.ndarray]

    def summary(self, names: Iterable[str]) -> dict[str, dict[str, float]]:
        """Clusters, share of rows without a partner and largest weight, by layer name."""
        return {
            name: {
                "clusters": n_clusters,
                "share_unmatched": round(float((weights == 0).mean()), 4),
                "largest_weight": round(float(weights.max()), 3),
            }
            for name, n_clusters, weights in zip(names, self.n_clusters, self.weights, strict=True)
        }


def balancing_weights(
    embeddings: list[np.ndarray],
    cluster: Clustering,
    *,
    cutoff: float = 0.5,
    power: float = 4.0,
    rule: str = "sum",
    members: list[np.ndarray] | None = None,
) -> Balance:
    """Estimate the weights of the second training stage.

    Clusters of every layer are matched by the cosine C of their mean embeddings; entries below
    `cutoff` are set to 0, the others to C^power. A cluster's weight is the sum of its entries with
    the clusters of all other layers, divided by its number of cells (rule ``sum``, the text of
    GLUE, Cao & Gao 2022, equations 21-25), or the sum of its slice of the tensor of products over
    all pairs of layers (rule ``product``, the authors' code). For two layers they are the same.

    Parameters
    ----------
    embeddings
        One (n_cells, latent_dim) array a layer.
    cluster
        Maps an embedding to integer labels (n_cells,).
    cutoff, power, rule
        As above; `rule` is ``product`` or ``sum``.
    members
        Cells that each row of a layer stands for; one when None.

    Returns
    -------
    Balance
        A cluster without a partner above the cutoff has weight 0: its cells are not aligned.
        When no cluster of a layer has a partner, all its weights are 1.
    """
    labels = [np.unique(cluster(u), return_inverse=True)[1] for u in embeddings]
    sizes = [np.bincount(label) for label in labels]
    means = [_unit_means(u, label) for u, label in zip(embeddings, labels, strict=True)]
    n_layers = len(embeddings)
    similarity = {}
    for a, b in itertools.combinations(range(n_layers), 2):
        cosine = means[a] @ means[b].T
        similarity[a, b] = np.where(cosine < cutoff, 0.0, cosine) ** power
    combine = _product_weights if rule == "product" else _sum_weights
    weights, member_weights = [], []
    for k in range(n_layers):
        cluster_total = combine(similarity, [len(size) for size in sizes], k)
        weight = (cluster_total / sizes[k])[labels[k]]
        total = weight.mean()
        weights.append(weight / total if total > 0 else np.ones(len(weight)))
        if members is None:
            member_weights.append(weights[-1])
            continue
        cells = np.bincount(labels[k], weights=members[k])
        weight = (cluster_total / cells)[labels[k]]
        total = np.average(weight, weights=members[k])
        member_weights.append(weight / total if total > 0 else np.ones(len(weight)))
    return Balance(weights, [len(size) for size in sizes], member_weights)


def _unit_means(embedding: np.ndarray, label: np.ndarray) -> np.ndarray:
    sums = np.zeros((label.max() + 1, embedding.shape[1]))
    np.add.at(sums, label, embedding.astype(np.float64))
    return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)


def _product_weights(
    similarity: dict[tuple[int, int], np.ndarray], n_clusters: list[int], axis: int
) -> np.ndarray:
    """Sum the tensor Π_{a<b} S_ab[c_a, c_b] over all axes but one, without building it."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    if len(n_clusters) == 2:
        return similarity[0, 1].sum(axis=1 - axis)
    terms = ",".join(letters[a] + letters[b] for a, b in similarity)
    return np.einsum(f"{terms}->{letters[axis]}", *similarity.values(), optimize=True)


def _sum_weights(
    similarity: dict[tuple[int, int], np.ndarray], n_clusters: list[int], axis: int
) -> np.ndarray:
    total = np.zeros(n_clusters[axis])
    for (a, b), values in similarity.items():
        if axis in (a, b):
            total += values.sum(axis=1 if axis == a else 0)
    return total


def balance_within_batches(
    embeddings: list[np.ndarray],
    batches: list[np.ndarray],
    cluster: Clustering,
    *,
    members: list[np.ndarray] | None = None,
    **options: float | str,
) -> Balance:
    """Balance separately within every batch shared by all layers.

    Parameters
    ----------
    embeddings
        One array a layer.
    batches
        Batch codes of every layer's cells; every layer has the same set of codes.
    cluster
        Maps an embedding to integer labels.
    members, **options
        As of `balancing_weights`.
    """
    weights = [np.ones(len(u)) for u in embeddings]
    member_weights = [np.ones(len(u)) for u in embeddings]
    n_clusters = [0] * len(embeddings)
    for code in np.unique(batches[0]):
        rows = [np.flatnonzero(batch == code) for batch in batches]
        parts = [u[r] for u, r in zip(embeddings, rows, strict=True)]
        own = None if members is None else [m[r] for m, r in zip(members, rows, strict=True)]
        part = balancing_weights(parts, cluster, members=own, **options)  # type: ignore[arg-type]
        for k, r in enumerate(rows):
            weights[k][r] = part.weights[k]
            member_weights[k][r] = part.member_weights[k]
            n_clusters[k] += part.n_clusters[k]
    return Balance(weights, n_clusters, member_weights)
