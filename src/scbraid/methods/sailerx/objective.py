"""Warm-up and training steps of SAILER and SAILERX."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scbraid.methods.sailerx.config import SailerConfig, SailerxConfig
from scbraid.methods.sailerx.inputs import ATAC_ONLY, PAIRED
from scbraid.methods.sailerx.network import AtacArrays, SailerNetwork
from scbraid.nn.blocked import BlockedBatch
from scbraid.nn.invariance import mean_pairwise_kl, standard_kl, structure_loss
from scbraid.train.schedules import Cyclic

# The weight of the structure term is stated for this many cells in a step.
STATED_BATCH = 200
_BETA_DIGITS = 3


@dataclasses.dataclass(frozen=True)
class Structure:
    """What the structure term compares the embedding with; on the training device.

    Attributes
    ----------
    reference
        Reference embedding by ATAC row, (n_cells, k); rows without RNA are not used.
    weights
        γ by ATAC row, (n_cells,).
    weight
        Γ.
    """

    reference: Tensor
    weights: Tensor
    weight: float


@dataclasses.dataclass(frozen=True)
class Beta:
    """Weight of the KL terms by step: up in a line over half a cycle, then 1 (cyclical annealing).

    Parameters
    ----------
    steps
        Steps of an epoch.
    cycle
        Steps of a cycle.
    by_epoch
        Constant within an epoch.
    first_at_one
        Begin an epoch before the end of a cycle, where the weight is 1, as the code does.
    """

    steps: int
    cycle: int
    by_epoch: bool = False
    first_at_one: bool = False

    def __call__(self, step: int) -> float:
        """Return the weight of the step that follows `step` finished ones."""
        if self.by_epoch:
            step -= step % self.steps
        if self.first_at_one:
            step += self.cycle - self.steps
        return round(Cyclic(self.cycle)(step), _BETA_DIGITS)


class SailerTask:
    """One stage of the training, as the engine runs it.

    Parameters
    ----------
    network
        Trained in place.
    arrays
        The data on the training device.
    config
        Options.
    structure
        The reference; None trains on ATAC alone, all cells alike.
    warmup
        Whether this is the warm-up.
    seed
        Seed of every random choice.

    Attributes
    ----------
    steps
        Steps of an epoch.
    """

    monitor = "loss"

    def __init__(
        self,
        network: SailerNetwork,
        arrays: AtacArrays,
        config: SailerConfig,
        structure: Structure | None,
        *,
        warmup: bool,
        seed: int,
    ) -> None:
        self.model: nn.Module = network
        self.network = network
        self.arrays = arrays
        self.config = config
        self.structure = structure
        self.warmup = warmup
        sets = arrays.data.sets
        hybrid = structure is not None and bool((sets == ATAC_ONLY).any())
        self.main = np.flatnonzero(sets == PAIRED) if hybrid else np.arange(len(sets))
        self.other = np.flatnonzero(sets == ATAC_ONLY) if hybrid else np.zeros(0, np.int64)
        self.other_every = config.unpaired_every if isinstance(config, SailerxConfig) else 1
        self.size = min(config.batch_size, len(self.main))
        # The last, incomplete batch is left out.
        self.steps = len(self.main) // self.size
        cycle = max(config.cycle_epochs * len(self.main) // self.size, 1)
        self.beta = Beta(self.steps, cycle, config.beta_unit == "epoch", config.beta_start == "one")
        self.rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        self.optimizer = torch.optim.Adam(
            network.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=arrays.device.type in ("cpu", "cuda"),
        )
        self.optimizers: list[torch.optim.Optimizer] = [self.optimizer]

    # -- what the engine calls -------------------------------------------------------------

    @property
    def mixed(self) -> list[nn.Module]:
        """The parts between the sparse first layer and the likelihood."""
        return [self.network.encoder, self.network.decoder]

    def state_dict(self) -> dict[str, Any]:
        """State of the sampler's generator."""
        return {"cells": self.rng.bit_generator.state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state of `state_dict`."""
        self.rng.bit_generator.state = state["cells"]

    def train_steps(self, epoch: int, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """One step on paired cells a minibatch, and now and then one on the others."""
        order = self.rng.permutation(self.main)
        others = self._other_rows()
        for position in range(start, self.steps):
            rows = order[position * self.size : (position + 1) * self.size]
            other = None
            if others is not None and position % self.other_every == 0:
                other = others[position // self.other_every]
            if self.warmup:
                yield self._warm_up(rows, other)
            else:
                beta = self.beta((epoch - 1) * self.steps + position)
                yield self._step(rows, other, beta)

    def validation_steps(self, epoch: int) -> Iterator[dict[str, Tensor]]:
        """No cell is held out: the length of the training is fixed."""
        yield from ()

    def _other_rows(self) -> np.ndarray | None:
        """Minibatches of ATAC-only cells for an epoch, (n, size), each cell as often as another."""
        if not len(self.other):
            return None
        needed = -(-self.steps // self.other_every) * self.size
        passes = -(-needed // len(self.other))
        rows = np.concatenate([self.rng.permutation(self.other) for _ in range(passes)])
        return rows[:needed].reshape(-1, self.size)

    # -- steps -----------------------------------------------------------------------------

    def _warm_up(self, rows: np.ndarray, other: np.ndarray | None) -> dict[str, Tensor]:
        """Means over entries and pairs; positive entries weigh w; no KL, no γ."""
        at, batch = self._gather(rows)
        mean, _, nll = self._reconstruct(at, batch, PAIRED, self.config.nll_weight)
        nll = nll / (len(rows) * batch.counts.shape[1])
        total, terms = nll, {"nll": nll}
        if self.structure is not None:
            local = structure_loss(self.structure.reference[at], mean) / len(rows) ** 2
            total = total + self.structure.weight * local
            terms["structure"] = local
        if len(self.other):
            terms["other_nll"] = nll.new_zeros(())
        if other is not None:
            at, batch = self._gather(other)
            _, _, other_nll = self._reconstruct(at, batch, ATAC_ONLY, 1.0)
            other_nll = other_nll / (len(other) * batch.counts.shape[1])
            total = total + self.config.nll_weight * other_nll
            terms["other_nll"] = self._spread(other_nll)
        self._update(total)
        return {"loss": total.detach()} | {name: term.detach() for name, term in terms.items()}

    def _step(self, rows: np.ndarray, other: np.ndarray | None, beta: float) -> dict[str, Tensor]:
        """Sums over cells and entries, as the code has them; terms are shown for one cell."""
        n_rows = len(rows)
        at, batch = self._gather(rows)
        mean, log_variance, nll = self._reconstruct(at, batch, PAIRED, self._positive_weight)
        kl = standard_kl(mean, log_variance)
        invariance = mean_pairwise_kl(mean, log_variance)
        total = self._evidence(nll, kl, invariance, beta, n_rows)
        terms = {"nll": nll / n_rows, "kl": kl / n_rows, "invariance": invariance}
        if self.structure is not None:
            local = structure_loss(self.structure.reference[at], mean, self.structure.weights[at])
            total = total + self.structure.weight * (STATED_BATCH / n_rows) * local
            terms["structure"] = local / n_rows**2
        self._update(total)
        terms = {"loss": total / n_rows, **terms}
        if len(self.other):
            terms |= {name: nll.new_zeros(()) for name in ("other_nll", "union_invariance")}
        if other is not None:
            terms |= self._other_step(batch, other, beta)
        terms["beta"] = nll.new_tensor(beta)
        return {name: term.detach() for name, term in terms.items()}

    def _other_step(
        self, paired: BlockedBatch, other: np.ndarray, beta: float
    ) -> dict[str, Tensor]:
        """Reconstruct ATAC-only cells; the invariance term is that of the union with paired ones.

        The union is what draws the two sets of posteriors together.
        """
        at, batch = self._gather(other)
        mean, log_variance, nll = self._reconstruct(at, batch, ATAC_ONLY, self._positive_weight)
        paired_mean, paired_log_variance = self.network.encode(paired, PAIRED)
        invariance = mean_pairwise_kl(
            torch.cat([mean, paired_mean]), torch.cat([log_variance, paired_log_variance])
        )
        kl = standard_kl(mean, log_variance)
        self._update(self._evidence(nll, kl, invariance, beta, len(other)))
        return {
            "other_nll": self._spread(nll / len(other)),
            "union_invariance": self._spread(invariance),
        }

    def _evidence(
        self, nll: Tensor, kl: Tensor, invariance: Tensor, beta: float, n_rows: int
    ) -> Tensor:
        """β·KL + w·NLL + β·λ·K̄ in the scales of `config.objective`."""
        config = self.config
        lam = config.lam_invariance
        data = (config.nll_weight if config.weighted == "all" else 1.0) * nll
        if config.objective != "executed":
            data = (1 + lam) * data
        if config.objective == "theory":
            lam = lam * n_rows
        return beta * kl + data + beta * lam * invariance

    @property
    def _positive_weight(self) -> float:
        return self.config.nll_weight if self.config.weighted == "open" else 1.0

    def _reconstruct(
        self, at: Tensor, batch: BlockedBatch, domain: int, positive_weight: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, log variance, and summed NLL of a draw."""
        mean, log_variance = self.network.encode(batch, domain)
        half = 0.5 if self.config.posterior_std == "half" else 1.0
        z = mean + (half * log_variance).exp() * torch.randn_like(mean)
        offset = self.arrays.offset
        nll = self.network.nll(
            z,
            self.arrays.covariates[at],
            batch,
            domain=domain,
            positive_weight=positive_weight,
            offset=None if offset is None else offset[at],
        )
        return mean, log_variance, nll

    def _update(self, total: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()

    def _gather(self, rows: np.ndarray) -> tuple[Tensor, BlockedBatch]:
        at = torch.from_numpy(rows).to(self.arrays.device)
        return at, self.arrays.batch(at)

    def _spread(self, term: Tensor) -> Tensor:
        """Scale a term of the rarer steps so that its mean over all steps is its mean over them."""
        return term * (self.steps / -(-self.steps // self.other_every))
