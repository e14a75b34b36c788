"""Readers of the formats in which single-cell data are published.

Each reader returns AnnData of one layer: X float32 CSR (n_cells, n_features), ``var`` with the
columns chrom, chromStart, chromEnd, strand (0-based, half-open; '' and -1 where unknown). A file
that cannot be read gives a DataError with its path, what was found and what was expected.
"""

from __future__ import annotations

import contextlib
import gzip
import re
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from scbraid.data.layers import read_matrix
from scbraid.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData

POSITION = ("chrom", "chromStart", "chromEnd", "strand")

# How the formats that keep several layers in one matrix name them.
FEATURE_TYPES = {
    "Gene Expression": "rna",
    "GEX": "rna",
    "Peaks": "atac",
    "ATAC": "atac",
    "Antibody Capture": "adt",
    "ADT": "adt",
}

# chr1:100-200, chr1-100-200, chr1_100_200; the sequence name itself may hold any of the separators.
_INTERVAL = re.compile(r"^(.+)[:_-](\d+)[_-](\d+)$")
# Chromosomes, as against scaffolds, patches and haplotypes.
_CHROMOSOME = r"^(?:chr)?(?:\d+[LR]?|[IVX]+|[XYZWM]|MT)$"
_TABLE_ROWS = 1000  # rows of a dense text table held at a time


@dataclass(frozen=True)
class Source:
    """Where one layer is, for any reader.

    Attributes
    ----------
    layer
        Modality: rna, atac, met or adt.
    path
        The matrix file.
    barcodes, features
        Name files of the reader ``mtx``.
    matrix
        ``X`` or ``layers/<name>``, for h5ad and h5mu.
    start_base
        Whether the starts in interval names count from 0 or 1.
    """

    layer: str
    path: Path
    barcodes: Path | None = None
    features: Path | None = None
    matrix: str = "X"
    start_base: int = 0


def read_h5ad(sources: Sequence[Source]) -> dict[str, AnnData]:
    """Read one h5ad file.

    A file with several layers side by side is split by ``var['feature_types']``, in the names of
    10x or of GSE194122 (GEX, ATAC, ADT); a file with one layer needs no such column. Embeddings and
    other derived parts are left behind.

    Parameters
    ----------
    sources
        The layers wanted from this file; all with the same path.
    """
    path = sources[0].path
    with _opened(path) as handle:
        return _split(handle, sources, path)


def read_h5mu(sources: Sequence[Source]) -> dict[str, AnnData]:
    """Read an h5mu file; parameters as for `read_h5ad`."""
    path = sources[0].path
    with _opened(path) as handle:
        if "mod" not in handle:
            msg = f"{path} has no group 'mod'; an h5mu file is expected (use reader h5ad for h5ad)"
            raise DataError(msg)
        found: dict[str, AnnData] = {}
        for source in sources:
            if source.layer not in handle["mod"]:
                has = ", ".join(handle["mod"])
                msg = f"{path} has no layer {source.layer!r}; it has: {has}"
                raise DataError(msg)
            found |= _split(handle["mod"][source.layer], [source], path)
        return found


def layers_of_h5mu(path: Path) -> list[str]:
    """Return the layer names of an h5mu file, in order."""
    with _opened(path) as handle:
        group = handle.get("mod", {})
        names = group.attrs.get("mod-order", list(group)) if group else []
        return [str(name) for name in names]


def read_tenx_h5(sources: Sequence[Source]) -> dict[str, AnnData]:
    """Read a 10x HDF5 file of Cell Ranger 3 or later, ARC or ATAC (group ``matrix``).

    Features become genes and peaks by their feature type. Gene names that occur twice get a
    suffix; ``var['gene_id']`` and ``var['gene_name']`` keep what the file says.

    Parameters
    ----------
    sources
        The layers wanted from this file; all with the same path.
    """
    path = sources[0].path
    with _opened(path) as handle:
        if "matrix" not in handle:
            msg = (
                f"{path} has no group 'matrix' (found: {', '.join(handle) or 'nothing'}); "
                "a 10x HDF5 file of Cell Ranger 3 or later is expected"
            )
            raise DataError(msg)
        group = handle["matrix"]
        n_features, n_cells = (int(size) for size in group["shape"][:])
        # features x cells by columns is cells x features by rows
        matrix = sp.csr_matrix(
            (group["data"][:].astype(np.float32), group["indices"][:], group["indptr"][:]),
            shape=(n_cells, n_features),
        )
        features = {key: _text(group["features"][key]) for key in ("id", "name", "feature_type")}
        cells = _text(group["barcodes"])
    _check_matrix(matrix, path)
    var = pd.DataFrame(
        {"gene_id": features["id"], "gene_name": features["name"]},
        index=pd.Index(features["name"], dtype=object),
    )
    obs = pd.DataFrame(index=pd.Index(cells, dtype=object))
    return _by_feature_type(matrix, obs, var, features["feature_type"], sources, path)


def read_mtx(sources: Sequence[Source]) -> dict[str, AnnData]:
    """Read a Matrix Market triplet, features x cells: matrix, barcodes and features, gzip or plain.

    A feature file of one column holds names; one whose second and third columns are whole numbers
    holds BED intervals; otherwise the columns are id and name, as 10x writes them.

    Parameters
    ----------
    sources
        One layer, with `barcodes` and `features`.
    """
    (source,) = sources
    if source.barcodes is None or source.features is None:
        msg = f"{source.path}: reader mtx needs a barcodes file and a features file"
        raise DataError(msg)
    from scipy.io import mmread

    cells = _read_lines(source.barcodes).iloc[:, 0].to_numpy(dtype=object)
    features = _read_lines(source.features)
    with _readable(source.path, "a Matrix Market file"):
        matrix = sp.csr_matrix(mmread(source.path).T.tocsr(), dtype=np.float32)
    expected = (len(cells), len(features))
    if matrix.shape != expected:
        msg = (
            f"{source.path} is {matrix.shape[1]:,} x {matrix.shape[0]:,}, but "
            f"{source.features.name} names {expected[1]:,} features and {source.barcodes.name} "
            f"{expected[0]:,} cells; features x cells is expected"
        )
        raise DataError(msg)
    obs = pd.DataFrame(index=pd.Index(cells, dtype=object))
    return {source.layer: _layer(matrix, obs, _feature_frame(features), source)}


def read_table(sources: Sequence[Source]) -> dict[str, AnnData]:
    """Read a dense text table, one row a feature and one column a cell, gzip or plain.

    Comma-separated when the name says csv, otherwise tab-separated; the header may lack the corner,
    as R writes it. The table is turned sparse by blocks of rows.

    Parameters
    ----------
    sources
        One layer.
    """
    (source,) = sources
    separator = "," if ".csv" in source.path.suffixes else "\t"
    blocks: list[sp.csr_matrix] = []
    names: list[np.ndarray] = []
    cells = pd.Index([])
    with (
        _readable(source.path, "a table of numbers, features x cells"),
        pd.read_csv(source.path, sep=separator, index_col=0, chunksize=_TABLE_ROWS) as rows,
    ):
        for block in rows:
            cells = block.columns
            names.append(block.index.to_numpy(dtype=object))
            blocks.append(sp.csr_matrix(block.to_numpy(dtype=np.float32)))
    if not sum(map(len, names)):
        msg = f"{source.path} has no rows; a table of features x cells is expected"
        raise DataError(msg)
    matrix = sp.csr_matrix(sp.vstack(blocks, format="csr").T)
    var = pd.DataFrame(index=pd.Index(np.concatenate(names).astype(str), dtype=object))
    obs = pd.DataFrame(index=pd.Index(cells.astype(str), dtype=object))
    return {source.layer: _layer(matrix, obs, var, source)}


READERS: dict[str, Callable[[Sequence[Source]], dict[str, AnnData]]] = {
    "h5ad": read_h5ad,
    "h5mu": read_h5mu,
    "tenx_h5": read_tenx_h5,
    "mtx": read_mtx,
    "table": read_table,
}


def parse_intervals(names: Sequence[str] | pd.Index, start_base: int = 0) -> pd.DataFrame:
    """Parse interval names: ``chr1:100-200``, ``chr1-100-200`` or ``chr1_100_200``.

    Parameters
    ----------
    names
        Feature names.
    start_base
        0 when the starts count from 0 (BED), 1 when they count from 1.

    Returns
    -------
    DataFrame
        chrom, chromStart, chromEnd by name, 0-based and half-open; '' and -1 for other names.
    """
    index = pd.Index(names, dtype=object)
    parts = pd.Series(index, dtype=str).str.extract(_INTERVAL)
    ok = parts[0].notna().to_numpy()
    start = parts[1].where(ok, "-1").astype(np.int64) - np.where(ok, start_base, 0)
    return pd.DataFrame(
        {
            "chrom": parts[0].fillna("").to_numpy(dtype=object),
            "chromStart": start.to_numpy(),
            "chromEnd": parts[2].where(ok, "-1").astype(np.int64).to_numpy(),
        },
        index=index,
    )


def read_annotation(path: str | Path) -> pd.DataFrame:
    """Read gene positions from BED6 or GTF (rows of type gene), gzip or plain.

    A name that occurs more than once keeps one place: chromosomes beat scaffolds and patches, then
    the last by sequence name counts (methods/glue: the same rule as its public preprocessing).

    Returns
    -------
    DataFrame
        chrom, chromStart, chromEnd, strand and gene_id ('' in BED), indexed by unique gene name;
        0-based, half-open.
    """
    path = Path(path)
    is_gtf = ".gtf" in path.suffixes
    with _readable(path, "BED6 or GTF"):
        genes = _read_gtf(path) if is_gtf else _read_bed6(path)
    if genes.empty:
        msg = f"{path} names no gene; BED6, or GTF with rows of type gene, is expected"
        raise DataError(msg)
    genes["on_chromosome"] = genes["chrom"].str.match(_CHROMOSOME)
    genes = genes.sort_values(["on_chromosome", "chrom"], kind="stable")
    genes = genes.drop_duplicates("name", keep="last").set_index("name")
    return genes[[*POSITION, "gene_id"]]


def add_gene_positions(var: pd.DataFrame, annotation: pd.DataFrame) -> int:
    """Fill in, in place, the positions of genes that have none.

    Genes are found by Ensembl id without version where both tables have ids, otherwise by name
    (``var['gene_name']`` if present, else the index).

    Parameters
    ----------
    var
        Genes of an rna layer, with the position columns.
    annotation
        From `read_annotation`.

    Returns
    -------
    int
        Number of genes that got a position.
    """
    wanted = np.flatnonzero(~has_position(var))
    if not wanted.size:
        return 0
    names = var["gene_name"] if "gene_name" in var else var.index.to_series()
    place = annotation.index.get_indexer(names.iloc[wanted].astype(str))
    if "gene_id" in var and annotation["gene_id"].any():
        known = annotation["gene_id"].str.split(".").str[0]
        position = pd.Series(np.arange(len(known)), index=known.to_numpy())
        position = position[(position.index != "") & ~position.index.duplicated(keep="last")]
        ids = var["gene_id"].iloc[wanted].astype(str).str.split(".").str[0]
        by_id = position.reindex(ids).to_numpy()
        place = np.where(np.isnan(by_id), place, by_id).astype(np.int64)
    rows, found = wanted[place >= 0], place[place >= 0]
    for column in POSITION:
        values = var[column].astype(object).to_numpy()
        values[rows] = annotation[column].to_numpy()[found]
        var[column] = pd.array(values) if column in ("chrom", "strand") else values.astype(np.int64)
    _as_categories(var)
    return len(rows)


def has_position(var: pd.DataFrame) -> np.ndarray:
    """Tell which features have a genomic position: bool of shape (n_features,)."""
    return (var["chrom"].astype(str) != "").to_numpy() & (var["chromStart"] >= 0).to_numpy()


def overlaps(var: pd.DataFrame, regions: pd.DataFrame) -> np.ndarray:
    """Tell which features overlap any region.

    Parameters
    ----------
    var
        Features with the position columns.
    regions
        chrom, chromStart, chromEnd.

    Returns
    -------
    ndarray
        bool of shape (n_features,).
    """
    hit = np.zeros(len(var), dtype=bool)
    chrom = var["chrom"].astype(str).to_numpy()
    start, end = var["chromStart"].to_numpy(), var["chromEnd"].to_numpy()
    for name, group in regions.groupby("chrom"):
        here = np.flatnonzero(chrom == name)
        if here.size:
            first = group["chromStart"].to_numpy()
            order = np.argsort(first, kind="stable")
            first = first[order]
            # The furthest end among the regions that start before the feature ends tells all.
            furthest = np.maximum.accumulate(group["chromEnd"].to_numpy()[order])
            before = np.searchsorted(first, end[here], side="left") - 1
            hit[here] = (before >= 0) & (furthest[np.maximum(before, 0)] > start[here])
    return hit


def read_bed(path: str | Path) -> pd.DataFrame:
    """Read the first three columns of a BED file, gzip or plain."""
    path = Path(path)
    with _readable(path, "BED"):
        return pd.read_csv(
            path,
            sep="\t",
            header=None,
            comment="#",
            usecols=[0, 1, 2],
            names=["chrom", "chromStart", "chromEnd"],
            dtype={"chrom": str, "chromStart": np.int64, "chromEnd": np.int64},
        )


def read_text_table(path: str | Path, separator: str) -> pd.DataFrame:
    """Read a text table with a header line, gzip or plain, all columns as text."""
    path = Path(path)
    with _readable(path, "a text table with a header line"):
        return pd.read_csv(path, sep=separator, dtype=str)


@contextlib.contextmanager
def _readable(path: Path, expected: str) -> Iterator[None]:
    """Name the file, and what it should have been, when its content cannot be parsed."""
    if not path.is_file():
        msg = f"{path} does not exist; expected {expected}"
        raise DataError(msg)
    try:
        yield
    except DataError:
        raise
    except (OSError, EOFError, KeyError, ValueError, IndexError, TypeError, zlib.error) as error:
        reason = f"{type(error).__name__}: {error}"
        msg = f"{path} cannot be read as {expected} ({reason}); it may be cut short or damaged"
        raise DataError(msg) from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file, unpacked beside itself when its name ends in .gz."""
    with _readable(path, "HDF5"):
        if path.suffix != ".gz":
            with h5py.File(path, "r") as handle:
                yield handle
            return
        with tempfile.TemporaryDirectory(prefix=".unpacked-", dir=path.parent) as folder:
            plain = Path(folder) / path.stem
            with gzip.open(path, "rb") as packed, plain.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, 1 << 20)
            with h5py.File(plain, "r") as handle:
                yield handle


def _split(group: h5py.Group, sources: Sequence[Source], path: Path) -> dict[str, AnnData]:
    """Read one AnnData group, split by feature type where it holds several layers."""
    from anndata import OldFormatWarning
    from anndata.io import read_elem  # knows the older layouts of categories

    for part in ("obs", "var", sources[0].matrix):
        if part not in group:
            held = ", ".join(group["layers"]) if "layers" in group else "none"
            msg = f"{path} has no {part!r} (groups: {', '.join(group)}; layers: {held})"
            raise DataError(msg)
        if part in ("obs", "var") and not isinstance(group[part], h5py.Group):
            msg = f"{path} was written by anndata before 0.7; write it again with a newer one"
            raise DataError(msg)
    with warnings.catch_warnings():  # public files of 2021 are so, and are read all the same
        warnings.simplefilter("ignore", OldFormatWarning)
        obs, var = read_elem(group["obs"]), read_elem(group["var"])
    matrix = read_matrix(group[sources[0].matrix])
    _check_matrix(matrix, path)
    if matrix.shape != (len(obs), len(var)):
        expected = (len(obs), len(var))
        msg = f"{path}: {sources[0].matrix} has shape {matrix.shape}; obs and var say {expected}"
        raise DataError(msg)
    types = var["feature_types"].astype(str).to_numpy() if "feature_types" in var else None
    if types is None or (len(sources) == 1 and len(set(types)) == 1):
        if len(sources) > 1:
            wanted = ", ".join(source.layer for source in sources)
            msg = f"{path} has no var['feature_types'] that would tell the layers {wanted} apart"
            raise DataError(msg)
        return {sources[0].layer: _layer(matrix, obs, var, sources[0])}
    return _by_feature_type(matrix, obs, var, types, sources, path)


def _by_feature_type(
    matrix: sp.csr_matrix,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    types: np.ndarray,
    sources: Sequence[Source],
    path: Path,
) -> dict[str, AnnData]:
    layers = np.array([FEATURE_TYPES.get(kind, "") for kind in types])
    found = {}
    for source in sources:
        columns = np.flatnonzero(layers == source.layer)
        if not columns.size:
            has = ", ".join(sorted(set(types)))
            msg = f"{path} has no {source.layer} features; its feature types are: {has}"
            raise DataError(msg)
        everything = columns.size == matrix.shape[1]
        part = matrix if everything else matrix[:, columns]
        found[source.layer] = _layer(part, obs, var.iloc[columns], source)
    return found


def _layer(matrix: sp.csr_matrix, obs: pd.DataFrame, var: pd.DataFrame, source: Source) -> AnnData:
    """Make the AnnData of one layer, with unique feature names and position columns."""
    import anndata

    if obs.index.has_duplicates:
        twice = obs.index[obs.index.duplicated()]
        msg = (
            f"{source.path}: {len(twice):,} cell names of layer {source.layer!r} occur again "
            f"(first: {twice[0]!r}); they must be unique"
        )
        raise DataError(msg)
    matrix.sort_indices()
    var = var.copy()
    var.index = _unique(var.index)
    var.index.name = None
    _standard_positions(var, source)
    obs = obs.copy()
    obs.index = obs.index.astype(str)
    obs.index.name = None
    return anndata.AnnData(X=matrix, obs=obs, var=var)


def _standard_positions(var: pd.DataFrame, source: Source) -> None:
    """Give `var` the four position columns in place: as stated, else from interval names."""
    stated = all(column in var for column in POSITION[:3])
    if not stated:
        parsed = parse_intervals(var.index, source.start_base)
        if source.layer in ("rna", "adt"):  # HLA-DRB1 is no interval, nor is a name like A-1-2
            parsed["chrom"], parsed["chromStart"], parsed["chromEnd"] = "", -1, -1
        for column in POSITION[:3]:
            var[column] = parsed[column].to_numpy()
    chrom = var["chrom"].astype(object)
    place = {
        column: pd.to_numeric(var[column], errors="coerce").fillna(-1).astype(np.int64)
        for column in POSITION[1:3]
    }
    unknown = (chrom.isna() | (chrom == "")).to_numpy() | (place["chromStart"] < 0).to_numpy()
    var["chrom"] = chrom.where(~unknown, "").astype(str)
    for column, values in place.items():
        var[column] = values.where(~unknown, -1)
    strand = var["strand"].astype(object) if "strand" in var else pd.Series(".", index=var.index)
    var["strand"] = strand.where(strand.isin(["+", "-"]), ".").astype(str)
    _as_categories(var)


def _as_categories(var: pd.DataFrame) -> None:
    for column in ("chrom", "strand"):
        var[column] = pd.Categorical(var[column].astype(str))


def _unique(names: pd.Index) -> pd.Index:
    """Make feature names unique: the second X becomes X-1, in the manner of Seurat and scanpy."""
    text = names.astype(str)
    if not text.has_duplicates:
        return pd.Index(text, dtype=object)
    number = pd.Series(text).groupby(text).cumcount().to_numpy()
    taken = set(text)
    unique = text.to_numpy(dtype=object).copy()
    for place in np.flatnonzero(number):
        suffix = number[place]
        while (candidate := f"{text[place]}-{suffix}") in taken:
            suffix += 1
        taken.add(candidate)
        unique[place] = candidate
    return pd.Index(unique, dtype=object)


def _check_matrix(matrix: sp.csr_matrix, path: Path) -> None:
    try:
        matrix.check_format(full_check=True)
    except ValueError as error:
        msg = f"{path} holds a damaged sparse matrix ({error}); get or write it again"
        raise DataError(msg) from error


def _text(node: h5py.Dataset) -> np.ndarray:
    return node.asstr()[:].astype(object)


def _read_lines(path: Path) -> pd.DataFrame:
    """Read tab-separated names without header, as text."""
    with _readable(path, "a text file, one name a line"):
        return pd.read_csv(path, sep="\t", header=None, dtype=str, keep_default_na=False, quoting=3)


def _feature_frame(columns: pd.DataFrame) -> pd.DataFrame:
    """Turn the columns of a feature file into var."""
    if columns.shape[1] >= 3 and columns.iloc[:, 1:3].map(str.isdigit).to_numpy().all():
        bed = columns.iloc[:, :3]
        names = bed[0] + ":" + bed[1] + "-" + bed[2]
        return pd.DataFrame(
            {
                "chrom": bed[0].to_numpy(),
                "chromStart": bed[1].to_numpy().astype(np.int64),
                "chromEnd": bed[2].to_numpy().astype(np.int64),
            },
            index=pd.Index(names, dtype=object),
        )
    if columns.shape[1] == 1:
        return pd.DataFrame(index=pd.Index(columns[0], dtype=object))
    return pd.DataFrame(
        {"gene_id": columns[0].to_numpy(), "gene_name": columns[1].to_numpy()},
        index=pd.Index(columns[1], dtype=object),
    )


def _read_bed6(path: Path) -> pd.DataFrame:
    genes = pd.read_csv(
        path,
        sep="\t",
        header=None,
        comment="#",
        usecols=[0, 1, 2, 3, 5],
        names=["chrom", "chromStart", "chromEnd", "name", "score", "strand"],
        dtype={"chrom": str, "chromStart": np.int64, "chromEnd": np.int64, "name": str},
        keep_default_na=False,
    )
    return genes.drop(columns="score", errors="ignore").assign(gene_id="")


def _read_gtf(path: Path) -> pd.DataFrame:
    # Genes are one row in fifty: choose them as text before anything is parsed.
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        rows = [line.rstrip("\n").split("\t") for line in lines if "\tgene\t" in line]
    table = pd.DataFrame(
        [(row[0], row[3], row[4], row[6], row[8]) for row in rows if row[2] == "gene"],
        columns=["chrom", "start", "chromEnd", "strand", "attributes"],
    )
    attributes = table["attributes"]
    gene_id = attributes.str.extract(r'gene_id "([^"]*)"')[0].fillna("")
    return pd.DataFrame(
        {
            "chrom": table["chrom"],
            "chromStart": table["start"].astype(np.int64) - 1,  # GTF counts from 1, ends included
            "chromEnd": table["chromEnd"].astype(np.int64),
            "name": attributes.str.extract(r'gene_name "([^"]*)"')[0].fillna(gene_id),
            "strand": table["strand"],
            "gene_id": gene_id,
        }
    )
