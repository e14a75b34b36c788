"""Embeddings and truth tables of any origin: h5ad, h5mu, npz, parquet, tab-separated text."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from scbraid.data.layers import UNS_KEY, read_frame
from scbraid.errors import DataError

# A cell of a joint embedding stands for the cell in all layers.
JOINT = "joint"
PSEUDOTIME = "pseudotime"
PHASES = ("S_score", "G2M_score")
_NUMBERS = (PSEUDOTIME, *PHASES)
_TEXT_SUFFIXES = {".tsv": "\t", ".txt": "\t", ".csv": ","}


@dataclasses.dataclass(frozen=True, eq=False)
class Embedding:
    """An integrated embedding, layer by layer.

    Attributes
    ----------
    cells
        By layer, cell names of shape (n_cells,).
    coordinates
        By layer, (n_cells, n_dims); rows may be not finite.
    """

    cells: Mapping[str, np.ndarray]
    coordinates: Mapping[str, np.ndarray]

    @property
    def n_cells(self) -> int:
        """Cells of all layers together."""
        return sum(len(names) for names in self.cells.values())


@contextlib.contextmanager
def open_hdf5(path: str | Path) -> Iterator[h5py.File]:
    """Open an HDF5 file for reading; a DataError says that it is absent or broken."""
    path = Path(path)
    if not path.is_file():
        msg = f"{path} does not exist"
        raise DataError(msg)
    try:
        handle = h5py.File(path, "r")
    except OSError as error:
        msg = f"{path} cannot be read as HDF5 ({error}); it may be truncated: make or copy it again"
        raise DataError(msg) from error
    with handle:
        yield handle


@contextlib.contextmanager
def open_layers(path: str | Path) -> Iterator[tuple[dict[str, h5py.Group], dict[str, Any]]]:
    """Open the AnnData groups of an h5mu file, an h5ad file, or a folder of h5ad files.

    Yields
    ------
    layers : dict
        HDF5 group by layer name (the name of the file for h5ad).
    meta : dict
        What ``uns["scbraid"]`` states.
    """
    path = Path(path)
    with contextlib.ExitStack() as stack:
        if path.is_dir():
            files = sorted(path.glob("*.h5ad"))
            if not files:
                msg = f"{path} holds no .h5ad file; expected one a layer, such as rna.h5ad"
                raise DataError(msg)
            layers = {file.stem: stack.enter_context(open_hdf5(file)) for file in files}
            meta: dict[str, Any] = {}
            for handle in layers.values():
                meta |= _meta(handle)
        else:
            handle = stack.enter_context(open_hdf5(path))
            if "mod" in handle:
                mod = handle["mod"]
                order = [str(name) for name in mod.attrs.get("mod-order", sorted(mod))]
                layers = {name: mod[name] for name in order if name in mod}
            else:
                layers = {path.stem: handle}
            meta = _meta(handle)
        yield layers, meta


def _meta(group: h5py.Group) -> dict[str, Any]:
    node = group.get(f"uns/{UNS_KEY}")
    if node is None:
        return {}
    text = node[()]
    return json.loads(text.decode() if isinstance(text, bytes) else text)


def read_obs(group: h5py.Group, path: str | Path) -> pd.DataFrame:
    """Read the obs frame of an AnnData group."""
    if "obs" not in group:
        msg = f"{path} has no obs; expected an h5ad or h5mu file"
        raise DataError(msg)
    return read_frame(group["obs"])


# ------------------------------------------------------------------------------------- embeddings


def read_embedding(path: str | Path, obsm_key: str | None = None) -> Embedding:
    """Read an embedding of one or several layers.

    Parameters
    ----------
    path
        One of

        * ``.h5ad``: obsm holds the embedding; obs ``modality`` names the layer of each row
          (without it the rows are cells of one joint embedding);
        * ``.h5mu``: obsm of every modality;
        * ``.npz``: one array (n_cells, n_dims) a layer and ``cell`` with the names, or
          ``cell_<layer>`` where layers have different cells;
        * ``.parquet``, ``.tsv``, ``.csv``: columns ``cell``, optionally ``modality``, and one
          column a dimension.
    obsm_key
        Which obsm entry of an h5ad or h5mu file; needed where there are several.

    Raises
    ------
    DataError
        Naming the file, what was found and what was expected.
    """
    path = Path(path)
    suffix = _suffix(path)
    if suffix in (".h5ad", ".h5mu"):
        return _from_hdf5(path, obsm_key)
    if obsm_key is not None:
        msg = f"{path}: an obsm key ({obsm_key!r}) is for h5ad and h5mu files"
        raise DataError(msg)
    if suffix == ".npz":
        return _from_npz(path)
    return _from_table(_read_table(path, "an embedding (.h5ad, .h5mu, .npz, .parquet, .tsv)"), path)


def _suffix(path: Path) -> str:
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _read_table(path: Path, expected: str) -> pd.DataFrame:
    suffix = _suffix(path)
    if suffix != ".parquet" and suffix not in _TEXT_SUFFIXES:
        msg = f"{path} has the suffix {path.suffix!r}; expected {expected}"
        raise DataError(msg)
    try:
        if suffix == ".parquet":
            return pd.read_parquet(path)
        # Names such as "NA" or "001" are names.
        return pd.read_csv(
            path,
            sep=_TEXT_SUFFIXES[suffix],
            keep_default_na=False,
            na_values=[""],
            dtype={"cell": str, "modality": str, "cell_type": str, "batch": str},
        )
    except FileNotFoundError as error:
        msg = f"{path} does not exist"
        raise DataError(msg) from error
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read as a table ({error})"
        raise DataError(msg) from error


def _from_hdf5(path: Path, obsm_key: str | None) -> Embedding:
    cells: dict[str, np.ndarray] = {}
    coordinates: dict[str, np.ndarray] = {}
    with open_layers(path) as (layers, _):
        several = path.suffix == ".h5mu"
        for name, group in layers.items():
            matrix = _obsm(group, obsm_key, f"{path}, modality {name!r}" if several else str(path))
            obs = read_obs(group, path)
            names = obs.index.to_numpy(dtype=str)
            if several:
                modality = np.full(len(names), name, dtype=object)
            elif "modality" in obs:
                modality = obs["modality"].to_numpy(dtype=object)
            else:
                modality = np.full(len(names), JOINT, dtype=object)
            for layer in dict.fromkeys(modality):
                rows = modality == layer
                cells[str(layer)] = names[rows]
                coordinates[str(layer)] = matrix[rows]
    return Embedding(cells, coordinates)


def _obsm(group: h5py.Group, key: str | None, where: str) -> np.ndarray:
    keys = list(group.get("obsm", {}))
    if key is None and len(keys) != 1:
        found = ", ".join(keys) or "(none)"
        msg = f"{where} has {len(keys)} entries in obsm ({found}); name one as the obsm key"
        raise DataError(msg)
    if key is None:
        key = keys[0]
    if key not in keys:
        msg = f"{where} has no obsm entry {key!r}; it has: {', '.join(keys) or '(none)'}"
        raise DataError(msg)
    node = group["obsm"][key]
    if not isinstance(node, h5py.Dataset) or node.ndim != 2:
        msg = f"{where}: obsm entry {key!r} is no matrix; expected a dense array (n_cells, n_dims)"
        raise DataError(msg)
    return node[:]


def _from_npz(path: Path) -> Embedding:
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except FileNotFoundError as error:
        msg = f"{path} does not exist"
        raise DataError(msg) from error
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read as npz without objects ({error}); save plain arrays"
        raise DataError(msg) from error
    layers = [name for name, array in arrays.items() if array.ndim == 2]
    if not layers:
        msg = f"{path} holds no two-dimensional array; expected one a layer, named by it"
        raise DataError(msg)
    cells = {}
    for layer in layers:
        names = arrays.get(f"cell_{layer}", arrays.get("cell"))
        if names is None or names.shape != (len(arrays[layer]),):
            shape = None if names is None else names.shape
            msg = (
                f"{path}: expected names of the {len(arrays[layer])} cells of layer {layer!r} in "
                f"'cell' or 'cell_{layer}'. Got {shape}"
            )
            raise DataError(msg)
        cells[layer] = names.astype(str)
    return Embedding(cells, {layer: arrays[layer] for layer in layers})


def _from_table(table: pd.DataFrame, path: Path) -> Embedding:
    if "cell" not in table:
        msg = f"{path} has no column 'cell'; it has: {', '.join(map(str, table.columns[:10]))}"
        raise DataError(msg)
    dims = [column for column in table if column not in ("cell", "modality")]
    words = [str(column) for column in dims if table[column].dtype.kind not in "fiu"]
    if not dims or words:
        found = f"columns {', '.join(words[:5])} are no numbers" if words else "there is none"
        msg = f"{path}: every column but 'cell' and 'modality' must be a dimension; {found}"
        raise DataError(msg)
    modality = (
        table["modality"].astype(str).to_numpy(dtype=object)
        if "modality" in table
        else np.full(len(table), JOINT, dtype=object)
    )
    names = table["cell"].astype(str).to_numpy()
    matrix = table[dims].to_numpy(dtype=np.float64)
    layers = list(dict.fromkeys(modality))
    return Embedding(
        {layer: names[modality == layer] for layer in layers},
        {layer: matrix[modality == layer] for layer in layers},
    )


# ------------------------------------------------------------------------------------------ truth


def read_truth(
    path: str | Path,
    layers: Sequence[str],
    *,
    label_key: str = "cell_type",
    batch_key: str = "batch",
    ignored_labels: Sequence[str] = (),
) -> pd.DataFrame:
    """Read what is known of the cells of the given layers.

    Parameters
    ----------
    path
        A truth table (``.parquet``, ``.tsv``, ``.csv`` with ``cell`` and optionally ``modality``,
        ``pair``, ``cell_type``, ``batch``, ``scored``, ``pseudotime``, and ``S_score`` and
        ``G2M_score`` of the cell cycle), or a data set (``.h5mu``, ``.h5ad``, a folder of h5ad)
        whose obs has them. What names no modality holds for every layer.
    layers
        Layers of the embedding.
    label_key, batch_key
        Columns with the cell types and with the batches.
    ignored_labels
        Cells with these labels are not scored.

    Returns
    -------
    pandas.DataFrame
        modality, cell, pair (int64, -1 for none), cell_type and batch (object, None where not
        known), scored (bool), pseudotime, S_score and G2M_score (float64, NaN where not known): one
        row a cell of every layer. Without a column ``pair``, equal names in two layers
        are one cell, unless the data set states that it is not paired.

    Raises
    ------
    DataError
        When a column that is needed is missing, has the wrong type, or names a cell twice.
    """
    path = Path(path)
    paired = True
    if path.is_dir() or _suffix(path) in (".h5ad", ".h5mu"):
        table, paired = _truth_from_hdf5(path)
    else:
        table = _read_table(path, "a truth table (.parquet, .tsv) or a data set (.h5mu, .h5ad)")
    if "cell" not in table:
        msg = f"{path} has no column 'cell'; it has: {', '.join(map(str, table.columns))}"
        raise DataError(msg)
    for key, usual in ((label_key, "cell_type"), (batch_key, "batch")):
        if key != usual and key not in table:
            msg = f"{path} has no column {key!r}; it has: {', '.join(map(str, table.columns))}"
            raise DataError(msg)
    truth = pd.DataFrame({"cell": table["cell"].astype(str).to_numpy()})
    for column, key in (("cell_type", label_key), ("batch", batch_key)):
        values = table[key] if key in table else pd.Series([None] * len(table))
        truth[column] = _text_or_none(values)
    for column in _NUMBERS:
        truth[column] = _numbers(table[column], path) if column in table else np.nan
    truth["scored"] = _scored(table, path) & ~truth["cell_type"].isin(list(ignored_labels))
    if "pair" in table:
        truth["pair"] = _pair_numbers(table["pair"], path)
    elif paired:
        truth["pair"] = pd.factorize(truth["cell"])[0].astype(np.int64)
    else:
        truth["pair"] = np.int64(-1)
    if "modality" in table:
        truth["modality"] = table["modality"].astype(str).to_numpy()
    else:
        truth = pd.concat([truth.assign(modality=layer) for layer in layers], ignore_index=True)
    repeated = truth[truth.duplicated(["modality", "cell"])]
    if len(repeated):
        row = repeated.iloc[0]
        msg = (
            f"{path} names {len(repeated)} cells of a layer twice (first: {row['cell']!r} of "
            f"{row['modality']!r}); names must be unique within a layer"
        )
        raise DataError(msg)
    return truth[["modality", "cell", "pair", "cell_type", "batch", "scored", *_NUMBERS]]


def _truth_from_hdf5(path: Path) -> tuple[pd.DataFrame, bool]:
    frames = []
    with open_layers(path) as (layers, meta):
        one_for_all = len(layers) == 1 and not path.is_dir() and _suffix(path) == ".h5ad"
        for name, group in layers.items():
            obs = read_obs(group, path)
            frame = obs.reset_index(drop=True).assign(cell=obs.index.to_numpy(dtype=str))
            frames.append(frame if one_for_all else frame.assign(modality=name))
    # Equal names are one cell in the input of every other task, be it of training cells alone.
    paired = meta.get("paired", meta.get("task", "paired") != "unpaired")
    return pd.concat(frames, ignore_index=True), bool(paired)


def _text_or_none(values: pd.Series) -> np.ndarray:
    known = values.notna().to_numpy()
    text = values.astype(object).to_numpy(copy=True)
    return np.array(
        [str(value) if here else None for value, here in zip(text, known, strict=True)],
        dtype=object,
    )


def _numbers(values: pd.Series, path: Path) -> np.ndarray:
    numbers = pd.to_numeric(values, errors="coerce")
    wrong = values[numbers.isna() & values.notna()]
    if len(wrong):
        msg = f"{path}: column {values.name!r} must hold numbers. Got {wrong.iloc[0]!r}"
        raise DataError(msg)
    return numbers.to_numpy(dtype=np.float64)


def _scored(table: pd.DataFrame, path: Path) -> np.ndarray:
    if "scored" not in table:
        return np.ones(len(table), dtype=bool)
    scored = table["scored"]
    if scored.isna().any() or not set(scored.unique()) <= {True, False}:
        msg = f"{path}: column 'scored' must be true or false. Got {list(scored.unique()[:5])}"
        raise DataError(msg)
    return scored.to_numpy(dtype=bool)


def _pair_numbers(values: pd.Series, path: Path) -> np.ndarray:
    numbers = pd.to_numeric(values, errors="coerce")
    if numbers.isna().any() or (numbers != np.floor(numbers)).any():
        wrong = values[numbers.isna() | (numbers != np.floor(numbers))].iloc[0]
        msg = f"{path}: column 'pair' must hold whole numbers, -1 for no partner. Got {wrong!r}"
        raise DataError(msg)
    return numbers.to_numpy(dtype=np.int64)
