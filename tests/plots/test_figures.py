"""Every kind of figure: nothing overlaps on crowded input, files are right, numbers are kept."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from scbraid import plots
from scbraid.errors import DataError
from scbraid.plots import FIGURES
from scbraid.plots.style import Sheet
from scbraid.plots.tasks import panel_words

RATES = (0, 0.2, 0.6, 1.0)
NOISE = [
    "unpaired"
    if rate == 0
    else f"unpaired@corrupt_rate={rate:g}" + f"+corrupt_seed={seed}" * (seed > 0)
    for rate in RATES
    for seed in range(1 if rate == 0 else 2)
]


METHODS = [
    ("glue", "default", "GLUE", "subject", "guidance"),
    ("inmf", "default", "iNMF", "baseline", "guidance"),
    ("liger", "default", "LIGER", "baseline", "labels"),
    ("random", "default", "Random embedding", "control", ""),
]


TASK_METRICS = [
    *("rmse", "matching_probability", "matching_chance", "joint_mean", "imputation_auroc_matched"),
]
TASK_CONDITIONS = (
    *("prediction+source=rna", "prediction+source=adt", "matching", "joint"),
    "imputation+hidden_seed=1",
)


@pytest.fixture(scope="module")
def inputs(make_scores, make_runs, make_history, make_panels, guidance):
    """What each kind of figure is drawn from: many methods, long names, several panels."""
    scores = make_scores(
        datasets=("snare_cortex_dev", "a_data_set_with_a_name_of_some_length"),
        conditions=("unpaired", "unpaired+cells=1500+subsample_seed=1@corrupt_rate=0.2"),
        seeds=2,
    )
    histories = {
        "GLUE, seed 0 · snare_cortex_dev, unpaired": make_history(splits=("train", "validation")),
        "a short one": make_history(stages=(("only", 1),)),
    }
    noise = make_scores(conditions=NOISE, seeds=1, metrics=["foscttm", "overall"])
    return {
        "coverage": (scores,),
        "score_summary": (scores,),
        "bio_vs_mixing": (scores,),
        "foscttm": (scores,),
        "task_scores": (
            make_scores(
                datasets=("bmmc_cite_dev", "a_data_set_with_a_name_of_some_length"),
                conditions=TASK_CONDITIONS,
                metrics=TASK_METRICS,
                seeds=2,
            ),
        ),
        "umap_grid": (make_panels(),),
        "robustness_curve": (noise,),
        "training_history": (histories,),
        "guidance_summary": ({"snare · unpaired": guidance, "other": guidance},),
        "resources": (make_runs(scores),),
    }


@pytest.fixture(scope="module")
def drawings(inputs):
    return {kind: getattr(plots, kind)(*inputs[kind]) for kind in FIGURES}


@pytest.mark.parametrize("kind", FIGURES)
def test_no_text_overlaps_or_leaves_the_page(kind, drawings, text_boxes):
    boxes = text_boxes(drawings[kind].figure)
    assert len(boxes.boxes) > 10
    assert boxes.overlaps() == []
    assert boxes.outside() == []


@pytest.mark.parametrize("kind", FIGURES)
def test_small_input_has_no_overlaps_either(
    kind, make_scores, make_runs, make_history, make_panels, guidance, text_boxes
):
    scores = make_scores(seeds=1, methods=[("glue", "default", "", "", "")])
    two = make_scores(conditions=NOISE[:2], seeds=1, methods=[("glue", "default", "", "", "")])
    one = [("glue", "default", "", "", "")]
    inputs = {
        "task_scores": make_scores(
            conditions=["matching"], metrics=TASK_METRICS, seeds=1, methods=one
        ),
        "umap_grid": make_panels(1, 2, 10, batches=False),
        "robustness_curve": two,
        "training_history": make_history(stages=(("fit", 3),)),
        "guidance_summary": guidance.subgraph(guidance.layer == "rna"),
        "resources": make_runs(scores),
    }
    if kind == "guidance_summary":
        with_links = guidance.subgraph(np.isin(guidance.layer, ["rna", "atac"]))
        inputs[kind] = with_links
    drawing = getattr(plots, kind)(inputs.get(kind, scores))
    boxes = text_boxes(drawing.figure)
    assert boxes.overlaps() == []
    assert boxes.outside() == []


@pytest.fixture(scope="module")
def small_inputs(make_scores, make_runs, make_history, make_panels, guidance):
    scores = make_scores(methods=METHODS)
    noise = make_scores(conditions=NOISE, seeds=1, metrics=["overall"], methods=METHODS)
    tasks = make_scores(conditions=TASK_CONDITIONS, metrics=TASK_METRICS, methods=METHODS)
    return {
        "task_scores": (tasks,),
        "umap_grid": (make_panels(2, 5, 40),),
        "robustness_curve": (noise,),
        "training_history": (make_history(),),
        "guidance_summary": (guidance,),
        "resources": (make_runs(scores),),
    } | dict.fromkeys(("coverage", "score_summary", "bio_vs_mixing", "foscttm"), (scores,))


@pytest.mark.parametrize("kind", FIGURES)
def test_files_are_whole_and_come_out_the_same_twice(kind, small_inputs, tmp_path):
    drawing = getattr(plots, kind)(*small_inputs[kind])
    files = drawing.save(tmp_path / "deeper" / kind)
    pdf = files.pdf.read_bytes()
    assert pdf.startswith(b"%PDF-")
    assert b"/Type3" not in pdf
    assert b"/FontFile2" in pdf  # TrueType, embedded
    assert b"CreationDate" not in pdf
    assert files.png.read_bytes().startswith(b"\x89PNG")
    back = pd.read_csv(files.tsv, sep="\t", keep_default_na=False, na_values=[""])
    assert next(iter(back.columns)) == "panel"
    assert len(back) == len(drawing.table) > 0
    assert {file.name for file in files.tsv.parent.iterdir()} == {
        f"{kind}.{end}" for end in ("pdf", "png", "tsv")
    }
    getattr(plots, kind)(*small_inputs[kind], tmp_path / "second")
    for end in ("pdf", "png", "tsv"):
        again = (tmp_path / f"second.{end}").read_bytes()
        assert (tmp_path / "deeper" / f"{kind}.{end}").read_bytes() == again, end


def test_each_task_shows_its_headline(make_scores):
    scores = make_scores(conditions=TASK_CONDITIONS, metrics=TASK_METRICS, methods=METHODS)
    table = plots.task_scores(scores).table
    shown = table.groupby("condition")["metric"].unique().map(list).to_dict()
    assert shown == {
        "prediction+source=rna": ["rmse"],
        "prediction+source=adt": ["rmse"],
        "matching": ["matching_probability"],
        "joint": ["joint_mean"],
        "imputation+hidden_seed=1": ["imputation_auroc_matched"],
    }
    own = scores[(scores["condition"] == "matching") & (scores["method"] == "random")]
    expected = own.loc[own["metric"] == "matching_probability", "value"].mean()
    row = table[(table["condition"] == "matching") & (table["method"] == "random")]
    assert row.loc[row["mark"] == "mean", "value"].item() == pytest.approx(expected)
    # A method whose runs all failed keeps its row.
    assert set(table.loc[table["method"] == "liger", "status"]) == {"timeout"}
    with pytest.raises(plots.NothingToDraw, match="of a prediction, matching, joint"):
        plots.task_scores(make_scores())


def test_splits_share_a_panel_and_are_further_points(make_scores, make_runs):
    splits = ("matching", "matching+split_seed=1", "matching+split_seed=2")
    methods = [(name, "default", "", "", "") for name in ("cca_pairing", "random_pairing")]
    scores = make_scores(conditions=splits, metrics=TASK_METRICS[1:3], methods=methods, seeds=2)
    own = scores[(scores["method"] == "cca_pairing") & (scores["metric"] == TASK_METRICS[1])]
    assert len(own) == 6
    drawing = plots.task_scores(scores)
    assert len([axes for axes in drawing.figure.axes if axes.get_xlabel()]) == 1
    table = drawing.table[drawing.table["method"] == "cca_pairing"]
    assert set(table["condition"]) == {"matching"}
    assert table.loc[table["mark"] == "mean", "n"].item() == 6
    assert table.loc[table["mark"] == "mean", "value"].item() == pytest.approx(own["value"].mean())
    seeds = {f"{seed}, split_seed={split}" for seed in range(2) for split in range(3)}
    assert set(table.loc[table["mark"] == "seed", "seed"]) == seeds
    words = [text.get_text() for text in drawing.figure.findobj(Text)]
    assert any("Points: seeds and draws." in text for text in words)

    runs = make_runs(scores)
    summary = plots.score_summary(scores, runs=runs)
    row = summary.table.set_index(["method", "panel"]).loc["cca_pairing"]
    assert set(row["condition"]) == {"matching"}
    assert set(row["n_runs"]) == {6}
    assert row.loc[TASK_METRICS[1], "mean"] == pytest.approx(own["value"].mean())
    seconds = runs.loc[runs["method"] == "cca_pairing", "seconds"]
    assert row.loc["seconds", "mean"] == pytest.approx(seconds.mean())
    resources = plots.resources(runs)
    assert set(resources.table["condition"]) == {"matching"}
    medians = resources.table.query("method == 'cca_pairing' and panel == 'seconds'")
    assert set(medians["median"]) == {seconds.median()}


def test_subsets_share_a_panel_of_the_comparisons(make_scores):
    subsets = ("unpaired+cells=500", "unpaired+cells=500+subsample_seed=1")
    scores = make_scores(conditions=subsets, methods=METHODS, seeds=2)
    for figure in (plots.foscttm, plots.bio_vs_mixing):
        drawing = figure(scores)
        assert set(drawing.table["condition"]) == {"unpaired+cells=500"}
        own = drawing.table[(drawing.table["method"] == "glue") & (drawing.table["mark"] == "mean")]
        assert own["n"].item() == 4
        words = [text.get_text() for text in drawing.figure.findobj(Text)]
        assert any("oints: seeds and draws." in text for text in words)


def test_methods_that_lack_splits_are_named(make_scores, text_boxes):
    conditions = ["matching", "matching+split_seed=1", "matching+split_seed=4"]
    scores = make_scores(conditions=conditions, metrics=TASK_METRICS[1:3], methods=METHODS)
    # One method was run on two of the three.
    lost = (scores["method"] == "glue") & (scores["condition"] == conditions[2])
    drawing = plots.task_scores(scores[~lost])
    words = " ".join(text.get_text() for text in drawing.figure.findobj(Text)).replace("\n", " ")
    assert "fewer draws than others: GLUE 2 of 3" in words
    assert text_boxes(drawing.figure).overlaps() == []
    # One split says nothing of splits.
    alone = plots.task_scores(scores[scores["condition"] == conditions[1]])
    words = " ".join(text.get_text() for text in alone.figure.findobj(Text))
    assert "Points: seeds." in words
    assert "fewer" not in words


def test_panels_are_headed_by_what_tells_them_apart():
    def words(*conditions, datasets=("d",)):
        panels = [(dataset, condition) for dataset in datasets for condition in conditions]
        return list(panel_words(panels).values())

    assert words("matching", "matching+cells=400") == ["all cells", "cells=400"]
    assert words("joint", "joint+use_batch=true") == ["use_batch=false", "use_batch=true"]
    # What all have in common is left out, but for the source.
    assert words("prediction+source=rna+cells=400", "prediction+source=adt+cells=400") == [
        "from rna",
        "from adt",
    ]
    assert words("prediction+source=rna", "prediction+source=adt+n_top_genes=500") == [
        "from rna, n_top_genes=2000",
        "from adt, n_top_genes=500",
    ]
    # Settings of other tasks do not matter.
    assert words("matching", "joint", "prediction+source=rna+cells=400") == [
        "matching",
        "joint",
        "from rna",
    ]
    assert words("matching", datasets=("d", "e")) == ["d", "e"]
    assert words("prediction+source=rna", datasets=("d", "e")) == ["d · from rna", "e · from rna"]
    assert words("matching+split=batch+test_batches=b1-b2") == ["d · matching"]
    found = words("matching", "matching+split=batch+test_batches=b1-b2")
    assert found == ["split=random, test_batches=none", "split=batch, test_batches=b1-b2"]
    # Names that nobody can read stand as they are.
    assert words("matching of my own", "joint") == ["matching of my own", "joint"]


def test_errors_are_marks_beside_the_trivial_predictor(make_scores):
    methods = [(name, "default", "", "", "") for name in ("scmognn_prediction", "feature_mean")]
    scores = make_scores(conditions=TASK_CONDITIONS, metrics=TASK_METRICS, methods=methods)
    drawing = plots.task_scores(scores)
    panels = [axes for axes in drawing.figure.axes if axes.get_xlabel()]
    errors = [axes for axes in panels if axes.get_xlabel().startswith("RMSE")]
    assert len(errors) == 2
    assert all(axes.get_xlim()[0] > 0 for axes in errors)
    # A bar that does not begin at 0 would show a length that means nothing.
    assert not any(axes.patches for axes in errors)
    assert all(axes.patches and axes.get_xlim()[0] == 0 for axes in panels if axes not in errors)
    for axes, condition in zip(errors, sorted(TASK_CONDITIONS[:2]), strict=True):
        own = drawing.table[drawing.table["condition"] == condition]
        own = own[own["mark"] == "mean"]
        trivial = own.loc[own["method"] == "feature_mean", "value"].item()
        assert any(list(line.get_xdata()) == [trivial, trivial] for line in axes.lines)
    headings = {text.get_text() for text in drawing.figure.findobj(Text)}
    assert any("from adt" in text for text in headings)


def test_a_trivial_predictor_that_is_far_off_leaves_the_scale_to_the_others(make_scores):
    names = ("scmognn_prediction", "svd_linear", "feature_mean")
    methods = [(name, "default", "", "", "") for name in names]
    scores = make_scores(conditions=TASK_CONDITIONS[:1], metrics=["rmse"], methods=methods)
    for far, errors in ((True, (0.40, 0.46, 0.76)), (False, (0.233, 0.236, 0.241))):
        scores["value"] = scores["method"].map(dict(zip(names, errors, strict=True)))
        drawing = plots.task_scores(scores)
        (axes,) = (axes for axes in drawing.figure.axes if axes.get_xlabel())
        low, high = axes.get_xlim()
        assert low < errors[0]
        assert errors[1] < high
        assert (high < errors[2]) == far
        words = [text.get_text() for text in drawing.figure.findobj(Text)]
        assert any(text == "0.760 →" for text in words) == far
        assert any("beyond the scale" in text for text in words) == far
        assert any("Dashed line" in text for text in words) != far
        # The numbers behind the figure are all there.
        means = drawing.table[drawing.table["mark"] == "mean"].set_index("method")["value"]
        assert means["feature_mean"] == pytest.approx(errors[2])


def test_bars_of_what_exceeds_one_end_at_the_largest(make_scores, monkeypatch):
    boxes = []
    monkeypatch.setattr(Sheet, "box", lambda _, *place, fill: boxes.append((place[2], fill)))
    metrics = ["matching_probability", "matching_over_chance"]
    methods = [(name, "default", "", "", "") for name in ("cca_pairing", "random_pairing")]
    scores = make_scores(conditions=["matching"], metrics=metrics, methods=methods)
    over = scores["metric"].str.startswith("matching_over_chance")
    first = scores["method"] == "cca_pairing"
    scores["value"] = np.select([over & first, over, first], [24.0, 1.2, 0.4], 0.02)
    drawing = plots.score_summary(scores)
    words = {text.get_text() for text in drawing.figure.findobj(Text)}
    assert {"24.0", "1.200", "0.400", "0.020"} <= words
    whole = max(length for length, _ in boxes)
    bars = [length / whole for length, fill in boxes if fill.endswith("BF")]
    assert sorted(bars) == pytest.approx([0.02, 1.2 / 24, 0.4, 1])


def test_summary_of_tasks_without_any_metric_of_an_embedding(make_scores):
    scores = make_scores(conditions=["matching"], metrics=TASK_METRICS[1:3], methods=METHODS)
    table = plots.score_summary(scores).table
    assert set(table["panel"]) == {"matching_probability", "matching_chance"}


@pytest.mark.parametrize("kind", ["coverage", "score_summary", "bio_vs_mixing", "foscttm"])
def test_rows_in_another_order_give_the_same_figure(kind, small_inputs, tmp_path):
    (scores,) = small_inputs[kind]
    for name, table in (("a", scores), ("b", scores.sample(frac=1, random_state=3))):
        getattr(plots, kind)(table).figure.savefig(tmp_path / f"{name}.png", dpi=100)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


# ----------------------------------------------------------------------------- numbers behind


def test_score_summary_shows_raw_means_of_finished_seeds(make_scores, make_runs):
    scores = make_scores()
    table = plots.score_summary(scores, runs=make_runs(scores)).table
    row = table[(table["panel"] == "map") & (table["method"] == "inmf")].iloc[0]
    values = scores[(scores["metric"] == "map") & (scores["method"] == "inmf")]["value"].dropna()
    assert (row["n"], row["n_ok"], row["n_runs"]) == (2, 2, 3)
    assert row["mean"] == pytest.approx(values.mean())
    assert row["sd"] == pytest.approx(values.std(ddof=1))
    assert (row["min"], row["max"]) == (values.min(), values.max())
    gone = table[(table["panel"] == "map") & (table["method"] == "liger")].iloc[0]
    assert gone["status"] == "timeout"
    assert math.isnan(gone["mean"])
    assert (gone["n_ok"], gone["n_runs"]) == (0, 3)
    seconds = table[table["panel"] == "seconds"].set_index("method")["mean"]
    runs = make_runs(scores)
    expected = runs[(runs["method"] == "harmony")]["seconds"].mean()
    assert seconds["harmony"] == pytest.approx(expected)


def test_score_summary_finds_the_time_of_methods_that_ignore_the_graph(make_scores, make_runs):
    scores = make_scores(
        conditions=("unpaired@corrupt_rate=0.5",), methods=[("cca", "default", "", "", "")]
    )
    runs = make_runs(scores).assign(condition="unpaired", seconds=[1.0, 2.0, 6.0])
    table = plots.score_summary(scores, runs=runs).table
    row = table[table["panel"] == "seconds"].iloc[0]
    assert (row["condition"], row["mean"]) == ("unpaired@corrupt_rate=0.5", 3.0)


def test_score_summary_names_failures_and_marks_what_methods_see(make_scores, text_boxes):
    words = [text for text, _ in text_boxes(plots.score_summary(make_scores()).figure).boxes]
    assert "timeout" in words
    assert "0/3" in words
    assert "2/3" in words
    assert "bindSC†" in words
    assert "Perfect pairing†‡" in words
    assert any("sees cell-type labels" in text.replace("\u00a0", " ") for text in words)


def test_score_summary_orders_by_role_then_overall(make_scores, text_boxes):
    scores = make_scores()
    boxes = text_boxes(plots.score_summary(scores).figure).boxes
    titles = scores.drop_duplicates(["method", "preset"])
    overall = scores[scores["metric"] == "overall"].groupby("method")["value"].mean()
    baselines = titles[(titles["role"] == "baseline") & (titles["method"] != "pamona")]
    expected = sorted(
        baselines["method"], key=lambda name: (math.isnan(overall[name]), -overall[name])
    )
    names = baselines.set_index("method")["display_name"]
    height = {text.rstrip("†‡"): corners[:, 1].max() for text, corners in boxes}
    drawn = sorted(expected, key=lambda name: -height[names[name]])
    assert drawn == expected
    assert height["GLUE"] > max(height[names[name]] for name in expected)


def test_several_definitions_of_a_metric_stand_side_by_side(make_scores):
    scores = make_scores(metrics=["graph_connectivity"])
    other = scores.assign(definition="v2", value=0.5)
    table = plots.score_summary(pd.concat([scores, other])).table
    assert set(table["panel"]) == {"graph_connectivity@v1", "graph_connectivity@v2"}


def test_bio_vs_mixing_shows_every_seed_and_the_mean(make_scores):
    scores = make_scores()
    table = plots.bio_vs_mixing(scores).table
    own = table[table["method"] == "glue.paper"]
    wide = scores[(scores["method"] == "glue") & (scores["preset"] == "paper")]
    bio = wide[wide["metric"] == "bio"].set_index("seed")["value"]
    seeds = own[own["mark"] == "seed"].set_index("seed")["bio"]
    assert seeds.tolist() == bio.tolist()
    mean = own[own["mark"] == "mean"].iloc[0]
    assert mean["bio"] == pytest.approx(bio.mean())
    assert mean["bio_sd"] == pytest.approx(bio.std(ddof=1))
    assert mean["n"] == 3


def test_foscttm_keeps_methods_without_a_value(make_scores, text_boxes):
    scores = make_scores()
    drawing = plots.foscttm(scores)
    table = drawing.table
    own = scores[(scores["metric"] == "foscttm") & (scores["method"] == "harmony")]["value"]
    seeds = table[(table["method"] == "harmony") & (table["mark"] == "seed")]["value"]
    assert seeds.tolist() == own.tolist()
    assert set(table[table["method"] == "liger"]["status"]) == {"timeout"}
    words = [text for text, _ in text_boxes(drawing.figure).boxes]
    assert "timeout" in words
    assert any("lower is better" in text for text in words)


def test_robustness_change_is_against_the_same_method_at_rate_0(make_scores):
    scores = make_scores(conditions=NOISE, seeds=1, metrics=["foscttm", "overall"])
    table = plots.robustness_curve(scores).table
    method = scores[(scores["method"] == "harmony") & (scores["metric"] == "overall")]
    start = method[method["condition"] == "unpaired"]["value"].iloc[0]
    values = method[method["condition"].str.contains("corrupt_rate=0.6")]["value"]
    assert len(values) == 2
    own = table[(table["method"] == "harmony") & (table["panel"] == "overall")]
    row = own[(own["side"] == "change") & (own["corrupt_rate"] == 0.6)].iloc[0]
    assert row["mean"] == pytest.approx((values - start).mean())
    assert row["sd"] == pytest.approx(values.std(ddof=1))
    assert row["n"] == 2
    assert own[(own["side"] == "change") & (own["corrupt_rate"] == 0)]["mean"].iloc[0] == 0
    failed = table[(table["method"] == "liger") & (table["side"] == "value")]
    assert (failed["n"] == 0).all()
    assert failed["n_missing"].sum() == 2 * len(NOISE)


def test_robustness_over_cells_takes_the_largest_as_reference(make_scores):
    conditions = [f"unpaired+cells={n}+subsample_seed={s}" for n in (250, 1000) for s in (0, 1)]
    scores = make_scores(conditions=conditions, seeds=1, metrics=["overall"])
    table = plots.robustness_curve(scores, setting="cells").table
    change = table[(table["side"] == "change") & (table["method"] == "glue")]
    assert change.set_index("cells")["mean"][1000] == pytest.approx(0)
    assert set(table["base"]) == {"unpaired"}


def test_history_positions_go_on_over_stages(make_history):
    history = make_history(splits=("train", "validation"))
    table = plots.training_history(history).table
    assert set(table["panel"]) == {"rna_nll", "atac_nll", "graph_nll", "graph_kl", "total"}
    first = table[(table["stage"] == "fine-tune with balancing") & (table["epoch"] == 1)]
    assert set(first["position"]) == {31}
    own = table[(table["panel"] == "total") & (table["split"] == "validation")]
    expected = history[history["split"] == "validation"]["total"]
    assert own["value"].tolist() == expected.tolist()


def test_history_marks_stages_and_drops(make_history):
    figure = plots.training_history(make_history()).figure
    panel = figure.axes[1]
    verticals = [line for line in panel.lines if len(set(line.get_xdata())) == 1]
    places = sorted(float(line.get_xdata()[0]) for line in verticals)
    # Two drops (before epoch 20 of either stage) and one border.
    assert places == [19.5, 30.5, 49.5]


def test_guidance_counts_every_edge(guidance):
    table = plots.guidance_summary(guidance).table
    forward = int((guidance.kind == "fwd").sum())
    assert table[table["panel"] == "distance"]["count"].sum() == forward
    assert table[table["panel"] == "edges"]["count"].sum() == guidance.n_edges
    assert table[table["panel"] == "degree"]["count"].sum() == guidance.n_features
    negative = table[(table["panel"] == "edges") & (table["sign"] == -1)]
    assert negative["count"].tolist() == [50, 50]
    unplaced = table[(table["panel"] == "distance") & (table["category"] == "none")]
    assert unplaced["count"].tolist() == [50]


def test_guidance_bins_and_degrees_by_brute_force(guidance):
    table = plots.guidance_summary(guidance).table
    forward = guidance.kind == "fwd"
    dist = guidance.dist[forward]
    own = table[(table["panel"] == "distance")].groupby("category")["count"].sum()
    assert own["0"] == np.sum(dist == 0)
    assert own["25–50 kb"] == np.sum((dist > 25_000) & (dist <= 50_000))
    assert own[">150 kb"] == np.sum(dist > 150_000)
    degree = np.zeros(guidance.n_features, dtype=int)
    for a, b in zip(guidance.source[forward], guidance.target[forward], strict=True):
        degree[a] += 1
        degree[b] += 1
    rna = degree[guidance.layer == "rna"]
    shown = table[(table["panel"] == "degree") & (table["group"] == "rna")]
    counts = shown.set_index("category")["count"]
    assert counts["8–15"] == np.sum((rna >= 8) & (rna <= 15))


def test_resources_show_every_run_and_the_median_of_the_finished(make_scores, make_runs):
    runs = make_runs(make_scores())
    table = plots.resources(runs).table
    own = table[(table["panel"] == "seconds") & (table["method"] == "inmf")]
    expected = runs[runs["method"] == "inmf"]
    assert sorted(own["value"]) == sorted(expected["seconds"])
    assert own["median"].iloc[0] == expected[expected["status"] == "ok"]["seconds"].median()
    assert own["status"].tolist() == ["ok", "failed", "ok"]
    assert "peak_gpu_mib" not in set(table["panel"])


def test_runs_that_took_no_measurable_time_are_drawn_at_a_millisecond(make_scores, make_runs):
    runs = make_runs(make_scores(methods=METHODS)).assign(seconds=0.0)
    drawing = plots.resources(runs)
    own = drawing.table[drawing.table["panel"] == "seconds"]
    assert set(own["value"]) == {0.0}
    points = drawing.figure.axes[1].collections[0].get_offsets()
    assert set(points[:, 0]) == {0.001}


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0002, "<1 ms"), (0.004, "4 ms"), (0.8, "0.8 s"), (42, "42 s"), (192, "3.2 min"),
     (1800, "30 min"), (18_360, "5.1 h")],
)  # fmt: skip
def test_times_are_written_with_a_unit(seconds, words):
    from scbraid.plots.summary import format_seconds

    assert format_seconds(seconds) == words


def test_values_have_three_decimals_and_no_negative_zero():
    from scbraid.plots.summary import format_value

    found = [format_value("ari", value) for value in (-0.0002, 0.0004, -0.0126, 1)]
    assert found == ["0.000", "0.000", "-0.013", "1.000"]


def test_bars_of_the_spread_stay_inside_the_panel(make_scores):
    scores = make_scores(methods=METHODS[:1], seeds=2, metrics=["bio", "mixing"])
    scores["value"] = [0.1, 0.1, 0.1, 0.9]
    drawing = plots.bio_vs_mixing(scores)
    mean = drawing.table[drawing.table["mark"] == "mean"].iloc[0]
    low, high = drawing.figure.axes[1].get_ylim()
    assert low < mean["mixing"] - mean["mixing_sd"]
    assert mean["mixing"] + mean["mixing_sd"] < high


def test_coverage_counts_by_status_and_shows_what_was_not_run(make_scores, make_runs, text_boxes):
    runs = make_runs(make_scores())
    expected = runs[["dataset", "condition", "method", "preset", "seed"]]
    present = runs[~((runs["method"] == "uniport") & (runs["seed"] > 0))]
    drawing = plots.coverage(present, expected=expected)
    table = drawing.table.set_index("method")
    assert table.loc["inmf", ["ok", "failed", "n_runs"]].tolist() == [2, 1, 3]
    assert table.loc["liger", "timeout"] == 3
    assert table.loc["uniport", ["ok", "missing"]].tolist() == [1, 2]
    words = [text for text, _ in text_boxes(drawing.figure).boxes]
    assert {"2/3", "1/3", "T", "timeout (T)", "not run (–)"} <= set(words)


def test_umap_table_has_the_coordinates(make_panels):
    panels = make_panels(2, 3, 30)
    gone = plots.UmapPanel(
        "snare", "unpaired", "LIGER", pd.DataFrame({"modality": []}), None, "liger", None, "timeout"
    )
    table = plots.umap_grid([*panels, gone]).table
    own = table[table["method"] == "method1"]
    np.testing.assert_allclose(own[["x", "y"]], panels[1].coordinates, atol=5e-5)
    assert own["cell_type"].tolist()[4:] == panels[1].cells["cell_type"].tolist()[4:]
    left = table[table["method"] == "liger"]
    assert len(left) == 1
    assert left["note"].iloc[0] == "timeout"


def test_umap_points_are_an_image_in_random_order(make_panels):
    figure = plots.umap_grid(make_panels(1, 3, 30)).figure
    scatter = figure.axes[1].collections[0]
    assert scatter.get_rasterized()
    offsets = np.asarray(scatter.get_offsets())
    assert not np.array_equal(offsets, make_panels(1, 3, 30)[0].coordinates)
    assert sorted(map(tuple, offsets)) == sorted(map(tuple, make_panels(1, 3, 30)[0].coordinates))


def test_more_types_than_colours_share_a_grey_and_say_so(make_panels, text_boxes):
    drawing = plots.umap_grid(make_panels(1, 60, 600))
    words = [text for text, _ in text_boxes(drawing.figure).boxes]
    assert "(rarer types)" in words
    assert "(no label)" in words
    assert sum("subtype" in text for text in words) == 48


# -------------------------------------------------------------------------------- bad input


def test_missing_columns_are_named(make_scores):
    with pytest.raises(DataError, match="lacks the columns metric, value; it has: study, dataset"):
        plots.score_summary(make_scores().drop(columns=["metric", "value"]))


def test_text_in_the_value_column_is_named(make_scores):
    scores = make_scores().astype({"value": object})
    scores.loc[0, "value"] = "N.A."
    with pytest.raises(DataError, match=r"1 values that are no numbers \(first: 'N.A.' for map of"):
        plots.foscttm(scores)


def test_nothing_to_draw_is_an_error_that_says_what_is_empty(make_scores, make_runs):
    scores = make_scores(metrics=["map"])
    with pytest.raises(DataError, match="metric 'foscttm' has no rows"):
        plots.foscttm(scores)
    with pytest.raises(DataError, match="bio and mixing"):
        plots.bio_vs_mixing(scores)
    with pytest.raises(DataError, match="no value of foscttm, overall; it has: map"):
        plots.robustness_curve(make_scores(conditions=NOISE[:2], metrics=["map"]))
    with pytest.raises(DataError, match="no rows"):
        plots.resources(make_runs(scores).assign(status="missing"))
    with pytest.raises(DataError, match="no method has an embedding"):
        plots.umap_grid([])


def test_a_setting_that_does_not_vary_or_exist_is_refused(make_scores):
    with pytest.raises(DataError, match="'corrupt_rate' does not vary in the table of scores"):
        plots.robustness_curve(make_scores())
    with pytest.raises(DataError, match="no setting 'corruption'; they have: task, cells"):
        plots.robustness_curve(make_scores(), setting="corruption")


def test_history_without_its_columns_is_refused(make_history):
    with pytest.raises(DataError, match="lacks the column split"):
        plots.training_history(make_history().drop(columns="split"))


def test_coordinates_and_cells_must_agree(make_panels):
    panel = make_panels(1, 3, 30)[0]
    import dataclasses

    short = dataclasses.replace(panel, coordinates=panel.coordinates[:5])
    with pytest.raises(DataError, match=r"shape \(5, 2\); expected \(30, 2\)"):
        plots.umap_grid([short])
