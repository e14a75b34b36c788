from __future__ import annotations

import base64
import html
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from scbraid.errors import DataError
from scbraid.report import build_report, read_runs
from scbraid.report.build import breakable, config_text, linked
from scbraid.report.gather import tail

MAP = "Mean average precision"
VOID = {"meta", "img", "input", "br", "link", "hr", "wbr", "base"}


class Page(HTMLParser):
    """What a browser would find: links and sources, tags in balance, tables as rows of texts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text("utf-8")
        self.open: list[str] = []
        self.loads: list[str] = []
        self.links: list[tuple[str, dict]] = []
        self.tags: list[tuple[str, dict]] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag not in VOID:
            self.open.append(tag)
        if "id" in found:
            self.ids.append(found["id"])
        self.loads += [found[name] for name in ("src", "srcset", "data", "poster") if name in found]
        if tag in ("link", "base", "iframe", "object", "embed"):
            self.loads.append(found.get("href", tag))
        if tag == "a":
            self.links.append((found.get("href", ""), found))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "script" in self.open or "style" in self.open:
            return
        self.words.append(data)
        if ("td" in self.open or "th" in self.open) and self.tables:
            self.tables[-1][-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def table(self, *heads: str) -> list[list[str]]:
        """Rows of the first table that has all these headings."""
        for table in self.tables:
            for at, row in enumerate(table):
                shown = [cell.strip() for cell in row]
                if set(heads) <= set(shown):
                    return [[cell.strip() for cell in r] for r in table[at:]]
        msg = f"no table with {heads}"
        raise AssertionError(msg)


@pytest.fixture
def page(bench, methods, datasets):
    config = {"studies": ["bench"], "evil": "</pre><script>alert('config')</script>"}
    out = build_report(
        bench.root,
        {"bench": "Which one is <best>?"},
        bench.root / "report" / "index.html",
        config,
        methods=methods,
        datasets=datasets,
    )
    return Page(out)


def test_every_failure_is_there_with_its_reason_and_last_lines(page):
    rows = page.table("Status", "Reason", "Seeds")
    by_method = {row[3]: row for row in rows[1:]}
    assert set(by_method) == {"GLUE (paper)", "bindSC"}
    failed, stopped = by_method["GLUE (paper)"], by_method["bindSC"]
    assert failed[0] == "failed"
    assert "LinAlgError: SVD did not converge <b>in 30 & more</b> steps" in failed[5]
    assert "File 'x.py'" in failed[5]
    assert stopped[:5] == ["timeout", "demo", "unpaired", "bindSC", "0, 1"]
    assert "stopped after its limit of 60 s" in stopped[5]
    assert "logs/integrate/demo/unpaired/bindsc/0.log" in stopped[5]
    assert "epoch 77" in stopped[5]
    assert "stopping now" in stopped[5]
    assert "epoch 2\n" not in stopped[5]
    assert "\x1b" not in page.source
    assert "\x07" not in page.source
    assert "line 39" in stopped[5]
    assert "line 3\n" not in stopped[5]


def test_coverage_and_failures_come_before_scores(page):
    places = [page.ids.index(name) for name in ("coverage", "failures", "study-bench", "resources")]
    assert places == sorted(places)
    row = page.table("Data set", "Condition", "GLUE")[1]
    assert row[:2] == ["demo", "unpaired"]
    assert sorted(row[2:]) == ["1/2", "2", "2", "timeout"]
    assert "8 runs: 5 finished 1 failed 2 timeout" in page.text


def test_nothing_is_loaded_from_anywhere(page):
    assert page.loads
    assert all(source.startswith("data:image/png;base64,") for source in page.loads)
    assert "@import" not in page.source
    assert not re.search(r"url\(", page.source)
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "content" in a
                  and "default-src" in a["content"])  # fmt: skip
    assert "default-src 'none'" in policy
    for target, attributes in page.links:
        assert target.startswith(("#", "data:text/", "https://")), target
        if target.startswith("https://"):
            assert attributes["rel"] == "noreferrer"
        if target.startswith("#"):
            assert target[1:] in page.ids


def test_everything_is_escaped(page):
    scripts = [tag for tag, _ in page.tags if tag == "script"]
    assert len(scripts) == 1
    for words in ("alert('data')", "alert('config')", "<b>in 30", "Which one is <best>?"):
        assert words in page.text
        assert html.escape(words, quote=False) in html.unescape(page.source).replace(
            words, html.escape(words, quote=False)
        )
        assert words not in page.source.replace("&#39;", "'") or "<" not in words
    assert "Random &lt;embedding&gt;" in page.source
    assert not any(target.startswith("javascript") for target, _ in page.links)


def test_scores_are_raw_means_with_their_spread(page, bench):
    rows = page.table("Method", "Seeds", MAP, "overall")
    table = pd.DataFrame(bench.rows)
    own = table[(table["method"] == "glue") & (table["preset"] == "default")]
    values = own[own["metric"] == "map"]["value"]
    line = next(row for row in rows[1:] if row[0].startswith("GLUE subject"))
    cell = line[rows[0].index(MAP)]
    assert cell.startswith(f"{values.mean():.3f}±{values.std(ddof=1):.3f}")
    gone = next(row for row in rows[1:] if row[0].startswith("bindSC"))
    assert gone[3] == "0/2 timeout"
    assert "† labels" in gone[0]
    assert set(gone[4:]) == {"––"}  # raw and scaled
    half = next(row for row in rows[1:] if row[0].startswith("GLUE (paper)"))
    assert half[3] == "1/2"
    assert "±" not in half[rows[0].index(MAP)]


def test_scaled_values_follow_the_table_of_ranges(page, bench):
    rows = page.table("Method", "Seeds", MAP)
    table = pd.DataFrame(bench.rows)
    values = table[table["metric"] == "map"]
    low, high = values["value"].min(), values["value"].max()
    mean = values[values["method"] == "random"]["value"].mean()
    line = next(row for row in rows[1:] if row[0].startswith("Random"))
    assert line[rows[0].index(MAP)].endswith(f"{(mean - low) / (high - low):.3f}")
    # A metric without a range stays raw in both forms.
    foscttm = line[rows[0].index("FOSCTTM ↓")]
    raw = table[(table["metric"] == "foscttm") & (table["method"] == "random")]["value"].mean()
    assert foscttm.count(f"{raw:.3f}") == 2


def test_rows_carry_sorting_keys_of_full_precision(page, bench):
    keys = [
        float(attributes["data-key"])
        for tag, attributes in page.tags
        if tag == "td" and attributes.get("data-key") and "seed 0" in attributes.get("title", "")
    ]
    table = pd.DataFrame(bench.rows).dropna(subset="value")
    expected = table.groupby(["method", "preset", "metric"])["value"].mean()
    assert sorted(keys) == pytest.approx(sorted(expected))
    buttons = [attributes for tag, attributes in page.tags if tag == "button"]
    assert buttons
    assert all(attributes.get("type") == "button" for attributes in buttons)


def test_tables_can_be_downloaded_as_they_are(page, bench):
    links = {attributes["download"]: target for target, attributes in page.links
             if "download" in attributes}  # fmt: skip
    assert set(links) == {
        *("bench.tsv", "bench.minmax.tsv"),
        *("umap_grid.tsv", "coverage.tsv", "own_figure.tsv"),
    }
    content = base64.b64decode(links["bench.tsv"].partition("base64,")[2])
    assert content == (bench.root / "scores" / "bench.tsv").read_bytes()


def test_figures_stand_in_order_with_captions(page):
    from scbraid.plots import FIGURES

    images = [a["alt"] for tag, a in page.tags if tag == "img"]
    titles = [alt.partition(",")[0] for alt in images]
    assert titles == [FIGURES["coverage"].title, FIGURES["umap_grid"].title, "own_figure"]
    assert FIGURES["umap_grid"].caption in page.text
    assert "figures/bench/umap_grid.pdf" in page.text


def test_resources_datasets_methods_and_provenance(page):
    row = page.table("Wall clock", "CPU time", "Peak memory")[1]
    assert row[5:8] == ["12 s", "20 s", "1.46 GiB"]
    assert "CC0-1.0" in page.text
    assert "ab" * 32 in page.source
    assert "https://example.org/demo" in [target for target, _ in page.links]
    assert "https://doi.org/10.1038/s41587-022-01284-4" in [target for target, _ in page.links]
    assert "Not in this benchmark" not in page.text
    assert "Sees labels yes †" in page.text
    assert "c0ffee" in page.text
    assert '"latent_dim": 50' in page.text
    assert "Mixed provenance" not in page.text


def test_what_the_files_state_is_on_the_cards(bench, h5mu, datasets):
    meta = {
        "name": "demo",
        "genome": "mm10",
        "licence": "CC BY 4.0",
        "checksums": {},
        "kind": "local",
    }
    h5mu(
        bench.root / "data" / "demo" / "dataset.h5mu", meta, {"rna": (120, 900), "atac": (120, 40)}
    )
    told = {
        "layers": {"rna": {"rep": "X_pca", "likelihood": "nb"}},
        "lsi": "glue",
        "task": "unpaired",
    }
    h5mu(bench.root / "prepared" / "demo" / "unpaired" / "input.h5mu", told, {"rna": (100, 50)})
    broken = bench.root / "prepared" / "demo" / "other" / "input.h5mu"
    broken.parent.mkdir(parents=True)
    broken.write_text("no HDF5")
    page = Page(build_report(bench.root, ["bench"], bench.root / "r.html", datasets=datasets))
    assert "rna: 120 cells, 900 features; atac: 120 cells, 40 features" in page.text
    assert "CC BY 4.0" in page.text
    rows = page.table("Data set", "Representation", "Settings")
    assert rows[1][:3] == ["demo", "other", rows[1][2]]
    assert "cannot be read" in rows[1][2]
    assert rows[2][:7] == ["demo", "unpaired", "rna", "100", "50", "X_pca", "nb"]
    assert '"lsi": "glue"' in rows[2][7]


def test_mixed_code_is_said_at_the_top(bench):
    bench.run("other", 0, versions={"scbraid": "0.1.0", "numpy": "1.26.0"})
    page = Page(build_report(bench.root, ["bench"], bench.root / "r.html"))
    assert "2 different sets of code or package versions" in page.text
    assert page.text.index("Mixed provenance") < page.text.index("Runs without a result")
    rows = page.table("Package")
    assert ["numpy", "2.4.6", "1.26.0"] in rows


# ------------------------------------------------------------------------ partial benchmarks


def test_an_empty_results_folder_gives_a_page(empty):
    empty.root.mkdir()
    page = Page(build_report(empty.root, ["bench"], empty.root / "report" / "index.html"))
    assert "No run has left a trace" in page.text
    assert "no table at" in page.text
    assert "There are no data sets" in page.text


def test_no_results_folder_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no results folder at"):
        build_report(tmp_path / "nowhere", [], tmp_path / "r.html")


def test_runs_without_scores_are_shown(empty):
    empty.run("glue", 0)
    empty.run("cca", 0, "out_of_memory")
    page = Page(build_report(empty.root, ["bench", "second"], empty.root / "r.html"))
    assert "9,001 MiB" in page.text
    assert page.text.count("No scores: no table at") == 2
    assert page.table("Data set", "Condition", "glue")[1][2:] == ["out of memory", "1"]


def test_a_benchmark_in_which_everything_failed(empty):
    empty.root.mkdir()
    for status in ("failed", "timeout", "out_of_memory", "not_applicable"):
        empty.run(f"m_{status}", 0, status)
        empty.score(f"m_{status}", 0, status)
    empty.collect()
    page = Page(build_report(empty.root, ["bench"], empty.root / "r.html"))
    rows = page.table("Status", "Reason", "Seeds")
    assert [row[0] for row in rows[1:]] == ["failed", "timeout", "out of memory", "not applicable"]
    for row, reason in zip(rows[1:], ("LinAlgError", "60 s", "9,001", "got layers"), strict=True):
        assert reason in row[5]


def test_planned_runs_without_a_trace_are_not_run(bench, methods):
    planned = [("demo", "unpaired", "glue", "default", seed) for seed in (0, 1, 2)]
    planned += [("demo", "paired", "bindsc", "default", 0)]
    expected = pd.DataFrame(planned, columns=["dataset", "condition", "method", "preset", "seed"])
    out = build_report(
        bench.root, ["bench"], bench.root / "r.html", methods=methods, expected=expected
    )
    page = Page(out)
    rows = page.table("Status", "Reason", "Seeds")
    missing = [row[1:5] for row in rows if row[0] == "not run"]
    assert missing == [["demo", "paired", "bindSC", "0"], ["demo", "unpaired", "GLUE", "2"]]
    assert "10 runs:" in page.text


def test_scores_of_deleted_runs_are_told(bench):
    shutil.rmtree(bench.root / "runs" / "demo" / "unpaired" / "random")
    page = Page(build_report(bench.root, ["bench"], bench.root / "r.html"))
    assert "8 runs" in page.text
    coverage = page.table("Data set", "Condition", "random")
    assert coverage[1][coverage[0].index("random")] == "2"


def test_rows_for_a_corrupted_graph_find_runs_that_ignore_it(bench):
    for row in [row for row in bench.rows if row["method"] == "random"]:
        bench.rows.append(row | {"condition": "unpaired@corrupt_rate=0.5"})
    bench.collect()
    page = Page(build_report(bench.root, ["bench"], bench.root / "r.html"))
    assert "8 runs" in page.text
    assert "its folder is gone" not in page.text


def test_splits_are_further_runs_of_one_row(bench):
    for row in list(bench.rows):
        bench.rows.append(row | {"condition": "unpaired+split_seed=1"})
    bench.collect()
    page = Page(build_report(bench.root, ["bench"], bench.root / "r.html"))
    rows = page.table("Method", "Seeds", MAP, "overall")
    line = next(row for row in rows[1:] if row[0].startswith("glue baseline"))
    assert line[2:4] == ["unpaired", "4/4"]
    # The table of single runs has them apart.
    rows = page.table("Method", "Condition", "Seed", "Status")
    conditions = {row[rows[0].index("Condition")] for row in rows[1:]}
    assert conditions == {"unpaired", "unpaired+split_seed=1"}


def test_unreadable_files_do_not_stop_the_page(bench):
    (bench.root / "scores" / "second.tsv").write_text("")
    (bench.root / "scores" / "third.tsv").write_text("a\tb\n1\t2\n")
    (bench.root / "runs" / "demo" / "unpaired" / "glue" / "0" / "status.json").write_text("{")
    names = ["bench", "second", "third"]
    page = Page(build_report(bench.root, names, bench.root / "r.html"))
    assert "second.tsv is no tab-separated table" in page.text
    assert "lacks the columns dataset, condition" in page.text
    assert "is not valid JSON" in page.text


def test_metrics_that_do_not_apply_are_explained(bench):
    for row in bench.rows:
        if row["metric"] == "foscttm" and row["status"] == "ok":
            row |= {"value": None, "status": "not_applicable", "reason": "no cell is known twice"}
    bench.collect()
    page = Page(build_report(bench.root, ["bench"], bench.root / "r.html"))
    rows = page.table("Metric", "Reason", "Runs")
    assert len(rows) == 2
    assert rows[1][:4] == ["foscttm", "not applicable", "no cell is known twice", "5"]


def test_subjects_are_compared_pair_by_pair(bench, methods):
    out = build_report(bench.root, ["bench"], bench.root / "r.html", methods=methods)
    rows = Page(out).table("Metric", "Against", "Wins")
    line = next(row for row in rows if row[:3] == ["overall", "GLUE", "Random <embedding>"])
    assert line[3:8] == ["-0.0020", "0", "2", "0", "2"]
    line = next(row for row in rows if row[:3] == ["foscttm", "GLUE", "Random <embedding>"])
    assert line[4:6] == ["2", "0"]  # lower is better


def test_methods_are_ranked_with_intervals(bench, methods):
    page = Page(build_report(bench.root, ["bench"], bench.root / "r.html", methods=methods))
    rows = page.table("Mean rank", "Ties", "Places")
    # By overall: later seeds and longer names score higher here, the preset's second run failed.
    # bindsc has no value, and comes last.
    assert [row[0] for row in rows[1:5]] == ["Random <embedding>", "GLUE", "GLUE (paper)", "bindSC"]
    assert [row[-1] for row in rows[1:5]] == ["1/1", "1/1", "1/1", "0/1"]
    assert rows[4][1] == "4.00"
    # Two runs: six pairs of methods cannot be told apart by any test, and no letter pretends to.
    assert [row[4] for row in rows[1:5]] == ["–"] * 4
    assert "1 data set, too few runs for any test to tell methods apart" in page.text


def test_methods_that_differ_in_all_runs_have_letters_of_their_own(empty):
    empty.root.mkdir()
    for seed in range(8):
        for method in ("glue", "random"):
            empty.run(method, seed)
            empty.score(method, seed)
    empty.collect()
    page = Page(build_report(empty.root, ["bench"], empty.root / "r.html"))
    rows = page.table("Mean rank", "Ties", "Places")
    assert "By overall : 1 data set, tests over runs" in page.text
    # 8 of 8 runs: p = 2/2⁸ for the one pair. The difference of means is the same in any draw of
    # equal seeds only, so that intervals are wide.
    assert [(row[0], row[1], row[4]) for row in rows[1:3]] == [
        ("random", "1.00", "a"),
        ("glue", "2.00", "b"),
    ]
    assert rows[1][2] == "1.00 – 2.00"
    assert 0.5 < float(rows[1][3].removesuffix(" %")) / 100 < 0.7


def test_one_run_each_gives_ranks_without_intervals(empty):
    empty.root.mkdir()
    for method in ("glue", "random"):
        empty.run(method, 0)
        empty.score(method, 0)
    empty.collect()
    page = Page(build_report(empty.root, ["bench"], empty.root / "r.html"))
    assert page.table("Mean rank", "Ties", "Places")[1] == ["random", "1.00", "–", "–", "–", "1/1"]
    assert "one run each, so no intervals" in page.text


def test_same_results_give_the_same_page(bench, methods, datasets):
    pages = [
        build_report(bench.root, ["bench"], bench.root / name, methods=methods, datasets=datasets)
        for name in ("a.html", "b.html")
    ]
    assert pages[0].read_bytes() == pages[1].read_bytes()


# ------------------------------------------------------------------------------------- helpers


def test_links_are_web_addresses_and_dois_alone():
    def targets(text):
        return re.findall(r'href="([^"]*)"', str(linked(text)))

    assert targets("https://example.org/a?b=c") == ["https://example.org/a?b=c"]
    assert targets("Cao 2022, doi 10.1038/s41587-022-01284-4.") == [
        "https://doi.org/10.1038/s41587-022-01284-4"
    ]
    assert targets("https://x.org/1, https://x.org/2 (and more)") == [
        "https://x.org/1",
        "https://x.org/2",
    ]
    for other in ("javascript:alert(1)", "file:///etc/passwd", "//x.org", "Cao 2022", "", "10.5"):
        assert targets(other) == []
    shown = str(linked('<b> https://x.org/"onclick=alert(1) & more'))
    assert shown == (
        '&lt;b&gt; <a href="https://x.org/" rel="noreferrer">https://x.org/</a>'
        "&#34;onclick=alert(1) &amp; more"
    )


def test_slugs_break_before_their_settings():
    assert str(breakable("a+b=<1>@c")) == "a<wbr>+b=&lt;1&gt;<wbr>@c"


def test_tail_keeps_the_last_state_of_a_line():
    assert tail(["a\n", "\x1b[1mb\x1b[0m 1\rb 2\n", "\n", "  \n"], 2) == "a\nb 2"
    assert tail(f"{i}" for i in range(100)).splitlines() == [str(i) for i in range(85, 100)]


def test_configuration_is_yaml():
    assert config_text({"b": [1, 2], "a": Path("x")}) == "b:\n- 1\n- 2\na: x"


def test_read_runs_is_offered_here_too(bench):
    assert len(read_runs(bench.root)) == 8


@pytest.mark.slow
def test_a_browser_sorts_filters_and_switches(page, bench):
    """The script, in a real browser: numbers descend first, missing values stay last."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium to open the page with")
    test = """
    const table = document.getElementById("scores-bench");
    const names = () => Array.from(table.tBodies[0].rows).filter(r => !r.hidden)
        .map(r => r.cells[0].querySelector(".name").textContent);
    const heads = Array.from(table.querySelectorAll("button.sort"));
    const head = heads.find(b => b.textContent === "Mean average precision");
    const log = [];
    head.click(); log.push(names().join("|"));
    log.push(head.parentElement.getAttribute("aria-sort"));
    head.click(); log.push(names().join("|"));
    const radio = document.querySelector("input[value=scaled]");
    radio.checked = true; radio.dispatchEvent(new Event("change")); log.push(table.className);
    const box = document.querySelector("input.filter");
    box.value = "glue paper"; box.dispatchEvent(new Event("input")); log.push(names().join("|"));
    const out = document.createElement("output"); out.textContent = log.join(" ;; ");
    document.body.append(out);
    """
    trial = bench.root / "trial.html"
    trial.write_text(page.source.replace("</body>", f"<script>{test}</script></body>"), "utf-8")
    done = subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
         "--disable-background-networking", f"--user-data-dir={bench.root / 'browser'}",
         "--dump-dom", trial.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    log = html.unescape(re.search(r"<output>(.*?)</output>", done.stdout, re.S)[1]).split(" ;; ")
    assert log == [
        "Random <embedding>|GLUE|GLUE (paper)|bindSC",
        "descending",
        "GLUE (paper)|GLUE|Random <embedding>|bindSC",
        "sortable scores show-scaled",
        "GLUE (paper)",
    ]
