"""Run one method; whatever happens to it, its status and embedding are written."""

from _job import job

with job(snakemake):
    from pathlib import Path

    from scbraid.conditions import MethodSpec
    from scbraid.runner import RunRequest, run_method

    method = MethodSpec.parse(snakemake.wildcards.method)
    limits = snakemake.config["run"] | snakemake.config["methods"].get(method.name, {})
    run_method(
        RunRequest(
            method=method.name,
            preset=method.preset,
            options=dict(method.options),
            input=snakemake.input.data,
            guidance=next(iter(snakemake.input.guidance), None),
            truth=next(iter(snakemake.input.truth), None),
            output=str(Path(snakemake.output.status).parent),
            seed=int(snakemake.wildcards.seed),
            device=snakemake.config["device"],
            threads=snakemake.threads,
            time_limit=limits["time_limit"],
            memory_limit=limits["memory_limit"],
            dataset=snakemake.wildcards.dataset,
            condition=snakemake.wildcards.condition,
        )
    )
