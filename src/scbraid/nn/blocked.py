"""Block-diagonal layers on sparse rows: a small network a block of features.

The features of a row come in blocks (chromosomes). A first layer that is block-diagonal keeps one
weight row a feature, as a dense one does, but sums the rows of the non-zero features of each block
by themselves. That is one sparse product, with a row for each (cell, block) pair.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import warnings
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from scbraid.nn.counts import CountBatch


@dataclasses.dataclass(frozen=True)
class BlockedBatch:
    """Some sparse rows with what block-diagonal layers need to know of them.

    Attributes
    ----------
    counts
        The rows; their columns ascend within a row.
    blocks
        Block of each feature, int64 (n_features,), ascending.
    n_blocks
        Number of blocks.
    order
        Positions of the non-zero entries in the order of their columns, int64 (n_nonzero,).
    starts
        Where each feature's entries begin in that order, int64 (n_features + 1,).
    """

    counts: CountBatch
    blocks: Tensor
    n_blocks: int
    order: Tensor
    starts: Tensor

    @classmethod
    def of(cls, counts: CountBatch, blocks: Tensor, n_blocks: int) -> BlockedBatch:
        """Sort the entries of `counts` by column."""
        sort = sort_on_host if counts.columns.device.type == "cpu" else sort_on_device
        return cls(counts, blocks, n_blocks, *sort(counts))

    @property
    def bags(self) -> Tensor:
        """Row · n_blocks + block of each non-zero entry, ascending, int64 (n_nonzero,)."""
        return self.counts.rows * self.n_blocks + self.blocks[self.counts.columns]


def sort_on_host(counts: CountBatch) -> tuple[Tensor, Tensor]:
    """Order by column, and where each column begins: a counting sort, ten times torch's speed."""
    per_row = np.bincount(counts.rows.numpy(), minlength=counts.shape[0])
    starts = np.concatenate([[0], np.cumsum(per_row)])
    ranks = np.arange(len(counts.columns), dtype=np.int64)
    matrix = sp.csr_matrix((ranks, counts.columns.numpy(), starts), shape=counts.shape).tocsc()
    return torch.from_numpy(matrix.data), torch.from_numpy(matrix.indptr.astype(np.int64))


def sort_on_device(counts: CountBatch) -> tuple[Tensor, Tensor]:
    """Return the same where the entries are not in host memory."""
    per_feature = torch.bincount(counts.columns, minlength=counts.shape[1])
    starts = torch.cat([per_feature.new_zeros(1), per_feature.cumsum(0)])
    return torch.argsort(counts.columns, stable=True), starts


class SparseBlockLinear(nn.Module):
    """Linear map of the features of each block, without bias; the input is sparse.

    Xavier-uniform weights, each block as a layer of its own.

    Parameters
    ----------
    bounds
        First feature of each block, and the number of features.
    out_dim
        Width of every block's output.
    """

    def __init__(self, bounds: list[int], out_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(bounds[-1], out_dim))
        xavier_blocks_(self.weight, bounds)

    def forward(self, values: Tensor, batch: BlockedBatch) -> Tensor:
        """Return (n_rows, n_blocks, out_dim).

        Parameters
        ----------
        values
            The non-zero entries, (n_nonzero,), in the order of `batch.counts`; no gradient.
        batch
            Where they are.
        """
        return _SparseBlockProduct.apply(self.weight, values, batch)


class BlockLinear(nn.Module):
    """Linear map of each block by itself, without bias, in one batched product; Xavier-uniform."""

    def __init__(self, n_blocks: int, in_dim: int, out_dim: int) -> None:
        super().__init__()
        bound = math.sqrt(6 / (in_dim + out_dim))
        self.weight = nn.Parameter(torch.empty(n_blocks, in_dim, out_dim).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """Map (n_rows, n_blocks, in_dim) to (n_rows, n_blocks, out_dim)."""
        return torch.bmm(x.transpose(0, 1), self.weight).transpose(0, 1)


@torch.no_grad()
def xavier_blocks_(weight: Tensor, bounds: list[int]) -> None:
    """Fill (n_features, width) with Xavier-uniform values, each block as a layer of its own."""
    for first, last in itertools.pairwise(bounds):
        bound = math.sqrt(6 / (last - first + weight.shape[1]))
        weight[first:last].uniform_(-bound, bound)


class _SparseBlockProduct(torch.autograd.Function):
    """Sums of weight rows by (row, block), and their transpose for the gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, values: Tensor, batch: BlockedBatch) -> Tensor:
        counts = batch.counts
        n_rows, n_features = counts.shape
        n_bags = n_rows * batch.n_blocks
        bags = batch.bags
        per_bag = torch.bincount(bags, minlength=n_bags)
        starts = torch.cat([per_bag.new_zeros(1), per_bag.cumsum(0)])
        ctx.batch, ctx.bags, ctx.values = batch, bags, values
        summed = csr_product(starts, counts.columns, values, (n_bags, n_features), weight)
        return summed.view(n_rows, batch.n_blocks, weight.shape[1])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        batch, (grad,) = ctx.batch, grad_outputs
        flat = grad.reshape(-1, grad.shape[2])
        shape = (batch.counts.shape[1], len(flat))
        order = batch.order
        return (
            csr_product(batch.starts, ctx.bags[order], ctx.values[order], shape, flat),
            None,
            None,
        )


def csr_product(
    starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int], dense: Tensor
) -> Tensor:
    """Multiply a CSR matrix by a dense one, (n_columns, k) -> (n_rows, k).

    Parameters
    ----------
    starts, columns, values
        The matrix; int64, int64 and the type of `dense`.
    shape
        (n_rows, n_columns).
    dense
        On the same device.
    """
    if dense.device.type not in ("cpu", "cuda"):
        return product_by_rows(starts, columns, values, shape, dense)
    with warnings.catch_warnings():
        # torch announces that its CSR support is in beta at every construction.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
        matrix = torch.sparse_csr_tensor(
            starts, columns, values, size=shape, check_invariants=False
        )
        return matrix @ dense


def product_by_rows(
    starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int], dense: Tensor
) -> Tensor:
    """Return the same where torch has no sparse products (MPS)."""
    rows = torch.repeat_interleave(torch.arange(shape[0], device=dense.device), starts.diff())
    result = dense.new_zeros(shape[0], dense.shape[1])
    return result.index_add_(0, rows, dense[columns] * values[:, None])
