# All metrics of a benchmark are computed, whatever the studies show, and those on request that some
# study names: a run is scored once.
rule evaluate:
    input:
        status="<results>/runs/{dataset}/{condition}/{method}/{seed}/status.json",
        embedding="<results>/runs/{dataset}/{condition}/{method}/{seed}/embedding.h5ad",
        truth=prepared_truth,
        solution=solution_of,
        data=prepared_input,
        guidance=guidance_of,
        reference=reference_run,
    output:
        "<results>/runs/{dataset}/{condition}/{method}/{seed}/scores.parquet",
    log:
        "<results>/logs/evaluate/{dataset}/{condition}/{method}/{seed}.log",
    conda:
        "../../envs/score.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000),
        runtime=60,
    params:
        metrics=lambda wildcards: PLAN.metrics(run_of(wildcards)),
        code=code("evaluate.py"),
    message:
        "score {wildcards.method} on {wildcards.dataset} ({wildcards.condition}), seed {wildcards.seed}"
    script:
        "../../scripts/evaluate.py"


rule collect:
    input:
        scores=lambda wildcards: row_files(wildcards.study, "scores.parquet"),
        minmax=lambda wildcards: PLAN.studies[wildcards.study].study.minmax or [],
    output:
        scores="<results>/scores/{study}.tsv",
        minmax="<results>/scores/{study}.minmax.tsv",
    log:
        "<results>/logs/collect/{study}.log",
    conda:
        "../../envs/tables.yaml"
    threads: 1
    resources:
        mem_mb=growing(2000),
        runtime=30,
    params:
        conditions=lambda wildcards: [
            row.condition.slug for row in PLAN.studies[wildcards.study].rows
        ],
        metrics=lambda wildcards: PLAN.studies[wildcards.study].study.metrics,
        code=code("collect.py"),
    message:
        "collect the scores of {wildcards.study}"
    script:
        "../../scripts/collect.py"


rule scores:
    input:
        expand("<results>/scores/{study}.tsv", study=PLAN.studies),
    localrule: True
