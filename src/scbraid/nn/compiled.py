"""Compiled float32 loops for one CPU core; `scbraid.nn.kernels` decides where they are used.

What torch does in many passes over memory with a fresh array each is done here in one. The loops
are written so that the compiler turns them into vector instructions:

- exp and log are polynomials with the exponent taken from the bits of the number (the library's
  functions are called entry by entry). Their coefficients are those of Cephes (Moshier 1992),
  accurate to about 1e-7 relative.
- Sums of logarithms take one logarithm of a product of several factors. Where a product leaves the
  range of float32, the row is repeated in float64, factor by factor.
- Comparisons are written so that NaN stays NaN: the guard of the training sees every one.

Every function writes into arrays that the caller made, reads no global state and gives the same
bytes for the same input.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

EPS = np.float32(1e-7)
_ZERO, _HALF, _ONE, _TWO = (np.float32(value) for value in (0, 0.5, 1, 2))
# Added and subtracted, it rounds to an integer; the integer then is in the low bits of the sum.
_ROUND = np.float32(1.5 * 2**23)
_LOG2_E = np.float32(1.4426950408889634)
# log 2 in two parts, the first one exact in products with small integers.
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_LEAST_EXPONENT = np.float32(-87.0)
_EXP = tuple(
    np.float32(c)
    for c in (
        1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1,
        5.0000001201e-1,
    )
)  # fmt: skip
_LOG = tuple(
    np.float32(c)
    for c in (
        7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1,
        -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
    )
)  # fmt: skip
_ATANH = tuple(np.float32(2.0 / k) for k in (15, 13, 11, 9, 7, 5, 3, 1))


def _compile(fastmath: set[str]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": fastmath}

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:
            # Neither the package's folder nor the user's cache can be written to: then every
            # process compiles for itself, for some seconds.
            return njit(**options)(function)

    return decorate


# Fused multiply-add may be used; sums are added in the order written.
_strict = _compile({"contract", "nsz"})
# Sums may be added in any order (that of the vector lanes, the same at every call).
_loose = _compile({"contract", "nsz", "reassoc"})

_intrinsic: Any = intrinsic  # whose decorated functions lose their first argument
_I32, _F32 = ir.IntType(32), ir.FloatType()


@_intrinsic
def _power_of_two(typing_context: Any, rounded: Any) -> Any:
    """2^k as float32, of k + 1.5·2^23."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.shl(builder.bitcast(arguments[0], _I32), ir.Constant(_I32, 23))
        return builder.bitcast(builder.add(bits, ir.Constant(_I32, 0x3F800000)), _F32)

    return types.float32(types.float32), generate


def _exponent_bits(builder: Any, x: Any) -> Any:
    # Relative to √½, so that the rest is in [√½, √2).
    above = builder.sub(builder.bitcast(x, _I32), ir.Constant(_I32, 0x3F3504F3))
    return builder.ashr(above, ir.Constant(_I32, 23))


@_intrinsic
def _exponent(typing_context: Any, x: Any) -> Any:
    """k of x = 2^k·f with f in [√½, √2), for normal x > 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.sitofp(_exponent_bits(builder, arguments[0]), _F32)

    return types.float32(types.float32), generate


@_intrinsic
def _mantissa(typing_context: Any, x: Any) -> Any:
    """f of x = 2^k·f with f in [√½, √2), for normal x > 0."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        shift = builder.shl(_exponent_bits(builder, arguments[0]), ir.Constant(_I32, 23))
        return builder.bitcast(builder.sub(builder.bitcast(arguments[0], _I32), shift), _F32)

    return types.float32(types.float32), generate


@_strict
def exp_negative(x: Any) -> Any:
    """exp(x) for x <= 0; no less than exp(-87)."""
    x = _LEAST_EXPONENT if x < _LEAST_EXPONENT else x
    rounded = x * _LOG2_E + _ROUND
    k = rounded - _ROUND
    f = x - k * _LN2_HIGH
    f = f - k * _LN2_LOW
    p = _EXP[0] * f + _EXP[1]
    p = p * f + _EXP[2]
    p = p * f + _EXP[3]
    p = p * f + _EXP[4]
    p = p * f + _EXP[5]
    return (p * (f * f) + f + _ONE) * _power_of_two(rounded)


@_strict
def _log_normal(x: Any) -> Any:
    """log(x) for normal x > 0; anything for other x."""
    k = _exponent(x)
    f = _mantissa(x) - _ONE
    p = _LOG[0] * f + _LOG[1]
    p = p * f + _LOG[2]
    p = p * f + _LOG[3]
    p = p * f + _LOG[4]
    p = p * f + _LOG[5]
    p = p * f + _LOG[6]
    p = p * f + _LOG[7]
    p = p * f + _LOG[8]
    square = f * f
    return k * _LN2_HIGH + (f + (square * f * p + (k * _LN2_LOW - _HALF * square)))


@_strict
def log1p_positive(x: Any) -> Any:
    """log(1 + x) for x >= 0; NaN for an infinite x."""
    u = _ONE + x
    # What the addition rounded away; it carries NaN, too.
    return _log_normal(u) + (x - (u - _ONE)) / u


@_strict
def log1p_unit(x: Any) -> Any:
    """log(1 + x) for 0 <= x <= 1, as 2·artanh(x/(2+x))."""
    s = x / (_TWO + x)
    square = s * s
    p = _ATANH[0] * square + _ATANH[1]
    p = p * square + _ATANH[2]
    p = p * square + _ATANH[3]
    p = p * square + _ATANH[4]
    p = p * square + _ATANH[5]
    p = p * square + _ATANH[6]
    p = p * square + _ATANH[7]
    return s * p


@_strict
def digamma(x: float) -> float:
    """ψ(x) for x > 0 in float64: recurrence up to 8, then the asymptotic series."""
    shift = 0.0
    while x < 8.0:
        shift -= 1.0 / x
        x += 1.0
    r = 1.0 / (x * x)
    series = r * (1 / 12 - r * (1 / 120 - r * (1 / 252 - r * (1 / 240 - r * (1 / 132)))))
    return shift + math.log(x) - 0.5 / x - series


# -- random numbers ------------------------------------------------------------------------

# SplitMix64 (Steele, Lea & Flood 2014): number i of a seed is a function of both alone, so a loop
# over i needs no state and the same numbers can be made twice instead of being kept.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31 = np.uint64(27), np.uint64(30), np.uint64(31)
_S23 = np.uint64(23)
_BIT_0, _BIT_1, _NO_BIT = np.uint64(1), np.uint64(2), np.uint64(0)
_QUARTER_TURN = np.float32(math.pi / 2)
_MINUS_TWO = np.float32(-2)
_SIN = tuple(np.float32((-1) ** k / math.factorial(2 * k + 1)) for k in (4, 3, 2, 1))
_COS = tuple(np.float32((-1) ** k / math.factorial(2 * k)) for k in (5, 4, 3, 2, 1))


@_intrinsic
def _one_to_two(typing_context: Any, bits: Any) -> Any:
    """Number in [1, 2) of the upper 23 bits of 64."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        upper = builder.lshr(arguments[0], ir.Constant(ir.IntType(64), 41))
        return builder.bitcast(
            builder.or_(builder.trunc(upper, _I32), ir.Constant(_I32, 0x3F800000)), _F32
        )

    return types.float32(types.uint64), generate


@_strict
def _random_bits(seed: Any, i: Any) -> Any:
    z = seed + i * _GOLDEN
    z = (z ^ (z >> _S30)) * _MIX_1
    z = (z ^ (z >> _S27)) * _MIX_2
    return z ^ (z >> _S31)


@_strict
def dropout(x: np.ndarray, seed: np.uint64, p: float, out: np.ndarray) -> None:
    """x·mask/(1−p) of (n,), the mask being 0 with probability p; a function of seed and place."""
    kept = np.float32(1.0 / (1.0 - p))
    bound = np.float32(1.0 + p)
    for i in range(x.size):
        u = _one_to_two(_random_bits(seed, np.uint64(i)))
        out[i] = x[i] * (_ZERO if u < bound else kept)


@_strict
def normal_pairs(seed: np.uint64, start: int, first: np.ndarray, second: np.ndarray) -> None:
    """Fill (n,) and (n,) with N(0, 1) by Box and Muller: numbers start to start + n of a seed."""
    for i in range(first.size):
        bits = _random_bits(seed, np.uint64(start + i))
        radius = np.sqrt(_MINUS_TWO * _log_normal(_TWO - _one_to_two(bits)))
        # An eighth of a turn to either side; two further bits mirror it and turn it.
        angle = (_one_to_two(bits << _S23) - _ONE - _HALF) * _QUARTER_TURN
        square = angle * angle
        sine = _SIN[0] * square + _SIN[1]
        sine = sine * square + _SIN[2]
        sine = sine * square + _SIN[3]
        sine = (sine * square + _ONE) * angle * radius
        cosine = _COS[0] * square + _COS[1]
        cosine = cosine * square + _COS[2]
        cosine = cosine * square + _COS[3]
        cosine = cosine * square + _COS[4]
        cosine = (cosine * square + _ONE) * radius
        cosine = -cosine if (bits & _BIT_0) != _NO_BIT else cosine
        swap = (bits & _BIT_1) != _NO_BIT
        first[i] = sine if swap else cosine
        second[i] = cosine if swap else sine


# -- negative binomial ---------------------------------------------------------------------

# Factors 1 + m/θ in one logarithm. Eight vectors of a row of 128 cells.
_FACTORS = 8


@_strict
def softmax_block(
    logits: np.ndarray, scale: np.ndarray, bias: np.ndarray, top: np.ndarray, total: np.ndarray
) -> None:
    """Turn s into exp(α·s + β − top), in place, with the largest and the sum over features.

    Parameters
    ----------
    logits
        (n_features, n_cells); s before, exponentials after.
    scale, bias
        α and β, (n_features,).
    top, total
        (n_cells,); written.
    """
    n_features, n_cells = logits.shape
    for n in range(n_cells):
        top[n] = -np.inf
        total[n] = _ZERO
    for j in range(n_features):
        a, b = scale[j], bias[j]
        for n in range(n_cells):
            value = a * logits[j, n] + b
            logits[j, n] = value
            top[n] = value if value > top[n] else top[n]
    for j in range(n_features):
        for n in range(n_cells):
            value = exp_negative(logits[j, n] - top[n])
            logits[j, n] = value
            total[n] += value


@_loose
def negative_binomial_block(
    shares: np.ndarray,
    factor: np.ndarray,
    inverse_theta: np.ndarray,
    logs: np.ndarray,
    slopes: np.ndarray,
    row_sum: np.ndarray,
    products: np.ndarray,
) -> None:
    """Everything that zeros and non-zeros have in common, of a block of features.

    With μ = shares·factor, m = μ + ε, r = m/θ and g = 1/(1+r), which is d/dm of θ·log(1+r):

    Parameters
    ----------
    shares
        (n_features, n_cells), unnormalised.
    factor
        (n_cells,): library size over the sum of the shares.
    inverse_theta
        1/θ, (n_features,).
    logs, slopes
        Σ_n log(1+r) and its derivative in log θ, −Σ_n r·g, by feature; written.
    row_sum
        Σ_j μ·g, added to (n_cells,).
    products
        Scratch, at least (n_features, n_cells // 8).
    """
    n_features, n_cells = shares.shape
    width = n_cells // _FACTORS
    for j in range(n_features):
        inverse = inverse_theta[j]
        slope = _ZERO
        for n in range(n_cells):
            mu = shares[j, n] * factor[n]
            r = (mu + EPS) * inverse
            g = _ONE / (_ONE + r)
            slope += r * g
            row_sum[n] += mu * g
        slopes[j] = -slope
        # Π(1 + r) − 1, kept without the one: small r would be lost beside it.
        for i in range(width):
            p = (shares[j, i] * factor[i] + EPS) * inverse
            for k in range(1, _FACTORS):
                n = k * width + i
                r = (shares[j, n] * factor[n] + EPS) * inverse
                p = p + (r + p * r)
            products[j, i] = p
    for j in range(n_features):
        value = _ZERO
        for i in range(width):
            value += log1p_positive(products[j, i])
        for n in range(width * _FACTORS, n_cells):
            value += log1p_positive((shares[j, n] * factor[n] + EPS) * inverse_theta[j])
        if not math.isfinite(value):
            exact = 0.0
            for n in range(n_cells):
                mu = np.float64(shares[j, n]) * factor[n]
                exact += math.log1p((mu + EPS) * np.float64(inverse_theta[j]))
            value = np.float32(exact)
        logs[j] = value


@_strict
def order_by_block(columns: np.ndarray, width: int, order: np.ndarray, bounds: np.ndarray) -> None:
    """Stable counting sort of entries by block of columns.

    Parameters
    ----------
    columns
        int64, (n_entries,).
    width
        Columns of a block.
    order
        Positions of the entries, block after block, (n_entries,); written.
    bounds
        Where each block begins in `order`, (n_blocks + 1,); zeros before, written.
    """
    for e in range(columns.size):
        bounds[columns[e] // width + 1] += 1
    for b in range(1, bounds.size):
        bounds[b] += bounds[b - 1]
    following = bounds[:-1].copy()
    for e in range(columns.size):
        b = columns[e] // width
        order[following[b]] = e
        following[b] += 1


# Counts up to this take log Γ(x+θ)/Γ(θ) as a product.
_LARGEST_PRODUCT = 12
_LEAST_PRODUCT, _GREATEST_PRODUCT = 1e-100, 1e100
_STIRLING_FROM = 1e5


@_strict
def _log_gamma_ratio(t: float, s: float) -> float:
    """log Γ(t+s)/Γ(t) in float64, without cancellation where t is large."""
    if t > _STIRLING_FROM:
        tail = (1 / (t + s) - 1 / t) / 12
        return (t + s - 0.5) * math.log1p(s / t) + s * (math.log(t) - 1) + tail
    return math.lgamma(t + s) - math.lgamma(t)


@_strict
def nonzero_terms(
    first: int,
    last: int,
    order: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    values: np.ndarray,
    shares: np.ndarray,
    factor: np.ndarray,
    theta: np.ndarray,
    slopes: np.ndarray,
    row_sum: np.ndarray,
    pulls: np.ndarray,
) -> float:
    """x·log(1 + θ/m) − log Γ(x+θ)/Γ(θ) + log Γ(x+1), summed over the entries of a block.

    Parameters
    ----------
    first, last
        Entries of the block, as positions in `order`.
    order, rows, columns, values
        The non-zero entries.
    shares, factor
        As for the dense terms, over all features and of this block.
    theta
        θ, (n_features,).
    slopes
        Derivative in log θ divided by θ, by feature; added to.
    row_sum
        Σ_j μ·d/dm, by cell; added to.
    pulls
        −μ·d/dm of each entry, in the order of `order`; written.

    Returns
    -------
    float
        The sum, float64.
    """
    loss = 0.0
    product = 1.0
    for at in range(first, last):
        e = order[at]
        j, n = columns[e], rows[e]
        x, t = np.float64(values[e]), np.float64(theta[j])
        mu = np.float64(shares[j, n]) * np.float64(factor[n])
        m = mu + np.float64(EPS)
        whole = int(x) if 0 <= x <= _LARGEST_PRODUCT else -1
        if x == whole:
            # ((m+θ)/m)^x · x! / (θ(θ+1)...(θ+x−1)), and Σ 1/(θ+k) as a fraction.
            odds = (m + t) / m
            ratio, numerator, denominator = 1.0, 0.0, 1.0
            for k in range(whole):
                shifted = t + k
                numerator = numerator * shifted + denominator
                denominator *= shifted
                ratio *= odds * (k + 1)
            ratio /= denominator
            rising_slope = numerator / denominator
            if _LEAST_PRODUCT < ratio < _GREATEST_PRODUCT:
                product *= ratio
            else:
                loss += math.log(ratio)
            if not _LEAST_PRODUCT < product < _GREATEST_PRODUCT:
                loss += math.log(product)
                product = 1.0
        else:
            loss += x * math.log1p(t / m) + math.lgamma(x + 1) - _log_gamma_ratio(t, x)
            rising_slope = digamma(x + t) - digamma(t)
        slopes[j] += np.float32(x / (m + t) - rising_slope)
        pull = np.float32(mu * (x * t / (m * (m + t))))
        pulls[at] = pull
        row_sum[n] -= pull
    return loss + math.log(product)


@_loose
def negative_binomial_gradient(
    shares: np.ndarray,
    factor: np.ndarray,
    inverse_theta: np.ndarray,
    row_mean: np.ndarray,
    scale: np.ndarray,
    upstream: float,
    order: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    pulls: np.ndarray,
    start: int,
    grad: np.ndarray,
    grad_bias: np.ndarray,
) -> None:
    """Through softmax and scale: dL/ds = α·μ·(d/dm − Σ_i μ_i·d/dm_i / l), of a block of features.

    Parameters
    ----------
    shares, factor, inverse_theta
        As for the loss.
    row_mean
        Σ_i μ_i·d/dm_i / l, (n_cells,).
    scale
        α, (n_features,).
    upstream
        Gradient of the loss itself.
    order, pulls
        Non-zero entries of this block.
    rows, columns
        Of all entries.
    start
        First feature of the block.
    grad
        (n_features, n_cells); written.
    grad_bias
        dL/dβ, (n_features,); written.
    """
    n_features, n_cells = shares.shape
    for j in range(n_features):
        inverse, factor_j = inverse_theta[j], scale[j] * upstream
        total = _ZERO
        for n in range(n_cells):
            mu = shares[j, n] * factor[n]
            g = _ONE / (_ONE + (mu + EPS) * inverse)
            value = mu * (g - row_mean[n])
            total += value
            grad[j, n] = value * factor_j
        grad_bias[j] = total * upstream
    for at in range(order.size):
        e = order[at]
        j = columns[e] - start
        pull = pulls[at] * upstream
        grad[j, rows[e]] -= pull * scale[j]
        grad_bias[j] -= pull


@_loose
def scale_gradient(
    grad_weight: np.ndarray, weight: np.ndarray, scale: np.ndarray, grad_scale: np.ndarray
) -> None:
    """dL/dα from dL/dw = α·(...): Σ_k w·dL/dw / α, and 0 where α is."""
    for j in range(weight.shape[0]):
        total = _ZERO
        for k in range(weight.shape[1]):
            total += grad_weight[j, k] * weight[j, k]
        grad_scale[j] = _ZERO if scale[j] == _ZERO else total / scale[j]


# -- graph ---------------------------------------------------------------------------------


@_strict
def sparse_product(
    indptr: np.ndarray,
    indices: np.ndarray,
    values: np.ndarray,
    dense: np.ndarray,
    out: np.ndarray,
) -> None:
    """Rows of CSR (n, m), `indptr` (n + 1,) being theirs, times dense (m, k) into `out` (n, k)."""
    for i in range(out.shape[0]):
        for k in range(out.shape[1]):
            out[i, k] = _ZERO
        for at in range(indptr[i], indptr[i + 1]):
            j, value = indices[at], values[at]
            for k in range(out.shape[1]):
                out[i, k] += value * dense[j, k]


@_loose
def _softplus_gaussian_part(
    mean: np.ndarray, raw: np.ndarray, noise: np.ndarray, sample: np.ndarray
) -> tuple[Any, Any]:
    squares, logs = _ZERO, _ZERO
    for i in range(mean.size):
        m, r, z = mean[i], raw[i], noise[i]
        e = exp_negative(r if r < _ZERO else -r)
        std = (r if r > _ZERO else _ZERO) + log1p_unit(e) + EPS
        sigmoid = (_ONE if r > _ZERO else e) / (_ONE + e)
        sample[i] = m + std * z
        noise[i] = sigmoid * z
        raw[i] = sigmoid * (std - _ONE / std)
        squares += m * m + std * std
        logs += _log_normal(std)
    return squares, logs


@_loose
def softplus_gaussian(
    mean: np.ndarray, raw: np.ndarray, noise: np.ndarray, sample: np.ndarray
) -> float:
    """Draw mean + std·noise with std = softplus(raw) + ε; return the summed KL to N(0, 1).

    Parameters
    ----------
    mean
        (n,).
    raw
        (n,); after it σ(raw)·(std − 1/std), which is dKL/draw.
    noise
        (n,); after it σ(raw)·noise, which is dsample/draw.
    sample
        (n,); written.
    """
    squares = 0.0
    logs = 0.0
    # In parts, so that float32 sums stay short.
    for first in range(0, mean.size, 1024):
        last = min(first + 1024, mean.size)
        part_squares, part_logs = _softplus_gaussian_part(
            mean[first:last], raw[first:last], noise[first:last], sample[first:last]
        )
        squares += part_squares
        logs += part_logs
    return 0.5 * (squares - mean.size) - logs


@_strict
def softplus_gaussian_gradient(
    grad_sample: np.ndarray,
    grad_kl: float,
    mean: np.ndarray,
    of_kl: np.ndarray,
    of_sample: np.ndarray,
    grad_mean: np.ndarray,
    grad_raw: np.ndarray,
) -> None:
    """Gradients of `softplus_gaussian` from what it left in `raw` and `noise`; all (n,)."""
    for i in range(grad_sample.size):
        g = grad_sample[i]
        grad_mean[i] = g + mean[i] * grad_kl
        grad_raw[i] = of_sample[i] * g + of_kl[i] * grad_kl


@_loose
def edge_logits(
    v: np.ndarray, source: np.ndarray, target: np.ndarray, sign: np.ndarray, logits: np.ndarray
) -> None:
    """s·⟨v_i, v_j⟩ of edges (n_edges,), of vertices (n_vertices, k)."""
    for e in range(source.size):
        i, j = source[e], target[e]
        total = _ZERO
        for k in range(v.shape[1]):
            total += v[i, k] * v[j, k]
        logits[e] = total * sign[e]


@_strict
def edge_gradient(
    v: np.ndarray,
    source: np.ndarray,
    target: np.ndarray,
    sign: np.ndarray,
    grad_logits: np.ndarray,
    grad: np.ndarray,
    first: int,
    last: int,
) -> None:
    """Gradient of `edge_logits` added to columns of (n_vertices, k), edge after edge."""
    for e in range(source.size):
        i, j = source[e], target[e]
        scale = grad_logits[e] * sign[e]
        for k in range(first, last):
            grad[i, k] += scale * v[j, k]
        for k in range(first, last):
            grad[j, k] += scale * v[i, k]


# -- hidden layers -------------------------------------------------------------------------


@_strict
def leaky(z: np.ndarray, slope: float, seed: np.uint64, p: float, out: np.ndarray) -> None:
    """LeakyReLU, then dropout: (n_rows, width) to `out`."""
    n_rows, width = z.shape
    falling, kept, bound = np.float32(slope), np.float32(1.0 / (1.0 - p)), np.float32(1.0 + p)
    for i in range(n_rows):
        for c in range(width):
            u = _one_to_two(_random_bits(seed, np.uint64(i * width + c)))
            value = z[i, c]
            value = value if value > _ZERO else value * falling
            out[i, c] = value * (_ZERO if u < bound else kept)


@_strict
def leaky_gradient(
    z: np.ndarray, slope: float, seed: np.uint64, p: float, grad: np.ndarray, grad_bias: np.ndarray
) -> None:
    """Gradient of `leaky`: dL/dout becomes dL/dz in place, its sums by column in `grad_bias`."""
    n_rows, width = z.shape
    falling, kept, bound = np.float32(slope), np.float32(1.0 / (1.0 - p)), np.float32(1.0 + p)
    for c in range(width):
        grad_bias[c] = _ZERO
    for i in range(n_rows):
        for c in range(width):
            u = _one_to_two(_random_bits(seed, np.uint64(i * width + c)))
            g = grad[i, c] * (_ZERO if u < bound else kept)
            g = g if z[i, c] > _ZERO else g * falling
            grad[i, c] = g
            grad_bias[c] += g


@_strict
def leaky_normalised(
    z: np.ndarray,
    slope: float,
    scale: np.ndarray,
    shift: np.ndarray,
    eps: float,
    momentum: float,
    running_mean: np.ndarray,
    running_var: np.ndarray,
    mean: np.ndarray,
    inverse_std: np.ndarray,
    seed: np.uint64,
    p: float,
    out: np.ndarray,
) -> None:
    """LeakyReLU, normalisation over the rows of a batch (at least two), dropout.

    Parameters
    ----------
    z
        (n_rows, width); after it the activations.
    slope
        Of LeakyReLU, below zero.
    scale, shift, eps, momentum, running_mean, running_var
        Of the normalisation, (width,) each; running statistics are updated.
    mean, inverse_std
        Of the batch, (width,); written.
    seed, p
        Of dropout.
    out
        (n_rows, width); written.
    """
    n_rows, width = z.shape
    falling, kept, bound = np.float32(slope), np.float32(1.0 / (1.0 - p)), np.float32(1.0 + p)
    share, present = np.float32(1.0 / n_rows), np.float32(momentum)
    past, unbiased = np.float32(1.0 - momentum), np.float32(n_rows / (n_rows - 1.0))
    for c in range(width):
        mean[c] = _ZERO
        inverse_std[c] = _ZERO
    for i in range(n_rows):
        for c in range(width):
            value = z[i, c]
            value = value if value > _ZERO else value * falling
            z[i, c] = value
            mean[c] += value
    for c in range(width):
        mean[c] *= share
    for i in range(n_rows):
        for c in range(width):
            d = z[i, c] - mean[c]
            inverse_std[c] += d * d
    for c in range(width):
        variance = inverse_std[c] * share
        running_mean[c] = past * running_mean[c] + present * mean[c]
        running_var[c] = past * running_var[c] + present * (variance * unbiased)
        inverse_std[c] = _ONE / np.sqrt(variance + np.float32(eps))
    for i in range(n_rows):
        for c in range(width):
            u = _one_to_two(_random_bits(seed, np.uint64(i * width + c)))
            value = (z[i, c] - mean[c]) * (inverse_std[c] * scale[c]) + shift[c]
            out[i, c] = value * (_ZERO if u < bound else kept)


@_strict
def leaky_normalised_gradient(
    a: np.ndarray,
    slope: float,
    scale: np.ndarray,
    mean: np.ndarray,
    inverse_std: np.ndarray,
    seed: np.uint64,
    p: float,
    grad: np.ndarray,
    grad_bias: np.ndarray,
    grad_scale: np.ndarray,
    grad_shift: np.ndarray,
) -> None:
    """Gradient of `leaky_normalised`: dL/dout becomes dL/dz in place.

    Parameters
    ----------
    a
        The activations, (n_rows, width).
    slope, scale, mean, inverse_std, seed, p
        As they were.
    grad
        (n_rows, width).
    grad_bias, grad_scale, grad_shift
        Sums of dL/dz, and gradients of scale and shift, (width,); written.
    """
    n_rows, width = a.shape
    falling, kept, bound = np.float32(slope), np.float32(1.0 / (1.0 - p)), np.float32(1.0 + p)
    share = np.float32(1.0 / n_rows)
    for c in range(width):
        grad_bias[c] = _ZERO
        grad_scale[c] = _ZERO
        grad_shift[c] = _ZERO
    for i in range(n_rows):
        for c in range(width):
            u = _one_to_two(_random_bits(seed, np.uint64(i * width + c)))
            g = grad[i, c] * (_ZERO if u < bound else kept)
            grad[i, c] = g
            grad_shift[c] += g
            grad_scale[c] += g * ((a[i, c] - mean[c]) * inverse_std[c])
    for i in range(n_rows):
        for c in range(width):
            value = a[i, c]
            deviation = (value - mean[c]) * inverse_std[c]
            g = grad[i, c] - share * (grad_shift[c] + deviation * grad_scale[c])
            g *= scale[c] * inverse_std[c]
            g = g if value > _ZERO else g * falling
            grad[i, c] = g
            grad_bias[c] += g


# -- counts --------------------------------------------------------------------------------


@_strict
def gather_rows(
    cells: np.ndarray,
    indptr: np.ndarray,
    indices: np.ndarray,
    values: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    gathered: np.ndarray,
) -> None:
    """Rows of a CSR matrix in coordinate form, written to arrays (n_nonzero,)."""
    at = 0
    for i in range(cells.size):
        for e in range(indptr[cells[i]], indptr[cells[i] + 1]):
            rows[at] = i
            columns[at] = indices[e]
            gathered[at] = values[e]
            at += 1


# -- optimiser -----------------------------------------------------------------------------


@_strict
def rmsprop_step(
    parameter: np.ndarray,
    grad: np.ndarray,
    square_avg: np.ndarray,
    rate: float,
    alpha: float,
    eps: float,
) -> None:
    """a ← αa + (1−α)g², p ← p − rate·g/(√a + eps); arrays (n,), updated in place."""
    rate32, eps32 = np.float32(rate), np.float32(eps)
    past, present = np.float32(alpha), np.float32(1.0 - alpha)
    for i in range(parameter.size):
        g = grad[i]
        a = past * square_avg[i] + present * (g * g)
        square_avg[i] = a
        parameter[i] -= rate32 * (g / (np.sqrt(a) + eps32))
