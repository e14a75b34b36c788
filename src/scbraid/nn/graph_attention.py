"""Attention over the edges of a signed graph, and posteriors of feature embeddings from it."""

from __future__ import annotations

import warnings
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scbraid.nn.blocks import LEAKY_SLOPE
from scbraid.nn.graph import SignedGraph

# The vertex table starts as noise of this size: from zeros, attention would see no difference.
TABLE_STD = 0.01


class EdgeSum(nn.Module):
    """out_b = Σ_{e: a→b} α_e·p_a for edge values that change, over a structure that does not.

    Parameters
    ----------
    source, target
        int64 (n_edges,), sorted by target.
    n_vertices
        Number of vertices.
    """

    source: Tensor
    target: Tensor

    def __init__(self, source: np.ndarray, target: np.ndarray, n_vertices: int) -> None:
        super().__init__()
        backward = np.argsort(source, kind="stable")
        buffers = {
            "source": source,
            "target": target,
            "by_target": _bounds(target, n_vertices),
            "by_source": _bounds(source, n_vertices),
            "order": backward,
            "target_by_source": target[backward],
        }
        for name, values in buffers.items():
            # Derived from the graph, so they are no part of a saved model.
            self.register_buffer(name, torch.from_numpy(values.astype(np.int64)), persistent=False)
        with warnings.catch_warnings():
            # torch announces once a process that its CSR support is in beta: that was it.
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
            torch.sparse_csr_tensor([0], [], [], (0, 0), check_invariants=False)

    def forward(self, alpha: Tensor, p: Tensor) -> Tensor:
        """Map values (n_edges,) and vertices (n_vertices, k) to (n_vertices, k)."""
        return _EdgeSum.apply(alpha, p, self)


def _bounds(sorted_or_not: np.ndarray, n_vertices: int) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(np.bincount(sorted_or_not, minlength=n_vertices))])


def _product(bounds: Tensor, columns: Tensor, values: Tensor, dense: Tensor) -> Tensor:
    n = len(bounds) - 1
    matrix = torch.sparse_csr_tensor(bounds, columns, values, (n, n), check_invariants=False)
    return matrix @ dense


class _EdgeSum(torch.autograd.Function):
    """Two sparse products and one product a edge; nothing of size edges x width is kept."""

    @staticmethod
    def forward(ctx: Any, alpha: Tensor, p: Tensor, graph: EdgeSum) -> Tensor:
        ctx.save_for_backward(alpha, p)
        ctx.graph = graph
        return _product(graph.get_buffer("by_target"), graph.source, alpha, p)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        alpha, p = ctx.saved_tensors
        graph, grad = ctx.graph, grad_outputs[0].contiguous()
        grad_alpha = torch.linalg.vecdot(
            grad.index_select(0, graph.target), p.index_select(0, graph.source)
        )
        grad_p = _product(
            graph.get_buffer("by_source"),
            graph.get_buffer("target_by_source"),
            alpha[graph.get_buffer("order")],
            grad,
        )
        return grad_alpha, grad_p, None


class SignedAttention(nn.Module):
    """Graph attention with one layer for each sign that the graph has, added up.

    For the edges of one sign: p = W h, logit(a→b) = LeakyReLU_0.2(ωᵀ[p_a; p_b]),
    α = w·exp(logit) / Σ_{edges into b} w·exp(logit), out_b = c_b Σ α p_a with c_b = 1. Vertices
    without an edge of a sign get nothing from it (CoVEL, view 1; the signed attention layer of
    GLUE's library).

    Parameters
    ----------
    graph
        The guidance graph with reverse edges and self-loops.
    dim
        Width of the vertices, in and out.
    scaled
        Scale by c_b = d_sb/√d_b, the weighted in-degree of the sign over the root of the whole one.
        As W starts at ±1 and ω at 0, the layer then starts as GLUE's signed propagation, and
        vertices with many edges do not have smaller embeddings than others.
    """

    def __init__(self, graph: SignedGraph, dim: int, *, scaled: bool) -> None:
        super().__init__()
        self.scaled = scaled
        degree = np.bincount(graph.target, graph.weight, graph.n_vertices)
        self.sums = nn.ModuleList()
        self.projections = nn.ModuleList()
        self.attends = nn.ParameterList()
        signs = np.unique(graph.sign)
        for k, sign in enumerate(signs):
            edges = np.flatnonzero(graph.sign == sign)
            edges = edges[np.argsort(graph.target[edges], kind="stable")]
            self.sums.append(EdgeSum(graph.source[edges], graph.target[edges], graph.n_vertices))
            log_weight = np.log(graph.weight[edges]).astype(np.float32)
            self.register_buffer(f"log_weight_{k}", torch.from_numpy(log_weight), persistent=False)
            own = np.bincount(graph.target[edges], graph.weight[edges], graph.n_vertices)
            scale = (own / np.sqrt(np.maximum(degree, 1e-12))).astype(np.float32)
            self.register_buffer(f"scale_{k}", torch.from_numpy(scale[:, None]), persistent=False)
            projection = nn.Linear(dim, dim, bias=False)
            with torch.no_grad():
                projection.weight.copy_(float(sign) * torch.eye(dim))
            self.projections.append(projection)
            # Zero: attention starts as the mean by edge weight.
            self.attends.append(nn.Parameter(torch.zeros(2, dim)))

    def coefficients(self, k: int, p: Tensor) -> Tensor:
        """α of the edges of the k-th sign, sorted by target, from projected vertices."""
        edges = cast("EdgeSum", self.sums[k])
        at_source, at_target = (p @ self.attends[k].T).unbind(1)
        logit = at_source[edges.source] + at_target[edges.target]
        logit = F.leaky_relu(logit, LEAKY_SLOPE) + self.get_buffer(f"log_weight_{k}")
        return segment_softmax(logit, edges.target, len(p))

    def forward(self, h: Tensor) -> Tensor:
        """Map (n_vertices, dim) to (n_vertices, dim)."""
        out = torch.zeros_like(h)
        for k, (project, edges) in enumerate(zip(self.projections, self.sums, strict=True)):
            p = project(h)
            read = edges(self.coefficients(k, p), p)
            out = out + (read * self.get_buffer(f"scale_{k}") if self.scaled else read)
        return out


def segment_softmax(logit: Tensor, segment: Tensor, n_segments: int) -> Tensor:
    """Softmax within segments; the largest of each is taken off before the exponential.

    Parameters
    ----------
    logit, segment
        (n,) values and the segments that they belong to.
    n_segments
        Number of segments; some may be empty.
    """
    largest = torch.full((n_segments,), -torch.inf, dtype=logit.dtype, device=logit.device)
    largest = largest.scatter_reduce(0, segment, logit.detach(), "amax")
    weight = (logit - largest[segment]).exp()
    total = torch.zeros_like(largest).index_add(0, segment, weight)
    return weight / total[segment]


class FeaturePosterior(nn.Module):
    """q(F | graph) of all vertices: mean and raw spread (σ = softplus(raw) + ε).

    Parameters
    ----------
    graph
        The guidance graph.
    latent_dim
        Width m of the embeddings.
    kind
        ``gat``: one attention layer under two linear heads. ``gat2``: an attention layer of its own
        under each head. ``gcn``: the parameter-free propagation of GLUE under two heads.
        ``none``: the vertices are free parameters, whatever the graph.
    scaled
        As of `SignedAttention`.
    """

    def __init__(
        self, graph: SignedGraph, latent_dim: int, kind: str, *, scaled: bool = True
    ) -> None:
        super().__init__()
        self.kind = kind
        self.table = nn.Parameter(torch.randn(graph.n_vertices, latent_dim) * TABLE_STD)
        if kind == "none":
            self.raw_table = nn.Parameter(torch.zeros(graph.n_vertices, latent_dim))
            return
        layers: dict[str, int] = {"gat": 1, "gat2": 2, "gcn": 0}
        self.attention = nn.ModuleList(
            SignedAttention(graph, latent_dim, scaled=scaled) for _ in range(layers[kind])
        )
        self.propagate = graph.propagation() if kind == "gcn" else None
        self.mean = nn.Linear(latent_dim, latent_dim)
        self.raw = nn.Linear(latent_dim, latent_dim)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return mean and raw spread, each (n_vertices, latent_dim)."""
        if self.kind == "none":
            return self.table, self.raw_table
        if self.propagate is not None:
            hidden = [self.propagate(self.table)]
        else:
            hidden = [layer(self.table) for layer in self.attention]
        return self.mean(hidden[0]), self.raw(hidden[-1])
