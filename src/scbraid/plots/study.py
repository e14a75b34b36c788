"""Draw a figure of a study from the files of the pipeline."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scbraid.errors import DataError, UnknownNameError
from scbraid.plots.kinds import FIGURES
from scbraid.registry import near_miss

if TYPE_CHECKING:
    import pandas as pd

    from scbraid.plots.style import Drawing

logger = logging.getLogger("scbraid")


def draw_study_figure(
    kind: str,
    stem: str | os.PathLike[str] | None,
    *,
    scores: str | Path | pd.DataFrame,
    results: str | Path,
    runs: Sequence[str | Path] = (),
    metrics: Sequence[str] | None = None,
) -> Drawing:
    """Draw one kind of figure for a study and write pdf, png and tsv.

    Parameters
    ----------
    kind
        Name in :data:`scbraid.plots.FIGURES`.
    stem
        Path of the files without suffix; nothing is written when None.
    scores
        Long table of the study or its file; columns display_name, role and uses are used for names
        and marks where they exist.
    results
        Results folder: prepared data, guidance graphs.
    runs
        Folders of the study's runs.
    metrics
        Metrics of ``score_summary`` and ``robustness_curve``, when other than the usual ones.

    Raises
    ------
    UnknownNameError
        For a kind that does not exist, with the nearest one.
    DataError
        When a file is missing or wrong; it names the figure.

    Notes
    -----
    A study that has nothing for a figure (no pairs for FOSCTTM, no finished run) gets one that says
    so: it must not stop the others.
    """
    if kind not in FIGURES:
        raise UnknownNameError(near_miss(kind, FIGURES, "figure"))
    from scbraid.plots import tidy

    table = tidy.read_table(scores) if isinstance(scores, (str, Path)) else scores
    from scbraid.plots.missing import missing_figure
    from scbraid.plots.style import NothingToDraw

    try:
        return _draw(kind, stem, table, Path(results), [Path(run) for run in runs], metrics)
    except NothingToDraw as nothing:
        logger.warning("%s: %s", kind, nothing)
        return missing_figure(FIGURES[kind].title, str(nothing), stem)
    except DataError as error:
        error.add_note(f"while drawing the figure {kind!r}")
        raise


def _draw(
    kind: str,
    stem: str | os.PathLike[str] | None,
    scores: pd.DataFrame,
    results: Path,
    runs: list[Path],
    metrics: Sequence[str] | None,
) -> Drawing:
    from scbraid import plots

    match kind:
        case "coverage":
            return plots.coverage(scores, stem)
        case "score_summary":
            return plots.score_summary(scores, stem, runs=_runs(runs, scores), metrics=metrics)
        case "bio_vs_mixing":
            return plots.bio_vs_mixing(scores, stem)
        case "foscttm":
            return plots.foscttm(scores, stem)
        case "task_scores":
            return plots.task_scores(scores, stem)
        case "umap_grid":
            return plots.umap_grid(plots.umap_panels(runs, _truths(scores, results), scores), stem)
        case "robustness_curve":
            setting = varying_setting(scores)
            chosen = metrics or ("foscttm", "overall")
            return plots.robustness_curve(scores, stem, setting=setting, metrics=chosen)
        case "training_history":
            return plots.training_history(_histories(runs, scores), stem)
        case "guidance_summary":
            return plots.guidance_summary(_graphs(scores, results), stem)
        case _:
            return plots.resources(_runs(runs, scores), stem)


def _runs(folders: list[Path], scores: pd.DataFrame) -> pd.DataFrame:
    from scbraid.plots import tidy
    from scbraid.plots.runs import read_runs

    return tidy.copy_method_info(read_runs("", folders), scores)


def _truths(scores: pd.DataFrame, results: Path) -> dict[tuple[str, str], Path]:
    places = scores[["dataset", "condition"]].drop_duplicates().astype(str)
    truths = {}
    for dataset, condition in places.itertuples(index=False):
        data = condition.partition("@")[0]
        truths[dataset, data] = results / "prepared" / dataset / data / "truth.parquet"
    return truths


def varying_setting(scores: pd.DataFrame) -> str:
    """Name of the one numeric setting, seeds apart, in which the conditions of a table differ.

    Raises
    ------
    DataError
        When none or several vary; it names them.
    """
    from scbraid.conditions import Condition
    from scbraid.plots.curves import SEED_OF

    values: dict[str, set[float]] = {}
    for slug in scores["condition"].astype(str).unique():
        condition = Condition.parse(slug)
        for part in (condition.data, condition.guidance):
            for name, value in part.arguments().items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    values.setdefault(name, set()).add(value)
    varying = [
        name for name, found in values.items() if len(found) > 1 and name not in SEED_OF.values()
    ]
    if len(varying) != 1:
        found = ", ".join(varying) or "none does"
        msg = f"a robustness curve needs one numeric setting that varies; of this study's: {found}"
        raise DataError(msg)
    return varying[0]


def _histories(folders: list[Path], scores: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Histories by title: of each method, data set and condition the lowest finished seed."""
    from scbraid.plots import tidy
    from scbraid.plots.curves import read_history
    from scbraid.plots.style import NothingToDraw

    finished = _runs(folders, scores)
    finished = tidy.add_identity(finished[finished["status"] == "ok"])
    histories = {}
    for _, own in finished.groupby(tidy.ROW, sort=True):
        for row in own.sort_values("seed").itertuples(index=False):
            path = Path(row.folder) / "history.tsv"
            if path.is_file():
                title = f"{row.label}, seed {row.seed} · {row.dataset}, {row.condition}"
                histories[title] = read_history(path)
                break
    if not histories:
        msg = "no finished run of the study has a history.tsv"
        raise NothingToDraw(msg)
    return histories


def _graphs(scores: pd.DataFrame, results: Path) -> dict[str, pd.DataFrame]:
    from scbraid.guidance.graph import Guidance
    from scbraid.plots.graph import guidance_table
    from scbraid.plots.style import NothingToDraw

    graphs = {}
    places = scores[["dataset", "condition"]].drop_duplicates().astype(str)
    for dataset, condition in places.sort_values(["dataset", "condition"]).itertuples(index=False):
        path = results / "prepared" / dataset / condition / "guidance.npz"
        if path.is_file():
            graphs[f"{dataset} · {condition}"] = guidance_table(Guidance.load(path))
        else:
            logger.info("no guidance graph at %s", path)
    if not graphs:
        msg = f"no guidance graph of the study below {results / 'prepared'}"
        raise NothingToDraw(msg)
    return graphs
