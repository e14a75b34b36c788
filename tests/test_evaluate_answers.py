"""Scores of predictions, matchings and joint embeddings, from files."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scbraid.data.layers import Layers, read_frame, read_matrix
from scbraid.data.simulate import preset, simulate
from scbraid.errors import ContractError, DataError, UnknownNameError
from scbraid.evaluate import collect, evaluate
from scbraid.evaluate.answers import answer_metrics, task_of_truth
from scbraid.files import write_json
from scbraid.methods.base import Matching, Prediction, held_out_cells
from scbraid.methods.output import write_embedding, write_matching, write_prediction
from scbraid.metrics import METRICS, Score
from scbraid.metrics.tasks import TASK_METRICS
from scbraid.metrics.tasks.derived import DERIVED_METRICS, JOINT_PARTS, joint_scores
from scbraid.prepare import prepare

SLUGS = {"prediction": "prediction+source=rna", "matching": "matching", "joint": "joint"}


@dataclasses.dataclass
class Place:
    """A prepared task and a folder for a run of it."""

    task: str
    data: Layers
    truth: pd.DataFrame
    folder: Path

    def score(self, run: Path, **options) -> pd.DataFrame:
        table = evaluate(run, self.folder / "truth.parquet", self.folder / "input.h5mu", **options)
        return table.set_index("metric")

    def run(self, path: Path, status: str = "ok", reason: str = "") -> Path:
        path.mkdir(parents=True, exist_ok=True)
        condition = SLUGS[self.task]
        names = {"dataset": "toy", "condition": condition, "method": "m", "preset": "default"}
        write_json(path / "status.json", {"status": status, "reason": reason, "seed": 0, **names})
        return path


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, Place]:
    root = tmp_path_factory.mktemp("tasks")
    settings = preset("batches").replace(n_genes=150, n_peaks=700, n_batches=2)
    simulate(settings, 200, 0, root / "dataset.h5mu")
    found = {}
    for task in SLUGS:
        folder = root / task
        folder.mkdir()
        prepare(
            root / "dataset.h5mu", folder / "input.h5mu", folder / "truth.parquet", name="toy",
            task=task, source="rna" if task == "prediction" else None, n_top_genes=100, n_pcs=20,
            n_lsi=20,
        )  # fmt: skip
        truth = pd.read_parquet(folder / "truth.parquet")
        found[task] = Place(task, Layers.read(folder / "input.h5mu"), truth, folder)
    return found


def solution(place: Place) -> Prediction:
    """The perfect prediction."""
    with h5py.File(place.folder / "solution.h5ad") as file:
        cells, features = (read_frame(file[part]).index for part in ("obs", "var"))
        values = read_matrix(file["X"]).toarray()
    return Prediction("atac", cells.to_numpy(str), features.to_numpy(str), values)


def true_matching(place: Place) -> Matching:
    held = held_out_cells(place.data)
    table = place.truth.set_index(["modality", "cell"])["pair"]
    first, second = (table.loc[name].loc[held[name]].to_numpy() for name in ("rna", "atac"))
    weights = sp.csr_matrix((first[:, None] == second[None, :]).astype(np.float32))
    return Matching(("rna", "atac"), (held["rna"], held["atac"]), weights, hard=True)


# -------------------------------------------------------------------------------------- prediction


def test_perfect_and_shifted_predictions(places, tmp_path):
    place = places["prediction"]
    perfect = solution(place)
    run = place.run(tmp_path)
    order = np.random.default_rng(0).permutation(len(perfect.cells))
    columns = np.random.default_rng(1).permutation(len(perfect.features))
    shuffled = Prediction(
        "atac",
        perfect.cells[order],
        perfect.features[columns],
        perfect.values[order][:, columns],
    )
    write_prediction(run / "prediction.h5ad", shuffled)
    found = place.score(run)
    assert list(found.index) == list(answer_metrics("prediction"))
    assert set(found["status"]) == {"ok"}
    assert found["value"]["rmse"] == found["value"]["mae"] == 0
    assert found["value"]["pearson_per_target"] == pytest.approx(1)
    assert (found["n_cells"] == 40).all()
    write_prediction(
        run / "prediction.h5ad", dataclasses.replace(perfect, values=perfect.values + 0.25)
    )
    found = place.score(run)
    assert found["value"]["rmse"] == pytest.approx(0.25)
    assert found["value"]["mae"] == pytest.approx(0.25)
    # The table of one metric alone, from a solution elsewhere.
    found = place.score(run, metrics=["mae"], solution_path=place.folder / "solution.h5ad")
    assert list(found.index) == ["mae"]
    assert found["definition"]["mae"] == TASK_METRICS["mae"].definition
    with pytest.raises(UnknownNameError, match="unknown metric of the task prediction 'foscttm'"):
        place.score(run, metrics=["foscttm"])


def test_a_prediction_of_other_cells_or_features_is_refused(places, tmp_path):
    place = places["prediction"]
    perfect, run = solution(place), place.run(tmp_path)
    few = dataclasses.replace(perfect, cells=perfect.cells[1:], values=perfect.values[1:])
    write_prediction(run / "prediction.h5ad", few)
    with pytest.raises(ContractError, match=r"cells are not those of .*: 1 are missing, 0 unknown"):
        place.score(run)
    names = np.r_[["nobody"], perfect.features[1:]]
    write_prediction(run / "prediction.h5ad", dataclasses.replace(perfect, features=names))
    with pytest.raises(ContractError, match=r"features are not those of .* 1 unknown"):
        place.score(run)
    (run / "prediction.h5ad").unlink()
    with pytest.raises(DataError, match=r"prediction\.h5ad does not exist"):
        place.score(run)


# ---------------------------------------------------------------------------------------- matching


def test_true_matching_scores_one_and_equal_weights_score_chance(places, tmp_path):
    place = places["matching"]
    run, true = place.run(tmp_path), true_matching(place)
    write_matching(run / "matching.npz", true)
    found = place.score(run)["value"]
    for name in ("matching_probability", "matching_top1", "matching_probability_reverse"):
        assert found[name] == 1
    n = len(true.cells[0])
    test = place.truth[(place.truth["split"] == "test") & (place.truth["modality"] == "rna")]
    sizes = test["batch"].value_counts()
    assert len(sizes) == 2
    assert found["matching_chance"] == pytest.approx(2 / n)
    assert found["matching_over_chance"] == pytest.approx(n / 2)
    batches = [
        place.truth.set_index(["modality", "cell"])["batch"].loc[layer].loc[cells].to_numpy()
        for layer, cells in zip(true.layers, true.cells, strict=True)
    ]
    # Weights of any size: rows are divided by their sums.
    even = 7.0 * (batches[0][:, None] == batches[1][None, :])
    write_matching(
        run / "matching.npz",
        dataclasses.replace(true, weights=sp.csr_matrix(even.astype(np.float32)), hard=False),
    )
    found = place.score(run)["value"]
    assert found["matching_probability"] == pytest.approx(2 / n, rel=1e-5)
    assert found["matching_over_chance"] == pytest.approx(1, rel=1e-5)
    assert found["matching_top1"] == pytest.approx(2 / n, rel=1e-5)


def test_hand_worked_weights(places, tmp_path):
    """Rows with shares of 1/4 and of nothing on the partner, and one without any weight."""
    place = places["matching"]
    run, true = place.run(tmp_path), true_matching(place)
    n = len(true.cells[0])
    partner = true.weights.indices
    weights = np.zeros((n, n), np.float32)
    weights[np.arange(n), partner] = 1.0
    weights[0, partner[1]] = 3.0  # 1/4 on its own partner
    weights[1] = 0.0  # without a weight
    weights[2] = 0.0
    weights[2, partner[3]] = 2.0  # wrong
    write_matching(
        run / "matching.npz", dataclasses.replace(true, weights=sp.csr_matrix(weights), hard=False)
    )
    found = place.score(run)["value"]
    assert found["matching_probability"] == pytest.approx((n - 3 + 0.25) / n)
    assert found["matching_top1"] == pytest.approx((n - 3) / n)
    # Seen from the other side: of cell 1's partner all goes to cell 0, cell 2's partner has none,
    # and cell 3's partner gives it 1 of 3.
    assert found["matching_probability_reverse"] == pytest.approx((n - 3 + 1 / 3) / n)


def test_negative_weights_are_none(places, tmp_path):
    """As in the organisers' program: to 0 first, then rows are divided by their sums."""
    place = places["matching"]
    run, true = place.run(tmp_path), true_matching(place)
    weights = true.weights.toarray()
    others = np.roll(true.weights.indices, 1)
    # The rest of the row sums to less than 0; without it all is on the partner.
    weights[np.arange(len(weights)), others] = -3.0
    write_matching(
        run / "matching.npz", dataclasses.replace(true, weights=sp.csr_matrix(weights), hard=False)
    )
    found = place.score(run)["value"]
    for name in ("matching_probability", "matching_top1", "matching_probability_reverse"):
        assert found[name] == 1


def test_a_matching_of_one_layer_with_itself_is_refused(places, tmp_path):
    place = places["matching"]
    run, true = place.run(tmp_path), true_matching(place)
    cells = (true.cells[0], true.cells[0])
    itself = sp.csr_matrix(np.eye(len(cells[0]), dtype=np.float32))
    answer = dataclasses.replace(true, layers=("rna", "rna"), cells=cells, weights=itself)
    write_matching(run / "matching.npz", answer)
    with pytest.raises(ContractError, match="matches the layers rna, rna; expected atac and rna"):
        place.score(run)


def test_weights_that_are_no_numbers_are_refused(places, tmp_path):
    place = places["matching"]
    run, true = place.run(tmp_path), true_matching(place)
    true.weights.data[3] = np.nan
    write_matching(run / "matching.npz", true)
    with pytest.raises(DataError, match=r"matching\.npz has 1 weights that are NaN or infinite"):
        place.score(run)


def test_a_matching_of_other_cells_is_refused(places, tmp_path):
    place = places["matching"]
    run, true = place.run(tmp_path), true_matching(place)
    other = (np.r_[["nobody"], true.cells[0][1:]], true.cells[1])
    write_matching(run / "matching.npz", dataclasses.replace(true, cells=other))
    with pytest.raises(ContractError, match="rna test cells are not those of"):
        place.score(run)
    (run / "matching.npz").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read as a matching"):
        place.score(run)


# ------------------------------------------------------------------------------------------- joint


def test_joint_embeddings_are_scored_once_a_cell(places, tmp_path):
    place = places["joint"]
    cells = {name: layer.cells for name, layer in place.data.layers.items()}
    types = place.truth[place.truth["modality"] == "rna"].set_index("cell").loc[cells["rna"]]
    codes = pd.factorize(types["cell_type"])[0]
    rng = np.random.default_rng(0)
    good = 10.0 * np.eye(codes.max() + 1)[codes] + rng.normal(size=(len(codes), codes.max() + 1))
    values = {}
    for name, embedding in (("good", good), ("noise", rng.normal(size=(200, 8)))):
        run = place.run(tmp_path / name)
        # The layers differ, and their mean is the embedding; rows of one layer in another order.
        shift = rng.normal(size=embedding.shape)
        order = rng.permutation(200)
        write_embedding(
            run / "embedding.h5ad",
            {"rna": cells["rna"], "atac": cells["atac"][order]},
            {"rna": embedding + shift, "atac": (embedding - shift)[order]},
            "X_m",
        )
        found = place.score(run)
        assert list(found.index) == list(answer_metrics("joint"))
        assert (found.loc[found["status"] == "ok", "n_cells"] <= 200).all()
        values[name] = found["value"]
        assert found["status"]["cell_cycle_conservation"] == "not_applicable"
        assert "cell_cycle_conservation" in found["reason"]["joint_mean"]
        others = [metric for metric in JOINT_PARTS if metric != "cell_cycle_conservation"]
        assert found["value"]["joint_mean"] == pytest.approx(found["value"][others].mean())
    assert values["good"]["nmi_louvain"] > 0.9 > 0.5 > values["noise"]["nmi_louvain"]
    assert values["good"]["joint_mean"] > values["noise"]["joint_mean"]


def test_cell_cycle_is_compared_with_the_expression_space(places, tmp_path):
    """Phases that the own space of rna shows: kept by that space, lost in noise."""
    place = places["joint"]
    cells = {name: layer.cells for name, layer in place.data.layers.items()}
    space = place.data["rna"].reps["X_pca"]
    folder = tmp_path / "prepared"
    folder.mkdir()
    phases = pd.DataFrame(space[:, :2], index=cells["rna"])
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(place.folder / "truth.parquet")
    for i, name in enumerate(("S_score", "G2M_score")):
        values = phases.loc[table["cell"].to_pylist(), i].to_numpy(float)
        table = table.append_column(name, pa.array(values))
    pq.write_table(table, folder / "truth.parquet")
    scores = {}
    for name, embedding in (
        ("kept", space),
        ("lost", np.random.default_rng(0).normal(size=space.shape)),
    ):
        run = place.run(tmp_path / name)
        write_embedding(run / "embedding.h5ad", cells, dict.fromkeys(cells, embedding), "X_m")
        found = evaluate(run, folder / "truth.parquet", place.folder / "input.h5mu")
        scores[name] = found.set_index("metric")["value"]["cell_cycle_conservation"]
        assert found.set_index("metric")["reason"]["joint_mean"] == ""
    assert scores["kept"] == pytest.approx(1, abs=1e-6)
    assert scores["lost"] < 0.5


def part(name: str, value: float | None, status: str = "ok") -> Score:
    return Score(name, METRICS[name].definition, value, status, "why", 10, 0.0)


def test_means_of_six_by_hand():
    values = dict(zip(JOINT_PARTS, (0.2, 0.4, 0.6, 0.8, 0.1, 0.3), strict=True))
    plain, weighted = joint_scores([part(name, value) for name, value in values.items()])
    assert plain.value == pytest.approx(2.4 / 6)
    assert weighted.value == pytest.approx(0.6 * 0.5 + 0.4 * 0.2)
    assert (plain.reason, plain.n_cells) == ("", 10)
    lost = "batch_asw"
    rows = [
        part(name, None, "not_applicable") if name == lost else part(name, value)
        for name, value in values.items()
    ]
    plain, weighted = joint_scores(rows)
    assert plain.value == pytest.approx(2.3 / 5)
    assert weighted.value == pytest.approx(0.6 * 0.5 + 0.4 * 0.3)
    assert plain.reason == "left out, as they do not apply: batch_asw"
    rows = [
        part(name, None, "not_applicable") if name in ("batch_asw", "graph_connectivity") else one
        for name, one in ((one.metric, one) for one in rows)
    ]
    assert joint_scores(rows)[1].status == "not_applicable"
    rows[0] = part("nmi_louvain", None, "failed")
    assert {row.status for row in joint_scores(rows)} == {"failed"}
    assert joint_scores(rows)[0].reason == "nmi_louvain: why"


# ---------------------------------------------------------------------------------- what they share


@pytest.mark.parametrize("task", SLUGS)
def test_a_failed_run_has_a_row_a_metric(places, tmp_path, task):
    place = places[task]
    run = place.run(tmp_path, "timeout", "stopped after its limit of 1 s")
    found = place.score(run)
    assert list(found.index) == list(answer_metrics(task))
    assert set(found["status"]) == {"timeout"}
    assert set(found["reason"]) == {"stopped after its limit of 1 s"}
    assert found["value"].isna().all()


def test_the_truth_states_the_task(places, tmp_path):
    for task, place in places.items():
        assert task_of_truth(place.folder / "truth.parquet") == task
    assert task_of_truth(tmp_path / "truth.tsv") is None
    # Not the absence of what a run of another task would have.
    with pytest.raises(DataError, match=r"truth\.parquet does not exist; prepare the data"):
        evaluate(places["matching"].run(tmp_path / "run"), tmp_path / "truth.parquet")
    (tmp_path / "truth.parquet").write_bytes(b"nothing")
    with pytest.raises(DataError, match="cannot be read as a truth table"):
        task_of_truth(tmp_path / "truth.parquet")


def test_tables_of_these_tasks_have_no_aggregate_of_integrations(places, tmp_path):
    place = places["matching"]
    run = place.run(tmp_path / "matching" / "m" / "0")
    write_matching(run / "matching.npz", true_matching(place))
    place.score(run)
    table = collect([run / "scores.parquet"], "s", tmp_path / "s.tsv", tmp_path / "s.minmax.tsv")
    assert list(table["metric"]) == list(answer_metrics("matching"))
    wanted = ["matching_chance", "matching_probability"]
    table = collect(
        [run / "scores.parquet"], "s", tmp_path / "s.tsv", tmp_path / "s.minmax.tsv", metrics=wanted
    )
    assert list(table["metric"]) == wanted


def test_derived_metrics_are_described_like_others():
    for name in DERIVED_METRICS:
        metric = DERIVED_METRICS[name]
        assert metric.name == name
        assert metric.summary.endswith(".")
        assert re.fullmatch(r"[a-z0-9.\-]+", metric.definition)
        assert name not in METRICS
        assert name not in TASK_METRICS
