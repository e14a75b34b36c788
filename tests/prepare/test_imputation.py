"""The task imputation: what is hidden, what is asked, and what the input tells."""

from __future__ import annotations

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scbraid.conditions import DataCondition
from scbraid.data.check import check_files
from scbraid.data.layers import Layers, read_frame, read_matrix
from scbraid.errors import ConfigError
from scbraid.evaluate.answers import task_of_truth
from scbraid.prepare import asked_entries, hide_entries, prepare
from scbraid.prepare.imputation import MAX_ASKED_CELLS, MAX_ASKED_PEAKS, asked_of

from .conftest import META, make_layers, write_dataset


def run(dataset, folder, **settings):
    settings = {"n_top_genes": 50, "n_pcs": 10, "n_lsi": 8, "task": "imputation", **settings}
    done = prepare(dataset, folder / "input.h5mu", folder / "truth.parquet", name="toy", **settings)
    with h5py.File(done.solution_path) as file:
        cells, peaks = (read_frame(file[part]).index for part in ("obs", "var"))
        solution = pd.DataFrame(read_matrix(file["X"]).toarray(), cells, peaks)
    return Layers.read(done.input_path), pd.read_parquet(done.truth_path), solution


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_share_of_every_cell_is_hidden_and_one_entry_stays(share):
    rng = np.random.default_rng(0)
    drawn = rng.poisson(0.3, (80, 60)) * (rng.random(80) < 0.9)[:, None]
    drawn[3] = np.where(np.arange(60) == 5, 7, 0)
    counts = sp.csr_matrix(drawn)
    shown, hidden = hide_entries(counts, share, 4)
    dense = counts.toarray()
    assert (shown.toarray() == np.where(hidden.toarray(), 0, dense)).all()
    assert (dense[hidden.toarray()] > 0).all()
    sizes = (dense > 0).sum(axis=1)
    expected = [min(round(share * n), max(n - 1, 0)) for n in sizes.tolist()]
    assert hidden.getnnz(axis=1).tolist() == expected
    assert shown[3, 5] == 7
    # Another seed takes others, the same seed the same; the argument is left alone.
    again, other = hide_entries(counts, share, 4)[1], hide_entries(counts, share, 5)[1]
    assert (again != hidden).nnz == 0
    assert (other != hidden).nnz > 0
    assert (counts.toarray() == dense).all()


def test_entries_of_a_cell_are_hidden_with_equal_chance():
    counts = sp.csr_matrix(np.ones((4_000, 10)))
    share = hide_entries(counts, 0.3, 0)[1].mean(axis=0)
    np.testing.assert_allclose(share, 0.3, atol=0.03)


def test_input_and_solution_are_the_data_between_them(toy, tmp_path):
    data, truth, solution = run(toy, tmp_path, hidden_share=0.3)
    assert data.meta["task"] == "imputation"
    assert not data.paired
    original = Layers.read(toy)["atac"]
    atac = data["atac"]
    rows, columns = asked_entries(data)
    assert list(solution.index) == list(atac.cells[rows])
    assert list(solution.columns) == list(atac.features.index[columns])
    origin = truth[truth["modality"] == "atac"].set_index("cell")["origin"][solution.index]
    at = np.ix_(
        pd.Index(original.cells).get_indexer(origin),
        original.features.index.get_indexer(solution.columns),
    )
    before = original.counts.toarray()[at]
    given = atac.counts.toarray()[np.ix_(rows, columns)]
    np.testing.assert_array_equal(solution > 0, before > 0)
    np.testing.assert_array_equal(given, np.where(solution == 1, 0, before))
    hidden = (solution == 1).to_numpy().sum() / (solution > 0).to_numpy().sum()
    assert hidden == pytest.approx(0.3, abs=0.02)
    # The other layer is whole, under the same names.
    assert set(data["rna"].cells) == set(atac.cells)
    assert task_of_truth(tmp_path / "truth.parquet") == "imputation"
    assert "split" not in truth


def test_the_input_holds_nothing_of_what_is_hidden(toy, tmp_path):
    _, truth, solution = run(toy, tmp_path)
    before = (tmp_path / "input.h5mu").read_bytes()
    # Other counts in the hidden entries: the same input, to the byte.
    layers = make_layers()
    X, obs, var = layers["atac"]
    X = X.tolil()
    origin = truth[truth["modality"] == "atac"].set_index("cell")["origin"]
    for cell, peaks in solution.iterrows():
        for peak in peaks.index[peaks == 1]:
            X[obs.index.get_loc(origin[cell]), var.index.get_loc(peak)] = 9
    layers["atac"] = (X.tocsr(), obs, var)
    (tmp_path / "other").mkdir()
    run(write_dataset(tmp_path / "other.h5mu", layers, META), tmp_path / "other")
    assert (tmp_path / "other" / "input.h5mu").read_bytes() == before


def test_neither_seed_nor_labels_stand_in_the_input(toy, tmp_path):
    data, _, _ = run(toy, tmp_path, hidden_seed=7)
    assert "hidden_seed" not in str(data.meta)
    first = (tmp_path / "input.h5mu").read_bytes()
    layers = {
        name: (X, obs.drop(columns=list(obs)), var) for name, (X, obs, var) in make_layers().items()
    }
    run(write_dataset(tmp_path / "bare.h5mu", layers, META), tmp_path, hidden_seed=7)
    assert (tmp_path / "input.h5mu").read_bytes() == first


def test_atac_alone_needs_no_pairs(tmp_path):
    layers = {"atac": make_layers()["atac"]}
    path = write_dataset(tmp_path / "alone.h5mu", layers, {**META, "paired": False})
    data, _, solution = run(path, tmp_path)
    assert data.names == ["atac"]
    assert (solution == 1).to_numpy().any()


def test_what_cannot_be_hidden_is_refused(toy, tmp_path):
    layers = make_layers()
    unpaired = write_dataset(tmp_path / "unpaired.h5mu", layers, {**META, "paired": False})
    with pytest.raises(ConfigError, match="is not paired"):
        run(unpaired, tmp_path)
    with pytest.raises(ConfigError, match="needs counts of atac; found rna"):
        run(toy, tmp_path, layers=("rna",))
    with pytest.raises(ConfigError, match=r"hidden_share=0\.0001 hides no open peak"):
        run(toy, tmp_path, hidden_share=0.0001)
    with pytest.raises(ConfigError, match="stay on disk, where no entries can be hidden"):
        run(toy, tmp_path, backed=True)


def test_the_check_of_files_accepts_the_input(toy, tmp_path):
    run(toy, tmp_path)
    assert [f.message for f in check_files([tmp_path / "input.h5mu"]) if f.level == "error"] == []


def test_a_part_of_large_data_is_asked():
    cells, peaks = asked_of(5_000, 40_000)
    assert list(cells) == list(range(MAX_ASKED_CELLS))
    assert len(np.unique(peaks)) == MAX_ASKED_PEAKS
    assert (np.diff(peaks) > 0).all()
    assert peaks.max() > 39_000
    cells, peaks = asked_of(30, 20)
    assert (len(cells), len(peaks)) == (30, 20)


def test_settings_of_other_tasks_do_not_stand_in_the_slug():
    assert DataCondition.parse("imputation+hidden_share=0.2").slug == "imputation"
    assert DataCondition.parse("imputation+hidden_seed=2").slug == "imputation+hidden_seed=2"
    assert DataCondition(task="paired", hidden_share=0.5).slug == "paired"
