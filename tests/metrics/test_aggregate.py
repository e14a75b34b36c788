from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scbraid.errors import DataError
from scbraid.metrics import METRICS
from scbraid.metrics.aggregate import (
    aggregate,
    compare_methods,
    minmax_name,
    minmax_table,
    rank_methods,
    read_minmax,
    summarise,
    write_minmax,
)

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
                    "definition": METRICS[metric].definition,
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
