from __future__ import annotations

import pandas as pd
import pytest

from scbraid.errors import DataError
from scbraid.metrics.aggregate import OVERALLS
from scbraid.metrics.registry import AGGREGATES
from scbraid.metrics.registry import METRICS as REGISTRY
from scbraid.metrics.tasks import TASK_METRICS
from scbraid.plots import tidy
from scbraid.plots.comparison import method_keys


def test_listed_metrics_agree_with_the_registry():
    for name, shown in tidy.METRICS.items():
        if name in REGISTRY:
            assert shown.group == REGISTRY[name].group, name
            assert shown.higher_is_better == (REGISTRY[name].direction == "higher"), name
    assert {aggregate.name for aggregate in AGGREGATES} <= set(tidy.METRICS)
    for name in REGISTRY.names():
        assert tidy.metric_display(name).group in tidy.GROUPS


def test_unlisted_metrics_are_shown_under_their_own_name():
    assert tidy.metric_display("my_metric").label == "my\nmetric"
    order = tidy.metric_order(["overall", "my_metric", "foscttm", "map", "nan_cells"])
    assert order == ["map", "foscttm", "my_metric", "overall", "nan_cells"]
    assert tidy.shown_metrics(["nan_cells", "ari_fixed", "ari", "my_metric", "kbet"]) == [
        "ari",
        "my_metric",
    ]
    assert tidy.metric_title("my_metric") == "my metric"


def test_scaled_forms_overalls_and_tasks_are_known():
    shown = tidy.metric_display("foscttm_scaled@strict-n/controls:x")
    assert (shown.group, shown.higher_is_better) == ("alignment", True)
    assert shown.label.endswith("\nscaled")
    assert tidy.metric_title("foscttm_scaled") == "FOSCTTM, scaled"
    assert tidy.metric_display("rmse").higher_is_better is False
    assert tidy.metric_display("rmse").group == tidy.metric_display("rmse_scaled").group == "task"
    # What merely ends so is a name like others.
    assert tidy.metric_display("my_scaled").group == "other"
    names = ["scib_overall", "foscttm_scaled", "rmse", "rmse_scaled", "map", "my_scaled"]
    assert tidy.shown_metrics(names) == ["map", "rmse", "my_scaled", "scib_overall"]
    assert tidy.metric_order(names) == [
        *("map", "foscttm_scaled", "rmse", "rmse_scaled", "my_scaled", "scib_overall"),
    ]
    assert set(OVERALLS) <= set(tidy.METRICS)
    for name in TASK_METRICS.names():
        assert tidy.metric_display(name).group == "task"


@pytest.mark.parametrize(
    ("method", "preset", "slug"),
    [
        ("glue", "", "glue"),
        ("glue", "default", "glue"),
        ("glue", "paper", "glue.paper"),
        ("glue.paper", "paper", "glue.paper"),
        ("glue:latent_dim=20", "default", "glue+latent_dim=20"),
        ("glue+latent_dim=20,lr=0.1", "paper", "glue.paper+latent_dim=20,lr=0.1"),
        ("glue.paper+lr=0.1", "paper", "glue.paper+lr=0.1"),
    ],
)
def test_identity_is_the_name_of_the_run_folder(method, preset, slug):
    assert tidy.method_slug(method, preset) == slug


def test_labels_say_what_differs_from_the_plain_method():
    table = pd.DataFrame(
        {
            "dataset": "d",
            "condition": "c",
            "method": ["glue", "glue", "glue+latent_dim=20", "other"],
            "preset": ["default", "paper", "paper", None],
            "display_name": ["GLUE", "GLUE", "GLUE", None],
        }
    )
    named = tidy.add_identity(table)
    assert named["label"].tolist() == [
        "GLUE",
        "GLUE (paper)",
        "GLUE (paper, latent_dim=20)",
        "other",
    ]
    assert set(named["role"]) == {"baseline"}


def test_method_info_reaches_presets_and_options():
    methods = [{"name": "glue", "title": "GLUE", "role": "subject", "uses": ["guidance", "labels"]}]
    table = pd.DataFrame({"method": ["glue", "glue.paper", "glue+latent_dim=20", "gluey"]})
    found = tidy.add_method_info(table, methods)
    assert found["display_name"].tolist() == ["GLUE", "GLUE", "GLUE", ""]
    assert found["role"].tolist() == ["subject"] * 3 + [""]
    assert tidy.split_uses(found["uses"].iloc[0]) == ("guidance", "labels")


def test_uses_may_be_text_or_a_sequence():
    assert tidy.split_uses("labels, pairing") == ("labels", "pairing")
    assert tidy.split_uses(["pairing", "labels"]) == ("labels", "pairing")
    assert tidy.split_uses(float("nan")) == tidy.split_uses(None) == tidy.split_uses("") == ()


def test_a_run_is_ok_when_any_metric_is(make_scores):
    scores = make_scores(seeds=1)
    scores.loc[scores["metric"] == "foscttm", ["value", "status"]] = [None, "not_applicable"]
    runs = tidy.runs_of_scores(tidy.prepare_scores(scores)).set_index("method_id")
    assert runs.loc["glue", "status"] == "ok"
    assert runs.loc["liger", "status"] == "timeout"


def test_spread_is_that_of_a_sample():
    table = pd.DataFrame({"g": ["a", "a", "b", "b"], "value": [1.0, 3.0, 5.0, None]})
    found = tidy.spread(table, ["g"]).set_index("g")
    assert found.loc["a", "sd"] == pytest.approx(2**0.5)
    assert found.loc["b", "n"] == 1
    assert pd.isna(found.loc["b", "sd"])


def test_titles_leave_out_what_is_common():
    def titles(*places):
        table = pd.DataFrame(places, columns=["dataset", "condition"])
        return [title for _, _, title in tidy.facets(table)]

    assert titles(("d", "c")) == ["d · c"]
    assert titles(("d", "c"), ("e", "c")) == ["d", "e"]
    assert titles(("d", "c"), ("d", "k")) == ["c", "k"]
    assert titles(("d", "c"), ("e", "k")) == ["d · c", "e · k"]


def test_a_method_keeps_its_colour_whatever_the_others_score(make_scores):
    table = tidy.prepare_scores(make_scores())
    by_score = pd.Series(range(13), index=sorted(set(table["method_id"])))
    first = method_keys(tidy.method_rows(table))
    second = method_keys(tidy.method_rows(table, by_score))
    assert first == second
    looks = [(key.color, key.marker) for key in first.values()]
    assert len(set(looks)) == len(looks) == 13


def test_tables_keep_names_that_look_like_missing_values(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text("method\tvalue\nNA\t1\nnull\t\n")
    table = tidy.read_table(path)
    assert table["method"].tolist() == ["NA", "null"]
    assert table["value"].isna().tolist() == [False, True]


def test_unreadable_tables_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no table at .*gone\.tsv; run the step"):
        tidy.read_table(tmp_path / "gone.tsv")
    (tmp_path / "empty.tsv").write_text("")
    with pytest.raises(DataError, match=r"empty\.tsv is no tab-separated table"):
        tidy.read_table(tmp_path / "empty.tsv")


def test_draws_are_further_runs_of_one_condition():
    table = pd.DataFrame(
        {
            "dataset": ["a", "a", "a", "b", "a"],
            "condition": [
                "matching",
                "matching+split_seed=2",
                "matching+use_batch=true+split_seed=2",
                "matching+split_seed=2",
                "unpaired+cells=9+subsample_seed=1@corrupt_rate=0.2+corrupt_seed=1",
            ],
            "seed": [0, 0, 1, 0, 0],
        }
    )
    pooled = tidy.pool_draws(table)
    # A condition of which a data set has one draw alone keeps its name.
    assert pooled["condition"].tolist() == ["matching", "matching", *table["condition"][2:]]
    assert pooled["seed"].tolist() == ["0, split_seed=0", "0, split_seed=2", "1", "0", "0"]
    assert tidy.seed_words(pooled) == "seeds and draws"
    assert tidy.seed_words(table) == "seeds"


def test_without_further_draws_a_table_stays_as_it_is(make_scores):
    table = tidy.prepare_scores(make_scores(conditions=("unpaired", "unpaired@corrupt_seed=1")))
    pd.testing.assert_frame_equal(tidy.pool_draws(table), table)


def test_draws_of_cells_are_pooled_under_every_guidance():
    slug = "unpaired+cells=9{}@corrupt_rate=0.2"
    table = pd.DataFrame(
        {
            "dataset": "a",
            "condition": [slug.format(""), slug.format("+subsample_seed=3")],
            "seed": 1,
        }
    )
    pooled = tidy.pool_draws(table)
    assert set(pooled["condition"]) == {slug.format("")}
    assert pooled["seed"].tolist() == ["1, subsample_seed=0", "1, subsample_seed=3"]
