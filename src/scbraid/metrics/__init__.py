"""Metrics of integrated embeddings: arrays in, numbers out.

Each metric has a public function on arrays; :data:`METRICS` knows all of them by name with their
exact definition, direction, range and needs; :func:`score` computes any number of them for one
embedding and computes what they share once.
"""

from __future__ import annotations

from scbraid.metrics.average_precision import mean_average_precision
from scbraid.metrics.clustering import (
    RESOLUTIONS,
    adjusted_rand_index,
    leiden_partitions,
    normalized_mutual_information,
)
from scbraid.metrics.connectivities import fuzzy_connectivities
from scbraid.metrics.feature_consistency import feature_consistency
from scbraid.metrics.foscttm import closer_fractions, foscttm
from scbraid.metrics.graph_connectivity import graph_connectivity
from scbraid.metrics.integration_consistency import (
    METACELL_COUNTS,
    FeatureEdges,
    integration_consistency,
    metacells,
)
from scbraid.metrics.label_transfer import (
    label_transfer_accuracy,
    majority_share,
    transfer_labels,
)
from scbraid.metrics.neighbor_conservation import jaccard_overlaps, neighbor_conservation
from scbraid.metrics.neighbors import Neighbors, nearest_neighbors, neighbor_strips
from scbraid.metrics.registry import METRICS, Metric, Score, describe_metrics, score
from scbraid.metrics.seurat_alignment import seurat_alignment
from scbraid.metrics.silhouette import cell_type_asw, omics_layer_asw, silhouette_samples
from scbraid.metrics.workspace import Inputs

__all__ = [
    "METACELL_COUNTS",
    "METRICS",
    "RESOLUTIONS",
    "FeatureEdges",
    "Inputs",
    "Metric",
    "Neighbors",
    "Score",
    "adjusted_rand_index",
    "cell_type_asw",
    "closer_fractions",
    "describe_metrics",
    "feature_consistency",
    "foscttm",
    "fuzzy_connectivities",
    "graph_connectivity",
    "integration_consistency",
    "jaccard_overlaps",
    "label_transfer_accuracy",
    "leiden_partitions",
    "majority_share",
    "mean_average_precision",
    "metacells",
    "nearest_neighbors",
    "neighbor_conservation",
    "neighbor_strips",
    "normalized_mutual_information",
    "omics_layer_asw",
    "score",
    "seurat_alignment",
    "silhouette_samples",
    "transfer_labels",
]
