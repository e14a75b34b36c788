"""Signed feature graphs on tensors: propagation, edge sampling, and the edge likelihood."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scbraid.nn import kernels
from scbraid.nn.blocked import csr_product
from scbraid.nn.gaussian import softplus_gaussian
from scbraid.nn.negative_binomial import EPS
from scbraid.nn.random import draw_seed

# Vertices whose embeddings, of the usual width, fit the cache of one CPU core five times. Even.
_VERTICES_OF_BLOCK = 1024
# So many that handing a block to a thread costs nothing beside it.
_EDGES_OF_BLOCK = 4096
# Two vectors of the widest kind.
_COLUMNS_OF_BLOCK = 32


# Rows' starts, columns and values of a CSR matrix.
Csr = tuple[Tensor, Tensor, Tensor]


class SparseProduct(nn.Module):
    """Multiply by a fixed sparse matrix, with its transpose stored for the backward pass.

    Parameters
    ----------
    rows, columns, values
        Coordinate form, each of shape (n_entries,); repeated positions add up.
    shape
        (n_rows, n_columns).
    """

    def __init__(
        self, rows: np.ndarray, columns: np.ndarray, values: np.ndarray, shape: tuple[int, int]
    ) -> None:
        super().__init__()
        forward = sp.coo_matrix((values, (rows, columns)), shape=shape).tocsr()
        for name, matrix in (("matrix", forward), ("transpose", forward.T.tocsr())):
            # Plain arrays, because not every device has sparse tensors. Derived from the graph, so
            # they are no part of a saved model.
            for part, array in (
                ("starts", matrix.indptr.astype(np.int64)),
                ("columns", matrix.indices.astype(np.int64)),
                ("values", matrix.data.astype(np.float32)),
            ):
                self.register_buffer(f"{name}_{part}", torch.from_numpy(array), persistent=False)

    @property
    def matrix(self) -> Csr:
        """The matrix."""
        return self._csr("matrix")

    @property
    def transpose(self) -> Csr:
        """Its transpose."""
        return self._csr("transpose")

    def _csr(self, name: str) -> Csr:
        starts, columns, values = (
            self.get_buffer(f"{name}_{part}") for part in ("starts", "columns", "values")
        )
        return starts, columns, values

    def forward(self, dense: Tensor) -> Tensor:
        """Return matrix @ dense, shape (n_rows, k)."""
        return _SparseProduct.apply(self.matrix, self.transpose, dense)


class _SparseProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Csr, transpose: Csr, dense: Tensor) -> Tensor:
        ctx.transpose = transpose
        return _multiply(matrix, dense)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, None, Tensor]:
        return None, None, _multiply(ctx.transpose, grad_outputs[0])


def _multiply(matrix: Csr, dense: Tensor) -> Tensor:
    dense = dense.contiguous()
    n_rows = len(matrix[0]) - 1
    compiled = kernels.for_tensors(matrix[2], dense)
    if compiled is None:
        return csr_product(*matrix, (n_rows, len(dense)), dense)
    out = dense.new_empty(n_rows, dense.shape[1])
    kernels.share(
        compiled.sparse_product_blocks,
        _VERTICES_OF_BLOCK,
        *(part.numpy() for part in (*matrix, dense, out)),
    )
    return out


@dataclasses.dataclass(frozen=True)
class SignedGraph:
    """A directed signed weighted multigraph over numbered vertices.

    Attributes
    ----------
    source, target
        int64, shape (n_edges,).
    sign
        float32 of -1 and +1, shape (n_edges,).
    weight
        float32 in (0, 1], shape (n_edges,).
    n_vertices
        Number of vertices.
    """

    source: np.ndarray
    target: np.ndarray
    sign: np.ndarray
    weight: np.ndarray
    n_vertices: int

    def propagation(self) -> SparseProduct:
        """h_j = Σ_{i→j} s·w·d_j^(−1/2)·V_i with d_j the weighted in-degree of the target.

        "Variance keeping" normalisation of GLUE's graph encoder: one division by the root of the
        in-degree, self-loops and parallel edges included.
        """
        degree = np.bincount(self.target, self.weight, self.n_vertices)
        values = self.sign * self.weight / np.sqrt(degree[self.target])
        return SparseProduct(self.target, self.source, values, (self.n_vertices,) * 2)


class GraphEncoder(nn.Module):
    """Vertex table, one signed propagation, two linear heads (GLUE, graph encoder).

    Parameters
    ----------
    graph
        The guidance graph with reverse edges and self-loops.
    latent_dim
        Width of the vertex table and of both heads.
    """

    def __init__(self, graph: SignedGraph, latent_dim: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(graph.n_vertices, latent_dim))
        self.propagate = graph.propagation()
        self.mean = nn.Linear(latent_dim, latent_dim)
        self.std = nn.Linear(latent_dim, latent_dim)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of q(v | G), each (n_vertices, latent_dim)."""
        hidden = self.propagate(self.table)
        return self.mean(hidden), F.softplus(self.std(hidden)) + EPS

    def draw_seed(self) -> np.uint64 | None:
        """Draw what decides the next sample, where the sample itself draws nothing more."""
        return draw_seed() if kernels.for_tensors(*self.parameters()) is not None else None

    def sample(self, seed: np.uint64 | None = None) -> tuple[Tensor, Tensor]:
        """Draw all vertices from q(v | G); return them and the KL to N(0, I), mean a vertex.

        Parameters
        ----------
        seed
            From `draw_seed`; one is drawn where it is None.
        """
        if (seed := self.draw_seed() if seed is None else seed) is None:
            hidden = self.propagate(self.table)
            v, kl = softplus_gaussian(self.mean(hidden), self.std(hidden))
        else:
            heads = (self.mean.weight, self.mean.bias, self.std.weight, self.std.bias)
            matrix, transpose = self.propagate.matrix, self.propagate.transpose
            v, kl = _SampledVertices.apply(seed, matrix, transpose, self.table, *heads)
        return v, kl / len(v)


class _SampledVertices(torch.autograd.Function):
    """Propagation, both heads, draw and KL, by blocks of vertices that stay in the fast cache."""

    @staticmethod
    def forward(
        ctx: Any,
        seed: np.uint64,
        matrix: Csr,
        transpose: Csr,
        table: Tensor,
        mean_weight: Tensor,
        mean_bias: Tensor,
        raw_weight: Tensor,
        raw_bias: Tensor,
    ) -> tuple[Tensor, Tensor]:
        from scbraid.nn import compiled

        hidden, mean, raw, sample = (torch.empty_like(table) for _ in range(4))
        noise = table.new_empty(table.numel() + 1)
        kls = np.empty(-(-len(table) // _VERTICES_OF_BLOCK))
        tensors = (
            *matrix, table, mean_weight, mean_bias, raw_weight, raw_bias,
            hidden, mean, raw, noise, sample,
        )  # fmt: skip
        kernels.share(
            compiled.sample_vertices_blocks,
            kernels.product_address(),
            _VERTICES_OF_BLOCK,
            seed,
            *(tensor.numpy() for tensor in tensors),
            kls,
        )
        # The draw has left the derivatives of KL and sample in place of raw and noise.
        ctx.save_for_backward(hidden, mean, raw, noise, mean_weight, raw_weight)
        ctx.transpose = transpose
        return sample, table.new_tensor(float(kls.sum()))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        hidden, mean, of_kl, of_sample, mean_weight, raw_weight = ctx.saved_tensors
        from scbraid.nn import compiled

        (n_vertices, width), height = hidden.shape, _VERTICES_OF_BLOCK
        n_blocks = -(-n_vertices // height)
        grad_hidden = torch.empty_like(hidden)
        work = hidden.new_empty(kernels.n_slots(), 2, min(height, n_vertices), width)
        grads_weight = hidden.new_empty(n_blocks, 2, width, width)
        grads_bias = hidden.new_empty(n_blocks, 2, width)
        tensors = (
            mean, of_kl, of_sample, hidden, mean_weight, raw_weight, work,
            grad_hidden, grads_weight, grads_bias,
        )  # fmt: skip
        kernels.share(
            compiled.sample_vertices_gradient_blocks,
            kernels.product_address(),
            height,
            grad_outputs[0].contiguous().numpy(),
            np.float32(grad_outputs[1].item()),
            *(tensor.numpy() for tensor in tensors),
        )
        grad_weights, grad_biases = grads_weight.sum(0), grads_bias.sum(0)
        return (
            None,
            None,
            None,
            _multiply(ctx.transpose, grad_hidden),
            grad_weights[0],
            grad_biases[0],
            grad_weights[1],
            grad_biases[1],
        )


@dataclasses.dataclass(frozen=True)
class EdgeBatch:
    """Sampled edges: endpoints, sign and whether they exist (label 1) or not (label 0)."""

    source: Tensor
    target: Tensor
    sign: Tensor
    label: Tensor


class EdgeSampler:
    """Positive edges by weight, negative edges by rejection (GLUE, graph decoder).

    Each graph epoch draws n_eff = round(Σ w) positives with probability ∝ w and, for each of them,
    `n_negatives` edges that keep its source and sign and take a target ∝ weighted degree (both
    directions, self-loops excluded), redrawn while the edge exists. The epoch is shuffled and cut
    into `n_batches` minibatches.

    Parameters
    ----------
    graph
        The training graph.
    n_negatives
        Negatives per positive.
    n_batches
        Minibatches a graph epoch.
    seed
        Seed of the sampler's own generator.
    """

    def __init__(
        self, graph: SignedGraph, *, n_negatives: int = 10, n_batches: int = 32, seed: int = 0
    ) -> None:
        self.graph = graph
        self.n_negatives = n_negatives
        self.n_effective = max(1, int(np.rint(graph.weight.sum(dtype=np.float64))))
        n_edges = (1 + n_negatives) * self.n_effective
        self.batch_size = -(-n_edges // n_batches)
        self.rng = np.random.default_rng(seed)
        self._positive = _AliasTable(graph.weight)
        degree = np.zeros(graph.n_vertices)
        between = graph.source != graph.target
        for ends in (graph.source[between], graph.target[between]):
            degree += np.bincount(ends, graph.weight[between], graph.n_vertices)
        if not degree.any():
            # A graph of self-loops alone: every vertex is as good a negative as another.
            degree += 1.0
        self._negative = _AliasTable(degree)
        self._known = _KeySet(_edge_keys(graph.source, graph.target, graph.sign, graph.n_vertices))

    def epoch(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Draw one graph epoch: source, target, sign, label, shuffled together."""
        graph, rng = self.graph, self.rng
        drawn = self._positive.draw(self.n_effective, rng)
        source, sign = graph.source[drawn], graph.sign[drawn]
        negative_source = np.repeat(source, self.n_negatives)
        negative_sign = np.repeat(sign, self.n_negatives)
        negative_target = self._negative.draw(len(negative_source), rng)
        clash = self._clashes(negative_source, negative_target, negative_sign)
        redraws = 0
        while len(clash):
            # A vertex joined to every other one has no negative: it keeps its last draw.
            redraws += 1
            if redraws > 100:
                break
            negative_target[clash] = self._negative.draw(len(clash), rng)
            clash = clash[
                self._clashes(negative_source[clash], negative_target[clash], negative_sign[clash])
            ]
        order = rng.permutation(len(source) * (1 + self.n_negatives))
        label = np.zeros(len(order), np.float32)
        label[: len(source)] = 1.0
        return (
            np.concatenate([source, negative_source])[order],
            np.concatenate([graph.target[drawn], negative_target])[order],
            np.concatenate([sign, negative_sign])[order],
            label[order],
        )

    def batches(self, device: torch.device) -> Iterator[EdgeBatch]:
        """Yield the minibatches of one fresh graph epoch."""
        parts = [torch.from_numpy(part).to(device) for part in self.epoch()]
        for first in range(0, len(parts[0]), self.batch_size):
            yield EdgeBatch(*(part[first : first + self.batch_size] for part in parts))

    def _clashes(self, source: np.ndarray, target: np.ndarray, sign: np.ndarray) -> np.ndarray:
        keys = _edge_keys(source, target, sign, self.graph.n_vertices)
        return self._known.positions_of_members(keys)


def _edge_keys(
    source: np.ndarray, target: np.ndarray, sign: np.ndarray, n_vertices: int
) -> np.ndarray:
    pair = source.astype(np.int64) * n_vertices + target
    return 2 * pair + (sign > 0)


class _KeySet:
    """Membership of integer keys: a byte table answers most, a sorted list decides the rest."""

    _TABLE_BITS = 21

    def __init__(self, keys: np.ndarray) -> None:
        self._sorted = np.unique(keys)
        self._table = np.zeros(1 << self._TABLE_BITS, np.bool_)
        self._table[self._slots(self._sorted)] = True

    def _slots(self, keys: np.ndarray) -> np.ndarray:
        # Fibonacci hashing: the upper bits of a product with 2^64/φ.
        product = keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        return (product >> np.uint64(64 - self._TABLE_BITS)).astype(np.int64)

    def positions_of_members(self, keys: np.ndarray) -> np.ndarray:
        """Positions in `keys` whose key is in the set, ascending."""
        candidates = np.flatnonzero(self._table[self._slots(keys)])
        where = np.searchsorted(self._sorted, keys[candidates])
        where[where == len(self._sorted)] = 0
        return candidates[self._sorted[where] == keys[candidates]]


class _AliasTable:
    """Draw indices with given weights in constant time each (Walker 1977, Vose 1991)."""

    def __init__(self, weights: np.ndarray) -> None:
        weights = np.asarray(weights, dtype=np.float64)
        n = len(weights)
        scaled = weights * (n / weights.sum())
        self._keep = np.ones(n)
        self._alias = np.arange(n)
        small = list(np.flatnonzero(scaled < 1))
        large = list(np.flatnonzero(scaled >= 1))
        while small and large:
            low, high = small.pop(), large.pop()
            self._keep[low] = scaled[low]
            self._alias[low] = high
            scaled[high] -= 1 - scaled[low]
            (small if scaled[high] < 1 else large).append(high)

    def draw(self, size: int, rng: np.random.Generator) -> np.ndarray:
        """Return int64 indices of shape (size,)."""
        # One uniform number gives both the column (integer part) and the coin (fraction).
        point = rng.random(size) * len(self._keep)
        column = point.astype(np.int64)
        return np.where(point - column < self._keep[column], column, self._alias[column])


class _EdgeLogits(torch.autograd.Function):
    """s·⟨v_i, v_j⟩ for many edges; the backward pass scatters rows instead of storing gathers."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, source: Tensor, target: Tensor, sign: Tensor) -> Tensor:
        ctx.save_for_backward(v, source, target, sign)
        return torch.linalg.vecdot(v.index_select(0, source), v.index_select(0, target)) * sign

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        v, source, target, sign = ctx.saved_tensors
        grad = torch.zeros_like(v)
        scale = (grad_outputs[0] * sign)[:, None]
        grad.index_add_(0, source, v.index_select(0, target).mul_(scale))
        grad.index_add_(0, target, v.index_select(0, source).mul_(scale))
        return grad, None, None, None


class _CompiledEdgeNll(torch.autograd.Function):
    """Logits, losses and slopes in one loop, the gradient in another."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, edges: EdgeBatch) -> Tensor:
        from scbraid.nn import compiled

        tensors = (
            v,
            edges.source,
            edges.target,
            edges.sign,
            edges.label,
            torch.empty_like(edges.sign),
        )
        arrays = [tensor.numpy() for tensor in tensors]
        n_edges = len(edges.sign)
        sums = np.empty((-(-n_edges // _EDGES_OF_BLOCK), 3))
        kernels.share(compiled.edge_blocks, _EDGES_OF_BLOCK, *arrays, sums)
        positive, negative, n_positive = sums.sum(0)
        numbers = n_positive, n_edges - n_positive
        n_classes = sum(number > 0 for number in numbers)
        ctx.weights = [1 / (n_classes * max(number, 1)) for number in numbers]
        ctx.arrays = arrays
        return v.new_tensor(positive * ctx.weights[0] + negative * ctx.weights[1])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        from scbraid.nn import compiled

        upstream = grad_outputs[0].item()
        weights = [np.float32(upstream * weight) for weight in ctx.weights]
        grad = grad_outputs[0].new_empty(ctx.arrays[0].shape)
        kernels.share(
            compiled.edge_gradient_blocks, _COLUMNS_OF_BLOCK, *ctx.arrays, *weights, grad.numpy()
        )
        return grad, None


def edge_nll(v: Tensor, edges: EdgeBatch) -> Tensor:
    """½[mean over positives of −log σ(s⟨v_i,v_j⟩) + mean over negatives of −log(1−σ(·))].

    Parameters
    ----------
    v
        Vertex embeddings, shape (n_vertices, latent_dim).
    edges
        Sampled edges. When one class is absent, the mean of the other stands alone.
    """
    if kernels.for_tensors(v, edges.sign) is not None:
        return _CompiledEdgeNll.apply(v.contiguous(), edges)
    logits = _EdgeLogits.apply(v, edges.source, edges.target, edges.sign)
    losses = F.binary_cross_entropy_with_logits(logits, edges.label, reduction="none")
    n_positive = edges.label.sum()
    n_negative = len(edges.label) - n_positive
    positive = (losses * edges.label).sum() / n_positive.clamp_min(1)
    negative = (losses * (1 - edges.label)).sum() / n_negative.clamp_min(1)
    n_classes = (n_positive > 0).to(v.dtype) + (n_negative > 0).to(v.dtype)
    return (positive + negative) / n_classes
