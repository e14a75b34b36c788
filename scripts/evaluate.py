"""Score one run against the truth."""

from _job import job

with job(snakemake):
    from pathlib import Path

    from scbraid.evaluate import evaluate

    references = [Path(status).parent for status in snakemake.input.reference]
    evaluate(
        Path(snakemake.input.status).parent,
        snakemake.input.truth,
        snakemake.input.data,
        next(iter(snakemake.input.guidance), None),
        snakemake.output[0],
        snakemake.params.metrics,
        reference_run=next(iter(references), None),
        solution_path=next(iter(snakemake.input.solution), None),
    )
