"""Build the guidance graph of a prepared input file."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scbraid.errors import DataError
from scbraid.guidance.anchored import anchored_graph, has_positions, name_pairs
from scbraid.guidance.graph import Guidance

if TYPE_CHECKING:
    import h5py
    import pandas as pd

# Kind of layer -> sign of its edges; a methylated gene body means less expression.
SIGNS = {"atac": 1, "adt": 1, "met": -1}


def build_guidance(
    input_path: str | os.PathLike[str],
    *,
    region: str = "combined",
    promoter_len: int = 2000,
    extend_range: int = 0,
    decay: str = "none",
    corrupt_rate: float = 0.0,
    corrupt_kind: str = "rewire",
    corrupt_seed: int = 0,
) -> Guidance:
    """Build the guidance graph of a prepared input; only its feature tables are read.

    The `rna` layer is the anchor. The start of every other layer's name decides its edges:
    ``atac`` by position, sign +1; ``adt`` by name, sign +1; ``met`` by name where a feature names a
    gene, otherwise by position, sign -1. Which peaks are highly variable is decided by the graph
    alone: a flag of theirs in the file does not count.

    Parameters
    ----------
    input_path
        An h5mu file, or a folder with one h5ad file a layer.
    region, promoter_len, extend_range, decay, corrupt_rate, corrupt_kind, corrupt_seed
        See :func:`anchored_graph`.

    Raises
    ------
    ConfigError
        When a setting is unknown or out of range.
    DataError
        Naming the file, the layer and the field that cannot be used.
    """
    path = Path(input_path)
    tables, meta = read_feature_tables(path)
    if "rna" not in tables or len(tables) < 2:
        msg = (
            f"{path} has the layers {', '.join(tables) or '(none)'}; "
            "guidance needs 'rna' and at least one other layer"
        )
        raise DataError(msg)
    others, signs, links = {}, {}, {}
    for name, table in tables.items():
        if name == "rna":
            continue
        kind = _layer_kind(name, path)
        signs[name] = SIGNS[kind]
        if kind == "atac":
            links[name] = "interval"
            table = table.drop(columns="highly_variable", errors="ignore")
        elif kind == "met" and has_positions(table):
            named = name_pairs(tables["rna"], table)[0].size > 0
            links[name] = "name" if named else "interval"
        else:
            links[name] = "name"
        others[name] = table
    try:
        graph = anchored_graph(
            tables["rna"],
            others,
            region=region,
            promoter_len=promoter_len,
            extend_range=extend_range,
            decay=decay,
            signs=signs,
            links=links,
            corrupt_rate=corrupt_rate,
            corrupt_kind=corrupt_kind,
            corrupt_seed=corrupt_seed,
        )
    except DataError as error:
        msg = f"{path}: {error}"
        raise DataError(msg) from error
    origin: dict[str, Any] = {key: meta[key] for key in ("dataset", "genome") if key in meta}
    return replace(graph, meta={**origin, **graph.meta})


def read_feature_tables(path: Path) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """Read the feature tables (var) of all layers and ``uns['scbraid']``, and nothing else.

    Parameters
    ----------
    path
        An h5mu file, or a folder with one h5ad file a layer.

    Raises
    ------
    DataError
        When the file is absent, no HDF5, no MuData, or a layer has no var.
    """
    import h5py

    files = sorted(path.glob("*.h5ad")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        msg = f"no input at {path}; expected an h5mu file or a folder with one h5ad file a layer"
        raise DataError(msg)
    tables: dict[str, pd.DataFrame] = {}
    meta: dict[str, Any] = {}
    for file in files:
        try:
            with h5py.File(file, "r") as handle:
                if path.is_dir():
                    groups = {file.stem: handle}
                elif "mod" in handle:
                    stated = handle["mod"].attrs.get("mod-order", list(handle["mod"]))
                    groups = {str(name): handle["mod"][str(name)] for name in stated}
                else:
                    msg = f"{file} holds no 'mod' group; an h5mu file is expected"
                    raise DataError(msg)
                for name, group in groups.items():
                    tables[name] = _read_var(group, name, file)
                meta.update(_read_meta(handle, file))
        except (OSError, KeyError) as error:
            msg = f"{file} cannot be read as HDF5 ({error}); it may be cut short: make it again"
            raise DataError(msg) from error
    return tables, meta


def _read_var(group: h5py.Group, name: str, file: Path) -> pd.DataFrame:
    from scbraid.data.layers import read_frame

    if "var" not in group:
        msg = f"{file}: layer {name!r} has no var table; expected an AnnData group"
        raise DataError(msg)
    return read_frame(group["var"])


def _read_meta(handle: h5py.File, file: Path) -> dict[str, Any]:
    from scbraid.data.layers import UNS_KEY

    node = handle.get(f"uns/{UNS_KEY}")
    if node is None:
        return {}
    try:
        return dict(json.loads(node.asstr()[()]))
    except (ValueError, TypeError, AttributeError) as error:
        msg = f"{file}: uns[{UNS_KEY!r}] is no JSON text ({error}); prepare the input again"
        raise DataError(msg) from error


def _layer_kind(name: str, path: Path) -> str:
    for kind in SIGNS:
        if name.startswith(kind):
            return kind
    msg = (
        f"{path}: layer {name!r} is of no kind that guidance knows ({', '.join(SIGNS)}). "
        "Start its name with one of them, or call scbraid.guidance.anchored_graph with `signs` "
        "and `links`"
    )
    raise DataError(msg)
