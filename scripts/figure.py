"""Draw one kind of figure for one study; where there is nothing to draw, a page that says why."""

from _job import job

with job(snakemake):
    from pathlib import Path

    from scbraid.plots import draw_study_figure
    from scbraid.plots.tidy import add_method_info, read_table

    draw_study_figure(
        snakemake.params.figure,
        Path(snakemake.output[0]).with_suffix(""),
        scores=add_method_info(read_table(snakemake.input.scores), snakemake.params.methods),
        results=snakemake.config["results"],
        runs=snakemake.params.runs,
        metrics=snakemake.params.metrics,
    )
