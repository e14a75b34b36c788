from __future__ import annotations

import gc
import pickle

import h5py
import numpy as np
import pytest
import scipy.sparse as sp

from scbraid.data import backed
from scbraid.data.backed import (
    BackedArray,
    BackedMatrix,
    CsrWriter,
    array_blocks,
    backed_above,
    in_file_order,
    row_blocks,
    take_columns,
    take_rows,
    write_in_order,
)
from scbraid.errors import ConfigError, DataError

SHAPE = (700, 23)


@pytest.fixture
def dense() -> np.ndarray:
    rng = np.random.default_rng(0)
    values = rng.poisson(0.4, SHAPE).astype(np.float32)
    values[[0, 5, 699]] = 0  # empty first, inner and last row
    return values


def store(path, dense: np.ndarray, chunks: int = 97) -> BackedMatrix:
    """Write CSR with small chunks, so that a read spans several."""
    matrix = sp.csr_matrix(dense)
    with h5py.File(path, "w") as file:
        group = file.create_group("a/X")
        group.attrs["shape"] = np.array(dense.shape)
        group.attrs["encoding-type"] = "csr_matrix"
        for part in ("data", "indices", "indptr"):
            group.create_dataset(part, data=getattr(matrix, part), chunks=(chunks,))
        file.create_dataset("rep", data=dense[:, :6])
    return BackedMatrix(path, "/a/X")


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of some 30 rows, and gaps of more than 3 rows are not read."""
    monkeypatch.setattr(backed, "BLOCK_ENTRIES", 256)
    monkeypatch.setattr(backed, "GAP_ROWS", 3)


ROWS = {
    "a few": np.array([3, 4, 5, 300, 302, 699]),
    "scattered": np.array([600, 2, 2, 311, 0, 600]),
    "none": np.array([], dtype=np.int64),
    "all": np.arange(SHAPE[0]),
    "backwards": np.arange(SHAPE[0])[::-1],
}


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
def test_rows_and_columns_are_those_of_the_matrix(tmp_path, dense, small_blocks, rows):
    matrix = store(tmp_path / "m.h5", dense)
    columns = np.array([7, 0, 22, 3])
    found = matrix.at(rows)
    assert isinstance(found, sp.csr_matrix)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.toarray(), dense[rows])
    np.testing.assert_array_equal(matrix[rows].toarray(), dense[rows])
    np.testing.assert_array_equal(matrix[rows, columns].toarray(), dense[rows][:, columns])
    view = matrix.take_rows(rows).take_columns(columns)
    assert view.shape == (len(rows), 4)
    np.testing.assert_array_equal(view.tocsr().toarray(), dense[rows][:, columns])


def test_views_of_views(tmp_path, dense, small_blocks):
    matrix = store(tmp_path / "m.h5", dense)
    odd = np.arange(SHAPE[0]) % 2 == 1
    view = matrix.take_rows(odd).take_columns(np.arange(23) > 4)
    view = view.take_rows(np.array([9, 8, 100])).take_columns(np.array([2, 1]))
    np.testing.assert_array_equal(view.tocsr().toarray(), dense[odd][[9, 8, 100]][:, [7, 6]])
    np.testing.assert_array_equal(view.rows(1, 3).toarray(), dense[odd][[8, 100]][:, [7, 6]])
    assert matrix.shape == SHAPE  # the first one still sees everything
    assert (matrix.in_file_order, view.in_file_order) == (True, False)
    assert matrix.stored_entries == (dense > 0).sum()
    assert view.stored_entries == (dense[odd][[9, 8, 100]] > 0).sum()


def test_entries_are_in_the_order_of_a_matrix_in_memory(tmp_path, dense, small_blocks):
    # Losses are only byte-equal when entries are summed in the same order.
    columns = np.random.default_rng(1).permutation(23)[:15]
    inside = sp.csr_matrix(dense)[:, columns][100:400]
    outside = store(tmp_path / "m.h5", dense).take_columns(columns).rows(100, 400)
    for part in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(outside, part), getattr(inside, part))


def test_blocks_cover_every_row_once(tmp_path, dense, small_blocks):
    matrix = store(tmp_path / "m.h5", dense)
    blocks = list(row_blocks(matrix))
    assert len(blocks) > 10
    assert [start for start, _ in blocks] == np.cumsum([0, *(b.shape[0] for _, b in blocks)])[
        :-1
    ].tolist()
    np.testing.assert_array_equal(sp.vstack([b for _, b in blocks]).toarray(), dense)
    # A matrix in memory is one block, itself.
    inside = sp.csr_matrix(dense)
    [(start, block)] = row_blocks(inside)
    assert start == 0
    assert block is inside


def test_only_what_is_asked_for_is_read(tmp_path, dense, small_blocks, monkeypatch):
    matrix = store(tmp_path / "m.h5", dense)
    read = []
    real = BackedMatrix._contiguous
    monkeypatch.setattr(
        BackedMatrix,
        "_contiguous",
        lambda self, start, stop: (read.append((start, stop)), real(self, start, stop))[1],
    )
    matrix.at(np.array([10, 12, 13, 400]))  # 11 lies in a narrow gap
    assert read == [(10, 14), (400, 401)]
    read.clear()
    matrix.take_rows(np.array([1, 2])).take_columns(np.array([0]))
    assert read == []


def test_arrays(tmp_path, dense, small_blocks):
    store(tmp_path / "m.h5", dense)
    array = BackedArray(tmp_path / "m.h5", "/rep")
    expected = dense[:, :6]
    assert array.shape == (700, 6)
    assert len(array) == 700
    np.testing.assert_array_equal(np.asarray(array), expected)
    for rows in ROWS.values():
        np.testing.assert_array_equal(array.at(rows), expected[rows])
        np.testing.assert_array_equal(array[rows], expected[rows])
        np.testing.assert_array_equal(array[rows, :2], expected[rows][:, :2])
        view = array.take_rows(rows)
        assert view.shape == (len(rows), 6)
        np.testing.assert_array_equal(np.asarray(view), expected[rows])
    np.testing.assert_array_equal(array.rows(3, 9), expected[3:9])
    np.testing.assert_array_equal(np.concatenate([b for _, b in array_blocks(array)]), expected)
    assert array[np.arange(2)].dtype == np.float32


def test_pickled_by_path(tmp_path, dense):
    matrix = store(tmp_path / "m.h5", dense)
    view = matrix.take_rows(np.array([4, 2]))
    view.rows(0, 1)  # an open file is not in the way
    again = pickle.loads(pickle.dumps(view))
    np.testing.assert_array_equal(again.tocsr().toarray(), dense[[4, 2]])
    array = pickle.loads(pickle.dumps(BackedArray(tmp_path / "m.h5", "/rep")))
    np.testing.assert_array_equal(array.rows(0, 2), dense[:2, :6])


def test_helpers_leave_what_is_on_disk_there(tmp_path, dense):
    matrix = store(tmp_path / "m.h5", dense)
    rows, columns = np.array([5, 3]), np.array([1, 0])
    assert isinstance(take_rows(matrix, rows), BackedMatrix)
    assert isinstance(take_columns(matrix, columns), BackedMatrix)
    np.testing.assert_array_equal(take_rows(dense, rows), dense[rows])
    assert sp.issparse(take_columns(sp.csr_matrix(dense), columns))


@pytest.mark.parametrize("bucket_bytes", [1 << 20, 2_000, 50])
def test_shuffle_from_disk_to_disk(tmp_path, dense, small_blocks, bucket_bytes):
    matrix = store(tmp_path / "m.h5", dense)
    order = np.random.default_rng(3).permutation(SHAPE[0])[:650]  # 50 rows are left out
    columns = np.array([3, 9, 1])
    with h5py.File(tmp_path / "out.h5", "w") as file:
        write_in_order(
            matrix.take_columns(columns),
            order,
            file.create_group("X"),
            tmp_path,
            bucket_bytes=bucket_bytes,
        )
    found = BackedMatrix(tmp_path / "out.h5", "X")
    expected = dense[order][:, columns]
    np.testing.assert_array_equal(found.tocsr().toarray(), expected)
    assert found.stored_entries == np.count_nonzero(expected)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.h5", "out.h5"]  # no bucket is left


def test_shuffle_of_chosen_rows(tmp_path, dense, small_blocks):
    kept = np.flatnonzero(dense.sum(1) > 8)
    order = np.random.default_rng(4).permutation(len(kept))
    view = store(tmp_path / "m.h5", dense).take_rows(kept)
    with h5py.File(tmp_path / "out.h5", "w") as file:
        write_in_order(view, order, file.create_group("X"), tmp_path, bucket_bytes=3_000)
    found = BackedMatrix(tmp_path / "out.h5", "X").tocsr()
    np.testing.assert_array_equal(found.toarray(), dense[kept][order])


def test_a_row_can_go_to_one_place_only(tmp_path, dense):
    matrix = store(tmp_path / "m.h5", dense)
    with (
        h5py.File(tmp_path / "out.h5", "w") as file,
        pytest.raises(ValueError, match="each row at most once"),
    ):
        write_in_order(matrix, np.array([1, 1]), file.create_group("X"), tmp_path)


def test_copy_in_file_order_goes_with_its_last_user(tmp_path, dense, monkeypatch):
    monkeypatch.setattr(backed.tempfile, "tempdir", str(tmp_path))
    matrix = store(tmp_path / "m.h5", dense)
    assert in_file_order(matrix) is matrix
    rows = np.random.default_rng(5).permutation(SHAPE[0])[:500]
    copy = in_file_order(matrix.take_rows(rows).take_columns(np.array([4, 2])))
    view = copy.take_rows(np.arange(10))
    assert copy.in_file_order
    folder = copy.path.parent
    np.testing.assert_array_equal(copy.tocsr().toarray(), dense[rows][:, [4, 2]])
    del copy
    gc.collect()
    np.testing.assert_array_equal(view.tocsr().toarray(), dense[rows[:10]][:, [4, 2]])
    del view
    gc.collect()
    assert not folder.exists()


def test_writer_stores_no_zeros_and_sorts(tmp_path):
    block = sp.csr_matrix(
        (np.array([1.0, 0.0, 2.0]), np.array([2, 1, 0]), np.array([0, 2, 3])), shape=(2, 4)
    )
    with h5py.File(tmp_path / "out.h5", "w") as file:
        writer = CsrWriter(file.create_group("X"), (4, 4))
        writer.add(block)
        writer.add(block)
    with h5py.File(tmp_path / "out.h5") as file:
        np.testing.assert_array_equal(file["X/data"][:], [1, 2, 1, 2])
        np.testing.assert_array_equal(file["X/indices"][:], [2, 0, 2, 0])
        np.testing.assert_array_equal(file["X/indptr"][:], [0, 1, 2, 3, 4])


@pytest.mark.parametrize("canonical", [True, False])
def test_writing_what_is_seen(tmp_path, dense, small_blocks, canonical):
    store(tmp_path / "m.h5", dense)
    matrix = BackedMatrix(tmp_path / "m.h5", "/a/X", canonical=canonical)
    rows = np.array([3, 1, 600])
    with h5py.File(tmp_path / "out.h5", "w") as file:
        matrix.write_to(file, "whole")
        matrix.take_rows(rows).write_to(file, "part")
        # What this package wrote is copied as it is, packed chunk by packed chunk.
        assert (file["whole/data"].chunks == (97,)) == canonical
    for name, expected in (("whole", dense), ("part", dense[rows])):
        found = BackedMatrix(tmp_path / "out.h5", name).tocsr()
        np.testing.assert_array_equal(found.toarray(), expected)


def test_bad_use_is_named(tmp_path, dense):
    matrix = store(tmp_path / "m.h5", dense)
    with pytest.raises(DataError, match="rep is no CSR matrix"):
        BackedMatrix(tmp_path / "m.h5", "/rep")
    with pytest.raises(DataError, match="two dimensions"):
        BackedArray(tmp_path / "m.h5", "/a/X/data")
    with pytest.raises(IndexError, match=r"0\.\.699\. Got 3 to 700"):
        matrix.take_rows(np.array([3, 700]))
    with pytest.raises(IndexError, match="a mask of shape"):
        matrix.take_columns(np.ones(5, bool))
    (tmp_path / "m.h5").unlink()
    with pytest.raises(DataError, match="must stay until the end"):
        matrix.rows(0, 1)


@pytest.mark.parametrize(("text", "expected"), [("0", 0), ("1.5", 1_572_864), (None, 2 << 30)])
def test_threshold(monkeypatch, text, expected):
    monkeypatch.delenv("SCBRAID_BACKED_ABOVE", raising=False)
    if text is not None:
        monkeypatch.setenv("SCBRAID_BACKED_ABOVE", text)
    assert backed_above() == expected


@pytest.mark.parametrize("text", ["much", "-1", "inf", "nan"])
def test_threshold_must_be_a_number(monkeypatch, text):
    monkeypatch.setenv("SCBRAID_BACKED_ABOVE", text)
    with pytest.raises(ConfigError, match=r"SCBRAID_BACKED_ABOVE is .*; expected a number of MiB"):
        backed_above()
