"""UMAP panels of cell embeddings, one method a row."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scbraid.errors import DataError
from scbraid.files import read_json
from scbraid.plots import tidy
from scbraid.plots.style import (
    HEADING_MM,
    MODALITY_NAMES,
    MUTED,
    QUALITATIVE,
    SIZE_SMALL,
    SIZE_TEXT,
    STATUS_WORDS,
    TWO_COLUMNS_MM,
    UNLABELLED,
    Drawing,
    Key,
    Legend,
    NothingToDraw,
    Sheet,
    category_colours,
    finish,
    panel_heading,
    paragraph_height,
    shorten,
    style,
)

N_NEIGHBORS, MIN_DIST, UMAP_SEED = 15, 0.5, 0
LEAST_CELLS = 4
SEED_CRITERIA = ("cell_type_asw", "omics_asw")
UNLABELLED_NAME = "(no label)"
OTHER_NAME = "(rarer types)"
_COLUMNS = {"modality": "layer", "cell_type": "cell type", "batch": "batch"}
_TILE = 1024
JOINT = "joint"  # modality of the cells of an embedding that has one row for all layers


# ----------------------------------------------------------------------------------- coordinates


def cosine_neighbors(X: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Exact nearest neighbours by cosine distance, each row its own first neighbour.

    A search by tiles of the distance matrix: no compilation, memory of one tile, and the same
    result on every run. Rows of zero length are at distance 1 from all others.

    Parameters
    ----------
    X
        (n, d) values.
    k
        Neighbours, itself included; at most n.

    Returns
    -------
    tuple
        Indices (n, k) int32 and distances (n, k) float32, rising.
    """
    norms = np.linalg.norm(X, axis=1, keepdims=True)
    unit = (X / np.where(norms > 0, norms, 1)).astype(np.float32)
    n = len(unit)
    indices = np.empty((n, k), dtype=np.int32)
    distances = np.empty((n, k), dtype=np.float32)
    for start in range(0, n, _TILE):
        stop = min(start + _TILE, n)
        tile = 1.0 - unit[start:stop] @ unit.T
        rows = np.arange(start, stop)
        tile[np.arange(stop - start), rows] = -1.0  # itself first, whatever rounding says
        nearest = np.argpartition(tile, k - 1, axis=1)[:, :k]
        nearest.sort(axis=1)  # among equal distances the lower index comes first
        values = np.take_along_axis(tile, nearest, axis=1)
        order = np.argsort(values, axis=1, kind="stable")
        indices[start:stop] = np.take_along_axis(nearest, order, axis=1)
        distances[start:stop] = np.take_along_axis(values, order, axis=1)
    return indices, np.clip(distances, 0.0, None)


def umap_coordinates(embedding: np.ndarray, seed: int = UMAP_SEED) -> np.ndarray:
    """UMAP of an embedding: 15 neighbours by cosine, min_dist 0.5 (as in GLUE's figures).

    Neighbours are exact and searched here: umap-learn's own search would compile for ten seconds
    and more. What umap-learn compiles for its layout, it compiles once a process, so compute the
    UMAPs of all methods in one. Same seed, same machine: same coordinates. One thread.

    Parameters
    ----------
    embedding
        (n_cells, k) values; rows with a missing value get missing coordinates.
    seed
        Seed of the layout.

    Returns
    -------
    ndarray
        (n_cells, 2) float32.

    Raises
    ------
    DataError
        When the embedding is no matrix or has fewer than :data:`LEAST_CELLS` usable cells.
    """
    embedding = np.asarray(embedding)
    if embedding.ndim != 2:
        msg = f"an embedding of shape (cells, dimensions) is expected. Got {embedding.shape}"
        raise DataError(msg)
    usable = np.isfinite(embedding).all(axis=1)
    n = int(usable.sum())
    if n < LEAST_CELLS:
        msg = (
            f"a UMAP needs at least {LEAST_CELLS} cells without missing values. "
            f"Got {n} of {len(embedding)}"
        )
        raise DataError(msg)
    X = np.ascontiguousarray(embedding[usable], dtype=np.float32)
    k = min(N_NEIGHBORS, n - 1)
    with warnings.catch_warnings():
        # No search index is kept, and one seed means one thread: both are meant.
        warnings.filterwarnings("ignore", message=".*knn_search_index.*")
        warnings.filterwarnings("ignore", message=".*n_jobs value.*")
        warnings.filterwarnings("ignore", message=".*[Tt]ensorflow.*")
        from umap.umap_ import UMAP

        layout = UMAP(
            n_neighbors=k,
            min_dist=MIN_DIST,
            metric="cosine",
            # The spectral start asks for more vectors than a handful of cells has.
            init="spectral" if n > 20 else "random",
            random_state=seed,
            n_jobs=1,
            precomputed_knn=(*cosine_neighbors(X, k), None),
        ).fit_transform(X)
    coordinates = np.full((len(embedding), 2), np.nan, dtype=np.float32)
    coordinates[usable] = layout
    return coordinates


# ------------------------------------------------------------------------------- files and choice


def best_seeds(scores: pd.DataFrame) -> pd.DataFrame:
    """Choose the seed whose embedding is shown, for every data set, condition and method.

    As in GLUE's figures: the finished run with the highest cell-type ASW + omics-layer ASW; of
    equal ones the lowest seed. Where a study lacks one of the two, the other decides, and without
    both the lowest finished seed is shown.

    Parameters
    ----------
    scores
        Long table of a study.

    Returns
    -------
    DataFrame
        dataset, condition, method_id, label, role, uses, seed (missing where no run finished),
        criterion (its name), criterion_value, n_ok, status.
    """
    table = tidy.prepare_scores(scores)
    runs = tidy.runs_of_scores(table)
    # Several definitions of one metric: the first by name decides, for all methods alike.
    names = {}
    for wanted in SEED_CRITERIA:
        found = sorted(m for m in table["metric"].unique() if m.partition("@")[0] == wanted)
        if found:
            names[found[0]] = wanted
    own = table[table["metric"].isin(names) & table["value"].notna()]
    values = own.groupby([*tidy.ROW, "seed"])["value"].agg(["sum", "size"]).reset_index()
    values = values[values["size"] == len(names)] if names else values
    rows = []
    for (dataset, condition, method), group in runs.groupby(tidy.ROW, sort=True):
        finished = group[group["status"] == "ok"].merge(values, on=[*tidy.ROW, "seed"], how="left")
        row = {
            "dataset": dataset,
            "condition": condition,
            "method_id": method,
            **group.iloc[0][["label", "role", "uses"]].to_dict(),
            "seed": None,
            "criterion": " + ".join(names.values()) or "lowest seed",
            "criterion_value": math.nan,
            "n_ok": len(finished),
            "status": "ok" if len(finished) else group["status"].mode().iloc[0],
        }
        if len(finished):
            ranked = finished.sort_values(["sum", "seed"], ascending=[False, True])
            row["seed"] = int(ranked["seed"].iloc[0])
            row["criterion_value"] = float(ranked["sum"].iloc[0])
        rows.append(row)
    result = pd.DataFrame(rows)
    return result.assign(seed=result["seed"].astype("Int64"))


def read_embedding(path: str | Path) -> tuple[pd.DataFrame, np.ndarray]:
    """Read ``embedding.h5ad`` of a run.

    Returns
    -------
    tuple
        obs with columns ``cell`` and ``modality``, and the embedding (n_cells, k) float32; a failed
        run has 0 cells.

    Raises
    ------
    DataError
        When the file is absent or is no embedding.
    """
    import h5py

    from scbraid.data.layers import read_frame

    path = Path(path)
    try:
        with h5py.File(path, "r") as handle:
            keys = [key for key in handle["obsm"] if key.startswith("X_")]
            if len(keys) != 1:
                found = ", ".join(handle["obsm"]) or "(none)"
                msg = f"{path} has in obsm: {found}; exactly one X_<method> is expected"
                raise DataError(msg)
            obs = read_frame(handle["obs"])
            values = np.asarray(handle["obsm"][keys[0]], dtype=np.float32)
    except (OSError, KeyError) as error:
        msg = f"{path} cannot be read as an embedding ({error}); run the method again"
        raise DataError(msg) from error
    cells = pd.DataFrame(
        {"cell": obs.index.astype(str), "modality": obs["modality"].astype(str).to_numpy()}
    )
    return cells, values


@dataclasses.dataclass(frozen=True)
class UmapPanel:
    """One row of the UMAP figure.

    Attributes
    ----------
    dataset, condition
        Where it belongs; rows of one data set and condition share colours and a legend.
    label
        Name of the method, as shown.
    cells
        One row a cell: modality, and as known cell_type and batch; missing values are unlabelled.
    coordinates
        (n_cells, 2); None for a method without embedding, whose `note` says why.
    method
        Identity of the method.
    seed
        Seed of the run shown.
    note
        Small print below the name: why this seed, or why there is none.
    """

    dataset: str
    condition: str
    label: str
    cells: pd.DataFrame
    coordinates: np.ndarray | None
    method: str = ""
    seed: int | None = None
    note: str = ""


def umap_panels(
    run_dirs: Sequence[str | Path],
    truths: Mapping[tuple[str, str], str | Path],
    scores: pd.DataFrame,
    *,
    seed: int = UMAP_SEED,
) -> list[UmapPanel]:
    """Choose one run a method, read its embedding and lay it out; all in this one process.

    Parameters
    ----------
    run_dirs
        Folders of runs, with ``status.json`` and ``embedding.h5ad``; runs that are not chosen are
        not read.
    truths
        Truth table (``truth.parquet``) by data set and data condition (the part before ``@``).
    scores
        Long table of the study: it decides which seed is shown, and which rows there are.
    seed
        Seed of the layouts.

    Raises
    ------
    DataError
        When the folder of a chosen run, its embedding or its truth table is missing.
    """
    folders = {_run_key(Path(folder)): Path(folder) for folder in run_dirs}
    labels: dict[tuple[str, str], pd.DataFrame] = {}
    panels = []
    chosen = best_seeds(scores)
    order = tidy.method_rows(chosen)["method_id"].tolist()
    chosen["_order"] = chosen["method_id"].map(order.index)
    for row in chosen.sort_values(["dataset", "condition", "_order"]).itertuples(index=False):
        label = tidy.marked(row.label, row.uses)
        if pd.isna(row.seed):
            words = STATUS_WORDS.get(row.status, row.status)
            empty = pd.DataFrame({"modality": []})
            panels.append(
                UmapPanel(
                    row.dataset, row.condition, label, empty, None, row.method_id, None, words
                )
            )
            continue
        folder = _find_run(folders, row)
        truth_key = (row.dataset, row.condition.partition("@")[0])
        if truth_key not in labels:
            labels[truth_key] = _read_truth(truths, truth_key)
        obs, values = read_embedding(folder / "embedding.h5ad")
        cells = _label_cells(obs, labels[truth_key], f"{folder} and {truths[truth_key]}")
        if np.isfinite(values).all(axis=1).sum() < LEAST_CELLS:
            words = f"seed {row.seed}: fewer than {LEAST_CELLS} cells have coordinates"
            empty = cells.iloc[:0]
            panels.append(
                UmapPanel(
                    row.dataset,
                    row.condition,
                    label,
                    empty,
                    None,
                    row.method_id,
                    int(row.seed),
                    words,
                )
            )
            continue
        value = "" if math.isnan(row.criterion_value) else f" = {row.criterion_value:.3f}"
        criterion = row.criterion.replace("cell_type_asw", "type ASW").replace("_asw", " ASW")
        note = f"seed {row.seed} of {row.n_ok}: best {criterion}{value}"
        if row.n_ok == 1:
            note = f"seed {row.seed}, the only one"
        elif not value:
            note = f"seed {row.seed} of {row.n_ok}: the lowest"
        panels.append(
            UmapPanel(
                row.dataset,
                row.condition,
                label,
                cells,
                umap_coordinates(values, seed),
                row.method_id,
                int(row.seed),
                note,
            )
        )
    return panels


def _run_key(folder: Path) -> tuple[str, str, str, int]:
    status: dict[str, Any] = read_json(folder / "status.json")
    return (
        str(status["dataset"]),
        str(status["condition"]),
        folder.parent.name,
        int(status["seed"]),
    )


def _find_run(folders: Mapping[tuple[str, str, str, int], Path], row: Any) -> Path:
    # A method that ignores the guidance graph is run once for all its corruptions.
    for condition in (row.condition, row.condition.partition("@")[0]):
        key = (row.dataset, condition, row.method_id, int(row.seed))
        if key in folders:
            return folders[key]
    msg = (
        f"no folder among the runs for {row.method_id}, seed {row.seed}, on {row.dataset} "
        f"({row.condition}), which the scores list; pass all runs of the study"
    )
    raise DataError(msg)


def _read_truth(truths: Mapping[tuple[str, str], str | Path], key: tuple[str, str]) -> pd.DataFrame:
    if key not in truths:
        msg = f"no truth table was given for {key[0]} ({key[1]})"
        raise DataError(msg)
    table = pd.read_parquet(truths[key])
    tidy.require_columns(table, ("modality", "cell", "cell_type", "batch"), str(truths[key]))
    return table[["modality", "cell", "cell_type", "batch"]].astype({"cell": str, "modality": str})


def _label_cells(obs: pd.DataFrame, truth: pd.DataFrame, where: str) -> pd.DataFrame:
    """Cells of an embedding, in its order, with what the truth says of them."""
    if set(obs["modality"]) == {JOINT}:
        # One row a cell: what its first layer says holds for the cell.
        truth = truth.drop_duplicates("cell").assign(modality=JOINT)
    truth = truth.drop_duplicates(["modality", "cell"])
    joined = obs.merge(truth, on=["modality", "cell"], how="left", indicator=True)
    lost = joined["_merge"] == "left_only"
    if lost.any():
        first = joined.loc[lost, "cell"].iloc[0]
        msg = (
            f"{where} do not belong together: the truth does not know {int(lost.sum()):,} cells of "
            f"the embedding (first: {first!r})"
        )
        raise DataError(msg)
    return joined.drop(columns="_merge")


# ---------------------------------------------------------------------------------------- figure


def umap_grid(panels: Sequence[UmapPanel], stem: str | os.PathLike[str] | None = None) -> Drawing:
    """Draw the UMAPs: rows are methods, columns colour the cells by layer, cell type and batch.

    Cells are drawn in random order (seed 0), so that no layer covers another; points are an image
    in the PDF, everything else is text and lines. A column that a data set has no values for is
    left out. A method without embedding keeps its row, with the reason.

    Parameters
    ----------
    panels
        Rows, in order (:func:`umap_panels`).
    stem
        Where to write pdf, png and tsv; nothing is written when None.

    Returns
    -------
    Drawing
        One row a cell and method: panel, dataset, condition, method, label, seed, note, cell (where
        known), x, y, modality, cell_type, batch.

    Raises
    ------
    DataError
        When no panel has coordinates, or one has another number of rows than cells.
    """
    if not any(panel.coordinates is not None for panel in panels):
        msg = "no method has an embedding; there is nothing to draw"
        raise NothingToDraw(msg)
    for panel in panels:
        if panel.coordinates is not None and panel.coordinates.shape != (len(panel.cells), 2):
            msg = (
                f"the coordinates of {panel.label} have the shape {panel.coordinates.shape}; "
                f"expected ({len(panel.cells)}, 2)"
            )
            raise DataError(msg)
    places = list(dict.fromkeys((panel.dataset, panel.condition) for panel in panels))
    with style():
        blocks = [
            _Block([panel for panel in panels if (panel.dataset, panel.condition) == place])
            for place in places
        ]
        note = (
            f"UMAP of each method's embedding: {N_NEIGHBORS} nearest neighbours by cosine, "
            f"min_dist {MIN_DIST}, seed {UMAP_SEED}. Cells in random order."
        )
        marks = tidy.mark_note(
            [("labels",) * ("†" in p.label) + ("pairing",) * ("‡" in p.label) for p in panels]
        )
        note = f"{note} {marks}".rstrip()
        width = TWO_COLUMNS_MM
        height = sum(block.height for block in blocks) + paragraph_height(note, width - 4) + 3
        sheet = Sheet(width, height)
        y = 0.0
        for block in blocks:
            block.draw(sheet, y)
            y += block.height
        sheet.paragraph(2.0, y, note, width - 4)
        return finish(sheet, _cells_table(panels), stem)


class _Block:
    """All methods of one data set and condition, with their legends."""

    _MARGIN, _GAP, _BETWEEN, _ROW_HEAD, _COLUMN_HEAD = 2.0, 1.5, 5.0, 8.8, 4.0

    def __init__(self, panels: Sequence[UmapPanel]) -> None:
        self.panels = panels
        self.title = f"{panels[0].dataset} · {panels[0].condition}"
        drawn = [panel.cells for panel in panels if panel.coordinates is not None]
        cells = pd.concat(drawn, ignore_index=True) if drawn else pd.DataFrame()
        known = [c for c in _COLUMNS if c in cells and cells[c].notna().any()]
        # Joint embeddings have one row a cell: there are no layers to tell apart.
        told = [c for c in known if c != "modality" or cells[c].nunique() > 1]
        self.columns = told or known
        self.colours = {column: _colours(cells, column) for column in self.columns}
        self.shown = [p for p in panels if p.coordinates is not None]
        self.absent = [p for p in panels if p.coordinates is None]
        self.n_side = self._side_by_side()
        self.n_down = max(math.ceil(len(self.shown) / self.n_side), 0)
        n_panels = self.n_side * max(len(self.columns), 1)
        spare = TWO_COLUMNS_MM - 2 * self._MARGIN - (self.n_side - 1) * self._BETWEEN
        side = (spare - (n_panels - self.n_side) * self._GAP) / n_panels
        self.side = min(side, 50.0)
        width = TWO_COLUMNS_MM - 2 * self._MARGIN
        self.legends = [
            Legend(_COLUMNS[column].capitalize(), _legend_keys(column, self.colours[column]), width)
            for column in self.columns
        ]
        self.absent_note = (
            "No embedding: " + "; ".join(f"{p.label} ({p.note})" for p in self.absent) + "."
            if self.absent
            else ""
        )
        self.height = (
            HEADING_MM
            + self._COLUMN_HEAD * bool(self.shown)
            + self.n_down * (self._ROW_HEAD + self.side)
            + paragraph_height(self.absent_note, width)
            + sum(legend.height + 1.5 for legend in self.legends)
            + 4.0
        )

    def _side_by_side(self) -> int:
        """Methods beside each other: more, the fewer columns each has and the more there are."""
        least, most = {0: (1, 1), 1: (3, 5), 2: (2, 3)}.get(len(self.columns), (1, 2))
        n_methods = max(len(self.shown), 1)
        return min(n_methods, least if n_methods <= 3 * least else most)

    def draw(self, sheet: Sheet, y: float) -> None:
        width = sheet.width - 2 * self._MARGIN
        panel_heading(sheet, self._MARGIN, y + HEADING_MM - 1.5, self.title, width)
        y += HEADING_MM
        group = len(self.columns) * (self.side + self._GAP) - self._GAP
        if self.shown:
            for half in range(min(self.n_side, len(self.shown))):
                for at, column in enumerate(self.columns):
                    x = self._MARGIN + half * (group + self._BETWEEN) + at * (self.side + self._GAP)
                    words = f"by {_COLUMNS[column]}"
                    sheet.text(x, y + 2.6, words, size=SIZE_SMALL, color=MUTED, slant="italic")
            y += self._COLUMN_HEAD
        for at, panel in enumerate(self.shown):
            # Down the first half, then down the second: the order of the methods stays readable.
            half, row = divmod(at, self.n_down)
            x = self._MARGIN + half * (group + self._BETWEEN)
            top = y + row * (self._ROW_HEAD + self.side)
            self._draw_method(sheet, panel, x, top, group)
        y += self.n_down * (self._ROW_HEAD + self.side) + 1.5
        y = sheet.paragraph(self._MARGIN, y, self.absent_note, width)
        for legend in self.legends:
            legend.draw(sheet, self._MARGIN, y + 1.0)
            y += legend.height + 1.5

    def _draw_method(
        self, sheet: Sheet, panel: UmapPanel, x: float, top: float, group: float
    ) -> None:
        assert panel.coordinates is not None
        sheet.text(x, top + 4.4, shorten(panel.label, group, SIZE_TEXT, "bold"), weight="bold")
        note = shorten(panel.note, group, SIZE_SMALL)
        sheet.text(x, top + 7.5, note, size=SIZE_SMALL, color=MUTED)
        present = np.isfinite(panel.coordinates).all(axis=1)
        order = np.random.default_rng(0).permutation(np.flatnonzero(present))
        points = panel.coordinates[order]
        # Points as large as they can be without hiding each other: 10,000 cells or 100.
        area = float(np.clip(5000.0 * (self.side / 50.0) ** 2 / max(len(points), 1), 0.35, 8.0))
        for at, column in enumerate(self.columns):
            axes = sheet.axes(
                x + at * (self.side + self._GAP), top + self._ROW_HEAD, self.side, self.side
            )
            names = _names(panel.cells[column]).to_numpy()[order]
            colours = self.colours[column]
            values = [colours.get(name, UNLABELLED) for name in names]
            axes.scatter(points[:, 0], points[:, 1], s=area, c=values, lw=0, rasterized=True)
            axes.set_xticks([])
            axes.set_yticks([])
            for spine in axes.spines.values():
                spine.set(visible=True, linewidth=0.3, color=MUTED)
            axes.margins(0.04)


def _names(values: pd.Series) -> pd.Series:
    return values.astype(object).where(values.notna(), UNLABELLED_NAME).astype(str)


def _colours(cells: pd.DataFrame, column: str) -> dict[str, str]:
    names = _names(cells[column])
    counts = names[names != UNLABELLED_NAME].value_counts()
    if column == "modality":
        from scbraid.plots.graph import layer_colours

        colours = layer_colours(sorted(counts.index))
    else:
        colours = category_colours(list(counts.index), counts.to_dict())
    if (names == UNLABELLED_NAME).any():
        colours[UNLABELLED_NAME] = UNLABELLED
    return colours


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sorting key that puts "Type 9" before "Type 10"."""
    parts = re.findall(r"\d+|\D+", name.casefold())
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]


def _legend_keys(column: str, colours: Mapping[str, str]) -> list[Key]:
    special = {UNLABELLED_NAME}
    named = sorted((name for name in colours if name not in special), key=_natural)
    if len(named) > len(QUALITATIVE):
        named = [name for name in named if colours[name] != UNLABELLED]
        special.add(OTHER_NAME)
    keys = [Key(MODALITY_NAMES.get(n, n) if column == "modality" else n, colours[n]) for n in named]
    keys += [Key(OTHER_NAME, UNLABELLED)] * (OTHER_NAME in special)
    return keys + [Key(UNLABELLED_NAME, UNLABELLED)] * (UNLABELLED_NAME in colours)


def _cells_table(panels: Sequence[UmapPanel]) -> pd.DataFrame:
    tables = []
    for panel in panels:
        n = len(panel.cells)
        xy = np.full((n, 2), np.nan) if panel.coordinates is None else panel.coordinates
        table = panel.cells.reindex(columns=["cell", *_COLUMNS])
        # Four decimals are far below what a figure can show, and halve the file.
        table = table.assign(
            **{axis: np.round(xy[:, at].astype(float), 4) for at, axis in enumerate("xy")}
        )
        if panel.coordinates is None:
            # A method without embedding keeps one row, so that the table says why.
            table = table.reindex([0])
        tables.append(
            table.assign(
                panel="umap",
                dataset=panel.dataset,
                condition=panel.condition,
                method=panel.method,
                label=panel.label,
                seed=pd.array([panel.seed] * len(table), dtype="Int64"),
                note=panel.note,
            )
        )
    with warnings.catch_warnings():
        # Columns that one table lacks altogether are meant to stay empty.
        warnings.simplefilter("ignore", FutureWarning)
        joined = pd.concat(tables, ignore_index=True)
    order = ["panel", "dataset", "condition", "method", "label", "seed", "note", "cell"]
    return joined[[*order, "x", "y", *_COLUMNS]]
