from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from scbraid.nn.counts import CountMatrix

CPU = torch.device("cpu")


@pytest.fixture
def dense() -> np.ndarray:
    rng = np.random.default_rng(0)
    matrix = rng.poisson(0.7, size=(9, 6)).astype(np.float32)
    matrix[[0, 4, 8]] = 0  # empty first, inner and last row
    return matrix


@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_matrix, sp.coo_matrix])
@pytest.mark.parametrize(
    "rows", [[3], [5, 1, 2], [2, 2, 2], [0, 3, 0, 3, 4], [0], [8, 8], list(range(9))]
)
def test_batch_gathers_rows_in_the_order_asked_for(dense, form, rows):
    batch = CountMatrix(form(dense), CPU).batch(torch.tensor(rows))
    np.testing.assert_array_equal(batch.dense(), dense[rows])
    np.testing.assert_array_equal(batch.library, dense[rows].sum(1))
    assert batch.shape == (len(rows), 6)
    assert (batch.rows.diff() >= 0).all()


@pytest.mark.parametrize("keep", [[0, 1, 2, 3, 4], [1, 3], [2], [0, 4], []])
def test_take_keeps_the_given_positions_of_a_batch(dense, keep):
    rows = [3, 4, 3, 1, 5]
    batch = CountMatrix(sp.csr_matrix(dense), CPU).batch(torch.tensor(rows))
    part = batch.take(torch.tensor(keep, dtype=torch.long))
    expected = dense[rows][keep].reshape(len(keep), 6)
    np.testing.assert_array_equal(part.dense(), expected)
    np.testing.assert_array_equal(part.library, expected.sum(1))


def test_batch_of_no_row(dense):
    batch = CountMatrix(sp.csr_matrix(dense), CPU).batch(torch.tensor([], dtype=torch.long))
    assert batch.dense().shape == (0, 6)


def test_matrix_is_a_copy_that_leaves_its_source_alone(dense):
    source = sp.csr_matrix(dense)
    matrix = CountMatrix(source, CPU)
    matrix.values.zero_()
    np.testing.assert_array_equal(source.toarray(), dense)


def test_library_is_summed_in_double_precision():
    # In single precision 2^24 + 1 = 2^24: a thousand ones on top of it would be lost.
    row = np.r_[2.0**24, np.ones(1_000)].astype(np.float32)
    matrix = CountMatrix(sp.csr_matrix(row[None]), CPU, torch.float64)
    assert float(matrix.library[0]) == 2.0**24 + 1_000
