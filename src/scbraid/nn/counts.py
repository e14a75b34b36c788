"""Sparse count matrices on a device, and minibatches of their rows."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from scbraid.nn import kernels


@dataclasses.dataclass(frozen=True)
class CountBatch:
    """Some rows of a count matrix, in coordinate form.

    Attributes
    ----------
    rows, columns
        int64 positions of the non-zero entries, shape (n_nonzero,); rows ascend.
    values
        Their values, shape (n_nonzero,).
    shape
        (n_rows, n_features).
    library
        Row sums over the features, shape (n_rows,).
    """

    rows: Tensor
    columns: Tensor
    values: Tensor
    shape: tuple[int, int]
    library: Tensor

    def dense(self) -> Tensor:
        """Return the rows as a dense (n_rows, n_features) tensor."""
        full = self.values.new_zeros(self.shape)
        full[self.rows, self.columns] = self.values
        return full

    def take(self, keep: Tensor) -> CountBatch:
        """Return the rows at the ascending positions `keep`, shape (n_kept,)."""
        renumber = torch.full((self.shape[0],), -1, dtype=torch.long, device=keep.device)
        renumber[keep] = torch.arange(len(keep), device=keep.device)
        rows = renumber[self.rows]
        kept = rows >= 0
        return CountBatch(
            rows[kept],
            self.columns[kept],
            self.values[kept],
            (len(keep), self.shape[1]),
            self.library[keep],
        )


class CountMatrix:
    """A CSR matrix whose three arrays live on one device.

    Column numbers are held in 4 bytes and values in as few as represent them exactly (1 for counts
    up to 255, 2 up to 32,767); a minibatch gets both at full width.

    Parameters
    ----------
    matrix
        Any scipy sparse matrix of shape (n_cells, n_features).
    device
        Where the arrays go, once.
    dtype
        Type of a minibatch's values.
    """

    def __init__(
        self, matrix: sp.spmatrix, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        csr = sp.csr_matrix(matrix)
        self.shape = (int(csr.shape[0]), int(csr.shape[1]))
        self.dtype = dtype
        self.indptr = torch.from_numpy(csr.indptr.astype(np.int64)).to(device)
        self.indices = torch.from_numpy(csr.indices.astype(np.int32)).to(device)
        self.values = _compact(csr.data, dtype).to(device)
        library = np.asarray(csr.sum(axis=1, dtype=np.float64)).ravel()
        # Narrowed first: not every device has float64.
        self.library = torch.from_numpy(library).to(dtype).to(device)

    def batch(self, cells: Tensor) -> CountBatch:
        """Gather rows; `cells` is int64 of shape (n_rows,), repeats allowed."""
        starts = self.indptr[cells]
        lengths = self.indptr[cells + 1] - starts
        compiled = kernels.for_tensors(self.library)
        if compiled is not None:
            n_nonzero = int(lengths.sum())
            rows, columns = (torch.empty(n_nonzero, dtype=torch.int64) for _ in range(2))
            values = torch.empty(n_nonzero, dtype=self.dtype)
            parts = (cells, self.indptr, self.indices, self.values, rows, columns, values)
            compiled.gather_rows(*(part.numpy() for part in parts))
            return CountBatch(
                rows, columns, values, (len(cells), self.shape[1]), self.library[cells]
            )
        rows = torch.repeat_interleave(torch.arange(len(cells), device=cells.device), lengths)
        # Position inside the flat arrays: start of the row plus the rank within the row.
        first = torch.cumsum(lengths, 0) - lengths
        rank = torch.arange(len(rows), device=cells.device) - first[rows]
        flat = starts[rows] + rank
        return CountBatch(
            rows,
            self.indices[flat].to(torch.long),
            self.values[flat].to(self.dtype),
            (len(cells), self.shape[1]),
            self.library[cells],
        )


def _compact(values: np.ndarray, dtype: torch.dtype) -> Tensor:
    """Copy values into the narrowest type that holds each of them exactly, or into `dtype`."""
    if len(values) and values.min() >= 0:
        # torch gathers no uint16, hence int16.
        for narrow in (np.uint8, np.int16):
            if values.max() <= np.iinfo(narrow).max:
                found = values.astype(narrow)
                if (found == values).all():
                    return torch.from_numpy(found)
                break
    return torch.tensor(values, dtype=dtype)
