"""Contrast of two views of the same cells (InfoNCE), in two forms."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _similarities(
    first: Tensor, second: Tensor, temperature: float, excluded: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Cosines over τ of both views of a cell, (n,), and of all views with all, (2n, 2n).

    In the second, a view with itself, with the other view of its cell and whatever is excluded
    is -inf.
    """
    n_cells = len(first)
    unit = F.normalize(torch.cat([first, second]), dim=1)
    similarity = unit @ unit.T / temperature
    positive = similarity.diagonal(n_cells)
    same = torch.eye(n_cells, dtype=torch.bool, device=first.device)
    if excluded is not None:
        same = same | excluded
    return positive, similarity.masked_fill(same.repeat(2, 2), -torch.inf)


def nt_xent(
    first: Tensor, second: Tensor, *, temperature: float, excluded: Tensor | None = None
) -> Tensor:
    """Cross-entropy of finding a cell's other view among all views of other cells.

    Mean over the 2n views of −log( e^{s⁺} / (e^{s⁺} + Σ e^{s}) ) with cosines over τ; the sum goes
    over both views of every other cell (Chen et al. 2020).

    Parameters
    ----------
    first, second
        Views (n_cells, k), row i of both being one cell.
    temperature
        τ > 0.
    excluded
        Bool (n_cells, n_cells), symmetric: pairs of cells that are no negatives of each other.
    """
    positive, negative = _similarities(first, second, temperature, excluded)
    positive = torch.cat([positive, positive])
    return (torch.logaddexp(positive, negative.logsumexp(1)) - positive).mean()


def decoupled_contrast(
    first: Tensor, second: Tensor, *, temperature: float, excluded: Tensor | None = None
) -> Tensor:
    """−(1/2n) Σ_j log( e^{s_{j,j⁺}} / Σ_{r≠j} [e^{s_{j⁺,r}} + e^{s_{j,r}}] ), CoVEL's printed form.

    r goes over both views of the other cells, so the positive is not in the denominator and the
    loss can be negative. 0 where no cell has a negative.

    Parameters
    ----------
    first, second, temperature, excluded
        As of `nt_xent`.
    """
    positive, negative = _similarities(first, second, temperature, excluded)
    pool = torch.logaddexp(*negative.logsumexp(1).chunk(2))
    has_negative = pool > -torch.inf
    losses = torch.where(has_negative, pool - positive, 0.0)
    return losses.sum() / (2 * len(first))


def nearest_pairs(embedding: Tensor, k: int) -> Tensor:
    """Pairs of which one is among the other's k nearest by cosine, bool (n, n), symmetric.

    Parameters
    ----------
    embedding
        (n_cells, dim).
    k
        Neighbours of a cell, at least 1.
    """
    unit = F.normalize(embedding.detach(), dim=1)
    similarity = unit @ unit.T
    similarity.fill_diagonal_(-torch.inf)
    nearest = similarity.topk(min(k, len(unit) - 1), dim=1).indices
    pairs = torch.zeros_like(similarity, dtype=torch.bool)
    pairs.scatter_(1, nearest, value=True)
    return pairs | pairs.T
