from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scbraid.errors import ConfigError, DataError
from scbraid.guidance import add_evidence, anchored_graph, forward


@pytest.fixture
def graph(genes, peaks):
    return anchored_graph(genes, {"atac": peaks})


def edges_of(graph, evidence):
    fwd = forward(graph)
    return {
        (str(fwd.features[s]), str(fwd.features[t])): (int(sign), float(weight))
        for s, t, sign, weight, kind in zip(
            fwd.source, fwd.target, fwd.sign, fwd.weight, fwd.evidence, strict=True
        )
        if kind == evidence
    }


def test_evidence_by_name_gives_parallel_edges(graph):
    table = pd.DataFrame(
        {
            "gene": ["A", "A", "A", "D", "unknown", "C"],
            "feature": ["in_A", "in_A", "far", "promoter_B", "far", "unknown"],
            "evidence": "eQTL",
            "weight": [0.5, 0.75, 1, 1, 1, 1],
            "sign": [1, 1, -1, 1, 1, 1],
        }
    )
    merged = add_evidence(graph, table)
    merged.validate(require_loops=True)
    assert edges_of(merged, "eQTL") == {
        ("A", "in_A"): (1, 0.75),  # given twice: one edge, the larger weight
        ("A", "far"): (-1, 1.0),
        ("D", "promoter_B"): (1, 1.0),
    }
    assert edges_of(merged, "distance") == edges_of(graph, "distance")
    assert merged.adjacency("rna", "atac")[0, 0] == 1.75  # parallel edges add
    assert set(forward(merged).dist.tolist()) == {0, -1}
    # far is reached from A, which is highly variable; promoter_B from D, which is not.
    assert set(merged.features[merged.highly_variable]) - set(
        graph.features[graph.highly_variable]
    ) == {"far"}
    unchanged = add_evidence(graph, table, propagate=False)
    assert np.array_equal(unchanged.highly_variable, graph.highly_variable)
    assert merged.meta["evidence"] == [{"n_edges": 3, "n_rows": 6, "n_rows_used": 4}]


def test_kinds_of_evidence_stay_apart_and_add_up(graph):
    table = pd.DataFrame({"gene": ["A", "A"], "feature": ["in_A"] * 2, "evidence": ["x", "y"]})
    merged = add_evidence(graph, table)
    assert merged.adjacency("rna", "atac")[0, 0] == 3
    assert merged.n_edges == graph.n_edges + 4
    twice = add_evidence(merged, table.assign(evidence="z"))
    assert twice.adjacency("rna", "atac")[0, 0] == 4
    assert len(twice.meta["evidence"]) == 2


def test_evidence_by_position_links_all_features_in_reach(graph, peaks):
    table = pd.DataFrame(
        {
            "gene": ["D", "B"],
            "chrom": ["chr1", "chr1"],
            "chromStart": [7_900, 11_000],
            "chromEnd": [8_100, 11_100],
        }
    )
    merged = add_evidence(graph, table, positions={"atac": peaks})
    assert set(edges_of(merged, "evidence")) == {
        ("D", "before_promoter_A"), ("D", "promoter_A"), ("B", "in_A"),
    }  # fmt: skip
    wider = add_evidence(graph, table, positions={"atac": peaks}, extend_range=3000)
    # The gap between B's interval and before_promoter_A is 3,000, its distance 3,001.
    assert set(edges_of(wider, "evidence")) == {
        *((gene, peak) for gene in "DB" for peak in ("promoter_A", "in_A")),
        ("D", "before_promoter_A"),
    }


def test_forward_graphs_stay_forward(graph):
    table = pd.DataFrame({"gene": ["A"], "feature": ["far"]})
    assert set(add_evidence(forward(graph), table).kind.tolist()) == {"fwd"}


def test_a_feature_of_two_layers_needs_a_layer(genes, peaks):
    graph = anchored_graph(genes, {"open": peaks, "closed": peaks})
    table = pd.DataFrame({"gene": ["A"], "feature": ["far"]})
    with pytest.raises(DataError, match="'far' of the evidence stands in several layers"):
        add_evidence(graph, table)
    merged = add_evidence(graph, table.assign(layer="closed"))
    assert merged.adjacency("rna", "closed").nnz == 5
    assert merged.adjacency("rna", "open").nnz == 4
    with pytest.raises(DataError, match="unknown layer of evidence 'close'; did you mean 'closed'"):
        add_evidence(graph, table.assign(layer="close"))


def test_bad_evidence_is_named(graph, peaks):
    good = pd.DataFrame({"gene": ["A"], "feature": ["far"]})
    where = pd.DataFrame({"gene": ["A"], "chrom": ["chr1"], "chromStart": [0], "chromEnd": [5]})

    def refuses(message, table, error=DataError, **settings):
        with pytest.raises(error, match=message):
            add_evidence(graph, table, **settings)

    refuses("no column 'gene'. Got feature", good.drop(columns="gene"))
    refuses("needs 'feature', or chrom, chromStart and chromEnd. Got gene", good[["gene"]])
    refuses("column 'sign' .* wrong in 1 links. Expected -1 or", good.assign(sign=0))
    refuses("column 'weight' .* wrong in 1 links", good.assign(weight=0.0))
    refuses("column 'weight' .* wrong in 1 links", good.assign(weight=np.nan))
    refuses("column 'weight' .* wrong in 1 links", good.assign(weight="much"))
    refuses("none of the 1 rows of evidence links", good.assign(gene="Z"))
    refuses("none of the 1 rows of evidence links", where, positions={"atac": peaks})
    refuses("evidence by interval needs `positions`", where)
    refuses("must list the 8 features .* Got 2", where, positions={"atac": peaks[:2]})
    refuses("share no chromosome name", where.assign(chrom="1"), positions={"atac": peaks})
    refuses("extend_range must be", where, ConfigError, positions={"atac": peaks}, extend_range=-1)
