"""Networks of the perceptrons, and their training on the common engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from scbraid.methods.baselines.perceptrons import PerceptronConfig
from scbraid.methods.baselines.regression import Regression, svd_of
from scbraid.methods.scmognn.network import gelu_mlp
from scbraid.methods.scmognn.training import MinibatchTask, best_of, cut_evenly
from scbraid.train.engine import TrainingRecord, TrainingRun, pick_device, train

# Targets up to here are predicted as they are.
_FEW_TARGETS = 200
# Cells whose outputs are computed at once outside training.
_CHUNK = 4096


class SkipNetwork(nn.Module):
    """Two hidden layers, side by side before the output (AXX, SimpleMLP).

    Parameters
    ----------
    n_in, n_out
        Widths of input and output.
    hidden_dim
        Width of both hidden layers.
    dropout
        Rate after both.
    """

    def __init__(self, n_in: int, n_out: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(n_in, hidden_dim), nn.ReLU(), nn.Dropout(dropout))
        self.second = nn.Sequential(
            nn.Linear(hidden_dim, hidden_dim), nn.ReLU(), nn.Dropout(dropout)
        )
        self.output = nn.Linear(2 * hidden_dim, n_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, n_in) to (n, n_out)."""
        near = self.first(x)
        return self.output(torch.cat([near, self.second(near)], 1))


class EncoderDecoder(nn.Module):
    """An encoder into a narrow space and a decoder out of it, a hidden layer each (Novel).

    Parameters
    ----------
    n_in, n_out
        Widths of input and output.
    hidden_dim, latent_dim
        Width of the hidden layers, and of the space between.
    dropout
        Rate after each hidden layer.
    """

    def __init__(
        self, n_in: int, n_out: int, hidden_dim: int, latent_dim: int, dropout: float
    ) -> None:
        super().__init__()
        self.encoder = gelu_mlp(n_in, [hidden_dim], latent_dim, dropout)
        self.decoder = gelu_mlp(latent_dim, [hidden_dim], hidden_dim, dropout)
        self.output = nn.Linear(hidden_dim, n_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, n_in) to (n, n_out)."""
        return self.output(self.decoder(self.encoder(x)))


class NormalisedPerceptron(nn.Module):
    """Two hidden layers of equal width with batch normalisation (Living-Systems-Lab).

    Parameters
    ----------
    n_in, n_out
        Widths of input and output.
    hidden_dim
        Width of both hidden layers.
    dropout
        Rate after both.
    """

    def __init__(self, n_in: int, n_out: int, hidden_dim: int, dropout: float) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for width in (n_in, hidden_dim):
            linear = nn.Linear(width, hidden_dim)
            parts += [linear, nn.BatchNorm1d(hidden_dim), nn.ReLU(), nn.Dropout(dropout)]
        self.hidden = nn.Sequential(*parts)
        self.output = nn.Linear(hidden_dim, n_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, n_in) to (n, n_out)."""
        return self.output(self.hidden(x))


class RegressionTask(MinibatchTask):
    """Training of one network on mean square error, as the engine runs it.

    Parameters
    ----------
    network
        Trained in place.
    x
        What it sees of the training cells, (n_train, k).
    targets
        Of the training cells, (n_train, n_out).
    rows
        Training cells that are learned from, and those held out.
    config
        Options.
    learning_rate
        Of AdamW.
    seed
        Seed of the order of cells.
    """

    monitor = "mse"
    objective = "mse"

    def __init__(
        self,
        network: nn.Module,
        x: Tensor,
        targets: Tensor,
        rows: tuple[np.ndarray, np.ndarray],
        config: PerceptronConfig,
        *,
        learning_rate: float,
        seed: int,
    ) -> None:
        self.model = network
        self.x, self.targets, self.config, self.seed = x, targets, config, seed
        self.train_rows, self.held_rows = rows
        steps = len(cut_evenly(self.train_rows, config.batch_size))
        self.passes = math.ceil(config.min_steps_per_epoch / steps)
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                network.parameters(), lr=learning_rate, weight_decay=config.weight_decay
            )
        ]

    @property
    def mixed(self) -> Sequence[nn.Module]:
        """Networks that mixed precision applies to."""
        return [self.model]

    def minibatches(self, epoch: int) -> list[np.ndarray]:
        """Go over the cells, as many times as an epoch needs to have its steps."""
        rng = np.random.default_rng([self.seed, epoch])
        return [
            rows
            for _ in range(self.passes)
            for rows in cut_evenly(rng.permutation(self.train_rows), self.config.batch_size)
        ]

    def losses(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Mean square error over all entries of some training cells."""
        return {"mse": self._squares(rows) / (len(rows) * self.targets.shape[1])}

    def validation_steps(self, epoch: int) -> Iterator[Mapping[str, Tensor]]:
        """Evaluate the held-out cells."""
        yield {"mse": self.error(self.held_rows)}

    def error(self, rows: np.ndarray) -> Tensor:
        """Mean square error over all entries of some training cells."""
        parts = [self._squares(rows[i : i + _CHUNK]) for i in range(0, len(rows), _CHUNK)]
        return torch.stack(parts).sum() / (len(rows) * self.targets.shape[1])

    def _squares(self, rows: np.ndarray) -> Tensor:
        index = torch.from_numpy(rows).to(self.x.device)
        return (self.model(self.x[index]) - self.targets[index]).square().sum()


class Trainer:
    """Trains networks on one prediction task.

    Parameters
    ----------
    coordinates
        What networks see of all cells, float32 (n_cells, k).
    task
        The prediction task.
    config
        Options.
    device
        ``auto`` or a torch device name.
    training
        Checkpoints, precision and checks.
    """

    def __init__(
        self,
        coordinates: np.ndarray,
        task: Regression,
        config: PerceptronConfig,
        *,
        device: str,
        training: TrainingRun,
    ) -> None:
        self.where = pick_device(device)
        self.run, self.config = training, config
        self.x = torch.from_numpy(coordinates[task.train]).to(self.where)
        self.asked = torch.from_numpy(coordinates[task.test]).to(self.where)
        self.basis: np.ndarray | None = None
        if task.Y.shape[1] > _FEW_TARGETS:
            # Squares of coordinates are squares of entries, as far as the vectors hold them.
            svd = svd_of(task.Y, config.target_components)
            outcome, self.basis = svd.U * svd.s, svd.Vt
        else:
            outcome = task.Y.toarray()
        self.targets = torch.from_numpy(outcome.astype(np.float32)).to(self.where)

    def fit(
        self,
        make: Callable[[int, int], SkipNetwork | EncoderDecoder | NormalisedPerceptron],
        rows: tuple[np.ndarray, np.ndarray],
        *,
        learning_rate: float,
        seed: int,
        stage: str,
    ) -> tuple[TrainingRecord, float, np.ndarray]:
        """Train a network; return its record, its error on held-out cells, and its predictions.

        The error is the mean square one of what the network puts out.

        Parameters
        ----------
        make
            Makes a network of given widths of input and output.
        rows
            Training cells to learn from, and those held out.
        learning_rate, seed
            Of this network.
        stage
            Name of the training.
        """
        config = self.config
        torch.manual_seed(seed)
        network = make(self.x.shape[1], self.targets.shape[1]).to(self.where)
        # From random values an output has to walk to its target's mean first.
        with torch.no_grad():
            network.output.weight.zero_()
            index = torch.from_numpy(rows[0]).to(self.where)
            network.output.bias.copy_(self.targets[index].mean(0))
        task = RegressionTask(
            network, self.x, self.targets, rows, config, learning_rate=learning_rate, seed=seed
        )
        schedule = best_of(config.max_epochs, config.patience)
        record = train(task, schedule, stage=stage, run=self.run)
        with torch.no_grad():
            error = float(task.error(rows[1]))
            parts = [network(part).cpu().numpy() for part in self.asked.split(_CHUNK)]
        found = np.concatenate(parts)
        return record, error, found if self.basis is None else found @ self.basis
