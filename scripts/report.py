"""Write the report about everything that is there."""

from _job import job

with job(snakemake):
    import pandas as pd

    from scbraid.methods import describe_methods
    from scbraid.report import build_report

    build_report(
        snakemake.config["results"],
        snakemake.params.titles,
        snakemake.output[0],
        snakemake.params.settings,
        methods=describe_methods(),
        datasets=snakemake.params.datasets,
        expected=pd.DataFrame(snakemake.params.runs),
    )
