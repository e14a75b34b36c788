"""What Snakemake plans, refuses and says, without running a job."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from scbraid.study import CATALOGUE_FILE, Catalogue

Snakemake = Callable[..., Any]
Tiny = Callable[..., Path]

ROOT = Path(__file__).resolve().parents[2]


def test_the_linter_finds_nothing(snakemake: Snakemake) -> None:
    assert "good condition" in snakemake("--lint").words


def test_the_rules_are_formatted() -> None:
    command = [sys.executable, "-m", "snakefmt", "--check", "Snakefile", "workflow"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_default_plan_is_the_benchmark_from_both_snakefiles(snakemake: Snakemake) -> None:
    figures = yaml.safe_load((ROOT / "config/studies/benchmark.yaml").read_text())["figures"]
    rows = Catalogue.live().methods
    names = ("glue", "gene_activity_harmony", "gene_activity_pca", "cca", "random", "truth")
    runs = sum(1 if rows[name]["deterministic"] else 3 for name in names)
    assert 6 < runs < 18
    expected = {
        "assemble": 1,
        "prepare": 1,
        "guidance": 1,
        "integrate": runs,
        "evaluate": runs,
        "collect": 1,
        **{f"draw_{figure}": 1 for figure in figures},
        "report": 1,
        "target": 1,
    }
    for file, target in (("Snakefile", "default"), ("workflow/Snakefile", "all")):
        counts = snakemake("-n", "--cores", "1", file=file).jobs
        counts["target"] = counts.pop(target)
        counts.pop("total")
        assert counts == expected


def test_studies_share_runs_and_corruption_touches_only_what_uses_the_graph(
    snakemake: Snakemake, tiny: Tiny
) -> None:
    path = tiny(
        {
            "methods": ["gene_activity_pca", "random"],
            "conditions": [{"corrupt_rate": [0, 0.5, 1]}],
            "figures": [],
        }
    )
    again = path.parent / "again.yaml"
    again.write_text((path.parent / "tiny.yaml").read_text())
    config = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**config, "studies": ["tiny.yaml", "again.yaml"]}))
    counts = snakemake("-n", "--cores", "1", "--configfile", str(path)).jobs
    assert counts["prepare"] == 1
    assert counts["guidance"] == 3
    # A run at each rate of what uses the graph and is deterministic; random runs once a seed.
    assert counts["integrate"] == 3 + 2
    assert counts["collect"] == 2


def test_a_figure_is_a_target_and_results_follow_the_configuration(
    snakemake: Snakemake, tiny: Tiny
) -> None:
    path = str(tiny(results="elsewhere"))
    said = snakemake("-n", "--cores", "1", "figure_score_summary", "--configfile", path)
    assert said.jobs["draw_score_summary"] == said.jobs["figure_score_summary"] == 1
    assert "report" not in said.jobs
    assert "results/" not in said.words.replace("elsewhere/", "")


def test_a_mistake_stops_at_once_with_the_nearest_name(snakemake: Snakemake, tiny: Tiny) -> None:
    for arguments, words in (
        (("--config", "mirorr=x"), "unknown key 'mirorr'; did you mean 'mirror'?"),
        (
            ("--configfile", str(tiny({"methods": ["gene_activity_pc"]}))),
            "tiny.yaml: methods: gene_activity_pc: unknown method 'gene_activity_pc'; did you mean",
        ),
    ):
        said = snakemake("-n", "--cores", "1", *arguments, fails=True).words
        assert words in said
        assert "Traceback" not in said


def test_the_slurm_profile_plans(snakemake: Snakemake, tiny: Tiny) -> None:
    path = tiny({"methods": ["glue", "random"], "seeds": [0], "figures": []})
    profile = ROOT / "workflow" / "profiles" / "slurm"
    said = snakemake("-n", "--profile", str(profile), "--configfile", str(path))
    assert said.jobs["integrate"] == 2


def test_gpu_jobs_ask_for_one_and_run_one_at_a_time_unless_on_a_cluster(tiny: Tiny) -> None:
    # The limit rests on two attributes of Snakemake that are not public.
    path = tiny({"methods": ["glue", "random"], "seeds": [0], "figures": []}, device="cuda")
    script = f"""
from pathlib import Path
from snakemake.api import ConfigSettings, OutputSettings, ResourceSettings, SnakemakeApi
for settings in ({{"cores": 2}}, {{"cores": 2, "resources": {{"gpu": 4}}}}, {{"nodes": 4}}):
    with SnakemakeApi(OutputSettings()) as api:
        workflow = api.workflow(
            resource_settings=ResourceSettings(**settings),
            config_settings=ConfigSettings(configfiles=[Path({str(path)!r})]),
            snakefile=Path({str(ROOT / "Snakefile")!r}),
        )
        workflow.dag()
        print("limit", workflow._workflow_store.global_resources.get("gpu"))
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=path.parent, capture_output=True, text=True, check=False)
    limits = [line for line in done.stdout.splitlines() if line.startswith("limit")]
    assert limits == [
        'limit Resource("gpu", 1)',
        'limit Resource("gpu", 4)',
        'limit Resource("", None)',
    ], done.stderr[-3000:]


def test_the_kept_catalogue_is_that_of_the_registries() -> None:
    live, kept = Catalogue.live(), Catalogue.read(ROOT / "workflow" / CATALOGUE_FILE)
    # Plug-ins are not kept: they are known where they are installed.
    own = {k: v for k, v in live.methods.items() if v["module"].startswith("scbraid.")}
    assert kept == dataclasses.replace(live, methods=own), "run `make catalogue`"
