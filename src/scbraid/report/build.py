"""Write the report: one HTML file that opens from disk and loads nothing."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from scbraid.files import atomic_path
from scbraid.plots import tidy
from scbraid.provenance import provenance
from scbraid.report import tables
from scbraid.report.gather import Figure, Results, StudyData, gather

TEMPLATES = Path(__file__).parent / "templates"
# Larger tables would make the page slow; they are named by their path instead.
EMBED_BYTES = 1_000_000
MAX_RUN_ROWS = 2000


def build_report(
    results_dir: str | os.PathLike[str],
    studies: Sequence[str] | Mapping[str, str],
    out_html: str | os.PathLike[str],
    config: Mapping[str, Any] | None = None,
    *,
    methods: Sequence[Mapping[str, Any]] = (),
    datasets: Iterable[Mapping[str, Any]] = (),
    expected: pd.DataFrame | None = None,
    title: str = "Benchmark of single-cell multi-omics integration",
) -> Path:
    """Write one self-contained HTML page about a benchmark, however far it got.

    Coverage and failures come first, then scores, figures, time and memory, data sets, methods and
    provenance. Images, tables, style and script are inside the file; it needs no network and no
    other file.

    Parameters
    ----------
    results_dir
        Results folder: ``scores/<study>.tsv``, ``figures/<study>/``, ``runs/``, ``data/``,
        ``prepared/``, ``logs/``; any of them may be missing or incomplete.
    studies
        Names, or names with titles.
    out_html
        The file to write.
    config
        Full configuration; shown as it is.
    methods
        What ``scbraid list methods --json`` states (`scbraid.methods.describe_methods`): names,
        roles, and what each method sees.
    datasets
        What ``scbraid list datasets --json`` states: source, licence, citation.
    expected
        Runs that should exist (dataset, condition, method, preset, seed); those without a trace are
        shown as not run.
    title
        Heading.

    Returns
    -------
    Path
        `out_html`.

    Raises
    ------
    DataError
        When the results folder does not exist, or the file cannot be written.
    """
    results_path, out = Path(results_dir), Path(out_html)
    titled = dict(studies) if isinstance(studies, Mapping) else dict.fromkeys(studies, "")
    found = gather(results_path, titled, methods=methods, datasets=datasets, expected=expected)
    page = render(_context(found, results_path, methods, config, title))
    with atomic_path(out) as partial:
        partial.write_text(page, "utf-8")
    return out


def render(context: Mapping[str, Any]) -> str:
    """Fill the template; everything is escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["linked"] = linked
    environment.filters["slug"] = breakable
    return environment.get_template("report.html").render(context)


def breakable(text: Any) -> Any:
    """Let a slug break before its settings instead of anywhere; the text itself is escaped."""
    from markupsafe import Markup, escape

    parts = re.split(r"(?=[+@,])", str(text))
    return Markup("<wbr>").join(escape(part) for part in parts)


# Web addresses and DOIs in running text; nothing else becomes a link.
_ADDRESS = re.compile(r"https?://[^\s\"'<>]+|\b10\.\d{4,9}/[^\s\"'<>]+")


def linked(text: Any) -> Any:
    """Escape a text and make links of the http(s) addresses and DOIs in it."""
    from markupsafe import Markup, escape

    words = str(text)
    parts, end = [], 0
    for match in _ADDRESS.finditer(words):
        shown = match[0].rstrip(".,;:)]")
        target = shown if shown.startswith("http") else f"https://doi.org/{shown}"
        parts.append(escape(words[end : match.start()]))
        parts.append(Markup('<a href="{}" rel="noreferrer">{}</a>').format(target, shown))
        end = match.start() + len(shown)
    return Markup("").join([*parts, escape(words[end:])])


def _context(
    found: Results,
    results: Path,
    methods: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any] | None,
    title: str,
) -> dict[str, Any]:
    runs = found.runs
    columns, coverage = tables.coverage_rows(runs)
    heads, versions = tables.version_rows(runs)
    shown = {tidy.base_name(method) for method in runs["method"]}
    own = provenance()
    return {
        "title": title,
        "style": (TEMPLATES / "style.css").read_text("utf-8"),
        "script": (TEMPLATES / "script.js").read_text("utf-8"),
        "n_runs": len(runs),
        "counts": tables.status_counts(runs),
        "coverage": {"methods": columns, "rows": coverage},
        "failures": tables.failure_rows(runs),
        "studies": [_study(study, results) for study in found.studies],
        "resources": tables.resource_rows(runs),
        "datasets": [_dataset_card(name, facts) for name, facts in found.datasets.items()],
        "prepared": found.prepared.to_dict("records"),
        "methods": [_METHOD_CARD | dict(m) for m in methods if m["name"] in shown],
        "unknown_methods": sorted(shown - {method["name"] for method in methods}),
        "versions": {"heads": heads, "rows": versions},
        "mixed": len(heads) > 1,
        "configs": tables.config_rows(runs),
        "config": "" if config is None else config_text(config),
        "report_versions": own["versions"],
        "report_commit": own["commit"] or "unknown",
    }


def config_text(config: Mapping[str, Any]) -> str:
    """The configuration as YAML, or as JSON where PyYAML is not installed or cannot write it."""
    plain = json.loads(json.dumps(config, default=str))
    try:
        import yaml
    except ModuleNotFoundError:
        return json.dumps(plain, indent=2, ensure_ascii=False)
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).rstrip()


def _study(study: StudyData, results: Path) -> dict[str, Any]:
    has_scores = study.scores is not None and len(study.scores) > 0
    n_seeds = sorted(set(study.scores["seed"])) if study.scores is not None else []
    return {
        "name": study.name,
        "id": re.sub(r"[^A-Za-z0-9_-]", "-", study.name),
        "title": study.title,
        "problem": study.problem,
        "seeds": ", ".join(str(seed) for seed in n_seeds),
        "scores": tables.score_table(study) if has_scores else None,
        "has_scaled": study.minmax is not None,
        "minmax": [] if study.minmax is None else study.minmax.to_dict("records"),
        "every_run": tables.run_score_table(study, MAX_RUN_ROWS) if has_scores else None,
        "ranks": tables.rank_tables(study),
        "comparisons": tables.comparison_rows(study),
        "undefined": tables.undefined_rows(study),
        "downloads": [
            download for path in study.files.values() if (download := _download(path, results))
        ],
        "figures": [_figure(figure, results) for figure in study.figures],
    }


def _figure(figure: Figure, results: Path) -> dict[str, Any]:
    width, height = _png_size(figure.png)
    return {
        "stem": figure.stem,
        "title": figure.title,
        "caption": figure.caption,
        "image": _data_uri(figure.png, "image/png"),
        # Half of the pixels: the size of print on a screen, and sharp on a fine one.
        "width": width // 2,
        "height": height // 2,
        "tsv": None if figure.tsv is None else _download(figure.tsv, results),
        "pdf": "" if figure.pdf is None else _relative(figure.pdf, results),
    }


def _png_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, from the header; (0, 0) when the file is no PNG."""
    with path.open("rb") as file:
        head = file.read(24)
    if len(head) < 24 or head[:8] != b"\x89PNG\r\n\x1a\n":
        return 0, 0
    return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")


def _data_uri(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _relative(path: Path, results: Path) -> str:
    return str(path.relative_to(results)) if path.is_relative_to(results) else str(path)


def _download(path: Path, results: Path) -> dict[str, str]:
    """File as a link that holds its content, or only its path when it is large."""
    size = path.stat().st_size
    shown = {"name": path.name, "path": _relative(path, results), "uri": ""}
    shown["size"] = f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{max(size // 1000, 1)} kB"
    if size <= EMBED_BYTES:
        shown["uri"] = _data_uri(path, "text/tab-separated-values;charset=utf-8")
    return shown


# What a card shows; a description may leave fields out.
_METHOD_CARD: dict[str, Any] = {
    **dict.fromkeys(("title", "summary", "role", "citation"), ""),
    **dict.fromkeys(("uses", "tasks", "modalities", "presets"), ()),
}
_CARD_FIELDS = (
    ("title", "What"),
    ("kind", "Kind"),
    ("genome", "Genome"),
    ("licence", "Licence"),
    ("citation", "Citation"),
    ("accession", "Accession"),
    ("source", "Source"),
    ("note", "Note"),
    ("problem", "Problem"),
)


def _dataset_card(name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    fields = [
        {"label": label, "text": str(facts[key])}
        for key, label in _CARD_FIELDS
        if facts.get(key) not in (None, "", {}, [])
    ]
    if facts.get("paired") is not None:
        words = "yes" if facts["paired"] else "no"
        fields.append({"label": "Layers measured in the same cells", "text": words})
    if facts.get("verified") is not None:
        words = "yes" if facts["verified"] else "no"
        fields.append({"label": "Files verified with this version", "text": words})
    shapes = facts.get("shapes") or {}
    layers = [
        {"name": layer, "cells": f"{cells:,}", "features": f"{features:,}"}
        for layer, (cells, features) in shapes.items()
    ]
    checksums = facts.get("checksums") or {}
    sources = facts.get("files") if isinstance(facts.get("files"), Mapping) else {}
    files = [
        {
            "name": str(file),
            "sha256": str(digest),
            "source": str((sources or {}).get(file, "")),
        }
        for file, digest in dict(checksums).items()
    ]
    return {"name": name, "fields": fields, "layers": layers, "files": files}
