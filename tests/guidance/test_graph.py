from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

from scbraid.errors import DataError
from scbraid.guidance import Guidance, complete

ARRAYS = ["features", "layer", "highly_variable"]
ARRAYS += ["source", "target", "sign", "weight", "dist", "kind", "evidence"]
TYPES = {
    "highly_variable": np.bool_,
    "source": np.int32,
    "target": np.int32,
    "sign": np.int8,
    "weight": np.float32,
    "dist": np.int64,
}


def small() -> Guidance:
    """Genes a, b, c and peaks a (the same name), q; a->peak a twice, b->q negative."""
    forward = Guidance(
        features=["a", "b", "c", "a", "q"],
        layer=["rna", "rna", "rna", "atac", "atac"],
        highly_variable=[True, False, False, True, False],
        source=[0, 0, 1],
        target=[3, 3, 4],
        sign=[1, 1, -1],
        weight=[1.0, 0.25, 0.5],
        dist=[0, -1, 12],
        kind=["fwd"] * 3,
        evidence=["distance", "eQTL", "distance"],
        meta={"anchor_layer": "rna", "note": "µ"},
    )
    return complete(forward)


def edited(graph: Guidance, name: str, position: int, value) -> Guidance:
    values = getattr(graph, name).copy()
    values[position] = value
    return replace(graph, **{name: values})


def same(a: Guidance, b: Guidance) -> bool:
    return a.meta == b.meta and all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in ARRAYS
    )


def test_arrays_have_the_stated_types():
    graph = small()
    for name, wanted in TYPES.items():
        assert getattr(graph, name).dtype == wanted
    for name in ("features", "layer", "kind", "evidence"):
        assert getattr(graph, name).dtype.kind == "U"
    assert (graph.n_features, graph.n_edges) == (5, 3 + 3 + 5)
    assert graph.layers == ["rna", "atac"]
    assert repr(graph) == (
        "Guidance(5 features [rna 3, atac 2], 11 edges [fwd 3, rev 3, loop 5], 2 highly variable)"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sign": [1, 1]}, "fields differ in length .*sign 2"),
        ({"layer": ["rna"]}, "one value per feature"),
        ({"source": [0.5, 0, 1]}, "'source' cannot be stored as int32. Got float64"),
        ({"sign": [300, 1, 1]}, "'sign' cannot be stored as int8"),
        ({"weight": ["x", "y", "z"]}, "'weight' cannot be stored as float32"),
        ({"dist": [[1, 2, 3]]}, r"'dist' has shape \(1, 3\)"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(changes, message):
    graph = small()
    fields = {name: getattr(graph, name) for name in ARRAYS}
    fields |= {name: fields[name][:3] for name in ARRAYS[3:]}
    with pytest.raises(DataError, match=message):
        Guidance(**(fields | changes))


def test_index_tells_equal_names_in_two_layers_apart():
    graph = small()
    assert graph.index("rna").tolist() == [0, 1, 2]
    assert graph.index("atac").tolist() == [3, 4]
    with pytest.raises(DataError, match="no layer 'met'; it has: rna, atac"):
        graph.index("met")


def test_adjacency_adds_parallel_forward_edges_and_signs_them():
    graph = small()
    expected = np.array([[1.25, 0], [0, -0.5], [0, 0]], dtype=np.float32)
    matrix = graph.adjacency("rna", "atac")
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(matrix.toarray(), expected)
    assert graph.adjacency("atac", "rna").nnz == 0  # reverse edges are no forward edges
    assert graph.adjacency("rna", "rna").nnz == 0  # nor are loops


def test_adjacency_follows_the_order_of_index_when_layers_are_mixed():
    graph = small()
    order = np.array([4, 1, 3, 0, 2])
    place = np.argsort(order)
    mixed = replace(
        graph,
        features=graph.features[order],
        layer=graph.layer[order],
        highly_variable=graph.highly_variable[order],
        source=place[graph.source],
        target=place[graph.target],
    )
    mixed.validate(require_loops=True)
    dense = mixed.adjacency("rna", "atac").toarray()
    genes, peaks = mixed.features[mixed.index("rna")], mixed.features[mixed.index("atac")]
    assert dense[list(genes).index("a"), list(peaks).index("a")] == 1.25
    assert dense[list(genes).index("b"), list(peaks).index("q")] == -0.5
    assert np.count_nonzero(dense) == 2


def test_subgraph_is_induced():
    graph = small()
    part = graph.subgraph(np.array([True, False, True, True, True]))
    assert part.features.tolist() == ["a", "c", "a", "q"]
    ends = sorted(zip(part.source.tolist(), part.target.tolist(), part.kind.tolist(), strict=True))
    assert ends == [
        (0, 0, "loop"), (0, 2, "fwd"), (0, 2, "fwd"), (1, 1, "loop"), (2, 0, "rev"), (2, 0, "rev"),
        (2, 2, "loop"), (3, 3, "loop"),
    ]  # fmt: skip
    part.validate(require_loops=True)
    assert part.meta == graph.meta
    variable = graph.highly_variable_subgraph()
    assert variable.features.tolist() == ["a", "a"]
    assert variable.layer.tolist() == ["rna", "atac"]
    assert variable.n_edges == 2 + 2 + 2
    assert variable.highly_variable.all()


@pytest.mark.parametrize("mask", [np.ones(4, bool), np.ones(5, int), [0, 1]])
def test_subgraph_wants_one_boolean_a_feature(mask):
    with pytest.raises(DataError, match="a mask of 5 booleans is expected"):
        small().subgraph(mask)


def test_check_covers_counts_and_names_the_missing():
    graph = small()
    graph.check_covers({"rna": ["c", "a"], "atac": ["q"]})
    with pytest.raises(
        DataError, match=r"lacks 2 of 3 rna features \(first: 'x'\).*build it again"
    ):
        graph.check_covers({"rna": ["a", "x", "q"]})
    with pytest.raises(DataError, match="no layer 'adt'"):
        graph.check_covers({"adt": ["CD4"]})


def test_a_complete_graph_is_valid_in_any_edge_order():
    graph = small()
    graph.validate(require_loops=True)
    order = np.random.default_rng(0).permutation(graph.n_edges)
    edges = {name: getattr(graph, name)[order] for name in ARRAYS[3:]}
    replace(graph, **edges).validate(require_loops=True)


@pytest.mark.parametrize(
    ("field", "position", "value", "message"),
    [
        ("target", 2, 5, r"1 edges point outside the 5 features \(first: edge 2, 1 -> 5\)"),
        ("source", 0, -1, "edges point outside"),
        ("kind", 0, "fwx", "'kind' is wrong on 1 of 11 edges .*one of fwd, rev, loop. Got 'fwx'"),
        ("sign", 1, 0, "'sign' is wrong .*rna:a -> atac:a.*edge without sign.* Got 0"),
        ("weight", 2, 0.0, r"'weight' is wrong .*rna:b -> atac:q.*a number in \(0, 1\]. Got 0.0"),
        ("weight", 2, 1.5, "'weight' is wrong .* Got 1.5"),
        ("weight", 2, np.nan, "'weight' is wrong .* Got nan"),
        ("dist", 0, -2, "'dist' is wrong .* Got -2"),
        ("kind", 6, "fwd", "1 edges are misnamed .*rna:a -> rna:a is of kind 'fwd'"),
        ("kind", 0, "loop", "misnamed .*rna:a -> atac:a is of kind 'loop'"),
        ("kind", 0, "rev", "2 forward but 4 reverse edges"),
        ("weight", 3, 0.5, r"not symmetric: forward edge rna:a -> atac:a \(sign \+1, weight 1\)"),
        ("sign", 5, 1, r"not symmetric: forward edge rna:b -> atac:q \(sign -1, weight 0.5\)"),
        ("features", 1, "a", r"1 repeated features \(first: rna:a\)"),
    ],
)
def test_validate_names_what_is_wrong(field, position, value, message):
    with pytest.raises(DataError, match=message):
        edited(small(), field, position, value).validate()


def test_missing_loops_warn_or_raise(caplog):
    graph = small()
    kept = np.arange(graph.n_edges) != graph.n_edges - 1
    bare = replace(graph, **{name: getattr(graph, name)[kept] for name in ARRAYS[3:]})
    with caplog.at_level(logging.WARNING, logger="scbraid"):
        bare.validate()
    assert "1 of 5 features lack a self-loop (first: atac:q)" in caplog.text
    with pytest.raises(DataError, match=r"1 of 5 features lack a self-loop \(first: atac:q\)"):
        bare.validate(require_loops=True)


def test_saved_graphs_load_unchanged_and_bytes_repeat(tmp_path):
    graph = small()
    first, second = tmp_path / "a.npz", tmp_path / "b.npz"
    graph.save(first)
    graph.save(second)
    loaded = Guidance.load(first)
    assert same(graph, loaded)
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]
    with np.load(first, allow_pickle=False) as archive:  # readable without this package
        assert archive["evidence"].dtype.kind == "U"


def test_a_graph_without_edges_survives_saving(tmp_path):
    graph = small()
    empty = replace(graph, **{name: getattr(graph, name)[:0] for name in ARRAYS[3:]})
    empty.save(tmp_path / "empty.npz")
    assert same(empty, Guidance.load(tmp_path / "empty.npz"))


def test_meta_that_is_no_json_is_refused(tmp_path):
    with pytest.raises(DataError, match="meta cannot be written as JSON"):
        replace(small(), meta={"x": np.arange(2)}).save(tmp_path / "a.npz")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_a_file_cut_short_is_named(tmp_path, share):
    path = tmp_path / "guidance.npz"
    small().save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(DataError, match=r"guidance\.npz is not a usable guidance file.*build it"):
        Guidance.load(path)


def test_a_damaged_byte_is_noticed(tmp_path):
    path = tmp_path / "guidance.npz"
    small().save(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"weight.npy") + 60] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"guidance\.npz is not a usable guidance file"):
        Guidance.load(path)


def test_foreign_files_are_named(tmp_path):
    path = tmp_path / "other.npz"
    with pytest.raises(DataError, match=r"no guidance file at .*other\.npz"):
        Guidance.load(path)
    path.write_text("source\ttarget\n")
    with pytest.raises(DataError, match=r"other\.npz is not a usable guidance file"):
        Guidance.load(path)
    np.savez(path, source=np.arange(3))
    with pytest.raises(DataError, match="its format is absent, scbraid"):
        Guidance.load(path)
    np.savez(path, format="scbraid.guidance/1", source=np.arange(3))
    with pytest.raises(DataError, match="it lacks features, layer"):
        Guidance.load(path)
    np.save(tmp_path / "single.npy", np.arange(3))
    with pytest.raises(DataError, match="it is no npz archive"):
        Guidance.load(tmp_path / "single.npy")
    np.savez(path, x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="its format is absent"):
        Guidance.load(path)


def test_an_invalid_graph_is_refused_with_the_name_of_its_file(tmp_path):
    edited(small(), "weight", 0, 2.0).save(tmp_path / "bad.npz")
    with pytest.raises(DataError, match=r"bad\.npz .*'weight' is wrong"):
        Guidance.load(tmp_path / "bad.npz")
