"""What a method's own step works with: named optimizers, and the few things that a loop does around them.

    Method.step(batch, steps) ──> steps.backward(loss, "policy") ──> gradients of these parameters alone
                                  steps.step("policy")           ──> clip, update, let go of the gradients
                                  steps.fresh("policy")          ──> its states begin anew

The same calls are carried out by a plain loop (here), by the trainer (`experiment/training/own_steps.py`: precision,
several processes) and by the memory plan on fake tensors (`memory/planner.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.optim import Optimizer

from transfer_run.errors import UserError

UNSCALED = ("32-true", "bf16-mixed", "bf16-true")
"""Precisions without a scaled loss: what a step of a method's own may be carried out in."""


class TakesSteps(Protocol):
    """A method, or its class."""

    own_steps: ClassVar[bool]


class Steps:
    """The optimizers of a run by name, and how its words want them stepped.

    Args:
        optimizers: in the order of `Method.optimizers`.
        clip: the norm that the gradients of each optimizer are clipped to; None: none.
        accumulate: batches whose gradients are summed, as a mean, before an update.
        grads_to_none: False: gradients are zeroed but kept.
        use_cache: as in `Method.training_loss`.

    Attributes:
        done: updates so far, counted once a batch (of several that are summed: once for all of them).
        last: is this the batch after which an update is due? Until then `step` does nothing and says so.
    """

    def __init__(
        self,
        optimizers: Mapping[str, Optimizer],
        *,
        clip: float | None = None,
        accumulate: int = 1,
        grads_to_none: bool = True,
        use_cache: bool = False,
    ) -> None:
        self.optimizers = dict(optimizers)
        self.clip, self.accumulate = clip, accumulate
        self.grads_to_none, self.use_cache = grads_to_none, use_cache
        self.done, self.last = 0, True
        self._kept: set[str] = set()

    # ---- what a method calls
    def backward(self, loss: Tensor, *names: str) -> None:
        """Gradients of `loss`, added to what is there.

        Args:
            names: optimizers whose parameters alone get gradients; none: everything that is trained.
        """
        inputs = [p for name in names for p in self.parameters(name) if p.requires_grad]
        self._backward(loss / self.accumulate if self.accumulate > 1 else loss, inputs or None)

    def step(self, *names: str, keep: bool = False) -> bool:
        """Clip, update and let go of the gradients of these optimizers, of all without a name.

        Args:
            keep: leave the gradients, which were used for the update as they are, until `Method.step` has ended.

        Returns:
            Was there an update? Not while the gradients of several batches are summed (`trainer.accumulate`).
        """
        if not self.last:
            return False
        for name in names or tuple(self.optimizers):
            self._update(name)
            self._kept.add(name)
            if not keep:
                self._let_go(name)
        return True

    def fresh(self, name: str) -> None:
        """The states of this optimizer (moments, momentum) begin anew."""
        self.optimizers[name].state.clear()

    def parameters(self, name: str) -> Sequence[Tensor]:
        """What this optimizer moves."""
        return [p for group in self.optimizers[name].param_groups for p in group["params"]]

    # ---- what the loop calls
    def carry_out(self, method: Any, batch: Any, *, last: bool = True) -> Tensor:
        """One batch's step: the method's loss, detached."""
        self.last = last
        loss: Tensor = method.step(batch, self)
        for name in tuple(self._kept):
            self._let_go(name)
        self.done += last
        return loss.detach()

    # ---- how it is carried out
    def _backward(self, loss: Tensor, inputs: list[Tensor] | None) -> None:
        edges = None if inputs is None else [get_gradient_edge(tensor) for tensor in inputs]
        torch.autograd.backward(get_gradient_edge(loss), inputs=edges)  # a tensor's own turns function modes off

    def _update(self, name: str) -> None:
        self.clip_gradients(self.optimizers[name])
        self.optimizers[name].step()

    def clip_gradients(self, optimizer: Optimizer, **how: Any) -> None:
        if self.clip is not None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, self.clip, **how)

    def _let_go(self, name: str) -> None:
        self._kept.discard(name)
        self.optimizers[name].zero_grad(set_to_none=self.grads_to_none)


def check_own_steps(method: TakesSteps | type[TakesSteps], name: str, hardware: Mapping[str, Any]) -> None:
    """Can a method that takes its steps itself be carried out like this?

    Raises:
        UserError: its parameters would be sharded, or its losses scaled.
    """
    if not method.own_steps:
        return
    if hardware["strategy"] == "fsdp":
        raise UserError(
            f"method={name} takes its steps itself, which sharded parameters do not allow.",
            where="hardware.strategy=fsdp",
            remedy="hardware.strategy=ddp",
        )
    if hardware["precision"] not in UNSCALED:
        raise UserError(
            f"method={name} takes its steps itself: one scale of the loss does not serve several of them.",
            where=f"hardware.precision={hardware['precision']}",
            remedy=f"hardware.precision={UNSCALED[1]}, or {UNSCALED[0]}",
        )
