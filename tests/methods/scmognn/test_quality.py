"""What the programs are for, on simulated data: better than linear maps, far above chance."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp

from scbraid.data.layers import Layers
from scbraid.data.simulate import preset, simulate
from scbraid.methods import methods
from scbraid.methods.scmognn.assignment import assign
from scbraid.methods.scmognn.inputs import make_matching_inputs
from scbraid.methods.scmognn.matching import canonical_projections
from scbraid.metrics.tasks import assignment_accuracy, matching_chance, matching_probability, rmse
from scbraid.prepare.svd import truncated_svd
from scbraid.prepare.targets import to_target

pytestmark = pytest.mark.slow

TRANSFORMS = {"rna": "log1p_normalised", "adt": "clr", "atac": "binary"}


def data_of(folder, name, n_cells, **changes) -> Layers:
    file = folder / "dataset.h5mu"
    simulate(preset(name).replace(**changes), n_cells, 0, file)
    data = Layers.read(file)
    stated = {}
    for key, layer in data.layers.items():
        kept = np.flatnonzero(np.asarray((layer.counts > 0).sum(0)).ravel() >= 3)
        data.layers[key] = dataclasses.replace(
            layer, counts=sp.csr_matrix(layer.counts[:, kept]),
            features=layer.features.iloc[kept], reps={},
        )  # fmt: skip
        totals = np.asarray(layer.counts.sum(1)).ravel()
        stated[key] = {"target": TRANSFORMS[key], "target_total": float(np.median(totals))}
    return dataclasses.replace(data, paired=False, meta={"layers": stated})


def ridge(x, y, test, strengths):
    """Test error of the best ridge regression among some, intercept free: a generous reference."""
    mean, target = x[~test].mean(0), y[~test].mean(0)
    z, errors = x - mean, []
    gram = z[~test].T @ z[~test]
    for strength in strengths:
        weights = np.linalg.solve(
            gram + strength * np.eye(x.shape[1]), z[~test].T @ (y[~test] - target)
        )
        errors.append(rmse(y[test], np.maximum(z[test] @ weights + target, 0)))
    return min(errors)


@pytest.mark.parametrize(
    ("name", "source", "target", "changes"),
    [
        ("cite", "rna", "adt", {"n_genes": 300, "n_proteins": 30}),
        ("cite", "adt", "rna", {"n_genes": 300, "n_proteins": 30}),
        ("demo", "atac", "rna", {"n_genes": 300, "n_peaks": 800}),
    ],
)
def test_prediction_is_below_svd_with_linear_and_ridge(tmp_path, name, source, target, changes):
    data = data_of(tmp_path, name, 1000, **changes)
    rng = np.random.default_rng(0)
    test = np.zeros(1000, bool)
    test[rng.permutation(1000)[:200]] = True
    stated = data.meta["layers"]
    x, y = (
        to_target(data[k].counts, TRANSFORMS[k], stated[k]["target_total"])
        for k in (source, target)
    )
    y = y.toarray()
    layers = {source: data[source], target: data[target].take(~test)}
    data = dataclasses.replace(data, layers=layers)
    method = methods()["scmognn_prediction"]
    found = method(method.configure(), seed=0, device="cpu").fit(data).prediction
    rows = [list(data[source].cells).index(cell) for cell in found.cells]
    error = rmse(y[rows], found.values)
    svd = truncated_svd(x, min(50, min(x.shape) - 1))
    assert error < ridge(x @ svd.Vt.T, y, test, [1e-6])
    # Its strength chosen on the test cells: nobody could do better with a linear map.
    assert error < ridge(x.toarray(), y, test, 10.0 ** np.arange(-1, 5))


def test_matching_is_far_above_chance_and_not_below_canonical_correlation(tmp_path):
    data = data_of(tmp_path, "cite", 1500, n_genes=300, n_proteins=30, n_batches=2)
    rng = np.random.default_rng(0)
    order = rng.permutation(1500)
    test, train = order[:600], order[600:]
    layers, own = {}, []
    for k in ("rna", "adt"):
        own.append(rng.permutation(test))
        rows = np.concatenate([train, own[-1]])
        names = [f"cell-{i}" if i < 900 else f"{k}-{i}" for i in range(1500)]
        layers[k] = dataclasses.replace(data[k].take(rows), cells=np.array(names))
    place = np.argsort(own[1])
    partner = place[np.searchsorted(own[1][place], own[0])]
    data = dataclasses.replace(data, layers=layers)
    method = methods()["scmognn_matching"]
    weights = method(method.configure(), seed=0, device="cpu").fit(data).matching.weights
    score = matching_probability(weights, partner)
    inputs = make_matching_inputs(data, {"rna": 50, "atac": 50}, within_batches=True)
    chance = matching_chance(600, inputs.batch[0][900:], inputs.batch[1][900:])
    assert score > 10 * chance
    z = [rep.astype(np.float64) for rep in inputs.reps]
    maps = canonical_projections((z[0][:900], z[1][:900]), 40, 0.3)
    e = [part[900:] @ weight + offset for part, (weight, offset) in zip(z, maps, strict=True)]
    e = [part / np.linalg.norm(part, axis=1, keepdims=True) for part in e]
    assigned = np.full(600, -1)
    for code in np.unique(inputs.batch[0]):
        a, b = (np.flatnonzero(codes[900:] == code) for codes in inputs.batch)
        assigned[a] = b[assign(np.exp(e[0][a] @ e[1][b].T), 0.0).columns]
    reference = assignment_accuracy(assigned, partner)
    # 600 cells: two standard errors of a share of 6 % are 2 %.
    assert score > reference - 0.02
