"""Predictions of one layer from another by multilayer perceptrons: entries of the competition."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from scbraid.data.layers import Layers
from scbraid.guidance.graph import Guidance
from scbraid.methods.base import MethodInfo, MethodResult, Truth
from scbraid.methods.baselines.regression import Regression, Regressor, svd_of
from scbraid.methods.config import MethodConfig, option

if TYPE_CHECKING:
    from scbraid.methods.baselines.perceptron_networks import Trainer
    from scbraid.train.engine import TrainingRecord

_CITATION = "Lance et al. 2022, bioRxiv, doi 10.1101/2022.04.11.487796 (team {})"
# Components of the source where the options leave them open; as of scMoGNN.
_SVD_RANGE = (20, 100)
# Of the random search: widths, dropout rates and the range of learning rates.
_WIDTHS = (64, 128, 256, 512)
_LATENTS = (16, 32, 64, 128)
_DROPOUTS = (0.0, 0.1, 0.2, 0.3, 0.5)
_RATES = (3e-4, 3e-3)


@dataclasses.dataclass(frozen=True)
class PerceptronConfig(MethodConfig):
    """Options that all perceptrons have."""

    source_components: int | None = option(
        None,
        "singular vectors of the source (proteins are taken as they are); None: the root of the "
        "training cells, 20 to 100",
        ge=1,
    )
    target_components: int = option(
        70, "singular vectors that more than 200 targets are predicted in; fewer as they are", ge=1
    )
    weight_decay: float = option(1e-4, "weight decay of AdamW", ge=0)
    batch_size: int = option(
        256, "cells of a step; up to half as many more, where that makes equal parts", ge=2
    )
    min_steps_per_epoch: int = option(
        10, "an epoch is as many passes over the cells as have this number of steps", ge=1
    )
    max_epochs: int = option(100, "epochs at most", ge=1)
    patience: int = option(10, "epochs without a better validation error before the stop", ge=1)
    validation_share: float = option(
        0.15, "share of training cells held out, where no batch is", gt=0, lt=1
    )


@dataclasses.dataclass(frozen=True)
class SkipPerceptronConfig(PerceptronConfig):
    """Options of the perceptron with a skip connection; docs/tasks.md argues the defaults."""

    hidden_dim: int = option(256, "width of both hidden layers", ge=1)
    dropout: float = option(0.3, "dropout rate after both hidden layers", ge=0, lt=1)
    learning_rate: float = option(1e-3, "learning rate of AdamW", gt=0)
    mean_threshold: float = option(
        0.01, "targets whose training mean is below are predicted that mean", ge=0
    )
    n_models: int = option(
        3, "models that are averaged; each holds out another batch (without batches: other cells)",
        ge=1,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TunedPerceptronConfig(PerceptronConfig):
    """Options of the tuned encoder and decoder; docs/tasks.md argues the defaults."""

    n_trials: int = option(
        4, "networks that are tried; the one of lowest error on held-out cells predicts", ge=1
    )


@dataclasses.dataclass(frozen=True)
class NormalisedPerceptronConfig(PerceptronConfig):
    """Options of the perceptron between singular vectors; docs/tasks.md argues the defaults."""

    source_components: int | None = option(
        50,
        "singular vectors of the source (proteins are taken as they are); None: the root of the "
        "training cells, 20 to 100",
        ge=1,
    )
    target_components: int = option(
        50, "singular vectors that more than 200 targets are predicted in; fewer as they are", ge=1
    )
    hidden_dim: int = option(400, "width of both hidden layers", ge=1)
    dropout: float = option(0.2, "dropout rate after both hidden layers", ge=0, lt=1)
    learning_rate: float = option(1e-3, "learning rate of AdamW", gt=0)


class TrainedRegressor(Regressor):
    """A regressor that trains networks with the common engine."""

    config: PerceptronConfig

    def fit(
        self, data: Layers, guidance: Guidance | None = None, truth: Truth | None = None
    ) -> MethodResult:
        """Train, and predict the target layer of the test cells."""
        self._source: str = data.meta["source"]
        self._records: list[TrainingRecord] = []
        result = super().fit(data, guidance, truth)
        rows = [row for record in self._records for row in record.history]
        result.history = pd.DataFrame(rows)
        result.details["stages"] = [record.summary() for record in self._records]
        return result

    def coordinates(self, task: Regression, wanted: int | None) -> np.ndarray:
        """What networks see of every cell, float32 (n_cells, k): columns of mean 0, one scale."""
        if self._source == "adt":
            found = task.X.toarray().astype(np.float64)
        else:
            low, high = _SVD_RANGE
            by_root = min(max(round(math.sqrt(len(task.train))), low), high)
            svd = svd_of(task.X, by_root if wanted is None else wanted)
            found = svd.U * svd.s
        found = found - found.mean(axis=0)
        # One factor for all columns, so that the leading components lead.
        return (found / max(found.std(axis=0).max(), 1e-12)).astype(np.float32)

    def trainer(self, task: Regression) -> Trainer:
        """Return what trains networks on these coordinates."""
        from scbraid.methods.baselines.perceptron_networks import Trainer

        return Trainer(
            self.coordinates(task, self.config.source_components), task, self.config,
            device=self.device, training=self.training,
        )  # fmt: skip


def hold_out(
    task: Regression, n_models: int, share: float, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Positions in the training cells that each model learns from, and those it holds out, sorted.

    A batch for each model in turn, in random order; random cells where there is one batch or none.
    """
    n_train = len(task.train)
    batch = np.zeros(n_train, np.int64) if task.batch is None else task.batch[task.train]
    names = np.random.default_rng([seed, 0]).permutation(np.unique(batch))
    found = []
    for k in range(n_models):
        if len(names) > 1:
            held = batch == names[k % len(names)]
        else:
            held = np.zeros(n_train, bool)
            drawn = np.random.default_rng([seed, 1, k]).permutation(n_train)
            held[drawn[: min(max(1, round(share * n_train)), n_train - 1)]] = True
        found.append((np.flatnonzero(~held), np.flatnonzero(held)))
    return found


class SkipPerceptron(TrainedRegressor):
    """Two hidden layers, both of which reach the output; the mean of models of several sites."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="axx_mlp",
        title="AXX MLP",
        summary=(
            "Perceptron with two hidden layers that both reach the output, mean of models that "
            "hold out different batches; targets that are hardly ever there get their mean."
        ),
        role="baseline",
        tasks=("prediction",),
        uses=frozenset({"batch"}),
        requires=("torch",),
        citation=_CITATION.format("AXX, SimpleMLP"),
    )
    Config = SkipPerceptronConfig
    config: SkipPerceptronConfig

    def predict(self, task: Regression) -> tuple[np.ndarray, dict[str, Any]]:
        """Train a model for every held-out batch, and average."""
        from scbraid.methods.baselines.perceptron_networks import SkipNetwork

        config = self.config
        trainer = self.trainer(task)
        total = np.zeros((len(task.test), task.Y.shape[1]))
        splits = hold_out(task, config.n_models, config.validation_share, self.seed)
        errors = []
        for k, rows in enumerate(splits):
            record, error, values = trainer.fit(
                partial(SkipNetwork, hidden_dim=config.hidden_dim, dropout=config.dropout),
                rows,
                learning_rate=config.learning_rate,
                # Far from the seeds of other runs' models.
                seed=self.seed + 10_007 * k,
                stage=f"model {k + 1}",
            )
            self._records.append(record)
            errors.append(error)
            total += values
        values = total / len(splits)
        mean = np.asarray(task.Y.mean(axis=0, dtype=np.float64)).ravel()
        rare = np.abs(mean) < config.mean_threshold
        values[:, rare] = mean[rare]
        return values, {"validation_mse": errors, "targets_at_their_mean": int(rare.sum())}


class TunedPerceptron(TrainedRegressor):
    """An encoder and a decoder whose widths, dropout and learning rate are searched at random."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="novel_prediction",
        title="Novel MLP",
        summary=(
            "Encoder and decoder between the layers, their widths, dropout and learning rate "
            "searched at random on held-out cells."
        ),
        role="baseline",
        tasks=("prediction",),
        requires=("torch",),
        citation=_CITATION.format("Novel"),
    )
    Config = TunedPerceptronConfig
    config: TunedPerceptronConfig

    def predict(self, task: Regression) -> tuple[np.ndarray, dict[str, Any]]:
        """Try networks, and let the best one predict."""
        from scbraid.methods.baselines.perceptron_networks import EncoderDecoder

        config = self.config
        trainer = self.trainer(task)
        whole = dataclasses.replace(task, batch=None)
        (rows,) = hold_out(whole, 1, config.validation_share, self.seed)
        rng = np.random.default_rng([self.seed, 2])
        best, trials = (math.inf, np.zeros(0)), []
        for k in range(config.n_trials):
            shape: dict[str, Any] = {
                "hidden_dim": int(rng.choice(_WIDTHS)),
                "latent_dim": int(rng.choice(_LATENTS)),
                "dropout": float(rng.choice(_DROPOUTS)),
            }
            rate = float(np.exp(rng.uniform(*np.log(_RATES))))
            record, error, values = trainer.fit(
                partial(EncoderDecoder, **shape),
                rows,
                learning_rate=rate,
                seed=self.seed + 10_007 * k,
                stage=f"trial {k + 1}",
            )
            self._records.append(record)
            trials.append({**shape, "learning_rate": rate, "validation_mse": error})
            if error < best[0]:
                best = error, values
        return best[1], {"trials": trials}


class NormalisedPerceptron(TrainedRegressor):
    """A perceptron with batch normalisation from singular vectors to singular vectors."""

    info: ClassVar[MethodInfo] = MethodInfo(
        name="ls_lab_mlp",
        title="LS lab MLP",
        summary=(
            "Perceptron with two hidden layers of 400 and batch normalisation from 50 singular "
            "vectors of the source to 50 of the target."
        ),
        role="baseline",
        tasks=("prediction",),
        requires=("torch",),
        citation=_CITATION.format("Living-Systems-Lab"),
    )
    Config = NormalisedPerceptronConfig
    config: NormalisedPerceptronConfig

    def predict(self, task: Regression) -> tuple[np.ndarray, dict[str, Any]]:
        """Train one network; random cells are held out."""
        from scbraid.methods.baselines import perceptron_networks

        config = self.config
        trainer = self.trainer(task)
        whole = dataclasses.replace(task, batch=None)
        (rows,) = hold_out(whole, 1, config.validation_share, self.seed)
        record, error, values = trainer.fit(
            partial(
                perceptron_networks.NormalisedPerceptron,
                hidden_dim=config.hidden_dim,
                dropout=config.dropout,
            ),
            rows,
            learning_rate=config.learning_rate,
            seed=self.seed,
            stage="network",
        )
        self._records.append(record)
        return values, {"validation_mse": error}
