"""The cells of one layer on a device: what the networks read and what the decoders explain."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from scbraid.methods.covel.config import CovelConfig
from scbraid.methods.glue.inputs import GlueLayer
from scbraid.nn.counts import CountBatch, CountMatrix
from scbraid.nn.likelihoods import LIKELIHOODS
from scbraid.nn.pooling import TARGET_SUM, explained, log_values, pooled_sums
from scbraid.nn.tokens import TokenBatch, all_tokens, nonzero_tokens, with_zeros

# Scaled values stay within ± this many standard deviations.
CLIP = 10.0


@dataclasses.dataclass(frozen=True)
class CellBatch:
    """Cells of one layer in one step.

    Attributes
    ----------
    name
        The layer.
    rows
        int64 (n_cells,): which cells they are.
    observed
        Their values.
    own
        What the student reads (n_cells, k).
    batch
        Batch codes (n_cells,).
    """

    name: str
    rows: Tensor
    observed: CountBatch
    own: Tensor
    batch: Tensor


class LayerCells:
    """Arrays of one layer on the training device.

    Parameters
    ----------
    layer
        The layer.
    config
        Options.
    device
        Where the arrays go.
    """

    def __init__(self, layer: GlueLayer, config: CovelConfig, device: torch.device) -> None:
        self.name = layer.name
        self.config = config
        self.counts = LIKELIHOODS[layer.likelihood].counts
        self.matrix = CountMatrix(layer.values, device)
        self.batch = torch.from_numpy(layer.batch).to(device)
        self._rep = None if layer.rep is None else torch.from_numpy(layer.rep).to(device)
        # Values that may be negative have no logarithm.
        stored = layer.values.tocsr().data
        self._logarithmic = not len(stored) or float(stored.min()) >= 0
        center, spread = self._moments(layer.values)
        self._center = torch.from_numpy(center).to(device)
        self._spread = torch.from_numpy(spread).to(device)
        limit, n_features = config.token_limit, self.matrix.shape[1]
        self.tokens_are = "nonzero" if limit and n_features > limit else config.tokens

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self.matrix.shape[0]

    @property
    def n_features(self) -> int:
        """Number of features."""
        return self.matrix.shape[1]

    @property
    def own_dim(self) -> int:
        """Width of what the student reads."""
        return self.n_features if self._rep is None else self._rep.shape[1]

    def gather(self, rows: Tensor) -> CellBatch:
        """Return the cells at these positions, int64 (n_cells,), repeats allowed."""
        observed = self.matrix.batch(rows)
        own = self.scaled(observed) if self._rep is None else self._rep[rows]
        return CellBatch(self.name, rows, observed, own, self.batch[rows])

    def scaled(self, observed: CountBatch) -> Tensor:
        """Log values, centred and scaled by feature, within ±10: (n_cells, n_features)."""
        dense = self._log(observed.dense(), observed.library[:, None])
        return ((dense - self._center) / self._spread).clamp_(-CLIP, CLIP)

    def pooled(self, observed: CountBatch, positions: Tensor) -> Tensor:
        """Σ_i (z_i − z̄_i) f_i of each cell, z its log values and z̄ their means over all cells.

        Zeros count as well, through the means alone, so the cost is that of the non-zero values.

        Parameters
        ----------
        observed
            The cells.
        positions
            f, (n_features, k).
        """
        values = self._log(observed.values, observed.library[observed.rows])
        return pooled_sums(observed, values, positions) - self._center @ positions

    def smooth(self, values: Tensor) -> Tensor:
        """Values of all cells as far as the layer's PCA/LSI explains them linearly, centred.

        What it leaves out of sums over a cell's few counts is mostly chance of sampling. Without
        a representation values are centred alone.

        Parameters
        ----------
        values
            (n_cells, k).
        """
        return explained(values, self._rep)

    def tokens(self, observed: CountBatch, *, training: bool) -> TokenBatch:
        """Tokens of the cells as the options say, with what they tell of the values.

        Values are scaled log values, or the number of a bin. Only training draws at random.
        """
        config, library = self.config, observed.library[:, None]
        if self.tokens_are == "all" or (self.tokens_are == "sampled" and not training):
            tokens = all_tokens(observed)
        else:
            tokens = nonzero_tokens(observed, config.max_tokens if training else None)
            if self.tokens_are == "sampled":
                tokens = with_zeros(tokens, observed)
        if config.value == "bins":
            return dataclasses.replace(tokens, value=self.bins(tokens.value, library))
        value = self._log(tokens.value, library) - self._center[tokens.feature]
        value = (value / self._spread[tokens.feature]).clamp_(-CLIP, CLIP)
        return dataclasses.replace(tokens, value=value)

    def bins(self, value: Tensor, library: Tensor) -> Tensor:
        """Bin of a value: ⌊log2(1 + x)⌋ of x scaled to a sum of 10⁴, at most 5 (scBERT)."""
        if self.counts:
            value = TARGET_SUM * value / library.clamp_min(1e-7)
        return torch.log2(1 + value.clamp_min(0)).floor().clamp_(max=N_BINS - 1)

    def _log(self, value: Tensor, library: Tensor) -> Tensor:
        return log_values(value, library, counts=self.counts, logarithmic=self._logarithmic)

    def _moments(self, values: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the log values of each feature, zeros included."""
        logs = sp.csr_matrix(values, dtype=np.float64, copy=True)
        if self.counts:
            library = np.asarray(values.sum(axis=1)).ravel().astype(np.float64)
            scale = TARGET_SUM / np.maximum(library, 1e-7)
            logs.data *= np.repeat(scale, np.diff(logs.indptr))
        if self._logarithmic:
            logs.data = np.log1p(logs.data)
        mean = np.asarray(logs.mean(axis=0)).ravel()
        square = np.asarray(logs.multiply(logs).mean(axis=0)).ravel()
        spread = np.sqrt(np.maximum(square - mean**2, 0.0))
        # A feature that never varies says nothing at any scale.
        spread[spread < 1e-6] = 1.0
        return mean.astype(np.float32), spread.astype(np.float32)


# Bins of a token's value: zero and five of non-zero ones.
N_BINS = 6
