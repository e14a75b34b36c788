"""The arrays of a multi-omics data set, read from h5ad/h5mu with h5py alone.

A training node needs neither anndata nor mudata: `Layers.read` understands the parts of the AnnData
format that the pipeline uses (X as CSR, CSC or dense array; data frames with plain, categorical
and nullable columns; obsm arrays; text in uns). Counts and representations of large data sets stay
in the file and are read by blocks of rows (`scbraid.data.backed`).
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from scbraid.data.backed import (
    ENTRY_BYTES,
    Array,
    BackedArray,
    BackedMatrix,
    Matrix,
    backed_above,
    take_rows,
)
from scbraid.errors import DataError

logger = logging.getLogger("scbraid")

UNS_KEY = "scbraid"


@dataclasses.dataclass
class Layer:
    """One omics layer: counts, names, and derived representations of the same cells.

    Attributes
    ----------
    name
        Modality: ``rna``, ``atac``, ``met``, ``adt`` or another name.
    counts
        float32 CSR of shape (n_cells, n_features): raw counts, or the values that the layer's
        likelihood describes (methylation ratios). A `BackedMatrix` where they stay on disk.
    cells
        Names, shape (n_cells,), unique within the layer.
    features
        One row a feature, indexed by its name; columns such as chrom, chromStart, chromEnd,
        strand, highly_variable.
    reps
        Representations by obsm key, each float32 of shape (n_cells, k); a `BackedArray` where they
        stay on disk.
    batch
        Batch names of shape (n_cells,), empty text where unknown; or None.
    """

    name: str
    counts: Matrix
    cells: np.ndarray
    features: pd.DataFrame
    reps: Mapping[str, Array] = dataclasses.field(default_factory=dict)
    batch: np.ndarray | None = None

    def __post_init__(self) -> None:
        n_cells, n_features = self.counts.shape
        for what, found, expected in (
            ("cell names", len(self.cells), n_cells),
            ("features", len(self.features), n_features),
            ("batch entries", n_cells if self.batch is None else len(self.batch), n_cells),
            *((f"rows of {key!r}", len(rep), n_cells) for key, rep in self.reps.items()),
        ):
            if found != expected:
                msg = f"layer {self.name!r} has {found} {what}; expected {expected}"
                raise DataError(msg)

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.counts.shape[0]

    @property
    def n_features(self) -> int:
        """Number of features."""
        return self.counts.shape[1]

    def columns_of(self, features: np.ndarray) -> np.ndarray:
        """Columns of the features that a guidance graph names, in its order.

        Raises
        ------
        DataError
            When the layer lacks some of them.
        """
        columns = self.features.index.astype(str).get_indexer(features)
        absent = features[columns < 0]
        if len(absent):
            msg = (
                f"guidance names {len(absent):,} {self.name} features that the input lacks "
                f"(first: {str(absent[0])!r}); build it from the same input"
            )
            raise DataError(msg)
        return columns

    def take(self, cells: np.ndarray) -> Layer:
        """Return the layer restricted to (or reordered by) the given cell positions or mask."""
        return dataclasses.replace(
            self,
            counts=take_rows(self.counts, cells),
            cells=self.cells[cells],
            reps={key: take_rows(rep, cells) for key, rep in self.reps.items()},
            batch=None if self.batch is None else self.batch[cells],
        )


@dataclasses.dataclass
class Layers:
    """All layers of one data set.

    Attributes
    ----------
    layers
        By modality name, in file order.
    paired
        True when equal cell names in two layers mean the same cell, for all cells. False for the
        tasks prediction and matching, where this holds for training cells and others have no
        partner, and for imputation, where cells may have one layer alone.
    meta
        What the file's ``uns["scbraid"]`` states (task, genome, likelihoods, ...).
    """

    layers: dict[str, Layer]
    paired: bool = False
    meta: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __getitem__(self, name: str) -> Layer:
        return self.layers[name]

    @property
    def names(self) -> list[str]:
        """Modality names, in order."""
        return list(self.layers)

    @property
    def on_disk(self) -> bool:
        """Whether the counts of some layer stay in their file."""
        return any(isinstance(layer.counts, BackedMatrix) for layer in self.layers.values())

    @classmethod
    def read(
        cls, path: str | Path, *, reps: Sequence[str] | None = None, backed: bool | None = None
    ) -> Layers:
        """Read an h5mu file, or a folder that holds one h5ad file a layer (``rna.h5ad``, ...).

        Parameters
        ----------
        path
            The file or folder.
        reps
            obsm keys to read; all when None.
        backed
            True leaves counts and representations in the file, which must stay there until they
            are no longer used; False reads them. By default they stay where counts (8 bytes an
            entry) and representations would need more memory than `backed_above` says: 2 GiB, or
            what SCBRAID_BACKED_ABOVE sets in MiB.

        Raises
        ------
        DataError
            When the file is absent, is no HDF5 file, or lacks a part; the message names it. When
            `backed` is True and a layer's X is not CSR.
        """
        path = Path(path)
        if path.is_dir():
            files = sorted(path.glob("*.h5ad"))
            if not files:
                msg = f"{path} holds no .h5ad file; expected one a layer, such as rna.h5ad"
                raise DataError(msg)
        else:
            files = [path]
        layers: dict[str, Layer] = {}
        meta: dict[str, Any] = {}
        if backed is None:
            limit = backed_above()
            stay = sum(_memory_bytes(file, reps) for file in files) > limit
        else:
            stay = backed
        for file in files:
            with _open(file) as handle:
                for name, node in _layer_nodes(handle, file).items():
                    layers[name] = _read_layer(handle[node], name, file, reps, backed=stay)
                    if stay and not isinstance(layers[name].counts, BackedMatrix):
                        msg = (
                            f"{file}: layer {name!r} cannot stay on disk, because its X is not "
                            "CSR; store it as CSR"
                        )
                        if backed:
                            raise DataError(msg)
                        logger.warning("%s, or it takes memory as a whole", msg)
                meta.update(_read_meta(handle))
        # A prepared input states its task; a data set states whether its cells are paired.
        if "task" in meta:
            paired = meta["task"] in ("paired", "hybrid", "joint")
        else:
            paired = bool(meta.get("paired", False))
        return cls(layers, paired=paired, meta=meta)


def _open(path: Path) -> h5py.File:
    if not path.is_file():
        msg = f"{path} does not exist; expected an h5mu or h5ad file"
        raise DataError(msg)
    try:
        return h5py.File(path, "r")
    except OSError as error:
        msg = f"{path} cannot be read as HDF5 ({error}); it may be truncated: make or copy it again"
        raise DataError(msg) from error


def _layer_nodes(handle: h5py.File, path: Path) -> dict[str, str]:
    """Path of each layer's group in a file, by name and in order."""
    if "mod" not in handle:
        return {path.stem: "/"}
    names = handle["mod"].attrs.get("mod-order", sorted(handle["mod"]))
    return {str(name): f"/mod/{name}" for name in names}


def _memory_bytes(path: Path, reps: Sequence[str] | None) -> int:
    """Bytes that counts and representations of a file's layers need in memory."""
    total = 0
    with _open(path) as handle:
        for node in _layer_nodes(handle, path).values():
            group = handle[node]
            parts = group.get("X")
            if isinstance(parts, h5py.Group) and "data" in parts:
                total += ENTRY_BYTES * parts["data"].shape[0]
            elif isinstance(parts, h5py.Dataset):
                total += ENTRY_BYTES * parts.size
            for key, rep in group.get("obsm", {}).items():
                if isinstance(rep, h5py.Dataset) and (reps is None or key in reps):
                    total += 4 * rep.size
    return total


def _read_meta(group: h5py.Group) -> dict[str, Any]:
    node = group.get(f"uns/{UNS_KEY}")
    if node is None:
        return {}
    try:
        meta = json.loads(node.asstr()[()])
    except (ValueError, TypeError, AttributeError) as error:
        msg = f"{group.file.filename}: uns[{UNS_KEY!r}] is no JSON text ({error}); write it again"
        raise DataError(msg) from error
    return dict(meta)


def _read_layer(
    group: h5py.Group, name: str, path: Path, reps: Sequence[str] | None, *, backed: bool
) -> Layer:
    for part in ("X", "obs", "var"):
        if part not in group:
            msg = f"{path}: layer {name!r} has no {part}; expected an AnnData group"
            raise DataError(msg)
    obs, var = read_frame(group["obs"]), read_frame(group["var"])
    for what, names in (("obs", obs.index), ("var", var.index)):
        if not names.is_unique:
            twice = names[names.duplicated()]
            msg = (
                f"{path}: layer {name!r} has {len(twice):,} repeated {what} names "
                f"(first: {str(twice[0])!r}); make them unique"
            )
            raise DataError(msg)
    obsm = group.get("obsm", {})
    X = group["X"]
    # Dense and CSC matrices cannot be read by rows.
    by_rows = isinstance(X, h5py.Group) and X.attrs.get("encoding-type") != "csc_matrix"
    return Layer(
        name=name,
        counts=BackedMatrix(path, X.name) if backed and by_rows else read_matrix(X),
        cells=obs.index.to_numpy(dtype=str),
        features=var,
        reps={
            key: (
                BackedArray(path, node.name)
                if backed and node.ndim == 2
                else np.asarray(node, dtype=np.float32)
            )
            for key, node in obsm.items()
            if isinstance(node, h5py.Dataset) and (reps is None or key in reps)
        },
        batch=_batches(obs["batch"]) if "batch" in obs else None,
    )


def _batches(column: pd.Series) -> np.ndarray:
    return np.where(column.isna(), "", column.astype(object)).astype(str)


def without_stored_zeros(matrix: sp.csr_matrix) -> sp.csr_matrix:
    """Return a matrix that stores what is not zero alone, once: itself where it does already."""
    if matrix.has_canonical_format and matrix.data.all():
        return matrix
    found = matrix.copy()
    found.sum_duplicates()
    found.eliminate_zeros()
    return found


def read_matrix(node: h5py.Group | h5py.Dataset) -> sp.csr_matrix:
    """Read an AnnData matrix (CSR, CSC or dense) as float32 CSR with sorted indices."""
    if isinstance(node, h5py.Dataset):
        return sp.csr_matrix(np.asarray(node, dtype=np.float32))
    kind = node.attrs.get("encoding-type", "csr_matrix")
    parts = (node["data"][:].astype(np.float32, copy=False), node["indices"][:], node["indptr"][:])
    shape = tuple(int(size) for size in node.attrs["shape"])
    matrix = (sp.csc_matrix if kind == "csc_matrix" else sp.csr_matrix)(parts, shape=shape).tocsr()
    matrix.sort_indices()
    return matrix


def read_frame(group: h5py.Group) -> pd.DataFrame:
    """Read an AnnData data frame: plain, categorical and nullable columns."""
    index = _column(group[group.attrs["_index"]])
    order = [str(name) for name in group.attrs.get("column-order", [])]
    return pd.DataFrame(
        {name: _column(group[name]) for name in order}, index=pd.Index(index, dtype=object)
    )


def _column(node: h5py.Group | h5py.Dataset) -> Any:
    if isinstance(node, h5py.Dataset):
        if "categories" in node.attrs:
            # Written by anndata before 0.8: codes here, names behind a reference.
            return pd.Categorical.from_codes(node[:], _column(node.file[node.attrs["categories"]]))
        is_text = h5py.check_string_dtype(node.dtype) is not None
        return node.asstr()[:] if is_text else node[:]
    if "categories" in node:
        codes = node["codes"][:]
        return pd.Categorical.from_codes(codes, _column(node["categories"]))
    values, mask = _column(node["values"]), node["mask"][:]
    column = pd.Series(values, dtype=object)
    column[mask] = None
    return column.to_numpy()
