"""Metrics of batches: silhouettes, BRAS, LISI, kBET, isolated labels, PCR."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import chi2
from sklearn.metrics import f1_score
from sklearn.metrics import silhouette_samples as sklearn_silhouettes

from scbraid.errors import NotApplicable
from scbraid.metrics import (
    batch_asw,
    batch_pcr_comparison,
    bras,
    clisi,
    explained_by_covariates,
    explained_by_groups,
    ilisi,
    isolated_label_asw,
    isolated_label_f1,
    kbet,
    kbet_per_label,
    lisi_samples,
    nearest_neighbors,
    pcr_comparison,
)


@pytest.fixture
def batched(cloud):
    """Cells of five types in three batches; the last type stands in one of them."""
    X, labels, _ = cloud(n=420, spread=1.4)
    rng = np.random.default_rng(5)
    batches = np.where(labels == "type 4", 0, rng.integers(3, size=len(X)))
    X = X + (0.6 * batches[:, None] * (np.arange(X.shape[1]) < 3)).astype(np.float32)
    return X, labels, np.array(["u", "v", "w"])[batches]


def annotated(X, labels, batches):
    import anndata
    import pandas as pd

    obs = pd.DataFrame({"label": labels, "batch": batches}, dtype="category")
    return anndata.AnnData(X, obs=obs.set_axis([str(i) for i in range(len(X))]), obsm={"X_e": X})


def permuted(*arrays, seed=0):
    order = np.random.default_rng(seed).permutation(len(arrays[0]))
    return [array[order] for array in arrays]


# ---- silhouettes by batch


def slow_batch_asw(X, labels, batches, metric="euclidean"):
    values = []
    for label in np.unique(labels):
        cells = labels == label
        if 1 < len(np.unique(batches[cells])) < cells.sum():
            s = sklearn_silhouettes(X[cells].astype(float), batches[cells], metric=metric)
            values.append(np.mean(1 - np.abs(s)))
    return np.mean(values)


def test_batch_asw_equals_scikit_learn_and_scib(batched):
    from scib.metrics import silhouette_batch

    X, labels, batches = batched
    found = batch_asw(X, labels, batches)
    assert found == pytest.approx(slow_batch_asw(X, labels, batches), abs=1e-6)
    theirs = silhouette_batch(annotated(X, labels, batches), "batch", "label", "X_e", verbose=False)
    assert found == pytest.approx(theirs, abs=1e-6)


def test_batch_asw_leaves_out_what_has_no_silhouette():
    X = np.array([[0.0], [1.0], [10.0], [11.0], [12.0], [20.0], [20.5], [21.0]])
    labels, batches = list("aabbbccc"), np.array(list("uvuuuuuv"))
    # a: every cell its own batch; b: one batch; c is left.
    kept = slow_batch_asw(X[5:], np.array(list("ccc")), batches[5:])
    assert batch_asw(X, labels, batches) == pytest.approx(kept, abs=1e-9)
    with pytest.raises(NotApplicable, match="no cell type stands in two batches"):
        batch_asw(X[:5], labels[:5], batches[:5])
    with pytest.raises(NotApplicable, match="batches mix only where there are at least two"):
        batch_asw(X, labels, ["u"] * 8)


def slow_bras(X, labels, batches):
    values = []
    for label in np.unique(labels):
        cells = np.flatnonzero(labels == label)
        if not 1 < len(np.unique(batches[cells])) < len(cells):
            continue
        D = cdist(X[cells].astype(float), X[cells].astype(float), "cosine")
        s = np.zeros(len(cells))
        for i in range(len(cells)):
            own = batches[cells] == batches[cells[i]]
            if own.sum() > 1:
                a, b = D[i, own].sum() / (own.sum() - 1), D[i, ~own].mean()
                s[i] = (b - a) / max(a, b)
        values.append(np.mean(1 - np.abs(s)))
    return np.mean(values)


def test_bras_equals_slow_form(batched):
    X, labels, batches = batched
    expected = slow_bras(X, labels, batches)
    assert bras(X, labels, batches) == pytest.approx(expected, abs=1e-9)
    assert bras(*permuted(X, labels, batches)) == pytest.approx(expected, abs=1e-12)
    assert bras(1e3 * X, labels, batches) == pytest.approx(expected, abs=1e-6)
    # A batch of one cell within a type counts as mixed.
    batches = batches.copy()
    batches[np.flatnonzero(labels == "type 4")[0]] = "w"
    found = bras(X, labels, batches)
    assert found == pytest.approx(slow_bras(X, labels, batches), abs=1e-9)


def test_bras_at_its_ends():
    rng = np.random.default_rng(0)
    batches = np.repeat(["u", "v"], 400)
    labels = np.full(800, "a")
    X = rng.normal(size=(800, 6)) + 3
    assert bras(X, labels, batches) > 0.95
    X[batches == "v", 0] += 1e4
    X[batches == "u", 1] += 1e4
    assert bras(X, labels, batches) < 0.01
    # Cells at one place, and at the origin, are mixed.
    assert bras(np.ones((800, 3)), labels, batches) == 1.0
    assert bras(np.zeros((800, 3)), labels, batches) == 1.0
    with pytest.raises(NotApplicable, match="no cell type stands in two batches"):
        bras(X, labels, np.full(800, "u"))


@pytest.mark.slow
def test_bras_and_others_equal_scib_metrics(batched):
    scib_metrics = pytest.importorskip("scib_metrics")
    X, labels, batches = batched
    assert bras(X, labels, batches) == pytest.approx(
        float(scib_metrics.bras(X, labels, batches)), abs=1e-5
    )
    neighbors = nearest_neighbors(X, 14)
    results = scib_metrics.nearest_neighbors.NeighborsResults(
        indices=np.c_[np.arange(len(X)), neighbors.indices],
        distances=np.c_[np.zeros(len(X)), neighbors.distances],
    )
    # Theirs masks the cell among its neighbours: 91 with it are our 90 without.
    near = nearest_neighbors(X, 90)
    with_itself = scib_metrics.nearest_neighbors.NeighborsResults(
        indices=np.c_[np.arange(len(X)), near.indices],
        distances=np.c_[np.zeros(len(X)), near.distances],
    )
    theirs = float(scib_metrics.ilisi_knn(with_itself, batches, perplexity=30))
    assert ilisi(X, batches) == pytest.approx(theirs, abs=1e-3)
    theirs = float(scib_metrics.clisi_knn(with_itself, labels, perplexity=30))
    assert clisi(X, labels) == pytest.approx(theirs, abs=1e-3)
    from scbraid.metrics import graph_connectivity_strong

    assert graph_connectivity_strong(neighbors, labels) == pytest.approx(
        float(scib_metrics.graph_connectivity(results, labels)), abs=1e-12
    )


# ---- LISI


def slow_lisi(X, labels, k=90, perplexity=30):
    D = cdist(X.astype(float), X.astype(float))
    np.fill_diagonal(D, np.inf)
    found = []
    for row in D:
        near = np.argsort(row)[:k]
        d = row[near]
        low, high = 0.0, 1e6
        for _ in range(200):
            beta = (low + high) / 2
            p = np.exp(-beta * (d - d[0]))
            p /= p.sum()
            entropy = -(p[p > 0] * np.log(p[p > 0])).sum()
            low, high = (beta, high) if entropy > np.log(perplexity) else (low, beta)
        shares = [p[labels[near] == one].sum() for one in np.unique(labels)]
        found.append(1 / np.square(shares).sum())
    return np.array(found)


def test_lisi_equals_slow_form_for_several_sets_at_once(batched):
    X, labels, batches = batched
    found = lisi_samples(nearest_neighbors(X, 90), [labels, batches])
    np.testing.assert_allclose(found[0], slow_lisi(X, labels), rtol=1e-6)
    np.testing.assert_allclose(found[1], slow_lisi(X, batches), rtol=1e-6)
    assert ilisi(X, batches) == pytest.approx((np.median(found[1]) - 1) / 2, abs=1e-12)
    assert clisi(X, labels) == pytest.approx((5 - np.median(found[0])) / 4, abs=1e-12)
    shuffled = permuted(X, batches)
    assert ilisi(*shuffled) == pytest.approx(ilisi(X, batches), abs=1e-9)


def test_lisi_equals_harmony(batched):
    import pandas as pd
    from harmonypy.lisi import compute_lisi

    X, labels, batches = batched
    table = pd.DataFrame({"label": labels, "batch": batches})
    theirs = compute_lisi(X.astype(float), table, ["label", "batch"], perplexity=30)
    ours = lisi_samples(nearest_neighbors(X, 90), [labels, batches])
    # Theirs stops when the entropy is right to 1e-5.
    np.testing.assert_allclose(ours.T, theirs, rtol=1e-4)


def test_lisi_at_its_ends():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2000, 5)).astype(np.float32)
    batches = rng.integers(2, size=2000)
    # An even draw: sum_c p_c^2 = (1 + w) / 2 with w = sum_j p_j^2, a little over 1/30 as weights
    # are unequal. 2 / (1 + w) - 1 = 0.92 for w = 0.04.
    assert ilisi(X, batches) == pytest.approx(0.92, abs=0.03)
    far = X + 1e3 * batches[:, None]
    assert ilisi(far, batches) == 0.0
    assert clisi(far, batches) == 1.0
    with pytest.raises(NotApplicable, match="one batch only"):
        ilisi(X, np.zeros(2000))
    with pytest.raises(NotApplicable, match="one cell type only"):
        clisi(X, np.zeros(2000))


def test_lisi_of_cells_at_one_place():
    X = np.repeat(np.eye(3), 60, axis=0)
    batches = np.tile([0, 1], 90)
    found = lisi_samples(nearest_neighbors(X, 89), [batches])[0]
    # 59 others at distance 0 share the weight: 30 of one batch, 29 of the other.
    np.testing.assert_allclose(found, 1 / ((30 / 59) ** 2 + (29 / 59) ** 2), rtol=1e-12)
    # One place: all the same, and no NaN.
    assert np.isfinite(lisi_samples(nearest_neighbors(np.zeros((9, 2)), 8), [range(9)])).all()


# ---- kBET


def slow_kbet(X, batches, k):
    D = cdist(X.astype(float), X.astype(float))
    np.fill_diagonal(D, np.inf)
    names, sizes = np.unique(batches, return_counts=True)
    passed = []
    for row in D:
        near = batches[np.argsort(row)[:k]]
        expected = k * sizes / len(X)
        observed = np.array([(near == one).sum() for one in names])
        statistic = (np.square(observed - expected) / expected).sum()
        passed.append(chi2.sf(statistic, len(names) - 1) >= 0.05)
    return np.mean(passed)


def test_kbet_equals_slow_form(batched):
    X, labels, batches = batched
    expected = slow_kbet(X, batches, 50)
    assert 0.02 < expected < 0.98
    assert kbet(nearest_neighbors(X, 50), batches) == pytest.approx(expected, abs=1e-12)
    rates = []
    for label in np.unique(labels):
        cells = labels == label
        n_batches = len(np.unique(batches[cells]))
        if n_batches > 1 and cells.sum() >= 10:
            k = min(70, max(10, int(cells.sum() / n_batches / 4)), cells.sum() - 1)
            rates.append(slow_kbet(X[cells], batches[cells], k))
    found = kbet_per_label(X, labels, batches)
    assert found == pytest.approx(np.mean(rates), abs=1e-12)
    assert kbet_per_label(*permuted(X, labels, batches)) == pytest.approx(found, abs=1e-12)
    # Names do not matter (in scib-metrics 0.5 and 0.6 the order of labels does).
    renamed = np.char.add(np.array(list("zyxwv"))[[int(t[-1]) for t in labels]], "!")
    assert kbet_per_label(X, renamed, batches) == pytest.approx(found, abs=1e-12)


def test_kbet_at_its_ends():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(3000, 4))
    batches = rng.integers(2, size=3000)
    labels = np.zeros(3000)
    # Neighbourhoods overlap, so that the rate scatters more than 3,000 tests would.
    assert kbet(nearest_neighbors(X, 50), batches) == pytest.approx(0.95, abs=0.03)
    far = X + 1e3 * batches[:, None]
    assert kbet(nearest_neighbors(far, 50), batches) == 0.0
    assert kbet_per_label(far, labels, batches) == 0.0
    with pytest.raises(NotApplicable, match="one batch only"):
        kbet(nearest_neighbors(X[:60], 50), np.zeros(60))
    with pytest.raises(NotApplicable, match="in two batches with 10 cells"):
        kbet_per_label(X[:9], labels[:9], batches[:9])


# ---- isolated labels


def test_isolated_labels_equal_scib(batched):
    from scib.metrics import isolated_labels_asw, isolated_labels_f1

    X, labels, batches = batched
    data = annotated(X, labels, batches)
    theirs = isolated_labels_asw(data, "label", "batch", "X_e", verbose=False)
    assert isolated_label_asw(X, labels, batches) == pytest.approx(theirs, abs=1e-6)
    clusters = np.random.default_rng(0).integers(4, size=(3, len(X)))
    clusters[1][labels == "type 4"] = 0
    best = max(f1_score(labels == "type 4", part == c) for part in clusters for c in range(4))
    assert isolated_label_f1(clusters, labels, batches) == pytest.approx(best, abs=1e-12)
    # Their F1 on clusters that are given, at one resolution.
    import pandas as pd

    data.obs["iso_label_1.0"] = pd.Categorical(clusters[1].astype(str))
    data.obs["iso_label"] = data.obs["iso_label_1.0"]
    theirs = isolated_labels_f1(data, "label", "batch", None, resolutions=[1.0], verbose=False)
    assert isolated_label_f1(clusters[1:2], labels, batches) == pytest.approx(theirs, abs=1e-12)


def test_no_isolated_label_is_no_number(batched):
    X, labels, _ = batched
    batches = np.tile(["u", "v"], len(X) // 2)
    for call in (
        lambda: isolated_label_asw(X, labels, batches),
        lambda: isolated_label_f1(np.zeros((1, len(X)), int), labels, batches),
    ):
        with pytest.raises(NotApplicable, match="every one stands in 2 of 2 batches"):
            call()


# ---- PCR


def test_pcr_equals_scib(batched):
    from scib.metrics.pcr import pc_regression

    X, _, batches = batched
    import pandas as pd

    theirs = pc_regression(X, pd.Series(batches, dtype="category"), n_comps=X.shape[1])
    assert explained_by_groups(X, batches) == pytest.approx(theirs, abs=2e-5)


@pytest.mark.parametrize("change", ["permute", "rotate", "shift", "scale"])
def test_pcr_invariances(batched, change):
    X, _, batches = batched
    expected = explained_by_groups(X, batches)
    if change == "permute":
        X, batches = permuted(X, batches)
    elif change == "rotate":
        X = X @ np.linalg.qr(np.random.default_rng(0).normal(size=(12, 12)))[0]
    elif change == "shift":
        X = X.astype(float) + 1e4
    else:
        X = 1e3 * X
    assert explained_by_groups(X, batches) == pytest.approx(expected, rel=1e-5)


def test_covariates_equal_least_squares(batched):
    X, _, batches = batched
    rng = np.random.default_rng(0)
    C = np.c_[X[:, 0] + rng.normal(size=len(X)), rng.normal(size=len(X))]
    design = np.c_[np.ones(len(X)), C]
    fitted = design @ np.linalg.lstsq(design, X.astype(float), rcond=None)[0]
    expected = np.square(fitted - fitted.mean(axis=0)).sum()
    expected /= np.square(X - X.mean(axis=0, dtype=float)).sum()
    assert explained_by_covariates(X, C) == pytest.approx(expected, abs=1e-9)
    # A covariate twice explains no more.
    assert explained_by_covariates(X, np.c_[C, C[:, 0]]) == pytest.approx(expected, abs=1e-9)
    one_hot = (batches[:, None] == np.array(["u", "v"])).astype(float)
    assert explained_by_covariates(X, one_hot) == pytest.approx(
        explained_by_groups(X, batches), abs=1e-9
    )
    with pytest.raises(NotApplicable, match="do not vary"):
        explained_by_covariates(X, np.ones((len(X), 1)))
    with pytest.raises(ValueError, match=r"covariates must have 420 rows. Got 3"):
        explained_by_covariates(X, np.ones((3, 1)))


def test_pcr_comparison_at_its_ends(batched):
    X, _, batches = batched
    assert pcr_comparison(0.5, 0.1) == pytest.approx(0.8)
    assert pcr_comparison(0.2, 0.5) == 0.0
    with pytest.raises(NotApplicable, match="nothing to remove"):
        pcr_comparison(0.0, 0.0)
    with pytest.raises(NotApplicable, match="one batch only"):
        explained_by_groups(X, np.zeros(len(X)))
    with pytest.raises(NotApplicable, match="do not vary"):
        explained_by_groups(np.ones((len(X), 2)), batches)
    # A layer of one batch is left out.
    value = batch_pcr_comparison([X, X], [X[:, :4], X], [batches, ["u"] * len(X)])
    before, after = explained_by_groups(X, batches), explained_by_groups(X[:, :4], batches)
    assert value == pytest.approx(max((before - after) / before, 0.0), abs=1e-12)
    with pytest.raises(NotApplicable, match="one batch only"):
        batch_pcr_comparison([X], [X], [["u"] * len(X)])


# ---- what holds for all of them


ALL = {
    "batch_asw": batch_asw,
    "bras": bras,
    "ilisi": lambda X, labels, batches: ilisi(X, batches),
    "clisi": lambda X, labels, batches: clisi(X, labels),
    "kbet": lambda X, labels, batches: kbet(nearest_neighbors(X, 50), batches),
    "kbet_per_label": kbet_per_label,
    "isolated_label_asw": isolated_label_asw,
    "pcr": lambda X, labels, batches: explained_by_groups(X, batches),
}


@pytest.mark.parametrize("name", ALL)
def test_bad_input_is_named(batched, name):
    X, labels, batches = batched
    X = X.copy()
    X[3, 2] = np.nan
    with pytest.raises(ValueError, match=r"must be finite; remove other rows first\. Got 1"):
        ALL[name](X, labels, batches)
    with pytest.raises(ValueError, match=r"must have shape \(420,\). Got \(419,\)"):
        ALL[name](batched[0], labels[:-1], batches[:-1])


@pytest.mark.parametrize("name", ALL)
def test_names_empty_levels_and_duplicates(batched, name):
    import pandas as pd

    X, labels, batches = batched
    expected = ALL[name](X, labels, batches)
    levels = pd.Categorical(batches, categories=["nobody", "w", "v", "u"])
    assert ALL[name](X, labels, levels) == pytest.approx(expected, abs=1e-7)
    # A fifth of the cells twice: defined, and as a slow form would have it.
    X = X.copy()
    X[300:384] = X[:84]
    found = ALL[name](X, labels, batches)
    assert 0 <= found <= 1
    if name == "batch_asw":
        assert found == pytest.approx(slow_batch_asw(X, labels, batches), abs=1e-5)
    if name == "bras":
        assert found == pytest.approx(slow_bras(X, labels, batches), abs=1e-9)


@pytest.mark.parametrize("name", ALL)
def test_one_cell_a_label_has_a_value_or_a_reason(batched, name):
    X, _, batches = batched
    X, batches = X[:60], batches[:60]
    if name in ("batch_asw", "bras", "kbet_per_label", "isolated_label_asw"):
        with pytest.raises(NotApplicable, match="no cell type"):
            ALL[name](X, np.arange(60), batches)
    else:
        assert 0 <= ALL[name](X, np.arange(60), batches) <= 1
