"""Registry of data sets: what they are, where their files come from, what the files hold.

The models below are the one source of truth: ``config/datasets.yaml`` is validated by them and
``workflow/schemas/datasets.schema.json`` is generated from them (`write_schema`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from scbraid.errors import ConfigError, UnknownNameError
from scbraid.files import write_json
from scbraid.registry import near_miss

MODALITIES = ("rna", "atac", "met", "adt")

Modality = Annotated[str, Field(pattern=rf"^({'|'.join(MODALITIES)})$")]
DataKind = Literal["counts", "binary", "normalised", "embedding"]
Likelihood = Literal["nb", "ziln", "normal"]
ReaderName = Literal["h5ad", "h5mu", "tenx_h5", "mtx", "table"]
DatasetName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
FileName = Annotated[str, Field(pattern=r"^[^/\\]+$")]


class _Strict(BaseModel):
    """A block of the YAML file: unknown fields are errors, attributes carry their docs."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class FileSpec(_Strict):
    """One file of a data set: how to get it and how to know that it is the right one."""

    name: FileName
    """Name in the raw folder of the data set."""
    holds: str
    """What is in it, in words; shown where the file must be put by hand."""
    urls: list[Annotated[str, Field(pattern=r"^https?://")]] = []
    """Where it can be downloaded, in order of preference."""
    mirror: str | None = None
    """Path inside the mirror folder; `<data set>/<name>` where not given."""
    size: Annotated[int, Field(ge=0)] | None = None
    """Size in bytes."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """SHA-256 digest, lower-case hexadecimal."""
    md5: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] | None = None
    """MD5 digest, for sources that publish nothing better."""
    by_hand: str | None = None
    """How a person gets the file where no URL serves it."""
    optional: bool = False
    """The data set can be assembled without it (for example labels that are not public)."""


class LayerSpec(_Strict):
    """One omics layer: what its numbers are and which files hold it."""

    kind: DataKind = "counts"
    """``counts``, ``binary`` (0/1), ``normalised`` (ratios, logarithms) or ``embedding``."""
    likelihood: Likelihood | None = None
    """Distribution for methods that model this layer; chosen from `kind` where not given:
    ``nb`` for counts and binary values, ``ziln`` for other methylation, otherwise ``normal``."""
    reader: ReaderName | None = None
    """Format, where it differs from that of the data set."""
    file: str | None = None
    """Matrix file: a name of `files`, or a path for local data."""
    barcodes: str | None = None
    """Cell names, one a line (reader ``mtx``)."""
    features: str | None = None
    """Feature names or BED intervals, one a line (reader ``mtx``)."""
    matrix: Annotated[str, Field(pattern=r"^(X|layers/[^/]+)$")] = "X"
    """Where an h5ad or h5mu file keeps the raw values: ``X`` or ``layers/<name>``."""
    start_base: Literal[0, 1] = 0
    """Whether the starts in peak names count from 0 (BED) or 1."""
    unplaced: Literal["drop", "keep"] | None = None
    """Features without genomic position. By default they are dropped from rna, atac and met when
    the data set has a genome and both an rna and an atac or met layer: no guidance edge can reach
    them."""


class CellTable(_Strict):
    """A text table with one row a cell, joined to obs by cell name."""

    file: str
    """A name of `files`."""
    separator: Literal[",", "\t"] = "\t"
    """Field separator."""
    key: str | None = None
    """Column with the cell names; the first column where not given."""
    columns: dict[str, str]
    """obs column to table column, for example ``{cell_type: Ident}``."""
    only_listed: bool = False
    """Keep only the cells that the table lists."""


class DatasetSpec(_Strict):
    """One data set, as written in the YAML file."""

    kind: Literal["simulated", "download", "mirror", "local"]
    """``simulated``, ``download`` (public files), ``mirror`` (only in the mirror folder) or
    ``local`` (your own files)."""
    title: str
    """One line: protocol, tissue, organism."""
    layers: dict[Modality, LayerSpec] = {}
    """Omics layers by name; may be left out for a local h5mu file."""
    genome: str | None = None
    """Assembly of the coordinates (hg38, hg19, mm10, ...)."""
    paired: bool = False
    """Equal cell names in two layers mean the same cell."""
    reader: ReaderName = "h5ad"
    """Format of the files."""
    file: str | None = None
    """The file that holds all layers, where they share one."""
    files: list[FileSpec] = []
    """All files to fetch."""
    originals: list[FileSpec] = []
    """Deposits from which `files` were made by their authors; recorded, never fetched."""
    cell_table: CellTable | None = None
    """Labels kept in a separate text table."""
    annotation: str | None = None
    """Gene coordinates for genes that lack them: a name of `references`."""
    blacklist: str | None = None
    """Regions whose peaks are removed: a name of `references`."""
    cell_type_key: str | None = "cell_type"
    """obs column with the labels; null when there are none."""
    batch_key: str | None = None
    """obs column with the batches."""
    unscored: dict[str, list[str]] = {}
    """obs column to values whose cells stay in the data but out of label metrics."""
    drop: dict[str, list[str]] = {}
    """obs column to values whose cells are removed."""
    licence: str | None = None
    """Terms of use, as stated by the source."""
    citation: str | None = None
    """Who made the data."""
    accession: str | None = None
    """Identifier in a public archive."""
    verified: bool = False
    """Whether these very files were fetched and assembled with this entry."""
    note: str | None = None
    """What a user should know, such as what could not be verified."""
    cells: Annotated[int, Field(ge=2)] | None = None
    """Cells to simulate; for other kinds the number that the source states."""
    preset: str | None = None
    """Simulator preset (simulated data)."""
    seed: int = 0
    """Simulator seed (simulated data)."""

    @model_validator(mode="after")
    def _consistent(self) -> DatasetSpec:
        for problem in self._problems():
            raise ValueError(problem)
        return self

    def _problems(self) -> Iterable[str]:
        if self.kind == "simulated":
            if self.preset is None:
                yield "a simulated data set needs 'preset'"
            if self.cells is None:
                yield "a simulated data set needs 'cells', how many to simulate"
            if self.files or self.file:
                yield "a simulated data set has no files"
        elif self.preset is not None:
            yield f"'preset' belongs to simulated data sets; this one is of kind {self.kind!r}"
        if not self.layers and not (self.kind == "local" and self.reader == "h5mu"):
            yield "'layers' is empty; name at least one of rna, atac, met, adt"
        if self.kind in ("download", "mirror"):
            yield from self._file_problems()
        if self.kind == "local":
            if self.files:
                yield "a local data set has no 'files'; give paths in 'file', here or in each layer"
            if self.layers and any(self.layer_file(name) is None for name in self.layers):
                yield "give 'file', or 'file' in each layer"
            if not self.layers and self.file is None:
                yield "give 'file', the path of the h5mu file"
        for name, layer in self.layers.items():
            is_mtx = (layer.reader or self.reader) == "mtx"
            if {layer.barcodes is not None, layer.features is not None} != {is_mtx}:
                yield f"layer {name!r}: 'barcodes' and 'features' go with reader 'mtx' and no other"

    def _file_problems(self) -> Iterable[str]:
        names = [file.name for file in self.files]
        if len(set(names)) < len(names):
            yield f"'files' names a file twice: {sorted(names)}"
        wanted = [self.cell_table.file] if self.cell_table else []
        for name, layer in self.layers.items():
            if self.layer_file(name) is None:
                yield f"layer {name!r} has no 'file'"
            used = (self.layer_file(name), layer.barcodes, layer.features)
            wanted += [file for file in used if file is not None]
        for file in wanted:
            if file not in names:
                yield near_miss(file, names, "file")
        for spec in self.files:
            if self.kind == "mirror" and spec.mirror is None:
                yield f"file {spec.name!r} has no 'mirror' path"
            if self.kind == "download" and not spec.urls and not spec.by_hand:
                yield f"file {spec.name!r} has neither 'urls' nor 'by_hand'"

    def layer_file(self, layer: str) -> str | None:
        """Return the name (or path, for local data) of the file that holds a layer."""
        return self.layers[layer].file or self.file


class DatasetEntry(DatasetSpec):
    """A data set with its name and its reference files resolved."""

    name: str
    """Key in the YAML file; names the folders of the data set."""
    annotation_file: FileSpec | None = None
    """Resolved `annotation`."""
    blacklist_file: FileSpec | None = None
    """Resolved `blacklist`."""

    def all_files(self) -> list[FileSpec]:
        """Return all files to fetch, references included."""
        extra = (self.annotation_file, self.blacklist_file)
        return [*self.files, *(file for file in extra if file is not None)]

    def mirror_path(self, file: FileSpec) -> str:
        """Return the path of a file inside the mirror folder."""
        return file.mirror or f"{self.name}/{file.name}"

    def likelihood(self, layer: str) -> Likelihood:
        """Return the distribution that models of this layer should use."""
        return layer_likelihood(layer, self.layers.get(layer, LayerSpec()))

    def drops_unplaced(self, layer: str) -> bool:
        """Tell whether features of a layer without genomic position are removed."""
        spec = self.layers.get(layer, LayerSpec())
        if spec.unplaced is not None:
            return spec.unplaced == "drop"
        linked = "rna" in self.layers and ("atac" in self.layers or "met" in self.layers)
        return self.genome is not None and linked and layer in ("rna", "atac", "met")

    def local_files(self) -> list[str]:
        """Return the paths of all files of a local data set; empty for other kinds."""
        if self.kind != "local":
            return []
        layers = self.layers.values()
        paths = [path for layer in layers for path in (layer.file, layer.barcodes, layer.features)]
        table = self.cell_table.file if self.cell_table else None
        return list(dict.fromkeys(path for path in (self.file, *paths, table) if path))

    def available(self, mirror: str | os.PathLike[str] | None = None) -> bool | str:
        """Tell whether the data can be had; where not, why.

        Parameters
        ----------
        mirror
            Mirror folder, if there is one.

        Returns
        -------
        bool | str
            True, or the reason. A URL counts as available: it is not contacted.
        """
        for path in self.local_files():
            if not Path(path).is_file():
                return f"no file {path}"
        for file in self.all_files():
            held = mirror is not None and (Path(mirror) / self.mirror_path(file)).is_file()
            if not (held or file.urls or file.optional):
                remedy = file.by_hand or f"set `mirror` to a folder with {self.mirror_path(file)}"
                return f"no address of {file.name} is known: {remedy}"
        return True

    def describe(self, mirror: str | os.PathLike[str] | None = None) -> dict[str, Any]:
        """Return what ``scbraid list datasets --json`` shows; plain JSON types only."""
        sizes = [file.size for file in self.all_files()]
        known = [size for size in sizes if size is not None]
        return {
            "name": self.name,
            "title": self.title,
            "kind": self.kind,
            "layers": {
                layer: {"kind": spec.kind, "likelihood": self.likelihood(layer)}
                for layer, spec in self.layers.items()
            },
            "paired": self.paired,
            "genome": self.genome,
            "cells": self.cells,
            "labels": self.cell_type_key is not None,
            "batches": self.batch_key is not None,
            "bytes": sum(known) if len(known) == len(sizes) else None,
            "licence": self.licence,
            "citation": self.citation,
            "accession": self.accession,
            "verified": self.verified,
            "note": self.note,
            "available": self.available(mirror),
        }


class DatasetsFile(_Strict):
    """A YAML file of data sets."""

    references: dict[DatasetName, FileSpec] = {}
    """Files that several data sets share: gene annotations, blacklists."""
    datasets: dict[DatasetName, DatasetSpec] = {}
    """Data sets by name."""


class Datasets(dict[str, DatasetEntry]):
    """Data sets by name; an unknown name raises UnknownNameError with the nearest known one.

    Attributes
    ----------
    references
        Shared files by name, for `scbraid.data.download.download_reference`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.references: dict[str, FileSpec] = {}

    def __missing__(self, name: str) -> DatasetEntry:
        raise UnknownNameError(near_miss(name, self, "dataset"))


def layer_likelihood(layer: str, spec: LayerSpec) -> Likelihood:
    """Return the stated likelihood of a layer, or the one that fits the kind of its values."""
    if spec.likelihood is not None:
        return spec.likelihood
    if spec.kind in ("counts", "binary"):
        return "nb"
    return "ziln" if layer == "met" and spec.kind == "normalised" else "normal"


def load_datasets(
    paths: Iterable[str | os.PathLike[str]], extra: Mapping[str, Any] | None = None
) -> Datasets:
    """Read and validate data sets from YAML files.

    Parameters
    ----------
    paths
        YAML files, each with `datasets` and optionally `references`.
    extra
        Further data sets by name (for example a block of config.yaml). Relative paths of local data
        are relative to the working directory.

    Returns
    -------
    Datasets
        In file order; a missing name raises UnknownNameError.

    Raises
    ------
    ConfigError
        Naming file, data set and field: unknown fields (with the nearest known one), bad values, a
        name that is defined twice, a reference that does not exist.
    """
    blocks = [(str(path), _validate(_read_yaml(Path(path)), str(path))) for path in paths]
    if extra:
        blocks.append(("config", _validate({"datasets": dict(extra)}, "config")))

    references: dict[str, FileSpec] = {}
    owners: dict[str, str] = {}
    for source, block in blocks:
        for name in (*block.references, *block.datasets):
            if name in owners:
                msg = f"{name!r} is defined in {owners[name]} and again in {source}; rename one"
                raise ConfigError(msg)
            owners[name] = source
        references |= block.references

    entries = Datasets()
    entries.references = references
    for source, block in blocks:
        for name, spec in block.datasets.items():
            resolved: dict[str, FileSpec | None] = {}
            for role in ("annotation", "blacklist"):
                wanted = getattr(spec, role)
                if wanted is not None and wanted not in references:
                    hint = near_miss(wanted, references, "reference")
                    msg = f"{source}: dataset {name!r}, field {role!r}: {hint}"
                    raise ConfigError(msg)
                resolved[f"{role}_file"] = references.get(wanted)
            fields = {key: getattr(spec, key) for key in DatasetSpec.model_fields}
            entries[name] = DatasetEntry.model_validate({"name": name, **fields, **resolved})
    return entries


def default_registry_files() -> list[Path]:
    """Return the data set files that commands use: that of the source tree or working directory.

    Raises
    ------
    ConfigError
        When there is neither.
    """
    places = [Path(__file__).resolve().parents[3], Path.cwd()]
    for place in places:
        path = place / "config" / "datasets.yaml"
        if path.is_file():
            return [path]
    msg = (
        f"no config/datasets.yaml in {' or '.join(map(str, places))}; run in the workflow's folder"
    )
    raise ConfigError(msg)


def schema() -> dict[str, Any]:
    """Return the JSON schema of a data set file, for Snakemake and editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **DatasetsFile.model_json_schema(),
    }


def write_schema(path: str | os.PathLike[str]) -> None:
    """Write `schema` as JSON."""
    write_json(path, schema())


def _read_yaml(path: Path) -> Any:
    import yaml

    class UniqueKeyLoader(yaml.SafeLoader):
        """Refuses a key that stands twice in one mapping (plain YAML keeps the last one)."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
            seen = set()
            for key_node, _ in node.value:
                if key_node.value in seen:
                    line = key_node.start_mark.line + 1
                    msg = f"{path}, line {line}: key {key_node.value!r} stands twice; rename one"
                    raise ConfigError(msg)
                seen.add(key_node.value)
            return super().construct_mapping(node, deep)

    try:
        text = path.read_text("utf-8")
    except OSError as error:
        msg = f"cannot read the data set file {path}: {error.strerror}"
        raise ConfigError(msg) from error
    try:
        return yaml.load(text, Loader=UniqueKeyLoader) or {}  # UniqueKeyLoader is a SafeLoader
    except yaml.YAMLError as error:
        msg = f"{path} is not valid YAML: {error}"
        raise ConfigError(msg) from error


def _validate(content: Any, source: str) -> DatasetsFile:
    try:
        return DatasetsFile.model_validate(content)
    except ValidationError as error:
        msg = "\n".join(f"{source}: {_explain(problem)}" for problem in error.errors())
        raise ConfigError(msg) from None


def _explain(problem: Mapping[str, Any]) -> str:
    """Turn one pydantic error into a sentence that says where, what, and the nearest right name."""
    location = [str(part) for part in problem["loc"]]
    where = ""
    if len(location) >= 2 and location[0] in ("datasets", "references"):
        where = f"{location[0][:-1]} {location[1]!r}, "
        location = location[2:]
    found = problem["input"]
    if problem["type"] == "extra_forbidden":
        inside = f"{'.'.join(location[:-1])}: " if location[1:] else ""
        return f"{where}{inside}{near_miss(location[-1], _fields_at(problem['loc'][:-1]), 'field')}"
    if location[-1:] == ["[key]"]:
        if location[0] == "layers":
            return f"{where}{near_miss(str(found), MODALITIES, 'layer')}"
        return f"{where}a name may hold letters, digits, '-' and '_' only. Got {found!r}"
    field = ".".join(location) or "(the whole block)"
    if problem["type"] == "missing":
        return f"{where}field {field!r} is required"
    message = problem["msg"]
    if problem["type"] == "value_error":
        return f"{where}{message.removeprefix('Value error, ')}"
    return f"{where}field {field!r}: {message}. Got {found!r}"


def _fields_at(location: tuple[Any, ...]) -> list[str]:
    """Return the fields that the model at a place of the file knows."""
    models: dict[str, type[BaseModel]] = {
        "files": FileSpec,
        "originals": FileSpec,
        "references": FileSpec,
        "layers": LayerSpec,
        "cell_table": CellTable,
        "datasets": DatasetSpec,
    }
    for part in reversed(location):
        if part in models:
            return list(models[part].model_fields)
    return list(DatasetsFile.model_fields)
