from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from scbraid import plots
from scbraid.errors import DataError, UnknownNameError
from scbraid.plots import FIGURES, kind_of
from scbraid.plots.kinds import caption_files, write_captions
from scbraid.plots.runs import read_run, read_runs
from scbraid.plots.study import varying_setting

ROOT = Path(__file__).resolve().parents[2]


def write_run(results, row, **told):
    slug = row["method"] if row["preset"] == "default" else f"{row['method']}.{row['preset']}"
    folder = results / "runs" / row["dataset"] / row["condition"] / slug / str(row["seed"])
    folder.mkdir(parents=True)
    (folder / "status.json").write_text(json.dumps({**row, **told}))
    return folder


@pytest.fixture
def study(tmp_path, make_scores, make_runs):
    """Results folder of a small study as the workflow leaves it."""
    scores = make_scores(
        methods=[
            ("glue", "default", "GLUE", "subject", ""),
            ("glue", "paper", "GLUE", "subject", ""),
        ]
    )
    keys = ["dataset", "condition", "method", "preset", "seed", "status", "reason"]
    folders = [
        write_run(tmp_path, {key: row[key] for key in keys}, seconds=row["seconds"],
                  cpu_seconds=1.0, peak_rss_mib=100.0)
        for row in make_runs(scores).to_dict("records")
    ]  # fmt: skip
    path = tmp_path / "scores" / "demo.tsv"
    path.parent.mkdir()
    scores.to_csv(path, sep="\t", index=False)
    return tmp_path, path, folders


def test_figures_of_a_study_from_its_files(study, make_history, guidance, tmp_path):
    results, scores, folders = study
    make_history(stages=(("fit", 4),)).to_csv(folders[1] / "history.tsv", sep="\t", index=False)
    prepared = results / "prepared" / "snare_cortex_dev" / "unpaired"
    prepared.mkdir(parents=True)
    guidance.save(prepared / "guidance.npz")
    tables = {}
    for kind in ("coverage", "score_summary", "resources", "training_history", "guidance_summary"):
        stem = tmp_path / "figures" / kind
        drawing = plots.draw_study_figure(kind, None, scores=scores, results=results, runs=folders)
        tables[kind] = drawing.table
        assert not stem.exists()
    assert set(tables["score_summary"]["panel"]) >= {"map", "seconds"}
    assert set(tables["resources"]["label"]) == {"GLUE", "GLUE (paper)"}
    assert tables["training_history"]["run"].iloc[0] == (
        "GLUE, seed 1 · snare_cortex_dev, unpaired"
    )
    assert set(tables["guidance_summary"]["graph"]) == {"snare_cortex_dev · unpaired"}


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("training_history", "no finished run of the study has a history.tsv"),
        ("guidance_summary", "no guidance graph of the study below"),
        ("foscttm", "the table of scores of the metric 'foscttm' has no rows"),
        ("umap_grid", "no method has an embedding"),
    ],
)
def test_a_figure_with_nothing_to_show_says_so_and_stops_nothing(
    kind, reason, study, text_boxes, tmp_path
):
    results, path, folders = study
    scores = pd.read_csv(path, sep="\t").assign(value=None, status="failed")
    arguments = {"scores": scores, "results": results, "runs": folders}
    if kind == "training_history":
        arguments["scores"] = path
    drawing = plots.draw_study_figure(kind, tmp_path / "out" / kind, **arguments)
    boxes = text_boxes(drawing.figure)
    assert boxes.overlaps() == []
    assert boxes.outside() == []
    assert drawing.table["panel"].tolist() == [FIGURES[kind].title]
    assert reason in drawing.table["reason"].iloc[0]
    assert {file.suffix for file in (tmp_path / "out").iterdir()} == {".pdf", ".png", ".tsv"}


def test_what_is_wrong_is_still_an_error(study):
    results, path, _ = study
    scores = pd.read_csv(path, sep="\t").drop(columns="value")
    with pytest.raises(DataError, match="lacks the column value") as caught:
        plots.draw_study_figure("foscttm", None, scores=scores, results=results)
    assert caught.value.__notes__ == ["while drawing the figure 'foscttm'"]


def test_unknown_kinds_get_the_nearest_name(study):
    results, scores, _ = study
    with pytest.raises(UnknownNameError, match="'umap'; did you mean 'umap_grid'"):
        plots.draw_study_figure("umap", None, scores=scores, results=results)


def test_the_varying_setting_is_found_seeds_apart():
    def setting(*conditions):
        return varying_setting(pd.DataFrame({"condition": conditions}))

    assert setting("unpaired", "unpaired@corrupt_rate=0.2+corrupt_seed=3") == "corrupt_rate"
    assert setting("unpaired+cells=100", "unpaired+cells=200+subsample_seed=1") == "cells"
    with pytest.raises(DataError, match="of this study's: none does"):
        setting("unpaired")
    with pytest.raises(DataError, match="n_pcs, corrupt_rate"):
        setting("unpaired", "unpaired+n_pcs=20@corrupt_rate=0.2")


def test_runs_in_any_state_become_a_row(tmp_path):
    base = tmp_path / "runs" / "d" / "unpaired"
    states = {"0": '{"status": "ok", "seconds": 3}', "1": '{"status": "ti', "2": "[]", "3": None}
    for seed, content in states.items():
        folder = base / "glue.paper+latent_dim=20" / seed
        folder.mkdir(parents=True)
        if content is not None:
            (folder / "status.json").write_text(content)
    (base / "glue.paper+latent_dim=20" / ".run-x").mkdir()
    table = read_runs(tmp_path).set_index("seed")
    assert table["status"].tolist() == ["ok", "failed", "failed", "missing"]
    assert set(table["method"]) == {"glue+latent_dim=20"}
    assert set(table["preset"]) == {"paper"}
    assert "is not valid JSON" in table.loc[1, "reason"]
    assert "holds no status" in table.loc[2, "reason"]
    assert "the run has not ended" in table.loc[3, "reason"]
    assert read_run(base / "glue.paper+latent_dim=20" / "0")["seconds"] == 3
    assert read_runs(tmp_path / "nothing").empty


def test_kinds_are_found_by_file_name():
    assert kind_of("umap_grid").name == "umap_grid"
    assert kind_of("training_history.glue").name == "training_history"
    assert kind_of("something_else") is None
    for kind in FIGURES.values():
        assert hasattr(plots, kind.name)
        assert kind.caption.endswith(".")


def test_captions_of_the_workflow_are_those_of_the_package(tmp_path):
    write_captions(tmp_path)
    for name, text in caption_files().items():
        assert (tmp_path / name).read_text("utf-8") == text
        kept = ROOT / "workflow" / "report" / name
        assert kept.read_text("utf-8") == text, f"write {kept} again with write_captions"


def test_captions_are_valid_markup():
    docutils = pytest.importorskip("docutils.core")
    for name, text in caption_files().items():
        body = docutils.publish_parts(
            text, writer="html", settings_overrides={"halt_level": 2, "report_level": 2}
        )["body"]
        assert "problematic" not in body, name
