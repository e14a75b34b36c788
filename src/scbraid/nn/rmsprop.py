"""RMSprop whose step passes memory once on a CPU."""

from __future__ import annotations

from typing import Any

import torch

from scbraid.nn import kernels

# So many that handing a piece to a thread costs nothing beside it.
_ENTRIES_OF_PIECE = 1 << 16


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
        pieces = []
        for group in self.param_groups:
            rates = group["lr"], group["alpha"], group["eps"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())
                    state["square_avg"] = torch.zeros_like(parameter)
                state["step"] += 1
                tensors = parameter, parameter.grad.contiguous(), state["square_avg"]
                whole = [tensor.view(-1).numpy() for tensor in tensors]
                for first in range(0, len(whole[0]), _ENTRIES_OF_PIECE):
                    part = slice(first, first + _ENTRIES_OF_PIECE)
                    pieces.append((*(array[part] for array in whole), *rates))
        kernels.each_block(lambda k, slot: compiled.rmsprop_step(*pieces[k]), len(pieces))
