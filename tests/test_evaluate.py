from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys

import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scbraid.errors import ContractError, DataError, UnknownNameError
from scbraid.evaluate import (
    SCORE_COLUMNS,
    add_score_arguments,
    collect,
    evaluate,
    match,
    read_embedding,
    read_truth,
    run_score,
)
from scbraid.guidance.graph import Guidance
from scbraid.metrics import METRICS, benchmark_metrics, default_metrics, foscttm, ilisi, score
from scbraid.metrics.aggregate import read_minmax

N, N_GENES, N_PEAKS = 60, 8, 12


def write_h5ad(target, obs, obsm, X=None, var=None, uns=None):
    """Write the parts of the AnnData format that the pipeline uses."""

    def frame(node, index, columns):
        node.attrs["_index"] = "_index"
        node.attrs["encoding-type"] = "dataframe"
        node.attrs.create("column-order", list(columns), dtype=h5py.string_dtype())
        node.create_dataset("_index", data=np.asarray(index, object), dtype=h5py.string_dtype())
        for name, values in columns.items():
            values = np.asarray(values)
            if values.dtype.kind in "OU":
                column = node.create_group(name)
                levels, codes = np.unique(values.astype(str), return_inverse=True)
                column.create_dataset("codes", data=codes.astype(np.int8))
                column.create_dataset(
                    "categories", data=levels.astype(object), dtype=h5py.string_dtype()
                )
            else:
                node.create_dataset(name, data=values)

    index, columns = obs
    frame(target.create_group("obs"), index, columns)
    var = [] if var is None else var
    frame(target.create_group("var"), var, {})
    for key, values in obsm.items():
        target.create_dataset(f"obsm/{key}", data=values)
    if X is None:
        target.create_dataset("X", data=np.zeros((len(index), 0), np.float32))
    else:
        node = target.create_group("X")
        node.attrs["encoding-type"] = "csr_matrix"
        node.attrs["shape"] = X.shape
        for part in ("data", "indices", "indptr"):
            node.create_dataset(part, data=getattr(X, part))
    if uns is not None:
        target.create_dataset("uns/scbraid", data=json.dumps(uns))


@dataclasses.dataclass
class Bench:
    """Files of one run on paired, blinded data, and the arrays behind them."""

    folder: object
    run: object
    truth: object
    input: object
    guidance: object
    cells: dict
    embeddings: dict
    types: dict
    pair: dict

    def rewrite(self, **changes):
        cells = changes.get("cells", self.cells)
        embeddings = changes.get("embeddings", self.embeddings)
        with h5py.File(self.run / "embedding.h5ad", "w") as file:
            names = [(name, cell) for name, part in cells.items() for cell in part]
            write_h5ad(
                file,
                ([cell for _, cell in names], {"modality": [name for name, _ in names]}),
                {"X_glue": np.concatenate(list(embeddings.values()))},
            )

    def status(self, **fields):
        content = {
            "status": "ok",
            "reason": "",
            "seconds": 1.0,
            "seed": 3,
            "method": "glue",
            "preset": "default",
            "dataset": "toy",
            "condition": "unpaired",
        }
        (self.run / "status.json").write_text(json.dumps(content | fields))


@pytest.fixture
def bench(tmp_path) -> Bench:
    rng = np.random.default_rng(0)
    types = rng.integers(3, size=N)
    latent = 3 * rng.normal(size=(3, 6))[types] + rng.normal(size=(N, 6))
    order = {name: rng.permutation(N) for name in ("rna", "atac")}
    cells = {name: np.array([f"{name}-{i:04d}" for i in range(N)]) for name in order}
    embeddings = {
        name: (latent[rows] + 0.3 * rng.normal(size=(N, 6))).astype(np.float32)
        for name, rows in order.items()
    }
    run = tmp_path / "runs" / "toy" / "unpaired" / "glue" / "3"
    run.mkdir(parents=True)
    named = {name: np.array([f"type {t}" for t in types[rows]]) for name, rows in order.items()}
    made = Bench(
        tmp_path,
        run,
        tmp_path / "truth.parquet",
        tmp_path / "input.h5mu",
        tmp_path / "guidance.npz",
        cells,
        embeddings,
        named,
        order,
    )
    made.rewrite()
    made.status()
    pd.concat(
        [
            pd.DataFrame(
                {
                    "modality": name,
                    "cell": cells[name],
                    "origin": [f"o{i}" for i in rows],
                    "pair": rows.astype(np.int64),
                    "cell_type": named[name],
                    "batch": None,
                    "scored": True,
                }
            )
            for name, rows in order.items()
        ]
    ).sample(frac=1, random_state=0).to_parquet(made.truth)
    genes = [f"g{i}" for i in range(N_GENES)]
    peaks = [f"p{i}" for i in range(N_PEAKS)]
    with h5py.File(made.input, "w") as file:
        mod = file.create_group("mod")
        mod.attrs["mod-order"] = np.array(["rna", "atac"], object)
        for name, features, rep in (("rna", genes, "X_pca"), ("atac", peaks, "X_lsi")):
            rows = order[name][::-1]  # another order than the embedding's
            counts = rng.poisson(np.exp(0.3 * latent[rows][:, : len(features) // 2].repeat(2, 1)))
            write_h5ad(
                mod.create_group(name),
                (cells[name][::-1], {}),
                {rep: latent[rows] + 0.1 * rng.normal(size=(N, 6)), "X_other": np.zeros((N, 2))},
                sparse.csr_matrix(counts.astype(np.float32)),
                features,
            )
        uns = {
            "task": "unpaired",
            "layers": {
                "rna": {"rep": "X_pca", "likelihood": "nb"},
                "atac": {"rep": "X_lsi", "likelihood": "nb"},
            },
        }
        file.create_dataset("uns/scbraid", data=json.dumps(uns))
    names = [*genes, *peaks]
    ends = np.arange(N_GENES)
    Guidance(
        np.array(names),
        np.array(["rna"] * N_GENES + ["atac"] * N_PEAKS),
        np.ones(20, bool),
        np.r_[ends, ends + N_GENES, np.arange(20)],
        np.r_[ends + N_GENES, ends, np.arange(20)],
        np.ones(36),
        np.ones(36),
        np.zeros(36),
        np.array(["fwd"] * 8 + ["rev"] * 8 + ["loop"] * 20),
        np.array(["distance"] * 36),
    ).save(made.guidance)
    return made


def by_metric(table):
    return table.set_index("metric")


def test_a_run_is_scored_in_full(bench):
    table = evaluate(bench.run, bench.truth, bench.input, bench.guidance)
    assert tuple(table.columns) == SCORE_COLUMNS
    assert list(table["metric"]) == benchmark_metrics()
    written = pd.read_parquet(bench.run / "scores.parquet")
    pd.testing.assert_frame_equal(written, table, check_dtype=False)
    assert written["value"].dtype == np.float64
    assert set(table["dataset"]) == {"toy"}
    assert set(table["seed"]) == {3}
    found = by_metric(table)
    skipped = {"feature_consistency", "integration_consistency_100", "integration_consistency_200"}
    by_batch = {name for name in benchmark_metrics() if "batches" in METRICS[name].needs}
    assert set(found.index[found["status"] != "ok"]) == skipped | by_batch
    assert set(found.loc[list(by_batch), "reason"]) == {"layer 'rna' has no batches"}
    assert found.loc["feature_consistency", "reason"] == "the run has no feature embedding"
    assert found.loc["nan_cells", "value"] == 0.0
    order = [np.argsort(bench.pair[name]) for name in ("rna", "atac")]
    expected = foscttm(bench.embeddings["rna"][order[0]], bench.embeddings["atac"][order[1]])
    assert found.loc["foscttm", "value"] == expected
    assert found.loc["foscttm", "n_cells"] == N
    assert found.loc["neighbor_conservation", "value"] > 0.2
    assert found.loc["integration_consistency_10", "value"] > 0.2
    again = evaluate(bench.run, bench.truth, bench.input, bench.guidance)
    assert list(again["value"].dropna()) == list(table["value"].dropna())


def test_what_is_not_given_does_not_apply(bench):
    found = by_metric(evaluate(bench.run, bench.truth))
    assert found.loc["neighbor_conservation", "status"] == "not_applicable"
    assert found.loc["integration_consistency", "reason"] == "no raw counts were given"
    found = by_metric(evaluate(bench.run, bench.truth, bench.input))
    assert found.loc["neighbor_conservation", "status"] == "ok"


def test_aggregates_stand_for_their_metrics_and_names_are_checked(bench):
    table = evaluate(bench.run, bench.truth, bench.input, metrics=["overall", "foscttm", "map"])
    assert list(table["metric"]) == [
        "map",
        "cell_type_asw",
        "neighbor_conservation",
        "seurat_alignment",
        "omics_asw",
        "graph_connectivity",
        "foscttm",
    ]
    table = evaluate(bench.run, bench.truth, metrics=["foscttm", "benchmark", "kbet_label"])
    assert set(table["metric"]) == {*benchmark_metrics(), "kbet_label"}
    with pytest.raises(UnknownNameError, match="did you mean 'foscttm'"):
        evaluate(bench.run, bench.truth, metrics=["fosctm"])


def test_batches_course_and_cycle_are_taken_from_the_truth(bench):
    truth = pd.read_parquet(bench.truth)
    rng = np.random.default_rng(4)
    batch = dict(zip(truth["pair"].unique(), rng.choice(["u", "v"], N), strict=True))
    truth["batch"] = truth["pair"].map(batch)
    truth["pseudotime"] = truth["pair"] / N
    truth["S_score"], truth["G2M_score"] = rng.normal(size=(2, len(truth)))
    truth.loc[truth["cell"] == "rna-0000", ["pseudotime", "S_score"]] = np.nan
    truth.to_parquet(bench.truth)
    names = ["ilisi", "kbet", "trajectory_conservation", "cell_cycle_conservation"]
    found = by_metric(evaluate(bench.run, bench.truth, bench.input, metrics=names))
    assert set(found["status"]) == {"ok"}
    X = np.concatenate(list(bench.embeddings.values()))
    batches = [batch[pair] for name in ("rna", "atac") for pair in bench.pair[name]]
    assert found.loc["ilisi", "value"] == pytest.approx(ilisi(X, batches), abs=1e-12)
    assert found.loc["trajectory_conservation", "n_cells"] == 2 * N - 1
    assert found.loc["cell_cycle_conservation", "n_cells"] == 2 * N - 1
    # A cell without batch: nothing is guessed.
    truth.loc[truth["cell"] == "atac-0003", "batch"] = None
    truth.to_parquet(bench.truth)
    found = by_metric(evaluate(bench.run, bench.truth, bench.input, metrics=names))
    assert found.loc["ilisi", "reason"] == "layer 'atac' has 1 scored cells without batches"
    truth["batch"] = "one"
    truth.to_parquet(bench.truth)
    found = by_metric(evaluate(bench.run, bench.truth, bench.input, metrics=names))
    assert found.loc["ilisi", "reason"] == "there is one batch only"


def test_a_failed_run_keeps_its_status_in_every_row(bench):
    bench.status(status="out_of_memory", reason="stopped at 9,000 MiB")
    (bench.run / "embedding.h5ad").unlink()
    table = evaluate(bench.run, bench.truth, out_path=bench.folder / "failed.parquet")
    assert set(table["status"]) == {"out_of_memory"}
    assert table["value"].isna().all()
    assert set(table["reason"]) == {"stopped at 9,000 MiB"}
    assert len(pd.read_parquet(bench.folder / "failed.parquet")) == len(benchmark_metrics())


def test_options_are_part_of_the_method(bench):
    other = bench.run.parents[1] / "glue.paper+latent_dim=20" / "3"
    other.parent.mkdir()
    bench.run.rename(other)
    bench.run = other
    bench.status(preset="paper")
    table = evaluate(other, bench.truth, metrics=["foscttm"])
    assert tuple(table.loc[0, ["method", "preset"]]) == ("glue+latent_dim=20", "paper")


def test_cells_without_coordinates_are_removed_and_counted(bench):
    bench.embeddings["rna"][:6] = np.nan
    bench.embeddings["atac"][0, 2] = np.inf
    bench.rewrite()
    found = by_metric(evaluate(bench.run, bench.truth, bench.input))
    assert found.loc["nan_cells", "value"] == 7 / (2 * N)
    assert found.loc["map", "n_cells"] == 2 * N - 7
    # A pair with a cell removed on either side is no pair.
    lost = {*bench.pair["rna"][:6], bench.pair["atac"][0]}
    assert found.loc["foscttm", "n_cells"] == N - len(lost)
    assert (found.loc[["foscttm", "map", "neighbor_conservation"], "status"] == "ok").all()
    bench.embeddings["rna"][:] = np.nan
    bench.rewrite()
    found = by_metric(evaluate(bench.run, bench.truth, bench.input))
    assert found.loc["foscttm", "status"] == "not_applicable"
    assert found.loc["nan_cells", "value"] == (N + 1) / (2 * N)


def test_only_scored_cells_with_a_label_are_used(bench):
    truth = pd.read_parquet(bench.truth)
    truth.loc[truth["cell_type"] == "type 0", "scored"] = False
    truth.loc[truth["cell"] == "rna-0001", "cell_type"] = None
    truth.to_parquet(bench.truth)
    table = evaluate(bench.run, bench.truth, bench.input)
    keep = {
        name: (types != "type 0") & (bench.cells[name] != "rna-0001")
        for name, types in bench.types.items()
    }
    found = by_metric(table)
    assert found.loc["map", "n_cells"] == keep["rna"].sum() + keep["atac"].sum()
    assert found.loc["neighbor_conservation", "n_cells"] == found.loc["map", "n_cells"]
    rows = {name: {p: i for i, p in enumerate(bench.pair[name]) if keep[name][i]} for name in keep}
    both = sorted(set(rows["rna"]) & set(rows["atac"]))
    expected = foscttm(*(bench.embeddings[n][[rows[n][p] for p in both]] for n in ("rna", "atac")))
    assert found.loc["foscttm", "value"] == expected


def test_data_without_labels_or_pairs(bench):
    truth = pd.read_parquet(bench.truth)
    truth.assign(cell_type=None, pair=-1).to_parquet(bench.truth)
    found = by_metric(evaluate(bench.run, bench.truth, bench.input))
    assert found.loc["map", "reason"] == "layer 'rna' has no cell types"
    assert found.loc["foscttm", "reason"].startswith("the data set has no cell that was measured")
    assert found.loc["seurat_alignment", "status"] == "ok"
    assert found.loc["neighbor_conservation", "n_cells"] == 2 * N
    truth.loc[truth["modality"] == "atac", "cell_type"] = None
    truth.to_parquet(bench.truth)
    found = by_metric(evaluate(bench.run, bench.truth))
    assert found.loc["map", "reason"] == "layer 'atac' has no cell types"
    assert found.loc["foscttm", "n_cells"] == N


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"layer 'rna' of the embedding lacks 2 cells \('rna-0000', 'rna-0001'\)"),
        ("extra", r"lacks 1 cell \('rna-0000'\) of the truth and has 1 cell \('x'\)"),
        ("twice", r"names 1 cell \('rna-0001'\) more than once"),
        ("layer", r"lacks the layer 'atac'; it has: rna; the truth has"),
        ("unknown layer", r"does not know: 'met'"),
    ],
)
def test_cells_that_disagree_are_named(bench, change, message):
    cells, embeddings = dict(bench.cells), dict(bench.embeddings)
    if change == "missing":
        cells["rna"], embeddings["rna"] = cells["rna"][2:], embeddings["rna"][2:]
    elif change in ("extra", "twice"):
        cells["rna"] = np.r_[["x" if change == "extra" else "rna-0001"], cells["rna"][1:]]
    elif change == "layer":
        del cells["atac"], embeddings["atac"]
    else:
        cells["met"], embeddings["met"] = cells["rna"], embeddings["rna"]
    bench.rewrite(cells=cells, embeddings=embeddings)
    with pytest.raises(ContractError, match=message) as raised:
        evaluate(bench.run, bench.truth)
    assert "while scoring" in raised.value.__notes__[0]


def test_broken_runs_are_named(bench):
    bench.status(status="fine")
    with pytest.raises(DataError, match="status is 'fine'; expected one of ok, failed"):
        evaluate(bench.run, bench.truth)
    (bench.run / "status.json").unlink()
    with pytest.raises(DataError, match=r"no status\.json"):
        evaluate(bench.run, bench.truth)
    bench.status()
    bench.rewrite(cells={}, embeddings={"rna": np.zeros((0, 0), np.float32)})
    with pytest.raises(ContractError, match="holds no cell"):
        evaluate(bench.run, bench.truth)
    (bench.run / "embedding.h5ad").write_bytes(b"cut short")
    with pytest.raises(DataError, match=r"embedding\.h5ad cannot be read as HDF5"):
        evaluate(bench.run, bench.truth)


def test_inputs_that_do_not_suit_are_said(bench):
    with h5py.File(bench.input, "a") as file:
        file["mod/atac/X/data"][0] = 0.5
    found = by_metric(evaluate(bench.run, bench.truth, bench.input, bench.guidance))
    assert found.loc["integration_consistency", "reason"] == (
        "layer 'atac' does not hold raw counts"
    )
    with h5py.File(bench.input, "a") as file:
        del file["mod/rna/obsm/X_pca"]
    found = by_metric(evaluate(bench.run, bench.truth, bench.input))
    assert (
        "no own space (X_pca, X_lsi) of layer 'rna'"
        in (found.loc["neighbor_conservation", "reason"])
    )
    with h5py.File(bench.input, "a") as file:
        del file["mod/rna"]
    with pytest.raises(ContractError, match="has no layer 'rna'; it has: atac"):
        evaluate(bench.run, bench.truth, bench.input)


def test_guidance_of_other_features_is_named(bench):
    guidance = Guidance.load(bench.guidance)
    names = guidance.features.astype(object)
    names[0] = "MALAT1"
    dataclasses.replace(guidance, features=names.astype(str)).save(bench.guidance)
    with pytest.raises(DataError, match=r"1 rna features that the input lacks.*'MALAT1'"):
        evaluate(bench.run, bench.truth, bench.input, bench.guidance)


def test_feature_consistency_matches_features_by_name(bench):
    rng = np.random.default_rng(0)
    F = rng.normal(size=(20, 4)).astype(np.float32)
    names = np.array([f"g{i}" for i in range(20)])
    layer = np.repeat(["rna", "atac"], 10)
    np.savez(bench.run / "features.npz", feature=names, layer=layer, embedding=F)
    other = bench.folder / "reference"
    other.mkdir()
    order = rng.permutation(20)[:15]
    np.savez(other / "features.npz", feature=names[order], layer=layer[order], embedding=F[order])
    table = evaluate(bench.run, bench.truth, reference_run=other, metrics=["feature_consistency"])
    assert table.loc[0, "value"] == pytest.approx(1.0)
    table = evaluate(bench.run, bench.truth, reference_run=bench.folder / "nowhere")
    assert by_metric(table).loc["feature_consistency", "reason"].startswith("the reference run has")
    np.savez(other / "features.npz", feature=names, layer=layer)
    with pytest.raises(DataError, match="lacks an array"):
        evaluate(bench.run, bench.truth, reference_run=other)


# --------------------------------------------------------------------------------------- collect


@pytest.fixture
def runs(bench):
    """Scores of three runs: good, better and failed."""
    files = []
    for seed, (noise, status) in enumerate([(2.0, "ok"), (0.0, "ok"), (0.0, "timeout")]):
        rng = np.random.default_rng(seed)
        noisy = {k: X + noise * rng.normal(size=X.shape) for k, X in bench.embeddings.items()}
        bench.rewrite(embeddings=noisy)
        bench.status(status=status, seed=seed, reason="" if status == "ok" else "too\tslow\n")
        files.append(bench.folder / f"{seed}.parquet")
        evaluate(bench.run, bench.truth, bench.input, out_path=files[-1])
    return files


def test_a_study_is_one_long_table(runs, tmp_path):
    out, minmax = tmp_path / "s.tsv", tmp_path / "s.minmax.tsv"
    table = collect(runs, "main", out, minmax)
    read = pd.read_csv(
        out, sep="\t", keep_default_na=False, na_values=[""], float_precision="round_trip"
    )
    assert list(read.columns) == [
        "study",
        "dataset",
        "condition",
        "method",
        "preset",
        "seed",
        "metric",
        "definition",
        "value",
        "status",
        "reason",
        "n_cells",
        "standard_error",
    ]
    assert len(read) == 3 * (len(benchmark_metrics()) + 3)
    assert (read["status"] == "ok").equals(read["value"].notna())
    np.testing.assert_array_equal(read["value"], table["value"])
    assert not read.duplicated(["dataset", "condition", "method", "preset", "seed", "metric"]).any()
    best = read[read["seed"] == 1].set_index("metric")
    assert (
        best.loc["overall", "value"]
        > read[read["seed"] == 0].set_index("metric").loc["overall", "value"]
    )
    failed = read[read["seed"] == 2].set_index("metric")
    assert failed["value"].isna().all()
    assert set(failed["reason"]) == {"too slow"}
    ranges = read_minmax(minmax)
    assert set(ranges["source"]) == {"main"}
    assert best.loc["bio", "definition"].startswith("minmax:main:")
    first = out.read_bytes()
    collect(runs, "main", out, minmax)
    assert out.read_bytes() == first


def test_a_frozen_table_scales_another_study(runs, tmp_path):
    frozen = tmp_path / "main.minmax.tsv"
    collect(runs[:2], "main", tmp_path / "main.tsv", frozen)
    table = collect(runs[:1], "sub", tmp_path / "sub.tsv", tmp_path / "sub.minmax.tsv", frozen)
    assert (tmp_path / "sub.minmax.tsv").read_bytes() == frozen.read_bytes()
    main = pd.read_csv(tmp_path / "main.tsv", sep="\t", float_precision="round_trip")
    main = main.query("seed == 0 and metric == 'overall'")
    sub = table.query("metric == 'overall'")
    assert sub["value"].iloc[0] == main["value"].iloc[0]
    assert sub["definition"].iloc[0] == main["definition"].iloc[0]


def test_a_study_chooses_its_rows(runs, tmp_path):
    table = collect(
        runs, "s", tmp_path / "s.tsv", tmp_path / "m.tsv", metrics=["overall", "foscttm"]
    )
    assert list(table["metric"]) == ["overall", "foscttm"] * 3
    table = collect(
        [runs[0], runs[0]],
        "s",
        tmp_path / "s.tsv",
        tmp_path / "m.tsv",
        metrics=["map"],
        conditions=["unpaired", "unpaired@corrupt_rate=0.2"],
    )
    assert list(table["condition"]) == ["unpaired", "unpaired@corrupt_rate=0.2"]
    with pytest.raises(UnknownNameError, match="unknown metric 'mapp'"):
        collect(runs, "s", tmp_path / "s.tsv", tmp_path / "m.tsv", metrics=["mapp"])


def test_files_that_cannot_be_collected_are_named(runs, tmp_path):
    out = (tmp_path / "s.tsv", tmp_path / "m.tsv")
    with pytest.raises(DataError, match=r"seed 0.*stands twice in study 's'"):
        collect([runs[0], runs[0]], "s", *out)
    with pytest.raises(DataError, match=r"absent.parquet does not exist; evaluate"):
        collect([tmp_path / "absent.parquet"], "s", *out)
    pd.DataFrame({"metric": ["map"]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(DataError, match="lacks the column 'dataset'"):
        collect([tmp_path / "other.parquet"], "s", *out)
    (tmp_path / "text.parquet").write_text("no")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        collect([tmp_path / "text.parquet"], "s", *out)
    assert not out[0].exists()
    assert len(collect([], "s", *out)) == 0


# ------------------------------------------------------------------------------ any embedding, CLI


def run_cli(*arguments):
    parser = argparse.ArgumentParser()
    add_score_arguments(parser)
    return run_score(parser.parse_args([str(argument) for argument in arguments]))


@pytest.fixture
def free(tmp_path):
    """An embedding of paired cells and its labels, outside of any pipeline."""
    rng = np.random.default_rng(0)
    cells = np.array([f"c{i}" for i in range(40)])
    types = np.array(["a", "b"])[np.arange(40) % 2]
    X = rng.normal(size=(40, 3)) + 4.0 * (types == "b")[:, None]
    embedding = {"rna": X, "atac": X + 0.1 * rng.normal(size=X.shape)}
    np.savez(tmp_path / "e.npz", cell=cells, **embedding)
    pd.DataFrame({"cell": cells, "cell_type": types}).to_csv(tmp_path / "t.tsv", sep="\t")
    return tmp_path, cells, types, embedding


def test_all_forms_of_an_embedding_give_the_same_scores(free, capsys):
    folder, cells, _, embedding = free
    with h5py.File(folder / "e.h5ad", "w") as file:
        write_h5ad(
            file,
            (np.r_[cells, cells], {"modality": ["rna"] * 40 + ["atac"] * 40}),
            {"X_pca": np.zeros((80, 2)), "X_m": np.vstack(list(embedding.values()))},
        )
    with h5py.File(folder / "e.h5mu", "w") as file:
        for name, X in embedding.items():
            write_h5ad(file.create_group(f"mod/{name}"), (cells, {}), {"X_m": X})
    table = pd.concat(
        [
            pd.DataFrame(X, columns=["d0", "d1", "d2"]).assign(cell=cells, modality=name)
            for name, X in embedding.items()
        ]
    )
    table.to_parquet(folder / "e.parquet")
    table.to_csv(folder / "e.tsv", sep="\t", index=False)
    np.savez(folder / "own.npz", cell_rna=cells, cell_atac=cells, **embedding)
    outcomes = []
    for file in ("e.npz", "e.h5ad", "e.h5mu", "e.parquet", "e.tsv", "own.npz"):
        key = ["--obsm-key", "X_m"] if file == "e.h5ad" else []
        assert (
            run_cli(
                "--embedding",
                folder / file,
                "--truth",
                folder / "t.tsv",
                *key,
                "--metrics",
                "foscttm,map,nmi",
                "--output",
                folder / "o.json",
            )
            == 0
        )
        outcomes.append([row["value"] for row in json.loads((folder / "o.json").read_text())])
    for outcome in outcomes[1:]:
        assert outcome == pytest.approx(outcomes[0], abs=1e-9)
    assert outcomes[0][0] == foscttm(*embedding.values())
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split()[:3] == ["foscttm", f"{outcomes[0][0]:.4f}", "40"]
    assert shown[0].endswith("foscttm@strict-n")


def test_all_forms_of_truth_give_the_same_rows(free):
    folder, cells, types, _ = free
    with h5py.File(folder / "t.h5ad", "w") as file:
        write_h5ad(file, (cells, {"cell_type": types}), {})
    with h5py.File(folder / "t.h5mu", "w") as file:
        for name in ("rna", "atac"):
            write_h5ad(file.create_group(f"mod/{name}"), (cells, {"cell_type": types}), {})
    pd.DataFrame(
        {
            "modality": np.repeat(["rna", "atac"], 40),
            "cell": np.r_[cells, cells],
            "pair": np.r_[0:40, 0:40],
            "cell_type": np.r_[types, types],
        }
    ).to_parquet(folder / "t.parquet")
    (folder / "many").mkdir()
    for name in ("rna", "atac"):
        with h5py.File(folder / "many" / f"{name}.h5ad", "w") as file:
            write_h5ad(file, (cells, {"cell_type": types}), {})
    embedding = read_embedding(folder / "e.npz")
    expected = None
    for file in ("t.tsv", "t.h5ad", "t.h5mu", "t.parquet", "many"):
        truth = read_truth(folder / file, ["rna", "atac"])
        values = [one.value for one in score(match(embedding, truth), ["foscttm", "map"])]
        expected = expected or values
        assert values == expected
    with h5py.File(folder / "t.h5mu", "a") as file:
        file.create_dataset("uns/scbraid", data=json.dumps({"paired": False}))
    unpaired = read_truth(folder / "t.h5mu", ["rna", "atac"])
    assert (unpaired["pair"] == -1).all()


def test_joint_embeddings_have_one_layer(free):
    folder, cells, _, embedding = free
    with h5py.File(folder / "joint.h5ad", "w") as file:
        write_h5ad(file, (cells, {}), {"X_joint": embedding["rna"]})
    assert (
        run_cli(
            "--embedding",
            folder / "joint.h5ad",
            "--truth",
            folder / "t.tsv",
            "--output",
            folder / "o.tsv",
        )
        == 0
    )
    found = by_metric(pd.read_csv(folder / "o.tsv", sep="\t"))
    assert list(found.index) == default_metrics()
    assert found.loc["map", "value"] > 0.9
    assert found.loc["nmi_scan", "value"] > 0.9
    assert found.loc["foscttm", "reason"] == "there is one layer only"
    # A value, or why there is none.
    assert (found["status"] == "ok").equals(found["value"].notna())
    assert (found["status"] == "ok").equals(found["reason"].isna())
    assert set(found["status"]) == {"ok", "not_applicable"}


def test_labels_can_be_named_and_ignored(free):
    folder, cells, types, _ = free
    fine = np.where(np.arange(40) < 10, "odd", types)
    pd.DataFrame({"cell": cells, "fine": fine}).to_csv(folder / "f.tsv", sep="\t", index=False)
    run_cli(
        "--embedding",
        folder / "e.npz",
        "--truth",
        folder / "f.tsv",
        "--label-key",
        "fine",
        "--ignore-labels",
        "odd, none",
        "--metrics",
        "map",
        "--output",
        folder / "o.parquet",
    )
    assert pd.read_parquet(folder / "o.parquet").loc[0, "n_cells"] == 60
    with pytest.raises(DataError, match="no column 'plate'; it has: cell, fine"):
        run_cli(
            *("--embedding", folder / "e.npz", "--truth", folder / "f.tsv"),
            *("--label-key", "fine", "--batch-key", "plate"),
        )
    pd.DataFrame({"cell": cells, "cell_type": types, "plate": np.arange(40) % 4 // 2}).to_csv(
        folder / "p.tsv", sep="\t", index=False
    )
    run_cli(
        *("--embedding", folder / "e.npz", "--truth", folder / "p.tsv", "--batch-key", "plate"),
        *("--metrics", "ilisi", "--output", folder / "o.parquet"),
    )
    assert pd.read_parquet(folder / "o.parquet").loc[0, "value"] > 0.5
    with pytest.raises(DataError, match="no column 'coarse'; it has: cell, fine"):
        run_cli(
            "--embedding", folder / "e.npz", "--truth", folder / "f.tsv", "--label-key", "coarse"
        )


def test_bad_embeddings_are_named(free):
    folder, cells, _, _ = free
    with h5py.File(folder / "two.h5ad", "w") as file:
        write_h5ad(file, (cells, {}), {"X_a": np.zeros((40, 2)), "X_b": np.zeros((40, 2))})
    np.savez(folder / "nocell.npz", rna=np.zeros((4, 2)))
    np.savez(folder / "short.npz", rna=np.zeros((4, 2)), cell=np.array(["a"]))
    np.savez(folder / "flat.npz", rna=np.zeros(4), cell=np.array(["a"] * 4))
    np.savez(folder / "object.npz", rna=np.array([None]))
    pd.DataFrame({"name": ["a"]}).to_csv(folder / "noname.tsv", sep="\t")
    pd.DataFrame({"cell": ["a"], "x": ["b"]}).to_csv(folder / "word.tsv", sep="\t", index=False)
    pd.DataFrame({"cell": ["a"]}).to_csv(folder / "nothing.tsv", sep="\t", index=False)
    (folder / "e.rds").write_text("")
    for file, message in {
        "two.h5ad": r"2 entries in obsm \(X_a, X_b\); name one",
        "nocell.npz": "names of the 4 cells of layer 'rna' in 'cell' or 'cell_rna'. Got None",
        "short.npz": r"Got \(1,\)",
        "flat.npz": "no two-dimensional array",
        "object.npz": "without objects",
        "noname.tsv": "no column 'cell'",
        "word.tsv": "columns x are no numbers",
        "nothing.tsv": "there is none",
        "e.rds": "suffix '.rds'",
        "absent.npz": "does not exist",
        "absent.h5ad": "does not exist",
        "absent.tsv": "does not exist",
    }.items():
        with pytest.raises(DataError, match=message):
            read_embedding(folder / file)
    with pytest.raises(DataError, match="no obsm entry 'X_c'; it has: X_a, X_b"):
        read_embedding(folder / "two.h5ad", "X_c")
    with pytest.raises(DataError, match="for h5ad and h5mu files"):
        read_embedding(folder / "e.npz", "X_c")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"name": ["a"]}, "no column 'cell'"),
        ({"cell": ["a", "a"], "cell_type": ["x", "y"]}, "names 2 cells of a layer twice"),
        ({"cell": ["a"], "scored": ["maybe"]}, "'scored' must be true or false. Got"),
        ({"cell": ["a"], "pair": ["first"]}, "'pair' must hold whole numbers.*Got 'first'"),
        ({"cell": ["a"], "pair": [0.5]}, "whole numbers"),
        ({"cell": ["a"], "pseudotime": ["late"]}, "'pseudotime' must hold numbers. Got 'late'"),
    ],
)
def test_bad_truth_is_named(tmp_path, columns, message):
    pd.DataFrame(columns).to_csv(tmp_path / "t.tsv", sep="\t", index=False)
    with pytest.raises(DataError, match=message):
        read_truth(tmp_path / "t.tsv", ["rna", "atac"])


def test_output_of_another_kind_is_refused(free):
    folder = free[0]
    with pytest.raises(DataError, match=r"suffix '\.xlsx'; expected \.parquet, \.tsv or \.json"):
        run_cli(
            "--embedding",
            folder / "e.npz",
            "--truth",
            folder / "t.tsv",
            "--metrics",
            "nan_cells",
            "--output",
            folder / "o.xlsx",
        )


def test_the_step_starts_quickly():
    heavy = [
        "sklearn",
        "scanpy",
        "anndata",
        "umap",
        "numba",
        "jax",
        "igraph",
        "torch",
        "matplotlib",
        "scipy.stats",
    ]
    code = (
        "import sys, time; t = time.process_time(); import scbraid.evaluate; "
        f"print(time.process_time() - t, [m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, loaded = done.stdout.split(maxsplit=1)
    assert loaded.strip() == "[]"
    assert float(seconds) < 1.5
