"""The joined read-out of a trained GLUE: what the encoder says of a cell, and what its features do.

The embeddings of features, weighted by a cell's values and added up, are a second reading of the
cell in the same space. It is made after training, from the trained tensors, and changes neither the
encoder's latent, which decoders and balancing weights go on reading, nor the features' embeddings.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scbraid.data.backed import Array, BackedArray, BackedMatrix
from scbraid.methods.glue.inputs import GlueInputs, GlueLayer
from scbraid.methods.glue.network import Embedding
from scbraid.nn.counts import CountMatrix
from scbraid.nn.likelihoods import LIKELIHOODS
from scbraid.nn.pooling import LinearMap, LinearMoments, join, log_values, pooled_sums

# Cells that are read at once, in memory as on disk, so that sums over blocks have the same bits.
CHUNK = 1024
# Names of its arrays beside those of the network begin with this.
PREFIX = "readout"


@dataclasses.dataclass(frozen=True)
class JoinedReadout:
    """What the read-out has learned from the cells that a model was trained on.

    Attributes
    ----------
    maps
        By layer, from PCA/LSI to pooled positions without their mean, by least squares over the
        layer's cells; without PCA/LSI from pooled positions, whose mean is taken away. Kept with
        the model, so that a cell is read the same way whatever cells come with it.
    weight
        Of the pooled positions beside 1 for the encoder.
    """

    maps: dict[str, LinearMap]
    weight: float

    @classmethod
    @torch.no_grad()
    def fit(
        cls, inputs: GlueInputs, features: np.ndarray, weight: float, device: torch.device
    ) -> JoinedReadout:
        """Find the maps, in one pass over the cells.

        Parameters
        ----------
        inputs
            Layers, in memory or on disk.
        features
            Embeddings of all vertices, (n_vertices, latent_dim).
        weight
            Of the pooled positions.
        device
            Where sums are made; all else is done on the processor in double precision.
        """
        maps = {}
        for layer in inputs.layers:
            rep_dim = 0 if layer.rep is None else layer.rep.shape[1]
            moments = LinearMoments(rep_dim, features.shape[1])
            for rows in _chunks(layer):
                rep = None if layer.rep is None else _rep_rows(layer.rep, rows)
                moments.add(rep, _pooled(layer, rows, features, device))
            maps[layer.name] = moments.solve()
        return cls(maps, weight)

    @torch.no_grad()
    def apply(self, inputs: GlueInputs, embedding: Embedding, device: torch.device) -> None:
        """Join pooled positions to what the encoder says of the same cells, in place.

        With PCA/LSI no count is read: the maps hold what they say.

        Parameters
        ----------
        inputs
            Layers of the cells, those of the training or others.
        embedding
            Posterior means of cells and features. Cells are overwritten, so that no second array of
            them is held: (n_cells, latent_dim) float32 at unit length. Features stay.
        device
            Where sums are made.
        """
        for layer in inputs.layers:
            own, cells = self.maps[layer.name], embedding.cells[layer.name]
            for rows in _chunks(layer):
                seen = (
                    _pooled(layer, rows, embedding.features, device)
                    if layer.rep is None
                    else _rep_rows(layer.rep, rows)
                )
                mean = torch.from_numpy(cells[rows])
                cells[rows] = join(mean, own(seen).to(mean), self.weight).numpy()

    def describe(self) -> dict[str, Any]:
        """Weight, and the share of the variance of pooled positions that PCA/LSI explains."""
        return {
            "weight": self.weight,
            "explained": {
                name: None if own.coefficients is None else round(float(own.share), 4)
                for name, own in self.maps.items()
            },
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """All maps as plain arrays, by names that begin with `PREFIX`."""
        found: dict[str, np.ndarray] = {}
        for name, own in self.maps.items():
            found |= {
                f"{PREFIX}.{name}.{key}": value.numpy()
                for key, value in vars(own).items()
                if value is not None
            }
        return found

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], names: list[str], weight: float
    ) -> JoinedReadout:
        """Make it again from `arrays` (of the shapes that `readout_shapes` states)."""
        found = {name: torch.from_numpy(value) for name, value in arrays.items()}
        maps = {}
        for name in names:
            here = f"{PREFIX}.{name}"
            maps[name] = LinearMap(
                found[f"{here}.center"], found.get(f"{here}.coefficients"), found[f"{here}.share"]
            )
        return cls(maps, weight)


def readout_shapes(inputs: GlueInputs, latent_dim: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays of a read-out of such layers, by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in inputs.layers:
        here = f"{PREFIX}.{layer.name}"
        shapes[f"{here}.share"] = ()
        if layer.rep is None:
            shapes[f"{here}.center"] = (latent_dim,)
        else:
            shapes[f"{here}.center"] = (layer.rep.shape[1],)
            shapes[f"{here}.coefficients"] = (layer.rep.shape[1], latent_dim)
    return shapes


def _chunks(layer: GlueLayer) -> Iterator[slice]:
    for first in range(0, layer.n_cells, CHUNK):
        yield slice(first, min(first + CHUNK, layer.n_cells))


def _rep_rows(rep: Array, rows: slice) -> Tensor:
    part = rep.rows(rows.start, rows.stop) if isinstance(rep, BackedArray) else rep[rows]
    return torch.from_numpy(np.ascontiguousarray(part))


def _pooled(layer: GlueLayer, rows: slice, features: np.ndarray, device: torch.device) -> Tensor:
    """Σ_i w_i v_i of these cells, with their values' logarithms as weights: (n_rows, k)."""
    values = layer.values
    part = values.rows(rows.start, rows.stop) if isinstance(values, BackedMatrix) else values[rows]
    observed = CountMatrix(part, device).batch(torch.arange(part.shape[0], device=device))
    weights = log_values(
        observed.values,
        observed.library[observed.rows],
        counts=LIKELIHOODS[layer.likelihood].counts,
    )
    positions = torch.from_numpy(features[layer.vertices]).to(device)
    return pooled_sums(observed, weights, positions).cpu()
