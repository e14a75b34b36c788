"""Say at once what is wrong with data files: which file, which field, what to do.

Everything is read with h5py in blocks, so that a check needs little memory and no anndata.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import pandas as pd

from scbraid.data.layers import UNS_KEY, read_frame
from scbraid.errors import DataError
from scbraid.registry import near_miss

Level = Literal["error", "warning", "info"]

MODALITIES = ("rna", "atac", "met", "adt")
COORDINATES = ("chrom", "chromStart", "chromEnd")

_BLOCK_VALUES = 1 << 22  # matrix entries held at a time
_DENSE_VALUES = 125_000_000  # half a gigabyte as float32
_LOG_LIKE = 30.0  # log1p of counts stays below; counts of deep cells rise above
_EXAMPLES = 3


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that a check found.

    Attributes
    ----------
    file
        Path of the file.
    field
        Where in it, such as ``X``, ``var['chrom']`` or ``mod/rna/obs``.
    level
        ``error``: methods will fail or mislead; ``warning``: worth a look; ``info``: good to know.
    message
        What was found, what was expected, what to do.
    """

    file: str
    field: str
    level: Level
    message: str


@dataclasses.dataclass
class _Layer:
    """What later checks across layers need to know about one layer."""

    file: Path
    prefix: str
    name: str
    cells: np.ndarray
    features: np.ndarray
    var: pd.DataFrame
    meta: Mapping[str, Any]


@dataclasses.dataclass
class _Values:
    """What a pass over X gathers."""

    nan: int = 0
    infinite: int = 0
    negative: int = 0
    fractional: int = 0
    largest: float = 0.0
    first_negative: float = 0.0
    first_fractional: float = 0.0
    per_cell: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    per_feature: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    cell_sums: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))

    def add(self, block: np.ndarray) -> None:
        finite = np.isfinite(block)
        if not finite.all():
            self.nan += int(np.isnan(block).sum())
            self.infinite += int(np.isinf(block).sum())
            block = block[finite]
        if not block.size:
            return
        self.largest = max(self.largest, float(block.max()))
        negative = block < 0
        fractional = block != np.floor(block)
        if not self.negative and negative.any():
            self.first_negative = float(block[np.argmax(negative)])
        if not self.fractional and fractional.any():
            self.first_fractional = float(block[np.argmax(fractional)])
        self.negative += int(negative.sum())
        self.fractional += int(fractional.sum())


class _Report:
    """Findings on one file."""

    def __init__(self, file: str | os.PathLike[str]) -> None:
        self.file = str(file)
        self.findings: list[Finding] = []

    def add(self, level: Level, field: str, message: str) -> None:
        self.findings.append(Finding(self.file, field, level, message))

    def error(self, field: str, message: str) -> None:
        self.add("error", field, message)

    def warning(self, field: str, message: str) -> None:
        self.add("warning", field, message)

    def info(self, field: str, message: str) -> None:
        self.add("info", field, message)


def check_files(
    paths: Iterable[str | os.PathLike[str]],
    guidance: str | os.PathLike[str] | None = None,
    *,
    paired: bool | None = None,
) -> list[Finding]:
    """Check data files, each by itself and against the others.

    Parameters
    ----------
    paths
        h5mu files, h5ad files (one a layer: the layer is told by the file name, such as
        ``rna.h5ad`` or ``mine-RNA.h5ad``), folders of h5ad files, or guidance graphs (npz).
    guidance
        A guidance graph that must cover the features of all layers.
    paired
        Whether equal cell names mean the same cell; None takes what the files state.

    Returns
    -------
    list of Finding
        In the order of the files; empty only when `paths` is.
    """
    findings: list[Finding] = []
    layers: list[_Layer] = []
    graphs = [] if guidance is None else [Path(guidance)]
    for path in map(Path, paths):
        if path.suffix == ".npz":
            graphs.append(path)
            continue
        report = _Report(path)
        files = sorted(path.glob("*.h5ad")) if path.is_dir() else [path]
        if not files:
            report.error("file", "the folder holds no .h5ad file; one a layer is expected")
            findings += report.findings
        for file in files:
            report = _Report(file)
            layers += _check_file(file, report)
            findings += report.findings
    findings += _check_places(layers, has_guidance=bool(graphs))
    findings += _check_cells(layers, paired)
    for graph in graphs:
        findings += _check_guidance(graph, layers)
    return findings


def _check_file(path: Path, report: _Report) -> list[_Layer]:
    if not path.exists():
        report.error("file", "does not exist; an h5mu or h5ad file is expected")
        return []
    if not h5py.is_hdf5(path):
        with path.open("rb") as content:
            start = content.read(8)
        what = "it is gzip: unpack it first" if start[:2] == b"\x1f\x8b" else f"it starts {start!r}"
        report.error("file", f"is not HDF5 ({what}); an h5mu or h5ad file is expected")
        return []
    try:
        with h5py.File(path, "r") as handle:
            return _check_contents(handle, path, report)
    except OSError as error:
        report.error("file", f"is damaged or cut short ({error}); copy or make it again")
        return []


def _check_contents(handle: h5py.File, path: Path, report: _Report) -> list[_Layer]:
    meta = _read_meta(handle, report)
    if "mod" in handle:
        names = [str(name) for name in handle["mod"].attrs.get("mod-order", list(handle["mod"]))]
        groups = {f"mod/{name}/": (name, handle["mod"][name]) for name in names}
        if not groups:
            report.error("mod", "holds no layer; at least one of rna, atac, met, adt is expected")
        for prefix, (name, _) in groups.items():
            if name not in MODALITIES:
                hint = near_miss(name, MODALITIES, "layer")
                report.error(prefix.rstrip("/"), f"{hint}. Methods find layers by name: rename it")
    elif "obs" in handle and "var" in handle:
        name = _layer_of(path)
        if name not in MODALITIES:
            report.warning(
                "file",
                f"{near_miss(name, MODALITIES, 'layer')}. The layer is told by the file name: call "
                "it rna.h5ad, atac.h5ad, met.h5ad or adt.h5ad",
            )
        groups = {"": (name, handle)}
    else:
        found = ", ".join(handle) or "nothing"
        hint = " This looks like a 10x file: see docs/datasets.md." if "matrix" in handle else ""
        report.error("file", f"is neither AnnData nor MuData (it holds: {found}).{hint}")
        return []
    checked = (
        _check_layer(group, name, prefix, path, meta, report)
        for prefix, (name, group) in groups.items()
    )
    return [layer for layer in checked if layer is not None]


def _layer_of(path: Path) -> str:
    """Layer of an h5ad file: its stem, or the one known layer among the words of its stem."""
    words = re.split(r"[^a-z0-9]+", path.stem.lower())
    known = [word for word in words if word in MODALITIES]
    return known[0] if len(known) == 1 else path.stem


def _read_meta(handle: h5py.File, report: _Report) -> Mapping[str, Any]:
    node = handle.get(f"uns/{UNS_KEY}")
    if node is None:
        return {}
    field = f"uns[{UNS_KEY!r}]"
    try:
        content = json.loads(node.asstr()[()])
    except (TypeError, ValueError, AttributeError) as error:
        report.error(field, f"is not JSON text ({error}); remove it or write it with json.dumps")
        return {}
    if not isinstance(content, dict):
        report.error(field, f"is a JSON {type(content).__name__}; an object is expected")
        return {}
    return content


def _check_layer(
    group: h5py.Group, name: str, prefix: str, path: Path, meta: Mapping[str, Any], report: _Report
) -> _Layer | None:
    frames = {}
    for part in ("obs", "var"):
        frame = _read_part(group, part, prefix, report)
        if frame is None:
            return None
        frames[part] = frame
        twice = frame.index[frame.index.duplicated()]
        if len(twice):
            report.error(
                f"{prefix}{part}",
                f"{len(twice):,} names occur again (first: {twice[0]!r}); names of "
                f"{'cells' if part == 'obs' else 'features'} must be unique within a layer",
            )
    layer = _Layer(
        file=path,
        prefix=prefix,
        name=name,
        cells=frames["obs"].index.to_numpy(dtype=str),
        features=frames["var"].index.to_numpy(dtype=str),
        var=frames["var"],
        meta=meta,
    )
    _check_matrix(group, layer, report)
    _check_reps(group, layer, report)
    _check_labels(frames["obs"], layer, report)
    return layer


def _read_part(group: h5py.Group, part: str, prefix: str, report: _Report) -> pd.DataFrame | None:
    field = f"{prefix}{part}"
    node = group.get(part)
    if not isinstance(node, h5py.Group) or "_index" not in node.attrs:
        report.error(field, "is missing or no data frame; an AnnData group is expected")
        return None
    if "__categories" in node:
        report.error(field, "has the layout of anndata 0.7; read it and write it with a newer one")
        return None
    try:
        return read_frame(node)
    except (KeyError, ValueError, TypeError) as error:
        report.error(field, f"cannot be read as a data frame ({error}); write the file again")
        return None


def _nature(layer: _Layer) -> tuple[str | None, str]:
    """Kind (None where nothing is said) and likelihood of a layer's values."""
    stated = layer.meta.get("layers")
    row = stated.get(layer.name, {}) if isinstance(stated, dict) else {}
    kind = row.get("kind") if isinstance(row, dict) else None
    likelihood = row.get("likelihood") if isinstance(row, dict) else None
    if likelihood is None:
        continuous = kind in ("normalised", "embedding")
        if layer.name == "met" and kind in (None, "normalised"):
            likelihood = "ziln"
        else:
            likelihood = "normal" if continuous else "nb"
    return kind, likelihood


def _check_matrix(group: h5py.Group, layer: _Layer, report: _Report) -> None:
    field = f"{layer.prefix}X"
    node = group.get("X")
    elsewhere = list(group["layers"]) if "layers" in group else []
    hint = f"; layers holds {', '.join(elsewhere)}: move the raw counts to X" if elsewhere else ""
    if node is None or node.attrs.get("encoding-type") == "null":
        report.error(field, f"is missing; raw counts are expected there{hint}")
        return
    shape = _matrix_shape(node)
    if shape is None:
        report.error(field, f"is not a matrix of numbers; sparse CSR counts are expected{hint}")
        return
    expected = (len(layer.cells), len(layer.features))
    if shape != expected:
        report.error(field, f"has shape {shape}; obs and var say {expected}")
        return
    if isinstance(node, h5py.Dataset) and shape[0] * shape[1] > _DENSE_VALUES:
        size = 4 * shape[0] * shape[1] / 2**30
        report.warning(
            field,
            f"is dense with {shape[0]:,} x {shape[1]:,} values ({size:.1f} GiB as float32); store "
            "it as CSR: X = scipy.sparse.csr_matrix(X)",
        )
    try:
        values = _scan(node, shape)
    except DataError as error:
        report.error(field, f"{error}; write the file again")
        return
    _judge_values(values, layer, field, hint, report)
    _report_empty(values.per_feature, layer.features, f"{layer.prefix}var", "features", report)
    _report_empty(values.per_cell, layer.cells, f"{layer.prefix}obs", "cells", report)
    kind, likelihood = _nature(layer)
    n_stored = int(values.per_cell.sum())
    report.info(
        field,
        f"{layer.name}: {shape[0]:,} cells x {shape[1]:,} features, {n_stored:,} non-zero values "
        f"up to {values.largest:g}; {kind or 'kind not stated'}, taken as {likelihood}",
    )


def _matrix_shape(node: h5py.Group | h5py.Dataset) -> tuple[int, int] | None:
    """Shape of a stored matrix of numbers; None when it is something else."""
    if isinstance(node, h5py.Dataset):
        numeric = node.dtype.kind in "biuf"
        return (int(node.shape[0]), int(node.shape[1])) if node.ndim == 2 and numeric else None
    sparse = node.attrs.get("encoding-type") in ("csr_matrix", "csc_matrix")
    if not sparse or any(part not in node for part in ("data", "indices", "indptr")):
        return None
    if node["data"].dtype.kind not in "biuf":
        return None
    shape = node.attrs.get("shape", ())
    return (int(shape[0]), int(shape[1])) if len(shape) == 2 else None


def _scan(node: h5py.Group | h5py.Dataset, shape: tuple[int, int]) -> _Values:
    """Pass over a matrix in blocks of rows (columns, for CSC)."""
    values = _Values()
    if isinstance(node, h5py.Dataset):
        values.per_cell = np.zeros(shape[0], np.int64)
        values.per_feature = np.zeros(shape[1], np.int64)
        values.cell_sums = np.zeros(shape[0])
        step = max(1, _BLOCK_VALUES // max(1, shape[1]))
        for start in range(0, shape[0], step):
            block = node[start : start + step]
            values.add(block.ravel())
            filled = block != 0
            values.per_cell[start : start + step] = filled.sum(axis=1)
            values.per_feature += filled.sum(axis=0)
            values.cell_sums[start : start + step] = block.sum(axis=1, dtype=np.float64)
        return values

    by_rows = node.attrs["encoding-type"] == "csr_matrix"
    n_major, n_minor = shape if by_rows else shape[::-1]
    pointer = node["indptr"][:].astype(np.int64)
    n_stored = node["data"].shape[0]
    if (
        len(pointer) != n_major + 1
        or pointer[0] != 0
        or pointer[-1] != n_stored
        or node["indices"].shape[0] != n_stored
        or (np.diff(pointer) < 0).any()
    ):
        msg = "is a damaged sparse matrix (indptr, indices and data do not fit)"
        raise DataError(msg)
    major, minor = np.zeros(n_major, np.int64), np.zeros(n_minor, np.int64)
    sums = [np.zeros(n_major), np.zeros(n_minor)]
    for first, last in _blocks(pointer):
        chosen = slice(int(pointer[first]), int(pointer[last]))
        data, indices = node["data"][chosen], node["indices"][chosen]
        if indices.size and (indices.min() < 0 or indices.max() >= n_minor):
            msg = f"is a damaged sparse matrix (an index lies outside 0 to {n_minor - 1})"
            raise DataError(msg)
        values.add(data)
        filled = data != 0
        rows = np.repeat(np.arange(last - first), np.diff(pointer[first : last + 1]))
        major[first:last] = np.bincount(rows[filled], minlength=last - first)
        minor += np.bincount(indices[filled], minlength=n_minor)
        if by_rows:
            sums[0][first:last] = np.bincount(rows, weights=data, minlength=last - first)
        else:
            sums[1] += np.bincount(indices, weights=data, minlength=n_minor)
    values.per_cell, values.per_feature = (major, minor) if by_rows else (minor, major)
    values.cell_sums = sums[0] if by_rows else sums[1]
    return values


def _blocks(pointer: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of rows with at most a block of values (a longer row is a range by itself)."""
    first, n_rows = 0, len(pointer) - 1
    while first < n_rows:
        fitting = int(np.searchsorted(pointer, pointer[first] + _BLOCK_VALUES, side="right")) - 1
        last = min(n_rows, max(first + 1, fitting))
        yield first, last
        first = last


def _judge_values(values: _Values, layer: _Layer, field: str, hint: str, report: _Report) -> None:
    kind, likelihood = _nature(layer)
    if values.nan:
        report.error(field, f"holds {values.nan:,} NaN; remove or replace them")
    if values.infinite:
        report.error(field, f"holds {values.infinite:,} infinite values; remove or replace them")
    if kind == "binary" and values.largest > 1:
        report.error(field, f"is stated to be binary, but holds {values.largest:g}")
    if likelihood == "nb":
        if values.negative:
            report.error(
                field,
                f"holds {values.negative:,} negative values (first: {values.first_negative:g}); "
                f"raw counts are expected{hint}",
            )
        if values.fractional:
            report.error(
                field,
                f"holds {values.fractional:,} values that are no whole numbers (first: "
                f"{values.first_fractional:g}); likelihood nb needs raw counts{hint}",
            )
        looks = _looks_normalised(values)
        if looks:
            report.warning(field, f"{looks}; give the counts as they were before that")
    elif likelihood == "ziln" and values.negative:
        report.error(
            field,
            f"holds {values.negative:,} negative values (first: {values.first_negative:g}); "
            "likelihood ziln needs values of 0 or more",
        )


def _looks_normalised(values: _Values) -> str | None:
    """Name the usual transformation that the values seem to have gone through."""
    if values.nan or values.infinite:
        return None
    if values.negative and values.fractional:
        return "looks centred or scaled (z-scores)"
    sums = values.cell_sums[values.cell_sums > 0]
    if len(sums) > 1 and np.ptp(sums) <= 1e-3 * sums.mean() and values.fractional:
        return f"every cell sums to {sums.mean():,.6g}: looks normalised by depth"
    if values.fractional and values.largest < _LOG_LIKE:
        return f"looks like logarithms (fractions up to {values.largest:.3g})"
    return None


def _report_empty(
    filled: np.ndarray, names: np.ndarray, field: str, what: str, report: _Report
) -> None:
    empty = np.flatnonzero(filled == 0)
    if empty.size:
        first = ", ".join(repr(str(name)) for name in names[empty[:_EXAMPLES]])
        report.warning(
            field,
            f"{empty.size:,} of {len(names):,} {what} have no value but zero (first: {first}); "
            "remove them: they make LSI and scaling undefined",
        )


def _check_reps(group: h5py.Group, layer: _Layer, report: _Report) -> None:
    reps = group.get("obsm", {})
    stated = layer.meta.get("layers")
    row = stated.get(layer.name) if isinstance(stated, dict) else None
    wanted = row.get("rep") if isinstance(row, dict) else None
    if wanted is not None and wanted not in reps:
        report.error(
            f"{layer.prefix}obsm",
            f"lacks {wanted!r}, which uns[{UNS_KEY!r}] names as the representation of {layer.name}",
        )
    for key, node in reps.items():
        if not isinstance(node, h5py.Dataset) or node.dtype.kind not in "biuf":
            continue  # frames and sparse representations are no input of a method here
        field = f"{layer.prefix}obsm[{key!r}]"
        if node.ndim != 2 or node.shape[0] != len(layer.cells):
            report.error(field, f"has shape {node.shape}; {len(layer.cells):,} rows are expected")
            continue
        bad = int((~np.isfinite(node[:])).sum())
        if bad:
            report.error(field, f"holds {bad:,} values that are NaN or infinite; compute it again")


def _check_labels(obs: pd.DataFrame, layer: _Layer, report: _Report) -> None:
    field = f"{layer.prefix}obs['cell_type']"
    if "task" in layer.meta:  # a prepared input: labels belong into truth.parquet
        if "cell_type" in obs:
            report.error(field, "labels stand in a prepared input, where any method sees them")
    elif "cell_type" not in obs:
        report.info(field, "is absent; metrics that need labels will not apply")
    else:
        lacking = int(obs["cell_type"].isna().sum())
        if lacking:
            report.info(field, f"{lacking:,} of {len(obs):,} cells have no label: not scored")


def _check_places(layers: Sequence[_Layer], *, has_guidance: bool) -> list[Finding]:
    """Check genomic positions, layer by layer and between layers."""
    names = {layer.name for layer in layers}
    # Without positions no graph can be built. With a graph at hand nothing needs them, and neither
    # do data that state to have no genome, or whose genes have only proteins to be linked to.
    level: Level = "warning"
    if any(layer.meta.get("genome", "unstated") is None for layer in layers) or (
        "adt" in names and not names & {"atac", "met"}
    ):
        level = "info"
    elif "rna" in names and names & {"atac", "met"} and not has_guidance:
        level = "error"
    findings: list[Finding] = []
    placed: list[tuple[_Layer, set[str]]] = []
    for layer in layers:
        if layer.name == "adt" or layer.name not in MODALITIES:
            continue
        report = _Report(layer.file)
        chroms = _check_coordinates(layer, level, report)
        if layer.name == "rna" and chroms:
            _check_strand(layer, report)
        if chroms:
            placed.append((layer, chroms))
        findings += report.findings
    for (one, first), (other, second) in itertools.combinations(placed, 2):
        if not first & second:
            report = _Report(other.file)
            report.error(
                f"{other.prefix}var['chrom']",
                f"{other.name} names chromosomes like {min(second)!r}, {one.name} like "
                f"{min(first)!r}: they share no name, so no gene has a neighbour; use one style",
            )
            findings += report.findings
    return findings


def _check_coordinates(layer: _Layer, level: Level, report: _Report) -> set[str]:
    """Check chrom, chromStart and chromEnd; returns the chromosomes of placed features.

    Parameters
    ----------
    layer
        The layer to look at.
    level
        How bad it is to have no positions at all.
    report
        Gets the findings.
    """
    field = f"{layer.prefix}var"
    consequence = "no guidance edge can be built without them"
    missing = [column for column in COORDINATES if column not in layer.var]
    if missing:
        report.add(level, field, f"lacks {', '.join(missing)} (0-based, half-open); {consequence}")
        return set()
    places = {}
    for column in COORDINATES[1:]:
        values = layer.var[column]
        if not pd.api.types.is_numeric_dtype(values.dtype):
            first = values.iloc[0] if len(values) else None
            report.error(f"{field}[{column!r}]", f"is text (first: {first!r}); expected integers")
            return set()
        bad = int(values.isna().sum())
        if bad:
            report.error(
                f"{field}[{column!r}]",
                f"holds {bad:,} NaN; expected integers, -1 where the position is unknown",
            )
        places[column] = values.fillna(-1).to_numpy()
    chrom = layer.var["chrom"].astype(object)
    chrom = chrom.where(chrom.notna(), "").astype(str).to_numpy()
    start, end = places["chromStart"], places["chromEnd"]
    unknown = (chrom == "") | (start == -1) | (end == -1)
    n_unknown = int(unknown.sum())
    if n_unknown == len(unknown):
        report.add(level, field, f"no feature has a genomic position; {consequence}")
        return set()
    if n_unknown:
        first = str(layer.features[np.argmax(unknown)])
        report.add(
            "info" if level == "info" else "warning",
            field,
            f"{n_unknown:,} of {len(unknown):,} features have no genomic position (first: "
            f"{first!r}); no guidance edge will reach them",
        )
    wrong = ~unknown & ((start >= end) | (start < 0))
    if wrong.any():
        at = int(np.argmax(wrong))
        report.error(
            field,
            f"{int(wrong.sum()):,} features have chromStart < 0 or >= chromEnd (first: "
            f"{str(layer.features[at])!r}, {start[at]:g} to {end[at]:g}); expected 0-based, "
            "half-open",
        )
    return set(np.unique(chrom[~unknown]))


def _check_strand(layer: _Layer, report: _Report) -> None:
    field = f"{layer.prefix}var['strand']"
    if "strand" not in layer.var:
        report.error(field, "is missing; promoters cannot be placed without + or -")
        return
    placed = (layer.var["chrom"].astype(object).fillna("") != "").to_numpy()
    wrong = placed & ~layer.var["strand"].isin(["+", "-"]).to_numpy()
    if wrong.any():
        at = int(np.argmax(wrong))
        found = layer.var["strand"].iloc[at]
        report.error(
            field,
            f"is not + or - for {int(wrong.sum()):,} genes (first: {str(layer.features[at])!r} has "
            f"{found!r}); promoters cannot be placed without it",
        )


# Tasks whose cells have partners by name, all of them or the training cells alone.
_PARTLY_PAIRED = ("prediction", "matching", "imputation")


def _check_cells(layers: Sequence[_Layer], paired: bool | None) -> list[Finding]:
    """Compare cell names between layers."""
    findings: list[Finding] = []
    for one, other in itertools.combinations(layers, 2):
        report = _Report(other.file)
        field = f"{other.prefix}obs"
        shared = int(np.isin(other.cells, one.cells).sum())
        stated = paired
        if stated is None:
            stated = _states_pairing(other.meta) if other.meta else _states_pairing(one.meta)
        between = f"{one.name} and {other.name}"
        if stated and not shared:
            report.error(
                field,
                f"paired layers {between} share no cell name (first: {str(one.cells[0])!r} and "
                f"{str(other.cells[0])!r}); make them equal, or do not call the data paired",
            )
        elif (
            stated
            and (shared < len(one.cells) or shared < len(other.cells))
            and (other.meta or one.meta).get("task") != "hybrid"
        ):
            report.warning(
                field,
                f"paired layers {between} share {shared:,} of {len(one.cells):,} and "
                f"{len(other.cells):,} cell names; the others have no partner",
            )
        elif stated is False and shared and "task" in other.meta:
            report.error(
                field,
                f"{shared:,} cell names stand in both {between} of an unpaired input: they give "
                "the pairing away",
            )
        elif (other.meta or one.meta).get("task") in _PARTLY_PAIRED:
            if not shared:
                task = (other.meta or one.meta)["task"]
                report.error(
                    field,
                    f"layers {between} share no cell name; the training cells of a {task} input "
                    "have the same name in both",
                )
        elif stated is None and shared:
            report.info(
                field,
                f"{between} share {shared:,} cell names; say --paired if they are the same cells",
            )
        findings += report.findings
    return findings


def _states_pairing(meta: Mapping[str, Any]) -> bool | None:
    if meta.get("task") in _PARTLY_PAIRED:
        return None
    if "task" in meta:
        return meta["task"] in ("paired", "hybrid", "joint")
    return bool(meta["paired"]) if "paired" in meta else None


def _check_guidance(path: Path, layers: Sequence[_Layer]) -> list[Finding]:
    """Check a guidance graph by itself and against the layers."""
    from scbraid.guidance.graph import Guidance

    report = _Report(path)
    try:
        graph = Guidance.load(path)
    except DataError as error:
        report.error("guidance", str(error))
        return report.findings
    for layer in layers:
        try:
            graph.check_covers({layer.name: layer.features.tolist()})
        except DataError as error:
            report.error("guidance", str(error))
    has_loop = np.zeros(graph.n_features, dtype=bool)
    has_loop[graph.source[graph.kind == "loop"]] = True
    bare = np.flatnonzero(~has_loop)
    if bare.size:
        report.warning(
            "guidance",
            f"{bare.size:,} of {graph.n_features:,} features have no self-loop (first: "
            f"{str(graph.features[bare[0]])!r}); a graph encoder gives them nothing of themselves",
        )
    report.info("guidance", f"{graph.n_features:,} features, {graph.n_edges:,} edges")
    return report.findings


def add_check_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``scbraid check`` to `parser`."""
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="h5mu, h5ad (one a layer: rna.h5ad, ...), a folder of h5ad files, or npz (guidance)",
    )
    parser.add_argument("--guidance", metavar="NPZ", help="guidance graph that must fit the data")
    parser.add_argument(
        "--paired",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="equal cell names mean the same cell (default: as the files state)",
    )
    parser.add_argument("--json", action="store_true", help="findings as JSON")


def run_check(args: argparse.Namespace) -> int:
    """Run ``scbraid check``: write the findings to standard output.

    Returns
    -------
    int
        1 when there is an error, otherwise 0.
    """
    findings = check_files(args.files, args.guidance, paired=args.paired)
    if args.json:
        rows = [dataclasses.asdict(finding) for finding in findings]
        sys.stdout.write(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
    else:
        sys.stdout.write(format_findings(findings))
    return int(any(finding.level == "error" for finding in findings))


def format_findings(findings: Sequence[Finding]) -> str:
    """Return findings as an aligned table, with a last line that counts them."""
    rows = [(finding.level, finding.file, finding.field) for finding in findings]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        + f"  {finding.message}"
        for row, finding in zip(rows, findings, strict=True)
    ]
    counts = []
    for level in ("error", "warning"):
        number = sum(finding.level == level for finding in findings)
        counts.append(f"{number} {level}{'' if number == 1 else 's'}")
    return "\n".join([*lines, ", ".join(counts)]) + "\n"
