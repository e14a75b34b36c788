"""Predictions without networks, against formulas and libraries."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.decomposition import TruncatedSVD
from sklearn.gaussian_process.kernels import RBF
from sklearn.kernel_ridge import KernelRidge as Reference
from sklearn.linear_model import LinearRegression
from sklearn.neighbors import NearestNeighbors

from scbraid.data.layers import Layers
from scbraid.errors import ConfigError, DataError, NotApplicable
from scbraid.methods import methods
from scbraid.methods.baselines.regression import Regression, read_regression, svd_of

N_TRAIN, N_TEST, N_SOURCE, N_TARGET = 90, 20, 30, 12


@pytest.fixture
def task() -> Regression:
    """A target that follows the source linearly, but for noise; training cells not in order."""
    rng = np.random.default_rng(0)
    # Shares of four programs: cells differ in shape, not in size.
    hidden = rng.dirichlet(np.ones(4), size=N_TRAIN + N_TEST)
    X = hidden @ rng.random((4, N_SOURCE)) + 0.05 * rng.random((N_TRAIN + N_TEST, N_SOURCE))
    Y = hidden @ rng.random((4, N_TARGET)) + 0.05 * rng.random((N_TRAIN + N_TEST, N_TARGET))
    order = rng.permutation(N_TRAIN + N_TEST)
    train, test = order[:N_TRAIN], np.sort(order[N_TRAIN:])
    return Regression(
        sp.csr_matrix(X.astype(np.float32)),
        sp.csr_matrix(Y[train].astype(np.float32)),
        train,
        test,
        np.array([f"b{i % 4}" for i in range(N_TRAIN + N_TEST)]),
        (0.0, None),
    )


def fitted(name: str, task: Regression, seed: int = 0, **options) -> np.ndarray:
    method = methods()[name]
    one = method(method.configure(options=options), seed=seed)
    one._layers = ("rna", "adt")
    return one.predict(task)[0]


def test_mean_is_the_training_mean(task):
    found = fitted("feature_mean", task)
    assert found.shape == (N_TEST, N_TARGET)
    np.testing.assert_allclose(found, np.tile(task.Y.toarray().mean(axis=0), (N_TEST, 1)), 1e-5)


def test_svd_linear_equals_the_organisers_baseline(task):
    found = fitted("svd_linear", task, source_components=5, target_components=4)
    first = TruncatedSVD(5, algorithm="arpack").fit(task.X)
    second = TruncatedSVD(4, algorithm="arpack").fit(task.Y)
    line = LinearRegression().fit(first.transform(task.X[task.train]), second.transform(task.Y))
    expected = line.predict(first.transform(task.X[task.test])) @ second.components_
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_svd_linear_finds_a_linear_law(task):
    hidden = np.asarray(svd_of(task.X, 3).U)
    Y = np.abs(hidden) @ np.random.default_rng(1).random((3, 8)) + 1.0
    exact = Regression(
        sp.csr_matrix(np.abs(hidden).astype(np.float32)),
        sp.csr_matrix(Y[task.train].astype(np.float32)),
        task.train,
        task.test,
        None,
        (0.0, None),
    )
    # As many components as there are sources but one; the targets have rank four.
    found = fitted("svd_linear", exact, source_components=2, target_components=7)
    naive = fitted("feature_mean", exact)
    truth = Y[task.test]
    assert np.square(found - truth).mean() < 0.5 * np.square(naive - truth).mean()


def test_knn_averages_the_nearest_by_cosine(task):
    found = fitted("knn_regression", task, n_neighbors=7, source_components=6)
    svd = svd_of(task.X, 6)
    coordinates = (svd.U * svd.s)[:, 1:]
    near = NearestNeighbors(n_neighbors=7, metric="cosine", algorithm="brute")
    near.fit(coordinates[task.train])
    rows = near.kneighbors(coordinates[task.test], return_distance=False)
    expected = task.Y.toarray()[rows].mean(axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_neighbours_are_at_most_all_training_cells(task):
    found = fitted("knn_regression", task, n_neighbors=1000)
    np.testing.assert_allclose(found, fitted("feature_mean", task), rtol=1e-4)


def test_kernel_ridge_equals_the_library_on_each_half(task):
    found = fitted(
        "kernel_ridge", task, seed=3, source_components=8, target_components=5, n_repeats=2
    )
    svd = svd_of(task.X, 8)
    coordinates = svd.U * svd.s
    coordinates -= coordinates.mean(axis=1, keepdims=True)
    coordinates /= coordinates.std(axis=1, keepdims=True)
    target = svd_of(task.Y, 5)
    rng = np.random.default_rng(3)
    batches = np.unique(task.batch)
    total = 0.0
    for _ in range(2):
        names = rng.permutation(batches)
        for part in (names[:2], names[2:]):
            half = np.isin(task.batch[task.train], part)
            ridge = Reference(alpha=0.2, kernel=RBF(length_scale=10.0))
            ridge.fit(coordinates[task.train][half], (target.U * target.s)[half])
            total = total + ridge.predict(coordinates[task.test])
    np.testing.assert_allclose(found, total / 4 @ target.Vt, rtol=1e-6, atol=1e-8)


def test_kernel_ridge_draws_cells_where_a_half_has_too_many(task):
    few = fitted("kernel_ridge", task, max_cells=10)
    all_of_them = fitted("kernel_ridge", task)
    assert np.isfinite(few).all()
    assert not np.allclose(few, all_of_them)


def test_all_follow_a_smooth_law_better_than_the_mean(task):
    # The same law for the test cells, from another fit to all cells but them.
    rng = np.random.default_rng(0)
    hidden = rng.dirichlet(np.ones(4), size=N_TRAIN + N_TEST)
    rng.random((4, N_SOURCE))
    rng.random((N_TRAIN + N_TEST, N_SOURCE))
    truth = (hidden @ rng.random((4, N_TARGET)))[task.test]
    floor = np.square(fitted("feature_mean", task) - truth).mean()
    for name in ("svd_linear", "knn_regression", "kernel_ridge"):
        assert np.square(fitted(name, task) - truth).mean() < 0.7 * floor, name


def test_predictions_stay_in_the_target_space(task):
    values = np.array([[-1.0, 0.5, 2.0]])
    assert task.bounded(values).tolist() == [[0.0, 0.5, 2.0]]


def test_arrays_are_read_from_the_input(prepared):
    data = prepared(task="prediction", n_cells=100).data
    found = read_regression(data)
    assert found.bounds == (0.0, 1.0)
    assert found.bounded(np.array([-1.0, 0.2, 3.0])).tolist() == [0.0, 0.2, 1.0]
    assert len(found.test) == 20
    assert set(found.Y.data) == {1.0}
    own = {cell: row for row, cell in enumerate(data["atac"].cells)}
    rows = [own[cell] for cell in data["rna"].cells[found.train]]
    assert ((data["atac"].counts[rows] > 0) != found.Y).nnz == 0


REGRESSORS = ["feature_mean", "svd_linear", "knn_regression", "kernel_ridge", "axx_mlp"]


def strangers(data: Layers) -> None:
    data["atac"].cells[0] = "nobody"


def no_test_cells(data: Layers) -> None:
    data.layers["rna"] = data["rna"].take(np.isin(data["rna"].cells, data["atac"].cells))


def two_training_cells(data: Layers) -> None:
    kept, lost = data["atac"].cells[:2], data["atac"].cells[2:]
    data.layers["atac"] = data["atac"].take(np.isin(data["atac"].cells, kept))
    data.layers["rna"] = data["rna"].take(~np.isin(data["rna"].cells, lost))


def one_layer(data: Layers) -> None:
    del data.layers["atac"]


@pytest.mark.parametrize("name", REGRESSORS)
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (strangers, DataError, "found rna: 100, atac: 80, 79 of them in both"),
        (no_test_cells, DataError, "test cells beside; found rna: 80, atac: 80, 80 of them"),
        (two_training_cells, DataError, "share 2 cells; expected at least 3 to train on"),
        (one_layer, NotApplicable, "needs two layers; got rna"),
    ],
)
def test_wrong_inputs_are_named(prepared, name, change, error, message):
    data = prepared(task="prediction", n_cells=100).data
    change(data)
    method = methods()[name]
    with pytest.raises(error, match=message):
        method(method.configure()).fit(data)


def test_a_layer_too_small_for_a_decomposition_is_named():
    with pytest.raises(DataError, match="90 cells x 1 features cannot be decomposed"):
        svd_of(sp.csr_matrix(np.ones((90, 1), np.float32)), 5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("knn_regression", {"n_neighbors": 0}),
        ("kernel_ridge", {"alpha": 0.0}),
        ("svd_linear", {"source_components": 0}),
    ],
)
def test_options_have_ranges(name, options):
    with pytest.raises(ConfigError, match="expected a value >"):
        methods()[name].configure(options=options)
