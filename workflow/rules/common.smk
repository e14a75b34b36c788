# Configuration, plan and helpers of all rules. Everything that is wrong with the configuration is
# said here, before any job starts.
import sys
from pathlib import Path
from types import SimpleNamespace

from snakemake.exceptions import WorkflowError

ROOT = Path(str(workflow.current_basedir)).parents[1]
sys.path.insert(0, str(ROOT / "src"))

from scbraid.conditions import Condition, DataCondition, MethodSpec
from scbraid.errors import ScbraidError
from scbraid.sources import code_digest
from scbraid.study import Run, make_plan
from scbraid.summary import closing_words

try:
    PLAN = make_plan(config, ROOT)
except ScbraidError as error:
    raise WorkflowError(str(error)) from None

# Defaults that the file leaves out are filled in for the scripts.
config |= PLAN.config.model_dump(exclude_none=True)


# Locally nothing else would keep two trainings from sharing one GPU; `--resources gpu=N` wins, and
# a cluster's scheduler is not limited.
if workflow.resource_settings.nodes is None:
    workflow.global_resources.setdefault("gpu", 1)


wildcard_constraints:
    dataset=r"[A-Za-z0-9][A-Za-z0-9_-]*",
    data_condition=r"[^/@]+",
    condition=r"[^/]+",
    method=r"[^/]+",
    seed=r"\d+",
    study=r"[^/]+",


def code(script, *modules, apart=()):
    """Digest of what a rule runs; as a parameter it makes results follow the code."""
    return code_digest(ROOT / "scripts" / script, modules, apart=apart)


def method_code(wildcards):
    """Digest of what runs one method: that of another method does not matter to it."""
    return code(
        "integrate.py",
        "scbraid.child",
        method_row(wildcards)["module"],
        apart=("scbraid.methods", "scbraid.methods.baselines"),
    )


def growing(amount):
    """Resource that grows with each attempt, for profiles with `retries`."""
    return lambda wildcards, attempt: amount * attempt


def entry(wildcards):
    """Entry of the data set in the registry."""
    return PLAN.datasets[wildcards.dataset]


def entry_fields(wildcards):
    """The same as plain values, which Snakemake keeps and compares."""
    return entry(wildcards).model_dump(mode="json", exclude_defaults=True)


def raw_files(wildcards):
    """What a data set is assembled from: downloaded files, or the user's own."""
    own = entry(wildcards)
    files = []
    if own.kind == "local":
        files += dict.fromkeys(own.layer_file(layer) for layer in own.layers) or [own.file]
    if own.all_files():
        files.append(f"{PLAN.config.results}/data/{own.name}/raw/files.json")
    return files


def method_row(wildcards):
    """What is known about the method of a run."""
    return PLAN.catalogue.methods[MethodSpec.parse(wildcards.method).name]


def limits(wildcards):
    """Limits and threads of a run."""
    return PLAN.config.limits(MethodSpec.parse(wildcards.method).name)


def gpus(wildcards):
    """GPUs that a run asks for."""
    return int(method_row(wildcards)["gpu"] and PLAN.config.uses_gpu())


def in_prepared(wildcards, condition, file):
    """Path of a file of the prepared data."""
    return f"{PLAN.config.results}/prepared/{wildcards.dataset}/{condition}/{file}"


def prepared_input(wildcards):
    """What the method of a run sees."""
    return in_prepared(wildcards, Condition.parse(wildcards.condition).data.slug, "input.h5mu")


def prepared_truth(wildcards):
    """What it does not see."""
    return in_prepared(wildcards, Condition.parse(wildcards.condition).data.slug, "truth.parquet")


def solution_of(wildcards):
    """What predictions and imputations are scored against."""
    data = Condition.parse(wildcards.condition).data
    has_solution = data.task in ("prediction", "imputation")
    return [in_prepared(wildcards, data.slug, "solution.h5ad")] if has_solution else []


def truth_of(wildcards):
    """The truth, for methods that declare that they use labels."""
    return [prepared_truth(wildcards)] if "labels" in method_row(wildcards)["uses"] else []


def guidance_of(wildcards):
    """The graph, for methods that use it on data that can have one."""
    layers = Condition.parse(wildcards.condition).data.layers or tuple(entry(wildcards).layers)
    linked = not layers or ("rna" in layers and len(layers) > 1)
    if linked and "guidance" in method_row(wildcards)["uses"]:
        return [in_prepared(wildcards, wildcards.condition, "guidance.npz")]
    return []


def run_of(wildcards):
    """The run that a file belongs to."""
    return Run(
        wildcards.dataset,
        Condition.parse(wildcards.condition),
        MethodSpec.parse(wildcards.method),
        int(wildcards.seed),
    )


def reference_run(wildcards):
    """Status of the run that the features of a run are compared with."""
    reference = PLAN.reference(run_of(wildcards))
    return [f"{PLAN.config.results}/{reference.path}/status.json"] if reference else []


def run_files(study, file):
    """A file of every run of a study."""
    return [f"{PLAN.config.results}/{run.path}/{file}" for run in PLAN.studies[study].runs]


def row_files(study, file):
    """A file of the run behind every row of a study; runs that stand for several are repeated."""
    return [f"{PLAN.config.results}/{row.run.path}/{file}" for row in PLAN.studies[study].rows]


def figure_files(kind):
    """Input function: what a kind of figure is drawn from, beside the scores."""

    def files(wildcards):
        needs = PLAN.catalogue.figures[kind]
        found = []
        if {"runs", "histories", "embeddings"} & set(needs):
            found += run_files(wildcards.study, "status.json")
        if "embeddings" in needs:
            found += run_files(wildcards.study, "embedding.h5ad")
            found += study_files(wildcards.study, prepared_truth)
        if "guidance" in needs:
            found += study_files(wildcards.study, guidance_of)
        return found

    return files


def study_files(study, input_function):
    """What an input function of the runs gives for all runs of a study."""
    found = {}
    for run in PLAN.studies[study].runs:
        fields = {
            "dataset": run.dataset,
            "condition": run.condition.slug,
            "method": str(run.method),
        }
        files = input_function(SimpleNamespace(**fields))
        found |= dict.fromkeys([files] if isinstance(files, str) else files)
    return list(found)


def method_words(study):
    """Names, roles and uses of a study's methods, for tables and figures."""
    names = dict.fromkeys(run.method.name for run in PLAN.studies[study].runs)
    keys = ("name", "title", "role", "uses")
    return [{key: PLAN.catalogue.methods[name][key] for key in keys} for name in names]


def report_settings():
    """The whole configuration, studies included, with all defaults."""
    studies = {name: plan.study.model_dump(mode="json") for name, plan in PLAN.studies.items()}
    return PLAN.config.model_dump(mode="json") | {"studies": studies}


def report_datasets():
    """Source, licence and citation of the data sets in use."""
    names = dict.fromkeys(run.dataset for run in PLAN.runs)
    return [PLAN.datasets[name].describe(PLAN.config.mirror) for name in names]


def report_runs():
    """All runs that should exist."""
    return [
        {
            "dataset": run.dataset,
            "condition": run.condition.slug,
            "method": MethodSpec(run.method.name, options=run.method.options).slug,
            "preset": run.method.preset,
            "seed": run.seed,
        }
        for run in PLAN.runs
    ]
