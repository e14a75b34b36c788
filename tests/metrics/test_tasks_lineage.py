from __future__ import annotations

import itertools

import numpy as np
import pytest

from scbraid.errors import NotApplicable
from scbraid.metrics.tasks import chain_f1, chain_recovered, lineage_tau, stage_tree


def line(n_stages=4, n=30, d=3, bend=0.0, seed=0):
    """Stages along a line: embedding, stages, position on the line."""
    rng = np.random.default_rng(seed)
    stages = np.repeat(np.arange(n_stages), n)
    position = stages + 0.15 * rng.normal(size=len(stages))
    X = 0.1 * rng.normal(size=(len(stages), d))
    X[:, 0] += position
    X[:, 1] += bend * position**2
    return X, stages, position


def test_order_of_medians_by_hand():
    stages = np.array([0, 0, 0, 1, 1, 2, 2, 3, -1])
    times = np.array([0.0, 1.0, 9.0, 2.0, 2.0, 5.0, 7.0, 4.0, -5.0])
    # Medians 1, 2, 6, 4: the last two are the wrong way round.
    assert lineage_tau(times, stages) == pytest.approx((5 - 1) / 6)
    assert lineage_tau(-times, stages) == pytest.approx(-4 / 6)
    # The last stage tied with the one before it.
    times[7] = 6.0
    assert lineage_tau(times, stages) == pytest.approx(5 / np.sqrt(5 * 6))
    # The last stage on no lineage: three of six pairs are right, none is wrong.
    times[7] = np.nan
    assert lineage_tau(times, stages) == pytest.approx(3 / 6)
    assert lineage_tau(np.zeros(9), stages) == 0.0
    # Unreached is last, and two unreached stages are tied.
    times[5:8] = np.inf
    assert lineage_tau(times, stages) == pytest.approx(5 / np.sqrt(5 * 6))


def test_order_of_medians_equals_scipy():
    from scipy.stats import kendalltau

    rng = np.random.default_rng(0)
    for _ in range(20):
        stages = np.r_[np.arange(6), rng.integers(6, size=30)]
        times = rng.integers(4, size=36).astype(float)
        medians = [np.median(times[stages == stage]) for stage in range(6)]
        expected = kendalltau(medians, np.arange(6)).statistic
        if not np.isnan(expected):
            assert lineage_tau(times, stages) == pytest.approx(expected)


def test_tree_of_a_line_is_the_chain():
    X, stages, position = line()
    for distance in ("slingshot", "euclidean"):
        edges = stage_tree(X, stages, distance)
        assert edges.tolist() == [[0, 1], [1, 2], [2, 3]]
        assert chain_recovered(edges, 4)
        # The tree does not depend on the cells' order, on shifts or on the common scale.
        order = np.random.default_rng(1).permutation(len(X))
        moved = stage_tree(100 * X[order] + 7, stages[order], distance)
        np.testing.assert_array_equal(moved, edges)
    assert lineage_tau(position, stages) == 1.0
    # Units of single dimensions do not matter where the spread is the unit.
    np.testing.assert_array_equal(stage_tree(X * [1.0, 50.0, 0.02], stages), edges)


def test_tree_is_the_shortest_of_all():
    rng = np.random.default_rng(2)
    for n_cells, n_dims in ((20, 3), (4, 6)):  # full covariances, and their diagonals
        groups = [rng.normal(rng.normal(size=n_dims), rng.uniform(0.5, 2), size=(n_cells, n_dims))
                  for _ in range(5)]  # fmt: skip
        X, stages = np.concatenate(groups), np.repeat(np.arange(5), n_cells)

        def length(i, j, groups=groups, full=n_cells > n_dims):
            gap = groups[i].mean(axis=0) - groups[j].mean(axis=0)
            spread = np.cov(groups[i].T) + np.cov(groups[j].T)
            spread = spread if full else np.diag(np.diag(spread))
            return gap @ np.linalg.solve(spread, gap)

        lengths = {pair: length(*pair) for pair in itertools.combinations(range(5), 2)}
        best = min(
            (
                tree
                for tree in itertools.combinations(lengths, 4)
                if len(set(itertools.chain(*tree))) == 5 and connected(tree)
            ),
            key=lambda tree: sum(lengths[edge] for edge in tree),
        )
        assert [tuple(edge) for edge in stage_tree(X, stages)] == sorted(best)


def connected(tree):
    reached = {0}
    for _ in tree:
        reached |= {i for edge in tree if set(edge) & reached for i in edge}
    return len(reached) == 5


def test_a_wrong_tree_is_told_from_the_chain():
    star = [(0, 1), (0, 2), (0, 3)]
    assert not chain_recovered(star, 4)
    assert chain_f1(star, 4) == pytest.approx(2 * 1 / 6)
    assert chain_recovered([(1, 0), (3, 2), (2, 1), (1, 2)], 4)
    # A graph may have more edges than a tree, or none.
    assert chain_f1([(0, 1), (1, 2), (2, 3), (0, 3), (0, 2)], 4) == pytest.approx(2 * 3 / 8)
    assert chain_f1(np.empty((0, 2)), 4) == 0.0
    # Stage 3 beside stage 0.
    X, stages, _ = line()
    X[stages == 3, 0] -= 4.0
    edges = stage_tree(X, stages)
    assert not chain_recovered(edges, 4)
    assert chain_f1(edges, 4) == pytest.approx(2 / 3)


def test_stages_without_spread_are_handled():
    X = np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
    stages = np.array([0, 0, 1, 1, 2, 2])
    assert stage_tree(X, stages, "euclidean").tolist() == [[0, 1], [1, 2]]
    assert len(stage_tree(X, stages)) == 2  # all infinitely far in units of no spread
    assert len(stage_tree(X[[0, 2, 4]], stages[[0, 2, 4]])) == 2


def test_lineages_that_cannot_be_scored_are_refused():
    X, stages, position = line()
    with pytest.raises(NotApplicable, match="cells of two stages"):
        lineage_tau(position, np.full(len(stages), -1))
    with pytest.raises(NotApplicable, match="no cell of the lineage has a pseudotime"):
        lineage_tau(np.full(len(stages), np.nan), stages)
    with pytest.raises(NotApplicable, match="stage 1 of 4 has no cell"):
        stage_tree(X[stages != 1], stages[stages != 1])
    with pytest.raises(NotApplicable, match="chain of 2 stages cannot be missed"):
        chain_recovered([(0, 1)], 2)
    with pytest.raises(ValueError, match=r"shape \(120,\). Got int64 of shape \(119,\)"):
        lineage_tau(position, stages[1:])
    with pytest.raises(ValueError, match=r"whole numbers from -1\. Got -2"):
        lineage_tau(position, np.where(stages == 0, -2, stages))
    with pytest.raises(ValueError, match="unknown distance 'manhattan'; one of: slingshot"):
        stage_tree(X, stages, "manhattan")
    with pytest.raises(ValueError, match=r"two different stages of 0..2. Got \[\(0, 3\)\]"):
        chain_f1([(0, 3)], 3)
    with pytest.raises(ValueError, match=r"shape \(n_edges, 2\). Got \(1, 3\)"):
        chain_f1([(0, 1, 2)], 3)
