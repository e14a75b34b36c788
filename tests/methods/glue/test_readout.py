"""The joined read-out: its equation, where its cells come from, and what it leaves alone."""

from __future__ import annotations

import dataclasses

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from scbraid.data.backed import BackedArray, BackedMatrix, CsrWriter
from scbraid.data.layers import Layer, Layers
from scbraid.errors import ConfigError, DataError
from scbraid.guidance.graph import Guidance
from scbraid.methods import Glue, methods
from scbraid.methods.covel.cells import LayerCells
from scbraid.methods.covel.config import CovelConfig
from scbraid.methods.glue import readout
from scbraid.methods.glue.config import PRESETS, GlueConfig
from scbraid.methods.glue.fit import fit_glue
from scbraid.methods.glue.inputs import GlueInputs, GlueLayer, make_inputs
from scbraid.methods.glue.network import Embedding
from scbraid.methods.glue.readout import JoinedReadout, readout_shapes
from scbraid.nn.graph import SignedGraph
from scbraid.nn.pooling import join

CPU = torch.device("cpu")
DIM = 4
LIKELIHOODS = {"rna": "nb", "adt": "nb", "met": "ziln"}
SIZES = {"rna": 12, "adt": 5, "met": 8}


def glue_layer(name: str, first: int, *, with_rep: bool, rng) -> GlueLayer:
    n_cells = 40 + first
    values = rng.poisson(rng.gamma(0.5, 2.0, (n_cells, SIZES[name])))
    if name == "met":
        values = rng.lognormal(0, 1, values.shape) * (rng.random(values.shape) < 0.6)
    values[3] = 0
    return GlueLayer(
        name=name,
        values=sp.csr_matrix(values.astype(np.float32)),
        features=np.array([f"{name}{j}" for j in range(SIZES[name])]),
        # Vertices of a layer need not be in order.
        vertices=first + rng.permutation(SIZES[name]),
        rep=rng.normal(size=(n_cells, 6)).astype(np.float32) if with_rep else None,
        likelihood=LIKELIHOODS[name],
        batch=np.zeros(n_cells, np.int64),
        batches=["all"],
        cells=np.array([f"{name}-{i}" for i in range(n_cells)]),
    )


def three_layers(*, with_rep: bool = True) -> tuple[GlueInputs, Embedding]:
    """Layers of counts, protein and methylation, and what a training may have made of them."""
    rng = np.random.default_rng(5)
    layers, first = [], 0
    for name in SIZES:
        layers.append(glue_layer(name, first, with_rep=with_rep, rng=rng))
        first += SIZES[name]
    loops, ones = np.arange(first), np.ones(first, np.float32)
    inputs = GlueInputs(layers, SignedGraph(loops, loops, ones, ones, first), np.zeros((0, 3)))
    cells = {layer.name: rng.normal(size=(layer.n_cells, DIM)) for layer in layers}
    features = rng.normal(size=(first, DIM)).astype(np.float32)
    return inputs, Embedding({k: v.astype(np.float32) for k, v in cells.items()}, features)


def unit(values):
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def read(own: JoinedReadout, inputs: GlueInputs, embedding: Embedding) -> dict[str, np.ndarray]:
    """Cells as `own` reads them; it overwrites what it is given."""
    cells = {name: part.copy() for name, part in embedding.cells.items()}
    own.apply(inputs, Embedding(cells, embedding.features), CPU)
    return cells


def by_hand(layer: GlueLayer, embedding: Embedding, weight: float) -> np.ndarray:
    """Sums over features one by one, least squares with an intercept, in double precision."""
    pooled = np.zeros((layer.n_cells, DIM))
    for cell, row in enumerate(layer.values.toarray().astype(float)):
        scaled = 1e4 * row / max(row.sum(), 1e-7) if layer.likelihood == "nb" else row
        for value, vertex in zip(scaled, layer.vertices, strict=True):
            pooled[cell] += np.log1p(value) * embedding.features[vertex]
    smooth = pooled - pooled.mean(0)
    if layer.rep is not None:
        design = np.column_stack([np.ones(layer.n_cells), layer.rep])
        smooth = design @ np.linalg.lstsq(design, smooth, rcond=None)[0]
    return unit(unit(embedding.cells[layer.name].astype(float)) + weight * unit(smooth))


# -- the equation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("with_rep", [True, False])
@pytest.mark.parametrize("chunk", [7, 1000])
def test_it_is_the_equation(monkeypatch, with_rep, chunk):
    monkeypatch.setattr(readout, "CHUNK", chunk)
    inputs, embedding = three_layers(with_rep=with_rep)
    features = embedding.features.copy()
    found = read(JoinedReadout.fit(inputs, features, 0.7, CPU), inputs, embedding)
    for layer in inputs.layers:
        assert found[layer.name].dtype == np.float32
        expected = by_hand(layer, embedding, 0.7)
        np.testing.assert_allclose(found[layer.name], expected, atol=2e-5)
    np.testing.assert_array_equal(embedding.features, features)


@pytest.mark.parametrize("with_rep", [True, False])
def test_it_is_covels(with_rep):
    inputs, embedding = three_layers(with_rep=with_rep)
    found = read(JoinedReadout.fit(inputs, embedding.features, 0.5, CPU), inputs, embedding)
    for layer in inputs.layers:
        cells = LayerCells(layer, CovelConfig(use_rep=with_rep), CPU)
        observed = cells.gather(torch.arange(cells.n_cells)).observed
        positions = torch.from_numpy(embedding.features[layer.vertices])
        smooth = cells.smooth(cells.pooled(observed, positions))
        expected = join(torch.from_numpy(embedding.cells[layer.name]), smooth, 0.5)
        np.testing.assert_allclose(found[layer.name], expected, atol=2e-5)
    assert CovelConfig().join_weight == GlueConfig().join_weight


def test_features_bring_partners_together_that_encoders_miss():
    """Two layers that follow the same hidden programmes; the encoders know nothing of them."""
    rng = np.random.default_rng(0)
    n_cells = 150
    programmes = rng.normal(size=(n_cells, DIM))
    layers, features, first = [], [], 0
    for name, size in (("rna", 80), ("adt", 60)):
        positions = rng.normal(size=(size, DIM))
        rates = 2 * np.exp(0.4 * programmes @ positions.T)
        # Each layer's representation has axes of its own.
        rotation = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]
        base = glue_layer(name, 0, with_rep=True, rng=rng)
        layers.append(
            dataclasses.replace(
                base,
                values=sp.csr_matrix(rng.poisson(rates).astype(np.float32)),
                vertices=np.arange(first, first + size),
                rep=(programmes @ rotation).astype(np.float32),
                batch=np.zeros(n_cells, np.int64),
            )
        )
        features.append(positions)
        first += size
    loops, ones = np.arange(first), np.ones(first, np.float32)
    inputs = GlueInputs(layers, SignedGraph(loops, loops, ones, ones, first), np.zeros((0, 2)))
    noise = {name: rng.normal(size=(n_cells, DIM)).astype(np.float32) for name in ("rna", "adt")}
    embedding = Embedding(noise, np.concatenate(features).astype(np.float32))

    def closer(weight) -> float:
        own = JoinedReadout.fit(inputs, embedding.features, weight, CPU)
        a, b = read(own, inputs, embedding).values()
        similarity = a @ b.T
        return float((similarity > similarity.diagonal()[:, None]).mean())

    assert closer(0.0) > 0.4
    assert closer(20.0) < 0.05
    own = JoinedReadout.fit(inputs, embedding.features, 0.5, CPU)
    assert all(float(part.share) > 0.8 for part in own.maps.values())


@pytest.mark.parametrize("with_rep", [True, False])
def test_cells_on_disk_are_read_the_same_way(tmp_path, monkeypatch, with_rep):
    monkeypatch.setattr(readout, "CHUNK", 16)
    inputs, embedding = three_layers(with_rep=with_rep)
    layers = []
    for layer in inputs.layers:
        path = tmp_path / f"{layer.name}.h5"
        with h5py.File(path, "w") as file:
            CsrWriter(file.create_group("X"), layer.values.shape).add(layer.values)
            if with_rep:
                file["rep"] = layer.rep
        rep = BackedArray(path, "rep") if with_rep else None
        layers.append(dataclasses.replace(layer, values=BackedMatrix(path, "X"), rep=rep))
    outside = dataclasses.replace(inputs, layers=layers)
    found = [
        read(JoinedReadout.fit(each, embedding.features, 0.5, CPU), each, embedding)
        for each in (inputs, outside)
    ]
    for name, part in found[0].items():
        assert part.tobytes() == found[1][name].tobytes()


def test_arrays_make_the_same_readout_again():
    for with_rep in (True, False):
        inputs, embedding = three_layers(with_rep=with_rep)
        own = JoinedReadout.fit(inputs, embedding.features, 0.5, CPU)
        arrays = own.arrays()
        assert {name: part.shape for name, part in arrays.items()} == readout_shapes(inputs, DIM)
        again = JoinedReadout.from_arrays(arrays, inputs.names, 0.5)
        assert again.describe() == own.describe()
        for name, part in read(own, inputs, embedding).items():
            np.testing.assert_array_equal(read(again, inputs, embedding)[name], part)


# -- trainings -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(prepared, quick):
    """The same training under both read-outs."""
    case = prepared(n_cells=100)
    found = {}
    for name in ("encoder", "joined"):
        config = GlueConfig(**quick, readout=name)
        inputs = make_inputs(case.data, case.guidance, config)
        found[name] = inputs, fit_glue(inputs, config, seed=3, device="cpu")
    return found


def test_the_training_and_the_features_stay_as_they_are(both):
    (inputs, encoder), (_, joined) = both["encoder"], both["joined"]
    for name, tensor in encoder.network.state_dict().items():
        assert torch.equal(joined.network.state_dict()[name], tensor), name
    np.testing.assert_array_equal(joined.embedding.features, encoder.embedding.features)
    assert encoder.readout is None
    own = JoinedReadout.fit(inputs, encoder.embedding.features, 0.5, CPU)
    expected = read(own, inputs, encoder.embedding)
    for name, part in joined.embedding.cells.items():
        np.testing.assert_array_equal(part, expected[name])
        np.testing.assert_allclose(np.linalg.norm(part, axis=1), 1, atol=1e-6)


def test_the_status_says_which_it_was(both, quick):
    encoder, joined = (both[name][1].details for name in ("encoder", "joined"))
    dimensions = quick["latent_dim"]
    assert encoder["readout"] == {"name": "encoder", "dimensions": dimensions}
    explained = joined["readout"].pop("explained")
    assert joined["readout"] == {"name": "joined", "dimensions": dimensions, "weight": 0.5}
    assert explained.keys() == {"rna", "atac"}
    assert all(0 < share < 1 for share in explained.values())
    assert {k: v for k, v in encoder.items() if k not in ("readout", "stages")} == {
        k: v for k, v in joined.items() if k not in ("readout", "stages")
    }


@pytest.mark.parametrize(
    ("name", "preset", "options"),
    [
        ("glue", "joined", {"use_rep": False}),
        ("glue", "atlas", {"readout": "joined", "metacell_size": 4, "cells_batch_size": 48}),
        ("glue_paired", "joined", {}),
    ],
)
def test_it_goes_with_every_recipe(prepared, quick, name, preset, options):
    case = prepared(task="paired" if name == "glue_paired" else "unpaired", n_cells=100)
    method = methods()[name]
    cells = {}
    for weight in (0.5, 0.0):
        config = method.configure(preset, quick | {"join_weight": weight} | options)
        result = method(config, seed=1, device="cpu").fit(case.data, case.guidance)
        result.check(case.data, name)
        cells[weight] = result.embeddings
    for layer, part in cells[0.5].items():
        assert part.shape == (100, quick["latent_dim"])
        np.testing.assert_allclose(np.linalg.norm(part, axis=1), 1, atol=1e-6)
        # The weight turns cells away from what the encoder says, by less than a right angle.
        cosine = (part * cells[0.0][layer]).sum(1)
        assert cosine.min() > 0.8
        assert cosine.mean() < 0.999


def test_features_without_a_link_count_as_the_others(quick):
    """A graph whose every edge is a loop: its features have embeddings, and are read."""
    rng = np.random.default_rng(0)
    layers = {
        name: Layer(
            name,
            sp.csr_matrix(rng.poisson(1.0, (60, 6)).astype(np.float32)),
            np.array([f"{name}-{i}" for i in range(60)]),
            pd.DataFrame(index=[f"{name}{j}" for j in range(6)]),
            {key: rng.normal(size=(60, 7)).astype(np.float32)},
        )
        for name, key in (("rna", "X_pca"), ("atac", "X_lsi"))
    }
    data = Layers(layers, meta={"task": "unpaired"})
    loops = np.arange(12, dtype=np.int32)
    guidance = Guidance(
        features=np.array([f"{name}{j}" for name in layers for j in range(6)]),
        layer=np.repeat(list(layers), 6),
        highly_variable=np.ones(12, bool),
        source=loops,
        target=loops,
        sign=np.ones(12, np.int8),
        weight=np.ones(12, np.float32),
        dist=np.zeros(12, np.int64),
        kind=np.full(12, "loop"),
        evidence=np.full(12, "distance"),
        meta={},
    )
    method = methods()["glue"]
    options = {**quick, "balance": False}
    result = method(method.configure("joined", options), device="cpu").fit(data, guidance)
    result.check(data, "glue")
    shares = result.details["readout"]["explained"].values()
    assert all(0 < share < 1 for share in shares)


def test_the_paper_and_the_default_read_the_encoder():
    method = methods()["glue"]
    for preset in ("default", *PRESETS):
        expected = "joined" if preset == "joined" else "encoder"
        assert method.configure(preset).readout == expected


# -- models on AnnData -----------------------------------------------------------------------------


def as_anndata(case):
    import anndata

    return {
        name: anndata.AnnData(
            layer.counts.copy(),
            obs=pd.DataFrame(index=layer.cells),
            var=layer.features.copy(),
            obsm=dict(layer.reps),
        )
        for name, layer in case.data.layers.items()
    }


@pytest.fixture(scope="module")
def model(prepared, quick):
    case = prepared(n_cells=100)
    data = as_anndata(case)
    found = Glue(data, case.guidance, preset="joined", seed=3, device="cpu", **quick)
    found.train()
    return found, data, case


def test_both_readings_of_a_model(model, both):
    found, data, _ = model
    for name in ("rna", "atac"):
        joined = both["joined"][1].embedding.cells[name]
        np.testing.assert_array_equal(found.get_latent_representation(name), joined)
        np.testing.assert_array_equal(data[name].obsm["X_glue"], joined)
        np.testing.assert_array_equal(
            found.get_latent_representation(name, readout="encoder"),
            both["encoder"][1].embedding.cells[name],
        )
    assert list(found.get_latent_representation(readout="encoder")) == ["rna", "atac"]


@pytest.mark.parametrize("use_rep", [True, False])
def test_a_saved_model_reads_other_cells_the_same_way(model, quick, tmp_path, use_rep):
    found, _, case = model
    if not use_rep:
        found = Glue(
            as_anndata(case), case.guidance, preset="joined", use_rep=False, device="cpu", **quick
        )
        found.train()
    found.save(tmp_path)
    fresh = as_anndata(case)
    same = Glue.load(tmp_path, fresh)
    for name, adata in fresh.items():
        np.testing.assert_array_equal(adata.obsm["X_glue"], found.get_latent_representation(name))
    assert same.details["readout"] == found.details["readout"]
    # Fewer cells than columns, and of one end of the data: nothing is fitted to them.
    some = np.argsort(found.get_latent_representation("rna")[:, 0])[:5]
    part = {"rna": fresh["rna"][some].copy(), "atac": fresh["atac"]}
    loaded = Glue.load(tmp_path, part)
    np.testing.assert_allclose(
        loaded.get_latent_representation("rna"),
        found.get_latent_representation("rna")[some],
        atol=1e-6,
    )
    loaded.save(tmp_path / "again")
    again = Glue.load(tmp_path / "again", fresh)
    np.testing.assert_array_equal(
        again.get_latent_representation("rna"), found.get_latent_representation("rna")
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("readout.rna.center"), r"readout.rna.center is absent, the data and op"),
        (
            lambda a: a.update({"readout.atac.coefficients": np.zeros((3, 6))}),
            r"readout.atac.coefficients is \(3, 6\), the data and options need \(20, 6\)",
        ),
        (lambda a: a.update({"readout.met.share": np.zeros(())}), "readout.met.share is .*absent"),
    ],
)
def test_damaged_readouts_are_named(model, tmp_path, change, message):
    found, _, case = model
    found.save(tmp_path)
    file = tmp_path / "weights.npz"
    with np.load(file) as arrays:
        content = dict(arrays)
    change(content)
    with file.open("wb") as out:
        np.savez(out, **content)
    with pytest.raises(DataError, match=message):
        Glue.load(tmp_path, as_anndata(case))


def test_a_model_without_it_is_saved_as_before(both, quick, prepared, tmp_path):
    case = prepared(n_cells=100)
    plain = Glue(as_anndata(case), case.guidance, seed=3, device="cpu", **quick)
    plain.train()
    plain.save(tmp_path)
    with np.load(tmp_path / "weights.npz") as arrays:
        assert not [name for name in arrays.files if name.startswith("readout")]
    np.testing.assert_array_equal(
        plain.get_latent_representation("rna"),
        plain.get_latent_representation("rna", readout="encoder"),
    )


# -- refusals --------------------------------------------------------------------------------------


def test_other_readings_are_refused(model):
    with pytest.raises(ConfigError, match=r"readout is 'pooled'; expected 'encoder', or None for"):
        model[0].get_latent_representation("rna", readout="pooled")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"readout": "joint"}, "unknown choice 'joint'; did you mean 'joined'"),
        ({"join_weight": -0.5}, r"join_weight is -0\.5; expected a value >= 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        methods()["glue"].configure("joined", options)


@pytest.mark.parametrize("likelihood", ["normal", "zin"])
def test_weights_below_zero_are_refused_before_training(prepared, quick, likelihood):
    case = prepared(n_cells=100)
    values = case.data["rna"].counts.astype(np.float32)
    case.data["rna"].counts = values
    case.data.meta["layers"]["rna"]["likelihood"] = likelihood
    config = GlueConfig(**quick, readout="joined")
    make_inputs(case.data, case.guidance, config)
    used = make_inputs(case.data, case.guidance, config).layers[0].values
    values.data *= -0.25
    expected = (
        f"layer 'rna': readout='joined' weighs features by log1p of their values, and "
        f"{used.nnz:,} values are negative (the least: {-0.25 * used.data.max():.6g}). Give "
    )
    with pytest.raises(DataError) as caught:
        make_inputs(case.data, case.guidance, config)
    assert expected in str(caught.value)
    assert "or use readout='encoder'" in str(caught.value)
    make_inputs(case.data, case.guidance, GlueConfig(**quick))


def test_other_values_of_zero_or_more_are_weights(prepared, quick):
    case = prepared(n_cells=100)
    case.data["rna"].counts.data = np.sqrt(case.data["rna"].counts.data)
    case.data.meta["layers"]["rna"]["likelihood"] = "normal"
    method = methods()["glue"]
    result = method(method.configure("joined", quick), device="cpu").fit(case.data, case.guidance)
    result.check(case.data, "glue")
