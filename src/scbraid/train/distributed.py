"""Data-parallel training over several processes, with torch.distributed alone.

Every process (replica) holds the whole model, walks through the same sequence of global batches
and computes its share of each; gradients are averaged before every step of an optimiser, so that
all replicas stay equal. docs/engine.md states what a task has to keep to.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from scbraid.errors import ConfigError

Value = TypeVar("Value")


class Replicas:
    """The processes that train together: this one's number and how many there are."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size

    @classmethod
    def current(cls) -> Replicas:
        """Return the replicas of torch's process group; a single one where there is none."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes files and lines."""
        return self.rank == 0

    def share(self, batch: Any) -> Any:
        """Return this replica's rows of a global batch: every size-th, beginning at its rank.

        Raises
        ------
        ConfigError
            When the batch cannot be divided evenly: the mean of the replicas' means would not be
            the mean over the batch.
        """
        if len(batch) % self.size:
            msg = (
                f"a batch of {len(batch)} rows cannot be divided among {self.size} processes; "
                f"choose a batch size that {self.size} divides"
            )
            raise ConfigError(msg)
        return batch[self.rank :: self.size]

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace every gradient by its mean over the replicas, in one exchange a data type.

        All replicas must have gradients of the same parameters.
        """
        if self.size == 1:
            return
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for parameter in parameters:
            if parameter.grad is not None:
                by_type.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        for gradients in by_type.values():
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            dist.all_reduce(flat)
            flat /= self.size
            first = 0
            for gradient in gradients:
                gradient.copy_(flat[first : first + gradient.numel()].view_as(gradient))
                first += gradient.numel()

    def mean(self, values: Tensor) -> Tensor:
        """Mean of a tensor over the replicas."""
        if self.size == 1:
            return values
        values = values.clone()
        dist.all_reduce(values)
        return values / self.size

    @torch.no_grad()
    def synchronize(self, model: torch.nn.Module) -> None:
        """Give all replicas the leader's parameters and buffers."""
        if self.size > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, 0)

    @torch.no_grad()
    def average_buffers(self, model: torch.nn.Module) -> None:
        """Replace running statistics, which follow each replica's rows, by their mean."""
        if self.size == 1:
            return
        persistent = model.state_dict().keys()
        for name, buffer in model.named_buffers():
            if buffer.is_floating_point() and name in persistent:
                dist.all_reduce(buffer)
                buffer /= self.size

    def agree(self, decision: Value) -> Value:
        """Return the leader's decision or value on every replica."""
        if self.size == 1:
            return decision
        shared = [decision]
        dist.broadcast_object_list(shared, 0)
        return shared[0]

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all replicas, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that ``torchrun`` started, for the time of the block.

    Yields the device of this process: the GPU of its local rank, or the CPU. Outside of torchrun
    it yields `device` and does nothing.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()
