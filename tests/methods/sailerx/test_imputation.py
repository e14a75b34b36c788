"""SAILERX and SAILER as an answer to the task imputation."""

from __future__ import annotations

import dataclasses

import anndata
import numpy as np
import pandas as pd
import pytest

from scbraid.methods import Sailerx, methods
from scbraid.prepare import imputation as asking

QUICK = {"max_epochs": 2, "latent_dim": 4, "block_hidden": 8, "block_out": 4}


def fitted(name, data, **options):
    method = methods()[name]
    found = method(method.configure(options=QUICK | options), seed=0, device="cpu").fit(data)
    found.check(data, name)
    return found


@pytest.mark.parametrize("name", ["sailerx", "sailer"])
def test_asked_entries_are_decoded_in_their_own_order(toy, monkeypatch, name):
    monkeypatch.setattr(asking, "MAX_ASKED_CELLS", 9)
    monkeypatch.setattr(asking, "MAX_ASKED_PEAKS", 20)
    data = dataclasses.replace(toy(), paired=False, meta={"task": "imputation"})
    result = fitted(name, data)
    assert result.embeddings == {}
    assert len(result.history)
    found = result.prediction
    rows, columns = asking.asked_entries(data)
    assert list(found.cells) == list(data["atac"].cells[rows])
    assert list(found.features) == list(data["atac"].features.index[columns])
    # Peaks of chromosomes that the model leaves out stand at their frequency.
    chrom = data["atac"].features["chrom"].to_numpy()[columns]
    left_out = np.isin(chrom, ["chrY", "chrM"])
    assert result.details["peaks_by_frequency"] == left_out.sum() > 0
    share = (data["atac"].counts.toarray()[:, columns] > 0).mean(axis=0)
    np.testing.assert_allclose(found.values[:, left_out] - share[left_out], 0, atol=1e-6)
    inside = found.values[:, ~left_out]
    assert ((inside > 0) & (inside < 1)).all()
    assert inside.std(axis=0).min() > 0


def test_values_are_those_of_the_model_in_python(toy):
    data = dataclasses.replace(toy(), paired=False, meta={"task": "imputation"})
    found = fitted("sailerx", data).prediction
    layers = {
        name: anndata.AnnData(
            layer.counts, pd.DataFrame(index=layer.cells), layer.features, obsm=dict(layer.reps)
        )
        for name, layer in data.layers.items()
    }
    model = Sailerx(layers, seed=0, device="cpu", **QUICK)
    model.train()
    expected = model.impute()
    table = pd.DataFrame(found.values, found.cells, found.features)
    np.testing.assert_allclose(
        table.loc[expected.index, expected.columns].to_numpy(), expected.to_numpy(), atol=1e-6
    )
