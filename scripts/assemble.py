"""Turn raw files (or the simulator's settings) into one MuData file."""

from _job import job

with job(snakemake):
    from pathlib import Path

    from scbraid.data.assemble import assemble
    from scbraid.data.registry import DatasetEntry

    output = Path(snakemake.output[0])
    assemble(DatasetEntry.model_validate(snakemake.params.entry), output.parent / "raw", output)
