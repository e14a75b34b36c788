"""Message passing between cells and features on tensors: means over edges, with edge dropout.

No graph library: a relation is a sparse matrix, stored in both orientations, so that neither the
forward nor the backward pass has to turn it. Edge dropout draws the values anew and leaves the
structure as it is. A dense back-end computes the same for matrices that are hardly sparse.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from scbraid.errors import DataError

Backend = Literal["sparse", "dense"]
BACKENDS: tuple[str, ...] = get_args(Backend)

# Shares of entries from which a dense product is quicker on a CPU, without and with dropout of
# edges (whose numbers it draws for all entries), and the bytes that it may take.
# docs/methods/scmognn.md has the measurement.
DENSE_FROM = (0.25, 0.6)
DENSE_BYTES = 1 << 30
_MOST_EDGES = 2**31 - 1
# Entries of a dense matrix whose dropout is drawn at once.
_BLOCK_ENTRIES = 1 << 22


class _Structure(nn.Module):
    """Positions of the entries of a sparse matrix, row by row and column by column.

    Attributes
    ----------
    rows, columns
        int32 index pointer (n_rows + 1,) and column indices (n_entries,) of the CSR form.
    t_rows, t_columns
        The same of the transpose.
    order
        int32 (n_entries,): place among the entries of the matrix of each entry of the transpose.
    """

    rows: Tensor
    columns: Tensor
    t_rows: Tensor
    t_columns: Tensor
    order: Tensor

    def __init__(self, matrix: sp.csr_matrix) -> None:
        super().__init__()
        self.shape = (int(matrix.shape[0]), int(matrix.shape[1]))
        if matrix.nnz > _MOST_EDGES:
            msg = (
                f"the graph has {matrix.nnz:,} edges; at most {_MOST_EDGES:,} fit into 32 "
                "bits: use fewer features"
            )
            raise DataError(msg)
        # Numbered entries, turned: the numbers tell where each of them came from.
        numbered = sp.csr_matrix(
            (np.arange(matrix.nnz, dtype=np.int32), matrix.indices, matrix.indptr), matrix.shape
        ).tocsc()
        for name, values in (
            ("rows", matrix.indptr),
            ("columns", matrix.indices),
            ("t_rows", numbered.indptr),
            ("t_columns", numbered.indices),
            ("order", numbered.data),
        ):
            # 32 bits: half the memory, and what the CPU's sparse library works with.
            tensor = torch.from_numpy(np.array(values, np.int32))
            self.register_buffer(name, tensor, persistent=False)

    def csr(self, values: Tensor) -> Tensor:
        """Return the matrix with these values."""
        return _csr(self.rows, self.columns, values, self.shape)

    def transposed(self, values: Tensor) -> Tensor:
        """Return the transpose with values in the order of the transpose."""
        return _csr(self.t_rows, self.t_columns, values, self.shape[::-1])

    def turn(self, values: Tensor) -> Tensor:
        """Bring values from the order of the matrix to that of the transpose."""
        return values.index_select(0, self.order)


def _csr(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    with warnings.catch_warnings():
        # torch announces that its CSR support is in beta.
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
        return torch.sparse_csr_tensor(rows, columns, values, size=shape, check_invariants=False)


class _DroppedProduct(torch.autograd.Function):
    """A @ dense, A a matrix of given structure or its transpose, some entries dropped.

    The gradient is Aᵀ @ grad with the same entries dropped; one byte an entry is kept for it.
    Values are in the order of the matrix in any case, so that all products share them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        dense: Tensor,
        values: Tensor,
        keep: Tensor | None,
        factor: float,
        structure: _Structure,
        turned: bool,
    ) -> Tensor:
        ctx.save_for_backward(values, keep)
        ctx.factor, ctx.structure, ctx.turned = factor, structure, turned
        return _oriented(structure, values, keep, factor, turned) @ dense

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        values, keep = ctx.saved_tensors
        matrix = _oriented(ctx.structure, values, keep, ctx.factor, not ctx.turned)
        return matrix @ grad_outputs[0].contiguous(), None, None, None, None, None


def _oriented(
    structure: _Structure, values: Tensor, keep: Tensor | None, factor: float, turned: bool
) -> Tensor:
    """Return the matrix of what is kept of the values, or its transpose."""
    own = values if keep is None else (values * keep).mul_(factor)
    return structure.transposed(structure.turn(own)) if turned else structure.csr(own)


class _DenseDroppedProduct(torch.autograd.Function):
    """The same with a dense matrix, a block of rows at a time; dropout is drawn again backward."""

    @staticmethod
    def forward(
        ctx: Any, dense: Tensor, matrix: Tensor, dropout: float, seed: int, turned: bool
    ) -> Tensor:
        ctx.matrix, ctx.dropout, ctx.seed, ctx.turned = matrix, dropout, seed, turned
        return _dense_product(dense, matrix, dropout, seed, turned)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        found = _dense_product(grad_outputs[0], ctx.matrix, ctx.dropout, ctx.seed, not ctx.turned)
        return found, None, None, None, None


def _dense_product(
    dense: Tensor, matrix: Tensor, dropout: float, seed: int, turned: bool
) -> Tensor:
    n_rows = matrix.shape[1] if turned else matrix.shape[0]
    found = dense.new_zeros(n_rows, dense.shape[1])
    for rows, block in _dropped_blocks(matrix, dropout, seed):
        if turned:
            found.addmm_(block.T, dense[rows])
        else:
            torch.mm(block, dense, out=found[rows])
    return found


def _dropped_blocks(matrix: Tensor, dropout: float, seed: int) -> Iterator[tuple[slice, Tensor]]:
    if not dropout:
        yield slice(0, len(matrix)), matrix
        return
    generator = torch.Generator(matrix.device).manual_seed(seed)
    step = max(1, _BLOCK_ENTRIES // max(1, matrix.shape[1]))
    for first in range(0, len(matrix), step):
        rows = slice(first, first + step)
        block = matrix[rows]
        keep = torch.empty_like(block).bernoulli_(1 - dropout, generator=generator)
        yield rows, keep.mul_(block).div_(1 - dropout)


class BipartiteGraph(nn.Module):
    """Cells and features joined by weighted edges; means over neighbours in both directions.

    ``to_cells`` is D_c^(−1) M̃ H and ``to_features`` D_f^(−1) M̃ᵀ H, with D the **numbers** of
    neighbours (weights are not normalised) and M̃ the matrix after dropout of edges, drawn
    independently at every call. A node without neighbours receives zeros (scMoGNN, message
    passing).

    Parameters
    ----------
    matrix
        CSR (n_cells, n_features); a stored entry that is not 0 is an edge, its value the weight
        (of any sign).
    backend
        ``sparse`` or ``dense``; the result is the same.
    """

    values: Tensor
    cell_scale: Tensor
    feature_scale: Tensor

    def __init__(self, matrix: sp.csr_matrix, backend: Backend = "sparse") -> None:
        super().__init__()
        matrix = sp.csr_matrix(matrix, dtype=np.float32, copy=True)
        matrix.sum_duplicates()
        matrix.eliminate_zeros()
        self.shape = (int(matrix.shape[0]), int(matrix.shape[1]))
        self.n_edges = int(matrix.nnz)
        self.backend = backend
        degrees = np.diff(matrix.indptr), np.bincount(matrix.indices, minlength=matrix.shape[1])
        for name, degree in zip(("cell_scale", "feature_scale"), degrees, strict=True):
            scale = (1.0 / np.maximum(degree, 1)).astype(np.float32)[:, None]
            self.register_buffer(name, torch.from_numpy(scale), persistent=False)
        if self.backend == "dense":
            values = torch.from_numpy(matrix.toarray())
            self.structure: _Structure | None = None
        else:
            values = torch.from_numpy(matrix.data.copy())
            self.structure = _Structure(matrix)
        self.register_buffer("values", values, persistent=False)

    def to_cells(self, features: Tensor, dropout: float = 0.0) -> Tensor:
        """Mean over a cell's features of weight times state.

        Parameters
        ----------
        features
            States (n_features, k).
        dropout
            Rate at which edges are dropped, in [0, 1); the others are divided by 1 − rate.

        Returns
        -------
        Tensor
            Shape (n_cells, k).
        """
        return self.cell_scale * self._product(features, dropout, turned=False)

    def to_features(self, cells: Tensor, dropout: float = 0.0) -> Tensor:
        """Mean over a feature's cells, (n_features, k); the parameters are those of `to_cells`."""
        return self.feature_scale * self._product(cells, dropout, turned=True)

    def _product(self, dense: Tensor, dropout: float, *, turned: bool) -> Tensor:
        if self.structure is None:
            seed = int(torch.randint(2**31, ())) if dropout else 0
            return _DenseDroppedProduct.apply(dense, self.values, dropout, seed, turned)
        values = self.values
        return _DroppedProduct.apply(dense, values, *_keep(values, dropout), self.structure, turned)


class FeatureGraph(nn.Module):
    """Weighted edges between features: the mean over neighbours, with edge dropout.

    Parameters
    ----------
    matrix
        CSR (n_features, n_features): sum of the weights of all edges from column to row.
    degree
        Number of edges into every feature, (n_features,): pairs that stand in several gene sets
        count for each.
    """

    values: Tensor
    scale: Tensor

    def __init__(self, matrix: sp.csr_matrix, degree: np.ndarray) -> None:
        super().__init__()
        self.structure = _Structure(matrix)
        self.n_edges = int(degree.sum())
        scale = (1.0 / np.maximum(degree, 1)).astype(np.float32)[:, None]
        self.register_buffer("scale", torch.from_numpy(scale), persistent=False)
        values = torch.from_numpy(matrix.data.astype(np.float32))
        self.register_buffer("values", values, persistent=False)

    def forward(self, features: Tensor, dropout: float = 0.0) -> Tensor:
        """Mean over the neighbours of weight times state, (n_features, k)."""
        keep = _keep(self.values, dropout)
        return self.scale * _DroppedProduct.apply(
            features, self.values, *keep, self.structure, False
        )


def _keep(values: Tensor, dropout: float) -> tuple[Tensor | None, float]:
    """Which values stay, one byte each, and the factor that makes up for the others."""
    if not dropout:
        return None, 1.0
    keep = torch.empty(values.shape, dtype=torch.bool, device=values.device)
    return keep.bernoulli_(1 - dropout), 1 / (1 - dropout)


def choose_backend(matrix: sp.csr_matrix, *, dropout: bool) -> Backend:
    """Return ``dense`` for small matrices with many entries, else ``sparse``."""
    n_entries = matrix.shape[0] * matrix.shape[1]
    fits = 4 * n_entries <= DENSE_BYTES
    return "dense" if fits and matrix.nnz >= DENSE_FROM[dropout] * n_entries else "sparse"


class SageConvolution(nn.Module):
    """W_self h_t + b + W_neigh · (mean over neighbours) (GraphSAGE, one relation).

    Parameters
    ----------
    in_dim
        Width of the states of sources and targets.
    out_dim
        Width of the result. Where it is smaller, W_neigh is applied before the mean, which gives
        the same.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.own = nn.Linear(in_dim, out_dim)
        self.neighbours = nn.Linear(in_dim, out_dim, bias=False)
        gain = nn.init.calculate_gain("relu")
        for linear in (self.own, self.neighbours):
            nn.init.xavier_uniform_(linear.weight, gain)
        self.first = in_dim > out_dim

    def forward(self, target: Tensor, source: Tensor, mean: Any) -> Tensor:
        """Map states of targets and sources to new states of the targets.

        Parameters
        ----------
        target, source
            Shapes (n_targets, in_dim) and (n_sources, in_dim).
        mean
            Function from (n_sources, k) to the mean over neighbours, (n_targets, k).
        """
        if self.first:
            return self.own(target) + mean(self.neighbours(source))
        return self.own(target) + self.neighbours(mean(source))
