"""Block-diagonal layers and likelihoods on sparse rows against dense masked ones."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
import torch.nn.functional as F

from scbraid.nn import block_likelihoods
from scbraid.nn.block_likelihoods import block_nll
from scbraid.nn.blocked import (
    BlockedBatch,
    BlockLinear,
    SparseBlockLinear,
    csr_product,
    product_by_rows,
    sort_on_device,
    sort_on_host,
)
from scbraid.nn.counts import CountMatrix

BOUNDS = [0, 5, 6, 13]
WIDTH = 4
BLOCKS = torch.from_numpy(np.repeat(np.arange(3), np.diff(BOUNDS)))


@pytest.fixture
def batch() -> BlockedBatch:
    rng = np.random.default_rng(0)
    dense = rng.poisson(0.4, (6, 13)).astype(float)
    dense[2] = 0
    dense[:, 3] = 0
    matrix = CountMatrix(sp.csr_matrix(dense), torch.device("cpu"), torch.float64)
    return BlockedBatch.of(matrix.batch(torch.tensor([4, 0, 2, 2, 5])), BLOCKS, 3)


def masked(weight: torch.Tensor) -> torch.Tensor:
    """The weight of the dense layer, (n_features, n_blocks * width): zero outside the block."""
    mask = F.one_hot(BLOCKS, 3).to(weight.dtype)
    return (mask[:, :, None] * weight[:, None, :]).reshape(len(weight), -1)


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_sparse_layer_is_the_masked_dense_one(batch):
    layer = SparseBlockLinear(BOUNDS, WIDTH).double()
    x = batch.counts.dense()
    found = layer(batch.counts.values, batch)
    expected = (x @ masked(layer.weight)).view(5, 3, WIDTH)
    torch.testing.assert_close(found, expected)
    pull = random(5, 3, WIDTH)
    (own,) = torch.autograd.grad((found * pull).sum(), layer.weight)
    (theirs,) = torch.autograd.grad((expected * pull).sum(), layer.weight)
    torch.testing.assert_close(own, theirs)


def test_block_linear_is_a_layer_a_block():
    layer = BlockLinear(3, 4, 2).double()
    x = random(5, 3, 4)
    expected = torch.stack([x[:, c] @ layer.weight[c] for c in range(3)], dim=1)
    torch.testing.assert_close(layer(x), expected)


def test_start_is_xavier_s_of_each_block():
    torch.manual_seed(0)
    layer = SparseBlockLinear([0, 4000, 4010], 64)
    for rows in (slice(0, 4000), slice(4000, 4010)):
        bound = (6 / (rows.stop - rows.start + 64)) ** 0.5
        largest = float(layer.weight[rows].detach().abs().max())
        assert 0.95 * bound < largest <= bound


def test_both_sorts_agree(batch):
    for own, other in zip(sort_on_host(batch.counts), sort_on_device(batch.counts), strict=True):
        assert torch.equal(own, other)
    columns = batch.counts.columns[batch.order]
    assert torch.equal(columns, columns.sort()[0])
    for p in range(13):
        assert (columns[batch.starts[p] : batch.starts[p + 1]] == p).all()


def test_both_products_agree(batch):
    starts = torch.tensor([0, 2, 2, 5])
    columns, values = torch.tensor([0, 3, 1, 2, 3]), random(5)
    dense = random(4, 6)
    arguments = (starts, columns, values, (3, 4), dense)
    torch.testing.assert_close(csr_product(*arguments), product_by_rows(*arguments))


@pytest.fixture(params=[None, 8, 1 << 20], ids=["default", "small sweeps", "one sweep"])
def sweep(request, monkeypatch):
    if request.param is not None:
        monkeypatch.setattr(block_likelihoods, "_ENTRIES_CPU", request.param)


def plain_nll(hidden, weight, bias, x, likelihood, positive, offset):
    logits = hidden.flatten(1) @ masked(weight).T + bias
    if offset is not None:
        logits = logits + offset[:, None]
    if likelihood == "poisson":
        terms = logits.exp() - x * logits + torch.lgamma(x + 1)
    else:
        x = (x > 0).double()
        terms = F.binary_cross_entropy_with_logits(logits, x, reduction="none")
    return (terms * torch.where(x > 0, positive, 1.0)).sum()


@pytest.mark.parametrize("likelihood", ["bernoulli", "poisson"])
@pytest.mark.parametrize("positive", [1.0, 20.0])
@pytest.mark.parametrize("offset", [False, True])
def test_likelihood_and_gradient(batch, sweep, likelihood, positive, offset):
    hidden, weight, bias = random(5, 3, WIDTH), random(13, WIDTH), random(13)
    leaves = [t.requires_grad_() for t in (hidden, weight, bias)]
    shift = torch.linspace(-1, 1, 5, dtype=torch.float64) if offset else None
    found = block_nll(
        *leaves, batch, BOUNDS, likelihood=likelihood, positive_weight=positive, offset=shift
    )
    expected = plain_nll(*leaves, batch.counts.dense(), likelihood, positive, shift)
    torch.testing.assert_close(found, expected)
    for own, theirs in zip(
        torch.autograd.grad(3 * found, leaves), torch.autograd.grad(3 * expected, leaves),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(own, theirs)
    with torch.no_grad():
        value = block_nll(
            *leaves, batch, BOUNDS, likelihood=likelihood, positive_weight=positive, offset=shift
        )
    torch.testing.assert_close(value, expected.detach())


@pytest.mark.parametrize("size", [30.0, 200.0])
def test_large_logits_stay_exact_in_float32(batch, size):
    """One sided sigmoids round to 0 and 1 there, and the sum must not notice."""
    matrix = CountMatrix(sp.csr_matrix(np.eye(2, 200)), torch.device("cpu"))
    blocks = torch.zeros(200, dtype=torch.long)
    one = BlockedBatch.of(matrix.batch(torch.tensor([0, 1])), blocks, 1)
    bias = torch.where(torch.arange(200) % 2 == 0, size, -size).requires_grad_()
    hidden, weight = torch.zeros(2, 1, 3), torch.zeros(200, 3)
    found = block_nll(hidden, weight, bias, one, [0, 200])
    logits = bias.double().expand(2, 200)
    expected = F.binary_cross_entropy_with_logits(
        logits, torch.eye(2, 200).double(), reduction="sum"
    )
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    (slope,) = torch.autograd.grad(found, bias)
    assert torch.isfinite(slope).all()
