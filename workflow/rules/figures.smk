rule figure:
    input:
        scores="<results>/scores/{study}.tsv",
        files=figure_files,
    output:
        report(
            "<results>/figures/{study}/{figure}.pdf",
            caption="../report/{figure}.rst",
            category="{study}",
            labels={"figure": "{figure}"},
        ),
        "<results>/figures/{study}/{figure}.png",
        "<results>/figures/{study}/{figure}.tsv",
    log:
        "<results>/logs/figures/{study}/{figure}.log",
    conda:
        "../../envs/figures.yaml"
    threads: 1
    resources:
        mem_mb=growing(4000),
        runtime=60,
    params:
        runs=lambda wildcards: run_files(wildcards.study, ""),
        metrics=lambda wildcards: PLAN.studies[wildcards.study].study.metrics,
        methods=lambda wildcards: method_words(wildcards.study),
        code=code("figure.py"),
    message:
        "draw {wildcards.figure} of {wildcards.study}"
    script:
        "../../scripts/figure.py"


rule figures:
    input:
        [
            f"{PLAN.config.results}/figures/{study}/{figure}.pdf"
            for figure, studies in PLAN.figures.items()
            for study in studies
        ],
    localrule: True


# `snakemake figure_NAME` draws one kind of figure for all studies that have it.
for kind, studies in PLAN.figures.items():

    rule:
        name:
            f"figure_{kind}"
        input:
            expand("<results>/figures/{study}/{figure}.pdf", study=studies, figure=kind),
        localrule: True
