"""RMSprop whose step passes memory once on a CPU."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch

from scbraid.nn import kernels

# So many that handing a piece to a thread costs nothing beside it.
_ENTRIES_OF_PIECE = 1 << 16
# torch wraps these so that the first call loads its compiler and a computer algebra system: 70 MiB
# and a second of a training that never compiles anything.
_add_param_group, _zero_grad, _state_dict, _load_state_dict = (
    inspect.unwrap(method)
    for method in (
        torch.optim.Optimizer.add_param_group,
        torch.optim.Optimizer.zero_grad,
        torch.optim.Optimizer.state_dict,
        torch.optim.Optimizer.load_state_dict,
    )
)


class RMSprop(torch.optim.RMSprop):
    """torch's RMSprop without momentum, centring and weight decay, with the same state.

    Parameters are updated by a compiled loop where there is one for them, by torch elsewhere.

    Parameters
    ----------
    params
        Parameters or groups of them.
    lr
        Learning rate.
    """

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr=lr)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own; `ValueError` for those it does not have."""
        _add_param_group(self, param_group)
        for option in ("weight_decay", "momentum", "centered"):
            if self.param_groups[-1][option]:
                msg = f"RMSprop has no {option}; got {self.param_groups[-1][option]}, expected 0"
                raise ValueError(msg)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients, or set them to zero."""
        _zero_grad(self, set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """Return the state, as torch's RMSprop has it."""
        return _state_dict(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state of `state_dict`."""
        _load_state_dict(self, state_dict)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Do one step; closures are not taken."""
        if closure is not None:
            msg = "RMSprop takes no closure; call backward() before step()"
            raise TypeError(msg)
        every = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        compiled = kernels.for_tensors(*every)
        if compiled is None or not all(p.is_contiguous() for p in every):
            super().step()
            return
        for group in self.param_groups:
            pieces: list[tuple[int, int, int, int]] = []
            # Where a gradient has gaps, its copy has to last until the loop is done.
            grads, steps = [], []
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())
                    state["square_avg"] = torch.zeros_like(parameter)
                steps.append(state["step"])
                grads.append(parameter.grad.contiguous())
                first = parameter.data_ptr(), grads[-1].data_ptr(), state["square_avg"].data_ptr()
                for at in range(0, parameter.numel(), _ENTRIES_OF_PIECE):
                    n_entries = min(_ENTRIES_OF_PIECE, parameter.numel() - at)
                    p, g, a = (address + at * parameter.element_size() for address in first)
                    pieces.append((p, g, a, n_entries))
            if pieces:
                torch._foreach_add_(steps, 1)
                rates = group["lr"], group["alpha"], group["eps"]
                table = np.array(pieces, np.int64)
                kernels.share(compiled.rmsprop_blocks, table, *rates)
