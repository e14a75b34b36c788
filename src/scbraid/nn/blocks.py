"""Encoders and discriminator of adversarially aligned variational autoencoders."""

from __future__ import annotations

from torch import Tensor, nn

from scbraid.nn.hidden import HiddenLayers, gaussian_heads
from scbraid.nn.random import Dropout

LEAKY_SLOPE = 0.2


def mlp(
    in_dim: int, hidden_dim: int, depth: int, dropout: float, *, batch_norm: bool
) -> tuple[HiddenLayers, int]:
    """`depth` times Linear, LeakyReLU(0.2), optional BatchNorm, Dropout; and the output width."""
    layers: list[nn.Module] = []
    width = in_dim
    for _ in range(depth):
        layers += [nn.Linear(width, hidden_dim), nn.LeakyReLU(LEAKY_SLOPE)]
        if batch_norm:
            layers.append(nn.BatchNorm1d(hidden_dim))
        layers.append(Dropout(dropout))
        width = hidden_dim
    return HiddenLayers(*layers), width


class GaussianEncoder(nn.Module):
    """q(u | x) = N(mean, std²), diagonal; `depth` 0 makes both heads linear in the input."""

    def __init__(
        self, in_dim: int, latent_dim: int, *, hidden_dim: int, depth: int, dropout: float
    ) -> None:
        super().__init__()
        self.body, width = mlp(in_dim, hidden_dim, depth, dropout, batch_norm=True)
        self.mean = nn.Linear(width, latent_dim)
        self.std = nn.Linear(width, latent_dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (n, in_dim) to mean and standard deviation, each (n, latent_dim)."""
        return gaussian_heads(self.body(x), self.mean, self.std)


class Discriminator(nn.Module):
    """Which layer does this embedding come from? No batch normalisation, unlike the encoders."""

    def __init__(
        self, in_dim: int, n_classes: int, *, hidden_dim: int, depth: int, dropout: float
    ) -> None:
        super().__init__()
        self.body, width = mlp(in_dim, hidden_dim, depth, dropout, batch_norm=False)
        self.head = nn.Linear(width, n_classes)

    def forward(self, u: Tensor) -> Tensor:
        """Map (n, in_dim) to logits (n, n_classes)."""
        return self.head(self.body(u))


def gaussian_kl(mean: Tensor, std: Tensor) -> Tensor:
    """KL(N(mean, std²) ‖ N(0, I)) summed over the last dimension."""
    return 0.5 * (mean.square() + std.square() - 1).sum(-1) - std.log().sum(-1)
