"""Fetch and verify the files of a data set."""

from _job import job

with job(snakemake):
    from pathlib import Path

    from scbraid.data.download import download
    from scbraid.data.registry import DatasetEntry

    download(
        DatasetEntry.model_validate(snakemake.params.entry),
        Path(snakemake.output[0]).parent,
        snakemake.config.get("mirror"),
    )
