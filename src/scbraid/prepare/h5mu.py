"""Writing layers as h5mu with h5py alone, byte for byte the same for the same content."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from scbraid._version import __version__
from scbraid.data.backed import (
    COMPRESSION,
    Array,
    BackedArray,
    BackedMatrix,
    Matrix,
    array_blocks,
)
from scbraid.data.layers import UNS_KEY, Layer, Layers
from scbraid.files import atomic_path

# MuData files start with a block of text that says so; readers look for its first word.
HEADER_SIZE = 512
FORMAT_VERSION = "0.1.0"


def write_h5mu(path: str | os.PathLike[str], data: Layers) -> None:
    """Write layers as an h5mu file, atomically; what is on disk goes over block by block.

    Counts are stored as gzip-compressed CSR with sorted indices and no stored zeros, `batch` as the
    only obs column, all columns of `features` as var, `reps` as obsm and `meta` as JSON text in
    ``uns["scbraid"]``. Nothing else is written: no time stamps, no other uns, obsp or varp.

    Parameters
    ----------
    path
        The file; an older one is replaced once the new one is complete.
    data
        Layers; with ``paired=True`` equal cell names become one row of the joint obs table.

    Raises
    ------
    DataError
        When the folder cannot be written.
    """
    with atomic_path(path) as partial:
        with h5py.File(partial, "w", userblock_size=HEADER_SIZE) as file:
            _write_root(file, data)
            modalities = file.create_group("mod")
            _write_texts(modalities.attrs, "mod-order", data.names)
            for name, layer in data.layers.items():
                _write_layer(modalities.create_group(name), layer)
        _write_header(partial)


def write_h5ad(
    path: str | os.PathLike[str],
    values: sp.csr_matrix,
    cells: Sequence[str] | np.ndarray,
    features: Sequence[str] | np.ndarray | pd.Index,
) -> None:
    """Write a matrix with the names of its rows and columns as an h5ad file, atomically.

    Parameters
    ----------
    path
        The file.
    values
        float32 (n_cells, n_features).
    cells, features
        Names.

    Raises
    ------
    DataError
        When the folder cannot be written.
    """
    with atomic_path(path) as partial, h5py.File(partial, "w") as file:
        _set_encoding(file, "anndata", FORMAT_VERSION)
        _write_csr(file, "X", values)
        _write_frame(file, "obs", pd.DataFrame(index=pd.Index(cells)))
        _write_frame(file, "var", pd.DataFrame(index=pd.Index(features)))
        for name in ("layers", "obsm", "obsp", "uns", "varm", "varp"):
            _group(file, name)


def _write_header(path: Path) -> None:
    text = f"MuData (format-version={FORMAT_VERSION};creator=scbraid;creator-version={__version__})"
    with path.open("r+b") as file:
        file.write(text.encode().ljust(HEADER_SIZE, b"\0"))


def _write_root(file: h5py.File, data: Layers) -> None:
    _set_encoding(file, "MuData", FORMAT_VERSION)
    file.attrs["axis"] = 0
    cells = {name: layer.cells for name, layer in data.layers.items()}
    features = {
        name: layer.features.index.to_numpy(dtype=str) for name, layer in data.layers.items()
    }
    # Codes and names in order of first appearance, without a Python object for every position.
    codes, joint_cells = pd.factorize(
        np.concatenate([np.asarray(names, dtype=object) for names in cells.values()])
    )
    joint_features = [str(feature) for names in features.values() for feature in names]
    _write_frame(file, "obs", pd.DataFrame(index=joint_cells))
    _write_frame(file, "var", pd.DataFrame(index=joint_features))
    ends = np.cumsum([len(names) for names in cells.values()])
    cell_rows = dict(zip(cells, np.split(codes, ends[:-1]), strict=True))
    # The same feature name may stand in two layers, so features are placed one layer after another.
    feature_rows: dict[str, np.ndarray] = {}
    start = 0
    for name, names in features.items():
        feature_rows[name] = np.arange(start, start + len(names))
        start += len(names)
    _write_maps(file, "obs", cell_rows, len(joint_cells))
    _write_maps(file, "var", feature_rows, len(joint_features))
    uns = _group(file, "uns")
    _write_text(uns, UNS_KEY, json.dumps(data.meta, ensure_ascii=False))


def _write_maps(file: h5py.File, axis: str, rows: dict[str, np.ndarray], size: int) -> None:
    """Write membership (obsm or varm) and, counted from 1, positions of each layer's entries."""
    members, maps = _group(file, f"{axis}m"), _group(file, f"{axis}map")
    for name, placed in rows.items():
        positions = np.zeros(size, dtype=np.uint32)
        positions[placed] = np.arange(1, len(placed) + 1)
        _write_array(members, name, (positions > 0)[:, None])
        _write_array(maps, name, positions)
    _group(file, f"{axis}p")


def _write_layer(group: h5py.Group, layer: Layer) -> None:
    _set_encoding(group, "anndata", FORMAT_VERSION)
    _write_csr(group, "X", layer.counts)
    obs = pd.DataFrame(index=layer.cells)
    if layer.batch is not None:
        obs["batch"] = pd.Categorical(layer.batch)
    _write_frame(group, "obs", obs)
    _write_frame(group, "var", layer.features)
    reps = _group(group, "obsm")
    for key, rep in layer.reps.items():
        _write_rep(reps, key, rep)
    for name in ("layers", "obsp", "uns", "varm", "varp"):
        _group(group, name)


def _write_rep(group: h5py.Group, name: str, rep: Array) -> None:
    if not isinstance(rep, BackedArray):
        _write_array(group, name, np.ascontiguousarray(rep, dtype=np.float32))
        return
    node = group.create_dataset(name, rep.shape, np.float32)
    _set_encoding(node, "array", "0.2.0", encoder=False)
    for first, block in array_blocks(rep):
        node[first : first + len(block)] = block


def _write_csr(group: h5py.Group, name: str, matrix: Matrix) -> None:
    if isinstance(matrix, BackedMatrix):
        matrix.write_to(group, name)
        return
    matrix = matrix.astype(np.float32)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    node = group.create_group(name)
    _set_encoding(node, "csr_matrix", "0.1.0", encoder=False)
    node.attrs["shape"] = np.array(matrix.shape, dtype=np.int64)
    for part in ("data", "indices", "indptr"):
        values = getattr(matrix, part)
        node.create_dataset(part, data=values, **(COMPRESSION if len(values) else {}))


def _write_frame(group: h5py.Group, name: str, frame: pd.DataFrame) -> None:
    node = group.create_group(name)
    _set_encoding(node, "dataframe", "0.2.0", encoder=False)
    node.attrs["_index"] = "_index"
    _write_texts(node.attrs, "column-order", [str(column) for column in frame.columns])
    _write_text_array(node, "_index", frame.index)
    for column in frame.columns:
        _write_column(node, str(column), frame[column])


def _write_column(group: h5py.Group, name: str, column: pd.Series) -> None:
    if isinstance(column.dtype, pd.CategoricalDtype):
        node = group.create_group(name)
        _set_encoding(node, "categorical", "0.2.0", encoder=False)
        node.attrs["ordered"] = False
        _write_text_array(node, "categories", column.cat.categories)
        _write_array(node, "codes", column.cat.codes.to_numpy())
    elif column.dtype == object:
        _write_text_array(group, name, column)
    else:
        _write_array(group, name, column.to_numpy())


def _write_array(group: h5py.Group, name: str, values: np.ndarray) -> None:
    node = group.create_dataset(name, data=values)
    _set_encoding(node, "array", "0.2.0", encoder=False)


def _write_text_array(group: h5py.Group, name: str, values: Any) -> None:
    texts = np.array([str(value) for value in values], dtype=object)
    node = group.create_dataset(name, data=texts, dtype=h5py.string_dtype())
    _set_encoding(node, "string-array", "0.2.0", encoder=False)


def _write_text(group: h5py.Group, name: str, text: str) -> None:
    node = group.create_dataset(name, data=text, dtype=h5py.string_dtype())
    _set_encoding(node, "string", "0.2.0", encoder=False)


def _write_texts(attrs: h5py.AttributeManager, name: str, texts: Sequence[str]) -> None:
    attrs.create(name, data=np.array(texts, dtype=object), dtype=h5py.string_dtype())


def _group(parent: h5py.Group, name: str) -> h5py.Group:
    group = parent.create_group(name)
    _set_encoding(group, "dict", "0.1.0", encoder=False)
    return group


def _set_encoding(
    node: h5py.Group | h5py.Dataset, kind: str, version: str, *, encoder: bool = True
) -> None:
    node.attrs["encoding-type"] = kind
    node.attrs["encoding-version"] = version
    if encoder:
        node.attrs["encoder"] = "scbraid"
        node.attrs["encoder-version"] = __version__
