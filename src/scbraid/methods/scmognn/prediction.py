"""Modality prediction: training of the network, and the mean of several."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

from scbraid.errors import ConfigError
from scbraid.methods.scmognn.config import PredictionConfig
from scbraid.methods.scmognn.inputs import BOUNDS, PredictionInputs, batch_features
from scbraid.methods.scmognn.network import CellInputs, PredictionNetwork
from scbraid.methods.scmognn.pathways import pathway_edges, read_gene_sets
from scbraid.methods.scmognn.training import SeededTask, n_held_out
from scbraid.nn.bipartite import (
    Backend,
    BipartiteGraph,
    FeatureGraph,
    SparseMatrix,
    choose_backend,
)
from scbraid.prepare.svd import truncated_svd
from scbraid.train.engine import Schedule, TrainingRecord, TrainingRun, pick_device, train
from scbraid.train.schedules import Cosine

logger = logging.getLogger("scbraid")

# Components and steps where the options leave them open.
_SVD_RANGE = (20, 100)
_STEPS_PER_ROOT, _MIN_STEPS, _MAX_STEPS = 15.0, 400, 2_000
# The original's course, in steps: rates fall from here on, and stops are looked for from there on.
_DECAY_FROM, _DECAY_EVERY, _DECAY = 1_200, 15, 0.99
_STOP_FROM = 1_500


@dataclasses.dataclass(frozen=True)
class StepDecay:
    """Factor of the rate that falls by the same share again and again.

    Attributes
    ----------
    after
        Steps before the first fall.
    every
        Steps between two falls.
    factor
        Of a fall.
    """

    after: int = _DECAY_FROM
    every: int = _DECAY_EVERY
    factor: float = _DECAY

    def __call__(self, step: int) -> float:
        """Return the factor of the step that follows `step` finished ones."""
        return self.factor ** (max(step - self.after, 0) // self.every)


def plan(n_train: int, config: PredictionConfig) -> Schedule:
    """Schedule of one model; an epoch of the engine is `evaluate_every` steps.

    Few cells are learned by heart within a few hundred steps, so that a course that falls to rate 0
    has to be short for them, and may be longer for many.
    """
    n_steps = config.max_steps
    if n_steps is None:
        n_steps = min(max(round(_STEPS_PER_ROOT * math.sqrt(n_train)), _MIN_STEPS), _MAX_STEPS)
    patience = None
    if config.patience is not None:
        patience = math.ceil(config.patience / config.evaluate_every)
    cosine = config.schedule == "cosine"
    return Schedule(
        max_epochs=None,
        max_steps=n_steps,
        patience=patience,
        reduce_lr_patience=None,
        warmup=0 if cosine else _STOP_FROM // config.evaluate_every,
        keep=1,
        restore="best",
        rates=(Cosine(n_steps) if cosine else StepDecay(),),
        average=config.average_decay if cosine else None,
    )


class Targets:
    """Rows of the target matrix on the training device, and the error of what is predicted.

    A matrix of many zeros stays sparse. The output is linear, so that the error of all entries,

        ‖H W₁ᵀ − Y‖² = ⟨HᵀH, W₁ᵀW₁⟩ − 2 ⟨H, Y W₁⟩ + ‖Y‖²

    with H the states and a column of ones, W₁ the weights and the offset beside them, takes
    products of the size of the states, of the weights, and of the non-zero entries, and the output
    itself is never made.

    Parameters
    ----------
    values
        CSR (n_cells, n_targets).
    device
        Where rows go.
    """

    def __init__(self, values: sp.csr_matrix, device: torch.device) -> None:
        self.n_targets = int(values.shape[1])
        self.sparse = choose_backend(values, dropout=False) == "sparse"
        self._device = device
        self._values = values
        self._dense = None if self.sparse else torch.from_numpy(values.toarray()).to(device)

    def means(self, rows: np.ndarray) -> Tensor:
        """Mean of every target over some rows, (n_targets,)."""
        means = np.asarray(self._values[rows].mean(axis=0), np.float32).ravel()
        return torch.from_numpy(means).to(self._device)

    def take(self, rows: np.ndarray) -> SparseMatrix | Tensor:
        """Return some rows, (n, n_targets), as `square_error` takes them."""
        if self._dense is None:
            return SparseMatrix(self._values[rows]).to(self._device)
        return self._dense[torch.from_numpy(rows).to(self._device)]


def square_error(
    hidden: Tensor, output: nn.Linear, targets: SparseMatrix | Tensor, chunk: int
) -> Iterator[Tensor]:
    """Sum of squares of what a linear output lacks of the targets, in parts that add up.

    Parameters
    ----------
    hidden
        What the output reads, (n, k).
    output
        From k to the number of targets.
    targets
        Of the same cells, (n, n_targets).
    chunk
        Cells whose output is made at once, where the targets are dense.

    Yields
    ------
    Tensor
        A part of the sum, with a graph of its own up to `hidden`.
    """
    if isinstance(targets, SparseMatrix):
        weights = torch.cat([output.weight, output.bias[:, None]], 1)
        # Mixed precision may have made the states in half of it.
        seen = torch.cat([hidden, hidden.new_ones(len(hidden), 1)], 1).to(weights.dtype)
        both = ((seen.T @ seen) * (weights.T @ weights)).sum()
        yield both - 2 * (seen * targets(weights)).sum() + targets.square_norm
        return
    for first in range(0, len(hidden), chunk):
        part = slice(first, first + chunk)
        yield (output(hidden[part]) - targets[part]).square().sum()


class PredictionTask(SeededTask):
    """Training of one network, as the engine runs it.

    Parameters
    ----------
    network
        Trained in place.
    graph
        Of the cells that are seen in training, training cells first.
    values
        Its edges, CSR; used where steps see parts of it.
    cells
        What the network is told of the graph's cells.
    targets
        Of the training cells.
    pathways
        Edges among features, or None.
    rows
        Training cells that are learned from, and those held out.
    config
        Options.
    seed
        Seed of what is drawn for sampled steps.
    """

    monitor = "mse"

    def __init__(
        self,
        network: PredictionNetwork,
        graph: BipartiteGraph,
        values: sp.csr_matrix,
        cells: CellInputs,
        targets: Targets,
        pathways: FeatureGraph | None,
        rows: tuple[np.ndarray, np.ndarray],
        config: PredictionConfig,
        seed: int,
    ) -> None:
        self.model: nn.Module = network
        self.network = network
        self.graph, self.values, self.cells = graph, values, cells
        self.targets, self.pathways, self.config, self.seed = targets, pathways, config, seed
        self.train_rows, self.held_rows = rows
        self._held_targets = targets.take(rows[1])
        self._train_targets = targets.take(rows[0]) if config.sampled_cells is None else None
        self.device = next(network.parameters()).device
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
            )
        ]
        self._degree = np.bincount(values.indices, minlength=values.shape[1])

    @property
    def mixed(self) -> Sequence[nn.Module]:
        """Networks that mixed precision applies to: the read-out alone; means stay in float32."""
        return [self.network.readout, self.network.output]

    def train_steps(self, epoch: int, start: int = 0) -> Iterator[Mapping[str, Tensor]]:
        """Run `evaluate_every` gradient steps, each over all cells or a sample of them."""
        config, network, optimizer = self.config, self.network, self.optimizers[0]
        # A generator of the epoch's own needs no state.
        rng = np.random.default_rng([self.seed, epoch])
        order = np.zeros(0, np.int64)
        for step in range(config.evaluate_every):
            if config.sampled_cells is None:
                if step < start:
                    continue
                optimizer.zero_grad()
                states = network.cell_states(self.graph, self.cells, self.pathways)
                rows = self.train_rows
                seen = states if len(rows) == len(states) else states[self._index(rows)]
            else:
                size = min(config.sampled_cells, len(self.train_rows))
                if len(order) < size:
                    order = rng.permutation(self.train_rows)
                rows, order = np.sort(order[:size]), order[size:]
                columns = self._draw_features(rng)
                if step < start:
                    continue
                optimizer.zero_grad()
                seen = self._sampled_states(rows, columns)
            loss = self._backward(seen, rows)
            optimizer.step()
            yield {"mse": loss}

    def validation_steps(self, epoch: int) -> Iterator[Mapping[str, Tensor]]:
        """Evaluate the held-out cells, in the graph of the training."""
        states = self.network.cell_states(self.graph, self.cells, self.pathways)
        yield {"mse": self.held_out_error(states)}

    def held_out_error(self, states: Tensor) -> Tensor:
        """Mean square error over all entries of the held-out cells."""
        rows = self.held_rows
        hidden = self.network.hidden(states[self._index(rows)])
        total = sum(self._square_error(hidden, self._held_targets), states.new_zeros(()))
        return total / (len(rows) * self.targets.n_targets)

    def _backward(self, states: Tensor, rows: np.ndarray) -> Tensor:
        """Mean square error and its gradients, with the output of some cells at a time."""
        targets = self.targets.take(rows) if self._train_targets is None else self._train_targets
        hidden = self.network.hidden(states)
        # Parts of the output are made, gone backward through and let go, down to here.
        leaf = hidden.detach().requires_grad_()
        n_entries = len(rows) * self.targets.n_targets
        total = states.new_zeros(())
        for part in self._square_error(leaf, targets):
            loss = part / n_entries
            loss.backward()
            total += loss.detach()
        hidden.backward(leaf.grad)
        return total

    def _square_error(self, hidden: Tensor, targets: SparseMatrix | Tensor) -> Iterator[Tensor]:
        return square_error(hidden, self.network.output, targets, self.config.chunk_cells)

    def _sampled_states(self, rows: np.ndarray, columns: np.ndarray) -> Tensor:
        part = sp.csr_matrix(self.values[rows][:, columns])
        graph = BipartiteGraph(part, backend_of(part, self.config)).to(self.device)
        told = self.cells.take(self._index(rows))
        return self.network.cell_states(graph, told, columns=self._index(columns))

    def _draw_features(self, rng: np.random.Generator) -> np.ndarray:
        """Draw features without replacement, with probability ∝ degree (exponential races)."""
        possible = np.flatnonzero(self._degree)
        size = max(1, round(self.config.feature_share * len(possible)))
        arrival = rng.exponential(size=len(possible)) / self._degree[possible]
        return np.sort(possible[np.argpartition(arrival, size - 1)[:size]])

    def _index(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(rows).to(self.device)


def backend_of(values: sp.csr_matrix, config: PredictionConfig) -> Backend:
    """Back-end that the options ask for, or that suits the matrix."""
    if config.backend == "auto":
        return choose_backend(values, dropout=config.edge_dropout > 0)
    return cast("Backend", config.backend)


@dataclasses.dataclass
class FittedPrediction:
    """Predicted values of the test cells (n_test, n_targets), and what happened on the way."""

    values: np.ndarray
    records: list[TrainingRecord]
    details: dict[str, Any]


def fit_prediction(
    inputs: PredictionInputs,
    config: PredictionConfig,
    *,
    seed: int,
    device: str = "auto",
    training: TrainingRun | None = None,
) -> FittedPrediction:
    """Train `n_models` networks and average what they predict for the test cells.

    Parameters
    ----------
    inputs
        Source and target.
    config
        Options.
    seed
        Seed of the first model; the others have their own, derived from it.
    device
        ``auto`` or a torch device name.
    training
        Checkpoints, precision and checks.

    Raises
    ------
    ConfigError
        When pathways are asked for with a source other than rna, or validation by batches with one
        batch.
    """
    run = TrainingRun() if training is None else training
    where = pick_device(device)
    n_train = inputs.n_train
    pathways = _pathways(inputs, config, where)
    seen = inputs.values[:n_train] if config.graph == "inductive" else inputs.values
    whole = BipartiteGraph(inputs.values, backend_of(inputs.values, config)).to(where)
    graph = whole
    if seen is not inputs.values:
        graph = BipartiteGraph(seen, backend_of(seen, config)).to(where)
    cells = cell_inputs(inputs, config, where)
    targets = Targets(inputs.targets, where)
    splits = held_out(inputs, config, seed)
    total = np.zeros((len(inputs.cells) - n_train, targets.n_targets), np.float64)
    records, errors = [], []
    for k, rows in enumerate(splits):
        # Far from the seeds of other runs' models.
        own_seed = seed + 10_007 * k
        torch.manual_seed(own_seed)
        network = PredictionNetwork(
            inputs.values.shape[1],
            targets.n_targets,
            config,
            svd_dim=None if cells.svd is None else cells.svd.shape[1],
            pathways=pathways is not None,
        ).to(where)
        if config.output_start == "mean":
            network.start_at(targets.means(rows[0]))
        told = cells.take(torch.arange(seen.shape[0], device=where))
        task = PredictionTask(
            network, graph, seen, told, targets, pathways, rows, config, own_seed
        )  # fmt: skip
        records.append(train(task, plan(n_train, config), stage=f"model {k + 1}", run=run))
        with torch.no_grad():
            states = network.cell_states(graph, told, pathways)
            errors.append(math.sqrt(float(task.held_out_error(states))))
            states = network.cell_states(whole, cells, pathways)[n_train:]
            for first in range(0, len(states), config.chunk_cells):
                part = slice(first, first + config.chunk_cells)
                total[part] += network.predict(states[part]).cpu().numpy()
    values = np.clip(total / len(splits), *BOUNDS[inputs.transform]).astype(np.float32)
    details: dict[str, Any] = {
        "source": inputs.source,
        "target": inputs.target,
        "transform": inputs.transform,
        "device": str(where),
        "backend": whole.backend,
        "edges": whole.n_edges,
        "pathway_edges": 0 if pathways is None else pathways.n_edges,
        "validation_rmse": [round(error, 6) for error in errors],
        "stages": [record.summary() for record in records],
    }
    return FittedPrediction(values, records, details)


def held_out(
    inputs: PredictionInputs, config: PredictionConfig, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Training cells that each model learns from, and those held out from it, both sorted.

    Raises
    ------
    ConfigError
        When batches are to be held out and the training cells are of one batch.
    """
    n_train, found = inputs.n_train, []
    batch = inputs.batch[:n_train]
    codes = np.unique(batch)
    if config.validation != "random" and len(codes) < 2:
        msg = (
            f"validation={config.validation} holds out a batch, and the training cells are of one; "
            "use validation=random, or a condition that shows batches"
        )
        raise ConfigError(msg)
    order = np.random.default_rng(seed).permutation(codes)
    for k in range(config.n_models):
        last = k == config.n_models - 1
        if config.validation == "batch" or (config.validation == "mixed" and not last):
            held = batch == order[k % len(order)]
        else:
            drawn = np.random.default_rng([seed, k]).permutation(n_train)
            held = np.zeros(n_train, bool)
            held[drawn[: n_held_out(n_train, config.validation_share)]] = True
        found.append((np.flatnonzero(~held), np.flatnonzero(held)))
    return found


def cell_inputs(
    inputs: PredictionInputs, config: PredictionConfig, device: torch.device
) -> CellInputs:
    """Batch features and SVD of all cells, made of those that training sees."""
    told = svd = None
    values, n_train = inputs.values, inputs.n_train
    seen = values[:n_train] if config.graph == "inductive" else values
    if config.batch_features:
        found = batch_features(values, inputs.batch, n_fit=seen.shape[0])
        told = torch.from_numpy(found).to(device)
    if config.cell_start == "svd":
        lowest, highest = _SVD_RANGE
        by_root = min(max(round(math.sqrt(n_train)), lowest), highest)
        wanted = by_root if config.svd_dim is None else config.svd_dim
        n_components = min(wanted, min(seen.shape) - 1)
        if n_components < 1:
            msg = (
                f"cell_start=svd needs at least 2 cells and features; got {seen.shape[0]} and "
                f"{seen.shape[1]}; use cell_start=shared"
            )
            raise ConfigError(msg)
        found = values @ truncated_svd(seen, n_components).Vt.T
        fitted = found[: seen.shape[0]]
        # One factor for all components, so that the leading ones lead.
        found = (found - fitted.mean(axis=0)) / max(fitted.std(axis=0).max(), 1e-12)
        svd = torch.from_numpy(found.astype(np.float32)).to(device)
    return CellInputs(told, svd)


def _pathways(
    inputs: PredictionInputs, config: PredictionConfig, device: torch.device
) -> FeatureGraph | None:
    if config.pathways is None:
        return None
    if inputs.source != "rna":
        msg = f"pathways join genes, and the source is {inputs.source!r}; leave pathways unset"
        raise ConfigError(msg)
    matrix, degree = pathway_edges(
        read_gene_sets(config.pathways),
        inputs.source_features,
        inputs.values[: inputs.n_train],
        weight=config.pathway_weight,
        threshold=config.pathway_threshold,
    )
    return FeatureGraph(matrix, degree).to(device)
