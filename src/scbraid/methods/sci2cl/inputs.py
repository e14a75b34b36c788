"""From paired layers to the arrays that scI2CL trains on."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import scipy.sparse as sp

from scbraid.data.layers import Layer, Layers, without_stored_zeros
from scbraid.errors import DataError, NotApplicable
from scbraid.methods.baselines.concatenation import noise_floor
from scbraid.methods.glue.inputs import DEFAULT_REP, check_values
from scbraid.methods.pairs import matched_rows
from scbraid.methods.sci2cl.config import Sci2clConfig

logger = logging.getLogger("scbraid")

_LEAST_CELLS = 4
# Of float32: what varies less than this beside the strongest column of a representation is none.
_ROUNDING = 1e-6


@dataclasses.dataclass
class Sci2clLayer:
    """One layer of the common cells.

    Attributes
    ----------
    name
        Modality.
    counts
        CSR (n_cells, n_used_features): what the decoder explains.
    rep
        Encoder input (n_cells, k), centred, mean square 1; None to encode z-scored log counts.
    noise
        Standard deviation of the weakest columns of `rep` (see `noise_floor`); None without it.
    mean, deviation
        Of log1p(counts) by feature (n_used_features,), the deviation with ddof 1 and 1 where it is
        0; None when `rep` is encoded and nothing needs them.
    """

    name: str
    counts: sp.csr_matrix
    rep: np.ndarray | None
    noise: float | None
    mean: np.ndarray | None
    deviation: np.ndarray | None


@dataclasses.dataclass
class Sci2clInputs:
    """Both layers of the cells that have both.

    Attributes
    ----------
    layers
        The anchor (rna where there is one) and the other.
    rows
        By layer name, row of each common cell in the layer, (n_cells,).
    """

    layers: tuple[Sci2clLayer, Sci2clLayer]
    rows: dict[str, np.ndarray]

    @property
    def n_cells(self) -> int:
        """Number of cells with both layers."""
        return self.layers[0].counts.shape[0]


def make_inputs(data: Layers, config: Sci2clConfig) -> Sci2clInputs:
    """Match the cells, choose features, check values.

    Parameters
    ----------
    data
        Two layers of counts; equal cell names mean the same cell.
    config
        Options.

    Returns
    -------
    Sci2clInputs
        Both layers of the cells that have both, in the order of the first (rna where there is one).

    Raises
    ------
    NotApplicable
        When there are not exactly two layers of counts, or a package for `peak_choice` lacks.
    DataError
        When fewer than four cells have both layers, names are repeated, values are no counts, a
        cell has none, or an encoder input is absent, not finite or the same for all cells.
    """
    if len(data.layers) != 2:
        msg = f"scI2CL needs two layers; got {', '.join(data.names)}"
        raise NotApplicable(msg)
    names = sorted(data.names, key=lambda name: name != "rna")
    rows = match_cells(data, *names)
    layers = [
        _make_layer(data[name].take(rows[name]), data.meta.get("layers", {}).get(name, {}), config)
        for name in names
    ]
    return Sci2clInputs((layers[0], layers[1]), rows)


def match_cells(data: Layers, first: str, second: str) -> dict[str, np.ndarray]:
    """Rows of the cells that both layers have, in the order of the first; by layer name.

    Parameters
    ----------
    data
        The layers.
    first, second
        Their names.

    Returns
    -------
    dict
        int64 (n_cells,) each: the same place is the same cell.

    Raises
    ------
    DataError
        When fewer than four cells have both, or names are repeated.
    """
    rows, others = matched_rows(data, first, second)
    n_first, n_second = data[first].n_cells, data[second].n_cells
    if len(rows) < _LEAST_CELLS:
        msg = (
            f"{len(rows)} of {n_first:,} {first} cells have a partner of the same name in "
            f"{second}; expected at least {_LEAST_CELLS}. Give paired layers"
        )
        raise DataError(msg)
    lost = n_first + n_second - 2 * len(rows)
    if lost:
        logger.warning("%d cells lack a partner; they get no embedding", lost)
    return {first: rows, second: others}


def _make_layer(layer: Layer, stated: dict[str, str], config: Sci2clConfig) -> Sci2clLayer:
    likelihood = stated.get("likelihood", "nb")
    if likelihood != "nb":
        msg = (
            f"scI2CL explains counts; layer {layer.name!r} states the likelihood {likelihood!r}. "
            "Give the layer as counts"
        )
        raise NotApplicable(msg)
    check_values(layer.counts, "nb", layer.name)
    layer = _checked(layer)
    counts = sp.csr_matrix(layer.counts[:, _choose(layer, config)], dtype=np.float32)
    if config.use_rep:
        rep = _rep(layer, stated, config)
        spread = rep.std(0)
        noise = noise_floor(rep[:, spread > _ROUNDING * spread.max()])
        return Sci2clLayer(layer.name, counts, rep, noise, None, None)
    mean, deviation = _log_moments(counts)
    return Sci2clLayer(layer.name, counts, None, None, mean, deviation)


def _checked(layer: Layer) -> Layer:
    """Refuse cells without a count, stored zeros being none, which the layer returned lacks."""
    counts = without_stored_zeros(layer.counts.tocsr())
    empty = np.flatnonzero(np.diff(counts.indptr) == 0)
    if len(empty) == layer.n_cells:
        msg = f"layer {layer.name!r} has no count at all; give raw counts"
        raise DataError(msg)
    if len(empty):
        msg = (
            f"layer {layer.name!r} has {len(empty):,} cells without a count (first: "
            f"{str(layer.cells[empty[0]])!r}); remove them"
        )
        raise DataError(msg)
    return dataclasses.replace(layer, counts=counts)


def _choose(layer: Layer, config: Sci2clConfig) -> np.ndarray:
    """Columns to be explained: highly variable where the layer says which, else by the rule."""
    n_cells = np.bincount(layer.counts.tocsr().indices, minlength=layer.n_features)
    detected = n_cells > 0
    if "highly_variable" in layer.features:
        flags = layer.features["highly_variable"]
        wrong = flags[~flags.isin([True, False])]
        if len(wrong):
            msg = (
                f"layer {layer.name!r}: var column 'highly_variable' has {len(wrong):,} entries "
                f"that are neither true nor false (first: {wrong.iloc[0]!r}); fill them, or drop "
                "the column"
            )
            raise DataError(msg)
        chosen = flags.to_numpy(bool) & detected
    elif config.n_peaks >= detected.sum():
        chosen = detected
    elif config.peak_choice == "seurat_v3":
        chosen = _seurat_v3(layer.counts, config.n_peaks) & detected
    else:
        chosen = np.zeros(layer.n_features, dtype=bool)
        chosen[np.argsort(-n_cells, kind="stable")[: config.n_peaks]] = True
    if chosen.sum() < 2:
        msg = f"layer {layer.name!r} has {chosen.sum()} features to explain; expected 2 or more"
        raise DataError(msg)
    return np.flatnonzero(chosen)


def _seurat_v3(counts: sp.csr_matrix, n_top: int) -> np.ndarray:
    from scbraid.prepare.features import highly_variable

    try:
        return highly_variable(counts, n_top)["highly_variable"].to_numpy()
    except ModuleNotFoundError as error:
        msg = (
            f"peak_choice='seurat_v3' needs {error.name}, which this environment lacks; install "
            "'scbraid[workflow]', or use peak_choice=detected"
        )
        raise NotApplicable(msg) from error


def _rep(layer: Layer, stated: dict[str, str], config: Sci2clConfig) -> np.ndarray:
    key = stated.get("rep") or DEFAULT_REP.get(layer.name, "X_pca")
    if key not in layer.reps:
        found = ", ".join(layer.reps) or "none"
        msg = f"layer {layer.name!r} has no obsm {key!r} (found: {found}); expected by use_rep=true"
        raise DataError(msg)
    rep = layer.reps[key][:, : config.n_components].astype(np.float64)
    n_bad = int((~np.isfinite(rep).all(axis=1)).sum())
    if n_bad:
        msg = f"layer {layer.name!r}: obsm {key!r} has NaN or infinite values in {n_bad:,} cells"
        raise DataError(msg)
    rep = rep - rep.mean(0)
    if not rep.any():
        msg = (
            f"layer {layer.name!r}: obsm {key!r} of {rep.shape[1]} columns is the same for all "
            "cells; make it again, or set use_rep=false"
        )
        raise DataError(msg)
    # One factor for all columns: the small variance of late components says how little they hold.
    return (rep / np.sqrt((rep**2).mean())).astype(np.float32)


def _log_moments(counts: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (ddof 1; 1 where it is 0) of log1p(counts) by feature."""
    n_cells, n_features = counts.shape
    logs = np.log1p(counts.data.astype(np.float64))
    mean = np.bincount(counts.indices, weights=logs, minlength=n_features) / n_cells
    squares = np.bincount(
        counts.indices, weights=(logs - mean[counts.indices]) ** 2, minlength=n_features
    )
    unstored = n_cells - np.bincount(counts.indices, minlength=n_features)
    deviation = np.sqrt((squares + unstored * mean**2) / (n_cells - 1))
    deviation[deviation == 0] = 1.0
    return mean.astype(np.float32), deviation.astype(np.float32)
