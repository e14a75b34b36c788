# One rule a kind of figure, `draw_NAME`; `snakemake figure_NAME` draws it for all studies that have it.
for kind, studies in PLAN.figures.items():

    rule:
        name:
            f"draw_{kind}"
        input:
            scores="<results>/scores/{study}.tsv",
            files=figure_files(kind),
        output:
            report(
                f"<results>/figures/{{study}}/{kind}.pdf",
                caption=f"../report/{kind}.rst",
                category="{study}",
                labels={"figure": kind},
            ),
            f"<results>/figures/{{study}}/{kind}.png",
            f"<results>/figures/{{study}}/{kind}.tsv",
        log:
            f"<results>/logs/figures/{{study}}/{kind}.log",
        conda:
            "../../envs/figures.yaml"
        threads: 1
        resources:
            mem_mb=growing(4000),
            runtime=60,
        params:
            figure=kind,
            runs=lambda wildcards: run_files(wildcards.study, ""),
            metrics=lambda wildcards: PLAN.studies[wildcards.study].study.metrics,
            methods=lambda wildcards: method_words(wildcards.study),
            code=code("figure.py"),
        message:
            f"draw {kind} of {{wildcards.study}}"
        script:
            "../../scripts/figure.py"

    rule:
        name:
            f"figure_{kind}"
        input:
            expand("<results>/figures/{study}/{figure}.pdf", study=studies, figure=kind),
        localrule: True


rule figures:
    input:
        [
            f"{PLAN.config.results}/figures/{study}/{figure}.pdf"
            for figure, studies in PLAN.figures.items()
            for study in studies
        ],
    localrule: True
