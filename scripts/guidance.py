"""Link the features of prepared data by genomic position."""

from _job import job

with job(snakemake):
    from scbraid.guidance.build import build_guidance

    build_guidance(snakemake.input[0], **snakemake.params.settings).save(snakemake.output[0])
