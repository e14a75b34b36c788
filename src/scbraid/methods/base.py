"""The contract between methods and the pipeline."""

from __future__ import annotations

import abc
import dataclasses
import importlib.util
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import scipy.sparse as sp

from scbraid.data.layers import Layer, Layers
from scbraid.errors import ConfigError, ContractError, DataError, NotApplicable, UnknownNameError
from scbraid.guidance.graph import Guidance
from scbraid.methods.config import MethodConfig
from scbraid.registry import near_miss
from scbraid.train.run import TrainingRun

Role = Literal["subject", "baseline", "control", "oracle"]
Use = Literal["labels", "pairing", "batch", "guidance"]
DEFAULT_PRESET = "default"


@dataclasses.dataclass(frozen=True)
class MethodInfo:
    """What a method is and what it may see.

    Attributes
    ----------
    name
        Registry name, also the suffix of its obsm key ``X_<name>``.
    title
        Name for figures.
    summary
        One sentence.
    role
        ``subject`` (re-implemented and studied), ``baseline`` (a published method beside them),
        ``control`` (trivial) or ``oracle`` (sees the truth; an upper anchor).
    tasks
        Among unpaired, paired, hybrid, prediction, matching, joint, imputation. A method for
        unpaired or paired data also embeds those of a joint task. One of several tasks reads
        ``data.meta["task"]``.
    modalities
        Layer names it accepts; empty means any.
    uses
        What it is handed beyond the matrices. What is not declared is withheld.
    deterministic
        True when the seed changes nothing: it then runs once.
    tier
        ``core`` (always there), ``extra`` (optional package) or ``environment`` (its own one).
    requires
        Import names that must be installed.
    reads_disk
        True when it can work with counts and representations that stay on disk
        (`scbraid.data.backed`); otherwise it is given them in memory, whatever their size.
    citation
        Reference with DOI; empty for controls.
    """

    name: str
    title: str
    summary: str
    role: Role
    tasks: tuple[str, ...]
    modalities: tuple[str, ...] = ()
    uses: frozenset[Use] = frozenset()
    deterministic: bool = False
    tier: Literal["core", "extra", "environment"] = "core"
    requires: tuple[str, ...] = ()
    reads_disk: bool = False
    citation: str = ""

    def missing_packages(self) -> list[str]:
        """Required import names that are not installed."""
        return [name for name in self.requires if importlib.util.find_spec(name) is None]


@dataclasses.dataclass
class Truth:
    """What only a method that declares labels or pairing as used is shown.

    Attributes
    ----------
    table
        One row a cell: modality, cell and what the method declares. Labels bring cell_type and the
        other label columns, pairing brings pair (-1 for all cells otherwise); a method that
        declares both is shown the whole truth table of the condition. In a joint task the labels
        are those of the exploration part, and missing (scored: false) for the rest.
    """

    table: pd.DataFrame

    def rows(self, layer: Layer) -> np.ndarray:
        """Rows of a layer's cells in the table, (n_cells,).

        Raises
        ------
        DataError
            When the table lacks cells of the layer.
        """
        own = np.flatnonzero((self.table["modality"] == layer.name).to_numpy())
        found = pd.Index(self.table["cell"].to_numpy()[own]).get_indexer(layer.cells)
        absent = layer.cells[found < 0]
        if len(absent):
            msg = (
                f"the truth table lacks {len(absent):,} of {layer.n_cells:,} {layer.name} cells "
                f"(first: {str(absent[0])!r}); give the truth that was written with this input"
            )
            raise DataError(msg)
        return own[found]


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """Values of a layer: predicted for cells that the input lacks there, or imputed.

    Attributes
    ----------
    layer
        The predicted layer, ``data.meta["target"]``; ``atac`` of an imputation.
    cells
        Names of the test cells in the source layer, or of the cells whose values are asked
        (`scbraid.prepare.asked_entries`), (n_asked,), in any order.
    features
        Names of the layer's features, of an imputation the asked ones, (n_features,), in any order.
    values
        float32 (n_asked, n_features): in the space of `scbraid.prepare.target_values`, or higher
        for peaks that are likelier open.
    """

    layer: str
    cells: np.ndarray
    features: np.ndarray
    values: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Matching:
    """Which test cells of one layer are which of the other.

    Attributes
    ----------
    layers
        Names of the two layers (a, b).
    cells
        Names of their test cells, (n_a,) and (n_b,), in any order.
    weights
        CSR (n_a, n_b), non-negative; a row over its sum are the probabilities of a cell's
        candidates. A row without a weight scores 0.
    hard
        Whether every cell has one candidate at most.
    """

    layers: tuple[str, str]
    cells: tuple[np.ndarray, np.ndarray]
    weights: sp.csr_matrix
    hard: bool


@dataclasses.dataclass
class MethodResult:
    """What a method returns.

    Attributes
    ----------
    embeddings
        By layer name, float array of shape (n_cells, k), rows in the layer's cell order; empty
        for the tasks prediction, matching and imputation.
    features
        By layer name, (feature names, float array (n_features, k)); empty when there are none.
    history
        Training history, one row an epoch and split; None when nothing was trained.
    details
        Numbers worth keeping in the status: epochs, clusters, schedule.
    prediction, matching
        The answer to the task of that name, the former to an imputation as well; None for the
        others.
    """

    embeddings: dict[str, np.ndarray]
    features: dict[str, tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=dict)
    history: pd.DataFrame | None = None
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    prediction: Prediction | None = None
    matching: Matching | None = None

    def check(self, data: Layers, method: str) -> None:
        """Refuse an answer that is not one to the task of the input.

        Embeddings must have every layer and cell, one width, and finite values; a prediction or an
        imputation every asked cell and feature, finite; a matching every test cell of both layers,
        and finite weights of 0 or more.

        Raises
        ------
        ContractError
            Naming the method, the layer and what was found.
        """
        task = task_of(data)
        if task == "prediction":
            _check_prediction(self.prediction, data, method)
        elif task == "imputation":
            _check_imputation(self.prediction, data, method)
        elif task == "matching":
            _check_matching(self.matching, data, method)
        else:
            self._check_embeddings(data, method)

    def _check_embeddings(self, data: Layers, method: str) -> None:
        widths = set()
        for name, layer in data.layers.items():
            if name not in self.embeddings:
                msg = f"method {method!r} returned no embedding of layer {name!r}"
                raise ContractError(msg)
            found = self.embeddings[name].shape
            if len(found) != 2 or found[0] != layer.n_cells:
                msg = (
                    f"method {method!r} returned an embedding of shape {found} for layer "
                    f"{name!r}; expected ({layer.n_cells}, k)"
                )
                raise ContractError(msg)
            widths.add(found[1])
        if len(widths) != 1:
            msg = f"method {method!r} returned embeddings of different widths: {sorted(widths)}"
            raise ContractError(msg)
        for name, embedding in self.embeddings.items():
            n_bad = int((~np.isfinite(embedding).all(axis=1)).sum())
            if n_bad == len(embedding):
                msg = f"method {method!r} returned no finite value for layer {name!r}"
                raise ContractError(msg)


def task_of(data: Layers) -> str:
    """Task of an input: what it states, else paired or unpaired as its cells are."""
    stated = data.meta.get("task")
    if stated in (None, "paired", "unpaired") or (stated == "hybrid" and not data.paired):
        # Pairs may be withheld from a method: the data then state them no more.
        return "paired" if data.paired else "unpaired"
    return str(stated)


def _check_prediction(found: Prediction | None, data: Layers, method: str) -> None:
    if found is None:
        msg = f"method {method!r} returned no prediction, which the task asks for"
        raise ContractError(msg)
    source, target = data.meta["source"], data.meta["target"]
    features = data[target].features.index.to_numpy(dtype=str)
    _check_values(found, target, held_out_cells(data)[source], features, "test", method)


def _check_imputation(found: Prediction | None, data: Layers, method: str) -> None:
    if found is None:
        msg = f"method {method!r} returned no imputed values, which the task asks for"
        raise ContractError(msg)
    from scbraid.data.solution import IMPUTED_LAYER
    from scbraid.prepare.imputation import asked_entries

    rows, columns = asked_entries(data)
    layer = data[IMPUTED_LAYER]
    features = layer.features.index.to_numpy(dtype=str)[columns]
    _check_values(found, IMPUTED_LAYER, layer.cells[rows], features, "asked", method)


def _check_values(
    found: Prediction,
    layer: str,
    cells: np.ndarray,
    features: np.ndarray,
    what: str,
    method: str,
) -> None:
    if found.layer != layer:
        msg = f"method {method!r} predicted layer {found.layer!r}; expected {layer!r}"
        raise ContractError(msg)
    _check_names(found.cells, cells, f"method {method!r} predicted cells", f"{what} cells")
    _check_names(found.features, features, f"method {method!r} predicted features", "features")
    shape = (len(cells), len(features))
    if found.values.shape != shape:
        msg = (
            f"method {method!r} returned a prediction of shape {found.values.shape}; expected "
            f"{shape}, {what} cells by features of {layer!r}"
        )
        raise ContractError(msg)
    n_bad = int((~np.isfinite(found.values)).sum())
    if n_bad:
        msg = f"method {method!r} returned {n_bad:,} predicted values that are not finite"
        raise ContractError(msg)


def _check_matching(found: Matching | None, data: Layers, method: str) -> None:
    if found is None:
        msg = f"method {method!r} returned no matching, which the task asks for"
        raise ContractError(msg)
    if sorted(found.layers) != sorted(data.names):
        msg = (
            f"method {method!r} matched the layers {', '.join(found.layers)}; expected "
            f"{', '.join(data.names)}"
        )
        raise ContractError(msg)
    expected = held_out_cells(data)
    for layer, cells in zip(found.layers, found.cells, strict=True):
        _check_names(cells, expected[layer], f"method {method!r} matched {layer} cells", "ones")
    shape = (len(found.cells[0]), len(found.cells[1]))
    weights = found.weights
    if not sp.issparse(weights) or weights.format != "csr" or weights.shape != shape:
        kind = getattr(weights, "format", type(weights).__name__)
        msg = (
            f"method {method!r} returned weights as {kind} of shape {weights.shape}; expected csr "
            f"of {shape}"
        )
        raise ContractError(msg)
    wrong = ~(np.isfinite(weights.data) & (weights.data >= 0))
    if wrong.any():
        msg = (
            f"method {method!r} returned {int(wrong.sum()):,} weights that are negative or not "
            f"finite (first: {weights.data[wrong][0]:g})"
        )
        raise ContractError(msg)
    most = int(np.diff(weights.indptr).max(initial=0))
    if found.hard and most > 1:
        msg = f"method {method!r} calls its matching hard, but a cell has {most} candidates"
        raise ContractError(msg)


def _check_names(found: np.ndarray, expected: np.ndarray, here: str, what: str) -> None:
    names, wanted = pd.Index(np.asarray(found).astype(str)), pd.Index(expected)
    if names.has_duplicates:
        msg = f"{here} twice (first: {str(names[names.duplicated()][0])!r})"
        raise ContractError(msg)
    missing, extra = wanted.difference(names), names.difference(wanted)
    if len(missing) or len(extra):
        first = repr(str([*missing, *extra][0]))
        msg = (
            f"{here} that are not the {len(wanted):,} {what} of the input: {len(missing):,} are "
            f"missing and {len(extra):,} unknown (first: {first})"
        )
        raise ContractError(msg)


def held_out_cells(data: Layers) -> dict[str, np.ndarray]:
    """Names of each layer's cells that have no partner in the other layers, in the layer's order.

    Of a prediction or matching task these are the test cells; the target layer of a prediction has
    none.
    """
    found = {}
    for name, layer in data.layers.items():
        others = [other.cells for key, other in data.layers.items() if key != name]
        shared = np.isin(layer.cells, np.concatenate(others)) if others else np.zeros(0, bool)
        found[name] = layer.cells[~shared] if others else layer.cells
    return found


def training_rows(data: Layers, first: str, second: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the cells that two layers share: row i of both is the same cell, (n_train,) each."""
    rows = pd.Index(data[second].cells).get_indexer(data[first].cells)
    own = np.flatnonzero(rows >= 0)
    return own, rows[own]


class Method(abc.ABC):
    """One integration method: declares what it is, and turns layers into an embedding.

    Parameters
    ----------
    config
        Its validated options.
    seed
        Seed of everything random in it.
    device
        ``cpu``, ``cuda``, ``mps`` or ``auto``; methods without torch ignore it.
    training
        Checkpoints, precision and checks for `scbraid.train.engine.train`; methods that do not
        train ignore it.

    Notes
    -----
    A subclass sets `info` and `Config` (and `presets`, by name, as option overrides) and writes
    `fit`. Heavy packages are imported inside `fit`, so that listing methods stays quick.
    """

    info: ClassVar[MethodInfo]
    Config: ClassVar[type[MethodConfig]] = MethodConfig
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init__(
        self,
        config: MethodConfig,
        *,
        seed: int = 0,
        device: str = "auto",
        training: TrainingRun | None = None,
    ) -> None:
        self.config = config
        self.seed = seed
        self.device = device
        self.training = TrainingRun() if training is None else training

    @classmethod
    def configure(
        cls, preset: str = DEFAULT_PRESET, options: Mapping[str, Any] | None = None
    ) -> MethodConfig:
        """Return the validated configuration of a preset with overrides."""
        if preset != DEFAULT_PRESET and preset not in cls.presets:
            names = [DEFAULT_PRESET, *cls.presets]
            raise UnknownNameError(near_miss(preset, names, f"preset of {cls.info.name}"))
        try:
            return cls.Config.from_options(options or {}, cls.presets.get(preset))
        except (ConfigError, UnknownNameError) as error:
            error.add_note(f"while configuring method {cls.info.name!r}, preset {preset!r}")
            raise

    @abc.abstractmethod
    def fit(
        self, data: Layers, guidance: Guidance | None = None, truth: Truth | None = None
    ) -> MethodResult:
        """Integrate the layers.

        Parameters
        ----------
        data
            The input; `data.paired` says whether equal cell names mean equal cells.
        guidance
            The feature graph, when `info.uses` has it.
        truth
            Labels and pairing, when `info.uses` has them.

        Raises
        ------
        NotApplicable
            When the method cannot work on this kind of input; the run is recorded as such.
        DataError
            When the input is wrong.
        """

    @classmethod
    def check_applicable(cls, data: Layers) -> None:
        """Raise NotApplicable when task or modalities do not fit."""
        task = task_of(data)
        # A method for unpaired data also runs on paired data: the pairing is withheld. Data of a
        # joint task are paired.
        accepted = set(cls.info.tasks)
        accepted |= {"paired", "hybrid"} if "unpaired" in accepted else set()
        accepted |= {"joint"} if "paired" in accepted else set()
        if task not in accepted:
            *others, last = sorted(cls.info.tasks)
            listed = f"{', '.join(others)} or {last}" if others else last
            msg = f"{cls.info.name} needs {listed} data; got {task}"
            raise NotApplicable(msg)
        if cls.info.modalities:
            other = [name for name in data.names if name not in cls.info.modalities]
            if other:
                msg = (
                    f"{cls.info.name} takes {', '.join(cls.info.modalities)}; "
                    f"got layers {', '.join(data.names)}"
                )
                raise NotApplicable(msg)
