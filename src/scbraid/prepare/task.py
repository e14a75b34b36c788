"""From a data set to what a method may see (the input) and what it may not (the truth)."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from scbraid.conditions import ANSWER_TASKS, SPLIT_TASKS, DataCondition
from scbraid.data.backed import (
    BackedArray,
    BackedMatrix,
    Matrix,
    row_blocks,
    take_columns,
    take_rows,
    write_in_order,
)
from scbraid.data.layers import UNS_KEY, Layer, Layers, read_frame
from scbraid.data.solution import HIDDEN, SHOWN
from scbraid.errors import ConfigError, DataError, UnknownNameError
from scbraid.files import atomic_path
from scbraid.prepare import spaces
from scbraid.prepare.features import highly_variable, most_variable
from scbraid.prepare.h5mu import write_h5ad, write_h5mu
from scbraid.prepare.imputation import asked_of, hide_entries
from scbraid.prepare.quality import Thresholds, check_cells, detected_features
from scbraid.prepare.split import TEST, TRAIN, choose_test_cells, split_words
from scbraid.prepare.streamed import MappedRows
from scbraid.prepare.targets import target_transform, to_target
from scbraid.prepare.transforms import (
    CLIPS,
    Clip,
    Scaling,
    clr,
    log1p,
    median_total,
    normalise_total,
    row_totals,
    scale,
)
from scbraid.registry import near_miss

logger = logging.getLogger("scbraid")

MODALITIES = ("rna", "atac", "met", "adt")
KINDS = ("counts", "binary", "normalised", "embedding")
LIKELIHOODS = ("nb", "ziln", "normal")

# Columns of var that go into the input, with the value of an unknown position. The gene behind a
# protein goes as well where a data set states it: guidance links by it.
POSITION = {"chrom": "", "chromStart": -1, "chromEnd": -1, "strand": "."}
GENE = "gene"

# A methylation feature is a gene and a context.
METHYLATION_CONTEXTS = ("_mCH", "_mCG")

# Cells of the truth that are turned into a table at once.
TRUTH_ROWS = 1 << 17

# A layer of binary targets keeps no more of its features, drawn with this seed, as in the
# competition: errors over a hundred thousand peaks would cost much and say the same.
MAX_BINARY_TARGETS = 10_000
_TARGETS_SEED = 1

# Key of the truth's metadata that tells the task, where it has a split.
TASK_KEY = "scbraid_task"
SOLUTION_FILE = "solution.h5ad"

_DEFAULT = DataCondition()


@dataclasses.dataclass(frozen=True)
class LayerSummary:
    """What became of one layer.

    Attributes
    ----------
    n_cells, n_features
        Kept.
    n_highly_variable
        Flagged features; None for atac, where the guidance graph decides.
    rep
        obsm key of its representation.
    n_components
        Columns of the representation.
    cells_removed
        Number of cells that failed quality control, by reason; a cell counts for each of its
        reasons. ``unpaired`` counts cells of a paired data set that went because of another layer,
        ``withheld`` the rna cells that a hybrid lacks by choice.
    cells_not_sampled
        Number of cells left out by subsampling.
    features_removed
        Number of features without any value in the kept cells.
    """

    n_cells: int
    n_features: int
    n_highly_variable: int | None
    rep: str
    n_components: int
    cells_removed: dict[str, int]
    cells_not_sampled: int
    features_removed: int


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What `prepare` wrote.

    Attributes
    ----------
    input_path, truth_path
        The two files.
    layers
        Summary by layer.
    solution_path
        The test cells' values of the target layer, of a prediction; which of the asked peaks were
        hidden and which are shown, of an imputation; else None.
    """

    input_path: Path
    truth_path: Path
    layers: dict[str, LayerSummary]
    solution_path: Path | None = None


@dataclasses.dataclass
class _Part:
    """One layer on its way through the steps; `origin` and `obs` never reach the input."""

    layer: Layer
    obs: pd.DataFrame
    kind: str
    likelihood: str
    origin: np.ndarray
    pair: np.ndarray
    cells_removed: dict[str, int] = dataclasses.field(default_factory=dict)
    cells_not_sampled: int = 0
    features_removed: int = 0
    rep: str = ""
    # Of a task with a split: which cells are test cells.
    test: np.ndarray | None = None
    target_total: float | None = None

    @property
    def name(self) -> str:
        return self.layer.name

    @property
    def has_counts(self) -> bool:
        return self.kind in ("counts", "binary")

    def take(self, cells: np.ndarray) -> None:
        """Keep the cells at these positions, in this order."""
        self.layer = self.layer.take(cells)
        self.obs = self.obs.iloc[cells]
        self.origin = self.origin[cells]
        self.pair = self.pair[cells]
        if self.test is not None:
            self.test = self.test[cells]

    def summary(self) -> LayerSummary:
        flagged = self.layer.features.get("highly_variable")
        return LayerSummary(
            n_cells=self.layer.n_cells,
            n_features=self.layer.n_features,
            n_highly_variable=None if flagged is None else int(flagged.sum()),
            rep=self.rep,
            n_components=self.layer.reps[self.rep].shape[1],
            cells_removed=self.cells_removed,
            cells_not_sampled=self.cells_not_sampled,
            features_removed=self.features_removed,
        )


def prepare(
    dataset_path: str | os.PathLike[str],
    input_path: str | os.PathLike[str],
    truth_path: str | os.PathLike[str],
    *,
    name: str,
    task: str = _DEFAULT.task,
    cells: int | None = _DEFAULT.cells,
    subsample_seed: int = _DEFAULT.subsample_seed,
    n_top_genes: int = _DEFAULT.n_top_genes,
    n_pcs: int = _DEFAULT.n_pcs,
    lsi: str = _DEFAULT.lsi,
    n_lsi: int = _DEFAULT.n_lsi,
    use_batch: bool = _DEFAULT.use_batch,
    layers: Sequence[str] | None = _DEFAULT.layers,
    source: str | None = _DEFAULT.source,
    split: str = _DEFAULT.split,
    test_share: float = _DEFAULT.test_share,
    n_test: int | None = _DEFAULT.n_test,
    test_batches: Sequence[str] | None = _DEFAULT.test_batches,
    split_seed: int = _DEFAULT.split_seed,
    atac_only: float = _DEFAULT.atac_only,
    atac_only_seed: int = _DEFAULT.atac_only_seed,
    hidden_share: float = _DEFAULT.hidden_share,
    hidden_seed: int = _DEFAULT.hidden_seed,
    seed: int = 0,
    clip: Clip = "upper",
    quality: Mapping[str, Thresholds] | None = None,
    backed: bool | None = None,
    solution_path: str | os.PathLike[str] | None = None,
) -> Prepared:
    """Preprocess a data set and split it into input and truth.

    The input holds counts, genomic positions, highly variable features and a representation of each
    layer, and no label. Cells have new names and a new order: an independent one in every layer for
    an unpaired task, a common one for a paired task. The truth maps them back; its metadata record
    what was removed.

    Quality control comes first, then subsampling, then the removal of features that the kept cells
    lack, then everything that is computed from the cells.

    Parameters
    ----------
    dataset_path
        The data set, as h5mu; docs/prepare.md lists its fields.
    input_path, truth_path
        Files to write: h5mu and parquet.
    name
        Name of the data set, recorded in the input.
    task
        ``unpaired``, ``paired``, ``hybrid``, ``prediction``, ``matching``, ``joint`` or
        ``imputation``. A hybrid has paired cells beside cells with atac alone, which are those that
        the data set has and a drawn part of the others; labels of cells with both layers are then
        not scored. docs/tasks.md describes the last four.
    cells
        Cells kept in each layer, all when None; a layer with fewer keeps all of its own. A paired
        data set keeps pairs, also for an unpaired task. With the same seed, the cells of a smaller
        number are among those of a larger one.
    subsample_seed
        Of that choice.
    n_top_genes
        Highly variable features flagged in rna and met; all where there are not more.
    n_pcs, n_lsi
        Components of the representations; fewer where a layer has too few cells or features.
    lsi
        Form of LSI, see `scbraid.prepare.lsi`.
    use_batch
        Write the batches into the input, and choose highly variable genes within batches.
    layers
        Layers kept; all when None.
    source
        Of a prediction: the layer that is given for test cells.
    split, test_share, n_test, test_batches, split_seed
        Which cells are test cells, of a task that has some, see
        `scbraid.prepare.split.choose_test_cells`.
    atac_only, atac_only_seed
        Of a hybrid: share of the paired cells whose rna is withheld, and seed of their choice.
    hidden_share, hidden_seed
        Of an imputation: share of the open peaks of every cell that are shown as closed, and seed
        of their choice.
    seed
        Of the new order of the cells and of the solvers. The order depends on the original cell
        names as well, which the input does not hold, so that the seed alone does not undo it.
    clip
        How standardised values are bounded, see `scbraid.prepare.scale`.
    quality
        Thresholds by layer; without them only empty cells are removed.
    backed
        Whether counts stay on disk and are read by blocks of cells, in memory that does not grow
        with them; by their size when None, see `scbraid.data.layers.Layers.read`. Everything but
        the last digits of the representations is the same, except LSI of more than 4,096 peaks,
        which is then found by iteration (docs/scale.md).
    solution_path
        Of a prediction or an imputation: where what it is scored against is written;
        ``solution.h5ad`` beside the truth by default.

    Returns
    -------
    Prepared
        Paths, and what was kept and removed.

    Raises
    ------
    DataError
        When the file or a field of it cannot be used; the message names it.
    ConfigError
        When a setting is outside its range or does not suit the data set.
    UnknownNameError
        When a task, layer, form of LSI or clip is not known.
    """
    condition = DataCondition(
        task=task,  # type: ignore[arg-type]  # checked by the class
        cells=cells,
        subsample_seed=subsample_seed,
        n_top_genes=n_top_genes,
        n_pcs=n_pcs,
        lsi=lsi,
        n_lsi=n_lsi,
        use_batch=use_batch,
        layers=None if layers is None else tuple(layers),
        source=source,
        split=split,  # type: ignore[arg-type]  # checked by the class
        test_share=test_share,
        n_test=n_test,
        test_batches=None if test_batches is None else tuple(test_batches),
        split_seed=split_seed,
        atac_only=atac_only,
        atac_only_seed=atac_only_seed,
        hidden_share=hidden_share,
        hidden_seed=hidden_seed,
    )
    hybrid = condition.task == "hybrid"
    if clip not in CLIPS:
        raise UnknownNameError(near_miss(str(clip), CLIPS, "clip"))
    path = Path(dataset_path)
    parts, paired, meta = _read(path, condition.layers, backed)
    # Imputation of one layer asks for no pairs.
    alone = condition.task == "imputation" and len(parts) == 1
    if condition.task != "unpaired" and not paired and not alone:
        msg = (
            f"{path}: data set {name!r} is not paired; expected task 'unpaired', got "
            f"{condition.task!r}"
        )
        raise ConfigError(msg)
    _check_layers(parts, condition, path)

    _filter_cells(parts, quality or {}, path, paired=paired and not hybrid)
    # The layer that decides which cells there are; in a hybrid rna follows it.
    leading = [_leading(parts, path)] if hybrid else parts
    if condition.cells is not None:
        _subsample(leading, condition.cells, condition.subsample_seed, path, paired=paired)
    if hybrid:
        _withhold(parts, condition, path)
    withheld = _split(parts, condition, path)
    hidden = _hide(parts, condition, path)
    for part in parts:
        _filter_features(part, path)
    _keep_batches(parts, path, use_batch=condition.use_batch, needed=condition.task != "matching")
    with _scratch(parts, Path(input_path)) as folder:
        _name_cells(leading, seed, folder, condition.task)
        if hybrid:
            _follow(parts, folder)
        target = _set_targets(parts, condition)
        _represent(parts, condition, clip, seed, folder)
        if target is not None:
            # Behind the representation, for which a cell needs a count in some feature.
            _limit_targets(target)

        settings = {key: getattr(condition, key) for key in _SETTINGS}
        if condition.task in SPLIT_TASKS:
            # Neither the seed nor the batches: the names of the cells say what is a test cell.
            settings["split"] = condition.split
        summaries = {part.name: part.summary() for part in parts}
        visible = Layers(
            {part.name: part.layer for part in parts},
            paired=condition.task in ("paired", "hybrid", "joint"),
            meta={
                "dataset": name,
                "condition": _shown_slug(condition),
                "task": condition.task,
                **({} if target is None else {"source": condition.source, "target": target.name}),
                "genome": meta.get("genome"),
                "layers": {part.name: _stated(part) for part in parts},
                "prepare": {**settings, "clip": clip},
            },
        )
        told = condition.task if condition.task in ANSWER_TASKS else None
        _write_truth(truth_path, parts, summaries, told)
        write_h5mu(input_path, visible)
    solution = None
    if target is not None and withheld is not None:
        solution = Path(solution_path or Path(truth_path).with_name(SOLUTION_FILE))
        _write_solution(solution, target, withheld, parts)
    if hidden is not None:
        solution = Path(solution_path or Path(truth_path).with_name(SOLUTION_FILE))
        _write_hidden(solution, hidden, parts)
    for layer, summary in summaries.items():
        logger.info("%s, %s: %s", name, layer, summary)
    return Prepared(Path(input_path), Path(truth_path), summaries, solution)


# Settings that the input states: nothing of which cells were drawn.
_SETTINGS = ("cells", "n_top_genes", "n_pcs", "lsi", "n_lsi", "use_batch")


# Items of a condition that say how test cells, or hidden entries, were drawn.
_DRAWN = ("split_seed=", "test_batches=", "hidden_seed=")


def _shown_slug(condition: DataCondition) -> str:
    """Return the condition as the input states it: without what drew the part that is asked for."""
    return "+".join(item for item in condition.slug.split("+") if not item.startswith(_DRAWN))


def _stated(part: _Part) -> dict[str, Any]:
    """What the input says of a layer."""
    words: dict[str, Any] = {"rep": part.rep, "likelihood": part.likelihood, "kind": part.kind}
    if part.test is not None:
        words["target"] = target_transform(part.name, part.kind)
        if part.target_total is not None:
            words["target_total"] = part.target_total
    return words


def _check_layers(parts: list[_Part], condition: DataCondition, path: Path) -> None:
    """Refuse layers that the task cannot have."""
    names = [part.name for part in parts]
    if condition.task in ("prediction", "matching") and len(parts) != 2:
        msg = (
            f"{path}: task {condition.task} is between two layers; found {', '.join(names)}: name "
            "two of them with the setting layers"
        )
        raise ConfigError(msg)
    if condition.task == "prediction" and condition.source not in names:
        raise UnknownNameError(near_miss(str(condition.source), names, f"layer of {path}"))
    if condition.task == "imputation" and not any(p.name == "atac" and p.has_counts for p in parts):
        msg = f"{path}: task imputation needs counts of atac; found {', '.join(names)}"
        raise ConfigError(msg)


@dataclasses.dataclass(frozen=True)
class _Withheld:
    """Test cells of the target layer: they never reach the input."""

    counts: Matrix
    origin: np.ndarray
    features: pd.Index


def _split(parts: list[_Part], condition: DataCondition, path: Path) -> _Withheld | None:
    """Mark the test cells, the same pairs in all layers; take them out of a target layer."""
    if condition.task not in SPLIT_TASKS:
        return None
    test = choose_test_cells(
        parts[0].obs,
        split=condition.split,
        test_share=condition.test_share,
        n_test=condition.n_test,
        test_batches=condition.test_batches,
        split_seed=condition.split_seed,
        where=f"{path}: layer {parts[0].name!r}",
    )
    for part in parts:
        part.test = test
    if condition.task != "prediction":
        return None
    target = next(part for part in parts if part.name != condition.source)
    held = target.layer.take(np.flatnonzero(test))
    withheld = _Withheld(held.counts, target.origin[test], target.layer.features.index)
    # Before anything is computed of the layer: its features, their variance, its representation.
    target.take(np.flatnonzero(~test))
    return withheld


def _set_targets(parts: list[_Part], condition: DataCondition) -> _Part | None:
    """Fix the spaces in which layers are predicted; return the target layer of a prediction."""
    for part in parts:
        if part.test is None:
            continue
        if target_transform(part.name, part.kind) == "log1p_normalised":
            part.target_total = median_total(row_totals(part.layer.counts)[~part.test])
    if condition.task != "prediction":
        return None
    return next(part for part in parts if part.name != condition.source)


def _limit_targets(part: _Part) -> None:
    """Keep a drawn part of the features of a layer with many binary targets."""
    n_features = part.layer.n_features
    binary = target_transform(part.name, part.kind) == "binary"
    if not binary or n_features <= MAX_BINARY_TARGETS:
        return
    rng = np.random.default_rng(_TARGETS_SEED)
    kept = np.zeros(n_features, dtype=bool)
    kept[rng.choice(n_features, MAX_BINARY_TARGETS, replace=False)] = True
    part.layer = dataclasses.replace(
        part.layer,
        counts=take_columns(part.layer.counts, kept),
        features=part.layer.features[kept],
    )


def _write_solution(path: Path, target: _Part, withheld: _Withheld, parts: list[_Part]) -> None:
    """Write the test cells' values of the target layer, in the order of the source layer."""
    source = next(part for part in parts if part.name != target.name)
    assert source.test is not None
    rows = pd.Index(withheld.origin).get_indexer(source.origin[source.test])
    names = target.layer.features.index
    columns = np.flatnonzero(withheld.features.isin(names))
    counts = take_columns(take_rows(withheld.counts, rows), columns)
    values = to_target(counts, target_transform(target.name, target.kind), target.target_total)
    write_h5ad(path, values, source.layer.cells[source.test], names)


@dataclasses.dataclass(frozen=True)
class _Hidden:
    """Open peaks that the input shows as closed."""

    entries: sp.csr_matrix
    origin: np.ndarray
    features: pd.Index


def _hide(parts: list[_Part], condition: DataCondition, path: Path) -> _Hidden | None:
    """Take a share of every cell's open peaks out of atac."""
    if condition.task != "imputation":
        return None
    part = next(part for part in parts if part.name == "atac")
    if isinstance(part.layer.counts, BackedMatrix):
        msg = (
            f"{path}: counts of layer 'atac' stay on disk, where no entries can be hidden; choose "
            "fewer cells, or prepare with backed=False"
        )
        raise ConfigError(msg)
    shown, entries = hide_entries(part.layer.counts, condition.hidden_share, condition.hidden_seed)
    if not entries.nnz:
        msg = (
            f"{path}: hidden_share={condition.hidden_share:g} hides no open peak of layer 'atac'; "
            "raise it"
        )
        raise ConfigError(msg)
    hidden = _Hidden(entries, part.origin, part.layer.features.index)
    part.layer = dataclasses.replace(part.layer, counts=shown)
    return hidden


def _write_hidden(path: Path, hidden: _Hidden, parts: list[_Part]) -> None:
    """Write what became of the asked entries: hidden, shown, or closed (not stored)."""
    part = next(part for part in parts if part.name == "atac")
    names = part.layer.features.index
    cells, features = asked_of(part.layer.n_cells, part.layer.n_features)
    rows = pd.Index(hidden.origin).get_indexer(part.origin[cells])
    columns = hidden.features.get_indexer(names[features])
    counts = cast("sp.csr_matrix", part.layer.counts)  # `_hide` refused counts on disk
    shown = counts[cells][:, features].astype(bool)
    lost = hidden.entries[rows][:, columns]
    values = sp.csr_matrix(shown.astype(np.float32) * SHOWN + lost.astype(np.float32) * HIDDEN)
    write_h5ad(path, values, part.layer.cells[cells], names[features])


@contextlib.contextmanager
def _scratch(parts: list[_Part], beside: Path) -> Iterator[Path | None]:
    """Give a folder beside the output while counts are on disk, None otherwise."""
    if not any(isinstance(part.layer.counts, BackedMatrix) for part in parts):
        yield None
        return
    beside.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".prepare.", dir=beside.parent) as folder:
        yield Path(folder)


def _read(
    path: Path, wanted: Sequence[str] | None, backed: bool | None
) -> tuple[list[_Part], bool, dict[str, Any]]:
    if path.is_dir():
        msg = f"{path} is a folder; expected an h5mu file"
        raise DataError(msg)
    data = Layers.read(path, reps=(), backed=backed)
    for name in wanted or ():
        if name not in data.layers:
            raise UnknownNameError(near_miss(name, data.names, f"layer of {path}"))
    kept = [layer for name, layer in data.layers.items() if wanted is None or name in wanted]
    stated = data.meta.get("layers", {})
    parts = []
    with h5py.File(path, "r") as file:
        for layer in kept:
            group = file["mod"][layer.name] if "mod" in file else file
            obs = read_frame(group["obs"])
            kind, likelihood = _nature(layer, stated.get(layer.name, {}), path)
            layer.features = _annotation(layer.features, f"{path}: layer {layer.name!r}")
            unknown_pair = np.full(layer.n_cells, -1, dtype=np.int64)
            parts.append(_Part(layer, obs, kind, likelihood, layer.cells, unknown_pair))
    return parts, data.paired, data.meta


@dataclasses.dataclass
class _Values:
    """What the stored values of a matrix are."""

    n_not_finite: int = 0
    n_no_counts: int = 0
    first_no_count: float = 0.0
    lowest: float = 0.0
    highest: float = 0.0


def _look_at_values(counts: Matrix) -> _Values:
    found = _Values()
    for _, block in row_blocks(counts):
        values = block.data
        found.n_not_finite += int((~np.isfinite(values)).sum())
        odd = values[(values < 0) | (values != np.round(values))]
        if len(odd) and not found.n_no_counts:
            found.first_no_count = float(odd[0])
        found.n_no_counts += len(odd)
        if len(values):
            found.lowest = min(found.lowest, float(values.min()))
            found.highest = max(found.highest, float(values.max()))
    return found


def _nature(layer: Layer, stated: Mapping[str, str], path: Path) -> tuple[str, str]:
    """Return kind and likelihood of a layer, as stated or as its values tell, and check both."""
    where = f"{path}: layer {layer.name!r}"
    if layer.name not in MODALITIES:
        raise UnknownNameError(near_miss(layer.name, MODALITIES, f"layer of {path}"))
    values = _look_at_values(layer.counts)
    if values.n_not_finite:
        msg = f"{where} has {values.n_not_finite:,} values that are not finite in X"
        raise DataError(msg)
    integral = not values.n_no_counts
    kind = stated.get("kind") or (
        "counts" if integral else "normalised" if layer.name == "met" else None
    )
    if kind is None or (kind in ("counts", "binary") and not integral):
        msg = (
            f"{where} has {values.n_no_counts:,} values in X that are not counts (first: "
            f"{values.first_no_count:g}); "
            f"expected raw counts, or else kind 'normalised' or 'embedding' for the layer in "
            f"uns['scbraid']['layers']"
        )
        raise DataError(msg)
    if kind not in KINDS:
        msg = f"{where}: {near_miss(kind, KINDS, 'kind')}"
        raise DataError(msg)
    if kind == "binary" and values.highest > 1:
        msg = (
            f"{where} is said to be binary, but X holds {values.highest:g}; expected kind 'counts'"
        )
        raise DataError(msg)
    if kind in ("counts", "binary"):
        default = "nb"
    else:
        default = "ziln" if layer.name == "met" and kind == "normalised" else "normal"
    likelihood = stated.get("likelihood") or default
    if likelihood not in LIKELIHOODS:
        msg = f"{where}: {near_miss(likelihood, LIKELIHOODS, 'likelihood')}"
        raise DataError(msg)
    if likelihood == "ziln" and values.lowest < 0:
        msg = f"{where} holds {values.lowest:g} in X; likelihood 'ziln' needs values of 0 or more"
        raise DataError(msg)
    return kind, likelihood


def _annotation(features: pd.DataFrame, where: str) -> pd.DataFrame:
    """Keep genomic positions and genes alone; a position that is absent becomes unknown."""
    columns: dict[str, Any] = {}
    for name, unknown in POSITION.items():
        if name not in features:
            values = pd.Series(unknown, index=features.index)
        else:
            values = features[name].astype(object).where(features[name].notna(), unknown)
        if isinstance(unknown, str):
            columns[name] = pd.Categorical(values.astype(str))
        else:
            try:
                columns[name] = values.astype(np.int64).to_numpy()
            except (TypeError, ValueError) as error:
                msg = f"{where}: var column {name!r} holds {error}; expected whole numbers"
                raise DataError(msg) from error
    if GENE in features:
        genes = features[GENE].astype(object).where(features[GENE].notna(), "")
        columns[GENE] = pd.Categorical(genes.astype(str))
    return pd.DataFrame(columns, index=features.index)


def _filter_cells(
    parts: list[_Part], quality: Mapping[str, Thresholds], path: Path, *, paired: bool
) -> None:
    for layer in quality:
        if layer not in [part.name for part in parts]:
            raise UnknownNameError(near_miss(layer, [p.name for p in parts], f"layer of {path}"))
    for part in parts:
        if part.kind == "embedding":
            if part.name in quality:
                msg = f"{path}: layer {part.name!r} is an embedding; thresholds do not apply to it"
                raise ConfigError(msg)
            continue
        found = check_cells(part.layer.counts, part.layer.features.index, quality.get(part.name))
        part.cells_removed = found.removed
        part.take(np.flatnonzero(found.keep))
    if paired:
        common = pd.Index(parts[0].origin)
        for part in parts[1:]:
            common = common[common.isin(part.origin)]
        for part in parts:
            alone = part.layer.n_cells - len(common)
            if alone:
                part.cells_removed = {**part.cells_removed, "unpaired": alone}
            part.take(pd.Index(part.origin).get_indexer(common))
            part.pair = np.arange(len(common), dtype=np.int64)
    for part in parts:
        if part.layer.n_cells < 2:
            msg = (
                f"{path}: layer {part.name!r} keeps {part.layer.n_cells} cells after quality "
                f"control (removed: {part.cells_removed}); at least 2 are needed"
            )
            raise DataError(msg)
        if part.cells_removed:
            logger.info("%s: removed cells of %s: %s", path, part.name, part.cells_removed)


def _subsample(
    parts: list[_Part], cells: int, subsample_seed: int, path: Path, *, paired: bool
) -> None:
    most = max(part.layer.n_cells for part in parts)
    if cells > most:
        msg = f"cells is {cells:,}, but {path} has {most:,} cells; expected at most that"
        raise ConfigError(msg)
    for part in parts:
        # Pairs stay together because a paired data set makes the same choice in every layer.
        entropy = [subsample_seed] if paired else [subsample_seed, *part.name.encode()]
        order = np.random.default_rng(entropy).permutation(part.layer.n_cells)
        part.cells_not_sampled = max(part.layer.n_cells - cells, 0)
        if part.layer.n_cells < cells:
            logger.warning(
                "%s: layer %s has %d cells, fewer than the %d asked for; all are kept",
                path,
                part.name,
                part.layer.n_cells,
                cells,
            )
        part.take(np.sort(order[:cells]))


def _leading(parts: list[_Part], path: Path) -> _Part:
    """Pair rna with atac, where rna without atac goes; return atac."""
    names = [part.name for part in parts]
    if sorted(names) != ["atac", "rna"]:
        msg = (
            f"{path}: a hybrid has cells with rna and atac beside cells with atac alone; found "
            f"{', '.join(names)}: name both with the setting layers"
        )
        raise ConfigError(msg)
    atac, rna = sorted(parts, key=lambda part: part.name)
    rows = pd.Index(rna.origin).get_indexer(atac.origin)
    both = rows >= 0
    alone = rna.layer.n_cells - int(both.sum())
    if alone:
        rna.cells_removed = {**rna.cells_removed, "unpaired": alone}
    rna.take(rows[both])
    rna.pair = np.arange(both.sum(), dtype=np.int64)
    atac.pair[both] = rna.pair
    return atac


def _withhold(parts: list[_Part], condition: DataCondition, path: Path) -> None:
    """Take rna of cells that were not sampled, and of a drawn share of the others.

    What is left to score are the cells with atac alone: the question of a hybrid is what the paired
    cells do for them.
    """
    atac, rna = sorted(parts, key=lambda part: part.name)
    sampled = np.isin(rna.pair, atac.pair)
    rna.cells_not_sampled = int((~sampled).sum())
    both = np.flatnonzero(atac.pair >= 0)
    rng = np.random.default_rng(condition.atac_only_seed)
    drawn = rng.permutation(both)[: round(condition.atac_only * len(both))]
    if len(drawn):
        rna.cells_removed = {**rna.cells_removed, "withheld": len(drawn)}
    atac.pair[drawn] = -1
    rna.take(np.flatnonzero(np.isin(rna.pair, atac.pair)))
    n_alone = atac.layer.n_cells - rna.layer.n_cells
    if rna.layer.n_cells < 2 or n_alone == 0:
        msg = (
            f"{path}: with atac_only={condition.atac_only:g} {rna.layer.n_cells:,} cells have rna "
            f"and atac, and {n_alone:,} atac alone; a hybrid needs 2 of the former and 1 of the "
            "latter"
        )
        raise ConfigError(msg)
    for part in parts:
        part.obs = part.obs.assign(scored=_scored(part, slice(None)) & (part.pair < 0))


def _follow(parts: list[_Part], folder: Path | None) -> None:
    """Bring rna into the order of atac, under its names."""
    atac, rna = sorted(parts, key=lambda part: part.name)
    both = np.flatnonzero(atac.pair >= 0)
    rna.take(pd.Index(rna.pair).get_indexer(atac.pair[both]))
    rna.layer.cells = atac.layer.cells[both]
    _keep_on_disk(rna, folder)


def _filter_features(part: _Part, path: Path) -> None:
    # A zero in an embedding is a coordinate like any other.
    is_embedding = part.kind == "embedding"
    kept = detected_features(part.layer.counts) | is_embedding
    part.features_removed = int((~kept).sum())
    if kept.sum() < 2:
        msg = f"{path}: layer {part.name!r} has {kept.sum()} detected features; expected 2 or more"
        raise DataError(msg)
    if part.features_removed:
        logger.info("%s: removed %d features of %s", path, part.features_removed, part.name)
        part.layer = dataclasses.replace(
            part.layer,
            counts=take_columns(part.layer.counts, kept),
            features=part.layer.features[kept],
        )


def _keep_batches(parts: list[_Part], path: Path, *, use_batch: bool, needed: bool = True) -> None:
    for part in parts:
        part.layer.batch = None
        if not use_batch or "batch" not in part.obs:
            continue
        missing = int(part.obs["batch"].isna().sum())
        if missing:
            msg = (
                f"{path}: layer {part.name!r} has {missing:,} cells without batch; fill obs column "
                f"'batch' or leave use_batch off"
            )
            raise DataError(msg)
        part.layer.batch = part.obs["batch"].to_numpy(dtype=str)
    if use_batch and needed and all(part.layer.batch is None for part in parts):
        msg = f"{path}: use_batch is set, but no layer has an obs column 'batch'"
        raise ConfigError(msg)


def _name_cells(parts: list[_Part], seed: int, folder: Path | None, task: str) -> None:
    """Reorder and rename the cells: independently in each layer, as pairs, or as the split asks.

    Of a prediction and a matching, training cells stand first, as pairs. Behind them stand test
    cells: of a prediction those of the source alone, of a matching those of each layer under names
    and in an order of its own.
    """
    for part in parts:
        if task == "matching":
            assert part.test is not None
            blocks = [("cell", np.flatnonzero(~part.test)), (part.name, np.flatnonzero(part.test))]
        elif task == "prediction":
            assert part.test is not None
            blocks = [("cell", np.flatnonzero(~part.test)), ("test", np.flatnonzero(part.test))]
        else:
            prefix = part.name if task == "unpaired" else "cell"
            blocks = [(prefix, np.arange(part.layer.n_cells))]
        order, names = [], []
        for prefix, cells in blocks:
            order.append(cells[_permutation(part.origin[cells], seed, prefix)])
            # Names of equal length sort as the cells are ordered.
            width = max(6, len(str(len(cells) - 1)))
            names += [f"{prefix}-{i:0{width}d}" for i in range(len(cells))]
        part.take(np.concatenate(order))
        part.layer.cells = np.array(names)
        _keep_on_disk(part, folder)


def _keep_on_disk(part: _Part, folder: Path | None) -> None:
    """Write counts that are read from the data set as they now are, where there is a folder."""
    counts = part.layer.counts
    if folder is not None and isinstance(counts, BackedMatrix):
        part.layer.counts = _written(counts, folder / f"{part.name}.counts.h5")


def _permutation(origin: np.ndarray, seed: int, prefix: str) -> np.ndarray:
    # The original names are part of the seed: who knows the input and the settings but not the
    # data set cannot repeat the permutation. Paired layers share names, hence the order too.
    digest = hashlib.sha256(f"{seed}\0{prefix}".encode())
    for first in range(0, len(origin), TRUTH_ROWS):
        names = origin[first : first + TRUTH_ROWS]
        digest.update("".join(f"\0{name}" for name in names).encode())
    return np.random.default_rng(int.from_bytes(digest.digest())).permutation(len(origin))


def _written(counts: BackedMatrix, path: Path) -> BackedMatrix:
    """Write the chosen cells and features in their new order, and read them from there."""
    with h5py.File(path, "w") as file:
        group = file.create_group("X")
        write_in_order(counts.in_order_of_file(), counts.order_in_file(), group, path.parent)
    return BackedMatrix(path, "X", canonical=True)


def _represent(
    parts: list[_Part], condition: DataCondition, clip: Clip, seed: int, folder: Path | None
) -> None:
    rna = next((part for part in parts if part.name == "rna"), None)
    # Methylation asks which genes are highly variable, so rna comes first.
    for part in sorted(parts, key=lambda part: part.name != "rna"):
        counts = part.layer.counts
        blocks: Iterator[tuple[int, np.ndarray]] | None = None
        if part.name == "atac" and part.has_counts:
            part.rep = "X_lsi"
            skipped = 0 if spaces.lsi_form(condition.lsi).keep_first else 1
            n_components = _possible_components(condition.n_lsi, counts.shape, skipped, part.name)
            options: dict[str, Any] = {
                "form": condition.lsi,
                "seed": seed,
                "features": part.layer.features.index,
            }
            if isinstance(counts, BackedMatrix):
                blocks = spaces.lsi_blocks(counts, n_components, **options)
            else:
                rep = spaces.lsi(counts, n_components, **options)
        else:
            part.rep = "X_pca"
            chosen = np.ones(part.layer.n_features, dtype=bool)
            if part.name != "atac":
                chosen = _choose_features(part, rna, condition.n_top_genes)
                part.layer.features = part.layer.features.assign(highly_variable=chosen)
            values = _encode(part, chosen, clip)
            n_components = _possible_components(condition.n_pcs, values.shape, 0, part.name)
            if isinstance(values, MappedRows):
                blocks = spaces.pca_blocks(values, n_components, seed=seed)
            else:
                rep = spaces.pca(values, n_components, seed=seed).scores
        if blocks is None:
            part.layer.reps = {part.rep: rep}
        else:
            path = cast("Path", folder) / f"{part.name}.rep.h5"
            part.layer.reps = {part.rep: _stored(blocks, (counts.shape[0], n_components), path)}


def _stored(
    blocks: Iterator[tuple[int, np.ndarray]], shape: tuple[int, int], path: Path
) -> BackedArray:
    """Write a representation that comes in blocks, and read it from there."""
    with h5py.File(path, "w") as file:
        rep = file.create_dataset("rep", shape, np.float32)
        for first, block in blocks:
            rep[first : first + len(block)] = block
    return BackedArray(path, "rep")


def _possible_components(wanted: int, shape: tuple[int, int], skipped: int, layer: str) -> int:
    """Return the number of components that a matrix of this shape allows."""
    allowed = min(shape) - 1 - skipped
    if allowed < 1:
        msg = f"layer {layer!r} has {shape[0]} cells and {shape[1]} features: too few to represent"
        raise DataError(msg)
    if wanted > allowed:
        logger.info("%s: %d components asked for, %d possible", layer, wanted, allowed)
    return min(wanted, allowed)


def _choose_features(part: _Part, rna: _Part | None, n_top: int) -> np.ndarray:
    n_features = part.layer.n_features
    if part.name == "adt" or part.kind == "embedding":
        return np.ones(n_features, dtype=bool)
    if n_top >= n_features:
        if n_top > n_features:
            logger.info(
                "%s: n_top_genes is %d, but there are %d features; all are flagged",
                part.name,
                n_top,
                n_features,
            )
        return np.ones(n_features, dtype=bool)
    if part.name == "met":
        by_gene = _methylation_of_variable_genes(part, rna)
        return most_variable(_encoded_methylation(part), n_top) if by_gene is None else by_gene
    if part.has_counts:
        table = highly_variable(part.layer.counts, n_top, batch=part.layer.batch)
        return table["highly_variable"].to_numpy()
    return most_variable(part.layer.counts, n_top)


def _methylation_of_variable_genes(part: _Part, rna: _Part | None) -> np.ndarray | None:
    """Flag all contexts of highly variable genes; None where no feature is named by an rna gene."""
    if rna is None:
        return None
    genes = part.layer.features.index.to_series()
    for context in METHYLATION_CONTEXTS:
        genes = genes.str.removesuffix(context)
    features = rna.layer.features
    chosen = genes.isin(features.index[features["highly_variable"]]).to_numpy()
    return chosen if chosen.sum() > 1 else None


def _encoded_methylation(part: _Part) -> sp.csr_matrix | MappedRows:
    n_features = part.layer.n_features
    return _mapped(part.layer.counts, n_features, lambda _, rows: _encode_methylation(part, rows))


def _encode_methylation(part: _Part, values: sp.csr_matrix) -> sp.csr_matrix:
    return values if part.likelihood == "normal" else log1p(values)


def _mapped(
    counts: Matrix, n_columns: int, convert: Callable[[int, sp.csr_matrix], sp.csr_matrix]
) -> sp.csr_matrix | MappedRows:
    """Convert a matrix that is in memory; of one on disk, every block as it is read."""
    if isinstance(counts, BackedMatrix):
        return MappedRows(counts, n_columns, convert)
    return convert(0, counts)


def _encode(part: _Part, chosen: np.ndarray, clip: Clip) -> sp.csr_matrix | MappedRows:
    """Return what the principal components of a layer are computed from."""
    counts = part.layer.counts
    if part.kind == "embedding":
        return _mapped(counts, counts.shape[1], lambda _, rows: rows)
    n_columns = int(chosen.sum())
    if part.name == "met":
        values = _mapped(
            counts, n_columns, lambda _, rows: _encode_methylation(part, rows)[:, chosen]
        )
    elif not part.has_counts:
        values = _mapped(counts, n_columns, lambda _, rows: rows[:, chosen])
    elif part.name == "adt":
        values = _mapped(counts, counts.shape[1], lambda _, rows: clr(rows))
    else:
        totals = row_totals(counts)
        target = median_total(totals)

        def convert(first: int, rows: sp.csr_matrix) -> sp.csr_matrix:
            own = totals[first : first + rows.shape[0]]
            return log1p(normalise_total(rows[:, chosen], totals=own, target=target))

        values = _mapped(counts, n_columns, convert)
    if not isinstance(values, MappedRows):
        return scale(values, clip=clip).sparse
    scaling = Scaling.fit(values, clip=clip)
    return MappedRows(values, values.n_columns, lambda _, rows: scaling.apply(rows))


def _write_truth(
    path: str | os.PathLike[str],
    parts: list[_Part],
    summaries: Mapping[str, LayerSummary],
    task: str | None = None,
) -> None:
    """Write one row a cell; what was removed stands in the metadata of the table, as JSON.

    With a task, the truth says so in its metadata and, where cells are split, which part
    (``split``) each cell is of.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, tuple[Callable[[_Part, slice], Any], pa.DataType]] = {
        "modality": (lambda part, rows: [part.name] * len(part.origin[rows]), pa.string()),
        "cell": (lambda part, rows: part.layer.cells[rows], pa.string()),
        "origin": (lambda part, rows: part.origin[rows], pa.string()),
        "pair": (lambda part, rows: part.pair[rows], pa.int64()),
        "cell_type": (partial(_values, name="cell_type", read=str), pa.string()),
        "batch": (partial(_values, name="batch", read=str), pa.string()),
        "scored": (_scored, pa.bool_()),
    }
    for name, (read, kind) in {
        "subtype": (str, pa.string()),
        "lineage": (str, pa.string()),
        "pseudotime": (float, pa.float64()),
        "S_score": (float, pa.float64()),
        "G2M_score": (float, pa.float64()),
    }.items():
        if any(name in part.obs for part in parts):
            columns[name] = (partial(_values, name=name, read=read), kind)
    if task in SPLIT_TASKS:
        columns["split"] = (partial(_part_of_split, task=task), pa.string())
    # Not into the input: whether a layer lost cells because of another tells that cells have pairs.
    record = {layer: dataclasses.asdict(summary) for layer, summary in summaries.items()}
    schema = pa.schema(
        [(name, kind) for name, (_, kind) in columns.items()],
        metadata={UNS_KEY: json.dumps(record), **({} if task is None else {TASK_KEY: task})},
    )
    with atomic_path(path) as unfinished, pq.ParquetWriter(unfinished, schema) as writer:
        for part in parts:
            for first in range(0, part.layer.n_cells, TRUTH_ROWS):
                rows = slice(first, first + TRUTH_ROWS)
                values = [
                    pa.array(list(read(part, rows)), type=kind) for read, kind in columns.values()
                ]
                writer.write_table(pa.Table.from_arrays(values, schema=schema))


def _values(part: _Part, rows: slice, *, name: str, read: Callable[[Any], Any]) -> list[Any]:
    """Return an obs column with None where it has no value, or throughout where it is absent."""
    if name not in part.obs:
        return [None] * len(part.origin[rows])
    return [None if pd.isna(value) else read(value) for value in part.obs[name].iloc[rows]]


def _part_of_split(part: _Part, rows: slice, *, task: str) -> list[str]:
    assert part.test is not None
    words = split_words(task)
    return [words[TEST] if test else words[TRAIN] for test in part.test[rows]]


def _scored(part: _Part, rows: slice) -> np.ndarray:
    if "scored" not in part.obs:
        return np.ones(len(part.origin[rows]), dtype=bool)
    scored = part.obs["scored"].iloc[rows]
    if scored.dtype != bool:
        msg = f"layer {part.name!r}: obs column 'scored' is {scored.dtype}; expected true or false"
        raise DataError(msg)
    return scored.to_numpy()
