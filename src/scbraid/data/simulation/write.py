"""Write simulated cells block by block into one h5mu file, in memory that does not grow.

The file is what mudata.read_h5mu and scbraid.data.layers.Layers.read expect: MuData encoding
0.1.0 around AnnData groups whose X is CSR.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from scbraid._version import __version__
from scbraid.data.simulation.cells import BLOCK, LINEAGES, CellBlock, draw_block
from scbraid.data.simulation.counts import draw_counts
from scbraid.data.simulation.truth import Truth, split_types

logger = logging.getLogger("scbraid")

USERBLOCK = 512
# Elements of one compressed HDF5 chunk of X: half a megabyte of float32.
CHUNK = 1 << 17
TEXT = h5py.string_dtype("utf-8")


def cells_per_layer(truth: Truth, n_cells: int) -> dict[str, int]:
    """Cells of each layer: `n_cells`, and `size_ratio` times as many after the first (unpaired)."""
    ratio = truth.config.size_ratio
    return {
        layer: n_cells if position == 0 else max(1, round(ratio * n_cells))
        for position, layer in enumerate(truth.config.layers)
    }


def blocks(truth: Truth, sample: int, n_cells: int) -> Iterator[tuple[int, CellBlock, int]]:
    """Yield (block number, whole block of cells, how many of them belong to the data set)."""
    for block in range(-(-n_cells // BLOCK)):
        yield block, draw_block(truth, sample, block), min(BLOCK, n_cells - block * BLOCK)


def cell_names(truth: Truth, layer: str, start: int, stop: int) -> list[str]:
    """Names of cells; layers of the same cells share them."""
    prefix = "cell" if truth.config.paired else layer
    return [f"{prefix}-{one:07d}" for one in range(start, stop)]


def obs_columns(truth: Truth, cells: CellBlock, n: int) -> dict[str, np.ndarray]:
    """obs of the first `n` cells of a block: codes of categorical columns, plain others."""
    subtype = np.asarray(_subtype_codes(truth)[cells.types[:n], cells.half[:n] + 1])
    columns = {
        "cell_type": cells.labels[:n],
        "subtype": subtype,
        "lineage": cells.lineage[:n],
        "pseudotime": cells.pseudotime[:n],
    }
    if truth.config.n_batches > 1:
        columns["batch"] = cells.batch[:n]
    if truth.config.label_noise > 0:
        columns["cell_type_true"] = cells.types[:n]
    return columns


def categories(truth: Truth) -> dict[str, list[str]]:
    """Category names of the categorical obs columns."""
    found = {
        "cell_type": truth.types,
        "subtype": _subtype_names(truth),
        "lineage": list(LINEAGES),
    }
    if truth.config.n_batches > 1:
        width = len(str(truth.config.n_batches))
        found["batch"] = [f"batch{b + 1:0{width}d}" for b in range(truth.config.n_batches)]
    if truth.config.label_noise > 0:
        found["cell_type_true"] = truth.types
    return found


def _splits(truth: Truth) -> dict[int, int]:
    return {
        one: order for order, one in enumerate(split_types(truth.config, truth.stem, truth.ends))
    }


def _subtype_names(truth: Truth) -> list[str]:
    """Types that are whole, then the two halves of each split type."""
    halves = [f"{truth.types[one]}.{half}" for one in _splits(truth) for half in "ab"]
    return [*truth.types, *halves]


def _subtype_codes(truth: Truth) -> np.ndarray:
    """Code of (type, half + 1) in the subtype categories, int (n_types, 3)."""
    codes = np.repeat(np.arange(len(truth.types))[:, None], 3, axis=1)
    for one, order in _splits(truth).items():
        codes[one, 1:] = len(truth.types) + 2 * order + np.arange(2)
    return codes


def describe(truth: Truth, preset: str, n_cells: int, layers: list[str]) -> dict[str, Any]:
    """Return what ``uns["scbraid"]`` states."""
    return {
        "name": f"sim_{preset}",
        "genome": "synthetic",
        "source": f"scbraid {__version__} simulator, preset {preset}",
        "licence": "CC0-1.0",
        "citation": "",
        "checksums": {},
        "paired": truth.config.paired,
        "kind": "simulated",
        "simulation": {
            "preset": preset,
            "seed": truth.seed,
            "n_cells": n_cells,
            "layers": layers,
            "settings": truth.config.to_dict(),
        },
    }


def write_dataset(
    truth: Truth,
    n_cells: int,
    path: Path,
    layers: list[str],
    meta: dict[str, Any],
    chunk_cells: int,
) -> None:
    """Stream all blocks into `path`.

    Parameters
    ----------
    truth
        What was planted.
    n_cells
        Cells of the first layer (of every layer when paired).
    path
        New h5mu file.
    layers
        Layers to write, in order.
    meta
        Becomes ``uns["scbraid"]``.
    chunk_cells
        Cells gathered before each write; changes memory and nothing else.
    """
    sizes = {layer: cells_per_layer(truth, n_cells)[layer] for layer in layers}
    with h5py.File(path, "w", userblock_size=USERBLOCK) as file:
        _encode(file, "MuData", "0.1.0", axis=0, encoder="scbraid")
        file.attrs["encoder-version"] = __version__
        modalities = file.create_group("mod")
        modalities.attrs["mod-order"] = np.array(layers, dtype=object)
        writers = {layer: _LayerWriter(modalities, truth, layer, sizes[layer]) for layer in layers}
        groups = [layers] if truth.config.paired else [[layer] for layer in layers]
        for group in groups:
            _stream(truth, group, sizes[group[0]], writers, chunk_cells)
        _write_shared(file, truth, layers, sizes)
        uns = file.create_group("uns")
        _encode(uns, "dict", "0.1.0")
        text = uns.create_dataset("scbraid", data=json.dumps(meta), dtype=TEXT)
        _encode(text, "string", "0.2.0")
    with path.open("r+b") as raw:
        raw.write(
            f"MuData (format-version=0.1.0;creator=scbraid;creator-version={__version__})".encode()
        )


def _stream(
    truth: Truth,
    group: list[str],
    n_cells: int,
    writers: dict[str, _LayerWriter],
    chunk_cells: int,
) -> None:
    sample = truth.sample_of(group[0])
    told = time.monotonic()
    for block, cells, n in blocks(truth, sample, n_cells):
        for layer in group:
            counts = draw_counts(truth, layer, cells, block)
            writers[layer].add(counts[:n] if n < BLOCK else counts, obs_columns(truth, cells, n))
        if writers[group[0]].waiting >= chunk_cells:
            for layer in group:
                writers[layer].flush()
        if time.monotonic() - told > 10:
            told = time.monotonic()
            logger.info("%s: %d of %d cells", "+".join(group), block * BLOCK + n, n_cells)
    for layer in group:
        writers[layer].flush()


class _LayerWriter:
    """Appends blocks of one layer to its AnnData group."""

    def __init__(self, parent: h5py.Group, truth: Truth, layer: str, n_cells: int) -> None:
        self._truth, self._layer, self._n_cells = truth, layer, n_cells
        group = parent.create_group(layer)
        _encode(group, "anndata", "0.1.0")
        features = truth.layers[layer].features
        x = group.create_group("X")
        _encode(x, "csr_matrix", "0.1.0")
        x.attrs["shape"] = np.array([n_cells, len(features)], dtype=np.int64)
        # Fewest bytes first: level 1 with byte shuffling is near the best ratio at disk speed.
        packed = {"chunks": (CHUNK,), "compression": "gzip", "compression_opts": 1, "shuffle": True}
        self._data = x.create_dataset("data", (0,), np.float32, maxshape=(None,), **packed)
        self._indices = x.create_dataset("indices", (0,), np.int32, maxshape=(None,), **packed)
        self._indptr = x.create_dataset("indptr", (n_cells + 1,), np.int64)
        self._obs, self._columns = _make_obs(group, truth, n_cells)
        _write_frame(group, "var", features)
        for name in ("layers", "obsm", "obsp", "uns", "varm", "varp"):
            _encode(group.create_group(name), "dict", "0.1.0")
        self._blocks: list[sp.csr_matrix] = []
        self._pending: list[dict[str, np.ndarray]] = []
        self._cells = 0
        self.waiting = 0

    def add(self, counts: sp.csr_matrix, columns: dict[str, np.ndarray]) -> None:
        """Take a block; it is written by the next `flush`."""
        self._blocks.append(counts)
        self._pending.append(columns)
        self.waiting += counts.shape[0]

    def flush(self) -> None:
        """Write what is waiting."""
        if not self.waiting:
            return
        start, stop = self._cells, self._cells + self.waiting
        stored = self._data.shape[0]
        values = np.concatenate([one.data for one in self._blocks])
        lengths = np.concatenate([np.diff(one.indptr) for one in self._blocks])
        for target, new in (
            (self._data, values),
            (self._indices, np.concatenate([one.indices for one in self._blocks])),
        ):
            target.resize((stored + len(values),))
            target[stored:] = new
        self._indptr[start + 1 : stop + 1] = stored + np.cumsum(lengths)
        self._obs["_index"][start:stop] = cell_names(self._truth, self._layer, start, stop)
        for name, target in self._columns.items():
            target[start:stop] = np.concatenate([one[name] for one in self._pending])
        self._blocks, self._pending, self.waiting, self._cells = [], [], 0, stop


def _encode(node: h5py.Group | h5py.Dataset, kind: str, version: str, **attrs: Any) -> None:
    node.attrs["encoding-type"] = kind
    node.attrs["encoding-version"] = version
    for name, value in attrs.items():
        node.attrs[name] = value


def _make_obs(
    parent: h5py.Group, truth: Truth, n_cells: int
) -> tuple[h5py.Group, dict[str, h5py.Dataset]]:
    """Create the obs group with columns of full length, to be filled in."""
    names = categories(truth)
    order = list(obs_columns(truth, draw_block(truth, 0, 0), 1))
    obs = _make_frame(parent, "obs", n_cells, order)
    columns = {}
    for column in order:
        if column in names:
            node = obs.create_group(column)
            _encode(node, "categorical", "0.2.0", ordered=False)
            kind = np.int8 if len(names[column]) < 128 else np.int16
            columns[column] = node.create_dataset("codes", (n_cells,), kind)
            _encode(columns[column], "array", "0.2.0")
            _text(node, "categories", names[column])
        else:
            columns[column] = obs.create_dataset(column, (n_cells,), np.float32)
            _encode(columns[column], "array", "0.2.0")
    return obs, columns


def _make_frame(parent: h5py.Group, name: str, length: int, columns: list[str]) -> h5py.Group:
    frame = parent.create_group(name)
    _encode(frame, "dataframe", "0.2.0", _index="_index")
    frame.attrs.create("column-order", np.array(columns, dtype=object), dtype=TEXT)
    index = frame.create_dataset("_index", (length,), TEXT)
    _encode(index, "string-array", "0.2.0")
    return frame


def _text(group: h5py.Group, name: str, values: Any) -> None:
    node = group.create_dataset(name, data=np.asarray(values, dtype=object), dtype=TEXT)
    _encode(node, "string-array", "0.2.0")


def _write_frame(parent: h5py.Group, name: str, frame: pd.DataFrame) -> None:
    group = _make_frame(parent, name, len(frame), list(frame.columns))
    group["_index"][:] = frame.index.to_numpy(dtype=object)
    for column in frame.columns:
        values = frame[column].to_numpy()
        if values.dtype == object:
            _text(group, column, values)
        else:
            _encode(group.create_dataset(column, data=values), "array", "0.2.0")


def _write_shared(file: h5py.File, truth: Truth, layers: list[str], sizes: dict[str, int]) -> None:
    """Write MuData's own axes: the union of cells, the union of features, and the maps to them."""
    # Layers of the same cells lie on top of each other; others follow one another.
    starts = dict.fromkeys(layers, 0)
    n_obs = sizes[layers[0]]
    if not truth.config.paired:
        ends = np.cumsum([sizes[layer] for layer in layers])
        starts = {layer: int(end) - sizes[layer] for layer, end in zip(layers, ends, strict=True)}
        n_obs = int(ends[-1])
    obs = _make_frame(file, "obs", n_obs, [])
    for layer in layers[:1] if truth.config.paired else layers:
        step = CHUNK
        for first in range(0, sizes[layer], step):
            last = min(first + step, sizes[layer])
            begin = starts[layer] + first
            obs["_index"][begin : begin + last - first] = cell_names(truth, layer, first, last)
    _write_maps(file, "obs", layers, starts, sizes, n_obs)

    n_features = {layer: len(truth.layers[layer].features) for layer in layers}
    ends = np.cumsum(list(n_features.values()))
    offsets = {layer: int(end) - n_features[layer] for layer, end in zip(layers, ends, strict=True)}
    var = _make_frame(file, "var", int(ends[-1]), [])
    for layer in layers:
        names = truth.layers[layer].features.index.to_numpy(dtype=object)
        var["_index"][offsets[layer] : offsets[layer] + len(names)] = names
    _write_maps(file, "var", layers, offsets, n_features, int(ends[-1]))


def _write_maps(
    file: h5py.File,
    axis: str,
    layers: list[str],
    starts: dict[str, int],
    sizes: dict[str, int],
    total: int,
) -> None:
    """Membership masks and one-based positions (0: absent) of each layer on a shared axis."""
    for name in (f"{axis}m", f"{axis}p", f"{axis}map"):
        _encode(file.create_group(name), "dict", "0.1.0")
    for layer in layers:
        here = slice(starts[layer], starts[layer] + sizes[layer])
        positions = np.zeros(total, dtype=np.uint32)
        positions[here] = np.arange(1, sizes[layer] + 1)
        packed = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
        mask = file[f"{axis}m"].create_dataset(layer, data=(positions > 0)[:, None], **packed)
        _encode(mask, "array", "0.2.0")
        where = file[f"{axis}map"].create_dataset(layer, data=positions, **packed)
        _encode(where, "array", "0.2.0")
