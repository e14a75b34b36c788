"""Matrices that stay on disk: rows of a CSR matrix in an HDF5 file, a block at a time.

A million cells need 2.4 GB for every 300 million counts as arrays in memory. The same rows, read in
contiguous blocks from the file, need a few tens of megabytes. Everything here works with h5py,
numpy and scipy alone.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import h5py
import numpy as np
import scipy.sparse as sp

from scbraid.errors import ConfigError, DataError

# Elements of one compressed chunk of X: half a megabyte of float32.
CHUNK = 1 << 17
# Readable everywhere, and the first level is nearly as small as the others on sparse counts.
COMPRESSION = {"compression": "gzip", "compression_opts": 1, "shuffle": True}

# Entries of one block of rows: 16 MB as float32 and int32.
BLOCK_ENTRIES = 1 << 21
# Rows that lie closer than this are read with what is between them: a seek into compressed chunks
# of some 400 rows costs more.
GAP_ROWS = 256
# Raw bytes of one bucket of a shuffle from disk to disk; three times that is held at once.
BUCKET_BYTES = 96 << 20

# In-memory size of a data set above which it stays on disk, and the variable that changes it (MiB).
BACKED_ABOVE = 2 << 30
BACKED_VARIABLE = "SCBRAID_BACKED_ABOVE"
ENTRY_BYTES = 8


def backed_above() -> int:
    """Bytes of counts and representations above which `Layers.read` leaves them on disk.

    2 GiB, or what the environment variable SCBRAID_BACKED_ABOVE says, in MiB.

    Raises
    ------
    ConfigError
        When the variable holds no number of 0 or more.
    """
    text = os.environ.get(BACKED_VARIABLE)
    if text is None:
        return BACKED_ABOVE
    try:
        mebibytes = float(text)
    except ValueError:
        mebibytes = -1.0
    if not 0 <= mebibytes < float("inf"):
        msg = f"{BACKED_VARIABLE} is {text!r}; expected a number of MiB, 0 or more"
        raise ConfigError(msg)
    return int(mebibytes * (1 << 20))


def _runs(rows: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Cut ascending rows into runs without wide gaps, each spanning at most `most` rows."""
    if not len(rows):
        return
    wide = np.diff(rows) > GAP_ROWS
    beyond = np.diff((rows - rows[0]) // most) > 0
    yield from np.split(rows, np.flatnonzero(wide | beyond) + 1)


class _Node:
    """A node of an HDF5 file that is opened when it is first read; pickled by its path."""

    def __init__(self, path: str | Path, node: str) -> None:
        self.path = Path(path).absolute()
        self.node = node
        # A folder that is removed with the last matrix that reads from it.
        self.keep: tempfile.TemporaryDirectory[str] | None = None
        self._file: h5py.File | None = None
        self._opening = threading.Lock()

    def open(self) -> Any:
        # A second handle, opened at the same time, would close the nodes of the first with it.
        with self._opening:
            if self._file is None or not self._file.id.valid:
                try:
                    self._file = h5py.File(self.path, "r")
                except OSError as error:
                    msg = (
                        f"{self.path} cannot be read any more ({error}); it must stay until the end"
                    )
                    raise DataError(msg) from error
            return self._file[self.node]

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "node": self.node}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # a node is its path


class BackedMatrix:
    """A CSR matrix in an HDF5 file, seen through a choice of rows and columns.

    Only the row pointers (8 bytes a row) are in memory. Choosing rows or columns reads nothing;
    `rows`, `at`, `blocks` and indexing read and return scipy matrices, float32 with the entries of
    the file's rows in ascending order of column, as `read_matrix` gives them.

    Parameters
    ----------
    path
        The file. It is opened when rows are read, so that the object can be pickled.
    node
        Path of the CSR group in it (``data``, ``indices``, ``indptr``, attribute ``shape``).
    canonical
        Whether a `CsrWriter` wrote it, so that a copy of its chunks is as good as a new one.

    Raises
    ------
    DataError
        When the group holds no CSR matrix.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, path: str | Path, node: str, *, canonical: bool = False) -> None:
        self._source = _Node(path, node)
        self._canonical = canonical
        group = self._source.open()
        kind = group.attrs.get("encoding-type", "csr_matrix")
        if not isinstance(group, h5py.Group) or kind != "csr_matrix":
            msg = f"{path}: {node} is no CSR matrix; only CSR can be read from disk by rows"
            raise DataError(msg)
        n_rows, self._n_columns = (int(size) for size in group.attrs["shape"])
        self._indptr = group["indptr"][:].astype(np.int64, copy=False)
        self._source.close()
        self._rows: np.ndarray | None = None
        self._columns: np.ndarray | None = None
        self._n_rows = n_rows

    @property
    def path(self) -> Path:
        """The file."""
        return self._source.path

    @property
    def node(self) -> str:
        """Path of the group in the file."""
        return self._source.node

    @property
    def shape(self) -> tuple[int, int]:
        """(n_rows, n_columns) of what is seen."""
        n_rows = self._n_rows if self._rows is None else len(self._rows)
        return n_rows, self._n_columns if self._columns is None else len(self._columns)

    @property
    def stored_entries(self) -> int:
        """Entries stored in the rows that are seen, in all columns."""
        return int(self._lengths().sum())

    @property
    def in_file_order(self) -> bool:
        """Whether the rows are seen in the order of the file, so that blocks are contiguous."""
        return self._rows is None or bool((np.diff(self._rows) > 0).all())

    def in_order_of_file(self) -> BackedMatrix:
        """See the same rows, each once, in the order of the file."""
        view = self._view()
        view._rows = None if self._rows is None else np.unique(self._rows)
        return view

    def order_in_file(self) -> np.ndarray:
        """Position of each row in `in_order_of_file`."""
        if self._rows is None:
            return np.arange(self._n_rows)
        return np.unique(self._rows, return_inverse=True)[1]

    def _lengths(self) -> np.ndarray:
        lengths = np.diff(self._indptr)
        return lengths if self._rows is None else lengths[self._rows]

    def _view(self) -> BackedMatrix:
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        return view

    def take_rows(self, rows: np.ndarray) -> BackedMatrix:
        """See other rows (positions, in any order, or a mask); nothing is read."""
        positions = _positions(rows, self.shape[0])
        view = self._view()
        view._rows = positions if self._rows is None else self._rows[positions]
        return view

    def take_columns(self, columns: np.ndarray) -> BackedMatrix:
        """See other columns (positions, in any order, or a mask); nothing is read."""
        positions = _positions(columns, self.shape[1])
        view = self._view()
        view._columns = positions if self._columns is None else self._columns[positions]
        return view

    def rows(self, start: int, stop: int) -> sp.csr_matrix:
        """Read the rows from `start` up to, not including, `stop`."""
        if self._rows is None:
            return self._choose(self._contiguous(start, stop))
        return self.at(np.arange(start, stop))

    def at(self, rows: np.ndarray) -> sp.csr_matrix:
        """Read the rows at these positions, in this order; repeats are allowed.

        Quick where few runs of neighbouring rows are asked for.
        """
        wanted = np.asarray(rows) if self._rows is None else self._rows[rows]
        if len(wanted) > 1 and not (np.diff(wanted) > 0).all():
            unique, back = np.unique(wanted, return_inverse=True)
            return self._ascending(unique)[back]
        return self._ascending(wanted)

    def blocks(self) -> Iterator[tuple[int, sp.csr_matrix]]:
        """Read everything in order: first row and content of one block after another."""
        n_rows = self.shape[0]
        step = self._block_rows()
        for start in range(0, n_rows, step):
            yield start, self.rows(start, min(start + step, n_rows))

    def write_to(self, parent: h5py.Group, name: str) -> None:
        """Write what is seen as a CSR group; without packing it anew where that is possible."""
        if self._canonical and self._rows is None and self._columns is None:
            parent.copy(self._source.open(), name)
            return
        writer = CsrWriter(parent.create_group(name), self.shape)
        for _, block in self.blocks():
            writer.add(block)

    def tocsr(self) -> sp.csr_matrix:
        """Read everything at once."""
        parts = [block for _, block in self.blocks()]
        return sp.csr_matrix(sp.vstack(parts, format="csr") if parts else self.rows(0, 0))

    def __getitem__(self, key: Any) -> sp.csr_matrix:
        """Read part of the matrix: ``matrix[rows]`` or ``matrix[rows, columns]``."""
        rows, columns = key if isinstance(key, tuple) else (key, slice(None))
        view = (
            self if _is_all(columns) else self.take_columns(_as_positions(columns, self.shape[1]))
        )
        if _is_all(rows):
            return view.tocsr()
        return view.at(_positions(_as_positions(rows, self.shape[0]), self.shape[0]))

    def _block_rows(self) -> int:
        mean = self._indptr[-1] / max(len(self._indptr) - 1, 1)
        return max(1, int(BLOCK_ENTRIES / max(mean, 1.0)))

    def _ascending(self, rows: np.ndarray) -> sp.csr_matrix:
        parts = []
        for run in _runs(rows, self._block_rows()):
            first, last = int(run[0]), int(run[-1]) + 1
            part = self._contiguous(first, last)
            parts.append(self._choose(part if len(run) == last - first else part[run - first]))
        if not parts:
            return self._choose(self._contiguous(0, 0))
        return parts[0] if len(parts) == 1 else sp.csr_matrix(sp.vstack(parts, format="csr"))

    def _contiguous(self, start: int, stop: int) -> sp.csr_matrix:
        group = self._source.open()
        first, last = self._indptr[start], self._indptr[stop]
        index = np.int32 if last - first <= np.iinfo(np.int32).max else np.int64
        data = group["data"][first:last].astype(np.float32, copy=False)
        indices = group["indices"][first:last].astype(index, copy=False)
        indptr = (self._indptr[start : stop + 1] - first).astype(index)
        block = sp.csr_matrix((data, indices, indptr), shape=(stop - start, self._n_columns))
        block.sort_indices()
        return block

    def _choose(self, block: sp.csr_matrix) -> sp.csr_matrix:
        return block if self._columns is None else block[:, self._columns]


class BackedArray:
    """A two-dimensional array in an HDF5 file, seen through a choice of rows.

    Parameters
    ----------
    path
        The file, opened when rows are read.
    node
        Path of the dataset in it.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, path: str | Path, node: str) -> None:
        self._source = _Node(path, node)
        dataset = self._source.open()
        if dataset.ndim != 2:
            msg = f"{path}: {node} has shape {dataset.shape}; expected two dimensions"
            raise DataError(msg)
        self._shape = (int(dataset.shape[0]), int(dataset.shape[1]))
        self._source.close()
        self._rows: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(n_rows, n_columns) of what is seen."""
        return self._shape if self._rows is None else (len(self._rows), self._shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def take_rows(self, rows: np.ndarray) -> BackedArray:
        """See other rows (positions, in any order, or a mask); nothing is read."""
        view = object.__new__(type(self))
        view.__dict__.update(self.__dict__)
        positions = _positions(rows, len(self))
        view._rows = positions if self._rows is None else self._rows[positions]
        return view

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Read the rows from `start` up to `stop` as float32."""
        if self._rows is None:
            return self._contiguous(start, stop)
        return self.at(np.arange(start, stop))

    def at(self, rows: np.ndarray) -> np.ndarray:
        """Read the rows at these positions, in this order, as float32; repeats are allowed."""
        wanted = np.asarray(rows) if self._rows is None else self._rows[rows]
        unique, back = np.unique(wanted, return_inverse=True)
        found = np.empty((len(unique), self.shape[1]), np.float32)
        first = 0
        for run in _runs(unique, max(1, BLOCK_ENTRIES // max(self.shape[1], 1))):
            start, stop = int(run[0]), int(run[-1]) + 1
            found[first : first + len(run)] = self._contiguous(start, stop)[run - start]
            first += len(run)
        return found if np.array_equal(unique, wanted) else found[back]

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Read everything in order: first row and content of one block after another."""
        step = max(1, BLOCK_ENTRIES // max(self.shape[1], 1))
        for start in range(0, len(self), step):
            yield start, self.rows(start, min(start + step, len(self)))

    def __getitem__(self, key: Any) -> np.ndarray:
        """Read part of the array: ``array[rows]`` or ``array[rows, columns]``."""
        rows, columns = key if isinstance(key, tuple) else (key, slice(None))
        return self.at(_positions(_as_positions(rows, len(self)), len(self)))[:, columns]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Read everything."""
        return self.rows(0, len(self)).astype(dtype or np.float32, copy=False)

    def _contiguous(self, start: int, stop: int) -> np.ndarray:
        return np.asarray(self._source.open()[start:stop], dtype=np.float32)


def _is_all(key: Any) -> bool:
    return isinstance(key, slice) and key == slice(None)


def _as_positions(key: Any, size: int) -> np.ndarray:
    return np.arange(size)[key] if isinstance(key, slice) else np.asarray(key)


def _positions(key: np.ndarray, size: int) -> np.ndarray:
    """Turn a mask or positions into positions from 0."""
    key = np.asarray(key)
    if key.dtype == bool:
        if key.shape != (size,):
            msg = f"a mask of shape {key.shape} does not fit {size} rows or columns"
            raise IndexError(msg)
        return np.flatnonzero(key)
    positions = key.astype(np.int64, copy=False)
    if len(positions) and (positions.min() < 0 or positions.max() >= size):
        msg = f"positions must be in 0..{size - 1}. Got {positions.min()} to {positions.max()}"
        raise IndexError(msg)
    return positions


Matrix: TypeAlias = sp.csr_matrix | BackedMatrix
Array: TypeAlias = np.ndarray | BackedArray


class RowBlocks(Protocol):
    """A matrix that is read by blocks of rows."""

    @property
    def shape(self) -> tuple[int, int]:
        """(n_rows, n_columns)."""
        ...

    def blocks(self) -> Iterator[tuple[int, sp.csr_matrix]]:
        """First row and content of one block after another."""
        ...


def row_blocks(matrix: sp.csr_matrix | RowBlocks) -> Iterator[tuple[int, sp.csr_matrix]]:
    """Go through a matrix by rows: one that is in memory is a single block.

    Yields
    ------
    tuple
        Position of the block's first row, and the block.
    """
    if sp.issparse(matrix):
        yield 0, matrix
    else:
        yield from matrix.blocks()


def array_blocks(array: Array) -> Iterator[tuple[int, np.ndarray]]:
    """Go through an array by rows: one that is in memory is a single block."""
    if isinstance(array, BackedArray):
        yield from array.blocks()
    else:
        yield 0, array


def take_rows(matrix: Any, rows: np.ndarray) -> Any:
    """Choose rows of a matrix or an array, in memory or not; what is on disk stays there."""
    return (
        matrix.take_rows(rows) if isinstance(matrix, BackedMatrix | BackedArray) else matrix[rows]
    )


def take_columns(matrix: Matrix, columns: np.ndarray) -> Matrix:
    """Choose columns of a matrix, in memory or not; what is on disk stays there."""
    if isinstance(matrix, BackedMatrix):
        return matrix.take_columns(columns)
    return matrix[:, columns]


class CsrWriter:
    """Appends blocks of rows to a CSR group of an HDF5 file.

    Parameters
    ----------
    group
        An empty group; it gets ``data`` (float32), ``indices`` (int32), ``indptr`` (int64).
    shape
        (n_rows, n_columns) of the whole.
    """

    def __init__(self, group: h5py.Group, shape: tuple[int, int]) -> None:
        group.attrs["encoding-type"] = "csr_matrix"
        group.attrs["encoding-version"] = "0.1.0"
        group.attrs["shape"] = np.array(shape, dtype=np.int64)
        grows: dict[str, Any] = {"chunks": (CHUNK,), "maxshape": (None,), **COMPRESSION}
        self._data = group.create_dataset("data", (0,), np.float32, **grows)
        self._indices = group.create_dataset("indices", (0,), np.int32, **grows)
        self._indptr = group.create_dataset("indptr", (shape[0] + 1,), np.int64, **COMPRESSION)
        self._row = 0
        self._stored = 0

    def add(self, block: sp.csr_matrix) -> None:
        """Append rows; zeros are not stored and columns ascend."""
        block = block.astype(np.float32)
        block.sum_duplicates()
        block.eliminate_zeros()
        stop = self._stored + len(block.data)
        for target, values in ((self._data, block.data), (self._indices, block.indices)):
            target.resize((stop,))
            target[self._stored :] = values
        ends = self._stored + block.indptr[1:].astype(np.int64)
        self._indptr[self._row + 1 : self._row + 1 + len(ends)] = ends
        self._row += len(ends)
        self._stored = stop


def write_in_order(
    source: BackedMatrix,
    order: np.ndarray,
    group: h5py.Group,
    scratch: str | Path,
    *,
    bucket_bytes: int = BUCKET_BYTES,
) -> None:
    """Permute the rows of a matrix from disk to disk, in memory that does not grow.

    The rows are read once, in their order, and dealt into bucket files by where they go. A bucket
    is then read, brought into order and appended.

    Parameters
    ----------
    source
        The matrix, shape (n_rows, n_columns).
    order
        Positions in `source`, each at most once: row i of the result is row ``order[i]``.
    group
        Empty group that becomes the CSR matrix.
    scratch
        Folder for the bucket files: 8 bytes an entry, removed before the function returns.
    bucket_bytes
        Raw size of a bucket; about three times as much is held in memory.

    Raises
    ------
    ValueError
        When `order` names a row twice.
    """
    n_rows, n_columns = len(order), source.shape[1]
    place = np.full(source.shape[0], -1, np.int64)
    place[order] = np.arange(n_rows)
    if np.count_nonzero(place >= 0) != n_rows:
        msg = f"order must name each row at most once. Got {n_rows:,} positions with repeats"
        raise ValueError(msg)
    n_buckets = max(1, -(-source.stored_entries * ENTRY_BYTES // bucket_bytes))
    size = max(1, -(-n_rows // n_buckets))
    writer = CsrWriter(group, (n_rows, n_columns))
    with tempfile.TemporaryDirectory(prefix=".shuffle.", dir=scratch) as folder:
        files = [Path(folder) / f"{bucket}" for bucket in range(-(-n_rows // size))]
        dealt: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in files]
        for start, block in source.blocks():
            to = place[start : start + block.shape[0]]
            chosen = np.flatnonzero(to >= 0)
            chosen = chosen[np.argsort(to[chosen] // size, kind="stable")]
            if not len(chosen):
                continue
            rows, to = block[chosen], to[chosen]
            bounds = np.searchsorted(to // size, np.arange(len(files) + 1))
            for bucket in np.flatnonzero(np.diff(bounds)):
                part = rows[bounds[bucket] : bounds[bucket + 1]]
                dealt[bucket].append(
                    (to[bounds[bucket] : bounds[bucket + 1]], np.diff(part.indptr))
                )
                with files[bucket].open("ab") as stream:
                    stream.write(part.indices.astype(np.int32, copy=False).tobytes())
                    stream.write(part.data.tobytes())
        for file, parts in zip(files, dealt, strict=True):
            writer.add(_read_bucket(file, parts, n_columns))
            file.unlink(missing_ok=True)


def _read_bucket(
    file: Path, parts: Sequence[tuple[np.ndarray, np.ndarray]], n_columns: int
) -> sp.csr_matrix:
    """Return the rows of a bucket in the order of their destinations."""
    lengths = np.concatenate([part[1] for part in parts]).astype(np.int64)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    indices = np.empty(indptr[-1], np.int32)
    data = np.empty(indptr[-1], np.float32)
    with file.open("rb") as stream:
        first = 0
        for _, own in parts:
            last = first + int(own.sum())
            indices[first:last] = np.fromfile(stream, np.int32, last - first)
            data[first:last] = np.fromfile(stream, np.float32, last - first)
            first = last
    rows = sp.csr_matrix((data, indices, indptr), shape=(len(lengths), n_columns))
    return rows[np.argsort(np.concatenate([part[0] for part in parts]))]


def in_file_order(matrix: BackedMatrix) -> BackedMatrix:
    """Return the matrix if its rows are seen in the order of its file, otherwise a copy that is.

    Rows in another order lie in as many compressed chunks as there are, which is too slow to train
    on. The copy lies in the folder for temporary files (TMPDIR) and goes with its last user.
    """
    if matrix.in_file_order:
        return matrix
    folder = tempfile.TemporaryDirectory(prefix="scbraid.")
    file = Path(folder.name) / "counts.h5"
    with h5py.File(file, "w") as handle:
        write_in_order(
            matrix.in_order_of_file(), matrix.order_in_file(), handle.create_group("X"), folder.name
        )
    copy = BackedMatrix(file, "X", canonical=True)
    copy._source.keep = folder
    return copy


def sum_rows(matrix: BackedMatrix, codes: np.ndarray, scale: np.ndarray) -> BackedMatrix:
    """Add up groups of rows from disk to disk, in memory that does not grow.

    Parameters
    ----------
    matrix
        Shape (n_rows, n_columns), in the order of its file.
    codes
        Group of each row, int (n_rows,), codes from 0 without gaps.
    scale
        What the sum of each group is multiplied with, (n_groups,).

    Returns
    -------
    BackedMatrix
        Shape (n_groups, n_columns), in the folder for temporary files (TMPDIR), where twice 8 bytes
        an entry of `matrix` are needed meanwhile; it goes with its last user.
    """
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    folder = tempfile.TemporaryDirectory(prefix="scbraid.")
    rows_file, sums_file = Path(folder.name) / "rows.h5", Path(folder.name) / "sums.h5"
    with h5py.File(rows_file, "w") as handle:
        write_in_order(matrix, order, handle.create_group("X"), folder.name)
    source = BackedMatrix(rows_file, "X")
    with h5py.File(sums_file, "w") as handle:
        writer = CsrWriter(handle.create_group("X"), (len(scale), matrix.shape[1]))
        rest = source.rows(0, 0)
        for start, block in source.blocks():
            stop = start + block.shape[0]
            rows = sp.csr_matrix(sp.vstack([rest, block], format="csr"))
            groups = ordered[stop - rows.shape[0] : stop]
            # The last group may go on in the next block.
            n_whole = len(groups) if stop == len(ordered) else int((groups < groups[-1]).sum())
            if n_whole:
                first, last = groups[0], groups[n_whole - 1] + 1
                where = (groups[:n_whole] - first, np.arange(n_whole))
                members = sp.csr_matrix((np.ones(n_whole), where), (last - first, n_whole))
                writer.add(sp.csr_matrix(sp.diags(scale[first:last]) @ (members @ rows[:n_whole])))
            rest = rows[n_whole:]
    source._source.close()
    rows_file.unlink()
    sums = BackedMatrix(sums_file, "X", canonical=True)
    sums._source.keep = folder
    return sums
