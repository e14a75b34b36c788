"""The guidance graph: signed, weighted edges between features of several layers.

A node is a (layer, feature) pair, so that the same name may stand in two layers. The graph is a
directed multigraph: parallel edges (from several kinds of evidence) are kept and all of them count.
Only numpy and scipy are needed here.
"""

from __future__ import annotations

import json
import logging
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from scbraid.errors import DataError
from scbraid.files import atomic_path

logger = logging.getLogger("scbraid")

KINDS = ("fwd", "rev", "loop")
FORMAT = "scbraid.guidance/1"

_NODE_FIELDS = ("features", "layer", "highly_variable")
_EDGE_FIELDS = ("source", "target", "sign", "weight", "dist", "kind", "evidence")
_REBUILD = "build it again with `scbraid guidance`"


@dataclass(frozen=True, eq=False, repr=False)
class Guidance:
    """A guidance graph over the features of all layers.

    Arrays are converted to the types below when the graph is made; lengths are checked then, and
    everything else by :meth:`validate`.

    Parameters
    ----------
    features
        (n_features,) feature names.
    layer
        (n_features,) name of the layer that each feature belongs to.
    highly_variable
        (n_features,) bool; the features that models are trained on.
    source, target
        (n_edges,) int32 indices into `features`.
    sign
        (n_edges,) int8, -1 or +1.
    weight
        (n_edges,) float32 in (0, 1].
    dist
        (n_edges,) int64 genomic distance in base pairs, -1 where there is none.
    kind
        (n_edges,) ``'fwd'`` (anchor feature to other feature), ``'rev'`` (the same edge backwards)
        or ``'loop'`` (a feature to itself).
    evidence
        (n_edges,) what the edge rests on, for example ``'distance'``, ``'name'`` or ``'self'``.
    meta
        How the graph was built; everything in it can be written as JSON.

    Raises
    ------
    DataError
        When the arrays of nodes or those of edges differ in length, or have the wrong type.
    """

    features: np.ndarray
    layer: np.ndarray
    highly_variable: np.ndarray
    source: np.ndarray
    target: np.ndarray
    sign: np.ndarray
    weight: np.ndarray
    dist: np.ndarray
    kind: np.ndarray
    evidence: np.ndarray
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wanted_types: dict[str, type[np.generic]] = {
            "highly_variable": np.bool_,
            "source": np.int32,
            "target": np.int32,
            "sign": np.int8,
            "weight": np.float32,
            "dist": np.int64,
        }
        for name in (*_NODE_FIELDS, *_EDGE_FIELDS):
            values = np.asarray(getattr(self, name))
            wanted = wanted_types.get(name)
            if wanted is None:
                values = values if values.dtype.kind == "U" else values.astype(str)
            elif values.dtype != wanted:
                values = _convert(values, wanted, name)
            if values.ndim != 1:
                msg = f"guidance field {name!r} has shape {values.shape}; one dimension is expected"
                raise DataError(msg)
            object.__setattr__(self, name, values)
        for names, what in ((_NODE_FIELDS, "feature"), (_EDGE_FIELDS, "edge")):
            lengths = {name: len(getattr(self, name)) for name in names}
            if len(set(lengths.values())) > 1:
                found = ", ".join(f"{name} {length:,}" for name, length in lengths.items())
                msg = (
                    f"guidance fields differ in length ({found}); one value per {what} is expected"
                )
                raise DataError(msg)

    def __repr__(self) -> str:
        layers = ", ".join(f"{name} {self.index(name).size:,}" for name in self.layers)
        kinds = ", ".join(f"{kind} {int(np.sum(self.kind == kind)):,}" for kind in KINDS)
        return (
            f"Guidance({self.n_features:,} features [{layers}], {self.n_edges:,} edges [{kinds}], "
            f"{int(self.highly_variable.sum()):,} highly variable)"
        )

    @property
    def n_features(self) -> int:
        """Number of nodes."""
        return len(self.features)

    @property
    def n_edges(self) -> int:
        """Number of edges of all kinds."""
        return len(self.source)

    @property
    def layers(self) -> list[str]:
        """Layer names in order of their first feature."""
        names, first = np.unique(self.layer, return_index=True)
        return [str(name) for name in names[np.argsort(first)]]

    def index(self, layer: str) -> np.ndarray:
        """Node indices (int64, ascending) of the features of one layer.

        Raises
        ------
        DataError
            When the graph has no such layer.
        """
        found = np.flatnonzero(self.layer == layer)
        if found.size == 0:
            known = ", ".join(self.layers) or "(none)"
            msg = f"guidance has no layer {layer!r}; it has: {known}"
            raise DataError(msg)
        return found

    def subgraph(self, mask: np.ndarray) -> Guidance:
        """Induced subgraph: the nodes where `mask` is True and the edges between them.

        Parameters
        ----------
        mask
            (n_features,) bool.
        """
        mask = np.asarray(mask)
        if mask.dtype != np.bool_ or mask.shape != (self.n_features,):
            msg = (
                f"a mask of {self.n_features:,} booleans is expected. "
                f"Got {mask.dtype} of shape {mask.shape}"
            )
            raise DataError(msg)
        new_index = np.cumsum(mask, dtype=np.int32) - np.int32(1)
        kept = mask[self.source] & mask[self.target]
        nodes = {name: getattr(self, name)[mask] for name in _NODE_FIELDS}
        edges = {name: getattr(self, name)[kept] for name in _EDGE_FIELDS}
        edges["source"] = new_index[edges["source"]]
        edges["target"] = new_index[edges["target"]]
        return replace(self, **nodes, **edges)

    def highly_variable_subgraph(self) -> Guidance:
        """Subgraph induced on the highly variable features: what models are trained on."""
        return self.subgraph(self.highly_variable)

    def adjacency(self, source_layer: str, target_layer: str) -> sparse.csr_matrix:
        """Signed weights of the forward edges between two layers.

        Returns
        -------
        csr_matrix
            (features of `source_layer`, features of `target_layer`), float32, rows and columns in
            the order of :meth:`index`; entry = sum of sign * weight over parallel edges.
        """
        rows, columns = self.index(source_layer), self.index(target_layer)
        position = np.full(self.n_features, -1, dtype=np.int64)
        position[columns] = np.arange(columns.size)
        column = position[self.target]
        position[:] = -1
        position[rows] = np.arange(rows.size)
        row = position[self.source]
        kept = (self.kind == "fwd") & (row >= 0) & (column >= 0)
        values = self.sign[kept] * self.weight[kept]
        matrix = sparse.coo_matrix(
            (values, (row[kept], column[kept])), shape=(rows.size, columns.size), dtype=np.float32
        )
        return sparse.csr_matrix(matrix)

    def check_covers(self, layers: Mapping[str, Sequence[str]]) -> None:
        """Check that the graph holds every feature that a model wants.

        Parameters
        ----------
        layers
            Feature names per layer.

        Raises
        ------
        DataError
            With the number of missing features and the first of them.
        """
        for name, wanted in layers.items():
            names = np.asarray(wanted, dtype=str)
            missing = names[~np.isin(names, self.features[self.index(name)])]
            if missing.size:
                msg = (
                    f"guidance lacks {missing.size:,} of {names.size:,} {name} features "
                    f"(first: {str(missing[0])!r}). It must cover every feature of the input; "
                    f"{_REBUILD} from the same input"
                )
                raise DataError(msg)

    def validate(self, *, require_loops: bool = False) -> None:
        """Check everything that a model relies on.

        Features are unique within a layer, indices in range, kinds known, signs -1 or +1, weights
        in (0, 1], loops join a feature to itself, reverse edges mirror the forward ones (as a
        multiset of source, target, sign and weight), and every feature has a loop.

        Parameters
        ----------
        require_loops
            Raise when features lack a self-loop; otherwise that is only a warning in the log.

        Raises
        ------
        DataError
            Naming the field, how many values are wrong, the first of them and what is expected.
        """
        self._check_nodes()
        self._check_edges()
        self._check_symmetry()
        loops = self.kind == "loop"
        bare = np.ones(self.n_features, dtype=bool)
        bare[self.source[loops]] = False
        if bare.any():
            first = self._node(int(np.flatnonzero(bare)[0]))
            msg = (
                f"{int(bare.sum()):,} of {self.n_features:,} features lack a self-loop "
                f"(first: {first}); add them with scbraid.guidance.complete"
            )
            if require_loops:
                raise DataError(msg)
            logger.warning("guidance: %s", msg)

    def _check_nodes(self) -> None:
        order = np.lexsort((self.features, self.layer))
        features, layer = self.features[order], self.layer[order]
        twice = np.flatnonzero((features[1:] == features[:-1]) & (layer[1:] == layer[:-1]))
        if twice.size:
            msg = (
                f"guidance has {twice.size:,} repeated features "
                f"(first: {self._node(int(order[twice[0]]))}); names must be unique within a layer"
            )
            raise DataError(msg)

    def _check_edges(self) -> None:
        ends = np.stack([self.source, self.target])
        outside = ((ends < 0) | (ends >= self.n_features)).any(axis=0)
        if outside.any():
            first = int(np.flatnonzero(outside)[0])
            msg = (
                f"{int(outside.sum()):,} edges point outside the {self.n_features:,} features "
                f"(first: edge {first}, {self.source[first]} -> {self.target[first]}); {_REBUILD}"
            )
            raise DataError(msg)
        checks = (
            (~np.isin(self.kind, KINDS), "kind", f"one of {', '.join(KINDS)}"),
            (~np.isin(self.sign, (-1, 1)), "sign", "-1 or +1 (an edge without sign cannot guide)"),
            (~((self.weight > 0) & (self.weight <= 1)), "weight", "a number in (0, 1]"),
            (self.dist < -1, "dist", "base pairs >= 0, or -1 for none"),
        )
        for wrong, name, expected in checks:
            if wrong.any():
                first = int(np.flatnonzero(wrong)[0])
                msg = (
                    f"guidance field {name!r} is wrong on {int(wrong.sum()):,} of "
                    f"{self.n_edges:,} edges (first: {self._edge(first)}). Expected {expected}. "
                    f"Got {getattr(self, name)[first].item()!r}"
                )
                raise DataError(msg)
        misnamed = (self.kind == "loop") != (self.source == self.target)
        if misnamed.any():
            first = int(np.flatnonzero(misnamed)[0])
            msg = (
                f"{int(misnamed.sum()):,} edges are misnamed (first: {self._edge(first)} is of "
                f"kind {str(self.kind[first])!r}); an edge is a 'loop' if, and only if, it joins "
                "a feature to itself"
            )
            raise DataError(msg)

    def _check_symmetry(self) -> None:
        fwd, rev = np.flatnonzero(self.kind == "fwd"), np.flatnonzero(self.kind == "rev")
        if fwd.size != rev.size:
            msg = (
                f"guidance has {fwd.size:,} forward but {rev.size:,} reverse edges; each forward "
                "edge needs one reverse edge of equal sign and weight (scbraid.guidance.complete)"
            )
            raise DataError(msg)
        forward = (self.source[fwd], self.target[fwd], self.sign[fwd], self.weight[fwd])
        reverse = (self.target[rev], self.source[rev], self.sign[rev], self.weight[rev])
        if all(np.array_equal(a, b) for a, b in zip(forward, reverse, strict=True)):
            return  # the order in which `complete` writes them
        by_fwd, by_rev = np.lexsort(forward[::-1]), np.lexsort(reverse[::-1])
        differs = np.zeros(fwd.size, dtype=bool)
        for a, b in zip(forward, reverse, strict=True):
            differs |= a[by_fwd] != b[by_rev]
        if differs.any():
            first = int(fwd[by_fwd[np.flatnonzero(differs)[0]]])
            msg = (
                f"guidance is not symmetric: forward edge {self._edge(first)} (sign "
                f"{self.sign[first]:+d}, weight {self.weight[first]:.4g}) has no reverse edge of "
                "the same sign and weight; rebuild the reverse edges with scbraid.guidance.complete"
            )
            raise DataError(msg)

    def _node(self, node: int) -> str:
        return f"{self.layer[node]}:{self.features[node]}"

    def _edge(self, edge: int) -> str:
        return f"{self._node(int(self.source[edge]))} -> {self._node(int(self.target[edge]))}"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the graph as a compressed npz of plain arrays (no pickles), atomically.

        The same graph always gives the same bytes.

        Raises
        ------
        DataError
            When `meta` holds something that JSON cannot, or the folder cannot be written.
        """
        try:
            meta = json.dumps(self.meta, ensure_ascii=False, sort_keys=True)
        except TypeError as error:
            msg = f"guidance meta cannot be written as JSON ({error}); keep plain values in it"
            raise DataError(msg) from error
        arrays = {"format": np.array(FORMAT), "meta": np.array(meta)}
        arrays |= {name: getattr(self, name) for name in (*_NODE_FIELDS, *_EDGE_FIELDS)}
        # numpy.savez_compressed knows only level 6, which takes three times as long for 5 % less.
        with (
            atomic_path(path) as partial,
            zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        ):
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Guidance:
        """Read a graph written by :meth:`save` and validate it.

        Raises
        ------
        DataError
            Naming the file and what is wrong with it: absent, not an npz, cut short, of another
            format, fields missing, or an invalid graph.
        """
        path = Path(path)
        if not path.is_file():
            msg = f"no guidance file at {path}; {_REBUILD}"
            raise DataError(msg)
        names = [item.name for item in fields(cls)]
        try:
            if not zipfile.is_zipfile(path):
                msg = "it is no npz archive, or cut short"
                raise DataError(msg)
            with np.load(path, allow_pickle=False) as archive:
                stated = str(archive["format"]) if "format" in archive.files else "absent"
                if stated != FORMAT:
                    msg = f"its format is {stated}, {FORMAT} is expected"
                    raise DataError(msg)
                missing = [name for name in names if name not in archive.files]
                if missing:
                    msg = f"it lacks {', '.join(missing)}"
                    raise DataError(msg)
                content: dict[str, Any] = {name: archive[name] for name in names}
            content["meta"] = json.loads(str(content["meta"]))
            graph = cls(**content)
            graph.validate()
        except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            # A DataError is a ValueError: what is wrong inside the file gets the file's name here.
            msg = f"{path} is not a usable guidance file: {error}; {_REBUILD}"
            raise DataError(msg) from error
        return graph


def _convert(values: np.ndarray, wanted: type[np.generic], name: str) -> np.ndarray:
    """Convert `values`; a DataError names the field when a value would change."""
    converted = values
    try:
        converted = values.astype(wanted)
        same = np.issubdtype(wanted, np.floating) or bool(np.all(converted == values))
    except (TypeError, ValueError):
        same = False
    if not same:
        msg = (
            f"guidance field {name!r} cannot be stored as {np.dtype(wanted)}. "
            f"Got {values.dtype}, for example {values.ravel()[:1].tolist()}"
        )
        raise DataError(msg)
    return converted
