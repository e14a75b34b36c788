"""How well scores rank positives first, over all pairs and by distance; Kendall's tau."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from scbraid.errors import NotApplicable

# Cao & Gao (2022), fig. 3: 150 kb around promoters in bins of 25 kb.
DISTANCE_EDGES = (0, 25_000, 50_000, 75_000, 100_000, 125_000, 150_000)


def auroc(scores: npt.ArrayLike, positive: npt.ArrayLike) -> float:
    """Area under the ROC curve: how often a positive scores above a negative, ties counting half.

    Parameters
    ----------
    scores
        Higher means likelier positive, shape (n_pairs,).
    positive
        Whether a pair is one, booleans or 0 and 1 of shape (n_pairs,).

    Returns
    -------
    float
        In [0, 1], 0.5 by chance. Exact: from mid-ranks, ``(R - n_pos (n_pos + 1) / 2) / (n_pos
        n_neg)`` with R their sum over positives (Mann & Whitney 1947).

    Raises
    ------
    NotApplicable
        When all pairs are of one class.
    ValueError
        When shapes differ, a score is NaN, or `positive` is not 0 or 1. Infinite scores rank first
        or last.
    """
    scores, positive = _pairs(scores, positive)
    return _auroc(scores, positive)


def average_precision_score(scores: npt.ArrayLike, positive: npt.ArrayLike) -> float:
    """Average precision: sum over distinct scores, from the highest, of (R_k - R_(k-1)) P_k.

    Precision P and recall R count all pairs with that score or a higher one, so that ties have no
    order; no interpolation. Parameters and errors are those of :func:`auroc`.

    Returns
    -------
    float
        In (0, 1]; the share of positives by chance.
    """
    scores, positive = _pairs(scores, positive)
    return _average_precision(scores, positive)


@dataclasses.dataclass(frozen=True, eq=False)
class DistanceBins:
    """AUROC and average precision by distance.

    Attributes
    ----------
    lower, upper
        Ends of the bins, shape (n_bins,); a bin holds lower <= distance < upper, the last one its
        upper end too.
    n, n_positive
        Pairs, and positives among them, shape (n_bins,); chance of the average precision is
        n_positive / n.
    auroc, average_precision
        Shape (n_bins,), NaN where the reason is not empty.
    reason
        Why a bin has no value (no pair, or one class alone); empty for bins with one.
    n_outside
        Pairs in no bin.
    """

    lower: np.ndarray
    upper: np.ndarray
    n: np.ndarray
    n_positive: np.ndarray
    auroc: np.ndarray
    average_precision: np.ndarray
    reason: tuple[str, ...]
    n_outside: int

    def stratified_auroc(self) -> float:
        """How often a positive scores above a negative of the same bin.

        ``sum_b n_b+ n_b- AUROC_b / sum_b n_b+ n_b-``: what is left of an AUROC once distance, which
        alone ranks near pairs first, can no longer help. In [0, 1], 0.5 by chance and for scores
        that are a function of the bin.

        Raises
        ------
        NotApplicable
            When no bin has both classes.
        """
        weight = self.n_positive * (self.n - self.n_positive)
        if not weight.any():
            msg = f"none of {len(self.n)} bins of distance has positives and negatives"
            raise NotApplicable(msg)
        used = weight > 0
        return float((weight[used] * self.auroc[used]).sum() / weight[used].sum())


def by_distance(
    scores: npt.ArrayLike,
    positive: npt.ArrayLike,
    distances: npt.ArrayLike,
    edges: npt.ArrayLike = DISTANCE_EDGES,
) -> DistanceBins:
    """AUROC and average precision within bins of distance.

    Parameters
    ----------
    scores, positive
        As for :func:`auroc`.
    distances
        Of every pair, from 0 up, shape (n_pairs,).
    edges
        Ends of the bins, ascending, at least two.

    Raises
    ------
    ValueError
        As :func:`auroc`, or when a distance is negative or not finite, or edges do not ascend.
    """
    scores, positive = _pairs(scores, positive)
    distances, edges = np.asarray(distances), np.asarray(edges)
    if distances.shape != scores.shape or distances.dtype.kind not in "uif":
        msg = f"distances must hold one number a pair, ({len(scores)},). Got {distances.dtype} "
        msg += f"of shape {distances.shape}"
        raise ValueError(msg)
    if not np.isfinite(distances).all() or (len(distances) and distances.min() < 0):
        msg = "distances must be finite and not negative; leave out pairs without one (-1)"
        raise ValueError(msg)
    if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all():
        msg = f"edges must be two or more ascending numbers. Got {edges.tolist()}"
        raise ValueError(msg)
    n_bins = len(edges) - 1
    place = np.searchsorted(edges, distances, side="right") - 1
    place[distances == edges[-1]] = n_bins - 1
    inside = (place >= 0) & (place < n_bins)
    n = np.bincount(place[inside], minlength=n_bins)
    n_positive = np.bincount(place[inside & positive], minlength=n_bins)
    areas, precisions = np.full(n_bins, np.nan), np.full(n_bins, np.nan)
    reasons = []
    for b in range(n_bins):
        own = place == b
        try:
            areas[b] = _auroc(scores[own], positive[own])
            precisions[b] = _average_precision(scores[own], positive[own])
            reasons.append("")
        except NotApplicable as error:
            reasons.append(str(error))
    return DistanceBins(
        edges[:-1],
        edges[1:],
        n,
        n_positive,
        areas,
        precisions,
        tuple(reasons),
        int((~inside).sum()),
    )


def kendall_tau(x: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """Kendall's tau-b: agreement of two orders, corrected for ties in either.

    ``(C - D) / sqrt((n0 - n_x) (n0 - n_y))`` with C and D the concordant and discordant pairs, n0 =
    n (n - 1) / 2 and n_x, n_y the pairs tied in x and in y (Kendall 1945).

    Parameters
    ----------
    x, y
        Numbers of shape (n,).

    Returns
    -------
    float
        In [-1, 1], 0 by chance. n log n steps.

    Raises
    ------
    NotApplicable
        When either does not vary (or has fewer than two values).
    ValueError
        When shapes differ or a value is NaN.
    """
    x, y = (_numbers(values, name) for values, name in ((x, "x"), (y, "y")))
    if x.shape != y.shape:
        msg = f"x and y must have the same length. Got {len(x)} and {len(y)}"
        raise ValueError(msg)
    x, y = (np.unique(values, return_inverse=True)[1].reshape(-1) for values in (x, y))
    for values, name in ((x, "first"), (y, "second")):
        if len(values) < 2 or values.max() == 0:
            msg = f"the {name} of the two orders does not vary over {len(values)} values"
            raise NotApplicable(msg)
    # In order of x, ties in order of y: what is then out of order in y is discordant.
    ordered = y[np.lexsort((y, x))]
    n_all = len(x) * (len(x) - 1) // 2
    tied_x, tied_y, tied_both = (
        _tied_pairs(values) for values in (x, y, x * (int(y.max()) + 1) + y)
    )
    discordant = _inversions(ordered)
    concordant = n_all - tied_x - tied_y + tied_both - discordant
    # Roots apart: the product overflows the integers that are exact in double precision.
    scale = np.sqrt(float(n_all - tied_x)) * np.sqrt(float(n_all - tied_y))
    return float(np.clip((concordant - discordant) / scale, -1.0, 1.0))


def _tied_pairs(values: np.ndarray) -> int:
    counts = np.unique(values, return_counts=True)[1]
    return int((counts * (counts - 1) // 2).sum())


def _inversions(ranks: np.ndarray) -> int:
    """Pairs i < j with ranks[i] > ranks[j]; ranks are whole numbers from 0.

    By bits from the highest: among ranks that agree above a bit, each 0 after a 1 is an inversion.
    """
    total = 0
    for bit in range(int(ranks.max()).bit_length() - 1, -1, -1):
        group = ranks >> (bit + 1)
        order = np.argsort(group, kind="stable")
        group = group[order]
        ones = (ranks[order] >> bit) & 1
        before = ones.cumsum() - ones
        starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]])
        before -= np.repeat(before[starts], np.diff(np.r_[starts, len(group)]))
        total += int(before[ones == 0].sum())
    return total


def _pairs(scores: npt.ArrayLike, positive: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    values, classes = _numbers(scores, "scores"), np.asarray(positive)
    if classes.shape != values.shape:
        msg = (
            "scores and positive must have one value a pair. "
            f"Got {values.shape} and {classes.shape}"
        )
        raise ValueError(msg)
    if classes.dtype.kind != "b":
        if classes.dtype.kind not in "uif" or not np.isin(classes, (0, 1)).all():
            msg = f"positive must hold booleans, or 0 and 1. Got {classes.dtype}"
            raise ValueError(msg)
        classes = classes == 1
    return values, classes


def _numbers(values: npt.ArrayLike, name: str) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 1 or values.dtype.kind not in "buif":
        msg = f"{name} must be numbers of shape (n,). Got {values.dtype} of shape {values.shape}"
        raise ValueError(msg)
    n_bad = int(np.isnan(values).sum()) if values.dtype.kind == "f" else 0
    if n_bad:
        msg = f"{name} must be known. Got {n_bad} NaN; leave these out or give them a value"
        raise ValueError(msg)
    return values


def _one_class(positive: np.ndarray) -> None:
    n, n_positive = len(positive), int(positive.sum())
    if n == 0:
        msg = "no pair"
    elif n_positive in (0, n):
        msg = f"no {'positive' if n_positive == 0 else 'negative'} among {n} pairs"
    else:
        return
    raise NotApplicable(msg)


def _auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    _one_class(positive)
    place, counts = np.unique(scores, return_inverse=True, return_counts=True)[1:]
    # Twice the mid-ranks are whole numbers: nothing is rounded before the division.
    doubled = 2 * counts.cumsum() - counts + 1
    n_positive = int(positive.sum())
    total = int(doubled[place.reshape(-1)][positive].sum())
    pairs = n_positive * (len(positive) - n_positive)
    return (total - n_positive * (n_positive + 1)) / (2 * pairs)


def _average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    _one_class(positive)
    place = np.unique(scores, return_inverse=True)[1].reshape(-1)
    n_levels = int(place.max()) + 1
    hits = np.bincount(place, weights=positive, minlength=n_levels)[::-1]
    taken = np.bincount(place, minlength=n_levels)[::-1].cumsum()
    return float((hits * hits.cumsum() / taken).sum() / hits.sum())
