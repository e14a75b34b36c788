"""From layers to the arrays that scMoGNN works on."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scbraid.data.layers import Layer, Layers
from scbraid.errors import DataError, NotApplicable
from scbraid.prepare.features import highly_variable
from scbraid.prepare.svd import truncated_svd
from scbraid.prepare.targets import target_transform, target_values, to_target
from scbraid.prepare.transforms import column_sums, log1p, row_sums, scale_rows

logger = logging.getLogger("scbraid")

# Predictions beyond these are wrong for certain.
BOUNDS = {
    "log1p_normalised": (0.0, np.inf),
    "clr": (0.0, np.inf),
    "binary": (0.0, 1.0),
    "identity": (-np.inf, np.inf),
}
# The log of normalised frequencies is taken of this many counts a cell.
_LSI_TOTAL = 1e4
# Cells whose statistics are computed at once.
_STATISTICS_ROWS = 1 << 13
# One is held out, and what is left must vary.
_LEAST_TRAINED = 3


def stated_transform(layer: str, meta: Mapping[str, Any]) -> str:
    """Name of the transform of a layer into the space of the task; that of counts if not stated."""
    return meta.get("layers", {}).get(layer, {}).get("target") or target_transform(layer, "counts")


def task_values(data: Layers, layer: str) -> sp.csr_matrix:
    """Values of a layer's cells in the space of the task, float32 CSR (n_cells, n_features).

    As `scbraid.prepare.targets.target_values`; entries that became 0 are not stored.
    """
    found = sp.csr_matrix(target_values(data, layer), copy=True)
    found.eliminate_zeros()
    found.sort_indices()
    return found


def _counts(layer: Layer) -> sp.csr_matrix:
    counts = sp.csr_matrix(layer.counts)
    wrong = ~(np.isfinite(counts.data) & (counts.data >= 0))
    if wrong.any():
        msg = (
            f"layer {layer.name!r} has {int(wrong.sum()):,} values that are negative or not finite "
            f"(first: {counts.data[wrong][0]:g}); give raw counts"
        )
        raise DataError(msg)
    return counts


def _check_values(layer: Layer, meta: Mapping[str, Any]) -> None:
    """Refuse negative counts; values that are no counts may have any sign, and must be finite."""
    if stated_transform(layer.name, meta) != "identity":
        _counts(layer)
    elif not np.isfinite(sp.csr_matrix(layer.counts).data).all():
        msg = f"layer {layer.name!r} has values that are NaN or infinite; take them out"
        raise DataError(msg)


def two_layers(data: Layers, method: str) -> tuple[Layer, Layer]:
    """Both layers, rna first where it is one of them.

    Raises
    ------
    NotApplicable
        When there are not two.
    """
    if len(data.layers) != 2:
        msg = f"{method} needs two layers; got {', '.join(data.names) or 'none'}"
        raise NotApplicable(msg)
    first, second = data.layers.values()
    return (second, first) if second.name == "rna" else (first, second)


def encode_batches(*layers: Layer) -> tuple[list[str], list[np.ndarray]]:
    """Names of the batches of all layers, and by layer the code of every cell.

    A single batch "all" where no layer has batches.

    Raises
    ------
    DataError
        When only one layer has them, or a cell has none.
    """
    with_batch = [layer for layer in layers if layer.batch is not None]
    if not with_batch:
        return ["all"], [np.zeros(layer.n_cells, np.int64) for layer in layers]
    for layer in layers:
        if layer.batch is None:
            msg = (
                f"layer {layer.name!r} has no obs column 'batch', layer "
                f"{with_batch[0].name!r} has; give both layers theirs, or none"
            )
            raise DataError(msg)
        n_missing = int((layer.batch == "").sum())
        if n_missing:
            msg = f"layer {layer.name!r} has {n_missing:,} cells without batch; fill obs 'batch'"
            raise DataError(msg)
    columns = [np.asarray(layer.batch).astype(str) for layer in layers]
    names, codes = np.unique(np.concatenate(columns), return_inverse=True)
    ends = np.cumsum([len(column) for column in columns])
    return [str(name) for name in names], np.split(codes.astype(np.int64), ends[:-1])


def check_batches_of_pairs(
    layers: tuple[str, str], cells: np.ndarray, first: np.ndarray, second: np.ndarray
) -> None:
    """Refuse batches of two layers that are not the same for the same cells, (n_pairs,) each."""
    wrong = first != second
    if wrong.any():
        msg = (
            f"cell {str(cells[wrong][0])!r} has another batch in {layers[0]!r} than in "
            f"{layers[1]!r} ({int(wrong.sum()):,} cells have); equal names mean one cell: correct "
            "obs 'batch'"
        )
        raise DataError(msg)


# -- modality prediction -------------------------------------------------------------------------


@dataclasses.dataclass
class PredictionInputs:
    """Source and target of a modality prediction; training cells come first.

    Attributes
    ----------
    source, target
        Names of the layers.
    transform
        Of the target.
    values
        float32 CSR (n_cells, n_used_features): edges of the graph.
    targets
        float32 CSR (n_train, n_targets).
    n_train
        Number of training cells.
    cells
        Names of all cells.
    target_features
        Names of the targets.
    source_features
        Names of the used source features.
    batch
        Codes, int64 (n_cells,).
    batches
        Their names.
    """

    source: str
    target: str
    transform: str
    values: sp.csr_matrix
    targets: sp.csr_matrix
    n_train: int
    cells: np.ndarray
    target_features: np.ndarray
    source_features: np.ndarray
    batch: np.ndarray
    batches: list[str]


@dataclasses.dataclass(frozen=True, eq=False)
class PredictionCells:
    """Which cells of a prediction are which.

    Attributes
    ----------
    source, target
        The layers.
    train, test
        Rows of the source: (n_train,) and (n_test,).
    order
        Row of the target of every training cell, (n_train,).
    """

    source: Layer
    target: Layer
    train: np.ndarray
    test: np.ndarray
    order: np.ndarray


def prediction_cells(data: Layers, method: str) -> PredictionCells:
    """Find source, target, training and test cells.

    The source is the layer that has all cells (the input's statement of it is checked); test cells
    are those that only it has.

    Raises
    ------
    NotApplicable
        When there are not two layers.
    DataError
        When no layer has all cells of the other, or there are no test cells or fewer than three
        training cells.
    """
    first, second = two_layers(data, method)
    source, target = _direction(first, second, data.meta.get("source"))
    position = pd.Index(target.cells).get_indexer(source.cells)
    train, test = np.flatnonzero(position >= 0), np.flatnonzero(position < 0)
    if len(train) < _LEAST_TRAINED:
        msg = (
            f"layers {source.name!r} and {target.name!r} share {len(train)} cells; expected at "
            f"least {_LEAST_TRAINED} to train on"
        )
        raise DataError(msg)
    return PredictionCells(source, target, train, test, position[train])


def make_prediction_inputs(
    data: Layers, *, n_top_features: int | None, inductive: bool = False
) -> PredictionInputs:
    """Find source, target, training and test cells; bring both layers into the task's space.

    Parameters
    ----------
    data
        Two layers, of which the source has all cells.
    n_top_features
        Highly variable source features to use; all when None, or when there are not more.
    inductive
        Whether these are chosen on training cells alone.

    Raises
    ------
    DataError
        As `prediction_cells`; when values are no counts, or variable features cannot be told.
    """
    cells = prediction_cells(data, "scmognn_prediction")
    source, target, train, test = cells.source, cells.target, cells.train, cells.test
    # Test cells behind the training cells.
    rows = np.concatenate([train, test])
    for layer in (source, target):
        _check_values(layer, data.meta)
    # A cell's statistics and total are those of all features, whichever are used.
    values = sp.csr_matrix(task_values(data, source.name)[rows])
    features = source.features.index.to_numpy(dtype=str)
    if n_top_features is not None:
        chosen = _variable(source, train if inductive else rows, n_top_features)
        values, features = sp.csr_matrix(values[:, chosen]), features[chosen]
    batches, (batch,) = encode_batches(source)
    return PredictionInputs(
        source=source.name,
        target=target.name,
        transform=stated_transform(target.name, data.meta),
        values=values,
        targets=sp.csr_matrix(task_values(data, target.name)[cells.order]),
        n_train=len(train),
        cells=source.cells[rows],
        target_features=target.features.index.to_numpy(dtype=str),
        source_features=features,
        batch=batch[rows],
        batches=batches,
    )


def _variable(source: Layer, rows: np.ndarray, n_top: int) -> np.ndarray:
    """Columns of the most variable source features over some cells; all where there are no more."""
    if n_top >= source.n_features:
        if n_top > source.n_features:
            logger.info(
                "n_top_features is %d, but layer %s has %d features; all are used",
                n_top, source.name, source.n_features,
            )  # fmt: skip
        return np.arange(source.n_features)
    try:
        ranked = highly_variable(_counts(source)[rows], n_top)
    except DataError as error:
        if error.__cause__ is None:
            raise
        # The advice of the error itself is for the features of a condition.
        msg = (
            f"the {n_top:,} most variable of {source.n_features:,} {source.name} features cannot "
            "be told: the local regression of their variances on their means fails, as it does "
            "where many means are nearly equal; set n_top_features=none, which uses all features"
        )
        raise DataError(msg) from error
    return np.flatnonzero(ranked["highly_variable"].to_numpy())


def _direction(first: Layer, second: Layer, stated: str | None) -> tuple[Layer, Layer]:
    names = {layer.name: set(layer.cells.tolist()) for layer in (first, second)}
    for source, target in ((first, second), (second, first)):
        if stated in (None, source.name) and names[target.name] < names[source.name]:
            return source, target
    if stated is not None and stated not in names:
        msg = f"the input states source {stated!r}; it has the layers {', '.join(names)}"
        raise DataError(msg)
    sizes = ", ".join(f"{name}: {len(cells):,}" for name, cells in names.items())
    shared = len(names[first.name] & names[second.name])
    msg = (
        f"a prediction needs {f'the source {stated!r}' if stated else 'one layer'} to have all "
        f"cells of the other layer and test cells beside; found {sizes}, {shared:,} of them in both"
    )
    raise DataError(msg)


def batch_features(
    values: sp.csr_matrix, batch: np.ndarray, *, n_fit: int | None = None
) -> np.ndarray:
    """Nine statistics of every cell's values, averaged over the cell's batch.

    Mean and standard deviation over all features; quartiles, maximum, number (in thousands), mean
    and standard deviation of the values that are not 0. A cell without values has zeros (scMoGNN,
    batch features).

    Parameters
    ----------
    values
        CSR (n_cells, n_features).
    batch
        Codes from 0, (n_cells,).
    n_fit
        A batch's mean is over its cells among so many first ones, where it has any; over all of
        them when None.

    Returns
    -------
    ndarray
        float32 (n_cells, 9), the same for all cells of a batch.
    """
    n_cells, n_features = values.shape
    found = np.zeros((n_cells, 9))
    for first in range(0, n_cells, _STATISTICS_ROWS):
        rows = slice(first, first + _STATISTICS_ROWS)
        found[rows] = _row_statistics(values[rows], n_features)
    counted = np.ones(n_cells)
    if n_fit is not None:
        known = np.bincount(batch[:n_fit], minlength=batch.max() + 1) > 0
        counted[n_fit:] = ~known[batch[n_fit:]]
    members = np.maximum(np.bincount(batch, counted), 1)
    means = np.stack([np.bincount(batch, column * counted) / members for column in found.T], 1)
    return means[batch].astype(np.float32)


def _row_statistics(values: sp.csr_matrix, n_features: int) -> np.ndarray:
    """Nine statistics of every row, (n_rows, 9)."""
    row = np.repeat(np.arange(values.shape[0]), np.diff(values.indptr))
    kept = values.data != 0
    row, data = row[kept], values.data[kept].astype(np.float64)
    # Sorted within rows, so that quantiles stand at known places.
    data = data[np.lexsort((data, row))]
    number = np.bincount(row, minlength=values.shape[0])
    filled = np.flatnonzero(number)
    found = np.zeros((values.shape[0], 9))
    if not len(filled):
        return found
    n = number[filled]
    starts = np.cumsum(number)[filled] - n
    sums, squares = np.add.reduceat(data, starts), np.add.reduceat(data**2, starts)

    def spread(total: np.ndarray, mean: np.ndarray) -> np.ndarray:
        return np.sqrt(np.maximum(squares / total - mean**2, 0.0))

    mean, own_mean = sums / n_features, sums / n
    columns = [mean, spread(np.full(len(n), n_features), mean)]
    for share in (0.25, 0.5, 0.75):
        place = share * (n - 1)
        low = np.floor(place).astype(np.int64)
        high = np.minimum(low + 1, n - 1)
        at_low, at_high = data[starts + low], data[starts + high]
        columns.append(at_low + (place - low) * (at_high - at_low))
    columns += [data[starts + n - 1], n / 1000, own_mean, spread(n, own_mean)]
    found[filled] = np.stack(columns, axis=1)
    return found


# -- matching and joint embedding ----------------------------------------------------------------


def lsi(counts: sp.csr_matrix, fit: np.ndarray, n_components: int) -> np.ndarray:
    """Latent semantic indexing, fitted on some cells and applied to all.

    Term frequency times inverse document frequency N/Σx (no logarithm), rows divided by their sum,
    log1p(10⁴·), singular vectors without the first (scMoGNN, matching).

    Parameters
    ----------
    counts
        Shape (n_cells, n_features).
    fit
        Rows to fit on.
    n_components
        Components after the first is dropped; fewer where cells or features are.

    Returns
    -------
    ndarray
        float32 (n_cells, k).
    """
    seen = sp.csr_matrix(counts[fit])
    sums = column_sums(seen)
    # A feature that no fitted cell has cannot be weighted.
    kept = np.flatnonzero(sums > 0)
    inverse = len(fit) / sums[kept]
    whole = sp.csr_matrix(counts[:, kept], dtype=np.float64)
    # Row sums cancel in the second division by row sums.
    weighted = sp.csr_matrix(
        (whole.data * inverse[whole.indices], whole.indices, whole.indptr), whole.shape
    )
    totals = row_sums(weighted)
    factors = np.divide(_LSI_TOTAL, totals, out=np.zeros(len(totals)), where=totals > 0)
    weighted = log1p(scale_rows(weighted, factors))
    seen = sp.csr_matrix(weighted[fit])
    limit = min(seen.shape) - 1
    if limit < 2:
        msg = f"LSI of {seen.shape[0]} cells x {seen.shape[1]} features; expected at least 3 each"
        raise DataError(msg)
    found = truncated_svd(seen, min(n_components + 1, limit))
    return np.asarray(weighted @ found.Vt[1:].T, np.float32)


def representation(
    layer: Layer, fit: np.ndarray, meta: Mapping[str, Any], dims: Mapping[str, int]
) -> np.ndarray:
    """What propagation starts from: LSI, or the CLR matrix itself for proteins, (n_cells, k).

    Parameters
    ----------
    layer
        The layer.
    fit
        Rows to fit on.
    meta
        What the input states.
    dims
        LSI components by layer; other layers take those of rna.
    """
    counts = _counts(layer)
    if stated_transform(layer.name, meta) == "clr":
        return to_target(counts, "clr").toarray()
    return lsi(counts, fit, dims.get(layer.name, dims["rna"]))


def decomposition(
    layer: Layer, fit: np.ndarray, meta: Mapping[str, Any], n_components: int
) -> np.ndarray:
    """Singular vectors of a layer's values in the space of the task, float32 (n_cells, k).

    Fitted on some cells and applied to all; not centred.
    """
    transform = stated_transform(layer.name, meta)
    counts, total = _counts(layer), meta.get("layers", {}).get(layer.name, {}).get("target_total")
    if transform == "log1p_normalised" and total is None:
        total = float(np.median(row_sums(sp.csr_matrix(counts[fit]))))
    values = to_target(counts, transform, total)
    seen = sp.csr_matrix(values[fit])
    limit = min(seen.shape) - 1
    if limit < 1:
        msg = f"layer {layer.name!r} has {seen.shape[0]} x {seen.shape[1]} values; expected 2 each"
        raise DataError(msg)
    found = truncated_svd(seen, min(n_components, limit))
    return np.asarray(values @ found.Vt.T, np.float32)


# Components of the original, for tens of thousands of pairs. With few pairs most of them are noise,
# sooner for LSI than for singular vectors, of which a ridge in units of their variance keeps the
# last ones small.
_WIDEST = {"rna": 256, "atac": 512}
_NARROWEST = 20
_PER_ROOT = {"svd": 3, "lsi": 2}
# Singular vectors of each layer of a joint embedding (JAE).
_DECOMPOSED = 100


def _width(n_train: int, layer: str, representation: str) -> int:
    wanted = round(_PER_ROOT[representation] * np.sqrt(n_train))
    return min(max(wanted, _NARROWEST), _WIDEST[layer])


@dataclasses.dataclass
class MatchingInputs:
    """Both layers of a matching: training pairs first, then test cells in their own order.

    Attributes
    ----------
    layers
        Names.
    reps
        float32 (n_train + n_test, k) by layer.
    n_train
        Training pairs: row i of both layers is one cell.
    batch
        Codes of all rows, by layer.
    batches
        Names of the batches.
    test_cells
        Names of the test cells, by layer.
    """

    layers: tuple[str, str]
    reps: tuple[np.ndarray, np.ndarray]
    n_train: int
    batch: tuple[np.ndarray, np.ndarray]
    batches: list[str]
    test_cells: tuple[np.ndarray, np.ndarray]


def make_matching_inputs(
    data: Layers,
    dims: Mapping[str, int | None],
    *,
    within_batches: bool,
    decompose: bool = False,
    method: str = "scmognn_matching",
) -> MatchingInputs:
    """Put training pairs (equal names) into one order, test cells behind them.

    Parameters
    ----------
    data
        Two layers, training cells with equal names, test cells with unrelated ones.
    dims
        Components of rna and atac; None for three times the root of the pairs (twice where rna is
        seen by its LSI), within a range.
    within_batches
        Whether test cells are to be matched within batches.
    decompose
        Whether layers other than atac are seen by `decomposition`, and either is fitted on all
        cells; otherwise by `representation`, fitted on training cells.
    method
        What messages call the method.

    Raises
    ------
    NotApplicable
        When there are not two layers.
    DataError
        When there are fewer than four pairs or no test cells, pairs have different batches, or a
        batch has test cells of one layer alone.
    """
    first, second = two_layers(data, method)
    position = pd.Index(second.cells).get_indexer(first.cells)
    pairs = np.flatnonzero(position >= 0)
    if len(pairs) < 4:
        msg = (
            f"layers {first.name!r} and {second.name!r} share {len(pairs)} cells; expected at "
            "least 4 training pairs of equal name"
        )
        raise DataError(msg)
    others = np.setdiff1d(np.arange(second.n_cells), position[pairs])
    alone = np.flatnonzero(position < 0)
    for layer, rest in ((first, alone), (second, others)):
        if not len(rest):
            msg = f"layer {layer.name!r} has no test cells: all {layer.n_cells:,} have a partner"
            raise DataError(msg)
    first = first.take(np.concatenate([pairs, alone]))
    second = second.take(np.concatenate([position[pairs], others]))
    batches, (a, b) = encode_batches(first, second)
    n_train = len(pairs)
    check_batches_of_pairs(
        (first.name, second.name), first.cells[:n_train], a[:n_train], b[:n_train]
    )
    for code in np.union1d(a[n_train:], b[n_train:]):
        sizes = [int((codes[n_train:] == code).sum()) for codes in (a, b)]
        if 0 in sizes and within_batches:
            msg = (
                f"batch {batches[code]!r} has {sizes[0]} test cells in {first.name!r} and "
                f"{sizes[1]} in {second.name!r}; matches are sought within batches, so both need "
                "some; or set within_batches=false"
            )
            raise DataError(msg)
    seen_as = "svd" if decompose else "lsi"
    widths = {name: dims[name] or _width(n_train, name, seen_as) for name in _WIDEST}
    # Of all cells: those that are not in it have smaller coordinates along weak components, and
    # what pairs in it teach does not hold for them. The original's LSI is of training cells.
    reps = []
    for layer in (first, second):
        fit = np.arange(layer.n_cells if decompose else n_train)
        reps.append(
            decomposition(layer, fit, data.meta, widths["rna"])
            if decompose and layer.name != "atac"
            else representation(layer, fit, data.meta, widths)
        )
    return MatchingInputs(
        (first.name, second.name), (reps[0], reps[1]), n_train, (a, b), batches,
        (first.cells[n_train:], second.cells[n_train:]),
    )  # fmt: skip


@dataclasses.dataclass
class JointInputs:
    """Both layers of a joint embedding, rows in the order of the first one's cells.

    Attributes
    ----------
    layers
        Names.
    orders
        By layer, row of the inputs of each of the layer's cells.
    reps
        float32 (n_cells, k) by layer.
    batch, batches
        Codes (n_cells,) and names.
    labels
        int64 (n_cells,): code of the cell type, -1 where it is not known.
    label_names
        Names of the cell types.
    phases
        float32 (n_cells, 2): standardised S and G2M scores; None where they cannot be computed.
    """

    layers: tuple[str, str]
    orders: tuple[np.ndarray, np.ndarray]
    reps: tuple[np.ndarray, np.ndarray]
    batch: np.ndarray
    batches: list[str]
    labels: np.ndarray
    label_names: list[str]
    phases: np.ndarray | None


def make_joint_inputs(
    data: Layers,
    dims: Mapping[str, int | None],
    *,
    labels: Mapping[str, str] | None,
    phases: bool,
    decompose: bool = False,
    method: str = "scmognn_joint",
) -> JointInputs:
    """Bring both layers into one order and compute what the autoencoder sees.

    Parameters
    ----------
    data
        Two layers of the same cells, by name.
    dims
        Components of rna (and, of singular vectors, of adt) and of atac; None for 100, of LSI for
        64 of rna beside atac and 256 otherwise, 512 of atac.
    labels
        Cell type by cell name, of the cells whose label is shown; None for none at all.
    phases
        Whether phase scores are wanted.
    decompose
        Whether layers are seen by `decomposition`; otherwise by `representation`.
    method
        What messages call the method.

    Raises
    ------
    NotApplicable
        When there are not two layers.
    DataError
        When the layers do not have the same cells, or not in the same batches, or no shown label is
        of a cell of the input.
    """
    from scbraid.methods.scmognn.cycle import phase_scores

    first, second = two_layers(data, method)
    position = pd.Index(second.cells).get_indexer(first.cells)
    if (position < 0).any() or first.n_cells != second.n_cells:
        msg = (
            f"a joint embedding needs the same cells in both layers; {int((position < 0).sum()):,} "
            f"of {first.n_cells:,} {first.name} cells are not among {second.n_cells:,} of "
            f"{second.name}"
        )
        raise DataError(msg)
    orders = (np.arange(first.n_cells), np.argsort(position))
    second = second.take(position)
    batches, (batch, other) = encode_batches(first, second)
    check_batches_of_pairs((first.name, second.name), first.cells, batch, other)
    beside_atac = "atac" in (first.name, second.name)
    usual = {"rna": 64 if beside_atac else 256, "atac": 512}
    if decompose:
        usual = dict.fromkeys(usual, _DECOMPOSED)
    widths = {name: dims.get(name) or width for name, width in usual.items()}
    everything = np.arange(first.n_cells)
    reps = tuple(
        decomposition(layer, everything, data.meta, widths.get(layer.name, widths["rna"]))
        if decompose
        else representation(layer, everything, data.meta, widths)
        for layer in (first, second)
    )
    codes, names = np.full(first.n_cells, -1, np.int64), list[str]()
    if labels is not None:
        names = sorted(set(labels.values()))
        table = {name: code for code, name in enumerate(names)}
        codes = np.array([table.get(labels.get(cell, ""), -1) for cell in first.cells], np.int64)
        if not (codes >= 0).any():
            msg = (
                f"none of {first.n_cells:,} cells has a label, and {method} learns from them: give "
                "the truth of the same input, or use a method without labels, such as "
                "scmognn_joint_unsupervised"
            )
            raise DataError(msg)
    scores = None
    if phases:
        rna = next((layer for layer in (first, second) if layer.name == "rna"), None)
        scores = None if rna is None else phase_scores(_counts(rna), rna.features.index)
    return JointInputs(
        (first.name, second.name), orders, (reps[0], reps[1]), batch, batches, codes, names, scores
    )
