"""The registry: every entry of config/datasets.yaml, the schema, and each wrong line."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

import jsonschema
import pytest
import yaml

from scbraid.data.download import digest_file, mismatch
from scbraid.data.registry import (
    MODALITIES,
    CellTable,
    DatasetEntry,
    DatasetSpec,
    FileSpec,
    LayerSpec,
    default_registry_files,
    load_datasets,
    schema,
    write_schema,
)
from scbraid.errors import ConfigError, UnknownNameError

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "config" / "datasets.yaml"
SCHEMA = ROOT / "workflow" / "schemas" / "datasets.schema.json"

MINIMAL = """
datasets:
  toy:
    kind: mirror
    title: toy
    layers:
      rna: {file: rna.h5ad}
    files:
      - {name: rna.h5ad, holds: counts, mirror: toy/rna.h5ad}
"""


@pytest.fixture(scope="module")
def datasets():
    return load_datasets([CONFIG])


def load_text(tmp_path: Path, text: str, name: str = "d.yaml"):
    path = tmp_path / name
    path.write_text(textwrap.dedent(text))
    return load_datasets([path])


def test_the_shipped_file_is_what_commands_use():
    assert default_registry_files() == [CONFIG]


def test_every_entry_is_complete(datasets):
    assert {"demo", "demo_triple", "snare_cortex_dev", "chen_2019", "bmmc_cite"} <= set(datasets)
    for name, entry in datasets.items():
        assert entry.name == name
        assert set(entry.layers) <= set(MODALITIES)
        row = entry.describe()
        assert json.loads(json.dumps(row)) == row
        assert DatasetEntry.model_validate(entry.model_dump(mode="json")) == entry
        sparse = entry.model_dump(mode="json", exclude_defaults=True)
        assert DatasetEntry.model_validate(sparse) == entry
        if entry.kind in ("mirror", "download"):
            assert entry.licence, name
            assert entry.citation, name
        if entry.kind == "mirror":
            assert all(file.sha256 and file.size for file in entry.files), name
        if entry.kind == "download":
            assert not entry.verified, name
            assert "not verified" in entry.note, name


def test_addresses_are_of_known_hosts(datasets):
    hosts = {
        re.match(r"https?://([^/]+)/", url)[1]
        for entry in datasets.values()
        for file in (*entry.all_files(), *entry.originals)
        for url in file.urls
    }
    assert hosts <= {
        "ftp.ncbi.nlm.nih.gov",
        "cf.10xgenomics.com",
        "download.gao-lab.org",
        "ftp.ebi.ac.uk",
        "raw.githubusercontent.com",
        "storage.googleapis.com",
        "data.nemoarchive.org",
        "brainome.ucsd.edu",
    }


def test_geo_addresses_follow_the_pattern_of_the_archive(datasets):
    pattern = r"https://ftp\.ncbi\.nlm\.nih\.gov/geo/series/(GSE\d+)nnn/(GSE\d+)/suppl/(GSE\d+)_.+"
    for entry in datasets.values():
        for file in (*entry.files, *entry.originals):
            for url in file.urls:
                if "ncbi" in url:
                    stem, folder, prefix = re.fullmatch(pattern, url).groups()
                    assert folder == prefix == stem + folder[len(stem) :]
                    assert len(folder) == len(stem) + 3
                    assert url.endswith(f"/{file.name}")


@pytest.mark.real
def test_every_mirror_file_has_the_stated_digest(datasets, mirror):
    files = {
        file.mirror: file
        for entry in datasets.values()
        for file in entry.files
        if entry.kind == "mirror"
    }
    files |= {file.mirror: file for file in datasets.references.values() if file.sha256}
    assert len(files) == 37
    for path, file in files.items():
        assert mismatch(file, digest_file(mirror / path)) is None, path


@pytest.mark.real
def test_nothing_of_the_mirror_is_left_out(datasets, mirror):
    known = {file.mirror for entry in datasets.values() for file in entry.files}
    known |= {file.mirror for file in datasets.references.values()}
    for path in mirror.glob("*/*.*"):
        if path.suffix != ".md":
            assert str(path.relative_to(mirror)) in known


def test_schema_file_is_in_step_with_the_models(tmp_path):
    write_schema(tmp_path / "fresh.json")
    assert (tmp_path / "fresh.json").read_text() == SCHEMA.read_text(), (
        'run: python -c "from scbraid.data.registry import write_schema; '
        "write_schema('workflow/schemas/datasets.schema.json')\""
    )


def test_schema_accepts_the_shipped_file_and_refuses_typos():
    content = yaml.safe_load(CONFIG.read_text())
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(content, schema())
    content["datasets"]["demo"]["presett"] = "demo"
    with pytest.raises(jsonschema.ValidationError, match="presett"):
        jsonschema.validate(content, schema())


def test_documentation_names_every_entry_and_field(datasets):
    text = (ROOT / "docs" / "datasets.md").read_text()
    rows = dict(
        re.findall(r"^\| `(\w+)` \| (?:simulated|mirror|download) \| ([\w, ]+) \|", text, re.M)
    )
    assert rows == {name: ", ".join(entry.layers) for name, entry in datasets.items()}
    for model in (DatasetSpec, LayerSpec):
        for field in model.model_fields:
            assert f"`{field}`" in text, field
    for field in (*FileSpec.model_fields, *CellTable.model_fields):
        assert re.search(rf"\b{field}\b", text), field


def test_unknown_name_gets_the_near_miss(datasets):
    with pytest.raises(UnknownNameError, match="did you mean 'snare_cortex_dev'"):
        datasets["snare_cortex"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title: toy", "titel: toy", r"'toy', unknown field 'titel'; did you mean 'title'\?"),
        ("title: toy", "", r"'toy', field 'title' is required"),
        ("rna: {file", "rnaa: {file", r"unknown layer 'rnaa'; did you mean 'rna'\?"),
        ("{file: rna", "{fil: rna", r"layers\.rna: unknown field 'fil'; did you mean 'file'\?"),
        ("{file: rna", "{file: rn", r"unknown file 'rn\.h5ad'; did you mean 'rna\.h5ad'\?"),
        ("kind: mirror", "kind: mirrored", r"field 'kind': Input should be .* Got 'mirrored'"),
        ("kind: mirror", "kind: download", r"'rna\.h5ad' has neither 'urls' nor 'by_hand'"),
        ("kind: mirror", "kind: simulated", r"a simulated data set needs 'preset'"),
        ("kind: mirror", "kind: local", r"a local data set has no 'files'"),
        (", mirror: toy/rna.h5ad", "", r"file 'rna\.h5ad' has no 'mirror' path"),
        ("holds: counts", "sha256: abc", r"field 'files\.0\.holds' is required"),
        ("holds: counts", "holds: x, md5: zz", r"field 'files\.0\.md5': .* Got 'zz'"),
        ("holds: counts", "holds: x, urls: [ftp://a]", r"files\.0\.urls\.0': .* Got 'ftp://a'"),
        ("  toy:", "  to/y:", r"letters, digits, '-' and '_' only\. Got 'to/y'"),
        ("title: toy", "title: a\n    title: b", r"line 6: key 'title' stands twice"),
        ("title: toy", "title: toy\n    annotation: mm", r"'annotation': unknown reference 'mm'"),
        ("title: toy", "title: [", r"d\.yaml is not valid YAML"),
        (
            "{file: rna",
            "{reader: mtx, file: rna",
            r"'barcodes' and 'features' go with reader 'mtx'",
        ),
        ("title: toy", "title: toy\n    preset: demo", r"'preset' belongs to simulated data sets"),
        ("      rna: {file: rna.h5ad}", "      rna: {}", r"layer 'rna' has no 'file'"),
        ("datasets:", "dataset:", r"unknown field 'dataset'; did you mean 'datasets'\?"),
    ],
)
def test_each_wrong_line_has_its_message(tmp_path, old, new, message):
    assert old in MINIMAL
    with pytest.raises(ConfigError, match=message) as caught:
        load_text(tmp_path, MINIMAL.replace(old, new, 1))
    assert "d.yaml" in str(caught.value)


def test_all_problems_are_told_at_once(tmp_path):
    text = MINIMAL.replace("title: toy", "titel: toy").replace("{file: rna", "{fil: rna")
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, text)
    assert "'titel'" in str(caught.value)
    assert "'fil'" in str(caught.value)


def test_absent_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the data set file .*none\.yaml"):
        load_datasets([tmp_path / "none.yaml"])


def test_files_and_extra_are_merged_and_share_references(tmp_path):
    references = """
    references:
      genes: {name: genes.bed.gz, holds: genes, mirror: a/genes.bed.gz}
    """
    (tmp_path / "a.yaml").write_text(textwrap.dedent(references))
    (tmp_path / "b.yaml").write_text(MINIMAL)
    own = {
        "mine": {
            "kind": "local",
            "title": "own",
            "annotation": "genes",
            "layers": {"rna": {"file": str(tmp_path / "r.h5ad")}},
        }
    }
    found = load_datasets([tmp_path / "a.yaml", tmp_path / "b.yaml"], own)
    assert list(found) == ["toy", "mine"]
    assert found["mine"].annotation_file.name == "genes.bed.gz"
    assert [file.name for file in found["mine"].all_files()] == ["genes.bed.gz"]
    with pytest.raises(ConfigError, match=r"'toy' is defined in .*b\.yaml and again in config"):
        load_datasets([tmp_path / "b.yaml"], {"toy": own["mine"]})
    with pytest.raises(ConfigError, match="config: dataset 'mine', unknown field 'genom'"):
        load_datasets([], {"mine": {**own["mine"], "genom": "hg38"}})


def test_availability_names_the_reason(tmp_path, datasets):
    entry = load_text(tmp_path, MINIMAL)["toy"]
    reason = "no address of rna.h5ad is known: set `mirror` to a folder with toy/rna.h5ad"
    assert entry.available() == reason
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "rna.h5ad").touch()
    assert entry.available(tmp_path) is True
    assert datasets["demo"].available() is True
    assert datasets["chen_2019"].available() is True  # only an optional file is missing
    own = {"kind": "local", "title": "own", "reader": "h5mu", "file": str(tmp_path / "x.h5mu")}
    assert load_datasets([], {"mine": own})["mine"].available() == f"no file {own['file']}"


def test_local_files_lists_everything_once():
    own = {
        "kind": "local",
        "title": "own",
        "layers": {
            "rna": {"file": "r.mtx", "barcodes": "c.tsv", "features": "g.tsv", "reader": "mtx"},
            "atac": {"file": "a.h5ad"},
        },
        "cell_table": {"file": "labels.tsv", "columns": {"cell_type": "type"}},
    }
    entry = load_datasets([], {"mine": own})["mine"]
    assert entry.local_files() == ["r.mtx", "c.tsv", "g.tsv", "a.h5ad", "labels.tsv"]


def test_layer_natures(datasets):
    assert datasets["snare_cortex_dev"].likelihood("rna") == "nb"
    assert datasets["scicar_a549"].likelihood("atac") == "nb"
    assert datasets["demo_triple"].likelihood("met") == "ziln"
    assert datasets["scnmt_embeddings"].likelihood("met") == "normal"
    assert datasets["snare_cortex_dev"].drops_unplaced("rna")
    assert not datasets["teaseq_rna_adt"].drops_unplaced("rna")  # nothing to link by position
    assert not datasets["snare_celllines_feat"].drops_unplaced("atac")  # stated
    assert not datasets["scgem"].drops_unplaced("rna")  # no genome
