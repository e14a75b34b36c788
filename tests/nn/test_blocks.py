from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from scbraid.nn.blocks import Discriminator, GaussianEncoder, gaussian_kl


def kinds(module: nn.Module) -> list[str]:
    return [type(layer).__name__ for layer in module.body]


def test_encoder_activates_before_it_normalises():
    encoder = GaussianEncoder(7, 3, hidden_dim=5, depth=2, dropout=0.2)
    assert kinds(encoder) == ["Linear", "LeakyReLU", "BatchNorm1d", "Dropout"] * 2
    assert [layer.negative_slope for layer in encoder.body if isinstance(layer, nn.LeakyReLU)] == [
        0.2,
        0.2,
    ]
    assert [layer.p for layer in encoder.body if isinstance(layer, nn.Dropout)] == [0.2, 0.2]
    assert encoder.body[0].weight.shape == (5, 7)
    assert encoder.body[4].weight.shape == (5, 5)


def test_discriminator_has_no_batch_normalisation():
    discriminator = Discriminator(7, 3, hidden_dim=5, depth=2, dropout=0.1)
    assert kinds(discriminator) == ["Linear", "LeakyReLU", "Dropout"] * 2
    assert not any(isinstance(m, nn.BatchNorm1d) for m in discriminator.modules())
    assert discriminator(torch.zeros(4, 7)).shape == (4, 3)


def test_encoder_equals_its_equation_in_double_precision():
    encoder = GaussianEncoder(4, 2, hidden_dim=3, depth=1, dropout=0.5).double()
    norm = encoder.body[2]
    with torch.no_grad():
        norm.running_mean.copy_(torch.tensor([0.1, -0.2, 0.3]))
        norm.running_var.copy_(torch.tensor([0.5, 1.5, 2.0]))
    encoder.eval()
    x = np.random.default_rng(0).normal(size=(6, 4))
    linear, mean, std = encoder.body[0], encoder.mean, encoder.std

    def apply(layer: nn.Linear, values: np.ndarray) -> np.ndarray:
        return values @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()

    hidden = apply(linear, x)
    hidden = np.where(hidden > 0, hidden, 0.2 * hidden)
    hidden = (hidden - norm.running_mean.numpy()) / np.sqrt(norm.running_var.numpy() + norm.eps)
    found_mean, found_std = encoder(torch.tensor(x))
    np.testing.assert_allclose(found_mean.detach(), apply(mean, hidden), atol=1e-12)
    np.testing.assert_allclose(
        found_std.detach(), np.log1p(np.exp(apply(std, hidden))) + 1e-7, atol=1e-12
    )


def test_depth_zero_is_a_linear_encoder():
    encoder = GaussianEncoder(4, 2, hidden_dim=9, depth=0, dropout=0.2)
    x = torch.randn(5, 4)
    mean, _ = encoder(x)
    torch.testing.assert_close(mean, x @ encoder.mean.weight.T + encoder.mean.bias)
    assert len(encoder.body) == 0


def test_standard_deviation_is_never_zero():
    encoder = GaussianEncoder(4, 2, hidden_dim=9, depth=0, dropout=0.2)
    with torch.no_grad():
        encoder.std.bias.fill_(-200.0)
        encoder.std.weight.zero_()
    assert (encoder(torch.randn(5, 4))[1] == 1e-7).all()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 20.0])
def test_gaussian_kl_equals_torch_distributions(scale):
    generator = torch.manual_seed(0)
    mean = torch.randn(4, 3, 5, dtype=torch.float64, generator=generator)
    std = torch.rand(4, 3, 5, dtype=torch.float64, generator=generator) * scale + 1e-6
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, std),
        torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(std)),
    ).sum(-1)
    torch.testing.assert_close(gaussian_kl(mean, std), expected)


def test_gaussian_kl_of_the_prior_is_zero():
    assert float(gaussian_kl(torch.zeros(1, 8), torch.ones(1, 8))) == 0.0
