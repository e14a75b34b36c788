"""Metrics of tasks other than an embedding: predictions, matchings, imputations, links, lineages.

Each metric has a public function on arrays; :data:`TASK_METRICS` knows those with one number by
name, in the form of `scbraid.metrics.METRICS`; :func:`score_tasks` computes any number of them.
"""

from __future__ import annotations

from scbraid.metrics.tasks.descriptors import (
    TASK_METRICS,
    TaskInputs,
    describe_task_metrics,
    score_tasks,
)
from scbraid.metrics.tasks.imputation import (
    hidden_auroc,
    hidden_auroc_matched,
    hidden_auroc_per_peak,
    hidden_average_precision,
    type_profile_correlation,
)
from scbraid.metrics.tasks.lineage import chain_f1, chain_recovered, lineage_tau, stage_tree
from scbraid.metrics.tasks.matching import (
    assignment_accuracy,
    matching_chance,
    matching_probability,
    matching_top1,
    row_stochastic,
)
from scbraid.metrics.tasks.prediction import (
    Correlations,
    TargetErrors,
    correlations,
    mae,
    mean_target_rmse,
    rmse,
    target_errors,
)
from scbraid.metrics.tasks.ranking import (
    DISTANCE_EDGES,
    DistanceBins,
    auroc,
    average_precision_score,
    by_distance,
    kendall_tau,
)
from scbraid.metrics.tasks.regression import RegressionR2, metacell_profiles, regression_r2

__all__ = [
    "DISTANCE_EDGES",
    "TASK_METRICS",
    "Correlations",
    "DistanceBins",
    "RegressionR2",
    "TargetErrors",
    "TaskInputs",
    "assignment_accuracy",
    "auroc",
    "average_precision_score",
    "by_distance",
    "chain_f1",
    "chain_recovered",
    "correlations",
    "describe_task_metrics",
    "hidden_auroc",
    "hidden_auroc_matched",
    "hidden_auroc_per_peak",
    "hidden_average_precision",
    "kendall_tau",
    "lineage_tau",
    "mae",
    "matching_chance",
    "matching_probability",
    "matching_top1",
    "mean_target_rmse",
    "metacell_profiles",
    "regression_r2",
    "rmse",
    "row_stochastic",
    "score_tasks",
    "stage_tree",
    "target_errors",
    "type_profile_correlation",
]
