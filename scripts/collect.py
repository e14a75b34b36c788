"""Put the scores of a study into one table."""

from _job import job

with job(snakemake):
    from scbraid.evaluate import collect

    frozen = snakemake.input.minmax
    collect(
        snakemake.input.scores,
        snakemake.wildcards.study,
        snakemake.output.scores,
        snakemake.output.minmax,
        str(frozen) if frozen else None,
        metrics=snakemake.params.metrics,
        conditions=snakemake.params.conditions,
    )
