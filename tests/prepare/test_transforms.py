from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from scbraid.errors import ConfigError, DataError, UnknownNameError
from scbraid.prepare.transforms import (
    as_csr,
    clr,
    column_moments,
    log1p,
    normalise_total,
    scale,
)


@pytest.fixture
def counts() -> sp.csr_matrix:
    rng = np.random.default_rng(0)
    return sp.csr_matrix(rng.poisson(0.8, (50, 20)).astype(np.float32))


def test_normalise_total_brings_cells_to_the_median(counts):
    result = normalise_total(counts)
    assert result.dtype == np.float64
    totals = np.asarray(counts.sum(1)).ravel()
    np.testing.assert_allclose(np.asarray(result.sum(1)).ravel(), np.median(totals))
    dense = counts.toarray() / totals[:, None] * np.median(totals)
    np.testing.assert_allclose(result.toarray(), dense, rtol=1e-6)


def test_normalise_total_of_some_features_uses_the_totals_of_all(counts):
    totals = np.asarray(counts.sum(1)).ravel()
    part = normalise_total(counts[:, :5], totals=totals)
    np.testing.assert_allclose(part.toarray(), normalise_total(counts).toarray()[:, :5])


def test_normalise_total_leaves_empty_cells_empty_and_out_of_the_median():
    counts = sp.csr_matrix(np.array([[0.0, 0.0], [2.0, 0.0], [2.0, 4.0]]))
    assert normalise_total(counts).toarray().tolist() == [[0, 0], [4, 0], [4 / 3, 8 / 3]]


def test_transforms_leave_their_argument_alone(counts):
    before = counts.toarray()
    for transform in (normalise_total, log1p, clr, scale):
        transform(counts)
    np.testing.assert_array_equal(counts.toarray(), before)


def test_as_csr_adds_up_repeated_entries_in_a_copy():
    twice = sp.csr_matrix((np.ones(2), [1, 1], [0, 2]), shape=(1, 3))
    assert as_csr(twice).toarray().tolist() == [[0, 2, 0]]
    assert twice.nnz == 2


def test_log1p_refuses_negative_values():
    with pytest.raises(DataError, match=r"found -0.5 \(1 such values\)"):
        log1p(sp.csr_matrix([[1.0, -0.5]]))


def test_clr_equals_its_definition(counts):
    dense = counts.toarray().astype(np.float64)
    expected = np.log1p(dense / np.exp(np.log1p(dense).mean(axis=1, keepdims=True)))
    np.testing.assert_allclose(clr(counts).toarray(), expected)


def test_column_moments_count_zeros(counts):
    mean, variance = column_moments(counts)
    dense = counts.toarray().astype(np.float64)
    np.testing.assert_allclose(mean, dense.mean(0))
    np.testing.assert_allclose(variance, dense.var(0, ddof=1))


def test_column_moments_do_not_cancel():
    dense = 1e8 + np.random.default_rng(0).standard_normal((100, 3))
    _, variance = column_moments(sp.csr_matrix(dense))
    np.testing.assert_allclose(variance, dense.var(0, ddof=1), rtol=1e-6)


def test_column_moments_need_two_cells():
    with pytest.raises(DataError, match="at least 2 cells; found 1"):
        column_moments(sp.csr_matrix([[1.0, 2.0]]))


@pytest.mark.parametrize("clip", ["upper", "both"])
@pytest.mark.parametrize("max_value", [0.7, 3.0, np.inf])
def test_scale_equals_dense_arithmetic(clip, max_value):
    rng = np.random.default_rng(1)
    dense = np.where(rng.random((60, 8)) < 0.5, 0, rng.normal(2, 3, (60, 8)))
    dense[:, 3] = 4.0  # constant
    dense[:, 4] = 0.0
    deviation = dense.std(0, ddof=1)
    expected = (dense - dense.mean(0)) / np.where(deviation > 1e-12, deviation, 1)
    expected = np.clip(expected, -max_value if clip == "both" else -np.inf, max_value)
    found = scale(sp.csr_matrix(dense), max_value=max_value, clip=clip)
    np.testing.assert_allclose(found.toarray(), expected, atol=1e-12)
    assert found.sparse.nnz <= np.count_nonzero(dense)


def test_scale_equals_scanpy_on_both_sides(counts):
    import scanpy as sc

    dense = counts.toarray().astype(np.float64)
    expected = sc.pp.scale(dense.copy(), max_value=1.0)
    np.testing.assert_allclose(
        scale(counts, max_value=1.0, clip="both").toarray(), expected, atol=1e-5
    )


def test_scale_refuses_unknown_clip_and_bounds(counts):
    with pytest.raises(UnknownNameError, match="did you mean 'upper'"):
        scale(counts, clip="uper")
    with pytest.raises(ConfigError, match="above 0"):
        scale(counts, max_value=0)
