from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from scbraid.nn import compiled, hidden, kernels
from scbraid.nn.blocks import mlp
from scbraid.nn.hidden import HiddenLayers


def layers(*, batch_norm: bool, depth: int = 2, dropout: float = 0.2, width: int = 19):
    torch.manual_seed(0)
    made, _ = mlp(7, width, depth, dropout, batch_norm=batch_norm)
    rng = np.random.default_rng(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.tensor(rng.normal(size=parameter.shape) * 0.5))
    return made


def outcome(made: HiddenLayers, n_rows: int = 33, dtype: torch.dtype = torch.float32):
    """Output, all gradients and the running statistics of one training pass from one seed."""
    torch.manual_seed(4)
    rng = np.random.default_rng(2)
    x = torch.tensor(rng.normal(size=(n_rows, 7)), dtype=dtype).requires_grad_()
    torch.manual_seed(4)
    out = made(x)
    upstream = torch.tensor(rng.normal(size=out.shape), dtype=dtype)
    (out * upstream).sum().backward()
    found = {"output": out.detach(), "input": x.grad}
    found |= {name: p.grad for name, p in made.named_parameters()}
    return found | dict(made.named_buffers())


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize(("depth", "dropout"), [(1, 0.0), (2, 0.2), (3, 0.5)])
def test_output_and_gradients_equal_the_modules_in_float64(batch_norm, depth, dropout):
    made = layers(batch_norm=batch_norm, depth=depth, dropout=dropout)
    # The masks are functions of the seed in every precision.
    expected = outcome(copy.deepcopy(made).double(), dtype=torch.float64)
    found = outcome(made)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = float(value.abs().max()) if value.numel() else 0.0
        torch.testing.assert_close(
            found[name].double(), value.double(), rtol=2e-5, atol=2e-6 * scale, msg=name
        )


def test_the_loops_are_what_ran(monkeypatch):
    made = layers(batch_norm=True)
    monkeypatch.setattr(nn.Sequential, "forward", None)
    outcome(made)


@pytest.mark.parametrize("batch_norm", [True, False])
def test_two_rows_are_enough_and_one_is_refused_by_batch_normalisation(batch_norm):
    made = layers(batch_norm=batch_norm)
    expected = outcome(copy.deepcopy(made).double(), 2, torch.float64)
    torch.testing.assert_close(
        outcome(made, 2)["output"].double(), expected["output"], rtol=1e-3, atol=1e-4
    )
    if batch_norm:
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            made(torch.ones(1, 7))
    else:
        assert made(torch.ones(1, 7)).shape == (1, 19)


def test_evaluation_uses_running_statistics_and_changes_nothing():
    made = layers(batch_norm=True)
    outcome(made)
    made.eval()
    before = {name: buffer.clone() for name, buffer in made.named_buffers()}
    x = torch.randn(5, 7)
    torch.testing.assert_close(made(x), nn.Sequential.forward(made, x))
    assert torch.equal(made(x)[:2], made(x[:2]))
    for name, buffer in made.named_buffers():
        assert torch.equal(buffer, before[name])


def test_without_gradients_the_same_comes_out_and_statistics_move():
    made = layers(batch_norm=True)
    other = copy.deepcopy(made)
    expected = outcome(made)
    torch.manual_seed(4)
    with torch.no_grad():
        x = torch.tensor(np.random.default_rng(2).normal(size=(33, 7)), dtype=torch.float32)
        assert torch.equal(other(x), expected["output"])
    for name, buffer in other.named_buffers():
        assert torch.equal(buffer, expected[name])


@pytest.mark.parametrize("frozen", [True, False])
def test_gradients_that_nobody_needs_are_left_out(frozen):
    made = layers(batch_norm=False)
    made.requires_grad_(not frozen)
    x = torch.ones(9, 7, requires_grad=frozen)
    made(x).sum().backward()
    assert (x.grad is not None) == frozen
    assert all((p.grad is None) == frozen for p in made.parameters())


def test_nan_reaches_the_output():
    for batch_norm in (True, False):
        made = layers(batch_norm=batch_norm, dropout=0.0)
        x = torch.ones(8, 7)
        x[3, 2] = math.nan
        assert torch.isnan(made(x)[3]).all()


def test_mixed_precision_is_left_to_the_modules():
    made = layers(batch_norm=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert made(torch.ones(4, 7)).dtype == torch.bfloat16


def test_other_precisions_run_the_modules(monkeypatch):
    made = layers(batch_norm=True).double()
    monkeypatch.setattr(compiled, "leaky_normalised", None)
    assert made(torch.ones(4, 7, dtype=torch.float64)).dtype == torch.float64


def test_an_environment_without_numba_runs_the_modules(monkeypatch):
    made = layers(batch_norm=True)
    expected = outcome(copy.deepcopy(made))
    monkeypatch.setattr(kernels, "_compiled", lambda: None)
    monkeypatch.setattr(hidden, "_CompiledHidden", None)
    found = outcome(layers(batch_norm=True, dropout=0.0))
    assert found["output"].shape == expected["output"].shape


@pytest.mark.parametrize(("n_rows", "spread"), [(1, 1.0), (33, 1.0), (20, 60.0)])
def test_gaussian_heads_and_their_gradients_equal_float64(n_rows, spread):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(n_rows, 7))
    upstream = rng.normal(size=(2, n_rows, 4))
    torch.manual_seed(0)
    heads = nn.ModuleList([nn.Linear(7, 4), nn.Linear(7, 4)])
    with torch.no_grad():
        heads[1].weight *= spread
    found = []
    for dtype in (torch.float32, torch.float64):
        made = copy.deepcopy(heads).to(dtype)
        h = torch.tensor(x, dtype=dtype).requires_grad_()
        mean, std = hidden.gaussian_heads(h, *made)
        assert (type(mean.grad_fn).__name__ == "_CompiledHeadsBackward") is (dtype == torch.float32)
        (torch.stack([mean, std]) * torch.tensor(upstream, dtype=dtype)).sum().backward()
        found.append([mean, std, h.grad, *(p.grad for p in made.parameters())])
    for single, double in zip(*found, strict=True):
        scale = float(double.detach().abs().max())
        torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=2e-6 * scale)
