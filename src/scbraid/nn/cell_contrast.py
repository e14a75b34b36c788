"""Contrast and matching of the two layers of a cell: losses, and the choice of negatives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cosine_scores(first: Tensor, second: Tensor) -> Tensor:
    """Cosines of all pairs of rows, (n_first, n_second)."""
    return F.normalize(first, dim=1) @ F.normalize(second, dim=1).T


def symmetric_info_nce(scores: Tensor) -> Tensor:
    """½[CE(S, I) + CE(Sᵀ, I)]: each row's partner among all columns, and the reverse.

    Parameters
    ----------
    scores
        Similarities over temperature, (n, n); partners are on the diagonal.

    Returns
    -------
    Tensor
        Scalar; log n where the scores say nothing.

    Notes
    -----
    scI2CL, L_MOC; ALBEF's image-text contrast without queue and momentum.
    """
    partner = torch.arange(len(scores), device=scores.device)
    return (F.cross_entropy(scores, partner) + F.cross_entropy(scores.T, partner)) / 2


def random_candidates(n: int, device: torch.device | None = None) -> Tensor:
    """Every other cell with the same weight, (n, n)."""
    return 1 - torch.eye(n, device=device)


def hard_candidates(scores: Tensor, exclude: float) -> Tensor:
    """Other cells by exp(score), without the nearest ones, which may be of the anchor's kind.

    Parameters
    ----------
    scores
        Similarities over temperature, (n, n); no gradient is passed.
    exclude
        Share of the n − 1 others, the most similar ones, that is left out; at least one stays.

    Returns
    -------
    Tensor
        Weights, (n, n), largest 1 in a row, 0 for the cell itself.
    """
    n = len(scores)
    others = scores.detach().float().masked_fill(torch.eye(n, device=scores.device) > 0, -torch.inf)
    n_out = min(int(exclude * (n - 1)), max(n - 2, 0))
    if n_out:
        nearest = others.topk(n_out, dim=1).indices
        others = others.scatter(1, nearest, -torch.inf)
    if n == 1:
        return torch.zeros_like(others)
    return (others - others.amax(1, keepdim=True)).exp()


def label_candidates(labels: Tensor) -> Tensor:
    """Cells of another known label with the same weight, (n, n); label −1 is not known.

    A cell without label has no candidates and is none.
    """
    known = labels >= 0
    other = (labels[:, None] != labels[None, :]) & known[:, None] & known[None, :]
    return other.float()


def draw_negatives(weights: Tensor, n_negatives: int) -> tuple[Tensor, Tensor]:
    """Draw for every row up to `n_negatives` different columns, by weight.

    Parameters
    ----------
    weights
        (n, n), >= 0; a column of weight 0 is never drawn.
    n_negatives
        Wanted a row; rows with fewer candidates give all of theirs.

    Returns
    -------
    tuple
        anchors and negatives, int64 of the same length: pairs (row, drawn column), rows ascending.

    Notes
    -----
    The largest of log w + Gumbel noise are a weighted draw without replacement (Efraimidis &
    Spirakis 2006), so that no row needs a loop. Noise comes from torch's generator.
    """
    k = min(n_negatives, weights.shape[1])
    gumbel = -torch.empty_like(weights).exponential_().clamp_min(1e-20).log()
    keys = weights.log() + gumbel
    best, columns = keys.topk(k, dim=1)
    rows, places = (best > -torch.inf).nonzero(as_tuple=True)
    return rows, columns[rows, places]


def matching_loss(logits: Tensor, matched: Tensor, *, double_softmax: bool = False) -> Tensor:
    """Cross-entropy of telling true pairs (class 1) from drawn ones (class 0).

    Parameters
    ----------
    logits
        (n_pairs, 2).
    matched
        Classes, int64 (n_pairs,).
    double_softmax
        Put the softmax of the logits into the cross-entropy, which applies one itself, as the
        original does: the loss then stays above log(1 + 1/e) ≈ 0.313.

    Returns
    -------
    Tensor
        Scalar.
    """
    return F.cross_entropy(logits.softmax(1) if double_softmax else logits, matched)
