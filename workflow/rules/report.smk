rule report:
    input:
        rules.scores.input,
        rules.figures.input,
    output:
        "<results>/report/index.html",
    log:
        "<results>/logs/report.log",
    conda:
        "../../envs/figures.yaml"
    threads: 1
    resources:
        mem_mb=growing(2000),
        runtime=30,
    params:
        titles={name: plan.study.title for name, plan in PLAN.studies.items()},
        settings=report_settings(),
        datasets=report_datasets(),
        runs=report_runs(),
        code=code("report.py"),
    message:
        "write the report"
    script:
        "../../scripts/report.py"
