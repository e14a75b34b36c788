"""The conditional variational autoencoder of SAILERX: a sub-network a chromosome."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scbraid.methods.sailerx.config import SailerConfig
from scbraid.methods.sailerx.inputs import AtacData
from scbraid.nn.block_likelihoods import block_nll
from scbraid.nn.blocked import BlockedBatch, BlockLinear, SparseBlockLinear, xavier_blocks_
from scbraid.nn.blocks import LEAKY_SLOPE
from scbraid.nn.counts import CountMatrix

_PRELU_START = 0.25
# Of the input of a cell with 1,000 open peaks; what follows is normalised, so the size is free.
TYPICAL_LENGTH = 1000**0.5


class BlockActivation(nn.Module):
    """PReLU with one slope a block, or LeakyReLU."""

    def __init__(self, n_blocks: int, kind: str) -> None:
        super().__init__()
        self.slope = (
            nn.Parameter(torch.full((n_blocks,), _PRELU_START)) if kind == "prelu" else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (n_rows, n_blocks, width)."""
        if self.slope is None:
            return F.leaky_relu(x, LEAKY_SLOPE)
        return F.prelu(x, self.slope)


class BlockNorm(nn.Module):
    """Batch normalisation of every unit of every block, with statistics for each domain."""

    def __init__(self, n_blocks: int, width: int, n_domains: int) -> None:
        super().__init__()
        self.domains = nn.ModuleList(nn.BatchNorm1d(n_blocks * width) for _ in range(n_domains))

    def forward(self, x: Tensor, domain: int) -> Tensor:
        """Map (n_rows, n_blocks, width); all rows are of one domain."""
        return self.domains[domain % len(self.domains)](x.flatten(1)).view_as(x)


class EncoderBody(nn.Module):
    """From the first layer's sums to mean and log variance.

    No layer before a batch normalisation has a bias: it would be subtracted again.
    """

    def __init__(self, n_blocks: int, config: SailerConfig, n_domains: int) -> None:
        super().__init__()
        hidden, out, kind = config.block_hidden, config.block_out, config.activation
        self.norm_1 = BlockNorm(n_blocks, hidden, n_domains)
        self.activation_1 = BlockActivation(n_blocks, kind)
        self.linear = BlockLinear(n_blocks, hidden, out)
        self.norm_2 = BlockNorm(n_blocks, out, n_domains)
        self.activation_2 = BlockActivation(n_blocks, kind)
        self.mean = nn.Linear(n_blocks * out, config.latent_dim)
        self.log_variance = nn.Linear(n_blocks * out, config.latent_dim)
        for head in (self.mean, self.log_variance):
            nn.init.xavier_uniform_(head.weight)

    def forward(self, sums: Tensor, domain: int) -> tuple[Tensor, Tensor]:
        """Map (n_rows, n_blocks, hidden) to mean and log variance, each (n_rows, latent_dim)."""
        hidden = self.activation_1(self.norm_1(sums, domain))
        hidden = self.activation_2(self.norm_2(self.linear(hidden), domain)).flatten(1)
        return self.mean(hidden), self.log_variance(hidden)


class DecoderBody(nn.Module):
    """From latent coordinates and covariates to the hidden units before the logits."""

    def __init__(
        self, n_blocks: int, config: SailerConfig, n_covariates: int, n_domains: int
    ) -> None:
        super().__init__()
        hidden, out, kind = config.block_hidden, config.block_out, config.activation
        self.shape = (n_blocks, out)
        self.joint = nn.Linear(config.latent_dim + n_covariates, n_blocks * out, bias=False)
        self.norm_1 = BlockNorm(n_blocks, out, n_domains)
        # One slope, because this layer is one.
        self.activation_1 = BlockActivation(1, kind)
        self.linear = BlockLinear(n_blocks, out, hidden)
        self.norm_2 = BlockNorm(n_blocks, hidden, n_domains)
        self.activation_2 = BlockActivation(n_blocks, kind)

    def forward(self, z: Tensor, covariates: Tensor, domain: int) -> Tensor:
        """Map (n_rows, latent_dim) and (n_rows, n_covariates) to (n_rows, n_blocks, hidden)."""
        joint = self.joint(torch.cat([z, covariates], dim=1)).view(-1, *self.shape)
        joint = self.activation_1(self.norm_1(joint, domain).flatten(1)[:, None]).view_as(joint)
        return self.activation_2(self.norm_2(self.linear(joint), domain))


class SailerNetwork(nn.Module):
    """All parameters of SAILER and SAILERX.

    Parameters
    ----------
    config
        Options.
    bounds
        First peak of each block, and the number of peaks.
    n_covariates
        What the decoder is told beside z.
    n_domains
        Sets of cells with batch normalisations of their own.
    """

    def __init__(
        self, config: SailerConfig, bounds: list[int], n_covariates: int, n_domains: int = 1
    ) -> None:
        super().__init__()
        n_blocks = len(bounds) - 1
        self.bounds = bounds
        self.likelihood = config.likelihood
        self.unit_input = config.encoder_input == "unit"
        self.input_dropout = config.input_dropout
        self.first = SparseBlockLinear(bounds, config.block_hidden)
        self.encoder = EncoderBody(n_blocks, config, n_domains)
        self.decoder = DecoderBody(n_blocks, config, n_covariates, n_domains)
        self.last_weight = nn.Parameter(torch.empty(bounds[-1], config.block_hidden))
        xavier_blocks_(self.last_weight, bounds)
        bound = config.block_hidden**-0.5
        self.last_bias = nn.Parameter(torch.empty(bounds[-1]).uniform_(-bound, bound))

    @torch.no_grad()
    def start_from(self, data: AtacData) -> None:
        """Start the logits' biases at the peaks' own frequencies.

        From zero, a bias has to walk to the logit of a share of a few per mille at one learning
        rate a step, which takes tens of thousands of steps; the optimum is the same.
        """
        n_cells = data.n_cells
        if self.likelihood == "poisson":
            total = np.asarray(data.peaks.sum(axis=0, dtype=np.float64)).ravel()
            start = np.log((total + 0.5) / (n_cells + 1))
        else:
            n_open = np.bincount(data.peaks.indices, minlength=len(self.last_bias))
            start = np.log((n_open + 0.5) / (n_cells - n_open + 0.5))
        self.last_bias.copy_(torch.from_numpy(start))

    def encode(self, batch: BlockedBatch, domain: int = 0) -> tuple[Tensor, Tensor]:
        """Mean and log variance of q(z | x), each (n_rows, latent_dim).

        In training a share of the open peaks is hidden from the encoder, and the decoder has to
        find them again: what is open by chance is then of no use to it. Noise comes from torch's
        generator.
        """
        values = batch.counts.values
        # Counts of hundreds would drown the rest.
        values = torch.log1p(values) if self.likelihood == "poisson" else values
        if self.unit_input:
            # As long as a cell with a typical number of open peaks.
            rows = batch.counts.rows
            squares = values.new_zeros(batch.counts.shape[0])
            squares.index_add_(0, rows, values.square())
            values = values * (TYPICAL_LENGTH * squares.clamp_min(1e-12).rsqrt())[rows]
        if self.input_dropout:
            # What is left is scaled up, so that sums are what they are without hiding.
            values = F.dropout(values, self.input_dropout, self.training)
        return self.encoder(self.first(values, batch), domain)

    def nll(
        self,
        z: Tensor,
        covariates: Tensor,
        batch: BlockedBatch,
        *,
        domain: int = 0,
        positive_weight: float = 1.0,
        offset: Tensor | None = None,
    ) -> Tensor:
        """Sum over cells and peaks of −log p(x | z, covariates); see `block_nll`."""
        return block_nll(
            self.decoder(z, covariates, domain),
            self.last_weight,
            self.last_bias,
            batch,
            self.bounds,
            likelihood=self.likelihood,
            positive_weight=positive_weight,
            offset=offset,
        )

    def rates(self, z: Tensor, covariates: Tensor, domain: int = 0) -> Tensor:
        """Probability of being open, or expected count at average depth, (n_rows, n_peaks)."""
        hidden = self.decoder(z, covariates, domain)
        logits = torch.cat(
            [
                hidden[:, c] @ self.last_weight[first:last].T
                for c, (first, last) in enumerate(
                    zip(self.bounds[:-1], self.bounds[1:], strict=True)
                )
            ],
            dim=1,
        )
        logits += self.last_bias
        return logits.exp() if self.likelihood == "poisson" else torch.sigmoid(logits)


class AtacArrays:
    """The arrays of a data set on the training device.

    Parameters
    ----------
    data
        The data set.
    config
        Options.
    device
        Where the arrays go.
    """

    def __init__(self, data: AtacData, config: SailerConfig, device: torch.device) -> None:
        self.data = data
        self.device = device
        self.counts = CountMatrix(data.peaks, device)
        self.blocks = torch.from_numpy(data.blocks).to(device)
        self.n_blocks = len(data.contigs)
        self.covariates = torch.from_numpy(data.covariates(depth=config.depth_covariate)).to(device)
        self.offset: Tensor | None = None
        if config.likelihood == "poisson":
            offset = np.log(data.depth / data.depth.mean()).astype(np.float32)
            self.offset = torch.from_numpy(offset).to(device)

    def batch(self, rows: Tensor) -> BlockedBatch:
        """Gather cells; `rows` is int64 (n_rows,)."""
        return BlockedBatch.of(self.counts.batch(rows), self.blocks, self.n_blocks)


@torch.no_grad()
def encode_all(
    network: SailerNetwork, arrays: AtacArrays, *, chunk: int = 2048
) -> tuple[np.ndarray, np.ndarray]:
    """Posterior means and log variances of all cells in evaluation mode, float32 (n_cells, d)."""
    network.eval()
    sets = arrays.data.sets
    means = np.empty((arrays.data.n_cells, network.encoder.mean.out_features), np.float32)
    log_variances = np.empty_like(means)
    for domain in np.unique(sets):
        own = np.flatnonzero(sets == domain)
        for first in range(0, len(own), chunk):
            rows = own[first : first + chunk]
            batch = arrays.batch(torch.from_numpy(rows).to(arrays.device))
            mean, log_variance = network.encode(batch, int(domain))
            means[rows], log_variances[rows] = mean.cpu().numpy(), log_variance.cpu().numpy()
    return means, log_variances


@torch.no_grad()
def impute(
    network: SailerNetwork,
    arrays: AtacArrays,
    mean: np.ndarray,
    rows: np.ndarray,
    *,
    batch: int | None = None,
    domain: int | None = None,
    chunk: int = 256,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Decode posterior means as if all cells had the average depth.

    Parameters
    ----------
    network, arrays
        A trained network and its data.
    mean
        Posterior means (n_cells, latent_dim).
    rows
        Cells to decode, (n_rows,).
    batch
        Code of the batch that all cells are decoded as; None for their own.
    domain
        Set whose batch normalisation is taken; None for the cells' own.
    chunk
        Cells decoded at once.

    Yields
    ------
    tuple
        Positions in `rows`, (n,), and the probability that a peak is open, or its expected count at
        average depth, (n, n_peaks) float32 in the order of `AtacData.names`.
    """
    network.eval()
    sets = arrays.data.sets[rows]
    covariates = arrays.covariates[torch.from_numpy(rows).to(arrays.device)]
    n_depth = covariates.shape[1] - (len(arrays.data.batches) - 1)
    covariates[:, :n_depth] = 0
    if batch is not None:
        covariates[:, n_depth:] = 0
        if batch > 0:
            covariates[:, n_depth + batch - 1] = 1
    for code in np.unique(sets):
        own = np.flatnonzero(sets == code)
        for first in range(0, len(own), chunk):
            at = own[first : first + chunk]
            z = torch.from_numpy(mean[rows[at]]).to(arrays.device)
            told = covariates[torch.from_numpy(at).to(arrays.device)]
            taken = int(code) if domain is None else domain
            yield at, network.rates(z, told, taken).cpu().numpy()
