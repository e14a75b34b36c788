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
        code=code("report.py"),
    message:
        "write the report"
    script:
        "../../scripts/report.py"
