"""Attention over masked views of a cell, and over other cells or anchors."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


def masked_views(x: Tensor, n_views: int, rate: float, *, shared: bool) -> Tensor:
    """Copies of the rows with features set to zero at random.

    Parameters
    ----------
    x
        (n, n_features).
    n_views
        T.
    rate
        Probability of a feature to be masked.
    shared
        One mask for all rows of a view; otherwise each row has its own.

    Returns
    -------
    Tensor
        (n, T, n_features). Noise comes from torch's generator.
    """
    n, width = x.shape
    keep = torch.rand(1 if shared else n, n_views, width, device=x.device) >= rate
    return x[:, None, :] * keep


class ViewAttention(nn.Module):
    """ẑ = FFN(max over views of self-attention over the embeddings of T masked views).

    Parameters
    ----------
    dim
        Width of the embeddings.
    n_heads
        Heads of the attention; they divide `dim`.

    Notes
    -----
    scI2CL, intra-omics module; the feed-forward part is dim → 4·dim (ReLU) → dim.
    """

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, n_heads, batch_first=True)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim)
        )

    def forward(self, views: Tensor) -> Tensor:
        """Map (n, T, dim) to (n, dim)."""
        mixed, _ = self.attention(views, views, views, need_weights=False)
        return self.feed_forward(mixed.amax(1))


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(Q Kᵀ/√d) V; queries (n, d), keys (m, d), values (m, k) -> (n, k)."""
    weights = (queries @ keys.T / math.sqrt(queries.shape[1])).softmax(1)
    return weights @ values


class Projections(nn.Module):
    """Learned W^Q, W^K, W^V of an attention."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attend with projected queries, keys and values."""
        return attend(self.query(queries), self.key(keys), self.value(values))


class CrossAttention(nn.Module):
    """Each layer's embedding, plus what the other layer looks like in similar cells, normalised.

    Over the cells of a minibatch it is the original's::

        Z_r ← LayerNorm(Z_r + softmax(Z_r Z_aᵀ/√e) Z_a)     and the same with r and a exchanged

    so that a cell's result depends on the cells beside it, and its own partner is among the keys.
    Over anchors, a learned table of M pairs (K_r, K_a) that starts at typical cells, a cell looks
    up anchors by its own layer and takes their other layer::

        Z_r ← LayerNorm(Z_r + softmax(Z_r K_rᵀ/√e) K_a)

    which depends on nothing but the cell.

    Parameters
    ----------
    dim
        Width e.
    kind
        ``batch``, ``anchors`` or ``none`` (layer normalisation alone).
    n_anchors
        M.
    projections
        Whether queries, keys and values have learned projections (the paper's text).
    """

    def __init__(self, dim: int, kind: str, n_anchors: int, *, projections: bool) -> None:
        super().__init__()
        self.kind = kind
        self.norms = nn.ModuleList([nn.LayerNorm(dim), nn.LayerNorm(dim)])
        self.anchors = nn.Parameter(torch.randn(2, n_anchors, dim)) if kind == "anchors" else None
        self.project: nn.ModuleList | None = None
        if projections and kind != "none":
            self.project = nn.ModuleList([Projections(dim), Projections(dim)])

    def mix(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Both layers of the same cells plus what they attend to, each (n, dim), not normalised."""
        layers = (first, second)
        mixed = []
        for own, other in ((0, 1), (1, 0)):
            z = layers[own]
            if self.kind == "batch":
                z = z + self._attention(own)(z, layers[other], layers[other])
            elif self.anchors is not None:
                z = z + self._attention(own)(z, self.anchors[own], self.anchors[other])
            mixed.append(z)
        return mixed[0], mixed[1]

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Map both layers of the same cells, each (n, dim), to the same shapes."""
        first, second = self.mix(first, second)
        return self.norms[0](first), self.norms[1](second)

    def _attention(self, layer: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        return attend if self.project is None else self.project[layer]
