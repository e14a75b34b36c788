"""Feature consistency and integration consistency."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import sparse, stats

from scbraid.errors import NotApplicable
from scbraid.metrics import FeatureEdges, feature_consistency, integration_consistency, metacells


def slow_feature_consistency(F, G):
    cosines = []
    for M in (F, G):
        M = M / np.linalg.norm(M, axis=1, keepdims=True)
        cosines.append((M @ M.T).reshape(-1))
    return stats.pearsonr(*cosines).statistic


@pytest.mark.parametrize("noise", [0.1, 1.0, 10.0])
def test_feature_consistency_equals_slow_form(noise):
    rng = np.random.default_rng(0)
    F = rng.normal(size=(150, 6))
    G = F + noise * rng.normal(size=F.shape)
    assert feature_consistency(F, G) == pytest.approx(slow_feature_consistency(F, G), abs=1e-12)


def test_feature_consistency_draws_features():
    rng = np.random.default_rng(0)
    F = rng.normal(size=(700, 6)).astype(np.float32)
    G = F + rng.normal(size=F.shape)
    whole = feature_consistency(F, G)
    drawn = feature_consistency(F, G, n_drawn=300)
    assert drawn == pytest.approx(whole, abs=0.03)
    assert drawn != whole
    assert feature_consistency(F, G, n_drawn=300) == drawn
    assert feature_consistency(F, G, n_drawn=300, seed=1) != drawn


def test_feature_consistency_ignores_rotation_and_length():
    rng = np.random.default_rng(0)
    F = rng.normal(size=(80, 5))
    Q = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    G = np.hstack([F @ Q, np.zeros((80, 2))]) * rng.uniform(1, 9, size=(80, 1))
    assert feature_consistency(F, G) == pytest.approx(1.0, abs=1e-12)
    F[3] = 0.0  # without direction: similarity 0 to all
    assert np.isfinite(feature_consistency(F, G))


def test_feature_consistency_says_when_it_does_not_apply():
    with pytest.raises(NotApplicable, match="share 1 features"):
        feature_consistency(np.ones((1, 2)), np.ones((1, 2)))
    with pytest.raises(NotApplicable, match="the same way"):
        feature_consistency(np.ones((9, 2)), np.random.default_rng(0).normal(size=(9, 2)))
    with pytest.raises(ValueError, match="Got 3 and 4 rows"):
        feature_consistency(np.ones((3, 2)), np.ones((4, 2)))


@pytest.fixture
def linked():
    """Two layers of 4 types; feature i of either layer follows the same profile over types."""
    rng = np.random.default_rng(0)
    types = np.repeat(np.arange(8), 30)
    rates = rng.gamma(0.5, size=(8, 40))
    embeddings, counts = [], []
    for _ in range(2):
        centres = np.eye(8)[types] * 10
        embeddings.append((centres + rng.normal(size=(240, 8))).astype(np.float32))
        counts.append(sparse.csr_matrix(rng.poisson(rates[types] * 3).astype(np.float32)))
    n = 39  # the last feature has no edge
    edges = FeatureEdges(
        np.zeros(n, int),
        np.arange(n),
        np.ones(n, int),
        np.arange(n),
        np.ones(n),
        rng.uniform(0.1, 1, size=n),
    )
    return embeddings, counts, edges


def slow_consistency(embeddings, counts, edges, assigned, n_metacells):
    parts = np.split(assigned, [len(embeddings[0])])
    profiles = []
    common = [m for m in range(n_metacells) if all((part == m).any() for part in parts)]
    for part, matrix in zip(parts, counts, strict=True):
        summed = np.stack([matrix.toarray()[part == m].sum(axis=0) for m in common])
        profiles.append(summed / summed.sum(axis=1, keepdims=True))
    total, weights = 0.0, 0.0
    for i in range(len(edges.source)):
        a = profiles[edges.source_layer[i]][:, edges.source[i]]
        b = profiles[edges.target_layer[i]][:, edges.target[i]]
        total += edges.weight[i] * edges.sign[i] * stats.spearmanr(a, b).statistic
        weights += edges.weight[i]
    return total / weights


def test_integration_consistency_equals_slow_form(linked):
    embeddings, counts, edges = linked
    assigned = metacells(np.concatenate(embeddings), 20)
    expected = slow_consistency(embeddings, counts, edges, assigned, 20)
    found = integration_consistency(embeddings, counts, edges, 20)
    assert found == pytest.approx(expected, abs=1e-9)
    assert found > 0.5
    assert integration_consistency(embeddings, counts, edges, 20) == found


def test_wrong_integration_is_inconsistent(linked):
    embeddings, counts, edges = linked
    rng = np.random.default_rng(1)
    shuffled = [embeddings[0], embeddings[1][rng.permutation(240)]]
    assert abs(integration_consistency(shuffled, counts, edges, 20)) < 0.2
    negative = dataclasses.replace(edges, sign=-edges.sign)
    found = integration_consistency(embeddings, counts, edges, 20)
    assert integration_consistency(embeddings, counts, negative, 20) == pytest.approx(-found)


def test_features_that_do_not_vary_are_left_out(linked):
    embeddings, counts, edges = linked
    silent = counts[0].toarray()
    silent[:, :20] = 0
    some = [sparse.csr_matrix(silent), counts[1]]
    rest = FeatureEdges(*(getattr(edges, f.name)[20:] for f in dataclasses.fields(edges)))
    found = integration_consistency(embeddings, some, edges, 20)
    assert found == pytest.approx(integration_consistency(embeddings, some, rest, 20), abs=1e-12)
    silent[:, :39] = 0
    with pytest.raises(NotApplicable, match="vary across metacells"):
        integration_consistency(embeddings, [sparse.csr_matrix(silent), counts[1]], edges, 20)


def test_integration_consistency_says_when_it_does_not_apply(linked):
    embeddings, counts, edges = linked
    with pytest.raises(NotApplicable, match=r"500 metacells need as many cells.*Got 240"):
        integration_consistency(embeddings, counts, edges, 500)
    none = FeatureEdges(*[np.zeros(0, int)] * 6)
    with pytest.raises(NotApplicable, match="no edge"):
        integration_consistency(embeddings, counts, none, 10)
    apart = [embeddings[0], embeddings[1] + 1e4]
    with pytest.raises(NotApplicable, match="0 of 10 metacells hold cells of every layer"):
        integration_consistency(apart, counts, edges, 10)
    with pytest.raises(ValueError, match="one value an edge"):
        FeatureEdges(*[np.zeros(2, int)] * 5, np.zeros(3))


def test_metacells_are_those_of_a_far_mixture():
    rng = np.random.default_rng(0)
    truth = rng.integers(6, size=300)
    X = 100 * np.eye(6)[truth] + rng.normal(size=(300, 6))
    found = metacells(X, 6)
    assert len({(a, b) for a, b in zip(found, truth, strict=True)}) == 6
    # No more clusters than places.
    assert len(np.unique(metacells(np.repeat(np.eye(3), 5, axis=0), 10))) == 3
    with pytest.raises(ValueError, match=r"n_metacells must be in 1\.\.300"):
        metacells(X, 301)
