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
# Edges are kept with a probability in steps of a 65,536th: one draw of 64 bits serves four of them.
_LEVELS = 1 << 16


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
        structure: _Structure,
        turned: bool,
    ) -> Tensor:
        ctx.save_for_backward(values, keep)
        ctx.structure, ctx.turned = structure, turned
        return _oriented(structure, values, keep, turned) @ dense

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        values, keep = ctx.saved_tensors
        matrix = _oriented(ctx.structure, values, keep, not ctx.turned)
        return matrix @ grad_outputs[0].contiguous(), None, None, None, None


def _oriented(structure: _Structure, values: Tensor, keep: Tensor | None, turned: bool) -> Tensor:
    """Return the matrix of what is kept of the values, or its transpose."""
    own = values if keep is None else values * keep
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
        keep = _draw(block.numel(), dropout, matrix.device, generator)
        yield rows, keep.view(block.shape) * block


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
        scale = self.cell_scale * _factor(dropout)
        return scale * self._product(features, dropout, turned=False)

    def to_features(self, cells: Tensor, dropout: float = 0.0) -> Tensor:
        """Mean over a feature's cells, (n_features, k); the parameters are those of `to_cells`."""
        scale = self.feature_scale * _factor(dropout)
        return scale * self._product(cells, dropout, turned=True)

    def _product(self, dense: Tensor, dropout: float, *, turned: bool) -> Tensor:
        values = self.values
        if self.structure is None:
            seed = int(torch.randint(2**31, ())) if dropout else 0
            return _DenseDroppedProduct.apply(dense, values, dropout, seed, turned)
        keep = _draw(len(values), dropout, values.device) if dropout else None
        return _DroppedProduct.apply(dense, values, keep, self.structure, turned)


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
        values = self.values
        keep = _draw(len(values), dropout, values.device) if dropout else None
        found = _DroppedProduct.apply(features, values, keep, self.structure, False)
        return (self.scale * _factor(dropout)) * found


class SparseMatrix(nn.Module):
    """A constant matrix of mostly zeros, whose products with dense ones have gradients.

    Parameters
    ----------
    matrix
        CSR (n, m).
    """

    values: Tensor

    def __init__(self, matrix: sp.csr_matrix) -> None:
        super().__init__()
        self.shape = (int(matrix.shape[0]), int(matrix.shape[1]))
        self.structure = _Structure(matrix)
        values = torch.from_numpy(matrix.data.astype(np.float32))
        self.register_buffer("values", values, persistent=False)
        # In double precision: a sum of many small squares.
        self.square_norm = float(np.square(matrix.data, dtype=np.float64).sum())

    def forward(self, dense: Tensor) -> Tensor:
        """Return the product with (m, k), shape (n, k)."""
        return _DroppedProduct.apply(dense, self.values, None, self.structure, False)


def _levels(dropout: float) -> int:
    """Number of the `_LEVELS` values of a draw that keep an edge."""
    return min(max(1, round((1 - dropout) * _LEVELS)), _LEVELS - 1)


def _factor(dropout: float) -> float:
    """Return what makes up for dropped edges."""
    return _LEVELS / _levels(dropout) if dropout else 1.0


def _draw(
    n: int, dropout: float, device: torch.device, generator: torch.Generator | None = None
) -> Tensor:
    """Draw which of n edges stay: uint8 (n,) of 0 and 1.

    Four edges share a draw of 64 bits, a fifth of the time of one draw for each.
    """
    words = torch.empty((n + 3) // 4, dtype=torch.int64, device=device)
    words.random_(-(2**63), None, generator=generator)
    # As signed numbers of 16 bits, the levels begin at -32,768.
    kept = words.view(torch.int16)[:n] < _levels(dropout) - _LEVELS // 2
    # A byte of 0 or 1 multiplies quicker than a truth value.
    return kept.view(torch.uint8)


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
