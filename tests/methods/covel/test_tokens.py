"""Tokens of cells: which features, which values, which weights."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from scbraid.nn.counts import CountMatrix
from scbraid.nn.tokens import all_tokens, nonzero_tokens, with_zeros


@pytest.fixture
def counts():
    """Six cells, 20 features; the third cell is empty, the fourth full."""
    rng = np.random.default_rng(0)
    dense = rng.poisson(0.4, (6, 20)).astype(np.float32)
    dense[2], dense[3] = 0, rng.integers(1, 5, 20)
    return dense


def batch_of(counts):
    return CountMatrix(sp.csr_matrix(counts), torch.device("cpu")).batch(torch.arange(len(counts)))


def test_nonzero_tokens_are_the_entries_and_nothing_else(counts):
    tokens = nonzero_tokens(batch_of(counts))
    for row, *parts in zip(counts, tokens.feature, tokens.value, tokens.log_weight, strict=True):
        feature, value, log_weight = (part.numpy() for part in parts)
        there = log_weight == 0
        assert (there | np.isneginf(log_weight)).all()
        if not row.any():
            # A cell without counts is read as one zero.
            assert there.tolist() == [True] + [False] * (len(there) - 1)
            assert value[0] == 0
            continue
        np.testing.assert_array_equal(feature[there], np.flatnonzero(row))
        np.testing.assert_array_equal(value[there], row[row > 0])


def test_a_limit_draws_without_replacement_and_uniformly(counts):
    batch = batch_of(counts)
    torch.manual_seed(0)
    seen = np.zeros(20)
    for _ in range(600):
        tokens = nonzero_tokens(batch, 4)
        assert tokens.feature.shape == (6, 4)
        drawn = tokens.feature[3].numpy()
        assert len(set(drawn)) == 4
        np.testing.assert_array_equal(tokens.value[3], counts[3, drawn])
        seen[drawn] += 1
    np.testing.assert_allclose(seen / 600, 4 / 20, atol=0.07)
    few = (counts > 0).sum(1) <= 4
    whole = nonzero_tokens(batch)
    for cell in np.flatnonzero(few):
        n = (counts[cell] > 0).sum()
        np.testing.assert_array_equal(tokens.feature[cell, :n], whole.feature[cell, :n])


def test_a_limit_that_no_cell_reaches_draws_nothing(counts):
    state = torch.get_rng_state()
    nonzero_tokens(batch_of(counts), 20)
    assert torch.get_rng_state().equal(state)


def test_all_tokens_are_the_dense_row(counts):
    tokens = all_tokens(batch_of(counts))
    np.testing.assert_array_equal(tokens.value, counts)
    assert tokens.feature[5].tolist() == list(range(20))
    assert not tokens.log_weight.any()


def test_sampled_zeros_stand_for_all_zeros(counts):
    batch = batch_of(counts)
    torch.manual_seed(0)
    sums = np.zeros((6, 20))
    for _ in range(500):
        tokens = with_zeros(nonzero_tokens(batch), batch)
        weight = tokens.log_weight.exp().numpy()
        for cell in range(6):
            np.add.at(sums[cell], tokens.feature[cell].numpy(), weight[cell])
        n = tokens.feature.shape[1] // 2
        zeros = np.take_along_axis(counts, tokens.feature.numpy(), 1)[:, n:]
        assert not zeros[weight[:, n:] > 0].any()
        # All zeros of a cell, whatever the number of those drawn.
        drawn = weight[:, n:].sum(1)
        expected = (counts == 0).sum(1)
        np.testing.assert_allclose(drawn[drawn > 0], expected[drawn > 0], rtol=1e-5)
    filled = counts.any(1)
    np.testing.assert_allclose(sums[filled] / 500, 1, atol=0.4)


def test_zeros_weigh_less_beside_a_part_of_the_nonzero_tokens(counts):
    batch = batch_of(counts)
    torch.manual_seed(0)
    for _ in range(20):
        tokens = with_zeros(nonzero_tokens(batch, 2), batch)
        weight = tokens.log_weight.exp()
        kept, zeros = weight[:, :2].sum(1), weight[:, 2:].sum(1)
        present = torch.from_numpy((counts > 0).sum(1))
        drawn = (zeros > 0) & (present > 0)
        # As many zeros to a non-zero token as the cell has.
        expected = ((20 - present) / present)[drawn]
        torch.testing.assert_close((zeros / kept)[drawn], expected.to(zeros.dtype))
