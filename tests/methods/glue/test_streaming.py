"""Training on data that stay on disk: the same losses, byte for byte, as on data in memory."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from scbraid.data import backed
from scbraid.data.backed import BackedArray, BackedMatrix
from scbraid.data.layers import Layer, Layers
from scbraid.errors import DataError
from scbraid.methods.glue import objective
from scbraid.methods.glue.config import GlueConfig
from scbraid.methods.glue.inputs import GlueInputs, make_inputs
from scbraid.methods.glue.network import GlueNetwork, LayerData, encode
from scbraid.methods.glue.objective import CellSampler, GlueTask
from scbraid.prepare import write_h5mu
from scbraid.train import sampling
from scbraid.train.sampling import BlockSampler, Prefetch

CPU = torch.device("cpu")
N_CELLS = {"rna": 400, "atac": 230}
SIZES = {"rna": 11, "atac": 17}
CONFIG = GlueConfig(latent_dim=4, hidden_dim=6, batch_size=16, edge_batches=4)


@pytest.fixture(autouse=True)
def small_reads(monkeypatch):
    """Several blocks an array, several windows an epoch."""
    monkeypatch.setattr(backed, "BLOCK_ENTRIES", 500)
    monkeypatch.setattr(backed, "GAP_ROWS", 2)
    monkeypatch.setattr(objective, "WINDOW_ROWS", 160)
    small = {"block_rows": 8, "window_rows": 160}
    monkeypatch.setattr(sampling.BlockSampler.__init__, "__kwdefaults__", small)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """An input with counts far from small integers alone, in two layers and two batches."""
    import pandas as pd

    rng = np.random.default_rng(0)
    layers = {}
    for name, n_cells in N_CELLS.items():
        values = rng.poisson(rng.gamma(0.5, 3.0, (n_cells, SIZES[name]))).astype(np.float32)
        values[3, 2] = 40_000 if name == "rna" else 300
        key = {"rna": "X_pca", "atac": "X_lsi"}[name]
        layers[name] = Layer(
            name,
            sp.csr_matrix(values),
            np.array([f"{name}-{i:04d}" for i in range(n_cells)]),
            pd.DataFrame(index=[f"{name}{j}" for j in range(SIZES[name])]),
            {key: rng.normal(size=(n_cells, 5)).astype(np.float32)},
            np.array(["a", "b"])[np.arange(n_cells) % 2],
        )
    file = tmp_path_factory.mktemp("input") / "input.h5mu"
    write_h5mu(file, Layers(layers, meta={"task": "unpaired"}))
    return file


def inputs_of(path, config=CONFIG, *, on_disk: bool, rows=None) -> GlueInputs:
    """Use the features in another order than the file's, and not all of them."""
    from scbraid.guidance.graph import Guidance

    data = Layers.read(path, backed=on_disk)
    if rows is not None:
        data.layers = {name: layer.take(rows[name]) for name, layer in data.layers.items()}
    names = [f"{k}{j}" for k, n in SIZES.items() for j in np.arange(n)[::-1] if j != 4]
    layer = np.array([n.rstrip("0123456789") for n in names])
    n = len(names)
    source = np.concatenate([np.arange(10), np.arange(10) + 10, np.arange(n)])
    target = np.concatenate([np.arange(10) + 10, np.arange(10), np.arange(n)])
    kind = np.array(["fwd"] * 10 + ["rev"] * 10 + ["loop"] * n)
    graph = Guidance(
        features=np.array(names),
        layer=layer,
        highly_variable=np.ones(n, bool),
        source=source.astype(np.int32),
        target=target.astype(np.int32),
        sign=np.ones(len(source), np.int8),
        weight=np.ones(len(source), np.float32),
        dist=np.zeros(len(source), np.int64),
        kind=kind,
        evidence=np.array(["distance"] * len(source)),
        meta={},
    )
    return make_inputs(data, graph, config)


def task_of(inputs: GlueInputs, config=CONFIG, max_steps: int | None = None) -> GlueTask:
    layers = [LayerData(layer, CPU) for layer in inputs.layers]
    torch.manual_seed(0)
    network = GlueNetwork(inputs, config, [layer.input_dim for layer in layers], None)
    for layer in inputs.layers:
        network.decoder(layer.name).start_from(layer.values, layer.batch)
    return GlueTask(
        network, layers, inputs, config, weights=None, noise_level=lambda epoch: 1.0,
        n_shared_batches=None, paired=False, seed=0, max_steps=max_steps,
    )  # fmt: skip


def losses(task: GlueTask, epochs: int = 2) -> list[bytes]:
    found = []
    for epoch in range(1, epochs + 1):
        task.network.train()
        found += [terms["total"].numpy().tobytes() for terms in task.train_steps(epoch)]
        task.network.eval()
        with torch.no_grad():
            found += [terms["vae"].numpy().tobytes() for terms in task.validation_steps(epoch)]
    return found


def sampler_for(kind: str, task: GlueTask, inputs: GlueInputs, *, on_disk: bool):
    make = {"full": CellSampler, "blocks": BlockSampler}[kind]
    sampler = make(inputs.cells, CONFIG.batch_size, 0.1, 7)
    if on_disk:
        sampler.through = Prefetch(task.layers)
    return sampler


@pytest.mark.parametrize("kind", ["full", "blocks"])
@pytest.mark.parametrize("use_rep", [True, False])
def test_losses_and_embedding_are_byte_equal(path, kind, use_rep):
    found = {}
    config = dataclasses.replace(CONFIG, use_rep=use_rep)
    for on_disk in (False, True):
        inputs = inputs_of(path, config, on_disk=on_disk)
        assert isinstance(inputs.layers[0].values, BackedMatrix) == on_disk
        assert inputs.storage == dict.fromkeys(SIZES, "disk" if on_disk else "memory")
        task = task_of(inputs, config)
        task.cells = sampler_for(kind, task, inputs, on_disk=on_disk)
        found[on_disk] = losses(task)
        embedding = encode(task.network, task.layers, chunk=100)
        found[on_disk] += [part.tobytes() for part in embedding.cells.values()]
        assert [len(part) for part in embedding.cells.values()] == list(N_CELLS.values())
    assert len(found[True]) > 2 * 35
    assert found[True] == found[False]


def test_order_is_chosen_by_where_the_data_are(path):
    inside = task_of(inputs_of(path, on_disk=False)).cells
    outside = task_of(inputs_of(path, on_disk=True)).cells
    assert isinstance(inside, CellSampler)
    assert isinstance(outside, BlockSampler)
    assert isinstance(outside.through, Prefetch)


def test_decoders_start_the_same(path):
    starts = [task_of(inputs_of(path, on_disk=d)).network.state_dict() for d in (False, True)]
    assert starts[0]["decoders.rna.bias"].any()
    for name, tensor in starts[0].items():
        assert torch.equal(tensor, starts[1][name]), name


def test_decoder_starts_of_ratios_do_not_depend_on_blocks(path):
    from scbraid.methods.glue.network import FeatureDecoder

    rng = np.random.default_rng(0)
    values = rng.lognormal(0, 1, (90, 7)) * (rng.random((90, 7)) < 0.6)
    whole, parts = (FeatureDecoder("ziln", 1, 7) for _ in range(2))
    batch = np.zeros(90, np.int64)
    matrix = sp.csr_matrix(values.astype(np.float32))
    whole.start_from(matrix, batch)

    class Blocks(BackedMatrix):
        def __init__(self):
            pass

        def blocks(self):
            return ((first, matrix[first : first + 13]) for first in range(0, 90, 13))

    parts.start_from(Blocks(), batch)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)


def test_reordered_cells_are_copied_into_order(path):
    rng = np.random.default_rng(1)
    rows = {name: rng.permutation(n)[: n - 50] for name, n in N_CELLS.items()}
    inside = inputs_of(path, on_disk=False, rows=rows)
    outside = inputs_of(path, on_disk=True, rows=rows)
    for one, other in zip(inside.layers, outside.layers, strict=True):
        assert isinstance(other.rep, BackedArray)
        assert other.values.in_file_order
        np.testing.assert_array_equal(other.values.tocsr().toarray(), one.values.toarray())
        np.testing.assert_array_equal(np.asarray(other.rep), one.rep)
        np.testing.assert_array_equal(other.cells, one.cells)


@pytest.mark.parametrize("max_steps", [None, 13])
def test_training_can_be_taken_up_in_the_middle_of_an_epoch(path, max_steps):
    """What the engine does: the state of an epoch's start, and the number of the next step."""

    def rows(task, epoch, start=0):
        seen = []
        gather = task._gather
        task._gather = lambda rows, drawn: seen.append(rows.tolist()) or gather(rows, drawn)
        edges = [task.edges.rng.bit_generator.state]
        list(task.train_steps(epoch, start))
        list(task.validation_steps(epoch))
        task._gather = gather
        return seen, edges

    whole = task_of(inputs_of(path, on_disk=True), max_steps=max_steps)
    for epoch in range(1, 4):
        rows(whole, epoch)
    state = json.loads(json.dumps(whole.state_dict()))
    expected = [rows(whole, epoch) for epoch in range(4, 8)]
    again = task_of(inputs_of(path, on_disk=True), max_steps=max_steps)
    again.load_state_dict(state)
    found = [rows(again, 4, 8), *(rows(again, epoch) for epoch in range(5, 8))]
    assert found[0][0] == expected[0][0][8:]
    assert found[1:] == expected[1:]
    for task in (whole, again):
        task.close()


def test_cells_that_are_not_held_are_refused(path):
    layer = LayerData(inputs_of(path, on_disk=True).layers[0], CPU)
    with pytest.raises(LookupError, match="layer 'rna' holds no cells"):
        layer.gather(np.array([1]))
    layer.hold(layer.read(np.array([3, 5, 9])))
    observed, rep = layer.gather(np.array([9, 3, 9]))
    assert observed.shape == (3, 10)
    assert torch.equal(rep[0], rep[2])
    for wrong in (4, 10):
        with pytest.raises(LookupError, match="some of 2 cells are not held"):
            layer.gather(np.array([3, wrong]))


@pytest.mark.parametrize(
    ("value", "message"),
    [(1.5, r"needs .*integers; found 1\.5"), (np.nan, "1 values are NaN or infinite")],
)
def test_values_on_disk_are_checked(path, tmp_path, value, message):
    data = Layers.read(path, backed=False)
    data["atac"].counts.data[-1] = value
    write_h5mu(tmp_path / "x.h5mu", data)
    with pytest.raises(DataError, match=message):
        inputs_of(tmp_path / "x.h5mu", on_disk=True)


def test_representations_on_disk_are_checked(path, tmp_path):
    data = Layers.read(path, backed=False)
    data["rna"].reps["X_pca"][[5, 390]] = np.inf
    write_h5mu(tmp_path / "x.h5mu", data)
    with pytest.raises(DataError, match="NaN or infinite values in 2 cells"):
        inputs_of(tmp_path / "x.h5mu", on_disk=True)


# ----------------------------------------------------------------------------------- whole methods


def whole_run(data, case, quick, seed=0):
    from scbraid.methods.glue.method import GlueMethod

    method = GlueMethod(GlueMethod.configure("default", quick), seed=seed, device="cpu")
    result = method.fit(data, case.guidance)
    result.check(data, "glue")
    return result


def test_a_whole_run_on_disk(prepared, quick):
    case = prepared()
    result = whole_run(Layers.read(case.input_path, backed=True), case, quick)
    assert [record["stage"] for record in result.details["stages"]] == ["pretrain", "fine-tune"]
    assert np.isfinite(result.history["vae"]).all()
    again = whole_run(Layers.read(case.input_path, backed=True), case, quick)
    for name, embedding in result.embeddings.items():
        np.testing.assert_array_equal(again.embeddings[name], embedding)


def test_a_paired_input_that_is_shown_unpaired(prepared, quick):
    from scbraid.methods.glue.method import GlueMethod
    from scbraid.worker import blind

    case = prepared(task="paired")
    data = Layers.read(case.input_path, backed=True)
    shown, order = blind(data, GlueMethod.info, np.random.default_rng(0))
    assert shown.on_disk
    for name, layer in shown.layers.items():
        expected = case.data[name].counts[order[name]].toarray()
        np.testing.assert_array_equal(layer.counts.tocsr().toarray(), expected)
    whole_run(shown, case, quick)


def test_a_method_that_knows_nothing_of_it(prepared):
    from scbraid.methods.baselines.gene_activity import gene_activity

    case = prepared()
    inside = gene_activity(case.data, case.guidance)
    outside = gene_activity(Layers.read(case.input_path, backed=True), case.guidance)
    for name, values in inside.items():
        np.testing.assert_array_equal(outside[name], values)


@pytest.mark.parametrize(("name", "on_disk"), [("glue", True), ("gene_activity_pca", False)])
def test_counts_are_left_on_disk_for_methods_that_read_them_there(
    prepared, tmp_path, monkeypatch, name, on_disk
):
    from scbraid import worker
    from scbraid.errors import NotApplicable
    from scbraid.files import read_json, write_json
    from scbraid.methods import methods
    from scbraid.runner import RunRequest

    def fit(self, data, guidance=None, truth=None):
        raise NotApplicable(f"on disk: {data.on_disk}")

    monkeypatch.setenv("SCBRAID_BACKED_ABOVE", "0")
    monkeypatch.setattr(methods()[name], "fit", fit)
    case = prepared()
    request = RunRequest(
        name, input=str(case.input_path), guidance=str(case.guidance_path), output=str(tmp_path)
    )
    write_json(tmp_path / "request.json", dataclasses.asdict(request))
    worker.main(tmp_path)
    assert read_json(tmp_path / "outcome.json")["reason"] == f"on disk: {on_disk}"
