from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from scbraid.errors import ConfigError, DataError, UnknownNameError
from scbraid.prepare import LSI_FORMS, lsi, pca, scale, truncated_svd
from scbraid.prepare import svd as svd_module

SHAPES = [(80, 30), (30, 80), (400, 40), (40, 400)]


@pytest.fixture(params=["gram", "lanczos"])
def solver_of_short_sides(request, monkeypatch):
    """Solve small matrices in the way of large ones as well."""
    if request.param == "lanczos":
        monkeypatch.setattr(svd_module, "GRAM_SIDE", 10)


def sparse(shape: tuple[int, int], seed: int = 0) -> sp.csr_matrix:
    """Counts of 6 groups of rows: a spectrum with a clear head."""
    rng = np.random.default_rng(seed)
    rates = rng.gamma(0.3, 2.0, (6, shape[1]))[rng.integers(0, 6, shape[0])]
    return sp.csr_matrix(rng.poisson(rates).astype(np.float64))


@pytest.mark.usefixtures("solver_of_short_sides")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("centred", [False, True])
def test_truncated_svd_equals_the_dense_one(shape, centred):
    X = sparse(shape)
    mean = np.asarray(X.mean(0)).ravel() if centred else None
    dense = X.toarray() - (mean if centred else 0)
    _, s, Vt = np.linalg.svd(dense, full_matrices=False)
    found = truncated_svd(X, 10, mean=mean)
    np.testing.assert_allclose(found.s, s[:10], rtol=1e-9)
    np.testing.assert_allclose(np.abs((found.Vt * Vt[:10]).sum(1)), 1, atol=1e-6)
    np.testing.assert_allclose(found.U * found.s, dense @ found.Vt.T, atol=1e-8)
    np.testing.assert_allclose(found.U.T @ found.U, np.eye(10), atol=1e-10)


@pytest.mark.usefixtures("solver_of_short_sides")
@pytest.mark.parametrize("shape", [(80, 30), (30, 80)])
def test_signs_do_not_depend_on_the_order_of_cells_or_the_seed(shape):
    X = sparse(shape)
    order = np.random.default_rng(1).permutation(shape[0])
    first, second = truncated_svd(X, 5, seed=0), truncated_svd(X[order], 5, seed=1)
    np.testing.assert_allclose(first.U[order], second.U, atol=1e-7)
    largest = np.abs(first.Vt).argmax(1)
    assert (first.Vt[np.arange(5), largest] > 0).all()


@pytest.mark.usefixtures("solver_of_short_sides")
def test_same_seed_gives_the_same_bits():
    X = sparse((90, 80))
    for solver in ("lanczos", "randomised"):
        first = truncated_svd(X, 5, solver=solver, seed=3)
        np.testing.assert_array_equal(first.U, truncated_svd(X, 5, solver=solver, seed=3).U)


@pytest.mark.usefixtures("solver_of_short_sides")
def test_vectors_stay_orthonormal_without_full_rank():
    X = sp.csr_matrix(np.outer(np.arange(1, 41), np.arange(1, 21)).astype(float))
    found = truncated_svd(X, 5)
    np.testing.assert_allclose(found.U.T @ found.U, np.eye(5), atol=1e-10)
    np.testing.assert_allclose(found.s[1:], 0, atol=1e-6)


@pytest.mark.parametrize("centred", [False, True])
def test_randomised_solver_finds_a_separated_head(centred):
    X = sparse((200, 150))
    mean = np.asarray(X.mean(0)).ravel() if centred else None
    exact, found = (
        truncated_svd(X, 5, mean=mean),
        truncated_svd(X, 5, mean=mean, solver="randomised"),
    )
    np.testing.assert_allclose(found.s, exact.s, rtol=1e-5)
    np.testing.assert_allclose(np.abs((found.U * exact.U).sum(0)), 1, atol=1e-4)


@pytest.mark.parametrize("n_components", [0, 30])
def test_number_of_components_is_checked(n_components):
    with pytest.raises(ConfigError, match=r"matrix of 80 x 30; expected 1 to 29"):
        truncated_svd(sparse((80, 30)), n_components)


def test_unknown_solver():
    with pytest.raises(UnknownNameError, match="did you mean 'randomised'"):
        truncated_svd(sparse((80, 30)), 3, solver="randomized")


@pytest.mark.usefixtures("solver_of_short_sides")
@pytest.mark.parametrize("shape", [(80, 30), (30, 80)])
def test_pca_equals_scikit_learn(shape):
    from sklearn.decomposition import PCA

    X = sparse(shape)
    reference = PCA(8, svd_solver="full").fit(X.toarray())
    found = pca(X, 8)
    signs = np.sign((found.loadings * reference.components_).sum(1))
    expected = reference.transform(X.toarray()) * signs
    np.testing.assert_allclose(found.scores, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.loadings, reference.components_ * signs[:, None], atol=1e-6)
    np.testing.assert_allclose(found.variance, reference.explained_variance_)
    np.testing.assert_allclose(found.variance_ratio, reference.explained_variance_ratio_)
    assert found.scores.dtype == np.float32


@pytest.mark.parametrize("clip", ["upper", "both"])
def test_pca_of_implicitly_scaled_data_equals_that_of_the_dense_matrix(clip):
    from sklearn.decomposition import PCA

    scaled = scale(sparse((200, 50)), max_value=1.5, clip=clip)
    reference = PCA(5, svd_solver="full").fit_transform(scaled.toarray())
    found = pca(scaled.sparse, 5).scores
    np.testing.assert_allclose(np.abs(found), np.abs(reference), rtol=1e-3, atol=1e-4)


def reference_lsi(form: str, X: np.ndarray, k: int) -> np.ndarray:
    """The definitions, densely."""
    tf = X / X.sum(1, keepdims=True)
    idf = len(X) / X.sum(0)
    if form.startswith("glue"):
        y = tf * idf
        Z = np.log1p(1e4 * y / y.sum(1, keepdims=True))
    elif form == "log_idf":
        Z = np.log1p(1e4 * tf * np.log1p(idf))
    elif form == "signac1":
        Z = np.log1p(1e4 * tf * idf)
    elif form == "signac3":
        Z = np.log1p(1e4 * tf) * np.log1p(idf)
    U, s, Vt = np.linalg.svd(Z, full_matrices=False)
    signs = np.sign(Vt[np.arange(len(Vt)), np.abs(Vt).argmax(1)])
    U = U * signs
    if form == "glue":
        U = U[:, :k]
        return (U - U.mean(1, keepdims=True)) / U.std(1, ddof=1, keepdims=True)
    return (U * s)[:, 1 : k + 1]


@pytest.mark.usefixtures("solver_of_short_sides")
@pytest.mark.parametrize("form", LSI_FORMS)
@pytest.mark.parametrize("shape", [(70, 120), (120, 70)])
def test_lsi_forms_equal_their_definitions(form, shape):
    X = sparse(shape, seed=2)
    X = X[np.asarray(X.sum(1)).ravel() > 0][:, np.asarray(X.sum(0)).ravel() > 0]
    X = X[np.asarray(X.sum(1)).ravel() > 0]
    found = lsi(X, 4, form=form)
    assert found.shape == (X.shape[0], 4)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, reference_lsi(form, X.toarray(), 4), atol=1e-4)


def test_randomised_lsi_depends_on_its_seed_and_agrees_on_the_head():
    X = sparse((200, 150), seed=2)
    exact = lsi(X, 4, form="glue_us")
    randomised = [lsi(X, 4, form="glue_us", solver="randomised", seed=s) for s in (0, 0, 1)]
    np.testing.assert_array_equal(randomised[0], randomised[1])
    assert (randomised[0] != randomised[2]).any()
    np.testing.assert_allclose(randomised[0], exact, atol=1e-2)


def test_lsi_takes_integer_and_dense_counts():
    X = sparse((70, 120), seed=2)
    X = X[:, np.asarray(X.sum(0)).ravel() > 0]
    np.testing.assert_array_equal(lsi(X, 3), lsi(X.toarray().astype(int), 3))


def test_lsi_names_peaks_without_counts():
    X = sparse((70, 120), seed=2)
    X = X[:, np.asarray(X.sum(0)).ravel() > 0][:, :100].tolil()
    X[:, [7, 11]] = 0
    names = [f"chr1:{i}-{i + 1}" for i in range(100)]
    with pytest.raises(DataError, match=r"2 of 100 peaks have none \('chr1:7-8', 'chr1:11-12'\)"):
        lsi(X.tocsr(), 3, features=names)
    with pytest.raises(DataError, match=r"have none \(at position 7, 11\); remove them first"):
        lsi(X.tocsr(), 3)


def test_lsi_refuses_empty_cells_and_negative_values():
    X = sparse((70, 120), seed=2)
    X = X[:, np.asarray(X.sum(0)).ravel() > 0].tolil()
    X[3] = 0
    with pytest.raises(DataError, match=r"1 of 70 cells have none \(at position 3\)"):
        lsi(X.tocsr(), 3)
    X[3, 0] = -1
    with pytest.raises(DataError, match="LSI needs finite values of 0 or more; found -1"):
        lsi(X.tocsr(), 3)


def test_lsi_refuses_unknown_forms_and_impossible_sizes():
    X = sparse((70, 120), seed=2)
    X = X[:, np.asarray(X.sum(0)).ravel() > 0]
    with pytest.raises(UnknownNameError, match="unknown LSI form 'signac'; did you mean"):
        lsi(X, 3, form="signac")
    with pytest.raises(ConfigError, match="expected 2 or more, got 1"):
        lsi(X, 1)
    with pytest.raises(ConfigError, match="70 components"):
        lsi(X, 70)
