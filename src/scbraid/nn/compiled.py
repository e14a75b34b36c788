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
from numba import carray, njit, types
from numba.core import cgutils
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


def _compile(fastmath: set[str], **more: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": fastmath, **more}

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
# Sums may be added in any order: that of the vector lanes, the same at every call. The machine code
# of a loop that calls another one may hold a copy of that one, optimised once more and with another
# order of its sums; which of the two is called depends on what was just compiled and what comes
# from disk. So these loops are not called: their instructions stand where they are used.
_loose = _compile({"contract", "nsz", "reassoc"}, forceinline=True)

_AS_IS, _FLIPPED = ord("N"), ord("T")

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


# -- blocks --------------------------------------------------------------------------------

# Functions of many blocks are called once a thread, by all threads with the same arguments but for
# `slot`, the number of the thread. Each takes the next block when it is done with one, until none
# is left, and needs no lock of Python meanwhile.


@_intrinsic
def _take(typing_context: Any, counter: Any) -> Any:
    """Next number of a counter, int64 (1,), that threads share."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        (array_type,), (array,) = signature.args, arguments
        data = context.make_array(array_type)(context, builder, array).data
        return builder.atomic_rmw("add", data, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counter), generate


@_intrinsic
def _sgemm(
    typing_context: Any,
    address: Any,
    letter_a: Any,
    letter_b: Any,
    n_rows: Any,
    n_columns: Any,
    n_inner: Any,
    a: Any,
    stride_a: Any,
    b: Any,
    stride_b: Any,
    beta: Any,
    c: Any,
    stride_c: Any,
) -> Any:
    """SGEMM of BLAS with α = 1, all matrices by columns."""
    integer, pointer = ir.IntType(32), cgutils.voidptr_t

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        def stored(value: Any) -> Any:
            return builder.bitcast(cgutils.alloca_once_value(builder, value), pointer)

        def data(at: int) -> Any:
            array = context.make_array(signature.args[at])(context, builder, arguments[at])
            return builder.bitcast(array.data, pointer)

        def number(at: int) -> Any:
            return stored(builder.trunc(arguments[at], integer))

        function = ir.FunctionType(ir.VoidType(), [pointer] * 13)
        call = builder.inttoptr(arguments[0], function.as_pointer())
        letters = [stored(builder.trunc(arguments[at], ir.IntType(8))) for at in (1, 2)]
        sizes = [number(at) for at in (3, 4, 5)]
        one = stored(ir.Constant(_F32, 1.0))
        builder.call(
            call,
            [*letters, *sizes, one, data(6), number(7), data(8), number(9), stored(arguments[10]),
             data(11), number(12)],
        )  # fmt: skip
        return context.get_dummy_value()

    wide = [types.int64] * 6
    return types.void(
        *wide, a, types.int64, b, types.int64, types.float32, c, types.int64
    ), generate


@_strict
def product(
    gemm: int, a: np.ndarray, b: np.ndarray, flip_a: bool, flip_b: bool, out: np.ndarray, keep: bool
) -> None:
    """a·b, or with their transposes, to `out`, or added to it; rows without gaps.

    Parameters
    ----------
    gemm
        Address of SGEMM (`scbraid.nn.kernels.product_address`).
    a, b
        (m, k) and (k, n); (k, m) and (n, k) where they are flipped.
    out
        (m, n).
    keep
        Add to `out`.
    """
    # What lies by rows is the transpose of what lies by columns: (a·b)ᵀ = bᵀ·aᵀ.
    n_inner = a.shape[0] if flip_a else a.shape[1]
    _sgemm(
        gemm,
        _FLIPPED if flip_b else _AS_IS,
        _FLIPPED if flip_a else _AS_IS,
        out.shape[1],
        out.shape[0],
        n_inner,
        b,
        max(b.strides[0] // 4, b.shape[1], 1),
        a,
        max(a.strides[0] // 4, a.shape[1], 1),
        _ONE if keep else _ZERO,
        out,
        max(out.strides[0] // 4, out.shape[1], 1),
    )


@_strict
def column_sums(x: np.ndarray, out: np.ndarray) -> None:
    """Sums over the rows of (n, k) to `out` (k,); of 16 rows at a time, so that they stay exact."""
    n_rows, n_columns = x.shape
    whole = n_rows - n_rows % 16
    for c in range(n_columns):
        out[c] = _ZERO
    for i in range(0, whole, 16):
        for c in range(n_columns):
            a = (x[i, c] + x[i + 1, c]) + (x[i + 2, c] + x[i + 3, c])
            b = (x[i + 4, c] + x[i + 5, c]) + (x[i + 6, c] + x[i + 7, c])
            d = (x[i + 8, c] + x[i + 9, c]) + (x[i + 10, c] + x[i + 11, c])
            e = (x[i + 12, c] + x[i + 13, c]) + (x[i + 14, c] + x[i + 15, c])
            out[c] += (a + b) + (d + e)
    for i in range(whole, n_rows):
        for c in range(n_columns):
            out[c] += x[i, c]


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


@_strict
def exponentiate_blocks(
    counter: np.ndarray,
    slot: int,
    gemm: int,
    width: int,
    u: np.ndarray,
    weight: np.ndarray,
    scale: np.ndarray,
    bias: np.ndarray,
    shares: np.ndarray,
    top: np.ndarray,
    total: np.ndarray,
    columns: np.ndarray,
    order: np.ndarray,
    bounds: np.ndarray,
) -> None:
    """Logits and `softmax_block` of every block; and `order_by_block`.

    Parameters
    ----------
    counter, slot
        Of blocks and threads.
    gemm
        As of `product`.
    width
        Features of a block.
    u, weight
        (n_cells, k) and (n_features, k).
    scale, bias, shares
        As of `softmax_block`, of all features.
    top, total
        (n_blocks, n_cells).
    columns, order, bounds
        As of `order_by_block`.
    """
    n_features = weight.shape[0]
    n_blocks = top.shape[0]
    k = _take(counter) - 1
    while k < n_blocks:
        if k < 0:
            order_by_block(columns, width, order, bounds)
        else:
            first = k * width
            last = min(first + width, n_features)
            part = shares[first:last]
            product(gemm, weight[first:last], u, False, True, part, False)
            softmax_block(part, scale[first:last], bias[first:last], top[k], total[k])
        k = _take(counter) - 1


@_strict
def negative_binomial_blocks(
    counter: np.ndarray,
    slot: int,
    width: int,
    shares: np.ndarray,
    factor: np.ndarray,
    theta: np.ndarray,
    inverse_theta: np.ndarray,
    logs: np.ndarray,
    slopes: np.ndarray,
    slopes_nonzero: np.ndarray,
    row_sums: np.ndarray,
    scratch: np.ndarray,
    order: np.ndarray,
    bounds: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    values: np.ndarray,
    pulls: np.ndarray,
    losses: np.ndarray,
) -> None:
    """`negative_binomial_block` and `nonzero_terms` of every block.

    `factor` and `row_sums` are (n_blocks, n_cells), `scratch` has a row a thread, `losses` one
    number a block; everything else is as there, of all features and entries.
    """
    n_features = shares.shape[0]
    k = _take(counter)
    while k < losses.size:
        first = k * width
        last = min(first + width, n_features)
        negative_binomial_block(
            shares[first:last],
            factor[k],
            inverse_theta[first:last],
            logs[first:last],
            slopes[first:last],
            row_sums[k],
            scratch[slot],
        )
        losses[k] = nonzero_terms(
            bounds[k],
            bounds[k + 1],
            order,
            rows,
            columns,
            values,
            shares,
            factor[k],
            theta,
            slopes_nonzero,
            row_sums[k],
            pulls,
        )
        k = _take(counter)


@_strict
def gradient_blocks(
    counter: np.ndarray,
    slot: int,
    gemm: int,
    width: int,
    u: np.ndarray,
    weight: np.ndarray,
    scale: np.ndarray,
    shares: np.ndarray,
    factor: np.ndarray,
    inverse_theta: np.ndarray,
    row_mean: np.ndarray,
    upstream: float,
    order: np.ndarray,
    bounds: np.ndarray,
    rows: np.ndarray,
    columns: np.ndarray,
    pulls: np.ndarray,
    work: np.ndarray,
    grads_u: np.ndarray,
    grad_weight: np.ndarray,
    grad_scale: np.ndarray,
    grad_bias: np.ndarray,
) -> None:
    """`negative_binomial_gradient` of every block, and through the product to u and weights.

    `work` is (n_threads, width, n_cells), `grads_u` (n_blocks, k, n_cells): what each block adds
    to dL/du, transposed, because the product is a third faster. Everything else is as there.
    """
    n_features = shares.shape[0]
    k = _take(counter)
    while k < grads_u.shape[0]:
        first = k * width
        last = min(first + width, n_features)
        grad = work[slot, : last - first]
        negative_binomial_gradient(
            shares[first:last],
            factor[k],
            inverse_theta[first:last],
            row_mean,
            scale[first:last],
            upstream,
            order[bounds[k] : bounds[k + 1]],
            rows,
            columns,
            pulls[bounds[k] : bounds[k + 1]],
            first,
            grad,
            grad_bias[first:last],
        )
        product(gemm, weight[first:last], grad, True, False, grads_u[k], False)
        product(gemm, grad, u, False, False, grad_weight[first:last], False)
        scale_gradient(
            grad_weight[first:last], weight[first:last], scale[first:last], grad_scale[first:last]
        )
        k = _take(counter)


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


@_strict
def sparse_product_blocks(
    counter: np.ndarray,
    slot: int,
    height: int,
    indptr: np.ndarray,
    indices: np.ndarray,
    values: np.ndarray,
    dense: np.ndarray,
    out: np.ndarray,
) -> None:
    """`sparse_product`, `height` rows at a time."""
    first = _take(counter) * height
    while first < out.shape[0]:
        last = min(first + height, out.shape[0])
        sparse_product(indptr[first:], indices, values, dense, out[first:last])
        first = _take(counter) * height


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


@_strict
def sample_vertices_blocks(
    counter: np.ndarray,
    slot: int,
    gemm: int,
    height: int,
    seed: np.uint64,
    indptr: np.ndarray,
    indices: np.ndarray,
    values: np.ndarray,
    table: np.ndarray,
    mean_weight: np.ndarray,
    mean_bias: np.ndarray,
    raw_weight: np.ndarray,
    raw_bias: np.ndarray,
    hidden: np.ndarray,
    mean: np.ndarray,
    raw: np.ndarray,
    noise: np.ndarray,
    sample: np.ndarray,
    kls: np.ndarray,
) -> None:
    """Propagation, both heads and `softplus_gaussian`, `height` vertices at a time.

    Parameters
    ----------
    counter, slot
        Of blocks and threads.
    gemm
        As of `product`.
    height
        Vertices of a block, even.
    seed
        Of the noise.
    indptr, indices, values
        CSR (n, n).
    table
        (n, k).
    mean_weight, mean_bias, raw_weight, raw_bias
        Of the heads, (k, k) and (k,).
    hidden, mean, raw, sample
        (n, k); written.
    noise
        n·k numbers, and one to spare; written.
    kls
        KL of each block; written.
    """
    n_vertices, n_dims = table.shape
    k = _take(counter)
    while k < kls.size:
        first = k * height
        last = min(first + height, n_vertices)
        of_hidden, of_mean, of_raw = hidden[first:last], mean[first:last], raw[first:last]
        sparse_product(indptr[first:], indices, values, table, of_hidden)
        for i in range(last - first):
            for c in range(n_dims):
                of_mean[i, c] = mean_bias[c]
                of_raw[i, c] = raw_bias[c]
        product(gemm, of_hidden, mean_weight, False, True, of_mean, True)
        product(gemm, of_hidden, raw_weight, False, True, of_raw, True)
        # Two numbers come of one draw of 64 bits; of an odd last block one is left over.
        start, n_pairs = first * n_dims, ((last - first) * n_dims + 1) // 2
        middle, stop = start + n_pairs, start + 2 * n_pairs
        normal_pairs(seed, start // 2, noise[start:middle], noise[middle:stop])
        kls[k] = softplus_gaussian(
            of_mean.reshape(-1),
            of_raw.reshape(-1),
            noise[start : last * n_dims],
            sample[first:last].reshape(-1),
        )
        k = _take(counter)


@_strict
def sample_vertices_gradient_blocks(
    counter: np.ndarray,
    slot: int,
    gemm: int,
    height: int,
    grad_sample: np.ndarray,
    grad_kl: float,
    mean: np.ndarray,
    of_kl: np.ndarray,
    of_sample: np.ndarray,
    hidden: np.ndarray,
    mean_weight: np.ndarray,
    raw_weight: np.ndarray,
    work: np.ndarray,
    grad_hidden: np.ndarray,
    grads_weight: np.ndarray,
    grads_bias: np.ndarray,
) -> None:
    """Gradients of `sample_vertices_blocks` but for the propagation.

    `of_kl` and `of_sample` are what it left in `raw` and `noise`; `work` is (n_threads, 2, height,
    k); of each block come `grads_weight` (n_blocks, 2, k, k) and `grads_bias` (n_blocks, 2, k) of
    both heads, so that sums over blocks have one order whichever thread made which.
    """
    n_vertices, n_dims = mean.shape
    k = _take(counter)
    while k < grads_weight.shape[0]:
        first = k * height
        last = min(first + height, n_vertices)
        of_mean, of_raw = work[slot, 0, : last - first], work[slot, 1, : last - first]
        softplus_gaussian_gradient(
            grad_sample[first:last].reshape(-1),
            grad_kl,
            mean[first:last].reshape(-1),
            of_kl[first:last].reshape(-1),
            of_sample[first * n_dims : last * n_dims],
            of_mean.reshape(-1),
            of_raw.reshape(-1),
        )
        product(gemm, of_mean, mean_weight, False, False, grad_hidden[first:last], False)
        product(gemm, of_raw, raw_weight, False, False, grad_hidden[first:last], True)
        for h, grad in enumerate((of_mean, of_raw)):
            product(gemm, grad, hidden[first:last], True, False, grads_weight[k, h], False)
            column_sums(grad, grads_bias[k, h])
        k = _take(counter)


@_loose
def _edge_block(
    v: np.ndarray,
    source: np.ndarray,
    target: np.ndarray,
    sign: np.ndarray,
    label: np.ndarray,
    slopes: np.ndarray,
    sums: np.ndarray,
) -> None:
    positive, negative, n_positive = _ZERO, _ZERO, 0
    for e in range(source.size):
        i, j = source[e], target[e]
        logit = _ZERO
        for k in range(v.shape[1]):
            logit += v[i, k] * v[j, k]
        slopes[e] = logit * sign[e]
    for e in range(source.size):
        x = slopes[e]
        exists = label[e] > _HALF
        small = exp_negative(-x if x > _ZERO else x)
        sigmoid = (_ONE if x > _ZERO else small) / (_ONE + small)
        # −log σ(x) is softplus(−x), −log(1 − σ(x)) is softplus(x).
        y = -x if exists else x
        loss = (y if y > _ZERO else _ZERO) + log1p_unit(small)
        # σ(x) − 1 without the difference, which has no digits left where σ is near one.
        opposite = (small if x > _ZERO else _ONE) / (_ONE + small)
        slopes[e] = -opposite if exists else sigmoid
        positive += loss if exists else _ZERO
        negative += _ZERO if exists else loss
        n_positive += 1 if exists else 0
    sums[0], sums[1], sums[2] = positive, negative, n_positive


@_strict
def edge_blocks(
    counter: np.ndarray,
    slot: int,
    length: int,
    v: np.ndarray,
    source: np.ndarray,
    target: np.ndarray,
    sign: np.ndarray,
    label: np.ndarray,
    slopes: np.ndarray,
    sums: np.ndarray,
) -> None:
    """Cross-entropies of edges with logits s·⟨v_i, v_j⟩, `length` edges at a time.

    Parameters
    ----------
    counter, slot
        Of blocks and threads.
    length
        Edges of a block.
    v
        Vertices (n_vertices, k).
    source, target, sign, label
        (n_edges,); label 1 where the edge exists, else 0.
    slopes
        σ(logit) − label, (n_edges,); written.
    sums
        Loss of the edges that exist, of the others, and number of the first, of each block,
        float64 (n_blocks, 3); written.
    """
    k = _take(counter)
    while k < sums.shape[0]:
        first, last = k * length, min((k + 1) * length, source.size)
        _edge_block(
            v,
            source[first:last],
            target[first:last],
            sign[first:last],
            label[first:last],
            slopes[first:last],
            sums[k],
        )
        k = _take(counter)


@_strict
def edge_gradient_blocks(
    counter: np.ndarray,
    slot: int,
    width: int,
    v: np.ndarray,
    source: np.ndarray,
    target: np.ndarray,
    sign: np.ndarray,
    label: np.ndarray,
    slopes: np.ndarray,
    of_positive: float,
    of_negative: float,
    grad: np.ndarray,
) -> None:
    """Gradient of `edge_blocks`: columns of (n_vertices, k), `width` at a time, edge after edge.

    Edges meet in vertices, columns never do. `of_positive` and `of_negative` are what a loss of
    either kind counts.
    """
    first = _take(counter) * width
    while first < v.shape[1]:
        last = min(first + width, v.shape[1])
        for i in range(grad.shape[0]):
            for k in range(first, last):
                grad[i, k] = _ZERO
        for e in range(source.size):
            i, j = source[e], target[e]
            scale = sign[e] * slopes[e] * (of_positive if label[e] > _HALF else of_negative)
            for k in range(first, last):
                grad[i, k] += scale * v[j, k]
            for k in range(first, last):
                grad[j, k] += scale * v[i, k]
        first = _take(counter) * width


# -- hidden layers -------------------------------------------------------------------------


@_strict
def linear(gemm: int, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, out: np.ndarray) -> None:
    """x·weightᵀ + bias, (n_rows, in_dim) to `out` (n_rows, width); gemm as of `product`."""
    for i in range(out.shape[0]):
        for c in range(out.shape[1]):
            out[i, c] = bias[c]
    product(gemm, x, weight, False, True, out, True)


@_strict
def linear_gradient(
    gemm: int,
    x: np.ndarray,
    weight: np.ndarray,
    grad: np.ndarray,
    grad_weight: np.ndarray,
    grad_x: np.ndarray,
) -> None:
    """Gradients of `linear` in weight and x; one that has no rows is not wanted."""
    if grad_weight.shape[0] > 0:
        product(gemm, grad, x, True, False, grad_weight, False)
    if grad_x.shape[0] > 0:
        product(gemm, grad, weight, False, False, grad_x, False)


@_strict
def leaky(
    gemm: int,
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    z: np.ndarray,
    slope: float,
    seed: np.uint64,
    p: float,
    out: np.ndarray,
) -> None:
    """`linear`, whose result is left in `z`, LeakyReLU, dropout: to `out`, (n_rows, width)."""
    linear(gemm, x, weight, bias, z)
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
    gemm: int,
    x: np.ndarray,
    weight: np.ndarray,
    z: np.ndarray,
    slope: float,
    seed: np.uint64,
    p: float,
    grad: np.ndarray,
    grad_bias: np.ndarray,
    grad_weight: np.ndarray,
    grad_x: np.ndarray,
) -> None:
    """Gradients of `leaky` from dL/dout, which becomes dL/dz in place."""
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
    linear_gradient(gemm, x, weight, grad, grad_weight, grad_x)


@_strict
def leaky_normalised(
    gemm: int,
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
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
    """`linear`, LeakyReLU, normalisation over the rows of a batch (at least two), dropout.

    Parameters
    ----------
    gemm, x, weight, bias
        As of `linear`.
    z
        (n_rows, width); the activations are left in it.
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
    linear(gemm, x, weight, bias, z)
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
    gemm: int,
    x: np.ndarray,
    weight: np.ndarray,
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
    grad_weight: np.ndarray,
    grad_x: np.ndarray,
) -> None:
    """Gradients of `leaky_normalised` from dL/dout, which becomes dL/dz in place.

    Parameters
    ----------
    gemm, x, weight
        As they were.
    a
        The activations, (n_rows, width).
    slope, scale, mean, inverse_std, seed, p
        As they were.
    grad
        (n_rows, width).
    grad_bias, grad_scale, grad_shift
        Sums of dL/dz, and gradients of scale and shift, (width,); written.
    grad_weight, grad_x
        As of `linear_gradient`.
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
    linear_gradient(gemm, x, weight, grad, grad_weight, grad_x)


@_strict
def gaussian_heads(
    gemm: int,
    hidden: np.ndarray,
    mean_weight: np.ndarray,
    mean_bias: np.ndarray,
    raw_weight: np.ndarray,
    raw_bias: np.ndarray,
    mean: np.ndarray,
    std: np.ndarray,
    sigmoid: np.ndarray,
) -> None:
    """Two `linear` maps, the second through softplus and + ε.

    Parameters
    ----------
    gemm
        As of `product`.
    hidden
        (n_rows, in_dim).
    mean_weight, mean_bias, raw_weight, raw_bias
        Of the heads, (width, in_dim) and (width,).
    mean, std
        (n_rows, width); written.
    sigmoid
        dstd/draw, (n_rows, width); written.
    """
    linear(gemm, hidden, mean_weight, mean_bias, mean)
    linear(gemm, hidden, raw_weight, raw_bias, std)
    for i in range(std.shape[0]):
        for c in range(std.shape[1]):
            r = std[i, c]
            e = exp_negative(r if r < _ZERO else -r)
            std[i, c] = (r if r > _ZERO else _ZERO) + log1p_unit(e) + EPS
            sigmoid[i, c] = (_ONE if r > _ZERO else e) / (_ONE + e)


@_strict
def gaussian_heads_gradient(
    gemm: int,
    hidden: np.ndarray,
    mean_weight: np.ndarray,
    raw_weight: np.ndarray,
    sigmoid: np.ndarray,
    grad_mean: np.ndarray,
    grad_std: np.ndarray,
    grad_mean_weight: np.ndarray,
    grad_mean_bias: np.ndarray,
    grad_raw_weight: np.ndarray,
    grad_raw_bias: np.ndarray,
    grad_hidden: np.ndarray,
) -> None:
    """Gradients of `gaussian_heads`; `sigmoid` becomes dL/draw in place."""
    for i in range(sigmoid.shape[0]):
        for c in range(sigmoid.shape[1]):
            sigmoid[i, c] *= grad_std[i, c]
    product(gemm, grad_mean, hidden, True, False, grad_mean_weight, False)
    product(gemm, sigmoid, hidden, True, False, grad_raw_weight, False)
    column_sums(grad_mean, grad_mean_bias)
    column_sums(sigmoid, grad_raw_bias)
    product(gemm, grad_mean, mean_weight, False, False, grad_hidden, False)
    product(gemm, sigmoid, raw_weight, False, False, grad_hidden, True)


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


@_intrinsic
def _floats_at(typing_context: Any, address: Any) -> Any:
    """Pointer to float32 numbers of an address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], _F32.as_pointer())

    return types.CPointer(types.float32)(types.int64), generate


@_strict
def _rmsprop_piece(
    parameter: np.ndarray,
    grad: np.ndarray,
    square_avg: np.ndarray,
    rate: float,
    alpha: float,
    eps: float,
) -> None:
    rate32, eps32 = np.float32(rate), np.float32(eps)
    past, present = np.float32(alpha), np.float32(1.0 - alpha)
    for i in range(parameter.size):
        g = grad[i]
        a = past * square_avg[i] + present * (g * g)
        square_avg[i] = a
        parameter[i] -= rate32 * (g / (np.sqrt(a) + eps32))


@_strict
def rmsprop_blocks(
    counter: np.ndarray, slot: int, pieces: np.ndarray, rate: float, alpha: float, eps: float
) -> None:
    """a ← αa + (1−α)g², p ← p − rate·g/(√a + eps), in place, of many arrays at once.

    Parameters
    ----------
    counter, slot
        Of pieces and threads.
    pieces
        int64 (n_pieces, 4): addresses of parameters p, gradients g and averages a, and how many
        float32 numbers there are from each on.
    rate, alpha, eps
        Of the optimiser.
    """
    k = _take(counter)
    while k < pieces.shape[0]:
        size = (pieces[k, 3],)
        _rmsprop_piece(
            carray(_floats_at(pieces[k, 0]), size),
            carray(_floats_at(pieces[k, 1]), size),
            carray(_floats_at(pieces[k, 2]), size),
            rate,
            alpha,
            eps,
        )
        k = _take(counter)
