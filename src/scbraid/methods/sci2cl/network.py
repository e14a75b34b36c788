"""The modules of scI2CL: autoencoders, views, cross-omics attention, fusion, matching."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import cast

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scbraid.methods.sci2cl.config import Sci2clConfig
from scbraid.methods.sci2cl.inputs import Sci2clInputs, Sci2clLayer
from scbraid.nn.cell_attention import CrossAttention, ViewAttention, masked_views
from scbraid.nn.cell_contrast import cosine_scores
from scbraid.nn.counts import CountBatch, CountMatrix
from scbraid.nn.zinb import original_zinb_nll, softmax_zinb_nll

# Logit of the probability of an extra zero at the start of a training.
_ZERO_LOGIT_START = -2.0
_TEMPERATURES = (0.01, 1.0)


class LayerData:
    """A layer's arrays on the training device."""

    def __init__(self, layer: Sci2clLayer, device: torch.device) -> None:
        self.name = layer.name
        self.noise = layer.noise
        self.counts = CountMatrix(layer.counts, device)
        self.rep = _tensor(layer.rep, device)
        self.mean = _tensor(layer.mean, device)
        self.deviation = _tensor(layer.deviation, device)
        logs = torch.from_numpy(np.asarray(layer.counts.log1p().sum(1)).ravel()).float()
        # The original's size factor: the logarithm of a sum of logarithms.
        self.size_factor = (logs.clamp_min(1.0) + 1e-8).log().to(device)

    @property
    def input_dim(self) -> int:
        """Width of the encoder input."""
        return self.counts.shape[1] if self.rep is None else self.rep.shape[1]

    def batch(self, cells: Tensor) -> LayerBatch:
        """Gather some cells."""
        observed = self.counts.batch(cells)
        if self.rep is not None:
            encoded = self.rep[cells]
        else:
            assert self.mean is not None
            assert self.deviation is not None
            encoded = (observed.dense().log1p() - self.mean) / self.deviation
        return LayerBatch(self.name, encoded, observed, self.size_factor[cells])


@dataclasses.dataclass(frozen=True)
class LayerBatch:
    """A layer's part of some cells: encoder input (n, k), counts, size factors (n,)."""

    name: str
    encoded: Tensor
    observed: CountBatch
    size_factor: Tensor


def _tensor(values: np.ndarray | None, device: torch.device) -> Tensor | None:
    return None if values is None else torch.from_numpy(values).to(device)


def _block(width_in: int, width: int, config: Sci2clConfig) -> list[nn.Module]:
    if config.networks == "plain":
        return [nn.Linear(width_in, width), nn.ReLU()]
    return [
        nn.Linear(width_in, width),
        nn.LayerNorm(width),
        nn.GELU(),
        nn.Dropout(config.dropout),
    ]


def _stack(widths: list[int], config: Sci2clConfig) -> list[nn.Module]:
    return [module for a, b in itertools.pairwise(widths) for module in _block(a, b, config)]


class SoftmaxDecoder(nn.Module):
    """ZINB with mean l·softmax(·), a probability of extra zeros an entry, a dispersion a feature.

    Biases start at the features' log frequencies: from zero they have to walk there.
    """

    def __init__(self, dim: int, layer: Sci2clLayer, config: Sci2clConfig) -> None:
        super().__init__()
        widths = [dim, *reversed(config.widths)]
        self.body = nn.Sequential(*_stack(widths, config))
        n_features = layer.counts.shape[1]
        self.mean = nn.Linear(widths[-1], n_features)
        self.zero = nn.Linear(widths[-1], n_features)
        self.log_theta = nn.Parameter(torch.zeros(n_features))
        with torch.no_grad():
            self.mean.bias.copy_(torch.from_numpy(_log_frequencies(layer.counts)))
            self.zero.bias.fill_(_ZERO_LOGIT_START)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Map (n, dim) to logits of shares and of extra zeros, each (n, n_features)."""
        hidden = self.body(z)
        return self.mean(hidden), self.zero(hidden)

    def nll(self, z: Tensor, batch: LayerBatch, *, scaled: bool) -> Tensor:
        """Mean −log ZINB of the counts over cells and features; `scaled` is always False here."""
        assert not scaled
        logits, zero_logit = self(z)
        return softmax_zinb_nll(logits, zero_logit, self.log_theta, batch.observed)


def _log_frequencies(counts: sp.csr_matrix) -> np.ndarray:
    sums = np.asarray(counts.sum(0, dtype=np.float64)).ravel() + 0.5
    return np.log(sums / sums.sum()).astype(np.float32)


class OriginalDecoder(nn.Module):
    """The source's decoder: ReLU up to the features, then three full linear heads on them.

    π = σ(σ(·)), which lies between 0.5 and 0.73; θ = clip(·, 1e-4, 1e4); mean
    clip(exp(·), 1e-5, 1e6) times the size factor.
    """

    def __init__(self, dim: int, layer: Sci2clLayer, config: Sci2clConfig) -> None:
        super().__init__()
        n_features = layer.counts.shape[1]
        widths = [dim, *reversed(config.widths), n_features]
        self.body = nn.Sequential(*_stack(widths, config))
        self.zero = nn.Linear(n_features, n_features)
        self.theta = nn.Linear(n_features, n_features)
        self.mean = nn.Linear(n_features, n_features)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map (n, dim) to mean (without size factor), θ and π, each (n, n_features)."""
        hidden = self.body(z)
        mean = self.mean(hidden).exp().clamp(1e-5, 1e6)
        theta = self.theta(hidden).clamp(1e-4, 1e4)
        return mean, theta, self.zero(hidden).sigmoid().sigmoid()

    def nll(self, z: Tensor, batch: LayerBatch, *, scaled: bool) -> Tensor:
        """Mean over entries of the original's loss, against counts or the scaled matrix."""
        mean, theta, pi = self(z)
        target = batch.encoded if scaled else batch.observed.dense()
        return original_zinb_nll(mean * batch.size_factor[:, None], theta, pi, target)


class ResidualEncoder(nn.Module):
    """A linear map plus a network that starts at zero.

    On PCA or LSI the linear map starts at the leading components: the training begins at the
    layer's own space and changes it where that pays.
    """

    def __init__(self, input_dim: int, config: Sci2clConfig) -> None:
        super().__init__()
        dim = config.latent_dim
        self.hide = nn.Dropout(config.input_dropout)
        self.linear = nn.Linear(input_dim, dim)
        self.body = nn.Sequential(*_stack([input_dim, *config.widths], config))
        self.last = nn.Linear(config.widths[-1], dim)
        with torch.no_grad():
            self.last.weight.zero_()
            self.last.bias.zero_()
            if config.use_rep:
                self.linear.weight.copy_(torch.eye(dim, input_dim))
                self.linear.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., input_dim) to (..., latent_dim)."""
        x = self.hide(x)
        return self.linear(x) + self.last(self.body(x))


def _plain_encoder(input_dim: int, config: Sci2clConfig) -> nn.Module:
    return nn.Sequential(*_stack([input_dim, *config.widths, config.latent_dim], config))


class Autoencoder(nn.Module):
    """Encoder, decoder and attention over views of one layer."""

    def __init__(self, layer: Sci2clLayer, input_dim: int, config: Sci2clConfig) -> None:
        super().__init__()
        dim = config.latent_dim
        encoder = _plain_encoder if config.networks == "plain" else ResidualEncoder
        self.encoder = encoder(input_dim, config)
        self.decoder: SoftmaxDecoder | OriginalDecoder = (
            SoftmaxDecoder(dim, layer, config)
            if config.decoder == "softmax"
            else OriginalDecoder(dim, layer, config)
        )
        self.views = ViewAttention(dim, config.view_heads)

    def view_distance(self, batch: LayerBatch, z: Tensor, config: Sci2clConfig) -> Tensor:
        """Mean square of ẑ − z, ẑ from T masked views (L_MSE)."""
        views = masked_views(
            batch.encoded, config.n_views, config.mask_rate, shared=config.shared_masks
        )
        seen = self.views(self.encoder(views))
        return F.mse_loss(seen, z if config.view_gradient == "both" else z.detach())


class Sci2clNetwork(nn.Module):
    """All of scI2CL.

    Parameters
    ----------
    inputs
        Both layers.
    input_dims
        Widths of their encoder inputs.
    config
        Options.
    """

    def __init__(
        self, inputs: Sci2clInputs, input_dims: tuple[int, int], config: Sci2clConfig
    ) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(
            [
                Autoencoder(layer, width, config)
                for layer, width in zip(inputs.layers, input_dims, strict=True)
            ]
        )
        dim = config.latent_dim
        n_anchors = min(config.n_anchors, max(inputs.n_cells // 3, 2))
        self.cross = CrossAttention(
            dim, config.attention, n_anchors, projections=config.projections
        )
        self.heads: nn.ModuleList | None = None
        if config.heads:
            self.heads = nn.ModuleList([nn.Linear(dim, dim, bias=False) for _ in range(2)])
        width = 2 * dim if self.heads is None else 3 * dim
        self.fuse = nn.Sequential(nn.Linear(width, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU())
        self.match = nn.Linear(dim, 2)
        self.log_scale = nn.Parameter(
            torch.tensor(-math.log(config.temperature)), requires_grad=config.learn_temperature
        )

    @property
    def autoencoders(self) -> tuple[Autoencoder, Autoencoder]:
        """Those of the anchor and of the other layer."""
        first, second = self.layers
        return cast("Autoencoder", first), cast("Autoencoder", second)

    @property
    def scale(self) -> Tensor:
        """1/τ."""
        if not self.config.learn_temperature:
            return self.log_scale.exp()
        low, high = _TEMPERATURES
        return self.log_scale.clamp(-math.log(high), -math.log(low)).exp()

    def encode(self, batches: tuple[LayerBatch, LayerBatch]) -> tuple[Tensor, Tensor]:
        """Embeddings of both layers by themselves, each (n, latent_dim)."""
        first, second = self.autoencoders
        return first.encoder(batches[0].encoded), second.encoder(batches[1].encoded)

    def scores(self, first: Tensor, second: Tensor) -> Tensor:
        """Cosines of all pairs over temperature, (n, n)."""
        return cosine_scores(*self._compared(first, second)) * self.scale

    def fused(self, first: Tensor, second: Tensor) -> Tensor:
        """φ([Z_r; Z_a]), with heads φ([u; v; u ⊙ v]) of their outputs, (n, latent_dim)."""
        u, v = self._compared(first, second)
        # Whether two cells match is a question about products, which φ would have to build up.
        parts = [u, v] if self.heads is None else [u, v, u * v]
        return self.fuse(torch.cat(parts, 1))

    def _compared(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        if self.heads is None:
            return first, second
        return self.heads[0](first), self.heads[1](second)

    def embed(self, batches: tuple[LayerBatch, LayerBatch]) -> tuple[Tensor, ...]:
        """Parts of the embedding of the cells: one of each layer, or φ alone; each (n, dim)."""
        z = self.encode(batches)
        if self.config.embedding == "encoded":
            return z
        if self.config.embedding == "attended":
            return self.cross.mix(*z)
        return (self.fused(*self.cross(*z)),)


@torch.no_grad()
def embed_cells(
    network: Sci2clNetwork, layers: tuple[LayerData, LayerData], batch_size: int
) -> np.ndarray:
    """Embed all cells in their order, in minibatches.

    Parts of several layers stand side by side, each centred and divided by one number: the noise of
    its encoder input (``layer_scale='noise'``), or its root mean square norm. With attention over
    the minibatch its size and order matter to what comes behind it; otherwise they do not.

    Returns
    -------
    numpy.ndarray
        float32 (n_cells, 2·latent_dim), or (n_cells, latent_dim) for the fused embedding.
    """
    network.eval()
    cells = torch.arange(layers[0].counts.shape[0], device=network.log_scale.device)
    found = [
        network.embed((layers[0].batch(some), layers[1].batch(some)))
        for some in cells.split(batch_size)
    ]
    parts = [torch.cat(part).cpu().double() for part in zip(*found, strict=True)]
    if len(parts) > 1:
        parts = [part - part.mean(0) for part in parts]
        scales = [float(part.square().sum(1).mean().sqrt()) for part in parts]
        if network.config.layer_scale == "noise":
            scales = [
                s if la.noise is None else la.noise for s, la in zip(scales, layers, strict=True)
            ]
        parts = [part / max(scale, 1e-12) for part, scale in zip(parts, scales, strict=True)]
    return torch.cat(parts, 1).float().numpy()


@torch.no_grad()
def start_anchors(network: Sci2clNetwork, layers: tuple[LayerData, LayerData], seed: int) -> None:
    """Set the anchors to the centres of a k-means of both layers' embeddings together."""
    from scipy.cluster.vq import kmeans2

    anchors = network.cross.anchors
    if anchors is None:
        return
    network.eval()
    parts = [
        torch.stack(network.encode((layers[0].batch(cells), layers[1].batch(cells))))
        for cells in torch.arange(layers[0].counts.shape[0], device=anchors.device).split(512)
    ]
    z = torch.cat(parts, 1).cpu().double().numpy()
    # Both layers weigh the same in the choice of clusters; anchors keep the layers' own scale.
    spread = z.std((1, 2), keepdims=True)
    joint = np.concatenate(list((z - z.mean(1, keepdims=True)) / np.maximum(spread, 1e-12)), 1)
    n_anchors = anchors.shape[1]
    _, labels = kmeans2(joint, n_anchors, iter=20, minit="++", rng=np.random.default_rng(seed))
    # A cluster that lost its cells becomes one cell of its own.
    members = [np.flatnonzero(labels == k) for k in range(n_anchors)]
    centres = [z[:, rows if len(rows) else [k]].mean(1) for k, rows in enumerate(members)]
    anchors.copy_(torch.from_numpy(np.stack(centres, 1)).to(anchors))
