"""Make the input that methods see, and the truth that they do not."""

from _job import job

with job(snakemake):
    from scbraid.prepare import prepare

    prepare(
        snakemake.input[0],
        snakemake.output.input,
        snakemake.output.truth,
        name=snakemake.wildcards.dataset,
        **snakemake.params.settings,
    )
