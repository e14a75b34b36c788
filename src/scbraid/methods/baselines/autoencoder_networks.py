"""The autoencoder of Living-Systems-Lab, and its training on the common engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scbraid.errors import DataError
from scbraid.methods.baselines.autoencoders import LslConfig
from scbraid.methods.scmognn.training import MinibatchTask, best_of, cut_evenly, n_held_out
from scbraid.train.engine import TrainingRecord, TrainingRun, pick_device, train

# Cells that are embedded at once.
_CHUNK = 2048
# Matrices above this many bytes stay sparse.
_DENSE_BYTES = 1 << 30
# One to learn from, one held out.
_LEAST_CELLS = 2


class LayeredAutoencoder(nn.Module):
    """A hidden layer for each omics layer, a linear bottleneck, and the same way back.

    Parameters
    ----------
    dims
        Features of each layer.
    config
        Options.
    """

    def __init__(self, dims: Sequence[int], config: LslConfig) -> None:
        super().__init__()
        width = config.hidden_dim
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.hidden = nn.ModuleList(nn.Linear(dim, width) for dim in dims)
        self.bottleneck = nn.Linear(width * len(dims), config.latent_dim)
        self.back = nn.ModuleList(
            nn.Sequential(nn.Linear(config.latent_dim, width), nn.ReLU(), nn.Linear(width, dim))
            for dim in dims
        )

    def encode(self, x: Sequence[Tensor]) -> Tensor:
        """Map values (n, dim) of every layer to (n, latent_dim)."""
        parts = [
            F.relu(hidden(self.input_dropout(own)))
            for hidden, own in zip(self.hidden, x, strict=True)
        ]
        return self.bottleneck(torch.cat(parts, 1))

    def decode(self, latent: Tensor) -> list[Tensor]:
        """Reconstruct every layer."""
        return [back(latent) for back in self.back]

    def overlap(self) -> Tensor:
        """Mean square cosine between the weights of two hidden units, mean over the layers."""
        found = []
        for hidden in self.hidden:
            unit = F.normalize(cast("nn.Linear", hidden).weight)
            squares = (unit @ unit.T).square()
            n = len(unit)
            found.append((squares.sum() - squares.diagonal().sum()) / (n * (n - 1)))
        return torch.stack(found).mean()


class Rows:
    """Rows of a matrix on the training device, dense when they are asked for.

    Parameters
    ----------
    values
        CSR (n_cells, n_features). Above 1 GiB it is made dense some cells at a time.
    device
        Where rows go.
    """

    def __init__(self, values: sp.csr_matrix, device: torch.device) -> None:
        self._device = device
        self._sparse = values
        self._dense: Tensor | None = None
        if 4 * values.shape[0] * values.shape[1] <= _DENSE_BYTES:
            self._dense = torch.from_numpy(values.toarray()).to(device)

    def take(self, rows: np.ndarray) -> Tensor:
        """Return some rows, (n, n_features)."""
        if self._dense is not None:
            return self._dense[torch.from_numpy(rows).to(self._device)]
        return torch.from_numpy(self._sparse[rows].toarray()).to(self._device)


class AutoencoderTask(MinibatchTask):
    """Training of the autoencoder, as the engine runs it.

    Parameters
    ----------
    network
        Trained in place.
    values
        Of each layer, rows are the same cells.
    rows
        Cells that are learned from, and those held out.
    config
        Options.
    seed
        Seed of the order of cells.
    """

    monitor = "loss"

    def __init__(
        self,
        network: LayeredAutoencoder,
        values: list[Rows],
        rows: tuple[np.ndarray, np.ndarray],
        config: LslConfig,
        seed: int,
    ) -> None:
        self.model: nn.Module = network
        self.network = network
        self.values, self.config, self.seed = values, config, seed
        self.train_rows, self.held_rows = rows
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Adam(network.parameters(), lr=config.learning_rate)
        ]

    @property
    def mixed(self) -> Sequence[nn.Module]:
        """Networks that mixed precision applies to."""
        return [*self.network.hidden, self.network.bottleneck, *self.network.back]

    def minibatches(self, epoch: int) -> list[np.ndarray]:
        """Cut the cells, each once, into minibatches."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.train_rows)
        return cut_evenly(order, self.config.batch_size)

    def validation_steps(self, epoch: int) -> Iterator[Mapping[str, Tensor]]:
        """Evaluate the held-out cells, in parts of one size."""
        for rows in cut_evenly(self.held_rows, _CHUNK):
            yield self.losses(rows)

    def losses(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Sum of the layers' mean square errors, and the penalty."""
        x = [own.take(rows) for own in self.values]
        found = self.network.decode(self.network.encode(x))
        errors = [F.mse_loss(one, own) for one, own in zip(found, x, strict=True)]
        reconstruction, overlap = torch.stack(errors).sum(), self.network.overlap()
        loss = reconstruction + self.config.lam_orthogonal * overlap
        return {"loss": loss, "reconstruction": reconstruction, "overlap": overlap}


@dataclasses.dataclass
class FittedAutoencoder:
    """Latent of every cell (n_cells, latent_dim), and what happened on the way."""

    embedding: np.ndarray
    record: TrainingRecord


def fit_autoencoder(
    values: list[sp.csr_matrix],
    config: LslConfig,
    *,
    seed: int,
    device: str = "auto",
    training: TrainingRun | None = None,
) -> FittedAutoencoder:
    """Train the autoencoder, and embed every cell.

    Parameters
    ----------
    values
        Of each layer, CSR (n_cells, n_features); rows are the same cells.
    config
        Options.
    seed
        Seed of everything random.
    device
        ``auto`` or a torch device name.
    training
        Checkpoints, precision and checks.

    Raises
    ------
    DataError
        When there are fewer than two cells.
    """
    where = pick_device(device)
    n_cells = values[0].shape[0]
    order = np.random.default_rng([seed, 0]).permutation(n_cells)
    if n_cells < _LEAST_CELLS:
        msg = f"the autoencoder has {n_cells} cells to train on; expected at least {_LEAST_CELLS}"
        raise DataError(msg)
    n_held = n_held_out(n_cells, config.validation_share)
    rows = np.sort(order[n_held:]), np.sort(order[:n_held])
    torch.manual_seed(seed)
    network = LayeredAutoencoder([part.shape[1] for part in values], config).to(where)
    seen = [Rows(part, where) for part in values]
    task = AutoencoderTask(network, seen, rows, config, seed)
    schedule = best_of(config.max_epochs, config.patience)
    record = train(task, schedule, stage="autoencoder", run=training)
    with torch.no_grad():
        parts = [
            network.encode([own.take(part) for own in seen]).cpu().numpy()
            for part in cut_evenly(np.arange(n_cells), _CHUNK)
        ]
    return FittedAutoencoder(np.concatenate(parts), record)
