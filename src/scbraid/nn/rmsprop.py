"""RMSprop whose step passes memory once on a CPU."""

from __future__ import annotations

from typing import Any

import torch

from scbraid.nn import kernels


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
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())
                    state["square_avg"] = torch.zeros_like(parameter)
                state["step"] += 1
                compiled.rmsprop_step(
                    parameter.view(-1).numpy(),
                    parameter.grad.contiguous().view(-1).numpy(),
                    state["square_avg"].view(-1).numpy(),
                    group["lr"],
                    group["alpha"],
                    group["eps"],
                )
