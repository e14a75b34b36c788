"""Compare simulated presets with real data sets: depth, sparsity, signal, links.

Prints the table that docs/simulator.md argues from::

    python benchmarks/simulator_settings.py [--mirror DIR] [--preset NAME ...] [--cells 800]
        [--real NAME ...] [--real-cells 5000] [--seeds 3] [--output FILE.tsv]
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.spatial.distance import cdist

from scbraid.data.layers import Layers
from scbraid.data.simulate import PRESETS, in_memory, plant
from scbraid.data.simulation.genome import candidate_pairs, regions

# Sets whose cells carry labels, and the labels to leave out of label metrics.
REAL = {
    "snare_cortex_dev": ("mm10", ("Mis",)),
    "scicar_a549": ("hg19", ()),
    "scicar_kidney": ("mm10", ()),
    "teaseq_rna_adt": ("hg38", ()),
    "bmmc_cite_dev": ("hg38", ()),
    "bmmc_multiome_smoke": ("hg38", ()),
    "hemato_atac": ("hg19", ()),
    "snare_h1": ("hg38", ()),
}
# obs columns that name technical batches or donors.
BATCHES = {"snare_cortex_dev": "library", "hemato_atac": "batch", "bmmc_cite_dev": "batch"}
N_NEIGHBORS = 15
N_COMPONENTS = 30


def svd(X: np.ndarray | sp.spmatrix, n: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.utils.extmath import randomized_svd

    left, sizes, _ = randomized_svd(X, n_components=n, random_state=0, n_iter=7)
    return left, sizes


def log_scaled(X: sp.csr_matrix) -> np.ndarray:
    """Normalise to the median total, log1p, z-score clipped at 10; dense (n_cells, n_features)."""
    total = np.asarray(X.sum(1)).ravel()
    Z = np.log1p((sp.diags(np.median(total[total > 0]) / np.maximum(total, 1)) @ X).toarray())
    Z -= Z.mean(0)
    sd = Z.std(0)
    Z /= np.where(sd > 0, sd, 1)
    return np.clip(Z, -10, 10)


def pca(X: sp.csr_matrix) -> np.ndarray:
    left, sizes = svd(log_scaled(X), min(N_COMPONENTS, min(X.shape) - 1))
    return left * sizes


def lsi(X: sp.csr_matrix, form: str) -> np.ndarray:
    """LSI of glue.md 1.4 (`glue`: U, row z-score) or `us` (U S without the first component)."""
    X = X[:, np.asarray(X.sum(0)).ravel() > 0]
    tf = sp.diags(1 / np.maximum(np.asarray(X.sum(1)).ravel(), 1)) @ X
    Y = tf @ sp.diags(X.shape[0] / np.asarray(X.sum(0)).ravel())
    Y = sp.diags(1 / np.maximum(np.asarray(Y.sum(1)).ravel(), 1e-12)) @ Y
    left, sizes = svd((Y * 1e4).log1p(), min(N_COMPONENTS, min(X.shape) - 1))
    if form == "us":
        return (left * sizes)[:, 1:]
    left = left - left.mean(1, keepdims=True)
    return left / left.std(1, ddof=1, keepdims=True)


def knn_accuracy(Z: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy of 15 nearest neighbours, 3-fold."""
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    model = KNeighborsClassifier(N_NEIGHBORS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # types with fewer than three cells
        return float(cross_val_score(model, Z, labels, cv=folds).mean())


def foscttm(A: np.ndarray, B: np.ndarray) -> float:
    """Mean share of cells closer than the true partner, both directions."""
    scores = []
    for X, Y in ((A, B), (B, A)):
        for first in range(0, len(X), 500):
            D = cdist(X[first : first + 500], Y)
            own = D[np.arange(len(D)), first + np.arange(len(D))]
            scores.append((own[:, None] > D).mean(1))
    return float(np.concatenate(scores).mean())


def joint_pca(rna: sp.csr_matrix, activity: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Each layer log-scaled on its own, one PCA of both."""
    stacked = np.vstack([log_scaled(rna), log_scaled(activity)])
    left, sizes = svd(stacked, N_COMPONENTS)
    Z = left * sizes
    return Z[: rna.shape[0]], Z[rna.shape[0] :]


def count_numbers(X: sp.csr_matrix) -> dict[str, float]:
    depth = np.asarray(X.sum(1)).ravel()
    low, high = np.quantile(depth, (0.05, 0.95))
    return {
        "depth": float(np.median(depth)),
        "depth_sd": float(np.log(depth[depth > 0]).std()),
        "depth_range": float(high / max(low, 1)),
        "non_zero": X.nnz / np.prod(X.shape),
        "largest": float(X.data.max()),
    }


def feature_numbers(X: sp.csr_matrix) -> dict[str, float]:
    """sd of log feature means, and the median dispersion beyond Poisson and depth."""
    depth = np.asarray(X.sum(1)).ravel()
    mean = np.asarray(X.mean(0)).ravel()
    square = np.asarray(X.multiply(X).mean(0)).ravel()
    seen = mean > 0
    low, high = np.log(np.quantile(mean[seen], (0.05, 0.95)))
    size = np.var(depth / depth.mean())
    many = mean >= np.median(mean)
    excess = (square[many] - mean[many] ** 2 - mean[many]) / mean[many] ** 2
    return {
        "mean_sd": float((high - low) / 3.29),
        "dispersion": float(np.median((excess - size) / (1 + size))),
    }


def type_numbers(X: sp.csr_matrix, labels: np.ndarray) -> dict[str, float]:
    names, codes, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    depth = np.log(np.maximum(np.asarray(X.sum(1)).ravel(), 1))
    large = np.flatnonzero(sizes >= 20)
    by_type = [depth[codes == one].mean() for one in large]
    return {
        "types": len(names),
        "majority": sizes.max() / sizes.sum(),
        "depth_type_sd": float(np.std(by_type)),
    }


def signal(X: sp.csr_matrix, layer: str, labels: np.ndarray) -> dict[str, float]:
    if layer == "atac":
        return {
            "accuracy": knn_accuracy(lsi(X, "us"), labels),
            "accuracy_glue_lsi": knn_accuracy(lsi(X, "glue"), labels),
        }
    if layer == "met":
        Z = np.log1p(X.toarray())
        Z = np.clip((Z - Z.mean(0)) / np.maximum(Z.std(0), 1e-9), -10, 10)
        left, sizes = svd(Z, N_COMPONENTS)
        return {"accuracy": knn_accuracy(left * sizes, labels)}
    return {"accuracy": knn_accuracy(pca(X), labels)}


def batch_numbers(X: sp.csr_matrix, labels: np.ndarray, batch: np.ndarray) -> dict[str, float]:
    """How batches differ: sd of log type shares, and sd of log feature means within a type.

    The feature sd is that of one batch (the difference of two has twice the variance), less the
    variance of the counts themselves, over features with at least 30 counts on both sides.
    """
    names, batches = np.unique(labels), np.unique(batch)
    table = np.array([[((labels == t) & (batch == b)).sum() for t in names] for b in batches])
    table = table[:, table.min(0) >= 10]
    shares = np.log(table / table.sum(1, keepdims=True))
    numbers = {"batches": len(batches), "batch_composition_sd": float(shares.std(0, ddof=1).mean())}
    found = []
    for one in names:
        large = [b for b in batches if ((labels == one) & (batch == b)).sum() >= 40]
        for left, right in itertools.pairwise(large):
            A, B = (
                np.asarray(X[(labels == one) & (batch == b)].sum(0)).ravel() for b in (left, right)
            )
            many = (A >= 30) & (B >= 30)
            if many.sum() >= 20:
                A, B = A[many] / A.sum(), B[many] / B.sum()
                noise = np.mean(1 / (A * X.sum()) + 1 / (B * X.sum()))
                found.append(np.var(np.log(A / B)) - noise)
    if found:
        numbers["batch_feature_sd"] = float(np.sqrt(max(np.median(found), 0) / 2))
    return numbers


def place_numbers(peaks: pd.DataFrame, assembly: str, mirror: Path) -> dict[str, float]:
    """Shares of peaks in a promoter (2 kb upstream), else in a body, else elsewhere."""
    bed = read_bed(mirror / "annotation" / f"{assembly}_genes.bed.gz")
    inside, promoter = np.zeros(len(peaks), dtype=bool), np.zeros(len(peaks), dtype=bool)
    for chrom in peaks["chrom"].unique():
        here = np.flatnonzero((peaks["chrom"] == chrom).to_numpy())
        genes = bed[bed["chrom"] == chrom]
        if not len(genes):
            continue
        start, end = (peaks[one].to_numpy()[here] for one in ("chromStart", "chromEnd"))
        forward = (genes["strand"] == "+").to_numpy()
        tss = np.where(forward, genes["chromStart"], genes["chromEnd"] - 1)
        for mask, low, high in (
            (inside, genes["chromStart"].to_numpy(), genes["chromEnd"].to_numpy()),
            (promoter, tss - np.where(forward, 2_000, 0), tss + np.where(forward, 1, 2_001)),
        ):
            begun = np.searchsorted(np.sort(low), end, side="left")
            ended = np.searchsorted(np.sort(high), start, side="right")
            mask[here] = begun > ended
    return {
        "promoter": float(promoter.mean()),
        "body": float((inside & ~promoter).mean()),
        "distal": float((~inside & ~promoter).mean()),
    }


def gene_numbers(genes: pd.DataFrame) -> dict[str, float]:
    length = (genes["chromEnd"] - genes["chromStart"]).to_numpy().astype(float)
    return {
        "located_genes": len(genes),
        "gene_length": float(np.median(length)),
        "gene_length_sd": float(np.log(length).std()),
    }


def read_bed(path: Path) -> pd.DataFrame:
    names = ["chrom", "chromStart", "chromEnd", "name", "score", "strand"]
    return pd.read_csv(path, sep="\t", header=None, names=names)


def pseudobulk(X: sp.csr_matrix, labels: np.ndarray) -> np.ndarray:
    """log1p of counts per 10,000 of every type with at least 20 cells, (n_types, n_features)."""
    names, sizes = np.unique(labels, return_counts=True)
    rows = [np.asarray(X[labels == one].sum(0)).ravel() for one in names[sizes >= 20]]
    bulk = np.vstack(rows).astype(float)
    return np.log1p(1e4 * bulk / bulk.sum(1, keepdims=True))


def place(features: pd.DataFrame) -> pd.DataFrame:
    """Features with a position, on chromosomes numbered as the genome module wants them."""
    known = features[(features["chrom"].astype(str) != "") & (features["chromStart"] >= 0)].copy()
    known["chrom"] = known["chrom"].astype(str)
    return known


def gene_peak_pairs(genes: pd.DataFrame, peaks: pd.DataFrame, reach: int = 150_000):
    """Candidate pairs of real or simulated tables; positions refer to the tables given."""
    chroms = {name: one for one, name in enumerate(sorted({*genes["chrom"], *peaks["chrom"]}))}
    genes = genes.assign(number=genes["chrom"].map(chroms))
    forward = (genes["strand"] == "+").to_numpy()
    genes["tss"] = np.where(forward, genes["chromStart"], genes["chromEnd"] - 1)
    peaks = peaks.assign(number=peaks["chrom"].map(chroms), at=np.arange(len(peaks)))
    peaks = peaks.sort_values(["number", "chromStart"])
    pairs = candidate_pairs(genes, peaks, reach)
    return pairs, peaks["at"].to_numpy()[pairs.peak]


def link_numbers(
    rna: sp.csr_matrix,
    atac: sp.csr_matrix,
    genes: pd.DataFrame,
    peaks: pd.DataFrame,
    labels: np.ndarray | None,
) -> dict[str, float]:
    """Guidance edges, correlations across type means, and the joint PCA control."""
    at_gene = genes.index.get_indexer(place(genes).index)
    at_peak = peaks.index.get_indexer(place(peaks).index)
    known_genes, known_peaks = place(genes), place(peaks)
    pairs, peak = gene_peak_pairs(known_genes, known_peaks)
    gene, peak = at_gene[pairs.gene], at_peak[peak]
    edge = pairs.near
    shape = (atac.shape[1], rna.shape[1])
    incidence = sp.csr_matrix((np.ones(edge.sum()), (peak[edge], gene[edge])), shape=shape)
    numbers = {
        "edges_per_gene": edge.sum() / len(known_genes),
        "peaks_with_edge": float((np.diff(incidence.indptr) > 0).mean()),
        "peaks_within_150kb": len(np.unique(peak)) / len(peaks),
    }
    activity = sp.csr_matrix(atac @ incidence)
    used = np.asarray(activity.sum(0)).ravel() > 0
    used &= np.asarray(rna.sum(0)).ravel() > 0
    A, B = joint_pca(rna[:, used], activity[:, used])
    numbers["joint_pca_foscttm"] = foscttm(A, B)
    if labels is None:
        return numbers
    from sklearn.neighbors import KNeighborsClassifier

    model = KNeighborsClassifier(N_NEIGHBORS).fit(A, labels)
    numbers["joint_pca_transfer"] = float((model.predict(B) == labels).mean())
    numbers["activity_accuracy"] = knn_accuracy(pca(activity[:, used]), labels)
    E, P = pseudobulk(rna, labels), pseudobulk(atac, labels)
    if len(E) < 5:
        return numbers
    G = pseudobulk(activity, labels)
    seen = (E.std(0) > 0) & (G.std(0) > 0)
    numbers["activity_gene_r"] = float(np.median(_column_r(E[:, seen], G[:, seen])))
    ok = edge & (E.std(0)[gene] > 0) & (P.std(0)[peak] > 0)
    # Abundant peaks alone: correlations of rare ones are noise.
    counts = np.asarray(atac.sum(0)).ravel()
    ok &= counts[peak] >= np.quantile(counts, 0.75)
    true = _column_r(E[:, gene[ok]], P[:, peak[ok]])
    # The same peaks with random genes: what correlation means without a link.
    rng = np.random.default_rng(0)
    spread = np.flatnonzero(E.std(0) > 0)
    null = _column_r(E[:, rng.choice(spread, ok.sum())], P[:, peak[ok]])
    numbers["edge_r"] = float(np.mean(true))
    numbers["null_r"] = float(np.mean(null))
    # Excess over the null beyond 0.5: a lower bound for the share of edges that mean something.
    numbers["edge_excess"] = float((true > 0.5).mean() - (null > 0.5).mean())
    return numbers


def _column_r(X: np.ndarray, Y: np.ndarray) -> np.ndarray:
    X, Y = X - X.mean(0), Y - Y.mean(0)
    return (X * Y).sum(0) / np.sqrt((X**2).sum(0) * (Y**2).sum(0))


def describe_layers(
    name: str,
    counts: dict[str, sp.csr_matrix],
    features: dict[str, pd.DataFrame],
    labels: dict[str, np.ndarray],
    paired: bool,
    seed: int = 0,
) -> list[dict[str, object]]:
    rows = []
    for layer, X in counts.items():
        row: dict[str, object] = {"set": name, "seed": seed, "layer": layer}
        row |= {"cells": X.shape[0], "features": X.shape[1]}
        row |= count_numbers(X) if layer != "met" else {}
        row |= feature_numbers(X) if layer != "met" else {}
        if len(np.unique(labels[layer])) > 1:
            row |= type_numbers(X, labels[layer])
            row |= signal(X, layer, labels[layer])
        rows.append(row)
    if paired and {"rna", "atac"} <= set(counts):
        rna, atac = counts["rna"], counts["atac"]
        has_labels = len(np.unique(labels["rna"])) > 1
        extra = link_numbers(
            rna,
            atac,
            features["rna"],
            features["atac"],
            labels["rna"] if has_labels else None,
        )
        depths = [np.log(np.maximum(np.asarray(X.sum(1)).ravel(), 1)) for X in (rna, atac)]
        extra["depth_correlation"] = float(np.corrcoef(*depths)[0, 1])
        rows.append({"set": name, "seed": seed, "layer": "links", "cells": rna.shape[0]} | extra)
    return rows


def real_rows(mirror: Path, names: list[str], most: int) -> list[dict[str, object]]:
    import anndata as ad

    rows = []
    for name in names:
        assembly, dropped = REAL[name]
        layers = Layers.read(mirror / name).layers
        obs = {one: ad.read_h5ad(mirror / name / f"{one}.h5ad", backed="r").obs for one in layers}
        first = next(iter(layers))
        keep = ~obs[first]["cell_type"].astype(str).isin(dropped).to_numpy()
        n = keep.sum()
        if n > most:
            chosen = np.random.default_rng(0).choice(np.flatnonzero(keep), most, replace=False)
        else:
            chosen = np.flatnonzero(keep)
        names_there = layers[first].cells[chosen]
        counts, labels, ats = {}, {}, {}
        for layer, one in layers.items():
            at = pd.Index(one.cells).get_indexer(names_there)
            counts[layer], ats[layer] = one.counts[at], at
            labels[layer] = obs[layer]["cell_type"].astype(str).to_numpy()[at]
        features = {layer: one.features for layer, one in layers.items()}
        rows += describe_layers(name, counts, features, labels, paired=len(layers) > 1)
        if "atac" in features:
            known = place(features["atac"])
            rows.append({"set": name, "layer": "genome"} | place_numbers(known, assembly, mirror))
            if "rna" in features:
                rows[-1] |= gene_numbers(place(features["rna"]))
        for layer, X in counts.items():
            if name in BATCHES:
                batch = obs[layer][BATCHES[name]].astype(str).to_numpy()[ats[layer]]
                row = {"set": name, "layer": "batch", "of": layer}
                rows.append(row | batch_numbers(X, labels[layer], batch))
    return rows


def simulated_rows(names: list[str], n_cells: int, n_seeds: int) -> list[dict[str, object]]:
    rows = []
    for name in names:
        for seed in range(n_seeds):
            mdata = in_memory(name, n_cells, seed)
            counts = {layer: mdata[layer].X for layer in mdata.mod}
            features = {layer: mdata[layer].var for layer in mdata.mod}
            labels = {
                layer: mdata[layer].obs["cell_type"].astype(str).to_numpy() for layer in mdata.mod
            }
            rows += describe_layers(
                f"sim_{name}", counts, features, labels, PRESETS[name].paired, seed
            )
            if rows[-1]["layer"] == "links":
                rows[-1] |= planted_numbers(name, seed)
            truth = plant(PRESETS[name], seed)
            row = {"set": f"sim_{name}", "seed": seed, "layer": "genome"}
            if truth.peaks is not None:
                row |= truth.peaks["region"].value_counts(normalize=True).to_dict()
            rows.append(row | gene_numbers(truth.genes))
            for layer in mdata.mod if PRESETS[name].n_batches > 1 else ():
                batch = mdata[layer].obs["batch"].astype(str).to_numpy()
                row = {"set": f"sim_{name}", "seed": seed, "layer": "batch", "of": layer}
                rows.append(row | batch_numbers(counts[layer], labels[layer], batch))
    return rows


def planted_numbers(name: str, seed: int) -> dict[str, float]:
    """Return what only a simulation knows: which guidance edges are planted links."""
    truth = plant(PRESETS[name], seed)
    if truth.peaks is None:
        return {}
    pairs = candidate_pairs(truth.genes, truth.peaks, PRESETS[name].max_link_distance)
    genes, peaks = truth.genes.index.to_numpy(), truth.peaks.index.to_numpy()
    near = set(zip(genes[pairs.gene[pairs.near]], peaks[pairs.peak[pairs.near]], strict=True))
    links = truth.links[truth.links["layer"] == "atac"]
    planted = set(zip(links["gene"], links["feature"], strict=True))
    regions_of = truth.peaks["region"].reindex(links["feature"]).to_numpy()
    quarters = np.quantile(links["distance"][regions_of == "distal"], (0.25, 0.5, 0.75))
    return {
        "wrong_edges": 1 - len(near & planted) / len(near),
        "links_without_edge": 1 - len(near & planted) / len(planted),
        "regulatory_peaks": float((truth.peaks["role"] == "regulatory").mean()),
        "distal_links": float((regions_of == "distal").mean()),
        "distal_q25": quarters[0],
        "distal_q50": quarters[1],
        "distal_q75": quarters[2],
    }


def evidence_rows(mirror: Path) -> list[dict[str, object]]:
    """Where the genes of published enhancer-gene pairs lie relative to the enhancers."""
    rows = []
    crispr = pd.read_csv(
        mirror / "evidence/EPCrisprBenchmark_training_K562.GRCh38.tsv.gz", sep="\t"
    )
    bed = read_bed(mirror / "annotation/hg38_genes.bed.gz")
    bed = bed.drop_duplicates("name").set_index("name")
    positive = crispr[crispr["Regulated"].astype(str).str.lower() == "true"]
    positive = positive[positive["measuredGeneSymbol"].isin(bed.index)]
    gene = bed.loc[positive["measuredGeneSymbol"]]
    low, high = regions(gene)
    start, end = positive["chromStart"].to_numpy(), positive["chromEnd"].to_numpy()
    tss = np.where(gene["strand"] == "+", gene["chromStart"], gene["chromEnd"] - 1)
    distance = np.maximum(np.maximum(start - tss, tss - end + 1), 0)
    near = (start < high) & (end > low)
    quarters = np.quantile(distance, (0.25, 0.5, 0.75))
    rows.append(
        {
            "set": "CRISPR K562 positives",
            "layer": "evidence",
            "links": len(positive),
            "outside_own_region": float((~near).mean()),
            "within_150kb": float((distance <= 150_000).mean()),
            "distance_q25": quarters[0],
            "distance_q50": quarters[1],
            "distance_q75": quarters[2],
        }
    )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mirror", type=Path, default=Path("../shared/data"))
    parser.add_argument("--preset", nargs="*", default=PRESETS.names())
    parser.add_argument("--real", nargs="*", default=list(REAL))
    parser.add_argument("--cells", type=int, default=800)
    parser.add_argument("--real-cells", type=int, default=5_000, help="at most, of a real set")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="also write the rows as a tab-separated file")
    args = parser.parse_args()
    rows = []
    if args.mirror.is_dir():
        rows += real_rows(args.mirror, args.real, args.real_cells) + evidence_rows(args.mirror)
    rows += simulated_rows(args.preset, args.cells, args.seeds)
    table = pd.DataFrame(rows)
    if args.output:
        table.to_csv(args.output, sep="\t", index=False)
    table["of"] = table["of"].fillna("") if "of" in table else ""
    keys = ["set", "layer", "of"]
    means = table.groupby(keys, sort=False).mean(numeric_only=True).reset_index()
    for layer in ("rna", "atac", "adt", "met", "links", "genome", "batch", "evidence"):
        part = means[means["layer"] == layer].dropna(axis=1, how="all")
        part = part.drop(columns=["seed", "layer"], errors="ignore")
        part = part.loc[:, (part != "").any()]
        if len(part):
            print(f"\n{layer} (simulated: mean of {args.seeds} seeds)")
            print(part.to_string(index=False, float_format=lambda v: f"{v:.3g}"))


if __name__ == "__main__":
    main()
