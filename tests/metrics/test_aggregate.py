from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scbraid.errors import DataError
from scbraid.metrics import METRICS
from scbraid.metrics.aggregate import (
    OVERALLS,
    RUN,
    aggregate,
    anchors_name,
    compare_all,
    compare_methods,
    control_anchors,
    minmax_name,
    minmax_table,
    overall_scores,
    range_anchors,
    rank_intervals,
    rank_methods,
    read_minmax,
    scale_scores,
    summarise,
    tie_table,
    write_minmax,
)
from scbraid.metrics.tasks import TASK_METRICS

BIO = ["map", "cell_type_asw", "neighbor_conservation"]
MIXING = ["seurat_alignment", "omics_asw", "graph_connectivity"]


def table(runs):
    """Long table from {(dataset, method, seed): {metric: value or status}}."""
    rows = []
    for (dataset, method, seed), values in runs.items():
        for metric, value in values.items():
            ok = not isinstance(value, str)
            rows.append(
                {
                    "dataset": dataset,
                    "condition": "unpaired",
                    "method": method,
                    "preset": "default",
                    "seed": seed,
                    "metric": metric,
                    "definition": (METRICS if metric in METRICS else TASK_METRICS)[
                        metric
                    ].definition,
                    "value": value if ok else np.nan,
                    "status": "ok" if ok else value,
                    "reason": "" if ok else "why",
                    "n_cells": 9,
                }
            )
    return pd.DataFrame(rows)


def full(*values):
    return dict(zip([*BIO, *MIXING], values, strict=True))


@pytest.fixture
def scores():
    return table(
        {
            ("d1", "glue", 0): full(0.9, 0.6, 0.3, 0.8, 0.9, 1.0),
            ("d1", "pca", 0): full(0.5, 0.5, 0.1, 0.2, 0.5, 0.6),
            ("d2", "glue", 0): full(0.7, 0.55, 0.2, 0.6, 0.7, 0.8),
            ("d2", "pca", 0): full(*["timeout"] * 6),
        }
    )


def value(found, dataset, method, metric):
    own = found[
        (found["dataset"] == dataset) & (found["method"] == method) & (found["metric"] == metric)
    ]
    assert len(own) == 1
    return own.iloc[0]


def test_aggregates_by_hand(scores):
    minmax = minmax_table(scores, "mine")
    assert len(minmax) == 6
    found = aggregate(scores, minmax)
    assert len(found) == 12
    best, worst = value(found, "d1", "glue", "bio"), value(found, "d1", "pca", "overall")
    assert (best["value"], worst["value"]) == (1.0, 0.0)
    bio = ((0.7 - 0.5) / 0.4 + (0.55 - 0.5) / 0.1 + (0.2 - 0.1) / 0.2) / 3
    mixing = ((0.6 - 0.2) / 0.6 + (0.7 - 0.5) / 0.4 + (0.8 - 0.6) / 0.4) / 3
    assert value(found, "d2", "glue", "bio")["value"] == pytest.approx(bio)
    assert value(found, "d2", "glue", "mixing")["value"] == pytest.approx(mixing)
    overall = value(found, "d2", "glue", "overall")
    assert overall["value"] == pytest.approx(0.6 * bio + 0.4 * mixing)
    assert (overall["status"], overall["n_cells"]) == ("ok", 9)
    assert overall["definition"] == minmax_name(minmax)
    assert overall["definition"].startswith("minmax:mine:")


def test_failed_runs_have_no_aggregate(scores):
    found = value(aggregate(scores, minmax_table(scores, "s")), "d2", "pca", "overall")
    assert np.isnan(found["value"])
    assert (found["status"], found["reason"], found["n_cells"]) == ("timeout", "why", 0)


def test_a_missing_metric_leaves_no_aggregate(scores):
    gone = scores["metric"] == "neighbor_conservation"
    scores.loc[gone, ["value", "status", "reason"]] = [np.nan, "not_applicable", "why"]
    found = aggregate(scores, minmax_table(scores, "s"))
    row = value(found, "d1", "glue", "bio")
    assert (row["status"], row["reason"]) == ("not_applicable", "neighbor_conservation: why")
    assert value(found, "d1", "glue", "overall")["status"] == "not_applicable"
    assert value(found, "d1", "glue", "mixing")["value"] == 1.0
    dropped = aggregate(scores[~gone], minmax_table(scores, "s"))
    assert "was not computed" in value(dropped, "d1", "glue", "bio")["reason"]


def test_a_metric_without_spread_is_left_out(scores):
    scores.loc[(scores["metric"] == "graph_connectivity"), "value"] = 1.0
    row = value(aggregate(scores, minmax_table(scores, "s")), "d2", "glue", "mixing")
    assert row["value"] == pytest.approx(((0.6 - 0.2) / 0.6 + (0.7 - 0.5) / 0.4) / 2)
    assert row["status"] == "ok"
    assert row["reason"] == "graph_connectivity is the same everywhere: left out"
    alone = scores[(scores["dataset"] == "d1") & (scores["method"] == "glue")]
    row = value(aggregate(alone, minmax_table(alone, "s")), "d1", "glue", "overall")
    assert row["status"] == "not_applicable"


def test_frozen_table_is_reused_and_values_may_leave_the_range(scores, tmp_path):
    frozen = minmax_table(scores[scores["dataset"] == "d2"], "main")
    frozen["minimum"] = frozen["minimum"] - 0.1
    path = tmp_path / "main.minmax.tsv"
    write_minmax(frozen, path)
    read = read_minmax(path)
    pd.testing.assert_frame_equal(read, frozen)
    assert minmax_name(read) == minmax_name(frozen)
    row = value(aggregate(scores, read), "d1", "glue", "bio")
    assert row["value"] > 1
    other = frozen.assign(maximum=frozen["maximum"] + 1e-9)
    assert minmax_name(other) != minmax_name(frozen)
    part = read[read["metric"] != "map"]
    row = value(aggregate(scores, part), "d1", "glue", "bio")
    assert row["status"] == "not_applicable"
    assert "has no range of map@glue-1pct" in row["reason"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("metric\tdefinition\n", "lacks the column 'minimum'"),
        (
            "metric\tdefinition\tminimum\tmaximum\tsource\nmap\tx\t1\t0\ts\n",
            "the smaller one first",
        ),
        ("metric\tdefinition\tminimum\tmaximum\tsource\nmap\tx\ta\t0\ts\n", "two numbers"),
        ("metric\tdefinition\tminimum\tmaximum\tsource\nm\tx\t0\t1\ts\nm\tx\t0\t1\ts\n", "twice"),
        ("", "cannot be read"),
    ],
)
def test_bad_minmax_files_are_named(tmp_path, text, message):
    path = tmp_path / "bad.tsv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_minmax(path)
    with pytest.raises(DataError, match=r"absent.tsv"):
        read_minmax(tmp_path / "absent.tsv")


@pytest.fixture
def seeds():
    rng = np.random.default_rng(0)
    runs = {}
    for dataset in ("d1", "d2"):
        for seed in range(3):
            runs[dataset, "glue", seed] = {"foscttm": 0.1 + 0.01 * rng.random()}
            runs[dataset, "pca", seed] = {"foscttm": 0.2 + 0.01 * rng.random()}
        runs[dataset, "random", 0] = {"foscttm": 0.5}
    runs["d2", "pca", 1] = {"foscttm": "failed"}
    for seed in range(3):
        runs["d2", "pca", seed] = runs["d2", "pca", seed]
        runs["d1", "crashes", seed] = {"foscttm": 0.01}
        runs["d2", "crashes", seed] = {"foscttm": "out_of_memory"}
    return table(runs)


def test_summary_counts_what_has_a_value(seeds):
    found = summarise(seeds).set_index(["dataset", "method"])
    own = seeds[(seeds["dataset"] == "d1") & (seeds["method"] == "glue")]["value"]
    row = found.loc[("d1", "glue")]
    assert (row["mean"], row["sd"]) == pytest.approx((own.mean(), own.std(ddof=1)))
    assert tuple(found.loc[("d2", "pca"), ["n", "n_runs"]]) == (2, 3)
    assert tuple(found.loc[("d2", "crashes"), ["n", "n_runs"]]) == (0, 3)
    assert np.isnan(found.loc[("d2", "crashes"), "mean"])
    assert np.isnan(found.loc[("d1", "random"), "sd"])


def test_dropping_out_does_not_pay_in_ranks(seeds):
    found = rank_methods(seeds, "foscttm").set_index("method")
    assert found.index[0] == "glue"
    # d1: crashes 1, glue 2, pca 3, random 4; d2: glue 1, pca 2, random 3, crashes 4.
    assert dict(found["mean_rank"]) == {"glue": 1.5, "pca": 2.5, "crashes": 2.5, "random": 3.5}
    assert tuple(found.loc["crashes", ["n", "n_places"]]) == (1, 2)


def test_paired_comparison_states_its_n(seeds):
    from scipy.stats import wilcoxon

    glue, pca = ("glue", "default"), ("pca", "default")
    found = compare_methods(seeds, "foscttm", glue, pca)
    assert (found.n, found.n_datasets, found.n_missing) == (5, 2, 1)
    assert (found.wins, found.losses, found.ties) == (5, 0, 0)
    assert found.mean_difference == pytest.approx(-0.1, abs=0.01)
    assert found.p_sign == pytest.approx(2 / 2**5)
    assert found.p_wilcoxon == pytest.approx(wilcoxon([1, 2, 3, 4, 5]).pvalue)
    turned = compare_methods(seeds, "foscttm", pca, glue)
    assert (turned.wins, turned.losses) == (0, 5)


def test_a_method_that_ran_once_stands_beside_every_seed(seeds):
    found = compare_methods(seeds, "foscttm", ("glue", "default"), ("random", "default"))
    assert (found.n, found.wins) == (6, 6)
    itself = compare_methods(seeds, "foscttm", ("glue", "default"), ("glue", "default"))
    assert (itself.ties, itself.mean_difference) == (6, 0.0)
    assert np.isnan(itself.p_wilcoxon)
    assert np.isnan(itself.p_sign)


def test_comparisons_refuse_what_cannot_be_compared(seeds):
    with pytest.raises(DataError, match=r"no row of foscttm for glu.default; there are: crashes"):
        compare_methods(seeds, "foscttm", ("glu", "default"), ("pca", "default"))
    two = pd.concat([seeds, seeds.assign(definition="other")])
    with pytest.raises(DataError, match="under 2 definitions"):
        rank_methods(two, "foscttm")
    with pytest.raises(DataError, match="cannot be ranked"):
        rank_methods(seeds.assign(metric="majority_share"), "majority_share")


# ------------------------------------------------------------------------------------------ scales


@pytest.fixture
def controlled():
    """Two data sets with both controls; FOSCTTM is better lower, RMSE has no largest value."""
    runs = {}
    for dataset, floor, ceiling in (("d1", 0.5, 0.0), ("d2", 0.4, 0.2)):
        runs[dataset, "random", 0] = {"foscttm": floor - 0.1, "map": 0.1, "rmse": 3.0}
        runs[dataset, "random", 1] = {"foscttm": floor + 0.1, "map": 0.3, "rmse": 5.0}
        runs[dataset, "truth", 0] = {"foscttm": ceiling, "map": 0.7, "rmse": 0.0}
        for seed in range(2):
            runs[dataset, "glue", seed] = {"foscttm": 0.1 + seed / 10, "map": 0.45, "rmse": 1.0}
    return table(runs)


def test_controls_are_the_ends_of_the_scale(controlled):
    anchors = control_anchors(controlled)
    own = anchors[anchors["metric"] == "foscttm"].set_index("dataset")
    np.testing.assert_allclose(own["zero"], [0.5, 0.4])
    np.testing.assert_allclose(own["one"], [0.0, 0.2])
    found = scale_scores(controlled, anchors)
    assert len(found) == len(controlled)
    scaled = {
        (row.dataset, row.method, row.seed, row.metric): row.value for row in found.itertuples()
    }
    assert scaled["d1", "glue", 0, "foscttm_scaled"] == pytest.approx(0.8)
    assert scaled["d2", "glue", 0, "foscttm_scaled"] == pytest.approx(1.5)  # not cut
    assert scaled["d2", "glue", 1, "map_scaled"] == pytest.approx(0.5)
    assert scaled["d1", "glue", 1, "rmse_scaled"] == pytest.approx(0.75)
    assert scaled["d1", "truth", 0, "foscttm_scaled"] == 1.0
    control = found[found["method"] == "random"].groupby(["dataset", "metric"])["value"].mean()
    np.testing.assert_allclose(control, 0.0, atol=1e-12)
    row = found[found["metric"] == "foscttm_scaled"].iloc[0]
    assert row["definition"] == f"strict-n/{anchors_name(anchors)}"
    assert anchors_name(anchors).startswith("controls:random.default=0,truth.default=1:")
    assert row["n_cells"] == 9


def test_the_name_of_a_scale_changes_with_its_numbers(controlled):
    anchors = control_anchors(controlled)
    assert anchors_name(anchors.sample(frac=1, random_state=0)) == anchors_name(anchors)
    other = anchors.assign(one=anchors["one"] + 1e-9)
    assert anchors_name(other) != anchors_name(anchors)
    swapped = control_anchors(controlled, one=("glue", "default"))
    assert anchors_name(swapped).startswith("controls:random.default=0,glue.default=1:")


def test_scaled_metrics_are_better_higher(controlled):
    ranks = rank_methods(scale_scores(controlled, control_anchors(controlled)), "foscttm_scaled")
    assert ranks["method"].tolist() == rank_methods(controlled, "foscttm")["method"].tolist()
    assert ranks["method"].iloc[-1] == "random"


def test_a_missing_control_leaves_no_scaled_value(controlled):
    gone = controlled[~((controlled["method"] == "truth") & (controlled["dataset"] == "d1"))]
    rows = (
        scale_scores(gone, control_anchors(gone))
        .set_index(["dataset", "method", "metric"])
        .sort_index()
    )
    row = rows.loc[("d1", "glue", "map_scaled")].iloc[0]
    assert (row["status"], row["n_cells"]) == ("not_applicable", 0)
    assert row["reason"] == "control truth.default is not in the table"
    assert np.isnan(row["value"])
    assert (rows.loc[("d2", "glue", "map_scaled"), "status"] == "ok").all()
    failed = controlled.copy()
    where = (failed["method"] == "random") & (failed["dataset"] == "d2")
    failed.loc[where, ["value", "status", "reason"]] = [np.nan, "timeout", "after 9 s"]
    rows = scale_scores(failed, control_anchors(failed))
    rows = rows.set_index(["dataset", "method", "metric"]).sort_index()
    row = rows.loc[("d2", "glue", "rmse_scaled")].iloc[0]
    assert row["reason"] == "control random.default has no value: timeout, after 9 s"
    # The control's own rows keep their status.
    assert (rows.loc[("d2", "random", "rmse_scaled"), "status"] == "timeout").all()
    elsewhere = scale_scores(controlled, control_anchors(controlled).query("dataset == 'd1'"))
    row = elsewhere[elsewhere["dataset"] == "d2"].iloc[0]
    assert row["status"] == "not_applicable"
    assert row["reason"].endswith("does not have this place")


def test_scales_without_a_span_or_upside_down_are_refused_row_by_row(controlled):
    equal = controlled.copy()
    equal.loc[equal["metric"] == "map", "value"] = 0.2
    found = scale_scores(equal, control_anchors(equal)).query("metric == 'map_scaled'")
    assert set(found["reason"]) == {"the two ends of the scale are equal here"}
    assert found["value"].isna().all()
    turned = control_anchors(controlled, zero=("truth", "default"), one=("random", "default"))
    found = scale_scores(controlled, turned)
    assert set(found["status"]) == {"not_applicable"}
    assert found["reason"].str.startswith("the end that should be 1 is worse").all()
    anchors = control_anchors(controlled)
    with pytest.raises(DataError, match="hold foscttm twice in d1, unpaired"):
        scale_scores(controlled, pd.concat([anchors, anchors.query("metric == 'foscttm'")]))


def test_failed_runs_and_numbers_without_direction_are_not_scaled(controlled):
    more = table({("d1", "glue", 7): {"map": "failed", "majority_share": 0.4}})
    both = pd.concat([controlled, more])
    found = scale_scores(both, control_anchors(both))
    assert "majority_share_scaled" not in set(found["metric"])
    row = found[found["seed"] == 7].iloc[0]
    assert (row["status"], row["reason"]) == ("failed", "why")


def test_scibs_overall_by_hand(controlled):
    anchors = range_anchors(controlled, "mine")
    own = anchors[anchors["dataset"] == "d1"].set_index("metric")
    assert tuple(own.loc["foscttm", ["zero", "one"]]) == (0.6, 0.0)
    found = overall_scores(controlled, ["map"], ["foscttm", "rmse"], anchors)
    assert len(found) == 3 * len(controlled[RUN].drop_duplicates())
    row = value(found[found["seed"] == 0], "d1", "glue", "scib_overall")
    biology, batch = (0.45 - 0.1) / 0.6, ((0.6 - 0.1) / 0.6 + (5 - 1) / 5) / 2
    assert row["value"] == pytest.approx(0.6 * biology + 0.4 * batch)
    assert row["definition"].startswith("0.6bio+0.4batch:range:mine:")
    best = value(found, "d1", "truth", "scib_overall")
    assert best["value"] == 1.0
    # As they are: FOSCTTM is turned within its range.
    found = overall_scores(controlled, ["map"], ["foscttm"], weights=(3, 1))
    row = value(found[found["seed"] == 0], "d1", "glue", "scib_overall")
    assert row["value"] == pytest.approx(0.75 * 0.45 + 0.25 * 0.9)
    assert row["definition"].startswith("0.75bio+0.25batch:raw:")
    assert rank_methods(found, "scib_overall")["method"].iloc[0] == "truth"


def test_an_overall_score_is_named_by_what_is_in_it(controlled):
    def name(*arguments, **options):
        (only,) = overall_scores(controlled, *arguments, **options)["definition"].unique()
        return only

    first = name(["map"], ["foscttm"])
    assert name(["map"], ["foscttm"]) == first
    assert name(["foscttm"], ["map"]) != first
    assert name(["map"], ["foscttm"], control_anchors(controlled)) != first


def test_a_run_that_lacks_a_metric_has_no_overall_score(controlled):
    cut = controlled[~((controlled["metric"] == "map") & (controlled["seed"] == 1))]
    found = overall_scores(cut, ["map"], ["foscttm"]).query("seed == 1 and method == 'glue'")
    reasons = dict(zip(found["metric"], found["reason"], strict=True))
    assert reasons == dict.fromkeys(("scib_bio", "scib_overall"), "map was not computed") | {
        "scib_batch": ""
    }
    assert found["metric"].isin(OVERALLS).all()
    failed = pd.concat([controlled, table({("d1", "slow", 0): dict.fromkeys(BIO, "timeout")})])
    row = value(overall_scores(failed, ["map"], ["cell_type_asw"]), "d1", "slow", "scib_overall")
    assert (row["status"], row["reason"], row["n_cells"]) == ("timeout", "why", 0)


@pytest.mark.parametrize(
    ("biology", "batch", "message"),
    [
        ([], ["map"], "one or more metrics of biology and of batch"),
        (["map"], ["map"], "each once"),
        (["map"], ["rmse"], "rmse is better lower and has no largest value: give anchors"),
        (["map"], ["majority_share"], "no better and worse"),
    ],
)
def test_overall_scores_that_mean_nothing_are_refused(controlled, biology, batch, message):
    with pytest.raises(DataError, match=message):
        overall_scores(controlled, biology, batch)


# --------------------------------------------------------------------------------- ranks and tests


def many(gaps, n_datasets=8, n_seeds=3, seed=0, sd=0.05):
    """Scores of methods m0, m1, ... whose means lie a given way below the first's."""
    rng = np.random.default_rng(seed)
    level = rng.normal(size=n_datasets)
    return table(
        {
            (f"d{d}", f"m{m}", s): {"map": level[d] - gap + sd * rng.normal()}
            for m, gap in enumerate(gaps)
            for d in range(n_datasets)
            for s in range(n_seeds)
        }
    )


def test_intervals_stand_beside_the_ranks(seeds):
    found = rank_intervals(seeds, "foscttm", n_resamples=500, seed=3, level=0.9)
    plain = rank_methods(seeds, "foscttm")
    pd.testing.assert_frame_equal(found[list(plain)], plain)
    assert (found["lower"] <= found["mean_rank"]).all()
    assert (found["mean_rank"] <= found["upper"]).all()
    assert found["share_first"].sum() == pytest.approx(1.0)
    one = found.iloc[0]
    assert (one["n_datasets"], one["n_resamples"], one["level"], one["seed"]) == (2, 500, 0.9, 3)
    again = rank_intervals(seeds.sample(frac=1, random_state=0), "foscttm", n_resamples=500, seed=3)
    assert set(again["method"]) == set(found["method"])


def test_methods_far_apart_have_intervals_of_no_width():
    found = rank_intervals(many([0, 1, 2]), "map", n_resamples=300)
    assert found[["mean_rank", "lower", "upper"]].to_numpy().tolist() == [
        [k] * 3 for k in (1, 2, 3)
    ]
    assert found["share_first"].tolist() == [1.0, 0.0, 0.0]
    alone = rank_intervals(many([0]), "map", n_resamples=20)
    assert (alone.loc[0, "lower"], alone.loc[0, "upper"]) == (1.0, 1.0)


def test_runs_that_stand_twice_are_refused():
    scores = many([0, 1])
    with pytest.raises(DataError, match="stands twice in the table for the run d0, unpaired, m0"):
        rank_intervals(pd.concat([scores, scores.head(1)]), "map")
    with pytest.raises(DataError, match="no row of foscttm; there are: map"):
        compare_all(scores, "foscttm")


def test_all_pairs_of_data_sets_by_hand():
    from scipy.stats import wilcoxon

    scores = many([0, 0.02, 1.0], n_datasets=9)
    found = compare_all(scores, "map").set_index(["method", "other_method"])
    means = scores.groupby(["method", "dataset"])["value"].mean()
    p = []
    for first, second in (("m0", "m1"), ("m0", "m2"), ("m1", "m2")):
        difference = means[first] - means[second]
        row = found.loc[(first, second)]
        p.append(wilcoxon(difference).pvalue)
        assert row["p"] == pytest.approx(p[-1])
        assert row["mean_difference"] == pytest.approx(difference.mean())
        assert (row["wins"], row["n"], row["n_missing"]) == ((difference > 0).sum(), 9, 0)
    assert found["p_corrected"].tolist() == pytest.approx([p[0], 3 * p[1], 3 * p[2]])
    assert (found["smallest_p"] == 2**-8).all()
    assert set(found["correction"]) == {"holm"}
    assert set(found["unit"]) == {"dataset"}


def test_pairs_of_runs_are_those_of_the_comparison_of_two(seeds):
    found = compare_all(seeds, "foscttm", unit="run", failures="left_out", correction="none")
    assert len(found) == 6
    for row in found.itertuples():
        two = compare_methods(
            seeds, "foscttm", (row.method, row.preset), (row.other_method, row.other_preset)
        )
        assert (row.n, row.n_missing) == (two.n, two.n_missing)
        assert (row.wins, row.losses, row.ties) == (two.wins, two.losses, two.ties)
        assert row.mean_difference == pytest.approx(two.mean_difference)
        assert row.p == row.p_corrected == pytest.approx(two.p_wilcoxon)


def test_dropping_out_does_not_pay_in_tests_either(seeds):
    lost = compare_all(seeds, "foscttm").set_index(["method", "other_method"])
    out = compare_all(seeds, "foscttm", failures="left_out").set_index(["method", "other_method"])
    # crashes wins d1 and has no value in d2.
    row = lost.loc[("crashes", "glue")]
    assert (row["n"], row["n_missing"], row["wins"], row["losses"]) == (2, 1, 1, 1)
    row = out.loc[("crashes", "glue")]
    assert (row["n"], row["n_missing"], row["wins"], row["losses"]) == (1, 1, 1, 0)
    runs = compare_all(seeds, "foscttm", unit="run").set_index(["method", "other_method"])
    row = runs.loc[("crashes", "glue")]
    assert (row["n"], row["n_missing"], row["wins"], row["losses"]) == (6, 3, 3, 3)
    # Of two that failed in the same run, neither won it.
    row = runs.loc[("crashes", "pca")]
    assert (row["n"], row["wins"], row["losses"]) == (5, 3, 2)
    # A method that never ran in a data set lost it, as in the ranks.
    part = seeds[~((seeds["method"] == "random") & (seeds["dataset"] == "d1"))]
    for unit, n in (("dataset", 2), ("run", 6)):
        row = compare_all(part, "foscttm", unit=unit).set_index(["method", "other_method"])
        assert (row.loc[("glue", "random"), "wins"], row.loc[("glue", "random"), "n"]) == (n, n)


def test_unknown_options_are_refused(seeds):
    with pytest.raises(ValueError, match="Got 'seed' and 'loss'"):
        compare_all(seeds, "foscttm", unit="seed")
    with pytest.raises(ValueError, match="test 't' cannot count failures as losses"):
        compare_all(seeds, "foscttm", test="t")
    with pytest.raises(ValueError, match="unknown test 'u'"):
        compare_all(seeds, "foscttm", test="u")


def test_letters_say_who_cannot_be_told_apart():
    # Two pairs of equals, far apart, on enough data sets to say so.
    scores = many([0, 0, 1, 1], n_datasets=10)
    comparisons = compare_all(scores, "map")
    found = tie_table(comparisons, rank_methods(scores, "map"))
    letters = dict(zip(found["method"], found["ties"], strict=True))
    assert letters == {"m0": "a", "m1": "a", "m2": "b", "m3": "b"}
    assert (found["n_separated"] == 2).all()
    for row in comparisons.itertuples():
        tied = bool(set(letters[row.method]) & set(letters[row.other_method]))
        assert tied == (row.p_corrected > 0.05)
    # On four data sets nothing can be told apart, whatever the difference.
    few = many([0, 1, 2], n_datasets=4)
    comparisons = compare_all(few, "map")
    assert (comparisons["smallest_p"] > 0.05).all()
    assert set(tie_table(comparisons, rank_methods(few, "map"))["ties"]) == {"a"}
    alone = many([0])
    assert tie_table(compare_all(alone, "map"), rank_methods(alone, "map"))["ties"].tolist() == [
        "a"
    ]
    with pytest.raises(DataError, match=r"the ranks lack m2.default, which is compared"):
        tie_table(comparisons, rank_methods(few[few["method"] != "m2"], "map"))
