"""The files of a run, written with h5py and numpy alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import h5py
import numpy as np

from scbraid.files import atomic_path
from scbraid.methods.base import Matching, MethodResult, Prediction


def write_embedding(
    path: str | Path,
    cells: Mapping[str, np.ndarray],
    embeddings: Mapping[str, np.ndarray],
    key: str,
) -> None:
    """Write an h5ad file with one row a cell: obs index and `modality`, obsm `key`, empty X.

    Parameters
    ----------
    path
        The file.
    cells
        Cell names by layer, each (n_cells,).
    embeddings
        By layer, each (n_cells, k); all layers have the same k. Empty mappings give 0 cells.
    key
        Name in obsm, such as ``X_glue``.
    """
    names = [np.asarray(cells[name], dtype=object) for name in embeddings]
    modality = np.repeat(np.array(list(embeddings), dtype=object), [len(part) for part in names])
    width = max((part.shape[1] for part in embeddings.values()), default=0)
    index = np.concatenate(names) if names else np.zeros(0, dtype=object)
    with atomic_path(path) as partial, h5py.File(partial, "w", track_order=False) as file:
        _mark(file, "anndata", "0.1.0")
        _array(file, "X", np.zeros((len(index), 0), np.float32))
        _frame(file, "obs", {"_index": index, "modality": modality})
        _frame(file, "var", {"_index": np.zeros(0, dtype=object)})
        for group in ("obsm", "varm", "obsp", "varp", "layers", "uns"):
            _mark(file.create_group(group), "dict", "0.1.0")
        # Layer by layer, so that no second copy of all embeddings is in memory.
        rows = file["obsm"].create_dataset(key, (len(index), width), np.float32, track_times=False)
        _mark(rows, "array", "0.2.0")
        first = 0
        for part in embeddings.values():
            rows[first : first + len(part)] = part
            first += len(part)


def write_features(path: str | Path, result: MethodResult) -> None:
    """Write features.npz: `feature`, `layer` (text) and `embedding` (n_features, k) float32."""
    layers = [np.repeat(name, len(part[0])) for name, part in result.features.items()]
    with atomic_path(path) as partial, partial.open("wb") as file:
        np.savez(
            file,
            feature=np.concatenate([part[0].astype(str) for part in result.features.values()]),
            layer=np.concatenate(layers).astype(str),
            embedding=np.concatenate(
                [np.asarray(part[1], np.float32) for part in result.features.values()]
            ),
        )


def write_prediction(path: str | Path, prediction: Prediction) -> None:
    """Write an h5ad file: X float32 (n_test, n_features), names of cells and features."""
    with atomic_path(path) as partial, h5py.File(partial, "w", track_order=False) as file:
        _mark(file, "anndata", "0.1.0")
        _array(file, "X", np.ascontiguousarray(prediction.values, dtype=np.float32))
        _frame(file, "obs", {"_index": np.asarray(prediction.cells, dtype=object)})
        _frame(file, "var", {"_index": np.asarray(prediction.features, dtype=object)})
        for group in ("obsm", "varm", "obsp", "varp", "layers", "uns"):
            _mark(file.create_group(group), "dict", "0.1.0")


def write_matching(path: str | Path, matching: Matching) -> None:
    """Write an npz file: layers, cells_a, cells_b (text), CSR parts of the weights, hard."""
    with atomic_path(path) as partial, partial.open("wb") as file:
        np.savez_compressed(
            file,
            layers=np.asarray(matching.layers).astype(str),
            cells_a=np.asarray(matching.cells[0]).astype(str),
            cells_b=np.asarray(matching.cells[1]).astype(str),
            data=matching.weights.data.astype(np.float32),
            indices=matching.weights.indices.astype(np.int64),
            indptr=matching.weights.indptr.astype(np.int64),
            hard=np.bool_(matching.hard),
        )


def _mark(node: h5py.Group | h5py.Dataset, kind: str, version: str) -> None:
    node.attrs["encoding-type"] = kind
    node.attrs["encoding-version"] = version


def _array(group: h5py.Group, name: str, values: np.ndarray) -> None:
    if values.dtype == object:
        node = group.create_dataset(name, data=values, dtype=h5py.string_dtype())
        _mark(node, "string-array", "0.2.0")
    else:
        # No time stamps, so that the same embedding gives the same bytes.
        node = group.create_dataset(name, data=values, track_times=False)
        _mark(node, "array", "0.2.0")


def _frame(group: h5py.Group, name: str, columns: Mapping[str, np.ndarray]) -> None:
    frame = group.create_group(name)
    _mark(frame, "dataframe", "0.2.0")
    frame.attrs["_index"] = "_index"
    order = [column for column in columns if column != "_index"]
    frame.attrs.create("column-order", order, dtype=h5py.string_dtype(), shape=(len(order),))
    for column, values in columns.items():
        _array(frame, column, values)
