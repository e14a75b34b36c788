from __future__ import annotations

import itertools

import numpy as np
import pytest

from scbraid.methods.glue.balance import balance_within_batches, balancing_weights
from scbraid.methods.glue.fit import leiden_clusters, sampled_clusters


def problem(n_layers: int, seed: int = 0, width: int = 3):
    """Embeddings with clusters that are read off the first half of a lookup, not from the data."""
    rng = np.random.default_rng(seed)
    embeddings, labels = [], []
    for k in range(n_layers):
        label = rng.integers(3 + k, size=40 + 5 * k)
        centers = rng.normal(size=(3 + k, width)) * 2
        embeddings.append(centers[label] + 0.2 * rng.normal(size=(len(label), width)))
        labels.append(label * 10 + 7)  # labels need not be 0..n-1
    known = {id(u): label for u, label in zip(embeddings, labels, strict=True)}
    return embeddings, labels, lambda u: known[id(u)]


def brute_force(embeddings, labels, cutoff=0.5, power=4.0, rule="product"):
    """The joint tensor over one cluster of each layer, entry by entry."""
    clusters = [np.unique(label) for label in labels]
    means = [
        [u[label == c].mean(0) for c in names]
        for u, label, names in zip(embeddings, labels, clusters, strict=True)
    ]

    def similarity(a, i, b, j):
        x, y = means[a][i], means[b][j]
        cosine = float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
        return cosine**power if cosine >= cutoff else 0.0

    n_layers = len(embeddings)
    result = []
    for k in range(n_layers):
        weight = np.zeros(len(labels[k]))
        for i, name in enumerate(clusters[k]):
            if rule == "sum":
                total = sum(
                    similarity(k, i, other, j)
                    for other in range(n_layers)
                    if other != k
                    for j in range(len(clusters[other]))
                )
            else:
                total = 0.0
                for combination in itertools.product(*(range(len(c)) for c in clusters)):
                    if combination[k] != i:
                        continue
                    entry = 1.0
                    for a, b in itertools.combinations(range(n_layers), 2):
                        entry *= similarity(a, combination[a], b, combination[b])
                    total += entry
            members = labels[k] == name
            weight[members] = total / members.sum()
        result.append(weight / weight.mean())
    return result


@pytest.mark.parametrize("n_layers", [2, 3, 4])
@pytest.mark.parametrize("rule", ["product", "sum"])
@pytest.mark.parametrize(("cutoff", "power"), [(0.5, 4.0), (0.1, 2.0)])
def test_weights_equal_the_joint_tensor(n_layers, rule, cutoff, power):
    embeddings, labels, cluster = problem(n_layers, width=2)
    balance = balancing_weights(embeddings, cluster, cutoff=cutoff, power=power, rule=rule)
    expected = brute_force(embeddings, labels, cutoff, power, rule)
    for found, wanted, label in zip(balance.weights, expected, labels, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-9)
        assert found.mean() == pytest.approx(1.0)
        assert len(found) == len(label)
    assert balance.n_clusters == [len(np.unique(label)) for label in labels]


def test_rules_agree_for_two_layers_and_differ_for_three():
    embeddings, _, cluster = problem(2, width=2)
    product = balancing_weights(embeddings, cluster, rule="product").weights
    total = balancing_weights(embeddings, cluster, rule="sum").weights
    np.testing.assert_allclose(product[0], total[0])
    embeddings, _, cluster = problem(3, width=2)
    product = balancing_weights(embeddings, cluster, rule="product").weights
    total = balancing_weights(embeddings, cluster, rule="sum").weights
    assert not np.allclose(product[0], total[0])


def directions(*angles_and_sizes):
    """Cells on the unit circle at the given angles (degrees), one cluster each."""
    rows, labels = [], []
    for c, (angle, size) in enumerate(angles_and_sizes):
        radians = np.deg2rad(angle)
        rows += [[np.cos(radians), np.sin(radians)]] * size
        labels += [c] * size
    return np.array(rows), np.array(labels)


def test_cutoff_is_inclusive_and_a_cluster_without_partner_has_weight_zero():
    # 0 and 60 degrees: cosine exactly 0.5 up to rounding; 61 degrees is below it.
    first, first_labels = directions((0, 4), (170, 6))
    for angle, matched in ((59.9, True), (60.1, False)):
        second, second_labels = directions((angle, 3), (172, 5))
        known = {id(first): first_labels, id(second): second_labels}
        weights = balancing_weights([first, second], lambda u, known=known: known[id(u)]).weights
        assert (weights[0][:4] > 0).all() == matched
        assert (weights[0][4:] > 0).all()
        assert weights[0].mean() == pytest.approx(1)


def test_weight_is_shared_by_the_cells_of_a_cluster():
    # Two clusters with perfect partners: equal sums, so weights go with 1 / size.
    first, first_labels = directions((0, 10), (90, 30))
    second, second_labels = directions((0, 20), (90, 20))
    known = {id(first): first_labels, id(second): second_labels}
    weights = balancing_weights([first, second], lambda u: known[id(u)]).weights
    assert weights[0][0] / weights[0][-1] == pytest.approx(3.0)
    assert weights[1][0] / weights[1][-1] == pytest.approx(1.0)


def test_without_any_partner_all_weights_are_one():
    first, first_labels = directions((0, 4))
    second, second_labels = directions((180, 5))
    known = {id(first): first_labels, id(second): second_labels}
    balance = balancing_weights([first, second], lambda u: known[id(u)])
    assert all((w == 1).all() for w in balance.weights)


def test_balancing_within_batches_is_one_balancing_a_batch():
    rng = np.random.default_rng(0)
    embeddings = [rng.normal(size=(40, 2)), rng.normal(size=(50, 2))]
    labels = [rng.integers(3, size=40), rng.integers(3, size=50)]
    batches = [rng.integers(2, size=40), rng.integers(2, size=50)]

    def nearest(u):
        """Read the labels of a batch's cells back from their coordinates."""
        for v, label in zip(embeddings, labels, strict=True):
            if len(u) and (v == u[0]).all(1).any():
                return np.array([label[(v == row).all(1).argmax()] for row in u])
        raise AssertionError

    balance = balance_within_batches(embeddings, batches, nearest, cutoff=0.1)
    for code in (0, 1):
        rows = [batch == code for batch in batches]
        expected = brute_force(
            [u[r] for u, r in zip(embeddings, rows, strict=True)],
            [label[r] for label, r in zip(labels, rows, strict=True)],
            cutoff=0.1,
        )
        for k in range(2):
            np.testing.assert_allclose(balance.weights[k][rows[k]], expected[k])


def test_leiden_clusters_find_directions_not_lengths():
    rng = np.random.default_rng(0)
    angle = np.repeat([0.0, 2.1, 4.2], 60) + 0.1 * rng.normal(size=180)
    embedding = np.stack([np.cos(angle), np.sin(angle)], 1) * rng.uniform(0.5, 20, (180, 1))
    labels = leiden_clusters(embedding.astype(np.float32), resolution=0.2, seed=0)
    truth = np.repeat([0, 1, 2], 60)
    # No cluster mixes directions.
    for c in np.unique(labels):
        assert len(np.unique(truth[labels == c])) == 1
    np.testing.assert_array_equal(
        labels, leiden_clusters(embedding.astype(np.float32), resolution=0.2, seed=0)
    )


def test_leiden_clusters_of_a_handful_of_cells():
    rng = np.random.default_rng(0)
    assert len(leiden_clusters(rng.normal(size=(5, 3)), resolution=1.0, seed=0)) == 5


def test_cells_beyond_the_sample_join_the_nearest_cluster():
    rng = np.random.default_rng(0)
    truth = rng.integers(3, size=400)
    length = rng.uniform(0.5, 3.0, size=(400, 1))
    embedding = length * (np.eye(3)[truth] + 0.05 * rng.normal(size=(400, 3)))
    options = {"resolution": 0.2, "seed": 0}
    labels = sampled_clusters(embedding, most=90, **options)
    assert len({(a, b) for a, b in zip(labels, truth, strict=True)}) == 3
    np.testing.assert_array_equal(labels, sampled_clusters(embedding, most=90, **options))
    whole = leiden_clusters(embedding, **options)
    for most in (None, 400, 10_000):
        np.testing.assert_array_equal(sampled_clusters(embedding, most=most, **options), whole)


def test_cells_of_the_sample_keep_their_cluster():
    # Without any structure, clusters of Leiden are not those of the nearest mean.
    rng = np.random.default_rng(1)
    embedding = rng.normal(size=(300, 4))
    drawn = np.random.default_rng(7).choice(300, 120, replace=False)
    labels = sampled_clusters(embedding, most=120, resolution=1.0, seed=7)
    expected = leiden_clusters(embedding[drawn], resolution=1.0, seed=7)
    np.testing.assert_array_equal(labels[drawn], expected)
    assert set(labels) <= set(expected)
