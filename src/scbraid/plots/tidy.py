"""Tidy tables of scores and runs, made ready for drawing: names, roles, order, spread."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from scbraid.errors import DataError

DEFAULT_PRESET = "default"
ROLES = ("subject", "baseline", "control", "oracle")
STATUSES = ("ok", "failed", "timeout", "out_of_memory", "not_applicable", "missing")
AGGREGATES = ("bio", "mixing", "overall")
# What makes a row of a figure: one method, as configured, on one condition of one data set.
ROW = ["dataset", "condition", "method_id"]

SCORE_COLUMNS = (
    *("dataset", "condition", "method", "preset", "seed"),
    *("metric", "definition", "value", "status"),
)
RUN_COLUMNS = ("dataset", "condition", "method", "preset", "seed", "status")


@dataclasses.dataclass(frozen=True)
class MetricDisplay:
    """How a metric is shown.

    Attributes
    ----------
    label
        Short name; a line feed where a narrow column may break it.
    group
        ``biology``, ``mixing``, ``alignment``, ``task``, ``other``, ``aggregate``, ``cost`` or
        ``diagnostic``.
    higher_is_better
        Direction; None for numbers to read others by.
    """

    label: str
    group: str
    higher_is_better: bool | None = True


# Order is the order of columns in every table and figure.
METRICS: dict[str, MetricDisplay] = {
    "map": MetricDisplay("MAP", "biology"),
    "cell_type_asw": MetricDisplay("type\nASW", "biology"),
    "neighbor_conservation": MetricDisplay("neighb.\ncons.", "biology"),
    "nmi": MetricDisplay("NMI", "biology"),
    "ari": MetricDisplay("ARI", "biology"),
    "seurat_alignment": MetricDisplay("Seurat\nalign.", "mixing"),
    "omics_asw": MetricDisplay("omics\nASW", "mixing"),
    "graph_connectivity": MetricDisplay("graph\nconn.", "mixing"),
    "foscttm": MetricDisplay("FOSC-\nTTM", "alignment", higher_is_better=False),
    "transfer_accuracy": MetricDisplay("transfer\nacc.", "alignment"),
    "rmse": MetricDisplay("RMSE", "task", higher_is_better=False),
    "mae": MetricDisplay("MAE", "task", higher_is_better=False),
    "rmse_per_target": MetricDisplay("RMSE\ntarget", "task", higher_is_better=False),
    "pearson_per_target": MetricDisplay("r per\ntarget", "task"),
    "pearson_per_cell": MetricDisplay("r per\ncell", "task"),
    "matching_probability": MetricDisplay("match\nprob.", "task"),
    "matching_probability_reverse": MetricDisplay("prob.\nreverse", "task"),
    "matching_top1": MetricDisplay("match\ntop 1", "task"),
    "matching_over_chance": MetricDisplay("over\nchance", "task"),
    "matching_chance": MetricDisplay("chance", "task", None),
    "joint_mean": MetricDisplay("mean\nof six", "task"),
    "joint_weighted": MetricDisplay("0.6/0.4\nmean", "task"),
    "imputation_auroc_matched": MetricDisplay("AUROC\nmatched", "task"),
    "imputation_auroc": MetricDisplay("AUROC\ncell", "task"),
    "imputation_average_precision": MetricDisplay("AP\ncell", "task"),
    "imputation_auroc_per_peak": MetricDisplay("AUROC\npeak", "task"),
    "imputation_type_correlation": MetricDisplay("type\nr", "task"),
    "bio": MetricDisplay("biology", "aggregate"),
    "mixing": MetricDisplay("mixing", "aggregate"),
    "overall": MetricDisplay("overall", "aggregate"),
    "scib_bio": MetricDisplay("scIB\nbiology", "aggregate"),
    "scib_batch": MetricDisplay("scIB\nbatch", "aggregate"),
    "scib_overall": MetricDisplay("scIB\noverall", "aggregate"),
    "seconds": MetricDisplay("time", "cost", higher_is_better=False),
}
GROUPS = {
    "biology": "Biology",
    "mixing": "Mixing",
    "alignment": "Alignment",
    "task": "Tasks",
    "other": "Other",
    "aggregate": "Aggregate",
    "cost": "Cost",
    "diagnostic": "Diagnostic",
}
_SCALED = "_scaled"


def _described(name: str) -> Any:
    """Find what the registries of metrics say of a name; None for a name that they do not hold."""
    from scbraid.metrics.registry import METRICS as REGISTRY
    from scbraid.metrics.tasks import TASK_METRICS
    from scbraid.metrics.tasks.derived import DERIVED_METRICS

    for registry in (REGISTRY, TASK_METRICS, DERIVED_METRICS):
        if name in registry:
            return registry[name]
    return None


def metric_display(metric: str) -> MetricDisplay:
    """How a metric is shown: as listed above, else as the registries of metrics describe it.

    The scaled form of a metric, ``<metric>_scaled``, stands in the metric's group; higher is
    better. A metric that nothing knows is shown under its own name, higher taken as better.
    """
    name = metric.partition("@")[0]
    if name in METRICS:
        return METRICS[name]
    base = name.removesuffix(_SCALED)
    if base != name and (base in METRICS or _described(base)):
        display = metric_display(base)
        return MetricDisplay(f"{display.label}\nscaled", display.group)
    known = _described(name)
    if known is None:
        return MetricDisplay(name.replace("_", "\n"), "other")
    higher = {"higher": True, "lower": False}.get(known.direction)
    return MetricDisplay(known.title.replace(" ", "\n"), known.group, higher)


def metric_title(metric: str) -> str:
    """Full name of a metric on one line."""
    name = metric.partition("@")[0]
    base = name.removesuffix(_SCALED)
    known = _described(base)
    if known is None:
        return metric_display(name).label.replace("\n", " ")
    return str(known.title) + (", scaled" if base != name else "")


def shown_metrics(metrics: Iterable[str]) -> list[str]:
    """Metrics that a figure shows unasked.

    Those listed above, those of tasks, and those that no registry knows. Diagnostics, further forms
    of what is shown, scaled ones, and metrics by batch stand in every table, but in a figure only
    on request.
    """

    def unasked(metric: str) -> bool:
        name = metric.partition("@")[0]
        if name in METRICS:
            return True
        group = metric_display(name).group
        return group == "other" or (group == "task" and not name.endswith(_SCALED))

    return [metric for metric in metric_order(metrics) if unasked(metric)]


def metric_order(metrics: Iterable[str]) -> list[str]:
    """Distinct metrics: grouped, the listed ones first in their order, then by name."""
    groups, listed = list(GROUPS), list(METRICS)

    def place(metric: str) -> tuple[int, int, str]:
        name = metric.partition("@")[0]
        rank = listed.index(name) if name in METRICS else len(listed)
        return groups.index(metric_display(metric).group), rank, metric

    return sorted(set(metrics), key=place)


def require_columns(table: pd.DataFrame, columns: Sequence[str], what: str) -> None:
    """Refuse a table that lacks columns.

    Raises
    ------
    DataError
        Naming the table, the missing columns and those found.
    """
    missing = [column for column in columns if column not in table.columns]
    if missing:
        msg = (
            f"{what} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}; "
            f"it has: {', '.join(map(str, table.columns)) or '(none)'}"
        )
        raise DataError(msg)


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a TSV file of the pipeline; an empty field is a missing value, and nothing else is.

    Raises
    ------
    DataError
        When the file is absent, empty or no table.
    """
    path = Path(path)
    try:
        return pd.read_csv(path, sep="\t", keep_default_na=False, na_values=[""])
    except FileNotFoundError as error:
        msg = f"no table at {path}; run the step that writes it"
        raise DataError(msg) from error
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        msg = f"{path} is no tab-separated table ({error}); remove it and run again"
        raise DataError(msg) from error


def _text(column: pd.Series) -> pd.Series:
    return column.astype(object).where(column.notna(), "").astype(str)


def split_uses(uses: Any) -> tuple[str, ...]:
    """Names in a ``uses`` field: text with commas, spaces or semicolons between, or a sequence."""
    if uses is None or (isinstance(uses, float) and uses != uses):
        return ()
    words = uses.replace(",", " ").replace(";", " ").split() if isinstance(uses, str) else uses
    return tuple(sorted(str(word) for word in words))


def method_slug(method: str, preset: str) -> str:
    """Identity of a configured method, as its run folder is called: ``glue.paper+latent_dim=20``.

    Parameters
    ----------
    method
        Name, possibly with preset and options behind it (``glue.paper``, ``glue:latent_dim=20``).
    preset
        Preset; empty or ``default`` for none.
    """
    head, options = _split_options(method)
    if preset not in ("", DEFAULT_PRESET) and not head.endswith(f".{preset}"):
        head = f"{head}.{preset}"
    return f"{head}+{options}" if options else head


def _split_options(method: str) -> tuple[str, str]:
    at = min((place for place in map(method.find, ":+") if place >= 0), default=len(method))
    return method[:at], method[at + 1 :]


def base_name(method: str) -> str:
    """Registry name of a method, without preset and options."""
    return _split_options(method)[0].partition(".")[0]


def _label(shown: str, method: str, preset: str) -> str:
    head, options = _split_options(method)
    inner = head.partition(".")[2]
    details = [preset if preset not in ("", DEFAULT_PRESET) else inner, *options.split(",")]
    details = [detail for detail in details if detail]
    shown = shown or base_name(method)
    return f"{shown} ({', '.join(details)})" if details else shown


def add_identity(table: pd.DataFrame) -> pd.DataFrame:
    """Return a copy with ``method_id``, ``label``, ``role`` and ``uses`` for every row.

    ``method_id`` is the name with preset and options (``glue.paper+latent_dim=20``). ``label`` is
    the display name with preset and options in brackets. Columns ``display_name``, ``role`` and
    ``uses`` of the table are taken where they exist; a method without display name is shown by its
    name, one without role as a baseline.
    """
    table = table.copy()
    for column in ("dataset", "condition", "method", "preset"):
        table[column] = _text(table[column])
    names = _text(table["display_name"]) if "display_name" in table else [""] * len(table)
    pairs = list(zip(table["method"], table["preset"], strict=True))
    table["method_id"] = [method_slug(*pair) for pair in pairs]
    table["label"] = [_label(name, *pair) for name, pair in zip(names, pairs, strict=True)]
    role = _text(table["role"]) if "role" in table else pd.Series("", index=table.index)
    table["role"] = role.where(role.isin(ROLES), "baseline")
    if "uses" in table:
        table["uses"] = [split_uses(uses) for uses in table["uses"]]
    else:
        table["uses"] = [()] * len(table)
    return table


def add_method_info(table: pd.DataFrame, methods: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Add ``display_name``, ``role`` and ``uses`` from what ``scbraid list methods --json`` states.

    Parameters
    ----------
    table
        Any table with a column ``method``; what stands behind the name (``glue+latent_dim=20``,
        ``glue.paper``) does not matter.
    methods
        One mapping a method, with ``name`` and, as known, ``title``, ``role`` and ``uses``.
    """
    known = {str(method["name"]): method for method in methods}
    found = [known.get(base_name(method), {}) for method in _text(table["method"])]
    return table.assign(
        display_name=[info.get("title") or "" for info in found],
        role=[info.get("role") or "" for info in found],
        uses=[",".join(split_uses(info.get("uses"))) for info in found],
    )


def copy_method_info(table: pd.DataFrame, source: pd.DataFrame) -> pd.DataFrame:
    """Add ``display_name``, ``role`` and ``uses`` by method from another table that has them."""
    columns = [c for c in ("display_name", "role", "uses") if c in source and c not in table]
    info = source.drop_duplicates("method")[["method", *columns]]
    return table.merge(info, on="method", how="left") if columns else table


def prepare_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """Check a long table of scores and add identities; values become numbers.

    Where one metric stands under several definitions, its name becomes ``metric@definition``.

    Raises
    ------
    DataError
        When columns are missing or a value is no number.
    """
    require_columns(scores, SCORE_COLUMNS, "the table of scores")
    table = add_identity(scores)
    for column in ("metric", "definition", "status"):
        table[column] = _text(table[column])
    value = pd.to_numeric(table["value"], errors="coerce")
    broken = value.isna() & table["value"].notna() & (_text(table["value"]).str.strip() != "")
    if broken.any():
        row = table[broken].iloc[0]
        msg = (
            f"the table of scores has {int(broken.sum())} values that are no numbers (first: "
            f"{row['value']!r} for {row['metric']} of {row['method_id']} on {row['dataset']})"
        )
        raise DataError(msg)
    table["value"] = value.astype(float)
    several = table.groupby("metric")["definition"].transform("nunique") > 1
    table["metric"] = table["metric"].where(~several, table["metric"] + "@" + table["definition"])
    return table


def prepare_runs(runs: pd.DataFrame, numbers: Sequence[str] = ()) -> pd.DataFrame:
    """Check a table of runs and add identities; the columns in `numbers` become numbers.

    Raises
    ------
    DataError
        When columns are missing.
    """
    require_columns(runs, (*RUN_COLUMNS, *numbers), "the table of runs")
    table = add_identity(runs)
    table["status"] = _text(table["status"])
    for column in numbers:
        table[column] = pd.to_numeric(table[column], errors="coerce").astype(float)
    return table


def runs_of_scores(scores: pd.DataFrame) -> pd.DataFrame:
    """One row a run with its status, from prepared scores.

    A run is ok as soon as one of its metrics is: a metric that does not apply to the data (FOSCTTM
    without pairs) does not make the run a failure.
    """
    keys = [*ROW, "seed"]
    rank = {status: at for at, status in enumerate(STATUSES)}
    ordered = scores.assign(_rank=scores["status"].map(rank).fillna(len(rank)))
    # Stable sort: among rows of equal rank the first of the table speaks.
    return (
        ordered.sort_values("_rank", kind="stable")
        .drop_duplicates(keys)
        .sort_values(keys)[[*keys, "label", "role", "uses", "status"]]
        .reset_index(drop=True)
    )


def run_conditions(rows: pd.DataFrame, runs: pd.DataFrame) -> list[str]:
    """Condition under which the run behind each row stands.

    A method that ignores the guidance graph is run once for all its corruptions: such rows point to
    the run of the data part alone.
    """
    identified = add_identity(runs)
    known = set(map(tuple, identified[ROW].astype(str).to_numpy()))
    return [
        row.condition
        if (row.dataset, row.condition, row.method_id) in known
        else row.condition.partition("@")[0]
        for row in rows.itertuples(index=False)
    ]


def pool_draws(table: pd.DataFrame) -> pd.DataFrame:
    """Take conditions that differ in the seed of a draw alone as one, with more runs.

    Draws are choices that `prepare` makes at random: test cells (``split_seed``), cells
    (``subsample_seed``), hidden peaks (``hidden_seed``) and the like; not the corruption of a
    guidance graph, over which :func:`scbraid.plots.robustness_curve` goes.

    Parameters
    ----------
    table
        Any table with dataset, condition and seed.

    Returns
    -------
    DataFrame
        A copy. Where conditions of a data set differ in draws alone, ``condition`` lacks the seeds
        of the draws, and ``seed`` is a text that has them: ``0, split_seed=3``. Where nothing is
        pooled, the table stays as it is.
    """
    places = table[["dataset", "condition"]].drop_duplicates()
    parts = [_without_draws(condition) for condition in places["condition"]]
    places = places.assign(base=[base for base, _ in parts], draws=[draws for _, draws in parts])
    words = {}
    for (dataset, base), own in places.groupby(["dataset", "base"], sort=False):
        names = sorted({name for draws in own["draws"] for name in draws})
        for condition, draws in zip(own["condition"], own["draws"], strict=True):
            # A seed that is not named is at its default.
            told = [f"{name}={draws.get(name, '0')}" for name in names]
            words[dataset, condition] = (base, ", ".join(told)) if len(own) > 1 else (condition, "")
    if not any(told for _, told in words.values()):
        return table.copy()
    found = [words[place] for place in zip(table["dataset"], table["condition"], strict=True)]
    seeds = [
        f"{seed}, {told}" if told else str(seed)
        for seed, (_, told) in zip(table["seed"], found, strict=True)
    ]
    return table.assign(condition=[base for base, _ in found], seed=seeds)


def _without_draws(condition: str) -> tuple[str, dict[str, str]]:
    """Split a condition into what it is without the seeds of draws, and these by name."""
    data, at_sign, guidance = condition.partition("@")
    kept, draws = [], {}
    for part in data.split("+"):
        name, _, value = part.partition("=")
        if name.endswith("_seed"):
            draws[name] = value
        else:
            kept.append(part)
    return "+".join(kept) + at_sign + guidance, draws


def seed_words(table: pd.DataFrame) -> str:
    """What the points of a figure are: ``seeds``, or ``seeds and draws`` where draws are pooled."""
    pooled = table["seed"].astype(str).str.contains("_seed=", regex=False).any()
    return "seeds and draws" if pooled else "seeds"


def whole_numbers(column: pd.Series) -> pd.Series:
    """Seeds or counts as integers with missing values; seeds of pooled draws stay texts."""
    return column.astype("Int64") if pd.api.types.is_numeric_dtype(column) else column


def spread(table: pd.DataFrame, by: Sequence[str], value: str = "value") -> pd.DataFrame:
    """Mean, sd, minimum, maximum and number of values of each group, missing ones left out.

    The standard deviation is that of a sample (ddof = 1) and missing for one value.
    """
    present = table[table[value].notna()]
    grouped = present.groupby(list(by), sort=True)[value]
    return grouped.agg(mean="mean", sd="std", min="min", max="max", n="count").reset_index()


def method_rows(table: pd.DataFrame, order_by: pd.Series | None = None) -> pd.DataFrame:
    """Distinct methods with label, role and uses, in the order of every figure.

    Roles come first (subjects, baselines, controls, oracles); within a role, falling `order_by`
    (indexed by method_id), methods without it last, then by label.
    """
    methods = table.drop_duplicates("method_id")[["method_id", "label", "role", "uses"]].copy()
    methods["_role"] = methods["role"].map(ROLES.index)
    methods["_by"] = 0.0 if order_by is None else -methods["method_id"].map(order_by).astype(float)
    methods["_name"] = methods["label"].str.casefold()
    methods = methods.sort_values(["_role", "_by", "_name", "method_id"], na_position="last")
    return methods.drop(columns=["_role", "_by", "_name"]).reset_index(drop=True)


def facets(table: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Distinct (dataset, condition, title), sorted; titles leave out what all have in common."""
    pairs = sorted(
        {(str(d), str(c)) for d, c in zip(table["dataset"], table["condition"], strict=True)}
    )
    datasets, conditions = {d for d, _ in pairs}, {c for _, c in pairs}
    titles = []
    for dataset, condition in pairs:
        if len(pairs) == 1:
            title = f"{dataset} · {condition}"
        elif len(conditions) == 1:
            title = dataset
        elif len(datasets) == 1:
            title = condition
        else:
            title = f"{dataset} · {condition}"
        titles.append((dataset, condition, title))
    return titles


def at(table: pd.DataFrame, dataset: str, condition: str) -> pd.DataFrame:
    """Rows of one data set and condition."""
    return table[(table["dataset"] == dataset) & (table["condition"] == condition)]


def marked(label: str, uses: Sequence[str]) -> str:
    """Label with a dagger for methods that see labels, a double one for those that see pairing."""
    return label + "†" * ("labels" in uses) + "‡" * ("pairing" in uses)


def mark_note(uses: Iterable[Sequence[str]]) -> str:
    """Sentence that explains the marks of :func:`marked`; empty where none is used."""
    seen = {use for each in uses for use in each}
    notes = ["†\u00a0sees cell-type labels."] * ("labels" in seen)
    notes += ["‡\u00a0sees which cells are pairs."] * ("pairing" in seen)
    return " ".join(notes)
