"""The contract between methods and the pipeline."""

from __future__ import annotations

import abc
import dataclasses
import importlib.util
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd

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
        Among unpaired, paired, hybrid, prediction, matching, imputation.
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
        declares both is shown the whole truth table of the condition.
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


@dataclasses.dataclass
class MethodResult:
    """What a method returns.

    Attributes
    ----------
    embeddings
        By layer name, float array of shape (n_cells, k), rows in the layer's cell order.
    features
        By layer name, (feature names, float array (n_features, k)); empty when there are none.
    history
        Training history, one row an epoch and split; None when nothing was trained.
    details
        Numbers worth keeping in the status: epochs, clusters, schedule.
    """

    embeddings: dict[str, np.ndarray]
    features: dict[str, tuple[np.ndarray, np.ndarray]] = dataclasses.field(default_factory=dict)
    history: pd.DataFrame | None = None
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    def check(self, data: Layers, method: str) -> None:
        """Refuse embeddings that miss a layer or cells, differ in width, or are not numbers.

        Raises
        ------
        ContractError
            Naming the method, the layer and what was found.
        """
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
    return str(data.meta.get("task") or ("paired" if data.paired else "unpaired"))


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
        # A method for unpaired data also runs on paired data: the pairing is withheld.
        accepted = {
            *cls.info.tasks,
            *(("paired", "hybrid") if "unpaired" in cls.info.tasks else ()),
        }
        if task not in accepted:
            msg = f"{cls.info.name} needs {' or '.join(sorted(cls.info.tasks))} data; got {task}"
            raise NotApplicable(msg)
        if cls.info.modalities:
            other = [name for name in data.names if name not in cls.info.modalities]
            if other:
                msg = (
                    f"{cls.info.name} takes {', '.join(cls.info.modalities)}; "
                    f"got layers {', '.join(data.names)}"
                )
                raise NotApplicable(msg)
