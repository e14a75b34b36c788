from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from scbraid.errors import ConfigError, DataError
from scbraid.prepare import highly_variable, most_variable


@pytest.fixture(scope="module")
def counts() -> sp.csr_matrix:
    rng = np.random.default_rng(0)
    means = rng.lognormal(-0.5, 1.2, 600)
    shape = rng.gamma(2.0, 1.0, 600) + 0.1
    X = rng.negative_binomial(shape, shape / (shape + means), size=(400, 600))
    X[:, 17] = 0
    X[:, 18] = 1
    return sp.csr_matrix(X.astype(np.float32))


@pytest.mark.parametrize("batches", [1, 3])
@pytest.mark.parametrize("n_top", [10, 150])
def test_equals_scanpy(counts, batches, n_top):
    import anndata
    import scanpy as sc

    batch = np.random.default_rng(1).choice(["a", "b", "c"][:batches], counts.shape[0])
    data = anndata.AnnData(counts.copy(), obs={"batch": batch})
    data.obs_names = data.obs_names.astype(str)
    expected = sc.pp.highly_variable_genes(
        data,
        n_top_genes=n_top,
        flavor="seurat_v3",
        batch_key="batch" if batches > 1 else None,
        inplace=False,
    )
    found = highly_variable(counts, n_top, batch=batch if batches > 1 else None)
    np.testing.assert_array_equal(found["highly_variable"], expected["highly_variable"])
    for column in ("means", "variances", "variances_norm", "highly_variable_rank"):
        np.testing.assert_allclose(found[column], expected[column], rtol=1e-6, err_msg=column)
    if batches > 1:
        np.testing.assert_array_equal(
            found["highly_variable_nbatches"], expected["highly_variable_nbatches"]
        )


def test_finds_the_features_that_were_made_variable(counts):
    X = counts.toarray()
    planted = np.arange(100, 120)
    X[:60, planted] = X[:60, planted] * 10 + 5
    found = highly_variable(sp.csr_matrix(X), 40)
    assert found["highly_variable"].sum() == 40
    assert found["highly_variable"][planted].mean() > 0.9


def test_all_features_can_be_asked_for(counts):
    assert highly_variable(counts, counts.shape[1])["highly_variable"].all()


def test_refuses_what_is_not_counts(counts):
    with pytest.raises(DataError, match="needs raw counts"):
        highly_variable(counts * 0.5, 10)
    with pytest.raises(DataError, match="needs raw counts"):
        highly_variable(-counts, 10)


@pytest.mark.parametrize("n_top", [0, 601])
def test_refuses_impossible_numbers(counts, n_top):
    with pytest.raises(ConfigError, match="expected 1 to 600"):
        highly_variable(counts, n_top)


def test_refuses_batches_of_another_length(counts):
    with pytest.raises(DataError, match=r"expected \(400,\)"):
        highly_variable(counts, 10, batch=np.array(["a"]))


def test_names_the_batch_whose_regression_fails(counts):
    batch = np.where(np.arange(400) < 2, "tiny", "large")
    few = sp.csr_matrix(np.minimum(counts.toarray(), 1))
    with pytest.raises(DataError, match="in batch 'tiny'"):
        highly_variable(few, 10, batch=batch)


def test_most_variable_takes_the_largest_variances():
    X = np.random.default_rng(0).normal(0, [1, 5, 2, 4], size=(200, 4))
    assert most_variable(sp.csr_matrix(X), 2).tolist() == [False, True, False, True]
