"""What scI2CL finds in data whose truth is planted; minutes of training."""

from __future__ import annotations

import numpy as np
import pytest

from scbraid.methods import Truth, methods
from scbraid.metrics.neighbors import nearest_neighbors

pytestmark = pytest.mark.slow


def embed(case, name, preset="default", **options):
    method = methods()[name]
    made = method(method.configure(preset, options), seed=0, device="cpu")
    return made.fit(case.data, None, Truth(case.truth))


def neighbour_accuracy(case, embedding):
    """Share of cells whose type is that of most of their 15 nearest others."""
    rows = Truth(case.truth).rows(case.data["rna"])
    codes = case.truth["cell_type"].iloc[rows].astype("category").cat.codes.to_numpy()
    near = nearest_neighbors(np.asarray(embedding, np.float64), 15).indices
    votes = [np.bincount(codes[row], minlength=codes.max() + 1).argmax() for row in near]
    return float(np.mean(votes == codes))


@pytest.fixture(scope="module")
def demo(prepared):
    return prepared("demo", task="paired", n_cells=600, n_genes=400, n_peaks=1200)


def test_default_is_no_worse_than_the_layers_side_by_side(demo):
    found = neighbour_accuracy(demo, embed(demo, "sci2cl").embeddings["rna"])
    plain = neighbour_accuracy(demo, embed(demo, "concatenation").embeddings["rna"])
    atac = neighbour_accuracy(demo, embed(demo, "single_layer", "atac").embeddings["rna"])
    assert found > plain - 0.01
    assert found > atac + 0.1


def test_matching_is_learned_where_it_is_asked_for(prepared):
    case = prepared(task="paired", n_cells=160)
    history = embed(
        case, "sci2cl", lam_matching=20.0, lam_reconstruction=10.0, n_negatives=1, epochs=150,
        batch_size=32, input_dropout=0.0,
    ).history  # fmt: skip
    accuracy = history.loc[history["stage"] == "joint", "matching_accuracy"].to_numpy()
    assert accuracy[-5:].mean() > 0.9
    assert accuracy[0] < 0.7


@pytest.mark.real
def test_real_layers_train(mirror, tmp_path):
    from pathlib import Path

    from scbraid.data.assemble import assemble
    from scbraid.data.download import download
    from scbraid.data.layers import Layers
    from scbraid.data.registry import load_datasets
    from scbraid.prepare import prepare

    root = Path(__file__).resolve().parents[3]
    entry = load_datasets([root / "config" / "datasets.yaml"], {})["teaseq_rna_adt"]
    download(entry, tmp_path / "raw", mirror)
    assemble(entry, tmp_path / "raw", tmp_path / "dataset.h5mu")
    prepare(
        tmp_path / "dataset.h5mu", tmp_path / "input.h5mu", tmp_path / "truth.parquet",
        name="teaseq_rna_adt", task="paired", cells=400, n_top_genes=500, n_pcs=50,
    )  # fmt: skip
    data = Layers.read(tmp_path / "input.h5mu")
    method = methods()["sci2cl"]
    result = method(method.configure(), seed=0, device="cpu").fit(data)
    assert result.embeddings["adt"].shape == (400, 64)
    joint = result.history[result.history["stage"] == "joint"]
    assert joint["contrast"].iloc[-1] < 0.95 * joint["contrast"].iloc[0]
    assert joint["rna_nll"].iloc[-1] < joint["rna_nll"].iloc[0] + 0.02
