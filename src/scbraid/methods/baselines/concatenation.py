"""Plain joint spaces of paired cells: the layers' own spaces side by side, or one of them alone."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import pandas as pd

from scbraid.data.layers import Layer, Layers
from scbraid.errors import DataError, NotApplicable
from scbraid.guidance.graph import Guidance
from scbraid.methods.base import Method, MethodInfo, MethodResult, Truth, task_of
from scbraid.methods.baselines.harmony import harmony
from scbraid.methods.config import MethodConfig, option

# Forms of scbraid.prepare.lsi, and the one that the condition made.
LSI_CHOICES = ("prepared", "glue", "glue_us", "log_idf", "signac1", "signac3")


# Where the noise of a layer's components is read.
NOISE_COLUMNS = 30


@dataclasses.dataclass(frozen=True)
class SpaceConfig(MethodConfig):
    """Options of a layer's own space."""

    n_components: int = option(30, "columns of every layer's space, at most", ge=1)
    lsi: str = option(
        "signac3",
        "LSI of atac: a form of `scbraid.prepare.lsi` on all peaks, or the one of the condition",
        choices=LSI_CHOICES,
    )
    scale: str = option(
        "layer",
        "layer: every layer has the same total variance; noise: its weakest components have "
        "variance 1; component: every column has; none",
        choices=("layer", "noise", "component", "none"),
    )


@dataclasses.dataclass(frozen=True)
class SingleLayerConfig(SpaceConfig):
    """Options of one layer's space."""

    layer: str = option(
        "rna", "the layer whose space is shown", choices=("rna", "atac", "adt", "met")
    )
    correction: str = option(
        "none", "harmony: the layer's batches are aligned by Harmony", choices=("none", "harmony")
    )


def noise_floor(space: np.ndarray) -> float:
    """Standard deviation of the weakest five of the first 30 columns of a PCA or LSI, above 0.

    Beyond some 20 components most of what shallow data show is noise, the same in every direction.
    In units of it the components of two layers compare: a layer whose leading components hardly
    stand out weighs less.
    """
    variance = np.var(space[:, :NOISE_COLUMNS].astype(np.float64), axis=0)
    found = float(np.sqrt(np.sort(variance)[:5].mean()))
    return found if found > 0 else 1.0


def layer_space(layer: Layer, stated: dict[str, str], config: SpaceConfig) -> np.ndarray:
    """A layer's centred and scaled space, float64 (n_cells, k).

    PCA as the condition made it; LSI of chromatin accessibility counts in the wanted form.

    Raises
    ------
    DataError
        When the input has no representation of the layer, or one that is not finite.
    """
    key = stated.get("rep") or ("X_lsi" if layer.name == "atac" else "X_pca")
    if key == "X_lsi" and config.lsi != "prepared":
        from scbraid.prepare.spaces import lsi, lsi_form
        from scbraid.prepare.transforms import as_csr, column_sums

        counts = as_csr(layer.counts)
        counts = counts[:, column_sums(counts) > 0]
        skipped = 0 if lsi_form(config.lsi).keep_first else 1
        width = min(config.n_components, min(counts.shape) - 1 - skipped)
        space = lsi(counts, width, form=config.lsi)
    elif key in layer.reps:
        space = layer.reps[key][:, : config.n_components]
    else:
        found = ", ".join(layer.reps) or "none"
        msg = f"layer {layer.name!r} has no obsm {key!r} (found: {found}); prepare the input first"
        raise DataError(msg)
    n_bad = int((~np.isfinite(space).all(axis=1)).sum())
    if n_bad:
        msg = f"layer {layer.name!r}: obsm {key!r} has NaN or infinite values in {n_bad:,} cells"
        raise DataError(msg)
    centred = space - space.mean(0, dtype=np.float64)
    if config.scale == "none":
        return centred
    if config.scale == "noise":
        return centred / noise_floor(centred)
    squares = (centred**2).mean(0)
    scale = np.sqrt(squares if config.scale == "component" else squares.sum())
    return centred / np.where(scale > 0, scale, 1.0)


def _stated(data: Layers, name: str) -> dict[str, str]:
    return data.meta.get("layers", {}).get(name, {})


def joint_rows(data: Layers, method: str) -> tuple[pd.Index, dict[str, np.ndarray]]:
    """Cells that all layers have, in the first layer's order, and their row in each layer.

    Raises
    ------
    NotApplicable
        When the layers are not paired.
    DataError
        When no cell has all layers.
    """
    if not data.paired:
        msg = f"{method} needs paired data: cells with all layers"
        raise NotApplicable(msg)
    names = {name: pd.Index(layer.cells) for name, layer in data.layers.items()}
    first, *others = names.values()
    common = first[np.logical_and.reduce([first.isin(other) for other in [first, *others]])]
    if not len(common):
        msg = f"no cell has all of the layers {', '.join(data.names)}; equal names mean equal cells"
        raise DataError(msg)
    return common, {name: index.get_indexer(common) for name, index in names.items()}


def complete_rows(data: Layers, method: str) -> dict[str, np.ndarray]:
    """Row of every cell in each layer, in the first layer's order, where no cell lacks a layer.

    Raises
    ------
    NotApplicable
        When the layers are not paired, or some cells lack one.
    """
    common, rows = joint_rows(data, method)
    sizes = {name: layer.n_cells for name, layer in data.layers.items()}
    if len(common) < max(sizes.values()):
        found = ", ".join(f"{name}: {size:,}" for name, size in sizes.items())
        msg = (
            f"{method} needs cells that have all layers; some lack one: found {found}, "
            f"{len(common):,} of them in all"
        )
        raise NotApplicable(msg)
    return rows


class Concatenation(Method):
    """The layers' own spaces side by side."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="concatenation",
        title="PCA + LSI",
        summary=(
            "Principal components and LSI of the layers of a cell side by side, every layer with "
            "the same total variance."
        ),
        role="control",
        tasks=("paired",),
        uses=frozenset({"pairing"}),
        deterministic=True,
    )
    Config = SpaceConfig
    presets: ClassVar[dict[str, dict[str, str]]] = {
        "prepared_lsi": {"lsi": "prepared"},
        "noise_scaled": {"scale": "noise"},
        "unscaled": {"scale": "none"},
    }
    config: SpaceConfig

    def fit(
        self, data: Layers, guidance: Guidance | None = None, truth: Truth | None = None
    ) -> MethodResult:
        """Scale and concatenate; cells that lack a layer get no coordinates."""
        _, rows = joint_rows(data, self.info.name)
        joint = np.concatenate(
            [
                layer_space(layer, _stated(data, name), self.config)[rows[name]]
                for name, layer in data.layers.items()
            ],
            axis=1,
        )
        embeddings = {}
        for name, layer in data.layers.items():
            embeddings[name] = np.full((layer.n_cells, joint.shape[1]), np.nan)
            embeddings[name][rows[name]] = joint
        return MethodResult(embeddings, details={"widths": joint.shape[1]})


def harmonised(space: np.ndarray, layer: Layer, seed: int) -> np.ndarray:
    """Harmony of a layer's space over its batches, float64 (n_cells, k).

    Raises
    ------
    NotApplicable
        When the input shows fewer than two batches, or harmonypy is not installed.
    """
    n_batches = 0 if layer.batch is None else len(np.unique(layer.batch))
    if layer.batch is None or n_batches < 2:
        msg = (
            f"harmony aligns batches; the input shows {n_batches} of layer {layer.name!r}: set "
            "use_batch in the condition"
        )
        raise NotApplicable(msg)
    try:
        return harmony(space, layer.batch, seed)
    except ImportError as error:
        msg = "correction=harmony needs harmonypy, which this environment lacks"
        raise NotApplicable(msg) from error


class SingleLayer(Method):
    """One layer's own space for all layers of a cell."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="single_layer",
        title="One layer",
        summary="The own space (PCA or LSI) of one layer, given to all layers of the same cell.",
        role="control",
        tasks=("paired", "hybrid"),
        uses=frozenset({"batch", "pairing"}),
        deterministic=True,
    )
    Config = SingleLayerConfig
    presets: ClassVar[dict[str, dict[str, str]]] = {
        **{name: {"layer": name} for name in ("atac", "adt", "met")},
        "atac_harmony": {"layer": "atac", "correction": "harmony"},
    }
    config: SingleLayerConfig

    @classmethod
    def check_applicable(cls, data: Layers) -> None:
        """Take one layer alone whatever the task: there is nothing to pair."""
        if len(data.names) > 1 or task_of(data) not in ("unpaired", "paired"):
            super().check_applicable(data)

    def fit(
        self, data: Layers, guidance: Guidance | None = None, truth: Truth | None = None
    ) -> MethodResult:
        """Show the space of the chosen layer."""
        shown = self.config.layer
        if shown not in data.layers:
            msg = f"{self.info.name} is to show layer {shown!r}; got {', '.join(data.names)}"
            raise NotApplicable(msg)
        space = layer_space(data[shown], _stated(data, shown), self.config)
        if self.config.correction == "harmony":
            space = harmonised(space, data[shown], self.seed)
        if data.names == [shown]:
            return MethodResult({shown: space})
        _, rows = joint_rows(data, self.info.name)
        embeddings = {}
        for name, layer in data.layers.items():
            embeddings[name] = np.full((layer.n_cells, space.shape[1]), np.nan)
            embeddings[name][rows[name]] = space[rows[shown]]
        # Cells of the shown layer that lack another one keep their own coordinates.
        embeddings[shown] = space
        return MethodResult(embeddings)
