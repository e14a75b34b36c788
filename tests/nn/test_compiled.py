"""Compiled loops against float64 formulas, and against the operations of torch they stand for."""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.special
import scipy.stats
import torch
from torch import nn

from scbraid.nn import compiled, gaussian, graph, kernels, negative_binomial, random, rmsprop
from scbraid.nn.counts import CountMatrix
from scbraid.nn.graph import EdgeBatch, GraphEncoder, SignedGraph, edge_nll
from scbraid.nn.negative_binomial import softmax_negative_binomial_nll
from scbraid.nn.random import Dropout, standard_normal_like
from scbraid.nn.rmsprop import RMSprop
from scbraid.train import devices
from scbraid.train.devices import describe_kernels

CPU = torch.device("cpu")
NAMES = ("u", "weight", "bias", "log_theta", "scale")


@pytest.fixture
def without_compiled(monkeypatch):
    """Call it to have torch do everything from then on."""
    return lambda: monkeypatch.setattr(kernels, "_compiled", lambda: None)


# -- functions of one number ---------------------------------------------------------------


@compiled.njit
def exp_negative(x, out):
    for i in range(x.size):
        out[i] = compiled.exp_negative(x[i])


@compiled.njit
def log1p_positive(x, out):
    for i in range(x.size):
        out[i] = compiled.log1p_positive(x[i])


@compiled.njit
def log1p_unit(x, out):
    for i in range(x.size):
        out[i] = compiled.log1p_unit(x[i])


@pytest.mark.parametrize(
    ("loop", "reference", "x"),
    [
        (exp_negative, np.exp, -np.geomspace(1e-9, 86.9, 5001)),
        (log1p_positive, np.log1p, np.geomspace(1e-30, 1e37, 5001)),
        (log1p_unit, np.log1p, np.geomspace(1e-30, 1, 5001)),
    ],
)
def test_polynomials_are_accurate_over_their_range(loop, reference, x):
    x = x.astype(np.float32)
    out = np.empty_like(x)
    loop(x, out)
    np.testing.assert_allclose(out, reference(x.astype(np.float64)), rtol=4e-7)
    # The fastest way to lose a NaN is a polynomial on bits.
    wrong = np.full(33, np.nan, np.float32)
    loop(wrong, out[:33])
    assert np.isnan(out[:33]).all()


def test_exponentials_below_the_range_are_next_to_nothing():
    out = np.empty(3, np.float32)
    exp_negative(np.array([-87.5, -1e30, -np.inf], np.float32), out)
    assert ((out >= 0) & (out < 2e-38)).all()


def test_digamma_and_the_ratio_of_gammas():
    for t in (1e-6, 0.3, 7.99, 8.0, 123.4, 1e5, 1.1e5, 1e12):
        assert compiled.digamma(t) == pytest.approx(scipy.special.digamma(t), rel=1e-12)
        for s in (0.5, 2.5, 13.0, 4000.0):
            # Through the beta function, whose logarithm scipy computes without cancellation.
            exact = scipy.special.gammaln(s) - scipy.special.betaln(t, s)
            assert compiled._log_gamma_ratio(t, s) == pytest.approx(exact, rel=1e-9, abs=1e-9)


# -- negative binomial ---------------------------------------------------------------------


def problem(n_cells: int, n_features: int, log_theta: float | None = None, seed: int = 0):
    """Arguments by name and counts: many ones, one huge, a broken one, a cell without any."""
    rng = np.random.default_rng(seed)
    arrays = {
        "u": rng.normal(size=(n_cells, 5)),
        "weight": rng.normal(size=(n_features, 5)),
        "bias": 2 * rng.normal(size=n_features),
        "log_theta": rng.normal(size=n_features) * 2,
        "scale": rng.uniform(0.1, 2.0, n_features),
    }
    if log_theta is not None:
        arrays["log_theta"] = np.full(n_features, log_theta)
    x = rng.poisson(rng.gamma(0.2, 4.0, size=(n_cells, n_features))).astype(float)
    if n_cells > 2:
        x[0, :3] = 12, 13, 50_000
        x[1, 1] = 2.5
        x[2] = 0
    return arrays, x


def nll(arrays, x, dtype, factor: float = 0.7):
    """Value and gradients by name."""
    leaves = {k: torch.tensor(a, dtype=dtype, requires_grad=True) for k, a in arrays.items()}
    counts = CountMatrix(sp.csr_matrix(x), CPU, dtype).batch(torch.arange(len(x)))
    loss = softmax_negative_binomial_nll(
        *(leaves[k] for k in NAMES[:4]), counts, scale=leaves["scale"]
    )
    (factor * loss).backward()
    return float(loss.detach()), {k: leaf.grad.double().numpy() for k, leaf in leaves.items()}


def close(found, expected, tolerance: float = 3e-6) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    for name, exact in expected[1].items():
        scale = np.abs(exact).max()
        np.testing.assert_allclose(
            found[1][name], exact, rtol=0, atol=tolerance * scale, err_msg=name
        )


@pytest.mark.parametrize("n_cells", [1, 7, 8, 64, 131])
@pytest.mark.parametrize("entries", [1, 300, 1 << 17])
def test_likelihood_and_gradients_equal_double_precision(monkeypatch, n_cells, entries):
    monkeypatch.setattr(negative_binomial, "_BLOCK_ENTRIES_COMPILED", entries)
    arrays, x = problem(n_cells, 37)
    close(nll(arrays, x, torch.float32), nll(arrays, x, torch.float64))


@pytest.mark.parametrize("log_theta", [-25.0, -12.0, -4.0, 4.0, 9.0, 12.0])
def test_any_dispersion(log_theta):
    arrays, x = problem(40, 30, log_theta)
    found, expected = nll(arrays, x, torch.float32), nll(arrays, x, torch.float64)
    # Where θ is large the slope in it is a difference of nearly equal numbers, and is no matter.
    del found[1]["log_theta"], expected[1]["log_theta"]
    close(found, expected)


def test_extreme_logits_and_dispersions_stay_finite():
    for log_theta in (-30.0, 0.0, 30.0):
        arrays, x = problem(16, 20, log_theta)
        arrays["u"] *= 30
        value, gradients = nll(arrays, x, torch.float32)
        assert math.isfinite(value)
        assert all(np.isfinite(gradient).all() for gradient in gradients.values())


def test_scale_of_zero_has_no_gradient_of_its_own():
    arrays, x = problem(9, 12)
    arrays["scale"][3] = 0
    _, gradients = nll(arrays, x, torch.float32)
    assert gradients["scale"][3] == 0
    assert not gradients["weight"][3].any()


def test_no_cells_and_no_counts():
    arrays, x = problem(6, 10)
    value, gradients = nll(arrays, np.zeros_like(x), torch.float32)
    assert value == pytest.approx(x.size * 1e-7, rel=1e-3)
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    arrays["u"] = arrays["u"][:0]
    value, gradients = nll(arrays, x[:0], torch.float32)
    assert value == 0
    assert not any(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_nan_anywhere_reaches_the_loss(name):
    arrays, x = problem(20, 30)
    arrays[name].flat[7] = np.nan
    assert math.isnan(nll(arrays, x, torch.float32)[0])


def test_a_nan_among_the_counts_reaches_the_loss():
    arrays, x = problem(20, 30)
    x[5, 5] = np.nan
    assert math.isnan(nll(arrays, x, torch.float32)[0])


def test_order_of_the_entries_within_a_row_is_no_matter():
    arrays, x = problem(20, 30)
    leaves = [torch.tensor(arrays[k], dtype=torch.float32) for k in NAMES[:4]]
    matrix = CountMatrix(sp.csr_matrix(x), CPU)
    straight = matrix.batch(torch.arange(20))
    flipped = matrix.batch(torch.arange(20))
    for part in ("rows", "columns", "values"):
        object.__setattr__(flipped, part, getattr(straight, part).flip(0))
    first, second = (float(softmax_negative_binomial_nll(*leaves, c)) for c in (straight, flipped))
    assert first == pytest.approx(second, rel=1e-7)


# -- the machine code ------------------------------------------------------------------------


def digest() -> str:
    """Digest of a likelihood and of drawn vertices with all their gradients."""
    arrays, x = problem(70, 300)
    value, gradients = nll(arrays, x, torch.float32)
    made = encoder(600)
    tensors = sampled(made, np.uint64(3))
    whole = hashlib.sha256(np.float64(value).tobytes())
    for array in [*gradients.values(), *(tensor.numpy() for tensor in tensors)]:
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()


def test_just_compiled_and_from_disk_are_the_same_to_the_bit(tmp_path):
    command = [sys.executable, "-c", "import test_compiled; print(test_compiled.digest())"]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": path}
    found = [
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert any(tmp_path.rglob("*.nbc"))
    assert found[0] == found[1]
    assert len(found[0].strip()) == 64


# -- graph ---------------------------------------------------------------------------------


def encoder(n_vertices: int = 2500, seed: int = 0) -> GraphEncoder:
    """More than two blocks of vertices, every parameter off its start."""
    rng = np.random.default_rng(seed)
    n_edges = 3 * n_vertices
    made = GraphEncoder(
        SignedGraph(
            np.concatenate([rng.integers(0, n_vertices, n_edges), np.arange(n_vertices)]),
            np.concatenate([rng.integers(0, n_vertices, n_edges), np.arange(n_vertices)]),
            rng.choice([-1.0, 1.0], n_edges + n_vertices).astype(np.float32),
            rng.uniform(0.1, 1, n_edges + n_vertices).astype(np.float32),
            n_vertices,
        ),
        7,
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.from_numpy(rng.normal(size=parameter.shape)))
    return made


def sampled(made: GraphEncoder, seed: np.uint64 | None = None):
    """Sample, KL and the gradients of a loss of both."""
    made.zero_grad()
    v, kl = made.sample(seed)
    (v * torch.linspace(-1, 1, v.numel()).reshape(v.shape)).sum().add(kl, alpha=30).backward()
    return [v.detach(), kl.detach(), *(p.grad.clone() for p in made.parameters())]


def test_sampled_vertices_equal_the_operations_of_torch(monkeypatch, without_compiled):
    # Odd, as are the numbers of its last block.
    made, seed = encoder(2501), np.uint64(12)
    found = sampled(made, seed)
    parts = []
    for first in range(0, 2501, 1024):
        n_numbers = (min(first + 1024, 2501) - first) * 7
        pairs = np.empty((2, -(-n_numbers // 2)), np.float32)
        compiled.normal_pairs(seed, first * 7 // 2, *pairs)
        parts.append(pairs.ravel()[:n_numbers])
    noise = torch.from_numpy(np.concatenate(parts).reshape(2501, 7))
    assert abs(float(noise.mean())) < 0.03
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    monkeypatch.setattr(torch, "randn_like", lambda tensor: noise.clone())
    without_compiled()
    assert graph.softplus_gaussian is gaussian.softplus_gaussian
    for a, b in zip(found, sampled(made), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6 * float(b.abs().max()))


def test_extreme_spreads_of_vertices_stay_finite_and_nan_does_not():
    made = encoder(40)
    for bias, finite in ((-60.0, True), (60.0, True), (math.nan, False)):
        with torch.no_grad():
            made.std.bias.fill_(bias)
        assert bool(torch.isfinite(sampled(made)[1])) is finite


def test_edges_equal_the_operations_of_torch(without_compiled):
    rng = np.random.default_rng(0)
    v = torch.randn(30, 7, generator=torch.manual_seed(1)).requires_grad_()
    ends = torch.from_numpy(rng.integers(0, 30, (2, 400)))
    sign = torch.from_numpy(rng.choice([-1, 1], 400).astype(np.float32))
    edges = EdgeBatch(*ends, sign, torch.from_numpy((rng.random(400) < 0.2).astype(np.float32)))
    found = edge_nll(v, edges)
    (grad,) = torch.autograd.grad(found, v)
    without_compiled()
    expected = edge_nll(v, edges)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(grad, torch.autograd.grad(expected, v)[0])


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_edges_equal_float64_far_from_the_middle_and_of_one_class(share):
    rng = np.random.default_rng(1)
    v = rng.normal(size=(25, 60)) * np.exp(rng.normal(size=(25, 1)))
    ends = rng.integers(0, 25, (2, 9000))
    sign = rng.choice([-1.0, 1.0], 9000)
    label = (rng.random(9000) < share).astype(np.float64)
    losses, grads = [], []
    for dtype in (np.float32, np.float64):
        given = torch.from_numpy(v.astype(dtype)).requires_grad_()
        parts = (*ends, sign.astype(dtype), label.astype(dtype))
        loss = edge_nll(given, EdgeBatch(*map(torch.from_numpy, parts)))
        grads.append(torch.autograd.grad(3.0 * loss, given)[0].double())
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=2e-6)
    assert float((grads[0] - grads[1]).abs().max()) < 2e-6 * float(grads[1].abs().max())


def test_nan_in_a_vertex_reaches_the_loss_of_edges():
    v = torch.ones(4, 3)
    v[2, 1] = math.nan
    ends = torch.tensor([[0, 2], [1, 3]])
    assert torch.isnan(edge_nll(v, EdgeBatch(*ends, torch.ones(2), torch.tensor([1.0, 0.0]))))


# -- random numbers ------------------------------------------------------------------------


def test_normal_numbers_are_normal_and_follow_the_generator():
    torch.manual_seed(3)
    first = standard_normal_like(torch.empty(400_001))
    second = standard_normal_like(torch.empty(400_001))
    torch.manual_seed(3)
    assert torch.equal(first, standard_normal_like(torch.empty(400_001)))
    for draw in (first, second):
        assert scipy.stats.kstest(draw[:100_000].numpy(), "norm").pvalue > 1e-4
        assert float(draw.std()) == pytest.approx(1, abs=5e-3)
        assert float((draw.abs() > 3).float().mean()) == pytest.approx(0.0027, rel=0.15)
    # Two draws, the two numbers of a pair, neighbours; their squares as well.
    for a, b in (
        (first, second),
        (first[:200_000], first[200_000:400_000]),
        (first[1:], first[:-1]),
    ):
        for power in (1, 2):
            correlation = np.corrcoef(a.numpy() ** power, b.numpy() ** power)[0, 1]
            assert abs(correlation) < 5 / math.sqrt(len(a))


def test_dropout_keeps_its_share_its_mean_and_its_mask():
    torch.manual_seed(0)
    layer = Dropout(0.2)
    x = torch.full((300, 1000), 2.0, requires_grad=True)
    out = layer(x)
    assert set(out.detach().unique().tolist()) == {0.0, 2.5}
    assert float((out == 0).float().mean()) == pytest.approx(0.2, abs=0.004)
    out.sum().backward()
    torch.testing.assert_close(x.grad, out.detach() / 2)
    assert not torch.equal(out, layer(x))
    torch.manual_seed(0)
    assert torch.equal(out, layer(x))
    assert layer.eval()(x) is x


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dropout_has_the_same_mask_in_every_precision(dtype):
    masks = []
    for x in (torch.ones(50, 40), torch.ones(50, 40, dtype=dtype)):
        torch.manual_seed(0)
        out = Dropout(0.3)(x)
        assert out.dtype == x.dtype
        masks.append(out > 0)
    assert torch.equal(*masks)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_dropout_of_nothing_and_of_all(p):
    assert float(Dropout(p)(torch.ones(50)).sum()) == 50 * (1 - p)


def test_dropout_passes_nan_on():
    out = Dropout(0.5)(torch.full((64,), math.nan))
    assert torch.isnan(out).all()


# -- optimiser -----------------------------------------------------------------------------


def trained(make, n_steps: int, state=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 1), nn.Linear(3, 3))
    optimizer = make(model.parameters())
    if state is not None:
        model.load_state_dict(state[0])
        optimizer.load_state_dict(state[1])
    x = torch.randn(40, 5)
    for _ in range(n_steps):
        optimizer.zero_grad()
        model[:3](x).square().mean().backward()  # the last layer has no gradient
        optimizer.step()
    return model.state_dict(), optimizer.state_dict()


def test_rmsprop_is_that_of_torch_and_shares_its_state():
    ours, theirs = (
        lambda p: RMSprop(p, lr=0.01),
        lambda p: torch.optim.RMSprop(p, lr=0.01),
    )
    expected, expected_state = trained(theirs, 12)
    half = trained(theirs, 5)
    for found, found_state in (trained(ours, 12), trained(ours, 7, half)):
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
        assert found_state["state"].keys() == expected_state["state"].keys()
        assert found_state["state"][0].keys() == expected_state["state"][0].keys()
        assert float(found_state["state"][0]["step"]) == 12


def test_rmsprop_takes_no_closure():
    with pytest.raises(TypeError, match="call backward"):
        RMSprop([torch.zeros(2, requires_grad=True)], lr=0.1).step(lambda: 0.0)


def test_rmsprop_refuses_what_it_does_not_do():
    with pytest.raises(ValueError, match=r"no weight_decay; got 0\.1"):
        RMSprop([{"params": [torch.zeros(2, requires_grad=True)], "weight_decay": 0.1}], lr=0.1)


# -- threads -------------------------------------------------------------------------------


@pytest.fixture
def threads():
    """Call it with a number of threads that torch may use from then on."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("n_threads", [1, 2, 5])
@pytest.mark.parametrize("n_blocks", [0, 1, 3, 40])
def test_every_block_is_done_once(threads, n_threads, n_blocks):
    threads(n_threads)
    seen = []
    kernels.each_block(lambda k, slot: seen.append((k, slot)), n_blocks)
    assert sorted(k for k, _ in seen) == list(range(n_blocks))
    assert {slot for _, slot in seen} <= set(range(kernels.n_slots()))
    assert torch.get_num_threads() == n_threads


def test_blocks_see_one_thread_of_torch_and_no_gradients(threads):
    threads(3)
    seen = []
    # Long enough that no thread can take all of them.
    together = threading.Barrier(3, timeout=20)

    def look(k: int, slot: int) -> None:
        together.wait()
        seen.append((torch.get_num_threads(), torch.is_grad_enabled(), slot))

    kernels.each_block(look, 3)
    assert {(n, grad) for n, grad, _ in seen} == {(1, False)}
    assert {slot for *_, slot in seen} == {0, 1, 2}
    assert torch.is_grad_enabled()


def test_threads_of_blocks_outlast_those_of_torch(threads):
    threads(3)
    with kernels.one_thread():
        assert torch.get_num_threads() == 1
        assert kernels.n_slots() == 3
        with kernels.one_thread():
            assert kernels.n_slots() == 3
    assert (torch.get_num_threads(), kernels.n_slots()) == (3, 3)


@pytest.mark.parametrize("failing", range(4))
def test_an_error_in_a_block_is_raised_and_leaves_threads_as_they_were(threads, failing):
    threads(2)

    def work(k: int, slot: int) -> None:
        if k == failing:
            raise ValueError(str(k))

    with pytest.raises(ValueError, match=str(failing)):
        kernels.each_block(work, 4)
    assert (torch.get_num_threads(), kernels.n_slots()) == (2, 2)


def test_shared_loops_take_every_block_once(threads):
    threads(3)
    dense = torch.randn(4000, 3)
    matrix = sp.random(4000, 4000, 0.001, "csr", np.float32, np.random.default_rng(0))
    out = np.full((4000, 3), np.nan, np.float32)
    arrays = matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64), matrix.data
    kernels.share(compiled.sparse_product_blocks, 7, *arrays, dense.numpy(), out)
    np.testing.assert_allclose(out, matrix @ dense.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_work_beside_a_block_is_done_when_the_block_is_left(threads, n_threads):
    threads(n_threads)
    begun = threading.Event()

    def work() -> str:
        begun.set()
        # The thread that would help is this one: the loop does without it.
        kernels.each_block(lambda k, slot: None, 4)
        return "result"

    with kernels.one_thread(), kernels.beside(work) as result:
        assert begun.wait(20)
        kernels.each_block(lambda k, slot: None, 4)
    assert result() == "result"


@pytest.mark.parametrize("n_threads", [1, 2])
def test_errors_beside_a_block_and_in_it_are_raised(threads, n_threads):
    threads(n_threads)
    done = []

    def fail() -> None:
        done.append(1)
        raise ValueError("beside")

    with kernels.one_thread():
        with pytest.raises(ValueError, match="beside"), kernels.beside(fail):
            pass
        with pytest.raises(KeyError), kernels.beside(lambda: done.append(2)):
            raise KeyError
    assert done == [1, 2]


def test_outside_a_training_nothing_runs_beside(threads):
    """There torch's own threads, or a GPU's generator, would be used by two at a time."""
    threads(2)
    seen = []
    with kernels.beside(lambda: seen.append(threading.current_thread())):
        assert seen == [threading.current_thread()]


@pytest.mark.parametrize("flip_a", [False, True])
@pytest.mark.parametrize("flip_b", [False, True])
@pytest.mark.parametrize("shape", [(7, 5, 9), (1, 1, 1), (300, 50, 128), (3, 4, 0), (0, 4, 3)])
def test_products_equal_numpy_s(flip_a, flip_b, shape):
    rng = np.random.default_rng(0)
    m, k, n = shape
    a, b = rng.normal(size=(m, k)).astype(np.float32), rng.normal(size=(k, n)).astype(np.float32)
    whole = np.ones((m + 3, n), np.float32)
    out, exact = whole[1 : m + 1], a.astype(float) @ b
    given = [np.ascontiguousarray(x.T) if flip else x for x, flip in ((a, flip_a), (b, flip_b))]
    for keep, expected in ((False, exact), (True, 2 * exact)):
        compiled.product(kernels.product_address(), *given, flip_a, flip_b, out, keep)
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    assert (whole[0] == 1).all()
    assert (whole[m + 1 :] == 1).all()


def test_products_by_scipy_s_blas(monkeypatch):
    monkeypatch.setattr(kernels.ctypes, "CDLL", lambda name: object())
    address = kernels.product_address.__wrapped__()
    assert address != kernels.product_address()
    a, b = (np.random.default_rng(k).normal(size=(6, 6)).astype(np.float32) for k in (0, 1))
    out = np.empty((6, 6), np.float32)
    compiled.product(address, a, b, False, True, out, False)
    np.testing.assert_allclose(out, a @ b.T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n_rows", [0, 3, 16, 1003])
def test_column_sums(n_rows):
    x = np.random.default_rng(0).normal(size=(n_rows, 7)).astype(np.float32)
    out = np.empty(7, np.float32)
    compiled.column_sums(x, out)
    np.testing.assert_allclose(out, x.sum(0, dtype=float), rtol=0, atol=2e-6 * (1 + n_rows**0.5))


def test_threads_change_no_byte(monkeypatch, threads):
    monkeypatch.setattr(negative_binomial, "_BLOCK_ENTRIES_COMPILED", 300)
    monkeypatch.setattr(graph, "_EDGES_OF_BLOCK", 50)
    monkeypatch.setattr(graph, "_COLUMNS_OF_BLOCK", 3)
    monkeypatch.setattr(random, "_PAIRS_OF_BLOCK", 100)
    monkeypatch.setattr(rmsprop, "_ENTRIES_OF_PIECE", 10)
    arrays, x = problem(64, 200)
    made = encoder()
    rng = np.random.default_rng(0)
    ends = torch.from_numpy(rng.integers(0, 30, (2, 400)))
    sign = torch.from_numpy(rng.choice([-1, 1], 400).astype(np.float32))
    edges = EdgeBatch(*ends, sign, torch.from_numpy((rng.random(400) < 0.2).astype(np.float32)))

    def everything() -> list[bytes]:
        torch.manual_seed(0)
        value, gradients = nll(arrays, x, torch.float32)
        found = [np.float64(value), *gradients.values()]
        found += [tensor.numpy() for tensor in sampled(made)]
        v = torch.randn(30, 7).requires_grad_()
        loss = edge_nll(v, edges)
        loss.backward()
        found += [loss.detach().numpy(), v.grad.numpy()]
        found += [value.numpy() for value in trained(lambda p: RMSprop(p, 0.01), 3)[0].values()]
        return [np.asarray(part).tobytes() for part in found]

    threads(1)
    expected = everything()
    for n_threads in (2, 5):
        threads(n_threads)
        assert everything() == expected


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_rows_of_counts_are_gathered_like_by_torch(without_compiled, dtype):
    rng = np.random.default_rng(0)
    x = np.where(rng.random((30, 50)) < 0.2, rng.integers(1, 9, (30, 50)), 0).astype(np.float32)
    if dtype == np.int16:
        x[3, 3] = 3000
    elif dtype == np.float32:
        x[3, 3] = 0.5
    x[7] = 0
    matrix = CountMatrix(sp.csr_matrix(x), CPU)
    assert matrix.values.numpy().dtype == dtype
    cells = torch.from_numpy(rng.integers(0, 30, 40))
    found = [matrix.batch(cells), matrix.batch(cells[:0])]
    np.testing.assert_array_equal(found[0].dense(), x[cells])
    without_compiled()
    for batch, expected in zip(found, [matrix.batch(cells), matrix.batch(cells[:0])], strict=True):
        assert batch.shape == expected.shape
        for part in ("rows", "columns", "values", "library"):
            ours, theirs = getattr(batch, part), getattr(expected, part)
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours, theirs)


# -- which of the two runs -----------------------------------------------------------------


def test_compiled_loops_are_for_single_precision_on_a_cpu(monkeypatch):
    assert kernels.for_tensors(torch.zeros(2)) is compiled
    assert kernels.for_tensors(torch.zeros(2), torch.zeros(2, dtype=torch.float64)) is None
    assert kernels.for_tensors(torch.zeros(2, device="meta")) is None
    assert describe_kernels(CPU).startswith("compiled (numba ")
    assert describe_kernels(torch.device("cuda")) == "torch"
    monkeypatch.setattr(devices, "has_numba", lambda: False)
    assert describe_kernels(CPU) == "torch"
