"""The plan of anybody's own training step: a module, a batch, a loss, an optimizer; no GPU and no memory is needed.

    from transfer_run.memory import plan

    answer = plan(model, {"input_ids": ids, "labels": labels}, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-4))
    print(answer)                              # peak by phase and kind, the largest tensors, the reasons
    print(answer.largest_batch("24GB"))

A Lightning module says itself what is optimized and what the loss is: `plan(module, batch)`.
The module may stand on the meta device (`with torch.device("meta"): ...`), and of a batch only shapes and types are
read. What a training loop keeps beside these (an averaged copy, logged tensors) is not seen.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from transfer_run.errors import UserError
from transfer_run.memory.budget import Budget, largest_batch, room
from transfer_run.memory.planner import Rehearsal, Setting, Shapes
from transfer_run.memory.report import memory_report

Loss = Callable[[Any, Any], Tensor]
MakeOptimizers = Callable[[Iterable[nn.Parameter]], Any]
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true")


@dataclass(frozen=True)
class ScriptPlan:
    """What a training step of a script will need.

    Attributes:
        memory: as in `result.json`, in bytes.
        batch_size: what was planned.
    """

    memory: dict[str, Any]
    batch_size: int
    _rehearsal: Rehearsal = field(repr=False)
    _target: str = "cuda"

    @property
    def peak(self) -> int:
        """Bytes at the highest moment."""
        return int(self.memory["peak"])

    def largest_batch(self, budget: str | None = None, *, card: str | None = None, context: str = "0.8GiB",
                      cached: float = 0.1) -> Budget:  # fmt: skip
        """The largest batch within `24GB`, or on a card (`l4`), with room for context and cached blocks on a GPU.

        Raises:
            UserError: neither or both are given, no such card, or no amount of memory.
        """
        asked = {"budget": budget, "card": card, "context": context, "cached": cached}
        wanted = room(asked, "cpu" if self._target == "cpu" else "gpu")
        if wanted is None:
            raise UserError("Which memory?", where="largest_batch", remedy="largest_batch('24GB'), or card='l4'")
        kinds = self.memory["by_kind"]
        fixed = self.peak - kinds["activations"] - kinds["inputs"]
        return largest_batch(lambda size: self._rehearsal.measure(size).peak, wanted.usable, self.batch_size, fixed)

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=100)
        with console.capture() as captured:
            console.print(memory_report(self.memory, f"batch {self.batch_size}"), highlight=False)
        return captured.get()


def plan(
    module: nn.Module,
    batch: Any,
    optimizer: MakeOptimizers | None = None,
    *,
    loss: Loss | None = None,
    precision: str = "32-true",
    target: str = "cuda",
    gradient_clip: float | None = None,
    accumulate: int = 1,
    grads_to_none: bool = True,
    evaluate: bool = True,
    expandable_segments: bool = False,
) -> ScriptPlan:
    """Plan the training step of a script.

    Args:
        module: left as it is; on any device, the meta device too.
        batch: tensors, or dicts, lists and tuples of them; the first dimension is the batch's.
        optimizer: makes it (or several, in a list) of the parameters that are trained; None: nothing is trained, or
            what a Lightning module configures.
        loss: of (module, batch), a scalar; default: a Lightning module's `training_step`, or `module(**batch)`, its
            `.loss` or `["loss"]`.
        precision: `32-true`, `bf16-mixed`, `16-mixed`, `bf16-true`, `16-true`.
        target: the machine whose memory is predicted, `cuda` or `cpu`.
        gradient_clip: the norm to clip to.
        accumulate: batches per optimizer step.
        grads_to_none: False: `zero_grad(set_to_none=False)`.
        evaluate: also the loss once without gradients.
        expandable_segments: PyTorch's allocator setting of that name.

    Raises:
        UserError: the batch holds no tensors or several sizes, no loss comes out, or a setting is unknown.
    """
    _check(precision, target)
    leaves, spec = tree_flatten(batch)
    size = _size(leaves)

    def shapes(wanted: int) -> Shapes:
        return {
            str(n): ((wanted, *leaf.shape[1:]) if leaf.dim() else (), leaf.dtype)
            for n, leaf in enumerate(leaves)
            if isinstance(leaf, Tensor)
        }

    lightning = hasattr(module, "training_step") and hasattr(module, "configure_optimizers")
    step = _Step(_without_data(module), loss or (_step_loss if lightning else _own_loss), leaves, spec, evaluate)
    setting = Setting(target, precision, gradient_clip, accumulate, grads_to_none,
                      expandable_segments=expandable_segments)  # fmt: skip

    def optimizers() -> Mapping[str, Optimizer]:
        if optimizer is None:
            made = step.module.configure_optimizers()  # type: ignore[operator]
        else:
            made = optimizer([p for p in step.module.parameters() if p.requires_grad])
        return {f"optimizer {number}": each for number, each in enumerate(_optimizers_in(made))}

    rehearsal = Rehearsal(step, optimizers, shapes, setting, trains=optimizer is not None or lightning)
    memory = rehearsal.measure(size).as_dict("plan")
    memory["predicted_peak"] = memory["peak"]
    return ScriptPlan(memory, size, rehearsal, target)


class _Step(nn.Module):
    """A user's module with the few words that the rehearsal asks of a method."""

    own_steps = False

    def __init__(self, module: nn.Module, loss: Loss, leaves: list[Any], spec: TreeSpec, evaluate: bool) -> None:
        super().__init__()
        self.module, self._loss, self._spec, self.tests = module, loss, spec, evaluate
        self._others = {str(n): leaf for n, leaf in enumerate(leaves) if not isinstance(leaf, Tensor)}
        self._count = len(leaves)

    def _batch(self, batch: Mapping[str, Tensor]) -> Any:
        whole = {**self._others, **batch}
        return tree_unflatten([whole[str(n)] for n in range(self._count)], self._spec)

    def training_loss(self, batch: Mapping[str, Tensor], use_cache: bool = False) -> Tensor:
        found = self._loss(self.module, self._batch(batch))
        if not isinstance(found, Tensor) or found.dim():
            raise UserError(
                f"The loss is no scalar: {_described(found)}.",
                where="loss",
                remedy="loss=lambda module, batch: ..., that returns a tensor without dimensions",
            )
        return found

    def predict(self, batch: Mapping[str, Tensor]) -> Any:
        return self._loss(self.module, self._batch(batch))


def _step_loss(module: Any, batch: Any) -> Any:
    """Of a Lightning module's step: the loss, alone or in a dict."""
    found = module.training_step(batch, 0)
    return found.get("loss") if isinstance(found, Mapping) else found


def _optimizers_in(made: Any) -> list[Optimizer]:
    """The optimizers in any form in which `configure_optimizers` may return them, schedules left aside."""
    if isinstance(made, Optimizer):
        return [made]
    if isinstance(made, Mapping) and "optimizer" in made:
        return [made["optimizer"]]
    if isinstance(made, list | tuple) and made:
        if isinstance(made[0], list | tuple):  # (optimizers, schedules)
            return _optimizers_in(list(made[0]))
        return [each for part in made for each in _optimizers_in(part)]
    raise UserError(
        f"No optimizer comes out: {_described(made)}.",
        where="optimizer",
        remedy="optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-4)",
    )


def _own_loss(module: nn.Module, batch: Any) -> Tensor:
    if not isinstance(batch, Mapping):
        raise UserError("What is the loss of this batch?", where="loss", remedy="loss=lambda module, batch: ...")
    output = module(**batch)
    found = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if found is None:
        raise UserError(
            f"The module gives no loss: {_described(output)}.",
            where="loss",
            remedy="loss=lambda module, batch: ..., or labels in the batch, as the module wants them",
        )
    return found


def _described(value: Any) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _check(precision: str, target: str) -> None:
    for name, given, known in (("precision", precision, PRECISIONS), ("target", target, ("cuda", "cpu"))):
        if given not in known:
            raise UserError(f"{given!r} is no {name}.", where=name, nearest=known)


def _size(leaves: list[Any]) -> int:
    sizes = {leaf.shape[0] for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()}
    if len(sizes) != 1:
        told = f"first dimensions {sorted(sizes)}" if sizes else "no tensor"
        raise UserError(
            f"The size of the batch cannot be told: it holds {told}.",
            where="batch",
            remedy="tensors whose first dimension is the batch's; what has none belongs to the loss",
        )
    return int(sizes.pop())


def _without_data(module: nn.Module) -> nn.Module:
    """A copy on the meta device: the module stays as it is, and no value of it is copied."""
    memo: dict[int, Any] = {}
    for part in module.modules():
        held = [*part._parameters.values(), *part._buffers.values(), *vars(part).values()]
        for tensor in held:
            if isinstance(tensor, Tensor) and id(tensor) not in memo:
                empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
                parameter = isinstance(tensor, nn.Parameter)
                memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if parameter else empty
    return copy.deepcopy(module, memo)
