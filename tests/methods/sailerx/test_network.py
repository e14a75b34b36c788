"""The network against separate dense layers for each chromosome, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scbraid.methods.sailerx.config import SailerConfig
from scbraid.methods.sailerx.fit import make_inputs
from scbraid.methods.sailerx.network import AtacArrays, SailerNetwork, encode_all, impute
from scbraid.nn.blocked import BlockedBatch
from scbraid.nn.counts import CountMatrix

SMALL = {"latent_dim": 5, "block_hidden": 6, "block_out": 4}


def build(data, *, double=False, n_domains=1, **options):
    config = SailerConfig(**SMALL, **{"encoder_input": "plain", "input_dropout": 0.0, **options})
    atac = make_inputs(data, config, name="sailer").atac
    torch.manual_seed(0)
    arrays = AtacArrays(atac, config, torch.device("cpu"))
    network = SailerNetwork(config, atac.bounds, arrays.covariates.shape[1], n_domains)
    if double:
        network.double()
        arrays.counts = CountMatrix(atac.peaks, torch.device("cpu"), torch.float64)
        arrays.covariates = arrays.covariates.double()
    return network, arrays


class Dense(nn.Module):
    """The specification's table, chromosome by chromosome, with the weights of the other."""

    def __init__(self, network: SailerNetwork, kind: str) -> None:
        super().__init__()
        self.own, self.bounds = network, network.bounds
        self.kind = kind

    def act(self, module, x, c):
        return F.leaky_relu(x, 0.2) if self.kind == "leaky_relu" else F.prelu(x, module.slope[c])

    def norm(self, module, x, c):
        """Batch statistics of a chromosome's own units."""
        width = x.shape[1]
        whole = module.domains[0]
        part = slice(c * width, (c + 1) * width)
        return F.batch_norm(x, None, None, whole.weight[part], whole.bias[part], training=True)

    def forward(self, x, z_noise, covariates):
        own, outputs = self.own, []
        for c, (first, last) in enumerate(zip(self.bounds[:-1], self.bounds[1:], strict=True)):
            e = own.encoder
            sums = x[:, first:last] @ own.first.weight[first:last]
            h = self.act(e.activation_1, self.norm(e.norm_1, sums, c), c)
            h = self.act(e.activation_2, self.norm(e.norm_2, h @ e.linear.weight[c], c), c)
            outputs.append(h)
        joint = torch.cat(outputs, dim=1)
        mean = joint @ own.encoder.mean.weight.T + own.encoder.mean.bias
        log_variance = joint @ own.encoder.log_variance.weight.T + own.encoder.log_variance.bias
        z = mean + (log_variance / 2).exp() * z_noise
        d = own.decoder
        h = torch.cat([z, covariates], dim=1) @ d.joint.weight.T
        h = self.act(d.activation_1, self.norm(d.norm_1, h, 0), 0)
        logits = []
        pieces = h.chunk(len(self.bounds) - 1, dim=1)
        for c, (first, last) in enumerate(zip(self.bounds[:-1], self.bounds[1:], strict=True)):
            piece = pieces[c]
            u = self.act(d.activation_2, self.norm(d.norm_2, piece @ d.linear.weight[c], c), c)
            logits.append(u @ own.last_weight[first:last].T + own.last_bias[first:last])
        return mean, log_variance, z, torch.cat(logits, dim=1)


@pytest.mark.parametrize("options", [{}, {"blocks": "one", "activation": "leaky_relu"}])
def test_forward_and_gradient_are_those_of_separate_layers(toy, options):
    network, arrays = build(toy(batches=("a", "b")), double=True, **options)
    network.train()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn_like(p))
    rows = torch.tensor([5, 3, 40, 17, 2, 33, 8])
    batch = arrays.batch(rows)
    noise = torch.randn(7, 5, dtype=torch.float64)
    mean, log_variance = network.encode(batch)
    z = mean + (log_variance / 2).exp() * noise
    nll = network.nll(z, arrays.covariates[rows], batch)
    x = batch.counts.dense()
    dense = Dense(network, options.get("activation", "prelu"))
    mean_2, log_variance_2, z_2, logits = dense(x, noise, arrays.covariates[rows])
    nll_2 = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    for own, other in ((mean, mean_2), (log_variance, log_variance_2), (z, z_2), (nll, nll_2)):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9)
    parameters = list(network.parameters())
    for own, other in zip(
        torch.autograd.grad(nll, parameters), torch.autograd.grad(nll_2, parameters), strict=True
    ):
        torch.testing.assert_close(own, other, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(
        network.rates(z, arrays.covariates[rows]), torch.sigmoid(logits), rtol=1e-9, atol=1e-9
    )


def test_weights_are_as_many_as_the_specification_s(toy):
    network, arrays = build(toy())
    n_peaks, n_blocks = arrays.counts.shape[1], arrays.n_blocks
    encoder = 6 * n_peaks + n_blocks * (6 * 4 + 2 * (6 + 4) + 2) + 2 * (4 * n_blocks * 5 + 5)
    decoder = (5 + 1) * 4 * n_blocks + 2 * 4 * n_blocks + 1
    decoder += n_blocks * (4 * 6 + 2 * 6 + 1) + 6 * n_peaks + n_peaks
    assert sum(p.numel() for p in network.parameters()) == encoder + decoder


def test_chromosomes_do_not_see_each_other(toy):
    network, arrays = build(toy())
    network.eval()
    bounds = network.bounds
    batch = arrays.batch(torch.arange(20))
    sums = network.first(batch.counts.values, batch)
    with torch.no_grad():
        network.first.weight[bounds[1] : bounds[2]] += 1
    changed = network.first(batch.counts.values, batch) - sums
    assert changed[:, 1].abs().sum() > 0
    assert changed[:, [0, 2, 3]].abs().sum() == 0


def test_the_encoder_never_sees_the_covariates(toy):
    network, arrays = build(toy(batches=("a", "b")))
    network.eval()
    before, _ = encode_all(network, arrays)
    arrays.covariates += 5
    after, _ = encode_all(network, arrays)
    assert before.tobytes() == after.tobytes()


def test_start_from_the_data_gives_the_peaks_their_frequencies(toy):
    for likelihood in ("bernoulli", "poisson"):
        network, arrays = build(toy(400), likelihood=likelihood)
        network.start_from(arrays.data)
        with torch.no_grad():
            network.last_weight.zero_()
            found = network.rates(torch.randn(2, 5), torch.zeros(2, 1))[0].numpy()
        expected = np.asarray(arrays.data.peaks.mean(axis=0)).ravel()
        np.testing.assert_allclose(found, expected, atol=0.01)


def test_unit_input_is_of_one_length(toy):
    network, arrays = build(toy(), encoder_input="unit", double=True)
    plain, _ = build(toy(), double=True)
    network.eval()
    batch = arrays.batch(torch.arange(30))
    seen = []
    network.first.register_forward_hook(lambda *hook: seen.append(hook[2]))
    network.encode(batch)
    n_open = batch.counts.dense().sum(1)
    expected = plain.first(batch.counts.values, batch) * (1000 / n_open).sqrt()[:, None, None]
    torch.testing.assert_close(seen[0], expected)


def test_peaks_are_hidden_from_the_encoder_in_training_alone(toy):
    network, arrays = build(toy(), encoder_input="unit", input_dropout=0.5)
    batch = arrays.batch(torch.arange(40))
    seen = []
    network.first.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    network.encode(batch)
    network.encode(batch)
    network.eval()
    state = torch.get_rng_state()
    network.encode(batch)
    assert torch.get_rng_state().equal(state)
    hidden, again, whole = seen
    assert abs(float((hidden == 0).float().mean()) - 0.5) < 0.1
    assert not hidden.equal(again)
    assert (whole > 0).all()
    # What is left counts twice, so that sums stay what they are on average.
    torch.testing.assert_close(hidden[hidden > 0], 2 * whole[hidden > 0])
    # The decoder is asked for all peaks.
    assert (batch.counts.values == 1).all()


def test_without_hiding_nothing_is_drawn(toy):
    network, arrays = build(toy())
    state = torch.get_rng_state()
    network.encode(arrays.batch(torch.arange(40)))
    assert torch.get_rng_state().equal(state)


def test_domains_have_statistics_of_their_own(toy):
    network, arrays = build(toy(), n_domains=2)
    network.train()
    norms = network.encoder.norm_1.domains
    before = norms[0].running_mean.clone()
    network.encode(arrays.batch(torch.arange(20)), 1)
    assert torch.equal(norms[0].running_mean, before)
    assert not torch.equal(norms[1].running_mean, before)
    shared, arrays = build(toy(), n_domains=1)
    shared.train()
    shared.encode(arrays.batch(torch.arange(20)), 1)
    assert not torch.equal(shared.encoder.norm_1.domains[0].running_mean, before)


def test_embedding_in_chunks_is_that_at_once(toy):
    network, arrays = build(toy(n_alone=20), n_domains=2)
    network.train()
    network.encode(arrays.batch(torch.arange(40)), 0)
    network.encode(arrays.batch(torch.arange(40, 60)), 1)
    whole, _ = encode_all(network, arrays)
    parts, _ = encode_all(network, arrays, chunk=7)
    np.testing.assert_allclose(whole, parts, atol=1e-6)
    with torch.no_grad():
        alone, _ = network.encode(arrays.batch(torch.arange(40, 60)), 1)
    np.testing.assert_allclose(whole[40:], alone.numpy(), atol=1e-6)


def gather(parts, shape):
    found = np.full(shape, np.nan, np.float32)
    for rows, values in parts:
        found[rows] = values
    return found


def test_imputation_decodes_the_mean_at_average_depth(toy):
    network, arrays = build(toy(n_alone=20, batches=("a", "b", "c")))
    network.train()
    network.encode(arrays.batch(torch.arange(60)))
    mean, _ = encode_all(network, arrays)
    shape = arrays.counts.shape
    found = gather(impute(network, arrays, mean, np.arange(60), chunk=7), shape)
    batch = np.arange(60) % 3
    for fixed in (None, 0, 2):
        found = gather(impute(network, arrays, mean, np.arange(60), batch=fixed, chunk=7), shape)
        codes = batch if fixed is None else np.full(60, fixed)
        covariates = np.zeros((60, 3), np.float32)
        covariates[np.arange(60), codes] = 1
        covariates[:, 0] = 0
        with torch.no_grad():
            expected = network.rates(torch.from_numpy(mean), torch.from_numpy(covariates))
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)
    assert ((found > 0) & (found < 1)).all()
    torch.testing.assert_close(
        arrays.covariates, torch.from_numpy(arrays.data.covariates(depth=True))
    )


def test_float32_stays_close_to_float64(toy):
    network, arrays = build(toy())
    network.train()
    rows = torch.arange(30)
    mean, _ = network.encode(arrays.batch(rows))
    double = CountMatrix(arrays.data.peaks, torch.device("cpu"), torch.float64).batch(rows)
    reference = network.double().encode(BlockedBatch.of(double, arrays.blocks, arrays.n_blocks))[0]
    torch.testing.assert_close(mean.double(), reference, rtol=1e-3, atol=1e-4)
