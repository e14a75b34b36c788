"""Sets of tokens, one of each kind of feature, from the rows of a sparse matrix."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from scbraid.nn.counts import CountBatch
from scbraid.train.devices import widest_float


@dataclasses.dataclass(frozen=True)
class TokenBatch:
    """The tokens of some cells, filled up to one length.

    Attributes
    ----------
    feature
        int64 (n_cells, n_tokens): which feature a token is; 0 where there is none.
    value
        (n_cells, n_tokens): its value; 0 where there is none.
    log_weight
        (n_cells, n_tokens): 0 for a token, -inf where there is none, log w for a token that stands
        for w features. Every cell has a token: one without any value has a zero of feature 0.
    """

    feature: Tensor
    value: Tensor
    log_weight: Tensor


def _ranks(rows: Tensor, n_rows: int) -> tuple[Tensor, Tensor]:
    """Position of each entry in its row (rows ascend), and the lengths of the rows."""
    lengths = torch.bincount(rows, minlength=n_rows)
    first = torch.cumsum(lengths, 0) - lengths
    return torch.arange(len(rows), device=rows.device) - first[rows], lengths


def nonzero_tokens(batch: CountBatch, limit: int | None = None) -> TokenBatch:
    """One token for each non-zero entry of a cell.

    Parameters
    ----------
    batch
        The cells.
    limit
        Cells with more entries keep this many, drawn at random without replacement; attention,
        being a mean over tokens, stays about the same. None keeps all.
    """
    n_cells = batch.shape[0]
    rows, features, values = batch.rows, batch.columns, batch.values
    rank, lengths = _ranks(rows, n_cells)
    if limit is not None and len(rows) and int(lengths.max()) > limit:
        shuffle = torch.rand(len(rows), dtype=widest_float(rows.device), device=rows.device)
        order = torch.argsort(shuffle)
        order = order[torch.argsort(rows[order], stable=True)]
        keep = order[rank < limit].sort().values
        rows, features, values = rows[keep], features[keep], values[keep]
        rank, lengths = _ranks(rows, n_cells)
    shape = (n_cells, max(1, int(lengths.max())))
    feature = features.new_zeros(shape)
    value = values.new_zeros(shape)
    log_weight = values.new_full(shape, -torch.inf)
    feature[rows, rank] = features
    value[rows, rank] = values
    log_weight[rows, rank] = 0.0
    log_weight[:, 0] = 0.0
    return TokenBatch(feature, value, log_weight)


def all_tokens(batch: CountBatch) -> TokenBatch:
    """One token for every feature, zeros included."""
    n_cells, n_features = batch.shape
    feature = torch.arange(n_features, device=batch.rows.device).expand(n_cells, -1)
    value = batch.dense()
    return TokenBatch(feature, value, torch.zeros_like(value))


def with_zeros(tokens: TokenBatch, batch: CountBatch) -> TokenBatch:
    """Add as many tokens of zeros as there are places for tokens, drawn at random.

    Features are drawn uniformly with replacement, those that are non-zero in the cell are left out,
    and the rest are weighted to stand for all zeros of the cell, beside the non-zero tokens that
    are there: attention over the result is a consistent estimate of attention over every feature.

    Parameters
    ----------
    tokens
        Non-zero tokens of the cells.
    batch
        The same cells.
    """
    shape = tokens.feature.shape
    device = tokens.feature.device
    present = torch.zeros(batch.shape, dtype=torch.bool, device=device)
    present[batch.rows, batch.columns] = True
    feature = torch.randint(batch.shape[1], shape, device=device)
    zero = ~present.gather(1, feature)
    n_zeros = batch.shape[1] - present.sum(1, keepdim=True)
    each = n_zeros / zero.sum(1, keepdim=True).clamp_min(1)
    # Where only some of the non-zero tokens are kept, zeros count less by the same share.
    kept = (tokens.log_weight == 0).sum(1, keepdim=True)
    each = each * kept / present.sum(1, keepdim=True).clamp_min(1)
    log_weight = torch.where(zero, each.log().to(tokens.log_weight.dtype), -torch.inf)
    return TokenBatch(
        torch.cat([tokens.feature, feature], 1),
        torch.cat([tokens.value, torch.zeros_like(tokens.value)], 1),
        torch.cat([tokens.log_weight, log_weight], 1),
    )
