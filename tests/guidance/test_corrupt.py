from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scbraid.errors import ConfigError, DataError
from scbraid.guidance import anchored_graph, complete, corrupt, forward

RATES = (0.2, 0.4, 0.6, 0.8, 0.9, 1.0)


def ends(graph):
    return list(zip(graph.source.tolist(), graph.target.tolist(), strict=True))


def attributes(graph):
    columns = (graph.dist, graph.weight, graph.sign, graph.evidence)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@pytest.mark.parametrize("rate", RATES)
def test_rewire_replaces_the_share_by_unconnected_pairs(random_graph, rate):
    graph = random_graph()
    damaged = corrupt(graph, rate, seed=3)
    n = round(rate * graph.n_edges)
    before, after = ends(graph), ends(damaged)
    moved = [i for i in range(graph.n_edges) if before[i] != after[i]]
    assert damaged.n_edges == graph.n_edges
    assert len(moved) == n
    assert not {after[i] for i in moved} & set(before)  # nothing deleted comes back
    assert attributes(damaged) == attributes(graph)  # each taken over from a deleted edge
    assert np.all(damaged.layer[damaged.source] == "rna")
    assert np.all(damaged.layer[damaged.target] == "atac")
    assert damaged.meta["corruption"] == {"kind": "rewire", "rate": rate, "seed": 3, "n_edges": n}
    assert "corruption" not in graph.meta


def test_new_pairs_are_uniform_over_the_unconnected_ones(random_graph):
    graph = random_graph(n_genes=4, n_peaks=6, n_edges=12)
    free = {(i, j) for i in range(4) for j in range(4, 10)} - set(ends(graph))
    counts = dict.fromkeys(free, 0)
    n_rounds = 600
    for seed in range(n_rounds):
        for pair in ends(corrupt(graph, 1.0, seed)):
            counts[pair] += 1
    observed = np.array(list(counts.values()))
    expected = n_rounds * graph.n_edges / len(free)
    # Chi-squared over the free pairs: 2.2 times its expectation is far outside its spread.
    statistic = ((observed - expected) ** 2 / expected).sum()
    assert statistic < 2.2 * (len(free) - 1)
    assert observed.min() > 0
    repeated = ends(corrupt(graph, 1.0, 0))
    assert len(set(repeated)) < len(repeated)  # drawn with replacement: parallel edges occur


def test_every_edge_is_drawn_equally_often(random_graph):
    graph = random_graph(n_edges=40)
    moved = np.zeros(40)
    for seed in range(500):
        damaged = corrupt(graph, 0.25, seed, "sign_flip")
        moved += damaged.sign != graph.sign
    assert moved.sum() == 500 * 10
    assert moved.min() > 80
    assert moved.max() < 175


def test_drop_deletes_and_changes_nothing_else(random_graph):
    graph = random_graph()
    damaged = corrupt(graph, 0.3, 1, "drop")
    assert damaged.n_edges == 140
    kept = np.isin(graph.dist, damaged.dist)  # distances are unique
    assert ends(damaged) == [pair for pair, k in zip(ends(graph), kept, strict=True) if k]
    assert attributes(damaged) == [row for row, k in zip(attributes(graph), kept, strict=True) if k]
    assert corrupt(graph, 1.0, 1, "drop").n_edges == 0


def test_add_keeps_all_and_appends_copies_of_attributes(random_graph):
    graph = random_graph()
    damaged = corrupt(graph, 0.5, 1, "add")
    assert damaged.n_edges == 300
    assert ends(damaged)[:200] == ends(graph)
    assert attributes(damaged)[:200] == attributes(graph)
    added = attributes(damaged)[200:]
    assert len(set(added)) == 100  # drawn without replacement
    assert set(added) <= set(attributes(graph))
    assert not set(ends(damaged)[200:]) & set(ends(graph))


def test_sign_flip_inverts_the_share(random_graph):
    graph = random_graph()
    damaged = corrupt(graph, 0.4, 1, "sign_flip")
    assert ends(damaged) == ends(graph)
    assert (damaged.sign == -graph.sign).sum() == 80
    assert np.array_equal(damaged.weight, graph.weight)
    assert np.array_equal(corrupt(graph, 1.0, 1, "sign_flip").sign, -graph.sign)


@pytest.mark.parametrize("kind", ["rewire", "drop", "add", "sign_flip"])
def test_seeds_decide_and_rate_zero_is_the_identity(random_graph, kind):
    graph = random_graph()
    once, again, other = (corrupt(graph, 0.5, seed, kind) for seed in (7, 7, 8))
    assert ends(once) == ends(again)
    assert attributes(once) == attributes(again)
    assert (ends(once), attributes(once)) != (ends(other), attributes(other))
    assert corrupt(graph, 0.0, 7, kind) is graph


def test_only_a_few_free_pairs_are_found(random_graph):
    graph = random_graph(n_genes=20, n_peaks=20, n_edges=400)
    everything = np.arange(400)
    dense = replace(graph, source=everything // 20, target=20 + everything % 20)
    with pytest.raises(DataError, match="all 400 pairs of features are connected already"):
        corrupt(dense, 0.1, 0)
    target = dense.target.copy()
    target[0] = 21  # frees the pair (0, 20) alone
    damaged = corrupt(replace(dense, target=target), 0.5, 0)
    changed = damaged.target != target
    assert {pair for pair, c in zip(ends(damaged), changed, strict=True) if c} == {(0, 20)}


def test_corruption_of_all_kinds_of_layers_together(genes, peaks):
    proteins = peaks.iloc[:0].reindex(columns=["gene"])
    proteins.loc["p1"] = "A"
    proteins.loc["p2"] = "D"
    graph = anchored_graph(genes, {"atac": peaks, "adt": proteins}, corrupt_rate=1.0)
    original = anchored_graph(genes, {"atac": peaks, "adt": proteins})
    assert not set(ends(forward(graph))) & set(ends(forward(original)))
    graph.validate(require_loops=True)


def test_corruption_changes_which_peaks_are_highly_variable(genes, peaks):
    clean = anchored_graph(genes, {"atac": peaks})
    seen = set()
    for seed in range(20):
        damaged = anchored_graph(genes, {"atac": peaks}, corrupt_rate=1.0, corrupt_seed=seed)
        rna = damaged.index("rna")
        assert np.array_equal(damaged.highly_variable[rna], clean.highly_variable[rna])
        fwd = damaged.kind == "fwd"
        reached = np.unique(damaged.target[fwd & damaged.highly_variable[damaged.source]])
        flagged = np.flatnonzero(damaged.highly_variable & (damaged.layer == "atac"))
        assert np.array_equal(reached, flagged)
        seen.add(tuple(flagged))
    assert len(seen) > 5


def test_out_of_range_settings_are_refused(random_graph):
    graph = random_graph()
    for rate in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match=r"corrupt_rate must lie in \[0, 1\]. Got"):
            corrupt(graph, rate, 0)
    with pytest.raises(ConfigError, match="unknown corruption 'rewired'; did you mean 'rewire'"):
        corrupt(graph, 0.1, 0, "rewired")
    with pytest.raises(DataError, match="only forward edges can be corrupted"):
        corrupt(complete(graph), 0.1, 0)
    with pytest.raises(DataError, match="must lead from layer 'atac' to other layers"):
        corrupt(replace(graph, meta={"anchor_layer": "atac"}), 0.1, 0)
    assert corrupt(replace(graph, meta={}), 0.1, 0).n_edges == 200  # the anchor is seen from edges
