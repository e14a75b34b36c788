"""Networks of CLUE, and their training on the common engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scbraid.methods.baselines.clue import ClueConfig, ClueLayer
from scbraid.methods.baselines.pairing import Pairing
from scbraid.methods.scmognn.training import (
    SeededTask,
    best_of,
    cut_evenly,
    lengthened,
    n_held_out,
)
from scbraid.nn.blocks import Discriminator, GaussianEncoder, gaussian_kl, mlp
from scbraid.nn.counts import CountMatrix
from scbraid.nn.negative_binomial import softmax_negative_binomial_nll
from scbraid.train.engine import TrainingRecord, TrainingRun, pick_device, train

# Cells that are embedded at once.
_CHUNK = 4096


class Decoder(nn.Module):
    """Negative binomial counts of a layer from its sub-space and the batch.

    Parameters
    ----------
    latent_dim
        Width of the sub-space.
    n_batches
        Batches, told as an indicator each.
    n_features
        Features that are decoded.
    hidden_dim
        Width of the hidden layer.
    """

    def __init__(self, latent_dim: int, n_batches: int, n_features: int, hidden_dim: int) -> None:
        super().__init__()
        self.body, width = mlp(latent_dim + n_batches, hidden_dim, 1, 0.0, batch_norm=True)
        self.weight = nn.Parameter(torch.randn(n_features, width) / width**0.5)
        self.bias = nn.Parameter(torch.zeros(n_features))
        self.log_theta = nn.Parameter(torch.zeros(n_features))


class ClueNetwork(nn.Module):
    """An encoder of every layer into every sub-space, a decoder out of each, and the adversary.

    Parameters
    ----------
    dims
        Widths of what encoders see, by layer.
    n_features
        Decoded features, by layer.
    n_batches
        Batches.
    config
        Options.
    """

    def __init__(
        self, dims: Sequence[int], n_features: Sequence[int], n_batches: int, config: ClueConfig
    ) -> None:
        super().__init__()
        self.n_batches = n_batches
        self.latent_dim = config.latent_dim
        # Row k, column m: layer k into the sub-space of layer m.
        self.encoders = nn.ModuleList(
            nn.ModuleList(
                GaussianEncoder(
                    dim, config.latent_dim, hidden_dim=config.hidden_dim,
                    depth=config.hidden_depth, dropout=config.dropout,
                )
                for _ in dims
            )
            for dim in dims
        )  # fmt: skip
        self.decoders = nn.ModuleList(
            Decoder(config.latent_dim, n_batches, n, config.decoder_dim) for n in n_features
        )
        self.discriminator = Discriminator(
            config.latent_dim * len(dims) + n_batches, len(dims),
            hidden_dim=config.discriminator_dim, depth=config.discriminator_depth,
            dropout=config.dropout,
        )  # fmt: skip

    def encode(self, k: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map cells of layer k to mean and deviation over all sub-spaces, (n, 2d) each."""
        row = cast("nn.ModuleList", self.encoders[k])
        parts = [encoder(x) for encoder in row]
        return torch.cat([mean for mean, _ in parts], 1), torch.cat([std for _, std in parts], 1)

    def told(self, batch: Tensor) -> Tensor:
        """Indicators of batches, (n, n_batches)."""
        return F.one_hot(batch, self.n_batches).to(torch.float32)

    def nll(self, m: int, u: Tensor, batch: Tensor, counts: CountMatrix, rows: Tensor) -> Tensor:
        """−log density of counts of layer m, a cell and feature, from its part of u (n, 2d)."""
        decoder = cast("Decoder", self.decoders[m])
        own = u[:, m * self.latent_dim : (m + 1) * self.latent_dim]
        hidden = decoder.body(torch.cat([own, self.told(batch)], 1))
        total = softmax_negative_binomial_nll(
            hidden, decoder.weight, decoder.bias, decoder.log_theta, counts.batch(rows)
        )
        return total / (len(rows) * counts.shape[1])

    def guess(self, u: Tensor, batch: Tensor) -> Tensor:
        """Logits of the layer that cells come from."""
        return self.discriminator(torch.cat([u, self.told(batch)], 1))


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
    """A layer's arrays on the training device."""

    rep: Tensor
    counts: CountMatrix
    batch: Tensor


class ClueTask(SeededTask):
    """Training on pairs, or on pairs and test cells, as the engine runs it.

    Parameters
    ----------
    network
        Trained in place.
    arrays
        Of both layers.
    pairs
        Rows of the pairs that are learned from, (n, 2).
    held
        Rows of the pairs held out, (n, 2).
    others
        Rows of unpaired cells by layer, none in the first stage.
    config
        Options.
    learning_rate
        Of both optimisers.
    seed
        Seed of the order of cells.
    """

    monitor = "vae"

    def __init__(
        self,
        network: ClueNetwork,
        arrays: tuple[Arrays, Arrays],
        pairs: np.ndarray,
        held: np.ndarray,
        others: tuple[np.ndarray, np.ndarray],
        config: ClueConfig,
        *,
        learning_rate: float,
        seed: int,
    ) -> None:
        self.model: nn.Module = network
        self.network, self.arrays = network, arrays
        self.pairs, self.held, self.others = pairs, held, others
        self.config, self.seed = config, seed
        generator = [*network.encoders.parameters(), *network.decoders.parameters()]
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Adam(generator, lr=learning_rate),
            torch.optim.Adam(network.discriminator.parameters(), lr=learning_rate),
        ]

    @property
    def mixed(self) -> Sequence[nn.Module]:
        """Encoders and adversary; decoders and likelihoods stay in float32."""
        return [*self.network.encoders, self.network.discriminator]

    def train_steps(self, epoch: int, start: int = 0) -> Iterator[Mapping[str, Tensor]]:
        """Go once over the pairs, with an equal part of the other cells in every step."""
        rng = np.random.default_rng([self.seed, epoch])
        parts = cut_evenly(rng.permutation(self.pairs), self.config.batch_size)
        beside = [np.array_split(rng.permutation(own), len(parts)) for own in self.others]
        for step in range(start, len(parts)):
            rows = [np.r_[parts[step][:, k], beside[k][step]] for k in range(2)]
            yield self._step(rows, len(parts[step]))

    def _step(self, rows: list[np.ndarray], n_pairs: int) -> dict[str, Tensor]:
        generator, adversary = self.optimizers
        network = self.network
        terms, samples = self.losses(rows, n_pairs)
        # The adversary first, on embeddings that it cannot move.
        adversary.zero_grad(set_to_none=True)
        self._discriminate([own.detach() for own in samples], rows).backward()
        adversary.step()
        network.discriminator.requires_grad_(False)
        try:
            guessed = self._discriminate(samples, rows)
            generator.zero_grad(set_to_none=True)
            (terms["vae"] - self.config.lam_align * guessed).backward()
            generator.step()
        finally:
            network.discriminator.requires_grad_(True)
        return {name: value.detach() for name, value in terms.items()} | {
            "discriminator": guessed.detach()
        }

    def validation_steps(self, epoch: int) -> Iterator[Mapping[str, Tensor]]:
        """Evaluate the held-out pairs."""
        rows = [self.held[:, k] for k in range(2)]
        terms, samples = self.losses(rows, len(self.held))
        yield terms | {"discriminator": self._discriminate(samples, rows)}

    def losses(
        self, rows: list[np.ndarray], n_pairs: int
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """All terms but the adversary's, and a draw of every cell's embedding, by layer.

        Parameters
        ----------
        rows
            By layer, rows of the cells; the first `n_pairs` of both are the same cells.
        n_pairs
            Pairs among them.
        """
        config, network = self.config, self.network
        zero = self.arrays[0].rep.new_zeros(())
        found = dict.fromkeys(("data", "kl", "cross", "cosine"), zero)
        means, samples, index = [], [], []
        for k, arrays in enumerate(self.arrays):
            own = torch.from_numpy(rows[k]).to(arrays.rep.device)
            mean, std = network.encode(k, arrays.rep[own])
            # The noise of a validation is none, so that epochs compare.
            u = mean + std * torch.randn_like(std) if network.training else mean
            found["data"] = found["data"] + network.nll(k, u, arrays.batch[own], arrays.counts, own)
            # A cell's divergence is spread over the features, as its density is.
            kl = gaussian_kl(mean, std).mean() / arrays.counts.shape[1]
            found["kl"] = found["kl"] + kl
            means.append(mean[:n_pairs])
            samples.append(u)
            index.append(own[:n_pairs])
        middle = (samples[0][:n_pairs] + samples[1][:n_pairs]) / 2
        centre = (means[0] + means[1]) / 2
        for m, arrays in enumerate(self.arrays):
            batch = arrays.batch[index[m]]
            found["cross"] = found["cross"] + network.nll(m, middle, batch, arrays.counts, index[m])
            apart = 1 - F.cosine_similarity(means[m], centre)
            found["cosine"] = found["cosine"] + apart.mean()
        vae = (
            config.lam_data * (found["data"] + config.lam_kl * found["kl"])
            + config.lam_cross * found["cross"]
            + config.lam_cos * found["cosine"]
        )
        return {"vae": vae, **found}, samples

    def _discriminate(self, samples: list[Tensor], rows: list[np.ndarray]) -> Tensor:
        """Cross-entropy of guessing the layers, each of which counts the same."""
        losses = []
        for k, (u, own) in enumerate(zip(samples, rows, strict=True)):
            batch = self.arrays[k].batch[torch.from_numpy(own).to(u.device)]
            label = torch.full((len(u),), k, device=u.device)
            losses.append(F.cross_entropy(self.network.guess(u, batch), label))
        return torch.stack(losses).mean()


@dataclasses.dataclass
class FittedClue:
    """Embeddings (n_cells, 2d) of all cells by layer, and what happened on the way."""

    embeddings: tuple[np.ndarray, np.ndarray]
    records: list[TrainingRecord]


def fit_clue(
    layers: tuple[ClueLayer, ClueLayer],
    pairing: Pairing,
    n_batches: int,
    config: ClueConfig,
    *,
    seed: int,
    device: str = "auto",
    training: TrainingRun | None = None,
) -> FittedClue:
    """Train on the pairs, go on with the test cells beside them, and embed every cell.

    Parameters
    ----------
    layers
        Both layers.
    pairing
        Which rows are pairs, and which are test cells.
    n_batches
        Batches of both layers.
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
    arrays = [
        Arrays(
            torch.from_numpy(layer.rep).to(where),
            CountMatrix(layer.counts, where),
            torch.from_numpy(layer.batch).to(where),
        )
        for layer in layers
    ]
    pairs = np.random.default_rng([seed, 0]).permutation(np.stack(pairing.train, 1))
    n_held = n_held_out(len(pairs), config.validation_share, least=2, rest=2)
    torch.manual_seed(seed)
    network = ClueNetwork(
        [layer.rep.shape[1] for layer in layers],
        [layer.counts.shape[1] for layer in layers],
        n_batches,
        config,
    ).to(where)
    nobody = np.zeros(0, np.int64)
    stages: list[tuple[str, float, int, int, tuple[np.ndarray, np.ndarray]]] = [
        ("pairs", config.learning_rate, config.max_epochs, config.patience, (nobody, nobody))
    ]
    if config.fine_tune_epochs:
        stages.append(
            ("fine-tune", config.fine_tune_learning_rate, config.fine_tune_epochs,
             config.fine_tune_patience, pairing.test)
        )  # fmt: skip
    steps = len(cut_evenly(pairs[n_held:], config.batch_size))
    factor = lengthened(config.max_epochs, steps, config.min_steps)
    records = []
    for number, (stage, rate, epochs, patience, others) in enumerate(stages):
        task = ClueTask(
            network, (arrays[0], arrays[1]), pairs[n_held:], pairs[:n_held], others, config,
            learning_rate=rate, seed=seed + 10_007 * number,
        )  # fmt: skip
        records.append(train(task, best_of(epochs, patience, factor), stage=stage, run=run))
    with torch.no_grad():
        found = [
            torch.cat([network.encode(k, part)[0] for part in own.rep.split(_CHUNK)]).cpu().numpy()
            for k, own in enumerate(arrays)
        ]
    return FittedClue((found[0], found[1]), records)
