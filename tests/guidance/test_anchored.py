from __future__ import annotations

import itertools
import logging

import numpy as np
import pandas as pd
import pytest

from scbraid.errors import ConfigError, DataError
from scbraid.guidance import anchored_graph, forward, power_decay, summary


def named_edges(graph, kind="fwd"):
    chosen = np.flatnonzero(graph.kind == kind)
    return [
        (str(graph.features[graph.source[i]]), str(graph.features[graph.target[i]])) for i in chosen
    ]


def test_the_combined_region_links_overlapping_peaks(genes, peaks):
    graph = anchored_graph(genes, {"atac": peaks})
    assert named_edges(graph) == [
        ("A", "in_A"), ("A", "promoter_A"), ("B", "promoter_B"), ("C", "start_of_chr2"),
    ]  # fmt: skip
    fwd = forward(graph)
    assert fwd.dist.tolist() == [0] * 4
    assert fwd.weight.tolist() == [1] * 4
    assert fwd.sign.tolist() == [1] * 4
    assert set(fwd.evidence.tolist()) == {"distance"}
    assert graph.features.tolist() == [*genes.index, *peaks.index]
    assert graph.layer.tolist() == ["rna"] * 5 + ["atac"] * 8


def test_book_ended_peaks_are_at_distance_one(genes, peaks):
    graph = anchored_graph(genes, {"atac": peaks}, extend_range=1, decay="power")
    added = set(named_edges(graph)) - set(named_edges(anchored_graph(genes, {"atac": peaks})))
    assert added == {("A", "before_promoter_A")}
    edge = named_edges(graph).index(("A", "before_promoter_A"))
    assert graph.dist[edge] == 1
    assert graph.weight[edge] == np.float32(power_decay(np.array(1)))


def test_other_regions_link_other_peaks(genes, peaks):
    body = anchored_graph(genes, {"atac": peaks}, region="gene_body")
    assert named_edges(body) == [("A", "in_A")]
    promoter = anchored_graph(genes, {"atac": peaks}, region="promoter")
    assert named_edges(promoter) == [
        ("A", "promoter_A"), ("B", "promoter_B"), ("C", "start_of_chr2"),
    ]  # fmt: skip
    short = anchored_graph(genes, {"atac": peaks}, promoter_len=100)
    assert named_edges(short) == [("A", "in_A")]


def test_decay_of_the_power_law():
    assert power_decay(np.array(0)) == 1
    assert power_decay(np.array(150_000)) == pytest.approx(151**-0.75)
    assert power_decay(np.array([1000]))[0] == pytest.approx(2**-0.75)


@pytest.mark.parametrize(("region", "extend_range"), [("combined", 0), ("promoter", 3000)])
def test_random_genomes_equal_the_definition(region, extend_range):
    rng = np.random.default_rng(2)
    n_genes, n_peaks = 40, 150
    start = rng.integers(0, 30_000, n_genes)
    genes = pd.DataFrame(
        {
            "chrom": rng.choice(["chr1", "chr2"], n_genes),
            "chromStart": start,
            "chromEnd": start + rng.integers(0, 4000, n_genes),
            "strand": rng.choice(["+", "-"], n_genes),
            "highly_variable": rng.random(n_genes) < 0.3,
        },
        index=[f"g{i}" for i in range(n_genes)],
    )
    start = rng.integers(0, 30_000, n_peaks)
    peaks = pd.DataFrame(
        {
            "chrom": rng.choice(["chr1", "chr2"], n_peaks),
            "chromStart": start,
            "chromEnd": start + rng.integers(0, 300, n_peaks),
        },
        index=[f"p{i}" for i in range(n_peaks)],
    )
    expected = {}
    for gene, peak in itertools.product(genes.itertuples(), peaks.itertuples()):
        if gene.chrom != peak.chrom:
            continue
        low, high = gene.chromStart, gene.chromEnd
        if region == "promoter":
            low, high = (low, low + 1) if gene.strand == "+" else (high - 1, high)
        low, high = (low - 2000, high) if gene.strand == "+" else (low, high + 2000)
        low = max(low, 0)
        if low < peak.chromEnd and peak.chromStart < high:
            distance = 0
        else:
            distance = max(peak.chromStart - high, low - peak.chromEnd) + 1
        if distance <= extend_range:
            expected[gene.Index, peak.Index] = distance
    graph = anchored_graph(
        genes, {"atac": peaks}, region=region, extend_range=extend_range, decay="power"
    )
    assert dict(zip(named_edges(graph), forward(graph).dist.tolist(), strict=True)) == expected
    wanted = power_decay(np.array(list(expected.values())))
    assert sorted(forward(graph).weight) == pytest.approx(sorted(wanted), rel=1e-6)
    hv = {gene for gene in genes.index if genes.highly_variable[gene]}
    reached = {peak for gene, peak in expected if gene in hv}
    assert set(graph.features[graph.highly_variable]) == hv | reached
    graph.validate(require_loops=True)


def test_reverse_edges_mirror_and_every_feature_has_one_loop(genes, peaks):
    graph = anchored_graph(genes, {"atac": peaks}, extend_range=10_000, decay="power")
    fwd, rev = graph.kind == "fwd", graph.kind == "rev"
    assert np.array_equal(graph.source[fwd], graph.target[rev])
    assert np.array_equal(graph.target[fwd], graph.source[rev])
    for name in ("weight", "sign", "dist", "evidence"):
        assert np.array_equal(getattr(graph, name)[fwd], getattr(graph, name)[rev])
    loop = graph.kind == "loop"
    assert graph.source[loop].tolist() == graph.target[loop].tolist() == list(range(13))
    assert set(graph.weight[loop].tolist()) == set(graph.sign[loop].tolist()) == {1}
    graph.validate(require_loops=True)


def test_highly_variable_peaks_are_those_that_highly_variable_genes_reach(genes, peaks):
    graph = anchored_graph(genes, {"atac": peaks})
    assert graph.features[graph.highly_variable].tolist() == [
        "A", "C", "E", "in_A", "promoter_A", "start_of_chr2",
    ]  # fmt: skip
    sub = graph.highly_variable_subgraph()
    assert (sub.n_features, sub.n_edges) == (6, 3 + 3 + 6)


def test_without_flags_all_genes_are_highly_variable_and_the_log_says_so(genes, peaks, caplog):
    with caplog.at_level(logging.WARNING, logger="scbraid"):
        graph = anchored_graph(genes.drop(columns="highly_variable"), {"atac": peaks})
    assert "layer rna has no var column highly_variable; all of its 5 features count" in caplog.text
    assert graph.highly_variable[:5].all()
    assert graph.highly_variable.sum() == 5 + 4


def test_genes_without_position_keep_their_loop_only(genes, peaks):
    graph = anchored_graph(genes, {"atac": peaks}, extend_range=10**9)
    node = list(graph.features).index("E")
    touching = (graph.source == node) | (graph.target == node)
    assert graph.kind[touching].tolist() == ["loop"]


def test_methylation_features_are_linked_by_name_with_negative_sign(genes, peaks):
    met = pd.DataFrame(index=["A_mCH", "A_mCG", "E_mCG", "Z_mCG", "B", "A_B", "A_mXY"])
    graph = anchored_graph(
        genes, {"atac": peaks, "met": met}, signs={"met": -1}, extend_range=1, decay="power"
    )
    by_name = graph.evidence == "name"
    edges = [e for e in named_edges(graph) if e[1] in met.index]
    assert edges == [("A", "A_mCH"), ("A", "A_mCG"), ("B", "B"), ("E", "E_mCG")]
    assert set(graph.sign[by_name].tolist()) == {-1}
    assert set(graph.weight[by_name].tolist()) == {1}
    assert set(graph.dist[by_name].tolist()) == {0}
    assert set(graph.sign[~by_name].tolist()) == {1}
    assert graph.adjacency("rna", "met").sum() == -4
    assert graph.adjacency("rna", "atac").sum() > 4
    # C is highly variable but has no such feature; A and E are, B is not.
    flagged = graph.features[graph.highly_variable & (graph.layer == "met")]
    assert flagged.tolist() == ["A_mCH", "A_mCG", "E_mCG"]
    graph.validate(require_loops=True)
    assert graph.meta["layers"]["met"] == {"link": "name", "sign": -1, "n_edges": 4}


def test_proteins_are_linked_by_a_gene_column_or_their_own_name(genes):
    proteins = pd.DataFrame(
        {"gene": ["A", None, "B; C", "", "nowhere"], "highly_variable": [False] * 4 + [True]},
        index=["CD-A", "B", "CD-BC", "D", "A"],
    )
    graph = anchored_graph(genes, {"adt": proteins})
    assert named_edges(graph) == [
        ("A", "CD-A"), ("B", "B"), ("B", "CD-BC"), ("C", "CD-BC"), ("D", "D"),
    ]  # fmt: skip
    # A stated gene wins over an equal name; a layer's own flags stay.
    assert graph.features[graph.highly_variable & (graph.layer == "adt")].tolist() == [
        "CD-A", "CD-BC", "A",
    ]  # fmt: skip
    plain = anchored_graph(genes, {"adt": proteins.drop(columns="gene")})
    assert named_edges(plain) == [("A", "A"), ("B", "B"), ("D", "D")]


def test_several_interval_layers_and_signs(genes, peaks):
    graph = anchored_graph(
        genes,
        {"open": peaks, "closed": peaks},
        signs={"closed": -1},
        links={"open": "interval"},
    )
    np.testing.assert_array_equal(
        graph.adjacency("rna", "open").toarray(), -graph.adjacency("rna", "closed").toarray()
    )
    assert graph.adjacency("rna", "open").nnz == 4
    graph.validate(require_loops=True)


def test_another_anchor_and_a_function_of_distance(genes, peaks):
    def linear(dist):
        return 1 - dist / 1e6

    graph = anchored_graph(
        genes, {"atac": peaks}, anchor_layer="genes", extend_range=20_000, decay=linear
    )
    assert graph.meta["anchor_layer"] == "genes"
    assert graph.meta["decay"] == "linear"
    fwd = forward(graph)
    assert fwd.weight == pytest.approx(1 - fwd.dist / 1e6)
    assert fwd.dist.max() > 0


def test_the_same_tables_give_the_same_graph(genes, peaks):
    graphs = [anchored_graph(genes, {"atac": peaks}, extend_range=5000) for _ in range(2)]
    for name in ("features", "source", "target", "weight", "kind"):
        assert np.array_equal(*(getattr(graph, name) for graph in graphs))


def test_tables_are_not_changed(genes, peaks):
    before = genes.copy(), peaks.copy()
    anchored_graph(genes, {"atac": peaks}, corrupt_rate=0.5)
    pd.testing.assert_frame_equal(genes, before[0])
    pd.testing.assert_frame_equal(peaks, before[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"region": "combine"}, "unknown region 'combine'; did you mean 'combined'"),
        ({"promoter_len": -1}, "promoter_len must be 0 or more"),
        ({"extend_range": -5}, "extend_range must be 0 or more base pairs. Got -5"),
        ({"decay": "powr"}, "unknown decay 'powr'; did you mean 'power'"),
        ({"decay": lambda d: d * 1.0}, r"decay '<lambda>' must turn 4 distances .*with 0.0"),
        ({"decay": lambda d: np.ones(1)}, r"Got shape \(1,\)"),
        ({"signs": {"atca": 1}}, "unknown layer 'atca'; did you mean 'atac'"),
        ({"signs": {"atac": 0}}, "the sign of layer 'atac' must be -1 or \\+1. Got 0"),
        ({"links": {"atac": "intervals"}}, "unknown link 'intervals'; did you mean 'interval'"),
        ({"anchor_layer": "atac"}, "needs at least one other layer"),
        ({"corrupt_rate": 2}, "corrupt_rate must lie in"),
    ],
)
def test_settings_out_of_range_are_refused(genes, peaks, settings, message):
    with pytest.raises(ConfigError, match=message):
        anchored_graph(genes, {"atac": peaks}, **settings)


def test_tables_that_cannot_be_used_are_named(genes, peaks):
    def refuses(message, rna=genes, atac=peaks, **settings):
        with pytest.raises(DataError, match=message):
            anchored_graph(rna, {"atac": atac}, **settings)

    refuses(r"'rna' has 1 repeated feature names \(first: 'A'\)", rna=genes.rename({"C": "A"}))
    refuses("'atac' has no features", atac=peaks.iloc[:0])
    refuses("must be True or False", rna=genes.assign(highly_variable=[1, 0, 2, 0, 1]))
    unplaced = genes.assign(chrom=["chr1", "chr1", "", "", ""])
    refuses(r"3 of 5 genes have no position \(first: C, D, E\)", rna=unplaced)
    bare = peaks.assign(chrom=peaks["chrom"].str.replace("chr", ""))
    refuses("share no chromosome name: chr1, chr2 against 1, 2, 3; use one naming", atac=bare)
    refuses("'rna' has no var column chrom, chromStart", rna=genes[["highly_variable"]])
    lost = peaks.assign(chrom="")
    refuses("none of 8 features has a position", atac=lost, links={"atac": "interval"})
    refuses(r"'atac': none of 8 features names a gene of 'rna' \(first: 'in_A'\)", atac=lost)


def test_no_feature_in_reach_is_a_warning(genes, peaks, caplog):
    with caplog.at_level(logging.WARNING, logger="scbraid"):
        graph = anchored_graph(genes, {"atac": peaks.loc[["far", "wrong_side_of_B"]]})
    assert "no atac feature is within 0 bp of a gene" in caplog.text
    assert named_edges(graph) == []
    graph.validate(require_loops=True)


def test_summary_counts_features_and_edges(genes, peaks):
    met = pd.DataFrame(index=["A_mCH", "Z_mCG"])
    graph = anchored_graph(
        genes, {"atac": peaks, "met": met}, signs={"met": -1}, extend_range=20_000
    )
    table = summary(graph).set_index(["quantity", "layer", "level"])["value"].sort_index()
    assert table.index.is_unique
    assert table["features", "atac", "all"] == 8
    assert table["features", "rna", "highly variable"] == 3
    assert table["features", "met", "linked"] == 1
    assert table["share linked", "met", "all"] == 0.5
    assert table["share linked", "atac", "highly variable"] == 1
    fwd = forward(graph)
    atac = np.isin(fwd.target, fwd.index("atac"))
    assert table["edges", "atac", "fwd"] == table["edges", "atac", "rev"] == atac.sum()
    assert table["edges", "atac", "loop"] == 8
    assert table["edges", "rna", "loop"] == 5
    assert table["edges", "rna", "fwd"] == 0
    bins = table.loc["fwd edges by distance", "atac"]
    assert bins.sum() == atac.sum()
    assert bins["overlap"] == (fwd.dist[atac] == 0).sum() == 4
    assert bins["up to 1 kb"] == ((fwd.dist[atac] > 0) & (fwd.dist[atac] <= 1000)).sum()
    assert bins["farther"] == 0
    assert table["fwd edges by sign", "met", "-1"] == 1
    assert table["fwd edges by evidence", "atac", "distance"] == atac.sum()
    assert table["fwd edges per linked feature", "met", "mean"] == 1
