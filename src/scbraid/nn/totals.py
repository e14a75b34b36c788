"""Sums of losses over blocks, in float64 or, on devices without it, in float32 with care."""

from __future__ import annotations

import torch
from torch import Tensor

from scbraid.train.devices import widest_float


class Total:
    """A running sum; in float32, what every addition rounds away is summed as well (Neumaier 1974).

    Parameters
    ----------
    like
        A tensor on the device.
    """

    def __init__(self, like: Tensor) -> None:
        self.dtype = widest_float(like.device)
        self._sum = like.new_zeros((), dtype=self.dtype)
        self._rest = torch.zeros_like(self._sum)

    def add(self, part: Tensor) -> None:
        """Add a number."""
        part = part.to(self.dtype)
        total = self._sum + part
        if self.dtype != torch.float64:
            larger = torch.maximum(self._sum.abs(), part.abs()) == self._sum.abs()
            self._rest += torch.where(
                larger, (self._sum - total) + part, (part - total) + self._sum
            )
        self._sum = total

    def add_entries(self, entries: Tensor) -> None:
        """Add all entries of a tensor."""
        self.add(entries.sum(dtype=self.dtype))

    def value(self, dtype: torch.dtype) -> Tensor:
        """Return the sum, a scalar of this type."""
        return (self._sum + self._rest).to(dtype)
