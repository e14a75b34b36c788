"""Draw one kind of figure for one study; where there is nothing to draw, a page that says why."""

from _job import job

with job(snakemake):
    import logging
    from pathlib import Path

    from scbraid.errors import DataError
    from scbraid.plots import FIGURES, draw_study_figure
    from scbraid.plots.missing import missing_figure
    from scbraid.plots.tidy import add_method_info, read_table

    kind = snakemake.params.figure
    stem = Path(snakemake.output[0]).with_suffix("")
    try:
        draw_study_figure(
            kind,
            stem,
            scores=add_method_info(read_table(snakemake.input.scores), snakemake.params.methods),
            results=snakemake.config["results"],
            runs=snakemake.params.runs,
            metrics=snakemake.params.metrics,
        )
    except DataError as error:
        logging.getLogger("scbraid").warning("not drawn: %s", error)
        missing_figure(FIGURES[kind].title, str(error), stem)
