from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from scbraid import plots
from scbraid.errors import DataError
from scbraid.methods.output import write_embedding
from scbraid.plots import embeddings
from scbraid.plots.embeddings import best_seeds, cosine_neighbors, read_embedding, umap_panels


def test_neighbours_are_those_of_brute_force():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(1500, 7)).astype(np.float32)  # more than one tile
    indices, distances = cosine_neighbors(X, 6)
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    full = 1 - unit @ unit.T
    np.fill_diagonal(full, -1)
    expected = np.argsort(full, axis=1, kind="stable")[:, :6]
    assert (indices[:, 0] == np.arange(len(X))).all()
    np.testing.assert_allclose(
        distances, np.clip(np.take_along_axis(full, expected, axis=1), 0, None), atol=1e-6
    )
    assert (indices == expected).mean() > 0.999


def test_equal_cells_and_zero_rows_have_neighbours_too():
    X = np.zeros((5, 3), dtype=np.float32)
    X[:3, 0] = 1
    indices, distances = cosine_neighbors(X, 3)
    assert indices[:3].tolist() == [[0, 1, 2], [1, 0, 2], [2, 0, 1]]
    assert distances[:3].max() == 0
    assert indices[4, 0] == 4
    assert distances[4, 1:].tolist() == [1, 1]


@pytest.mark.slow
def test_umap_is_deterministic_and_separates_clusters():
    rng = np.random.default_rng(0)
    groups = np.repeat([0, 1], 60)
    X = rng.normal(size=(120, 5)) + 8 * np.eye(2, 5)[groups]
    X[7] = np.nan
    first, second = plots.umap_coordinates(X), plots.umap_coordinates(X)
    assert first.shape == (120, 2)
    assert np.isnan(first[7]).all()
    np.testing.assert_array_equal(first, second)
    kept = np.isfinite(first).all(axis=1)
    centres = np.array([first[kept & (groups == g)].mean(axis=0) for g in (0, 1)])
    radius = np.linalg.norm(first[kept] - centres[groups[kept]], axis=1).mean()
    assert np.linalg.norm(centres[0] - centres[1]) > 2 * radius
    assert not np.array_equal(first[kept], plots.umap_coordinates(X, seed=1)[kept])


@pytest.mark.slow
@pytest.mark.parametrize("n", [4, 16, 25])
def test_umap_of_a_handful_of_cells(n):
    X = np.random.default_rng(0).normal(size=(n, 3))
    assert np.isfinite(plots.umap_coordinates(X)).all()


def test_umap_refuses_what_it_cannot_lay_out():
    with pytest.raises(DataError, match=r"at least 4 cells without missing values. Got 3 of 5"):
        plots.umap_coordinates(np.array([[1.0], [2.0], [3.0], [np.nan], [np.inf]]))
    with pytest.raises(DataError, match=r"Got \(3,\)"):
        plots.umap_coordinates(np.zeros(3))


def scores(rows):
    columns = ["method", "seed", "metric", "value", "status"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(
        dataset="d", condition="unpaired@corrupt_rate=0.2", preset="", definition="v"
    )


def test_the_best_seed_has_the_highest_sum():
    table = scores(
        [
            *(("a", s, "cell_type_asw", v, "ok") for s, v in enumerate((0.5, 0.7, 0.6))),
            *(("a", s, "omics_asw", v, "ok") for s, v in enumerate((0.9, 0.6, 0.8))),
            *(("a", s, "map", 9.0, "ok") for s in range(3)),
            ("b", 0, "cell_type_asw", None, "failed"),
            ("b", 1, "cell_type_asw", 0.1, "ok"),
            ("b", 1, "omics_asw", 0.1, "ok"),
            ("c", 0, "cell_type_asw", None, "timeout"),
        ]
    )
    found = best_seeds(table).set_index("method_id")
    # 1.4 at seed 0 and 2, 1.3 at seed 1: of equal ones the lowest.
    assert found.loc["a", "seed"] == 0
    assert found.loc["a", "criterion_value"] == pytest.approx(1.4)
    assert found.loc["a", "criterion"] == "cell_type_asw + omics_asw"
    assert found.loc["b", "seed"] == 1
    assert pd.isna(found.loc["c", "seed"])
    assert found.loc["c", "status"] == "timeout"


def test_without_the_metrics_it_is_the_lowest_finished_seed():
    table = scores([("a", 0, "map", None, "failed"), ("a", 2, "map", 0.1, "ok"),
                    ("a", 1, "map", 0.9, "ok")])  # fmt: skip
    row = best_seeds(table).iloc[0]
    assert (row["seed"], row["criterion"]) == (1, "lowest seed")


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Two methods on 12 + 12 cells, one run failed; UMAPs are replaced by the first columns."""
    monkeypatch.setattr(embeddings, "umap_coordinates", lambda values, seed: values[:, :2])
    rng = np.random.default_rng(0)
    names = {m: np.array([f"{m}-{i:06d}" for i in range(12)]) for m in ("rna", "atac")}
    truth = pd.DataFrame(
        {
            "modality": np.repeat(["rna", "atac"], 12),
            "cell": np.concatenate(list(names.values())),
            "cell_type": [f"type {i % 3}" for i in range(24)],
            "batch": None,
        }
    ).sample(frac=1, random_state=0)
    folder = tmp_path / "prepared" / "d" / "unpaired"
    folder.mkdir(parents=True)
    truth.to_parquet(folder / "truth.parquet")
    rows, runs = [], []
    for method, condition in (("glue", "unpaired@corrupt_rate=0.2"), ("cca", "unpaired")):
        for seed in (0, 1):
            run = tmp_path / "runs" / "d" / condition / method / str(seed)
            run.mkdir(parents=True)
            ok = method == "cca" or seed == 1
            values = {m: rng.normal(size=(12, 4)) for m in names} if ok else {}
            write_embedding(run / "embedding.h5ad", names if ok else {}, values, f"X_{method}")
            status = {"dataset": "d", "condition": condition, "method": method, "seed": seed}
            (run / "status.json").write_text(json.dumps(status))
            runs.append(run)
            state = "ok" if ok else "failed"
            rows += [
                (method, seed, metric, 0.5 + seed / 10 if ok else None, state)
                for metric in ("cell_type_asw", "omics_asw")
            ]
    return tmp_path, scores(rows), runs, {("d", "unpaired"): folder / "truth.parquet"}


def test_panels_join_cells_and_labels_by_layer_and_name(results):
    root, table, runs, truths = results
    panels = {panel.method: panel for panel in umap_panels(runs, truths, table)}
    assert {name: panel.seed for name, panel in panels.items()} == {"cca": 1, "glue": 1}
    assert panels["cca"].note == "seed 1 of 2: best type ASW + omics ASW = 1.200"
    assert panels["glue"].note == "seed 1, the only one"
    # cca ignores the graph: its run stands under the data condition alone.
    obs, values = read_embedding(root / "runs" / "d" / "unpaired" / "cca" / "1" / "embedding.h5ad")
    np.testing.assert_array_equal(panels["cca"].coordinates, values[:, :2])
    assert panels["cca"].cells["cell"].tolist() == obs["cell"].tolist()
    truth = pd.read_parquet(truths["d", "unpaired"]).set_index(["modality", "cell"])["cell_type"]
    for row in panels["cca"].cells.itertuples():
        assert row.cell_type == truth[row.modality, row.cell]


def test_a_failed_method_keeps_its_row(results):
    _, table, runs, truths = results
    broken = table.assign(
        status=table["status"].where(table["method"] != "glue", "timeout"),
        value=table["value"].where(table["method"] != "glue"),
    )
    panels = umap_panels(runs, truths, broken)
    gone = next(panel for panel in panels if panel.method == "glue")
    assert gone.coordinates is None
    assert gone.note == "timeout"
    plots.umap_grid(panels)


def test_an_embedding_of_hardly_any_cell_is_told_instead_of_drawn(results):
    _, table, runs, truths = results
    names = {m: np.array([f"{m}-{i:06d}" for i in range(12)]) for m in ("rna", "atac")}
    values = {m: np.full((12, 4), np.nan) for m in names}
    values["rna"][:3] = 1.0
    for run in runs[2:]:
        write_embedding(run / "embedding.h5ad", names, values, "X_cca")
    panels = {panel.method: panel for panel in umap_panels(runs, truths, table)}
    assert panels["cca"].coordinates is None
    assert panels["cca"].note == "seed 1: fewer than 4 cells have coordinates"


def test_study_figure_from_files(results, tmp_path):
    root, table, runs, _ = results
    drawing = plots.draw_study_figure("umap_grid", None, scores=table, results=root, runs=runs)
    assert set(drawing.table["method"]) == {"glue", "cca"}
    assert len(drawing.table) == 48


def test_missing_runs_and_truth_of_other_cells_are_named(results, tmp_path):
    _, table, runs, truths = results
    with pytest.raises(DataError, match="no folder among the runs for cca, seed 1, on d"):
        umap_panels(runs[:2], truths, table)
    with pytest.raises(DataError, match=r"no truth table was given for d \(unpaired\)"):
        umap_panels(runs, {}, table)
    other = pd.read_parquet(truths["d", "unpaired"])
    other["cell"] = other["cell"].str.replace("rna", "x")
    other.to_parquet(tmp_path / "other.parquet")
    with pytest.raises(DataError, match="the truth does not know 12 cells of the embedding"):
        umap_panels(runs, {("d", "unpaired"): tmp_path / "other.parquet"}, table)


def test_joint_embeddings_have_one_row_a_cell(results, tmp_path):
    _, table, runs, truths = results
    truth = pd.read_parquet(truths["d", "unpaired"])
    truth["cell"] = truth["cell"].str[-6:]
    truth["cell_type"] = truth["cell"].map(lambda name: f"type {int(name) % 3}")
    truth.to_parquet(tmp_path / "joint.parquet")
    for run in runs:
        names = np.array([f"{i:06d}" for i in range(12)])
        values = np.random.default_rng(1).normal(size=(12, 3))
        write_embedding(run / "embedding.h5ad", {"joint": names}, {"joint": values}, "X_m")
    panels = umap_panels(runs, {("d", "unpaired"): tmp_path / "joint.parquet"}, table)
    assert panels[0].cells["cell_type"].tolist() == [f"type {i % 3}" for i in range(12)]
    figure = plots.umap_grid(panels).figure
    assert len(figure.axes) == 1 + 2  # no column by layer: there is only one


def test_files_that_are_no_embedding_are_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.h5ad cannot be read as an embedding"):
        read_embedding(tmp_path / "gone.h5ad")
    (tmp_path / "text.h5ad").write_text("no HDF5")
    with pytest.raises(DataError, match="run the method again"):
        read_embedding(tmp_path / "text.h5ad")
