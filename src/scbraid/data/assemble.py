"""From raw files to one dataset.h5mu: counts, positions, labels, and a record of what was left out.

Rules that hold for every data set (as in the public preprocessing of the GLUE benchmark):
undetected features and empty cells are removed, so are peaks in the blacklist, and genes without
coordinates where a guidance graph needs them. ``uns["scbraid"]`` says how many.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd

from scbraid.data.download import read_receipt
from scbraid.data.layers import UNS_KEY
from scbraid.data.readers import (
    READERS,
    Source,
    add_gene_positions,
    has_position,
    layers_of_h5mu,
    overlaps,
    read_annotation,
    read_bed,
    read_text_table,
)
from scbraid.data.registry import MODALITIES, DatasetEntry, LayerSpec, layer_likelihood
from scbraid.errors import DataError
from scbraid.files import atomic_path, sha256_file
from scbraid.provenance import provenance
from scbraid.registry import near_miss

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("scbraid")

LINKS_FILE = "truth_links.parquet"


@dataclass(eq=False)
class _Part:
    """One layer on its way: its data, what is kept of it, and why the rest is not."""

    data: AnnData
    spec: LayerSpec
    cells: np.ndarray = field(init=False)
    features: np.ndarray = field(init=False)
    removed: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.cells = np.ones(self.data.n_obs, dtype=bool)
        self.features = np.ones(self.data.n_vars, dtype=bool)

    def keep_cells(self, mask: np.ndarray, reason: str) -> None:
        self._count(f"cells_{reason}", self.cells, mask)
        self.cells &= mask

    def keep_features(self, mask: np.ndarray, reason: str) -> None:
        self._count(f"features_{reason}", self.features, mask)
        self.features &= mask

    def _count(self, reason: str, kept: np.ndarray, mask: np.ndarray) -> None:
        lost = int((kept & ~mask).sum())
        if lost:
            self.removed[reason] = self.removed.get(reason, 0) + lost


def assemble(
    entry: DatasetEntry, raw_dir: str | os.PathLike[str], out_path: str | os.PathLike[str]
) -> Path:
    """Write the dataset.h5mu of a data set.

    Parameters
    ----------
    entry
        The data set. A simulated one is simulated here; a local one is read where it lies.
    raw_dir
        Folder that `scbraid.data.download.download` filled.
    out_path
        The h5mu file to write; simulated data get ``truth_links.parquet`` beside it.

    Returns
    -------
    Path
        `out_path`. Layers hold raw counts (float32 CSR), ``var`` positions (0-based, half-open),
        ``obs`` cell_type, batch and scored as far as they are known, and ``uns["scbraid"]`` is JSON
        text: name, kind, genome, paired, layers (kind and likelihood), source, checksums, licence,
        citation, accession, removed (counts by layer and reason), provenance.

    Raises
    ------
    DataError
        Naming the file, the field, what was found and what was expected.
    """
    raw_dir, out_path = Path(raw_dir), Path(out_path)
    if entry.kind == "simulated":
        return _simulate(entry, out_path)
    entry = _with_layers(entry)
    parts = {name: _Part(data, entry.layers[name]) for name, data in _read(entry, raw_dir).items()}
    notes = {"positions_filled": _place_genes(entry, parts, raw_dir)}
    if entry.paired:
        _align(entry, parts)
    _join_cell_table(entry, parts, raw_dir)
    _label(entry, parts)
    _apply_cell_rules(entry, parts)
    _drop_features(entry, parts, raw_dir)
    _drop_empty(entry, parts)
    _write(entry, parts, _checksums(entry, raw_dir), notes, out_path)
    for name, part in parts.items():
        removed = ", ".join(f"{count:,} {why}" for why, count in part.removed.items()) or "nothing"
        logger.info(
            "%s, %s: %s cells x %s features; removed: %s",
            entry.name,
            name,
            f"{part.data.n_obs:,}",
            f"{part.data.n_vars:,}",
            removed,
        )
    return out_path


def _with_layers(entry: DatasetEntry) -> DatasetEntry:
    """Return the entry with its layers named; a local h5mu file may leave them to the file."""
    if entry.layers:
        return entry
    names = layers_of_h5mu(Path(str(entry.file)))
    for name in names:
        if name not in MODALITIES:
            msg = f"{entry.file}: {near_miss(name, MODALITIES, 'layer')}"
            raise DataError(msg)
    return entry.model_copy(update={"layers": {name: LayerSpec() for name in names}})


def _read(entry: DatasetEntry, raw_dir: Path) -> dict[str, AnnData]:
    """Read all layers; those that share a file and a way to read it are read together."""

    def locate(file: str | None) -> Path | None:
        if file is None:
            return None
        return Path(file) if entry.kind == "local" else raw_dir / file

    together: dict[tuple[str, Path, str], list[Source]] = {}
    for name, spec in entry.layers.items():
        path = locate(spec.file or entry.file)
        if path is None or not path.is_file():
            where = "give its path in 'file'" if entry.kind == "local" else "download it first"
            msg = f"dataset {entry.name!r}, layer {name!r}: no file {path}; {where}"
            raise DataError(msg)
        source = Source(
            layer=name,
            path=path,
            barcodes=locate(spec.barcodes),
            features=locate(spec.features),
            matrix=spec.matrix,
            start_base=spec.start_base,
        )
        together.setdefault((spec.reader or entry.reader, path, spec.matrix), []).append(source)
    found: dict[str, AnnData] = {}
    for (reader, _, _), sources in together.items():
        found |= READERS[reader](sources)
    return {name: found[name] for name in entry.layers}


def _place_genes(entry: DatasetEntry, parts: Mapping[str, _Part], raw_dir: Path) -> int:
    """Fill in gene positions from the annotation; returns how many were filled."""
    if entry.annotation_file is None or "rna" not in parts:
        return 0
    var = parts["rna"].data.var
    if has_position(var).all():
        return 0
    return add_gene_positions(var, read_annotation(raw_dir / entry.annotation_file.name))


def _align(entry: DatasetEntry, parts: Mapping[str, _Part]) -> None:
    """Bring paired layers to the same cells in the same order: that of the first layer."""
    names = [part.data.obs_names for part in parts.values()]
    shared = names[0]
    for other in names[1:]:
        shared = shared[shared.isin(other)]
    if not len(shared):
        firsts = zip(parts, names, strict=True)
        examples = ", ".join(f"{layer} {index[0]!r}" for layer, index in firsts)
        msg = (
            f"dataset {entry.name!r} is said to be paired, but its layers share no cell name "
            f"(first: {examples}); make the names equal or set paired: false"
        )
        raise DataError(msg)
    for part in parts.values():
        lost = part.data.n_obs - len(shared)
        if lost:
            part.removed["cells_unpaired"] = lost
        if not part.data.obs_names.equals(shared):
            part.data = part.data[shared].copy()
        part.cells = np.ones(len(shared), dtype=bool)


def _join_cell_table(entry: DatasetEntry, parts: Mapping[str, _Part], raw_dir: Path) -> None:
    table = entry.cell_table
    if table is None:
        return
    path = Path(table.file) if entry.kind == "local" else raw_dir / table.file
    if not path.is_file():
        if any(file.name == table.file and file.optional for file in entry.files):
            logger.warning("%s: no %s, so these data have no labels", entry.name, path)
            return
        msg = f"dataset {entry.name!r}: no cell table {path}"
        raise DataError(msg)
    rows = read_text_table(path, table.separator)
    key = table.key or str(rows.columns[0])
    for column in (key, *table.columns.values()):
        if column not in rows:
            msg = f"{path}: {near_miss(column, map(str, rows), 'column')}"
            raise DataError(msg)
    rows = rows.drop_duplicates(key, keep="last").set_index(key)
    for name, part in parts.items():
        listed = part.data.obs_names.isin(rows.index)
        if not listed.any():
            msg = (
                f"{path} lists no cell of layer {name!r}: its cells have names like "
                f"{rows.index[0]!r}, those of the layer {part.data.obs_names[0]!r}"
            )
            raise DataError(msg)
        for column, source in table.columns.items():
            part.data.obs[column] = rows[source].reindex(part.data.obs_names).to_numpy()
        if table.only_listed:
            part.keep_cells(listed, "unlisted")


def _label(entry: DatasetEntry, parts: Mapping[str, _Part]) -> None:
    """Bring labels and batches under their standard names, as categories."""
    for target, key, default in (
        ("cell_type", entry.cell_type_key, "cell_type"),
        ("batch", entry.batch_key, None),
    ):
        holders = [part for part in parts.values() if key is not None and key in part.data.obs]
        if key is not None and not holders:
            columns = sorted({str(column) for part in parts.values() for column in part.data.obs})
            if key != default:
                hint = near_miss(key, columns, "obs column")
                msg = f"dataset {entry.name!r}, field '{target}_key': {hint}"
                raise DataError(msg)
            logger.warning("%s: no obs column %r, so these data have no labels", entry.name, key)
        for name, part in parts.items():
            obs = part.data.obs
            if part in holders:
                values = obs[key]
            elif holders and entry.paired:
                values = holders[0].data.obs[key]  # the same cells in the same order
            else:
                if holders:
                    logger.warning("%s, %s: no obs column %r", entry.name, name, key)
                obs.drop(columns=target, errors="ignore", inplace=True)
                continue
            obs[target] = _category(values.to_numpy())


def _category(values: Any) -> pd.Categorical:
    column = pd.Series(values)
    text = column.astype(object).where(column.notna()).map(str, na_action="ignore")
    return pd.Categorical(text)


def _matching(entry: DatasetEntry, parts: Mapping[str, _Part], rule: str) -> dict[str, np.ndarray]:
    """Tell, for each layer, which cells a rule of the entry (`drop` or `unscored`) is about."""
    hits = {name: np.zeros(part.data.n_obs, dtype=bool) for name, part in parts.items()}
    for column, values in getattr(entry, rule).items():
        found: set[str] = set()
        holders = [name for name, part in parts.items() if column in part.data.obs]
        if not holders:
            if column == "cell_type":
                continue  # no labels at all, which was said before
            columns = {str(name) for part in parts.values() for name in part.data.obs}
            hint = near_miss(column, columns, "obs column")
            msg = f"dataset {entry.name!r}, field {rule!r}: {hint}"
            raise DataError(msg)
        for name in holders:
            text = parts[name].data.obs[column].astype(str)
            hits[name] |= text.isin(values).to_numpy()
            found |= set(text.unique())
        for value in values:
            if value not in found:
                logger.warning(
                    "%s, field %r: %s", entry.name, rule, near_miss(value, found, f"{column} value")
                )
    return hits


def _apply_cell_rules(entry: DatasetEntry, parts: Mapping[str, _Part]) -> None:
    """Take out the cells of `drop`, and mark those that label metrics leave out."""
    dropped = _matching(entry, parts, "drop")
    unscored = _matching(entry, parts, "unscored")
    for name, part in parts.items():
        obs = part.data.obs
        part.keep_cells(~dropped[name], "dropped")
        if "cell_type" in obs:
            obs["scored"] = ~unscored[name] & obs["cell_type"].notna().to_numpy()


def _drop_features(entry: DatasetEntry, parts: Mapping[str, _Part], raw_dir: Path) -> None:
    for name, part in parts.items():
        var = part.data.var
        if entry.blacklist_file is not None and name == "atac":
            regions = read_bed(raw_dir / entry.blacklist_file.name)
            part.keep_features(~overlaps(var, regions), "blacklisted")
        if entry.drops_unplaced(name):
            placed = has_position(var)
            if not placed.any():
                msg = (
                    f"dataset {entry.name!r}, layer {name!r}: none of the {part.data.n_vars:,} "
                    f"features has a genomic position (first: {part.data.var_names[0]!r}); give "
                    "var chrom, chromStart and chromEnd, name an annotation, or set unplaced: keep"
                )
                raise DataError(msg)
            part.keep_features(placed, "unplaced")


def _drop_empty(entry: DatasetEntry, parts: Mapping[str, _Part]) -> None:
    """Remove undetected features and empty cells until neither is left, then cut all layers."""
    values = {}
    for name, part in parts.items():
        part.data.X.eliminate_zeros()
        if part.spec.kind != "embedding":  # a zero there is a coordinate like any other
            matrix = part.data.X
            values[name] = abs(matrix) if matrix.nnz and matrix.data.min() < 0 else matrix
    changed = True
    while changed:
        before = [part.cells.sum() + part.features.sum() for part in parts.values()]
        if entry.paired:
            _keep_in_all(parts, "unpaired")
        for name, matrix in values.items():
            part = parts[name]
            part.keep_features(matrix.T @ part.cells.astype(np.float32) > 0, "undetected")
            part.keep_cells(matrix @ part.features.astype(np.float32) > 0, "empty")
        changed = before != [part.cells.sum() + part.features.sum() for part in parts.values()]
    for name, part in parts.items():
        if not part.cells.any() or not part.features.any():
            reasons = ", ".join(f"{count:,} {why}" for why, count in part.removed.items())
            msg = f"dataset {entry.name!r}, layer {name!r}: nothing is left (removed: {reasons})"
            raise DataError(msg)
        if not (part.cells.all() and part.features.all()):
            part.data = part.data[part.cells, part.features].copy()


def _keep_in_all(parts: Mapping[str, _Part], reason: str) -> None:
    """Keep, in paired layers, the cells that every layer keeps."""
    everywhere = np.logical_and.reduce([part.cells for part in parts.values()])
    for part in parts.values():
        part.keep_cells(everywhere, reason)


def _checksums(entry: DatasetEntry, raw_dir: Path) -> dict[str, dict[str, str]]:
    """SHA-256 and source of every file used."""
    found = {path: {"sha256": sha256_file(path), "source": "local"} for path in entry.local_files()}
    receipt = read_receipt(raw_dir)
    for file in entry.all_files():
        path = raw_dir / file.name
        if path.is_file():
            row = receipt.get(file.name) or {"sha256": sha256_file(path), "source": "put by hand"}
            found[file.name] = {"sha256": row["sha256"], "source": row["source"]}
    return found


def _write(
    entry: DatasetEntry,
    parts: Mapping[str, _Part],
    files: Mapping[str, Mapping[str, str]],
    notes: Mapping[str, Any],
    out_path: Path,
) -> None:
    import mudata

    for part in parts.values():
        _clean(part.data)
    content = {
        "name": entry.name,
        "title": entry.title,
        "kind": entry.kind,
        "genome": entry.genome,
        "paired": entry.paired,
        "layers": _natures(entry.layers),
        "source": entry.accession or ", ".join(row["source"] for row in files.values()),
        "checksums": {name: row["sha256"] for name, row in files.items()},
        "files": {name: row["source"] for name, row in files.items()},
        "licence": entry.licence,
        "citation": entry.citation,
        "accession": entry.accession,
        "note": entry.note,
        "removed": {name: part.removed for name, part in parts.items()},
        **notes,
        "provenance": provenance(),
    }
    with warnings.catch_warnings():
        # Proteins and genes may share names, and unpaired layers cell names: both are meant.
        warnings.filterwarnings("ignore", r".*not unique", UserWarning)
        with mudata.set_options(pull_on_update=False):
            bundle = mudata.MuData({name: part.data for name, part in parts.items()})
            bundle.uns[UNS_KEY] = json.dumps(content, ensure_ascii=False)
            with atomic_path(out_path) as partial:
                bundle.write_h5mu(partial, compression="gzip", compression_opts=1)


def _natures(specs: Mapping[str, LayerSpec]) -> dict[str, dict[str, str]]:
    return {
        name: {"kind": spec.kind, "likelihood": layer_likelihood(name, spec)}
        for name, spec in specs.items()
    }


def _clean(data: AnnData) -> None:
    """Leave what can be written and is not of an older analysis."""
    data.var.drop(
        columns=[column for column in data.var if str(column).startswith("highly_variable")],
        inplace=True,
    )
    for frame in (data.obs, data.var):
        for column in frame.columns:
            if frame[column].dtype == object:
                frame[column] = _category(frame[column].to_numpy())
            elif isinstance(frame[column].dtype, pd.CategoricalDtype):
                frame[column] = frame[column].cat.remove_unused_categories()


def _simulate(entry: DatasetEntry, out_path: Path) -> Path:
    """Simulate aside, give the result its name in the registry, then move both files into place."""
    from scbraid.data.simulate import simulate

    out_path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".simulating-", dir=out_path.parent) as folder:
        draft = Path(folder) / "dataset.h5mu"
        simulate(str(entry.preset), n_cells=int(entry.cells or 0), seed=entry.seed, out=draft)
        with h5py.File(draft, "r+") as handle:
            node = handle["mod"]
            found, expected = set(node), set(entry.layers)
            if found != expected:
                msg = (
                    f"dataset {entry.name!r} states the layers {sorted(expected)}, but preset "
                    f"{entry.preset!r} makes {sorted(found)}"
                )
                raise DataError(msg)
            node = handle["uns"][UNS_KEY]
            content = json.loads(node.asstr()[()])
            content |= {
                "name": entry.name,
                "title": entry.title,
                "layers": _natures(entry.layers),
                "provenance": provenance(),
            }
            node[()] = json.dumps(content, ensure_ascii=False)
        links = draft.with_name(LINKS_FILE)
        # The data set comes last: where it stands, its truth does too.
        for finished, target in ((links, out_path.with_name(LINKS_FILE)), (draft, out_path)):
            with atomic_path(target) as partial:
                finished.replace(partial)
    return out_path
