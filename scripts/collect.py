"""Put the scores of a study into one table."""

from _job import job

with job(snakemake):
    from scbraid.evaluate import collect

    collect(
        snakemake.input,
        snakemake.wildcards.study,
        snakemake.output.scores,
        snakemake.output.minmax,
        metrics=snakemake.params.metrics,
        conditions=snakemake.params.conditions,
    )
