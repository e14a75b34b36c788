from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.metrics import silhouette_samples as sklearn_silhouettes

from scbraid.errors import NotApplicable
from scbraid.metrics import cell_type_asw, omics_layer_asw, silhouette_samples
from scbraid.metrics.silhouette import group_distance_sums


def slow_omics_asw(X, labels, layers):
    per_type = []
    for label in np.unique(labels):
        rows = labels == label
        present = np.unique(layers[rows])
        if len(present) == 1 or len(present) == rows.sum():
            per_type.append(1.0)
        else:
            s = sklearn_silhouettes(X[rows].astype(np.float64), layers[rows])
            per_type.append(np.mean(1 - np.abs(s)))
    return np.mean(per_type)


def test_distance_sums_equal_brute_force(cloud):
    X, labels, _ = cloud(n=1700)
    groups = np.unique(labels, return_inverse=True)[1]
    D = cdist(X.astype(np.float64), X.astype(np.float64))
    expected = np.stack([D[:, groups == g].sum(axis=1) for g in range(groups.max() + 1)], axis=1)
    np.testing.assert_allclose(group_distance_sums(X, groups), expected, rtol=2e-6)


@pytest.mark.parametrize("n", [30, 767, 768, 769, 1600])
def test_silhouettes_equal_scikit_learn(cloud, n):
    X, labels, _ = cloud(n=n)
    expected = sklearn_silhouettes(X.astype(np.float64), labels)
    np.testing.assert_allclose(silhouette_samples(X, labels), expected, atol=2e-6)
    assert cell_type_asw(X, labels) == pytest.approx((expected.mean() + 1) / 2, abs=1e-7)


@pytest.mark.parametrize("shift", [0.0, 0.5, 3.0])
def test_omics_asw_equals_slow_form(cloud, shift):
    X, labels, layers = cloud(n=800, shift=shift)
    labels[labels == "type 1"] = "type 0"
    layers[labels == "type 2"] = "rna"  # in one layer only: counts 1
    assert omics_layer_asw(X, labels, layers) == pytest.approx(
        slow_omics_asw(X, labels, layers), abs=1e-6
    )


def test_types_without_silhouette_by_layer_count_one():
    X = np.array([[0.0], [1.0], [10.0], [11.0], [12.0]])
    layers = np.array(["rna", "atac", "rna", "rna", "rna"])
    assert omics_layer_asw(X, ["a", "a", "b", "b", "b"], layers) == 1.0
    with pytest.raises(NotApplicable, match=r"at least two. Got 1"):
        omics_layer_asw(X, ["a", "a", "b", "b", "b"], ["rna"] * 5)


def test_a_label_with_one_cell_has_silhouette_zero(cloud):
    X, labels, _ = cloud(n=100)
    labels[7] = "only one"
    found = silhouette_samples(X, labels)
    assert found[7] == 0.0
    np.testing.assert_allclose(found, sklearn_silhouettes(X.astype(float), labels), atol=2e-6)


def test_far_clusters_give_one_and_one_place_gives_zero():
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b"], 50)
    X = rng.normal(size=(100, 5)) + 1e6 * (labels == "b")[:, None]
    assert cell_type_asw(X, labels) == pytest.approx(1.0, abs=1e-5)
    assert (silhouette_samples(np.full((100, 5), 0.1, np.float32), labels) == 0).all()


def test_layers_within_tight_far_types():
    # Types 1e5 apart with a spread of 1: in single precision their inner distances are noise.
    rng = np.random.default_rng(1)
    labels = np.repeat(["a", "b", "c"], 80)
    layers = np.tile(["rna", "atac"], 120)
    X = rng.normal(size=(240, 6)) + 1e5 * rng.normal(size=(3, 6))[np.repeat(np.arange(3), 80)]
    expected = slow_omics_asw(X, labels, layers)
    assert omics_layer_asw(X, labels, layers) == pytest.approx(expected, abs=1e-6)
    # Whole types at one place: a = b = 0, silhouette 0, perfectly mixed.
    X = np.eye(3, dtype=np.float32)[np.repeat(np.arange(3), 80)]
    assert omics_layer_asw(X, labels, layers) == 1.0
    assert cell_type_asw(X, labels) == 1.0


def test_duplicated_cells(cloud):
    X, labels, layers = cloud(n=500)
    X[100:200] = X[:100]
    expected = sklearn_silhouettes(X.astype(float), labels)
    np.testing.assert_allclose(silhouette_samples(X, labels), expected, atol=1e-4)
    assert omics_layer_asw(X, labels, layers) == pytest.approx(
        slow_omics_asw(X, labels, layers), abs=1e-5
    )


@pytest.mark.parametrize("labels", [["a"] * 6, list("abcdef")])
def test_labels_without_silhouettes_do_not_apply(labels):
    with pytest.raises(NotApplicable, match="silhouettes need"):
        cell_type_asw(np.arange(12.0).reshape(6, 2), labels)


def test_empty_levels_of_a_categorical_are_no_types(cloud):
    import pandas as pd

    X, labels, layers = cloud(n=200)
    levels = [*np.unique(labels), "nobody"]
    categorical = pd.Categorical(labels, categories=levels)
    assert cell_type_asw(X, categorical) == cell_type_asw(X, labels)
    assert omics_layer_asw(X, categorical, layers) == omics_layer_asw(X, labels, layers)


def test_missing_labels_and_wrong_lengths_are_named(cloud):
    X, labels, _ = cloud(n=50)
    with pytest.raises(ValueError, match=r"labels must have shape \(50,\). Got \(49,\)"):
        silhouette_samples(X, labels[:-1])
    with pytest.raises(ValueError, match=r"known for every cell. Got 1 missing"):
        silhouette_samples(X, [None, *labels[1:]])
    with pytest.raises(ValueError, match="Got 2 missing"):
        silhouette_samples(X, np.r_[np.nan, np.nan, np.ones(48)])
