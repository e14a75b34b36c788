"""Every reader on files written in that very format, whole and damaged."""

from __future__ import annotations

import gzip
import time
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.io
import scipy.sparse as sp

from scbraid.data.readers import (
    POSITION,
    Source,
    add_gene_positions,
    has_position,
    layers_of_h5mu,
    overlaps,
    parse_intervals,
    read_annotation,
    read_bed,
    read_h5ad,
    read_h5mu,
    read_mtx,
    read_table,
    read_tenx_h5,
)
from scbraid.errors import DataError

N_CELLS, GENES = 20, ["Sox2", "Actb", "Actb", "H2-K1", "Gapdh"]
PEAKS = ["chr1:100-200", "chr1:300-450", "chrUn_KI270742v1:5-90"]
CELLS = [f"CELL{number}-1" for number in range(N_CELLS)]


@pytest.fixture
def counts() -> sp.csr_matrix:
    rng = np.random.default_rng(0)
    return sp.csr_matrix(rng.poisson(0.7, (N_CELLS, len(GENES) + len(PEAKS))).astype(np.int32))


def gzip_text(path: Path, lines: list[str]) -> Path:
    with gzip.open(path, "wt") as out:
        out.write("".join(f"{line}\n" for line in lines))
    return path


def write_tenx(path: Path, counts: sp.csr_matrix, types: list[str], names: list[str]) -> Path:
    """As Cell Ranger 3 and later write it: features x cells, by columns."""
    columns = sp.csc_matrix(counts.T)
    with h5py.File(path, "w") as out:
        group = out.create_group("matrix")
        group["data"], group["indices"] = columns.data, columns.indices.astype(np.int64)
        group["indptr"] = columns.indptr.astype(np.int64)
        group["shape"] = np.array(columns.shape, dtype=np.int32)
        group["barcodes"] = np.array(CELLS, dtype="S18")
        features = group.create_group("features")
        features["id"] = np.array([f"ENS{place}" for place in range(len(names))], dtype="S20")
        features["name"] = np.array(names, dtype="S40")
        features["feature_type"] = np.array(types, dtype="S20")
        features["genome"] = np.array(["GRCh38"] * len(names), dtype="S8")
        features["_all_tag_keys"] = np.array([b"genome"])
    return path


def test_tenx_multiome_is_split_into_genes_and_peaks(tmp_path, counts):
    types = ["Gene Expression"] * len(GENES) + ["Peaks"] * len(PEAKS)
    path = write_tenx(tmp_path / "x.h5", counts, types, GENES + PEAKS)
    found = read_tenx_h5([Source("rna", path), Source("atac", path)])
    rna, atac = found["rna"], found["atac"]
    for layer in (rna, atac):
        assert isinstance(layer.X, sp.csr_matrix)
        assert layer.X.dtype == np.float32
        assert list(layer.obs_names) == CELLS
    np.testing.assert_array_equal(rna.X.toarray(), counts[:, :5].toarray())
    np.testing.assert_array_equal(atac.X.toarray(), counts[:, 5:].toarray())
    assert list(rna.var_names) == ["Sox2", "Actb", "Actb-1", "H2-K1", "Gapdh"]
    assert list(rna.var["gene_name"]) == GENES
    assert list(rna.var["gene_id"])[:2] == ["ENS0", "ENS1"]
    assert not has_position(rna.var).any()
    assert list(atac.var["chrom"]) == ["chr1", "chr1", "chrUn_KI270742v1"]
    assert list(atac.var["chromStart"]) == [100, 300, 5]
    assert list(atac.var["strand"]) == ["."] * 3


def test_tenx_atac_only_and_antibodies(tmp_path, counts):
    path = write_tenx(tmp_path / "a.h5", counts[:, 5:], ["Peaks"] * 3, PEAKS)
    assert read_tenx_h5([Source("atac", path)])["atac"].shape == (N_CELLS, 3)
    types = ["Gene Expression"] * 5 + ["Antibody Capture"] * 3
    path = write_tenx(tmp_path / "c.h5", counts, types, [*GENES, "CD3-1-2", "CD4", "CD8"])
    adt = read_tenx_h5([Source("adt", path)])["adt"]
    assert list(adt.var_names) == ["CD3-1-2", "CD4", "CD8"]
    assert not has_position(adt.var).any()


def test_tenx_errors_name_what_is_there(tmp_path, counts):
    path = write_tenx(tmp_path / "x.h5", counts[:, 5:], ["Peaks"] * 3, PEAKS)
    with pytest.raises(DataError, match="no rna features; its feature types are: Peaks"):
        read_tenx_h5([Source("rna", path)])
    with h5py.File(tmp_path / "old.h5", "w") as out:
        out.create_group("mm10")
    with pytest.raises(DataError, match=r"no group 'matrix' \(found: mm10\).*Cell Ranger 3"):
        read_tenx_h5([Source("rna", tmp_path / "old.h5")])
    with h5py.File(path, "r+") as out:
        out["matrix/indices"][0] = 7
    with pytest.raises(DataError, match="damaged sparse matrix"):
        read_tenx_h5([Source("atac", path)])


def mtx_source(tmp_path: Path, counts: sp.csr_matrix, features: list[str], layer: str) -> Source:
    """As GEO serves SNARE-seq: gzip triplets, features x cells."""
    plain = tmp_path / f"{layer}.counts.mtx"
    scipy.io.mmwrite(plain, counts.T.tocoo())
    matrix = plain.with_suffix(".mtx.gz")
    matrix.write_bytes(gzip.compress(plain.read_bytes()))
    return Source(
        layer,
        matrix,
        barcodes=gzip_text(tmp_path / f"{layer}.barcodes.tsv.gz", CELLS),
        features=gzip_text(tmp_path / f"{layer}.features.tsv.gz", features),
    )


def test_matrix_market_triplets(tmp_path, counts):
    rna = read_mtx([mtx_source(tmp_path, counts[:, :5], GENES, "rna")])["rna"]
    np.testing.assert_array_equal(rna.X.toarray(), counts[:, :5].toarray())
    assert rna.X.dtype == np.float32
    assert list(rna.var_names) == ["Sox2", "Actb", "Actb-1", "H2-K1", "Gapdh"]
    atac = read_mtx([mtx_source(tmp_path, counts[:, 5:], PEAKS, "atac")])["atac"]
    assert list(atac.var["chromEnd"]) == [200, 450, 90]
    assert list(atac.obs_names) == CELLS


@pytest.mark.parametrize(
    ("features", "name", "start"),
    [
        (["chr2\t10\t20", "chr2\t30\t40", "chr3\t1\t9"], "chr2:10-20", 10),
        (["ENS1\tNA\tPeaks", "ENS2\tb\tPeaks", "ENS3\tc\tPeaks"], "NA", -1),
    ],
)
def test_feature_files_may_be_bed_or_id_and_name(tmp_path, counts, features, name, start):
    layer = read_mtx([mtx_source(tmp_path, counts[:, 5:], features, "atac")])["atac"]
    assert layer.var_names[0] == name
    assert layer.var["chromStart"].iloc[0] == start


def test_matrix_market_must_fit_its_names(tmp_path, counts):
    source = mtx_source(tmp_path, counts[:, :5], GENES[:4], "rna")
    with pytest.raises(
        DataError, match=r"is 5 x 20, but rna\.features\.tsv\.gz names 4 features .* 20 cells"
    ):
        read_mtx([source])
    gzip_text(source.barcodes, ["same"] * N_CELLS)
    gzip_text(source.features, GENES)
    with pytest.raises(DataError, match="19 cell names of layer 'rna' occur again"):
        read_mtx([source])


def test_matrix_market_cut_short(tmp_path, counts):
    source = mtx_source(tmp_path, counts[:, :5], GENES, "rna")
    source.path.write_bytes(source.path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"rna\.counts\.mtx\.gz cannot be read as a Matrix Market"):
        read_mtx([source])
    source.path.unlink()
    with pytest.raises(DataError, match=r"rna\.counts\.mtx\.gz does not exist"):
        read_mtx([source])


@pytest.mark.parametrize("corner", ["gene\t", ""])
def test_dense_table_with_and_without_corner(tmp_path, counts, corner, monkeypatch):
    monkeypatch.setattr("scbraid.data.readers._TABLE_ROWS", 2)
    dense = counts[:, :5].toarray().T
    rows = ["\t".join([name, *map(str, row)]) for name, row in zip(GENES, dense, strict=True)]
    path = gzip_text(tmp_path / "counts.tsv.gz", [corner + "\t".join(CELLS), *rows])
    rna = read_table([Source("rna", path)])["rna"]
    np.testing.assert_array_equal(rna.X.toarray(), counts[:, :5].toarray())
    assert list(rna.obs_names) == CELLS
    assert rna.var_names[2] == "Actb-1"


def test_dense_csv_and_nonsense(tmp_path):
    path = tmp_path / "counts.csv"
    path.write_text(",a,b\ng1,1,0\ng2,0,3\n")
    assert read_table([Source("rna", path)])["rna"].X.toarray().tolist() == [[1, 0], [0, 3]]
    path.write_text(",a,b\ng1,1,zero\n")
    with pytest.raises(DataError, match=r"counts\.csv cannot be read as a table of numbers"):
        read_table([Source("rna", path)])
    path.write_text(",a,b\n")
    with pytest.raises(DataError, match="has no rows"):
        read_table([Source("rna", path)])


def plain_h5ad(path: Path, counts: sp.csr_matrix, names: list[str], **extra: object) -> Path:
    obs = pd.DataFrame({"cell_type": pd.Categorical(["a", "b"] * (N_CELLS // 2))}, index=CELLS)
    data = anndata.AnnData(
        X=counts.astype(np.float32), obs=obs, var=pd.DataFrame(extra, index=names)
    )
    data.obsm["X_pca"] = np.zeros((N_CELLS, 2))
    data.layers["counts"] = data.X * 2
    data.write_h5ad(path)
    return path


def test_h5ad_of_one_layer(tmp_path, counts):
    path = plain_h5ad(tmp_path / "atac.h5ad", counts[:, 5:], PEAKS)
    atac = read_h5ad([Source("atac", path, start_base=1)])["atac"]
    assert list(atac.var["chromStart"]) == [99, 299, 4]
    assert list(atac.var["chromEnd"]) == [200, 450, 90]
    assert list(atac.obs["cell_type"][:2]) == ["a", "b"]
    assert not atac.obsm
    doubled = read_h5ad([Source("atac", path, matrix="layers/counts")])["atac"]
    np.testing.assert_array_equal(doubled.X.toarray(), 2 * atac.X.toarray())
    with pytest.raises(DataError, match=r"no 'layers/raw' .* layers: counts"):
        read_h5ad([Source("atac", path, matrix="layers/raw")])


def test_stated_positions_win_and_bad_ones_become_unknown(tmp_path, counts):
    path = plain_h5ad(
        tmp_path / "rna.h5ad",
        counts[:, :5],
        [f"g{place}" for place in range(5)],
        chrom=["chr1", "chr2", None, "", "chr3"],
        chromStart=[1.0, np.nan, 5.0, -1.0, 7.0],
        chromEnd=[10.0, 20.0, 30.0, -1.0, 70.0],
        strand=["+", "-", "*", "", "-"],
    )
    var = read_h5ad([Source("rna", path, start_base=1)])["rna"].var
    assert has_position(var).tolist() == [True, False, False, False, True]
    assert var["chromStart"].tolist() == [1, -1, -1, -1, 7]  # start_base is for names alone
    assert var["chrom"].tolist() == ["chr1", "", "", "", "chr3"]
    assert var["strand"].tolist() == ["+", "-", ".", ".", "-"]
    assert var["chromStart"].dtype == np.int64


@pytest.mark.parametrize("second", ["ATAC", "ADT"])
def test_combined_h5ad_of_gse194122(tmp_path, counts, second):
    """One matrix, normalised in X, counts in a layer; gzip as GEO serves it."""
    names = [*GENES[:2], "Actb-1", *GENES[3:]]
    names += [name.replace(":", "-") for name in PEAKS] if second == "ATAC" else ["CD3", "CD4", "g"]
    types = ["GEX"] * 5 + [second] * 3
    path = plain_h5ad(tmp_path / "x.h5ad", counts, names, feature_types=pd.Categorical(types))
    packed = tmp_path / "x.h5ad.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    layer = second.lower()
    found = read_h5ad([Source(name, packed, matrix="layers/counts") for name in ("rna", layer)])
    np.testing.assert_array_equal(found["rna"].X.toarray(), 2 * counts[:, :5].toarray())
    np.testing.assert_array_equal(found[layer].X.toarray(), 2 * counts[:, 5:].toarray())
    assert has_position(found[layer].var).all() == (second == "ATAC")
    assert [item.name for item in tmp_path.iterdir()] == ["x.h5ad.gz"]
    with pytest.raises(DataError, match="no met features; its feature types are: "):
        read_h5ad([Source("met", packed)])


def test_h5ad_that_cannot_be_split(tmp_path, counts):
    path = plain_h5ad(tmp_path / "x.h5ad", counts, [f"g{place}" for place in range(8)])
    with pytest.raises(DataError, match=r"no var\['feature_types'\] .* layers rna, atac apart"):
        read_h5ad([Source("rna", path), Source("atac", path)])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"not hdf5 at all", "cannot be read as HDF5"),
        (lambda content: content[: len(content) // 2], "cut short or damaged"),
        (lambda content: b"", "cannot be read as HDF5"),
    ],
)
def test_damaged_h5ad(tmp_path, counts, damage, message):
    path = plain_h5ad(tmp_path / "x.h5ad", counts[:, 5:], PEAKS)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=rf"x\.h5ad .*{message}"):
        read_h5ad([Source("atac", path)])


def test_old_categories_are_read_as_names(tmp_path, counts):
    """anndata 0.7 kept categories beside the codes; public files of 2021 still look so."""
    path = plain_h5ad(tmp_path / "x.h5ad", counts[:, 5:], PEAKS)
    with h5py.File(path, "r+") as out:
        obs = out["obs"]
        codes = obs["cell_type/codes"][:]
        del obs["cell_type"]
        obs["cell_type"] = codes
        obs.create_group("__categories")["cell_type"] = np.array(["a", "b"], dtype=object)
        obs["cell_type"].attrs["categories"] = obs["__categories/cell_type"].ref
        obs.attrs["encoding-version"] = "0.1.0"
    assert list(read_h5ad([Source("atac", path)])["atac"].obs["cell_type"][:2]) == ["a", "b"]


def test_h5mu(tmp_path, counts):
    import mudata

    parts = {
        "rna": read_h5ad(
            [Source("rna", plain_h5ad(tmp_path / "r.h5ad", counts[:, :3], list("abc")))]
        ),
        "atac": read_h5ad([Source("atac", plain_h5ad(tmp_path / "a.h5ad", counts[:, 5:], PEAKS))]),
    }
    path = tmp_path / "both.h5mu"
    with mudata.set_options(pull_on_update=False):
        mudata.MuData({name: part[name] for name, part in parts.items()}).write(path)
    assert layers_of_h5mu(path) == ["rna", "atac"]
    found = read_h5mu([Source("rna", path), Source("atac", path)])
    np.testing.assert_array_equal(found["rna"].X.toarray(), counts[:, :3].toarray())
    assert set(POSITION) <= set(found["atac"].var)
    with pytest.raises(DataError, match="no layer 'adt'; it has: atac, rna"):
        read_h5mu([Source("adt", path)])
    with pytest.raises(DataError, match="no group 'mod'"):
        read_h5mu([Source("rna", tmp_path / "r.h5ad")])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chr1:100-200", ("chr1", 100, 200)),
        ("chr1-100-200", ("chr1", 100, 200)),
        ("chr1_100_200", ("chr1", 100, 200)),
        ("GL000194.1:5-9", ("GL000194.1", 5, 9)),
        ("chr1_KI270706v1_random_7_9", ("chr1_KI270706v1_random", 7, 9)),
        ("HLA-DRB1", ("", -1, -1)),
        ("chr1:5", ("", -1, -1)),
        ("", ("", -1, -1)),
    ],
)
def test_interval_names(name, expected):
    assert tuple(parse_intervals([name]).iloc[0]) == expected
    if expected[0]:
        assert parse_intervals([name], 1)["chromStart"].iloc[0] == expected[1] - 1
    else:
        assert parse_intervals([name], 1)["chromStart"].iloc[0] == -1


def test_annotation_keeps_the_last_chromosome_of_a_name(tmp_path):
    lines = [
        "chrY\t5\t9\tPar\t0\t+",
        "chrX\t1\t9\tPar\t0\t+",
        "chrUn_KI270742v1\t1\t2\tPar\t0\t-",
        "chr1_KI270706v1_random\t1\t2\tOnly\t0\t-",
        "chr2\t10\t20\tNA\t0\t-",
    ]
    table = read_annotation(gzip_text(tmp_path / "genes.bed.gz", lines))
    assert table.index.is_unique
    assert table.loc["Par", ["chrom", "chromStart", "strand"]].tolist() == ["chrY", 5, "+"]
    assert table.loc["Only", "chrom"] == "chr1_KI270706v1_random"
    assert table.loc["NA", "chromEnd"] == 20


def test_gtf_counts_from_one_and_has_ids(tmp_path):
    attributes = 'gene_id "ENSG1.4"; gene_type "protein_coding"; gene_name "ABC";'
    lines = [
        "##provider: GENCODE",
        f"chr1\tHAVANA\tgene\t101\t200\t.\t-\t.\t{attributes}",
        f"chr1\tHAVANA\texon\t101\t120\t.\t-\t.\t{attributes}",
        'chr3\tX\tgene\t1\t5\t.\t+\t.\tgene_id "ENSG2";',
    ]
    table = read_annotation(gzip_text(tmp_path / "v.annotation.gtf.gz", lines))
    assert table.loc["ABC"].tolist() == ["chr1", 100, 200, "-", "ENSG1.4"]
    assert table.loc["ENSG2", "chromStart"] == 0
    with pytest.raises(DataError, match="names no gene"):
        read_annotation(gzip_text(tmp_path / "none.gtf.gz", lines[:1]))
    with pytest.raises(DataError, match="cannot be read as BED6 or GTF"):
        read_annotation(gzip_text(tmp_path / "bad.bed.gz", ["chr1\tx\ty\tz\t0\t+"]))


def test_gene_positions_by_id_first_then_by_name(tmp_path):
    annotation = pd.DataFrame(
        {
            "chrom": ["chr1", "chr2", "chr3"],
            "chromStart": [1, 2, 3],
            "chromEnd": [10, 20, 30],
            "strand": ["+", "-", "+"],
            "gene_id": ["E1.7", "E2.1", "E3.2"],
        },
        index=["A", "B", "C"],
    )
    var = pd.DataFrame(
        {
            "gene_id": ["E2.9", "E8", "E9", "E3"],
            "gene_name": ["A", "A", "Z", "C"],
            "chrom": pd.Categorical(["", "", "", "chr9"]),
            "chromStart": [-1, -1, -1, 90],
            "chromEnd": [-1, -1, -1, 99],
            "strand": pd.Categorical([".", ".", ".", "-"]),
        },
        index=["A", "A-1", "Z", "C"],
    )
    assert add_gene_positions(var, annotation) == 2
    assert var["chrom"].tolist() == ["chr2", "chr1", "", "chr9"]
    assert var["chromStart"].tolist() == [2, 1, -1, 90]
    assert var["strand"].tolist() == ["-", "+", ".", "-"]
    assert var["chromStart"].dtype == np.int64
    plain = var.drop(columns=["gene_id", "gene_name"]).rename(index={"Z": "B"})
    assert add_gene_positions(plain, annotation.assign(gene_id="")) == 1
    assert plain.loc["B", "chrom"] == "chr2"


def test_overlaps_equals_brute_force(tmp_path):
    rng = np.random.default_rng(1)

    def intervals(number: int) -> pd.DataFrame:
        start = rng.integers(0, 2000, number)
        length = rng.choice([1, 10, 400], number)
        chrom = rng.choice(["chr1", "chr2", ""], number)
        return pd.DataFrame({"chrom": chrom, "chromStart": start, "chromEnd": start + length})

    var, regions = intervals(300), intervals(25)
    regions = regions[regions["chrom"] != ""]
    brute = [
        any(
            a.chrom == b.chrom and a.chromStart < b.chromEnd and b.chromStart < a.chromEnd
            for b in regions.itertuples()
        )
        for a in var.itertuples()
    ]
    assert overlaps(var, regions).tolist() == brute
    lines = [f"{r.chrom}\t{r.chromStart}\t{r.chromEnd}\tLow" for r in regions.itertuples()]
    again = read_bed(gzip_text(tmp_path / "black.bed.gz", lines))
    assert overlaps(var, again).tolist() == brute


@pytest.mark.real
def test_real_annotations(mirror):
    table = read_annotation(mirror / "annotation" / "mm10_genes.bed.gz")
    assert table.index.is_unique
    assert (table["chromStart"] < table["chromEnd"]).all()
    assert set(table["strand"]) == {"+", "-"}
    assert table.loc["Snap25", "chrom"] == "chr2"


@pytest.mark.real
def test_real_cortex_is_read_whole_and_in_about_a_second(mirror):
    begun = time.perf_counter()
    atac = read_h5ad([Source("atac", mirror / "snare_cortex_dev" / "atac.h5ad")])["atac"]
    seconds = time.perf_counter() - begun
    assert atac.shape == (5107, 25734)
    assert has_position(atac.var).all()
    parsed = parse_intervals(atac.var_names)
    assert (parsed["chromStart"].to_numpy() == atac.var["chromStart"].to_numpy()).all()
    assert seconds < 5  # about 0.5 alone; the bound leaves room for a busy machine
