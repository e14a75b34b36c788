"""Pooled positions against loops in double precision; the linear map against least squares."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from scbraid.nn.counts import CountMatrix
from scbraid.nn.pooling import LinearMoments, explained, join, log_values, pooled_sums


@pytest.mark.parametrize("counts", [True, False])
def test_pooled_sums_are_sums_of_positions_by_log_values(counts):
    rng = np.random.default_rng(0)
    x = rng.poisson(0.6, (9, 6)) * (1.0 if counts else 0.37)
    x[4] = 0
    f = rng.normal(size=(6, 3))
    observed = CountMatrix(sp.csr_matrix(x.astype(np.float32)), torch.device("cpu")).batch(
        torch.arange(9)
    )
    weights = log_values(observed.values, observed.library[observed.rows], counts=counts)
    found = pooled_sums(observed, weights, torch.tensor(f, dtype=torch.float32))
    for cell, row in enumerate(x):
        scaled = 1e4 * row / max(row.sum(), 1e-7) if counts else row
        expected = sum(np.log1p(value) * at for value, at in zip(scaled, f, strict=True))
        np.testing.assert_allclose(found[cell], expected, rtol=1e-5, atol=1e-5)
    assert not found[4].any()


def test_values_may_keep_their_sign_where_no_logarithm_is_taken():
    values = torch.tensor([-2.0, 0.5])
    assert torch.equal(log_values(values, values, counts=False, logarithmic=False), values)


def test_joined_readings_are_weighted_directions():
    rng = np.random.default_rng(1)
    place, pooled = (torch.tensor(rng.normal(size=(5, 4))) for _ in range(2))

    def unit(values):
        return values / np.linalg.norm(values, axis=1, keepdims=True)

    expected = unit(unit(place.numpy()) + 0.3 * unit(pooled.numpy()))
    np.testing.assert_allclose(join(place, pooled, 0.3), expected, rtol=1e-12)
    # Lengths of either reading do not count, and nothing is added by nothing.
    np.testing.assert_allclose(join(7 * place, 0.01 * pooled, 0.3), expected, rtol=1e-12)
    np.testing.assert_allclose(join(place, 0 * pooled, 0.3), unit(place.numpy()), rtol=1e-12)
    np.testing.assert_allclose(join(place, pooled, 0.0), unit(place.numpy()), rtol=1e-12)


def fitted(rep, values, *, blocks=(1,)):
    moments = LinearMoments(rep.shape[1], values.shape[1])
    for one, other in zip(
        np.array_split(rep, len(blocks)), np.array_split(values, len(blocks)), strict=True
    ):
        moments.add(torch.from_numpy(one), torch.from_numpy(other))
    assert moments.n_cells == len(rep)
    return moments.solve()


def least_squares(rep, values, other=None):
    """Fitted values without their mean, by numpy, with an intercept."""
    design, center = rep - rep.mean(0), values - values.mean(0)
    coefficients = np.linalg.lstsq(design, center, rcond=1e-10)[0]
    return ((rep if other is None else other) - rep.mean(0)) @ coefficients


@pytest.fixture
def problem():
    rng = np.random.default_rng(2)
    rep = rng.normal(size=(70, 6)) @ rng.normal(size=(6, 6))
    values = rep @ rng.normal(size=(6, 3)) + 2 * rng.normal(size=(70, 3)) + 5
    return rep, values


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_the_map_is_least_squares_with_an_intercept(problem, offset):
    rep, values = problem[0] + offset, problem[1] + offset
    own = fitted(rep, values)
    expected = least_squares(rep, values)
    np.testing.assert_allclose(own(torch.from_numpy(rep)), expected, rtol=1e-6, atol=1e-6)
    centred = values - values.mean(0)
    assert float(own.share) == pytest.approx((expected**2).sum() / (centred**2).sum(), rel=1e-6)
    assert 0.2 < float(own.share) < 0.99


def test_blocks_and_scales_of_columns_change_nothing(problem):
    rep, values = problem
    whole = fitted(rep, values)(torch.from_numpy(rep))
    for blocks in (range(2), range(7), range(70)):
        found = fitted(rep, values, blocks=blocks)(torch.from_numpy(rep))
        np.testing.assert_allclose(found, whole, rtol=1e-9, atol=1e-9)
    scaled = rep * 10.0 ** np.arange(-6, 12, 3)
    found = fitted(scaled, values)(torch.from_numpy(scaled))
    np.testing.assert_allclose(found, whole, rtol=1e-7, atol=1e-7)


def test_what_the_representation_cannot_tell_stays_out(problem):
    """Rows that sum to zero, as of LSI, constant columns and doubles: roundings are no signal."""
    rep, values = problem
    rep = (rep - rep.mean(1, keepdims=True)).astype(np.float32)
    redundant = np.column_stack([rep, rep[:, 0], np.full(len(rep), 0.1, np.float32)])
    own = fitted(redundant, values)
    expected = least_squares(rep[:, :5].astype(float), values)
    np.testing.assert_allclose(own(torch.from_numpy(redundant)), expected, rtol=1e-4, atol=1e-4)
    assert not own.coefficients[-1].any()
    assert torch.allclose(own.coefficients[0], own.coefficients[6], rtol=1e-4)
    # Other cells, whose roundings are others, are mapped as the columns that matter say.
    other = rep[::-1] * np.float32(1.7)
    other_redundant = np.column_stack([other, other[:, 0], np.full(len(rep), 0.1, np.float32)])
    expected = least_squares(rep[:, :5].astype(float), values, other[:, :5].astype(float))
    np.testing.assert_allclose(
        own(torch.from_numpy(other_redundant)), expected, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("rep", [np.ones((70, 4)), np.zeros((70, 4))])
def test_a_representation_that_says_nothing_explains_nothing(problem, rep):
    own = fitted(rep, problem[1])
    assert not own(torch.from_numpy(rep)).any()
    assert float(own.share) == 0


def test_values_that_do_not_vary_are_explained_by_nothing(problem):
    own = fitted(problem[0], np.full((70, 2), 3.0))
    assert float(own.share) == 0
    assert own(torch.from_numpy(problem[0])).abs().max() < 1e-12


def test_without_a_representation_the_mean_is_taken_away(problem):
    values = problem[1]
    moments = LinearMoments(0, 3)
    for part in np.array_split(values, 4):
        moments.add(None, torch.from_numpy(part))
    own = moments.solve()
    np.testing.assert_allclose(own(torch.from_numpy(values)), values - values.mean(0), atol=1e-12)
    assert own.coefficients is None
    assert float(own.share) == 1


@pytest.mark.parametrize("with_rep", [True, False])
def test_all_cells_at_once_give_the_same(problem, with_rep):
    rep, values = (torch.from_numpy(part) for part in problem)
    found = explained(values, rep if with_rep else None)
    expected = least_squares(*problem) if with_rep else problem[1] - problem[1].mean(0)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
