"""Embedding and truth brought together: the arrays that metrics are handed."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from scbraid.data.layers import read_frame, read_matrix
from scbraid.errors import ContractError, DataError
from scbraid.evaluate.readers import (
    JOINT,
    PHASES,
    PSEUDOTIME,
    Embedding,
    open_layers,
    read_obs,
)
from scbraid.guidance.graph import Guidance
from scbraid.metrics import FeatureEdges, Inputs

_SHOWN = 3
# Where a file does not say which representation is a layer's own space.
_SPACES = ("X_pca", "X_lsi")
_N_SPACE_DIMS = 50
_EXPRESSION = "rna"


def match(
    embedding: Embedding,
    truth: pd.DataFrame,
    *,
    input_path: str | Path | None = None,
    guidance_path: str | Path | None = None,
    features: tuple[str | Path, str | Path | None] | None = None,
    needs: Collection[str] | None = None,
) -> Inputs:
    """Bring everything that is known of the scored cells into the order of the embedding.

    Parameters
    ----------
    embedding
        What is scored.
    truth
        From :func:`scbraid.evaluate.read_truth`.
    input_path
        The method's input: layers' own spaces (obsm) and raw counts.
    guidance_path
        Guidance graph.
    features
        Feature embeddings (npz) of the run and of its reference run.
    needs
        What the metrics that are asked for need; other things are not read. All when None.

    Returns
    -------
    Inputs
        Rows that are not finite, cells with ``scored`` false, and (where a data set has cell types)
        cells without one are left out of everything, and so is a layer without a scored cell.

    Raises
    ------
    ContractError
        When embedding and truth, or embedding and input, do not hold the same cells; a few of the
        missing and the extra ones are named.
    """
    known = _align(embedding, truth)
    # A layer without any scored cell (rna of a hybrid) is no part of what is scored.
    known = {name: rows for name, rows in known.items() if rows["scored"].any()} or known
    absent: dict[str, str] = {}
    finite = {
        name: np.isfinite(coordinates).all(axis=1)
        for name, coordinates in embedding.coordinates.items()
    }
    unlabelled = [
        name
        for name, rows in known.items()
        if not rows.loc[rows["scored"], "cell_type"].notna().any()
    ]
    if unlabelled:
        absent["labels"] = f"layer {unlabelled[0]!r} has no cell types"
    keep = {}
    for name, rows in known.items():
        scored = rows["scored"].to_numpy() & finite[name]
        keep[name] = scored if unlabelled else scored & rows["cell_type"].notna().to_numpy()
    labels = None
    if not unlabelled:
        labels = {name: known[name]["cell_type"].to_numpy()[rows] for name, rows in keep.items()}
    own = {name: known[name][rows] for name, rows in keep.items()}
    batches = _batches(own, absent)
    phases = {name: rows[list(PHASES)].to_numpy() for name, rows in own.items()}
    pseudotime = {name: rows[PSEUDOTIME].to_numpy() for name, rows in own.items()}
    pairs = {name: known[name]["pair"].to_numpy()[rows] for name, rows in keep.items()}
    if len(pairs) > 1 and not _shares_pairs(known):
        absent["pairing"] = "the data set has no cell that was measured in two layers"

    def needed(*names: str) -> bool:
        return needs is None or any(name in needs for name in names)

    references: dict[str, np.ndarray] | None = None
    counts: dict[str, sparse.csr_matrix] | None = None
    edges: FeatureEdges | None = None
    if input_path is not None and JOINT not in keep:
        with open_layers(input_path) as (layers, meta):
            order = {
                name: _rows_of(layers, name, embedding.cells[name][rows], input_path)
                for name, rows in keep.items()
            }
            if needed("references"):
                references, absent["references"] = _own_spaces(layers, meta, order)
            if guidance_path is not None and needed("guidance", "counts"):
                counts, absent["counts"] = _counts(layers, meta, order)
                if counts is not None:
                    columns = {name: read_frame(layers[name]["var"]).index for name in order}
                    edges = _edges(Guidance.load(guidance_path), columns)
    elif input_path is not None:
        with open_layers(input_path) as (layers, meta):
            if meta.get("task") == "joint" and needed("references"):
                references = _joint_space(
                    layers, meta, embedding.cells[JOINT][keep[JOINT]], input_path
                )
        joint = "the embedding is joint: its rows are not those of a layer"
        absent |= dict.fromkeys(("references", "counts"), joint)
        if references is not None:
            del absent["references"]
    own_features, reference_features = None, None
    if features is not None and needed("features", "reference_run"):
        own_features, reference_features, reasons = _features(*features)
        absent |= reasons
    return Inputs(
        embeddings={name: embedding.coordinates[name][rows] for name, rows in keep.items()},
        labels=labels,
        pairs=None if "pairing" in absent else pairs,
        references=references,
        counts=counts,
        edges=edges,
        batches=batches,
        phases=phases if any(np.isfinite(part).any() for part in phases.values()) else None,
        pseudotime=(
            pseudotime if any(np.isfinite(part).any() for part in pseudotime.values()) else None
        ),
        features=own_features,
        reference_features=reference_features,
        n_dropped=int(sum((~rows).sum() for rows in finite.values())),
        n_total=embedding.n_cells,
        absent={need: reason for need, reason in absent.items() if reason},
    )


def _batches(
    own: Mapping[str, pd.DataFrame], absent: dict[str, str]
) -> dict[str, np.ndarray] | None:
    """Batches of the scored cells, where all of them have one."""
    for name, rows in own.items():
        n_unknown = int(rows["batch"].isna().sum())
        if n_unknown:
            part = "no" if n_unknown == len(rows) else f"{n_unknown:,} scored cells without"
            absent["batches"] = f"layer {name!r} has {part} batches"
            return None
    return {name: rows["batch"].to_numpy() for name, rows in own.items()}


def _align(embedding: Embedding, truth: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Rows of the truth in the embedding's order, by layer."""
    if list(embedding.cells) == [JOINT]:
        # One row a cell: what its first layer says holds for the cell.
        truth = truth.drop_duplicates("cell").assign(modality=JOINT)
    layers = dict.fromkeys(truth["modality"])
    for expected, found, what in (
        (layers, embedding.cells, "lacks the layer"),
        (embedding.cells, layers, "has a layer that the truth does not know:"),
    ):
        for name in expected:
            if name not in found:
                msg = (
                    f"the embedding {what} {name!r}; it has: {', '.join(embedding.cells)}; the "
                    f"truth has: {', '.join(layers)}"
                )
                raise ContractError(msg)
    aligned = {}
    for name, cells in embedding.cells.items():
        own = truth[truth["modality"] == name].set_index("cell")
        _same_cells(cells, own.index, f"layer {name!r} of the embedding", "the truth")
        aligned[name] = own.loc[cells]
    return aligned


def _same_cells(found: np.ndarray, expected: pd.Index, here: str, there: str) -> None:
    cells = pd.Index(found)
    if cells.has_duplicates:
        repeated = cells[cells.duplicated()]
        msg = f"{here} names {_listed(repeated)} more than once; each cell must stand once"
        raise ContractError(msg)
    missing, extra = expected.difference(cells), cells.difference(expected)
    if len(missing) or len(extra):
        parts = [f"lacks {_listed(missing)} of {there}"] if len(missing) else []
        parts += [f"has {_listed(extra)} that {there} does not know"] if len(extra) else []
        msg = f"{here} {' and '.join(parts)}; both must hold the same cells"
        raise ContractError(msg)


def _listed(cells: pd.Index) -> str:
    shown = ", ".join(repr(str(cell)) for cell in cells[:_SHOWN])
    more = ", ..." if len(cells) > _SHOWN else ""
    return f"{len(cells):,} cell{'s' * (len(cells) != 1)} ({shown}{more})"


def _shares_pairs(known: Mapping[str, pd.DataFrame]) -> bool:
    numbers = pd.concat([rows["pair"][rows["pair"] >= 0] for rows in known.values()])
    return bool(numbers.duplicated().any())


def _rows_of(
    layers: Mapping[str, h5py.Group], name: str, cells: np.ndarray, path: str | Path
) -> np.ndarray:
    if name not in layers:
        msg = f"{path} has no layer {name!r}; it has: {', '.join(layers)}"
        raise ContractError(msg)
    index = pd.Index(read_obs(layers[name], path).index.to_numpy(dtype=str))
    rows = index.get_indexer(cells)
    if (rows < 0).any():
        lost = pd.Index(cells[rows < 0])
        msg = f"{path}: layer {name!r} lacks {_listed(lost)} of the embedding"
        raise ContractError(msg)
    return rows


def _own_spaces(
    layers: Mapping[str, h5py.Group], meta: Mapping[str, Any], order: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray] | None, str]:
    spaces = {}
    for name, rows in order.items():
        present = list(layers[name].get("obsm", {}))
        stated = meta.get("layers", {}).get(name, {}).get("rep")
        wanted = [stated] if stated else [key for key in _SPACES if key in present]
        if not wanted or wanted[0] not in present:
            return None, f"the input has no own space (X_pca, X_lsi) of layer {name!r}"
        node = layers[name]["obsm"][wanted[0]]
        space = node[:, :_N_SPACE_DIMS][rows]
        if not np.isfinite(space).all():
            return None, f"{wanted[0]} of layer {name!r} is not finite everywhere"
        spaces[name] = space
    return spaces, ""


def _joint_space(
    layers: Mapping[str, h5py.Group],
    meta: Mapping[str, Any],
    cells: np.ndarray,
    path: str | Path,
) -> dict[str, np.ndarray] | None:
    """Own space of the expression layer (the first one without it) for rows of a joint one."""
    name = _EXPRESSION if _EXPRESSION in layers else next(iter(layers))
    spaces, _ = _own_spaces(layers, meta, {name: _rows_of(layers, name, cells, path)})
    return None if spaces is None else {JOINT: spaces[name]}


def _counts(
    layers: Mapping[str, h5py.Group], meta: Mapping[str, Any], order: Mapping[str, np.ndarray]
) -> tuple[dict[str, sparse.csr_matrix] | None, str]:
    counts = {}
    for name, rows in order.items():
        matrix = read_matrix(layers[name]["X"])
        likelihood = meta.get("layers", {}).get(name, {}).get("likelihood", "nb")
        if likelihood != "nb" or (matrix.data < 0).any() or (matrix.data % 1 != 0).any():
            return None, f"layer {name!r} does not hold raw counts"
        counts[name] = matrix[rows]
    return counts, ""


def _edges(guidance: Guidance, columns: Mapping[str, pd.Index]) -> FeatureEdges:
    layer = np.full(guidance.n_features, -1)
    column = np.full(guidance.n_features, -1)
    for number, (name, features) in enumerate(columns.items()):
        here = np.flatnonzero(guidance.layer == name)
        layer[here] = number
        column[here] = features.get_indexer(guidance.features[here])
        lost = guidance.features[here][column[here] < 0]
        if len(lost):
            msg = (
                f"guidance names {len(lost):,} {name} features that the input lacks (first: "
                f"{str(lost[0])!r}); build the graph from this input"
            )
            raise DataError(msg)
    source, target = guidance.source, guidance.target
    used = (guidance.kind != "loop") & (layer[source] >= 0) & (layer[target] >= 0)
    source, target = source[used], target[used]
    return FeatureEdges(
        layer[source],
        column[source],
        layer[target],
        column[target],
        guidance.sign[used].astype(np.float64),
        guidance.weight[used].astype(np.float64),
    )


def _features(
    path: str | Path, reference: str | Path | None
) -> tuple[np.ndarray | None, np.ndarray | None, dict[str, str]]:
    """Rows of the features that both runs embed, in one order."""
    if not Path(path).is_file():
        return None, None, {}
    own_names, own = _read_features(path)
    if reference is None or not Path(reference).is_file():
        reason = {} if reference is None else {"reference_run": "the reference run has no features"}
        return own, None, reason
    names, other = _read_features(reference)
    rows = own_names.get_indexer(names)
    common = rows >= 0
    return own[rows[common]], other[common], {}


def _read_features(path: str | Path) -> tuple[pd.MultiIndex, np.ndarray]:
    with contextlib.suppress(KeyError), np.load(path, allow_pickle=False) as content:
        names = pd.MultiIndex.from_arrays([content["layer"], content["feature"]])
        matrix = content["embedding"]
        finite = np.isfinite(matrix).all(axis=1)
        return names[finite], matrix[finite]
    msg = f"{path} lacks an array; expected feature, layer and embedding"
    raise DataError(msg)
