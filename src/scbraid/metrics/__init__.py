"""Metrics of integrated embeddings: arrays in, numbers out.

Each metric has a public function on arrays; :data:`METRICS` knows all of them by name with their
exact definition, direction, range and needs; :func:`score` computes any number of them for one
embedding and computes what they share once.
"""

from __future__ import annotations

from scbraid.metrics.average_precision import mean_average_precision
from scbraid.metrics.bras import bras
from scbraid.metrics.cell_cycle import cell_cycle_conservation
from scbraid.metrics.clustering import (
    RESOLUTIONS,
    adjusted_rand_index,
    kmeans_clusters,
    leiden_partitions,
    leiden_scan,
    louvain_scan,
    normalized_mutual_information,
)
from scbraid.metrics.connectivities import fuzzy_connectivities
from scbraid.metrics.feature_consistency import feature_consistency
from scbraid.metrics.foscttm import closer_fractions, foscttm, foscttm_estimate
from scbraid.metrics.graph_connectivity import graph_connectivity, graph_connectivity_strong
from scbraid.metrics.integration_consistency import (
    METACELL_COUNTS,
    FeatureEdges,
    integration_consistency,
    metacells,
)
from scbraid.metrics.isolated_labels import isolated_label_asw, isolated_label_f1
from scbraid.metrics.kbet import kbet, kbet_per_label
from scbraid.metrics.label_transfer import (
    decided_accuracy,
    label_transfer_accuracy,
    majority_share,
    transfer_labels,
    vote,
)
from scbraid.metrics.lisi import clisi, ilisi, lisi_samples
from scbraid.metrics.neighbor_conservation import jaccard_overlaps, neighbor_conservation
from scbraid.metrics.neighbors import Neighbors, nearest_neighbors, neighbor_strips
from scbraid.metrics.pcr import (
    batch_pcr_comparison,
    explained_by_covariates,
    explained_by_groups,
    pcr_comparison,
)
from scbraid.metrics.registry import (
    METRICS,
    Metric,
    Score,
    benchmark_metrics,
    default_metrics,
    describe_metrics,
    score,
)
from scbraid.metrics.sampling import Estimate
from scbraid.metrics.seurat_alignment import seurat_alignment
from scbraid.metrics.silhouette import (
    batch_asw,
    cell_type_asw,
    omics_layer_asw,
    silhouette_samples,
)
from scbraid.metrics.trajectory import diffusion_pseudotime, trajectory_conservation
from scbraid.metrics.umap_kmeans import umap_kmeans
from scbraid.metrics.workspace import Inputs

__all__ = [
    "METACELL_COUNTS",
    "METRICS",
    "RESOLUTIONS",
    "Estimate",
    "FeatureEdges",
    "Inputs",
    "Metric",
    "Neighbors",
    "Score",
    "adjusted_rand_index",
    "batch_asw",
    "batch_pcr_comparison",
    "benchmark_metrics",
    "bras",
    "cell_cycle_conservation",
    "cell_type_asw",
    "clisi",
    "closer_fractions",
    "decided_accuracy",
    "default_metrics",
    "describe_metrics",
    "diffusion_pseudotime",
    "explained_by_covariates",
    "explained_by_groups",
    "feature_consistency",
    "foscttm",
    "foscttm_estimate",
    "fuzzy_connectivities",
    "graph_connectivity",
    "graph_connectivity_strong",
    "ilisi",
    "integration_consistency",
    "isolated_label_asw",
    "isolated_label_f1",
    "jaccard_overlaps",
    "kbet",
    "kbet_per_label",
    "kmeans_clusters",
    "label_transfer_accuracy",
    "leiden_partitions",
    "leiden_scan",
    "lisi_samples",
    "louvain_scan",
    "majority_share",
    "mean_average_precision",
    "metacells",
    "nearest_neighbors",
    "neighbor_conservation",
    "neighbor_strips",
    "normalized_mutual_information",
    "omics_layer_asw",
    "pcr_comparison",
    "score",
    "seurat_alignment",
    "silhouette_samples",
    "trajectory_conservation",
    "transfer_labels",
    "umap_kmeans",
    "vote",
]
