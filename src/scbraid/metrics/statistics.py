"""Statistics behind a table of methods, on arrays: ranks, bootstrap, paired tests, tie groups."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from scbraid.errors import NotApplicable

Test = Literal["wilcoxon", "sign", "t"]
Correction = Literal["holm", "benjamini-hochberg", "none"]

# Exact null distributions of the signed-rank sum up to this many differences, as scipy's.
_EXACT = 50
# Numbers held at a time while resampling: 16 MiB of float64.
_BLOCK = 1 << 21


def ranks_of(values: npt.ArrayLike) -> np.ndarray:
    """Rank along the last axis, the largest value first.

    Parameters
    ----------
    values
        Shape (..., n_methods), higher is better; NaN where a method has no value.

    Returns
    -------
    numpy.ndarray
        Same shape, from 1 (best). Ties share the mean of their ranks; all NaN come after every
        value and share the mean of the ranks left.
    """
    values = np.asarray(values, dtype=np.float64)
    # Compared at once: 20 methods cost 400 comparisons, less than sorting so many short rows.
    filled = np.where(np.isnan(values), -np.inf, values)
    ranks = np.ones(values.shape)
    for j in range(values.shape[-1]):
        other = filled[..., j : j + 1]
        ranks += 0.5 * (other > filled)
        ranks += 0.5 * (other >= filled)
    # Every method was compared with itself as an equal once.
    return ranks - 0.5


@dataclasses.dataclass(frozen=True, eq=False)
class RankBootstrap:
    """Mean ranks over resampled data sets and runs.

    Attributes
    ----------
    mean_ranks
        Of the resamples, shape (n_resamples, n_methods).
    observed
        Of the table itself, shape (n_methods,).
    n_datasets
        Data sets that were resampled; of one alone, only its runs were.
    seed
        Of the draws.
    """

    mean_ranks: np.ndarray
    observed: np.ndarray
    n_datasets: int
    seed: int

    def interval(self, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper end of every method's mean rank, shape (n_methods,) each.

        Percentiles of the resamples, taken further out for few data sets (the expanded percentile
        interval of Hesterberg 2015): alpha/2 is replaced by Phi(-t sqrt(n / (n - 1))) with t the
        alpha/2 quantile of Student's distribution with n - 1 degrees of freedom and n the number of
        data sets. It undoes that resampling n values gives a variance (n - 1)/n too small, and
        allows for a variance that is itself estimated. Of one data set: plain percentiles, which
        speak of the spread over its runs alone.

        Parameters
        ----------
        level
            Nominal coverage, in (0, 1).
        """
        from scipy.special import ndtr, stdtrit

        if not 0.0 < level < 1.0:
            msg = f"level must lie in (0, 1). Got {level}"
            raise ValueError(msg)
        tail = (1.0 - level) / 2
        n = self.n_datasets
        if n > 1:
            tail = float(ndtr(stdtrit(n - 1, tail) * math.sqrt(n / (n - 1))))
        lower, upper = np.quantile(self.mean_ranks, [tail, 1 - tail], axis=0)
        return lower, upper

    def share_first(self) -> np.ndarray:
        """Share of the resamples in which a method's mean rank is the best (ties share it)."""
        best = self.mean_ranks == self.mean_ranks.min(axis=1, keepdims=True)
        return np.asarray((best / best.sum(axis=1, keepdims=True)).mean(axis=0))


def bootstrap_ranks(
    values: npt.ArrayLike,
    n_runs: npt.ArrayLike | None = None,
    *,
    n_resamples: int = 10_000,
    seed: int = 0,
) -> RankBootstrap:
    """Resample data sets, then runs within them, and rank the methods anew.

    Parameters
    ----------
    values
        Shape (n_methods, n_datasets, n_conditions, n_seeds), higher is better. The first
        ``n_runs`` entries of the last axis are runs, NaN where a run has no value; later entries
        are not looked at.
    n_runs
        Runs of a method in a condition of a data set, failed ones included, shape (n_methods,
        n_datasets, n_conditions). All of the last axis when None. A condition in which no method
        has a run does not exist in that data set.
    n_resamples
        Number of resamples.
    seed
        Of the draws.

    Returns
    -------
    RankBootstrap
        With the mean ranks of the resamples and of the table itself.

    Raises
    ------
    NotApplicable
        When there is no method or no run at all.

    Notes
    -----
    One resample: as many data sets as there are, drawn with replacement; for every data set drawn,
    each of its conditions and every method, as many runs as there are, drawn with replacement and
    apart from those of other methods (seed 0 of one method is not related to seed 0 of another).
    Runs drawn are averaged over those with a value; the methods are ranked within each condition;
    ranks are averaged over all conditions drawn. Failed runs are drawn like others, and a method
    whose draw has no value takes the last rank.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 4:
        msg = (
            "values must have shape (n_methods, n_datasets, n_conditions, n_seeds). "
            f"Got {values.shape}"
        )
        raise ValueError(msg)
    if n_resamples < 1:
        msg = f"n_resamples must be at least 1. Got {n_resamples}"
        raise ValueError(msg)
    n_methods, n_datasets, n_conditions, n_seeds = values.shape
    counts = np.full(values.shape[:3], n_seeds) if n_runs is None else np.asarray(n_runs)
    if counts.shape != values.shape[:3] or (counts < 0).any() or (counts > n_seeds).any():
        msg = f"n_runs must have shape {values.shape[:3]} and values in 0..{n_seeds}. "
        msg += f"Got {counts.tolist()}"
        raise ValueError(msg)
    exists = np.asarray((counts > 0).any(axis=0))
    if n_methods == 0 or not exists.any():
        msg = "there is no run to rank methods by"
        raise NotApplicable(msg)
    # Data sets without any run are none; places by (data set, condition), methods last.
    kept = exists.any(axis=1)
    exists = exists[kept]
    table = np.ascontiguousarray(values[:, kept].transpose(1, 2, 0, 3))
    runs = np.ascontiguousarray(counts[:, kept].transpose(1, 2, 0))
    table = np.where(np.arange(n_seeds) < runs[..., None], table, np.nan)
    n_datasets = len(table)
    weight = exists.astype(np.float64)
    observed = _mean_ranks(_mean(table), weight)

    rng = np.random.default_rng(seed)
    size = n_datasets * n_conditions * n_methods * max(n_seeds, 1)
    step = max(_BLOCK // size, 1)
    found = np.empty((n_resamples, n_methods))
    base = np.arange(table.size).reshape(table.shape)[..., :1]
    for start in range(0, n_resamples, step):
        stop = min(start + step, n_resamples)
        drawn = rng.integers(n_datasets, size=(stop - start, n_datasets))
        picked = _draw_runs(rng, runs[drawn], n_seeds)
        means = _mean(table.reshape(-1)[base[drawn] + picked], runs[drawn])
        found[start:stop] = _mean_ranks(means, weight[drawn])
    return RankBootstrap(found, observed, n_datasets, seed)


def _draw_runs(rng: np.random.Generator, runs: np.ndarray, n_seeds: int) -> np.ndarray:
    """Draw a run for each of `n_seeds` slots, below the number of runs; 0 where there is none."""
    shape = (*runs.shape, n_seeds)
    if n_seeds == 1:
        return np.zeros(shape, np.int64)
    fractions = rng.random(shape, dtype=np.float32)
    fractions *= runs[..., None]
    picked = fractions.astype(np.int64)
    # A float32 just below 1 times the count may round up to the count.
    return np.minimum(picked, np.maximum(runs[..., None] - 1, 0), out=picked)


def _mean(values: np.ndarray, runs: np.ndarray | None = None) -> np.ndarray:
    """Mean over the last axis of what has a value, NaN without any; slots beyond `runs` are out."""
    known = ~np.isnan(values)
    if runs is not None and runs.min() < values.shape[-1]:
        known &= np.arange(values.shape[-1]) < runs[..., None]
    if known.all():
        return np.asarray(values.mean(axis=-1))
    n = known.sum(axis=-1)
    total = np.where(known, values, 0.0).sum(axis=-1)
    return np.divide(total, n, out=np.full(n.shape, np.nan), where=n > 0)


def _mean_ranks(means: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Mean over data sets and conditions, weighted, of ranks: (..., D, C, M) to (..., M)."""
    ranks = ranks_of(means)
    total = np.einsum("...dcm,...dc->...m", ranks, weight)
    return np.asarray(total / weight.sum(axis=(-1, -2))[..., None])


# ------------------------------------------------------------------------------------------- tests


def paired_pvalue(differences: npt.ArrayLike, test: Test = "wilcoxon") -> float:
    """Two-sided p of the differences of pairs being symmetric about 0.

    Parameters
    ----------
    differences
        One a pair, shape (n_pairs,). Infinite ones (one side failed) count as larger than all
        others and equal among themselves; ``t`` cannot use them.
    test
        ``wilcoxon``: signed ranks, zeros dropped, tied sizes share their ranks. Up to 50
        differences the p is exact over all assignments of signs to these very ranks; beyond, normal
        with the variance of these ranks, no continuity correction. ``sign``: exact binomial, zeros
        dropped. ``t``: Student's.

    Returns
    -------
    float
        In (0, 1]; 1 when all pairs are ties, NaN without pairs (``t``: with fewer than two).
    """
    d = np.asarray(differences, dtype=np.float64).reshape(-1)
    if np.isnan(d).any():
        msg = f"differences must be numbers. Got {int(np.isnan(d).sum())} missing; leave them out"
        raise ValueError(msg)
    if test not in get_args(Test):
        msg = f"unknown test {test!r}; one of: {', '.join(get_args(Test))}"
        raise ValueError(msg)
    if d.size == 0:
        return float("nan")
    if test == "t":
        return _student(d)
    d = d[d != 0]
    if d.size == 0:
        return 1.0
    if test == "sign":
        return _sign(int((d > 0).sum()), d.size)
    return _signed_rank(d)


def smallest_pvalue(n_pairs: int, test: Test = "wilcoxon") -> float:
    """Smallest p that a test can give with so many pairs: 2 / 2^n for signs and signed ranks.

    When this is above the level that is asked for, no result could have reached it.
    """
    return 0.0 if test == "t" else min(1.0, 2.0 ** (1 - n_pairs))


def _sign(wins: int, n: int) -> float:
    fewer = min(wins, n - wins)
    tail = sum(math.comb(n, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**n)


def _student(d: np.ndarray) -> float:
    from scipy.special import stdtr

    if not np.isfinite(d).all():
        msg = "test 't' needs finite differences; leave failed runs out, or use 'wilcoxon'"
        raise ValueError(msg)
    if d.size < 2:
        return float("nan")
    spread = d.std(ddof=1) / math.sqrt(d.size)
    # Rounding of equal differences is no spread.
    if spread <= 1e-14 * abs(float(d.mean())) or spread == 0.0:
        return 1.0 if d.mean() == 0 else 0.0
    return float(2 * stdtr(d.size - 1, -abs(d.mean()) / spread))


def _signed_rank(d: np.ndarray) -> float:
    sizes, place, counts = np.unique(np.abs(d), return_inverse=True, return_counts=True)
    del sizes
    # Twice the mid-ranks: whole numbers.
    doubled = (2 * counts.cumsum() - counts + 1)[place.reshape(-1)]
    positive = int(doubled[d > 0].sum())
    if d.size > _EXACT:
        variance = float(np.square(doubled / 2.0).sum()) / 4
        z = (positive / 2 - d.size * (d.size + 1) / 4) / math.sqrt(variance)
        return math.erfc(abs(z) / math.sqrt(2))
    cumulative = _null_distribution(tuple(np.sort(doubled).tolist()))
    below = float(cumulative[positive])
    above = float(cumulative[len(cumulative) - 1 - positive])  # symmetric
    return min(1.0, 2 * min(below, above))


@functools.lru_cache(maxsize=4096)
def _null_distribution(doubled: tuple[int, ...]) -> np.ndarray:
    """P(sum of the ranks with positive sign <= k) for k = 0.., each sign with probability 1/2."""
    mass = np.zeros(sum(doubled) + 1)
    mass[0] = 1.0
    for rank in doubled:
        shifted = np.zeros_like(mass)
        shifted[rank:] = mass[:-rank]
        mass = (mass + shifted) / 2
    return np.asarray(mass.cumsum())


def correct_pvalues(pvalues: npt.ArrayLike, method: Correction = "holm") -> np.ndarray:
    """Correct p-values for their number.

    Parameters
    ----------
    pvalues
        Shape (n_tests,); NaN for what was not tested, which stays NaN and is not counted.
    method
        ``holm`` (Holm 1979; family-wise error, under any dependence): the i-th smallest of m is
        multiplied by m - i + 1, running maximum. ``benjamini-hochberg`` (1995; false discovery
        rate, for independent or positively dependent tests): times m/i, running minimum from the
        largest. ``none``: as they are.

    Returns
    -------
    numpy.ndarray
        Shape (n_tests,), at most 1.
    """
    p = np.asarray(pvalues, dtype=np.float64)
    tested = ~np.isnan(p)
    if (p[tested] < 0).any() or (p[tested] > 1).any():
        msg = f"p-values must lie in [0, 1]. Got {p[tested].min()} to {p[tested].max()}"
        raise ValueError(msg)
    if method not in get_args(Correction):
        msg = f"unknown correction {method!r}; one of: {', '.join(get_args(Correction))}"
        raise ValueError(msg)
    corrected = p.copy()
    m = int(tested.sum())
    if method == "none" or m == 0:
        return corrected
    order = np.argsort(p[tested], kind="stable")
    ascending = p[tested][order]
    place = np.arange(1, m + 1)
    if method == "holm":
        adjusted = np.maximum.accumulate(ascending * (m - place + 1))
    else:
        adjusted = np.minimum.accumulate((ascending * m / place)[::-1])[::-1]
    restored = np.empty(m)
    restored[order] = np.minimum(adjusted, 1.0)
    corrected[tested] = restored
    return corrected


def tie_groups(separated: npt.ArrayLike) -> list[tuple[int, ...]]:
    """Groups of methods such that two share a group exactly when they are not separated.

    Parameters
    ----------
    separated
        Symmetric booleans, shape (n_methods, n_methods), methods in the order of the table: whether
        a test tells the two apart.

    Returns
    -------
    list of tuple of int
        Members of every group in order; groups in the order of their best members.

    Notes
    -----
    Insert and absorb (Piepho 2004): start with one group of all; for every separated pair, each
    group with both is replaced by two, one without the first and one without the second; a group
    inside another is dropped. This gives all largest sets without a separated pair. Then, from the
    last group on, a group is swept away if every pair in it stands together in another group too
    (and, of a group of one, if its member stands in another).
    """
    separated = np.asarray(separated, dtype=bool)
    n = len(separated)
    if separated.shape != (n, n) or (separated != separated.T).any() or separated.diagonal().any():
        msg = "separated must be a symmetric square of booleans, False on the diagonal"
        raise ValueError(msg)
    groups: list[frozenset[int]] = [frozenset(range(n))] if n else []
    for i, j in zip(*np.nonzero(np.triu(separated)), strict=True):
        split: list[frozenset[int]] = []
        for group in groups:
            whole = not (i in group and j in group)
            split += [group] if whole else [group - {int(i)}, group - {int(j)}]
        unique = sorted(set(split), key=len, reverse=True)
        groups = []
        for group in unique:
            if not any(group < other for other in groups):
                groups.append(group)
    ordered = sorted(tuple(sorted(group)) for group in groups)
    return _swept(ordered, n)


def _swept(groups: list[tuple[int, ...]], n: int) -> list[tuple[int, ...]]:
    """Drop groups, the last first, whose every pair stands in another group."""
    together = np.zeros((n, n), np.int64)
    for group in groups:
        together[np.ix_(group, group)] += 1
    kept = []
    for group in reversed(groups):
        block = together[np.ix_(group, group)]
        if (block > 1).all():
            together[np.ix_(group, group)] -= 1
        else:
            kept.append(group)
    return kept[::-1]


def tie_letters(groups: Sequence[Sequence[int]], n_methods: int) -> list[str]:
    """Write groups as a compact letter display: methods with a letter in common are tied.

    Parameters
    ----------
    groups
        From :func:`tie_groups`; the first is ``a``. After ``z`` come ``(27)``, ``(28)`` and so on.
    n_methods
        Number of methods.

    Returns
    -------
    list of str
        One a method.
    """
    letters = [""] * n_methods
    for place, group in enumerate(groups):
        name = chr(ord("a") + place) if place < 26 else f"({place + 1})"
        for member in group:
            letters[member] += name
    return letters
