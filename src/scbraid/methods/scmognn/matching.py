"""Matching: contrastive encoders on propagated states, and the answer within batches."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scbraid.methods.scmognn.assignment import assign, largest_entries, match_weights, transport
from scbraid.methods.scmognn.config import MatchingConfig
from scbraid.methods.scmognn.inputs import MatchingInputs
from scbraid.methods.scmognn.network import MatchingNetwork, mixture_weights
from scbraid.methods.scmognn.propagation import propagate, scaled
from scbraid.methods.scmognn.training import MinibatchTask, best_of, n_held_out
from scbraid.train.engine import TrainingRecord, TrainingRun, pick_device, train

logger = logging.getLogger("scbraid")

# Candidates from which on few of them are looked at first.
_MANY = 2_000
_QUANTILES = (0.995, 0.95)
# Of the temperature of a soft answer: down to a sixty-fourth, which is all but hard.
_HALVINGS = 6


class PairBatches:
    """Minibatches of training pairs, of one batch of the experiment each or of all.

    Parameters
    ----------
    rows
        Pairs to draw from.
    batch
        Code of every pair, by row number.
    size
        Pairs of a minibatch, up to half as many more where that makes parts of equal size.
    within
        Whether a minibatch keeps to one batch.
    """

    def __init__(self, rows: np.ndarray, batch: np.ndarray, size: int, *, within: bool) -> None:
        codes = batch[rows] if within else np.zeros(len(rows), np.int64)
        groups = [rows[codes == code] for code in np.unique(codes)]
        # One pair has nothing to be told from.
        self.groups = [group for group in groups if len(group) > 1]
        self.size = size

    @property
    def n_steps(self) -> int:
        """Minibatches of a pass."""
        return sum(self._cuts(len(group)) for group in self.groups)

    def _cuts(self, n: int) -> int:
        """Parts of equal size into which n pairs are cut; the last incomplete one is spread."""
        return max(1, round(n / self.size)) if n > self.size else 1

    def one_pass(self, rng: np.random.Generator) -> list[np.ndarray]:
        """Minibatches of one pass, in random order."""
        found = []
        for group in self.groups:
            found += np.array_split(rng.permutation(group), self._cuts(len(group)))
        return [found[k] for k in rng.permutation(len(found))]


class MatchingTask(MinibatchTask):
    """Training of the encoders, as the engine runs it.

    Parameters
    ----------
    network
        Trained in place.
    states
        By layer, propagated states (n_states, n_rows, k) on the training device.
    batches
        Minibatches of the pairs that are learned from.
    held
        Pairs held out, in pools that are matched by themselves.
    config
        Options.
    seed
        Seed of the order of pairs.
    """

    def __init__(
        self,
        network: MatchingNetwork,
        states: tuple[Tensor, Tensor],
        batches: PairBatches,
        held: list[np.ndarray],
        config: MatchingConfig,
        seed: int,
    ) -> None:
        self.model: nn.Module = network
        self.network = network
        self.states, self.batches, self.held = states, batches, held
        self.config, self.seed = config, seed
        self.monitor = config.monitor
        self.passes = math.ceil(config.min_steps_per_epoch / batches.n_steps)
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
            )
        ]

    @property
    def mixed(self) -> Sequence[nn.Module]:
        """Networks that mixed precision applies to."""
        return [*self.network.encoders, *self.network.decoders]

    def minibatches(self, epoch: int) -> list[np.ndarray]:
        """Go over all pairs, as many times as an epoch needs to have its steps."""
        rng = np.random.default_rng([self.seed, epoch])
        return [rows for _ in range(self.passes) for rows in self.batches.one_pass(rng)]

    def validation_steps(self, epoch: int) -> Iterator[Mapping[str, Tensor]]:
        """Evaluate the pools; `error` is 1 − the mean of both directions' share of hits."""
        # One mean over all pairs, so that small pools do not count for more than their pairs.
        sums: dict[str, Tensor] = {}
        n_pairs = sum(map(len, self.held))
        for rows in self.held:
            for name, value in self.losses(rows).items():
                part = value * (len(rows) / n_pairs)
                sums[name] = sums[name] + part if name in sums else part
        yield sums

    def losses(self, rows: np.ndarray) -> dict[str, Tensor]:
        """Contrast of the pairs among each other, and both auxiliary losses."""
        config, network = self.config, self.network
        index = torch.from_numpy(rows).to(self.states[0].device)
        x, e = zip(*(network.encode(k, self.states[k][:, index]) for k in range(2)), strict=True)
        logits = network.scale * e[0] @ e[1].T
        own = torch.arange(len(rows), device=logits.device)
        contrast = F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)
        decode = network.decoders
        prediction = F.mse_loss(decode[0](e[1]), x[0]) + F.mse_loss(decode[1](e[0]), x[1])
        reconstruction = F.mse_loss(decode[0](e[0]), x[0]) + F.mse_loss(decode[1](e[1]), x[1])
        hits = [(found.argmax(1) == own).float().mean() for found in (logits, logits.T)]
        loss = contrast + config.lam_prediction * prediction
        return {
            "loss": loss + config.lam_reconstruction * reconstruction,
            "contrast": contrast,
            "prediction": prediction,
            "reconstruction": reconstruction,
            "error": 1 - (hits[0] + hits[1]) / 2,
        }


def canonical_projections(
    x: tuple[np.ndarray, np.ndarray], n_components: int, ridge: float
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Regularised canonical correlation of paired rows (Vinod 1976).

    Columns are centred and keep their scale; to the diagonal of each covariance is added `ridge`
    times its mean eigenvalue. Every canonical variable is multiplied by its correlation, so that
    what the layers do not share has no say in a cosine. Projected rows have length 1 on average.

    Parameters
    ----------
    x
        Paired rows, (n, k_a) and (n, k_b).
    n_components
        Canonical variables at most.
    ridge
        Above 0.

    Returns
    -------
    list
        By side, weights (k, m) and offset (m,): projected rows are ``x @ weights + offset``.
    """
    means = [part.mean(axis=0) for part in x]
    centred = [part - mean for part, mean in zip(x, means, strict=True)]
    n = len(centred[0])
    # R⁻ᵀ with RᵀR the covariance: whitened rows are z R⁻¹.
    factors = [np.linalg.cholesky(_ridged(part.T @ part / n, ridge)) for part in centred]
    white = [
        scipy.linalg.solve_triangular(factor, part.T, lower=True).T
        for factor, part in zip(factors, centred, strict=True)
    ]
    U, correlations, Vt = np.linalg.svd(white[0].T @ white[1] / n, full_matrices=False)
    m = min(n_components, len(correlations))
    found = []
    for factor, directions, part, mean in zip(factors, (U, Vt.T), white, means, strict=True):
        own = directions[:, :m] * correlations[:m]
        own /= max(np.linalg.norm(part @ own, axis=1).mean(), 1e-12)
        weights = scipy.linalg.solve_triangular(factor, own, lower=True, trans="T")
        found.append((weights, -mean @ weights))
    return found


def _ridged(covariance: np.ndarray, ridge: float) -> np.ndarray:
    # Columns of zeros alone leave a covariance of 0, to which any diagonal will do.
    mean = float(np.trace(covariance)) / len(covariance) or 1.0
    return covariance + ridge * mean * np.eye(len(covariance))


@dataclasses.dataclass
class FittedMatching:
    """Weights of matches between test cells, and what happened on the way.

    Attributes
    ----------
    weights
        CSR (n_a, n_b), rows of sum 1.
    vectors
        Unit vectors of the test cells, by layer; weights are made of their inner products.
    records, details
        Of the training.
    """

    weights: sp.csr_matrix
    vectors: tuple[np.ndarray, np.ndarray]
    records: list[TrainingRecord]
    details: dict[str, Any]


def fit_matching(
    inputs: MatchingInputs,
    config: MatchingConfig,
    *,
    seed: int,
    device: str = "auto",
    training: TrainingRun | None = None,
) -> FittedMatching:
    """Propagate, train the encoders on the pairs, and match the test cells.

    Parameters
    ----------
    inputs
        Both layers.
    config
        Options.
    seed
        Seed of everything random.
    device
        ``auto`` or a torch device name.
    training
        Checkpoints, precision and checks.
    """
    run = TrainingRun() if training is None else training
    where = pick_device(device)
    propagated = [
        propagate(scaled(rep, config.scaling), config.n_propagations) for rep in inputs.reps
    ]
    states = tuple(torch.from_numpy(part).to(where) for part in propagated)
    n_train = inputs.n_train
    order = np.random.default_rng([seed, 0]).permutation(n_train)
    n_held = n_held_out(n_train, config.validation_share, least=2, rest=2)
    n_held = min(config.validation_cells, n_held)
    within = config.batch_scheme == "within"
    batch = inputs.batch[0]
    pools = PairBatches(order[:n_held], batch, config.validation_cells, within=within).groups
    if not pools:
        # Too few of any batch to be told apart: they are looked at together.
        pools = [order[:n_held]]
    batches = PairBatches(order[n_held:], batch, config.batch_size, within=within)
    if not batches.groups:
        logger.warning(
            "no batch has two training pairs to tell apart: minibatches mix all batches, as with "
            "batch_scheme=mixed"
        )
        batches = PairBatches(order[n_held:], batch, config.batch_size, within=False)
    torch.manual_seed(seed)
    dims = (states[0].shape[2], states[1].shape[2])
    network = MatchingNetwork(dims, len(states[0]), config).to(where)
    maps: list[tuple[np.ndarray, np.ndarray]] = []
    if config.encoder_start == "cca":
        maps = _start(network, propagated, np.sort(order[n_held:]), config)
    task = MatchingTask(network, (states[0], states[1]), batches, pools, config, seed)
    schedule = best_of(config.max_epochs, config.patience)
    before = _monitored(task)
    record = train(task, schedule, stage="encoders", run=run)
    # With few pairs the networks may have nothing to add. Then the start is the answer, and the
    # pairs that told so need not be held out of it.
    kept = "trained"
    if maps and before <= _monitored(task):
        maps = _start(network, propagated, np.arange(n_train), config)
        kept = "start"
    elif maps and config.with_start:
        kept = "both"

    def encoded(
        k: int, rows: np.ndarray, linear: list[tuple[np.ndarray, np.ndarray]]
    ) -> np.ndarray:
        index = torch.from_numpy(rows).to(where)
        with torch.no_grad():
            own = network.encode(k, states[k][:, index])[1].cpu().numpy()
        if kept != "both":
            return own
        weights, offset = linear[k]
        return _side_by_side(own, propagated[k][:, rows].mean(axis=0) @ weights + offset)

    everything = maps
    if kept == "both":
        everything = _projections(propagated, np.arange(n_train), config)
    # Sides may have unequal numbers of test cells.
    first, second = (
        encoded(k, np.arange(n_train, part.shape[1]), everything) for k, part in enumerate(states)
    )
    vectors = (first, second)
    scale = float(network.scale)
    groups = [codes[n_train:] for codes in inputs.batch]
    if not config.within_batches:
        groups = [np.zeros_like(codes) for codes in groups]
    temperature = None
    if config.answer == "soft":
        # Held out of the start as well, but where the start is all there is.
        cosines = [encoded(0, rows, maps) @ encoded(1, rows, maps).T for rows in pools]
        temperature = best_temperature(cosines, 1 / scale)
    weights, quantiles = answer(vectors, (groups[0], groups[1]), temperature, config)
    names = inputs.batches if config.within_batches else ["all"]
    details: dict[str, Any] = {
        "device": str(where),
        "scale": round(scale, 4),
        "temperature": temperature,
        "dims": list(dims),
        "mixtures": mixture_weights(network.mixtures),
        "held_out": n_held,
        "kept": kept,
        "quantiles": {names[code]: quantile for code, quantile in quantiles.items()},
        "stages": [record.summary()],
    }
    return FittedMatching(weights, vectors, [record], details)


def _projections(
    propagated: list[np.ndarray], pairs: np.ndarray, config: MatchingConfig
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Canonical correlation of some pairs, each the plain mean of its states."""
    mixed = [part[:, pairs].mean(axis=0, dtype=np.float64) for part in propagated]
    return canonical_projections((mixed[0], mixed[1]), config.latent_dim, config.cca_ridge)


def _start(
    network: MatchingNetwork,
    propagated: list[np.ndarray],
    pairs: np.ndarray,
    config: MatchingConfig,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Set the encoders to the canonical correlation of some pairs, the mixtures to plain means."""
    found = _projections(propagated, pairs, config)
    network.start_at(found)
    with torch.no_grad():
        for parameter in network.mixtures.parameters():
            parameter.zero_()
    return found


def _side_by_side(own: np.ndarray, projected: np.ndarray) -> np.ndarray:
    """Unit vectors whose inner products are the means of those of both."""
    lengths = np.maximum(np.linalg.norm(projected, axis=1, keepdims=True), 1e-12)
    return np.concatenate([own, (projected / lengths).astype(np.float32)], 1) / math.sqrt(2)


def _monitored(task: MatchingTask) -> float:
    """What the training looks at, of the network as it is."""
    task.model.eval()
    with torch.no_grad():
        (terms,) = task.validation_steps(0)
    return float(terms[task.monitor])


def best_temperature(pools: Sequence[np.ndarray], start: float) -> float:
    """Temperature at which the plan gives true partners of held-out pairs the most probability.

    Parameters
    ----------
    pools
        Cosines of held-out pairs, (n, n) each, partners on the diagonal.
    start
        The highest one that is tried; the others are halves of it, six times over. Of equals the
        highest.
    """
    temperatures = [start / 2**k for k in range(_HALVINGS + 1)]
    found = [sum(np.trace(transport(pool, t)) for pool in pools) for t in temperatures]
    return temperatures[int(np.argmax(found))]


def answer(
    vectors: tuple[np.ndarray, np.ndarray],
    groups: tuple[np.ndarray, np.ndarray],
    temperature: float | None,
    config: MatchingConfig,
) -> tuple[sp.csr_matrix, dict[int, float]]:
    """Match the cells of each group among themselves.

    Parameters
    ----------
    vectors
        Unit vectors of the cells of both layers.
    groups
        Their groups; each has cells of both layers.
    temperature
        Of the soft answer; the hard one needs none.
    config
        Options.

    Returns
    -------
    tuple
        CSR (n_a, n_b), rows of sum 1, no entry between groups; and by group the quantile of the
        hard answer in the end.
    """
    shape = (len(vectors[0]), len(vectors[1]))
    rows, columns, values = [], [], []
    quantiles: dict[int, float] = {}
    for code in np.unique(groups[0]).tolist():
        a, b = (np.flatnonzero(own == code) for own in groups)
        cosines = vectors[0][a].astype(np.float64) @ vectors[1][b].astype(np.float64).T
        if temperature is not None:
            part = largest_entries(transport(cosines, temperature), config.soft_entries).tocoo()
            rows.append(a[part.row])
            columns.append(b[part.col])
            values.append(part.data)
            continue
        quantile = config.quantile
        if quantile is None:
            quantile = _QUANTILES[0] if len(b) >= _MANY else _QUANTILES[1]
        found = assign(match_weights(cosines), quantile)
        quantiles[code] = found.quantile
        rows.append(a)
        columns.append(b[found.columns])
        values.append(np.ones(len(a)))
    entries = np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))
    return sp.csr_matrix(entries, shape=shape), quantiles
