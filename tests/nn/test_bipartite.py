"""Messages between cells and features against dense matrix algebra."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from scbraid.errors import DataError
from scbraid.nn.bipartite import (
    BipartiteGraph,
    FeatureGraph,
    SageConvolution,
    SparseMatrix,
    choose_backend,
)

BACKENDS = ("sparse", "dense")


@pytest.fixture
def matrix():
    """Weights of both signs, an empty row, an empty column, and a stored zero."""
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((7, 5)) * (rng.random((7, 5)) < 0.6)
    dense[2], dense[:, 3] = 0, 0
    found = sp.csr_matrix(dense.astype(np.float32))
    found.data[0] = 0.0
    return found


def means(matrix):
    dense = matrix.toarray().astype(np.float64)
    edge = dense != 0
    to_cells = dense / np.maximum(edge.sum(1, keepdims=True), 1)
    to_features = (dense / np.maximum(edge.sum(0, keepdims=True), 1)).T
    return to_cells, to_features


@pytest.mark.parametrize("backend", BACKENDS)
def test_both_directions_are_means_over_the_number_of_neighbours(matrix, backend):
    graph = BipartiteGraph(matrix, backend)
    to_cells, to_features = means(matrix)
    rng = np.random.default_rng(1)
    cells, features = rng.standard_normal((7, 3)), rng.standard_normal((5, 3))
    found = graph.to_cells(torch.tensor(features, dtype=torch.float32))
    np.testing.assert_allclose(found.numpy(), to_cells @ features, atol=1e-6)
    found = graph.to_features(torch.tensor(cells, dtype=torch.float32))
    np.testing.assert_allclose(found.numpy(), to_features @ cells, atol=1e-6)
    assert not graph.to_cells(torch.ones(5, 2))[2].any()
    assert not graph.to_features(torch.ones(7, 2))[3].any()
    assert graph.n_edges == np.count_nonzero(matrix.toarray())


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("direction", ["to_cells", "to_features"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_is_that_of_the_matrix_that_was_applied(matrix, backend, direction, dropout):
    graph = BipartiteGraph(matrix, backend)
    n_in = 5 if direction == "to_cells" else 7
    # The map is linear, so the unit matrix shows what was applied.
    x = torch.eye(n_in, requires_grad=True)
    torch.manual_seed(3)
    applied = getattr(graph, direction)(x, dropout)
    weights = torch.randn(applied.shape, generator=torch.Generator().manual_seed(0))
    (applied * weights).sum().backward()
    expected = applied.detach().double().T @ weights.double()
    np.testing.assert_allclose(x.grad.numpy(), expected.numpy(), atol=1e-5)


def test_gradient_agrees_with_finite_differences(matrix):
    graph = BipartiteGraph(matrix, "sparse").double()

    def both(features, cells):
        return graph.to_cells(features).sin().sum() + graph.to_features(cells).cos().sum()

    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(n, 2, dtype=torch.float64, generator=generator, requires_grad=True)
        for n in (5, 7)
    ]
    assert torch.autograd.gradcheck(both, inputs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropped_edges_are_gone_and_the_others_make_up_for_them(matrix, backend):
    graph = BipartiteGraph(matrix, backend)
    to_cells, _ = means(matrix)
    torch.manual_seed(0)
    seen = torch.stack([graph.to_cells(torch.eye(5), 0.25) for _ in range(4000)]).numpy()
    whole = to_cells / 0.75
    ratio = np.divide(seen, whole, out=np.zeros_like(seen), where=whole != 0)
    assert (
        np.isclose(ratio, 0, atol=1e-5).sum() + np.isclose(ratio, 1, atol=1e-5).sum() == seen.size
    )
    np.testing.assert_allclose(seen.mean(0), to_cells, atol=0.03)
    # Every edge by itself, and anew at each call.
    kept = ratio[:, to_cells != 0] > 0.5
    assert abs(kept.mean() - 0.75) < 0.01
    assert np.abs(np.corrcoef(kept.T) - np.eye(kept.shape[1])).max() < 0.1


@pytest.mark.parametrize("dropout", [1e-6, 0.1, 0.3, 0.5, 0.999])
@pytest.mark.parametrize("backend", BACKENDS)
def test_share_of_dropped_edges_is_the_rate_for_every_place_of_a_draw(backend, dropout):
    # A number of edges that the four of a draw do not divide.
    graph = BipartiteGraph(sp.csr_matrix(np.ones((203, 201), np.float32)), backend)
    torch.manual_seed(0)
    kept = graph.to_cells(torch.eye(201), dropout).numpy().ravel() > 0
    # Rates have 65,536 steps, and none of them is 0.
    rate = max(dropout, 2.0**-16)
    for place in range(4):
        error = np.sqrt(rate * (1 - rate) / (kept.size / 4))
        assert abs(kept[place::4].mean() - (1 - rate)) < 4 * error + 2.0**-17
    # What is left makes up for the rest.
    torch.manual_seed(0)
    mean = float(graph.to_cells(torch.ones(201, 1), dropout).mean())
    assert mean == pytest.approx(kept.mean() / (1 - dropout), rel=1e-2)


def test_a_constant_matrix_multiplies_and_has_gradients(matrix):
    found = SparseMatrix(matrix)
    dense = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    product = found(dense)
    whole = torch.from_numpy(matrix.toarray())
    np.testing.assert_allclose(product.detach().numpy(), (whole @ dense).detach(), atol=1e-6)
    product.sin().sum().backward()
    expected = whole.T @ product.detach().cos()
    np.testing.assert_allclose(dense.grad.numpy(), expected.numpy(), atol=1e-5)
    assert found.square_norm == pytest.approx(np.square(matrix.toarray()).sum(), rel=1e-6)


def test_backends_agree_on_a_larger_matrix():
    matrix = sp.random(300, 200, 0.1, format="csr", random_state=0, dtype=np.float32)
    states = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    sparse, dense = (BipartiteGraph(matrix, backend).to_cells(states) for backend in BACKENDS)
    np.testing.assert_allclose(sparse.numpy(), dense.numpy(), atol=1e-5)


def test_dense_dropout_is_the_same_forward_and_backward_across_blocks(monkeypatch):
    monkeypatch.setattr("scbraid.nn.bipartite._BLOCK_ENTRIES", 7)
    matrix = sp.csr_matrix(np.ones((10, 4), np.float32))
    graph = BipartiteGraph(matrix, "dense")
    x = torch.eye(4, requires_grad=True)
    applied = graph.to_cells(x, 0.5)
    applied.sum().backward()
    np.testing.assert_allclose(x.grad[:, 0].numpy(), applied.detach().sum(0).numpy(), atol=1e-6)
    assert applied.detach().unique().numel() == 2


def test_backend_follows_density(monkeypatch):
    half = sp.csr_matrix(np.tile([[1.0, 0.0]], (20, 10)))
    full = sp.csr_matrix(np.ones((20, 20)))
    assert choose_backend(sp.csr_matrix(np.eye(20)), dropout=False) == "sparse"
    # Dropout draws a number for every entry of a dense matrix.
    assert choose_backend(half, dropout=False) == "dense"
    assert choose_backend(half, dropout=True) == "sparse"
    assert choose_backend(full, dropout=True) == "dense"
    monkeypatch.setattr("scbraid.nn.bipartite.DENSE_BYTES", 1000)
    assert choose_backend(full, dropout=True) == "sparse"


def test_more_edges_than_can_be_numbered_are_refused(matrix, monkeypatch):
    monkeypatch.setattr("scbraid.nn.bipartite._MOST_EDGES", 5)
    with pytest.raises(DataError, match="edges; at most 5 fit into 32 bits"):
        BipartiteGraph(matrix)


def test_edges_among_features_are_means_over_all_of_them():
    # Feature 0 has two edges from 1 (summed) and one from 2.
    matrix = sp.csr_matrix(np.array([[0, 0.7, 0.2], [0.7, 0, 0], [0, 0, 0]], np.float32))
    graph = FeatureGraph(matrix, np.array([3, 2, 0]))
    found = graph(torch.eye(3)).numpy()
    expected = matrix.toarray() / np.array([[3], [2], [1]])
    np.testing.assert_allclose(found, expected, atol=1e-7)
    assert graph.n_edges == 5


@pytest.mark.parametrize("out_dim", [2, 6])
def test_convolution_is_self_plus_mean_of_neighbours(matrix, out_dim):
    torch.manual_seed(0)
    convolution = SageConvolution(3, out_dim)
    graph = BipartiteGraph(matrix, "sparse")
    cells, features = torch.randn(7, 3), torch.randn(5, 3)
    with torch.no_grad():
        found = convolution(cells, features, graph.to_cells).numpy()
        own, other = (part.weight.numpy() for part in (convolution.own, convolution.neighbours))
        bias = convolution.own.bias.numpy()
    expected = cells.numpy() @ own.T + bias + means(matrix)[0] @ features.numpy() @ other.T
    np.testing.assert_allclose(found, expected, atol=1e-5)
