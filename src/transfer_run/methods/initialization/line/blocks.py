"""The blocks of a stack on a line over depth: two sets of weights describe any number of blocks.

    W_l = B + (l / L) A,   l = 0 .. L-1        the first block is B; l / L never reaches 1

A block holds no weights of its own. They are formed when it runs and are gone behind it; what its operators keep of
them for backward is a note of which one it was, so that they are formed again one by one: two blocks of weights are in
memory and one tensor of a third, whatever the depth. The gradients of all blocks meet in B and A:

    dB = sum_l dW_l,   dA = sum_l (l / L) dW_l
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.hooks import RemovableHandle

from transfer_run.errors import UserError

STD = 0.02
"""Of the truncated normal that the matrices of base and slope are drawn from (released code)."""


@dataclass(frozen=True)
class _Kept:
    """What stands for a weight that an operator keeps for backward: a view of it, as its place in the line."""

    name: str
    place: float
    dtype: torch.dtype
    size: Sequence[int]
    stride: Sequence[int]
    offset: int


class Line(nn.Module):
    """Base B and slope A of equal blocks, which lose their own weights and run with W_l.

    Args:
        blocks: freshly built; norms and biases of B are theirs as they are, the slope's are zero.
        recompute: form weights again in backward; False keeps all L sets of them from forward on. Equal numbers.

    Raises:
        UserError: the blocks are not equal.
    """

    def __init__(self, blocks: Sequence[nn.Module], *, recompute: bool = True) -> None:
        super().__init__()
        refuse_unequal(blocks)
        self.depth, self.recompute = len(blocks), recompute
        self.base, self.slope = tree_of(blocks[0]), tree_of(blocks[0])
        for name, parameter in self.slope.named_parameters():
            nn.init.zeros_(parameter)
            if parameter.ndim > 1:
                nn.init.trunc_normal_(parameter, std=STD)
                nn.init.trunc_normal_(self.base.get_parameter(name), std=STD)
        self.names = [name for name, _ in self.base.named_parameters()]
        self._formed: dict[int, tuple[str, float, torch.dtype]] = {}  # by the storage of a weight in place
        self._open: list[saved_tensors_hooks] = []
        self._hooks: list[RemovableHandle] = []
        for number, block in enumerate(blocks):
            for name in self.names:
                owner, leaf = owner_of(block, name)
                del owner._parameters[leaf]
            enter = partial(self._enter, number / self.depth)
            self._hooks += [block.register_forward_pre_hook(enter),
                            block.register_forward_hook(self._leave, always_call=True)]  # fmt: skip

    def weight(self, name: str, place: float) -> Tensor:
        """W of one name at a place between 0, the first block, and 1."""
        return torch.add(self.base.get_parameter(name), self.slope.get_parameter(name), alpha=place)

    @torch.no_grad()
    def write(self, blocks: Sequence[nn.Module]) -> None:
        """Give other blocks, any number of them, weights of their own: B + (i / number) A.

        Raises:
            UserError: they are other blocks than those of the line.
        """
        for number, block in enumerate(blocks):
            own = dict(block.named_parameters())
            if {n: p.shape for n, p in own.items()} != {n: p.shape for n, p in self.base.named_parameters()}:
                raise UserError(
                    "The blocks have other weights than those that the line was learned for.",
                    where="backbone.architecture",
                    remedy="the same architecture but for its depth",
                )
            for name, parameter in own.items():
                parameter.copy_(self.weight(name, number / len(blocks)))

    def release(self, blocks: Sequence[nn.Module]) -> None:
        """Give its own blocks their weights, as parameters; from now on they run without the line."""
        for hook in self._hooks:
            hook.remove()
        for block in blocks:
            for name, parameter in self.base.named_parameters():
                owner, leaf = owner_of(block, name)
                owner.register_parameter(leaf, nn.Parameter(torch.empty_like(parameter)))
        self.write(blocks)

    # ---- while a block runs
    def _enter(self, place: float, block: nn.Module, args: Any) -> None:
        if self.recompute and torch.is_grad_enabled():
            self._open.append(saved_tensors_hooks(self._pack, self._unpack))
            self._open[-1].__enter__()
        for name in self.names:
            weight = self._cast(self.weight(name, place))
            owner, leaf = owner_of(block, name)
            owner.__dict__[leaf] = weight
            self._formed[weight.untyped_storage()._cdata] = (name, place, weight.dtype)

    def _leave(self, block: nn.Module, args: Any, output: Any) -> None:
        for name in self.names:
            owner, leaf = owner_of(block, name)
            owner.__dict__.pop(leaf, None)
        self._formed.clear()
        if self._open:
            self._open.pop().__exit__()

    def _cast(self, weight: Tensor) -> Tensor:
        """Matrices in autocast's type, as its operators take them: what these keep is then a weight of ours, too."""
        kind = weight.device.type
        if weight.ndim > 1 and weight.device.type != "meta" and torch.is_autocast_enabled(kind):
            return weight.to(torch.get_autocast_dtype(kind))
        return weight

    def _pack(self, tensor: Tensor) -> Tensor | _Kept:
        found = self._formed.get(tensor.untyped_storage()._cdata)
        return tensor if found is None else _Kept(*found, tensor.size(), tensor.stride(), int(tensor.storage_offset()))

    def _unpack(self, kept: Tensor | _Kept) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        with torch.no_grad():
            weight = self.weight(kept.name, kept.place).to(kept.dtype)
        return weight.as_strided(kept.size, kept.stride, kept.offset)


def tree_of(block: nn.Module) -> nn.Module:
    """Copies of a block's parameters under the same names, in modules that do nothing."""
    root = nn.Module()
    for name, parameter in block.named_parameters():
        *parents, leaf = name.split(".")
        owner = root
        for part in parents:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        owner.register_parameter(leaf, nn.Parameter(parameter.detach().clone()))
    return root


def owner_of(block: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module in a block that has this parameter, and the parameter's own name."""
    parent, _, leaf = name.rpartition(".")
    return block.get_submodule(parent), leaf


def refuse_unequal(blocks: Sequence[nn.Module]) -> None:
    """UserError for blocks whose weights have different names or shapes: no line goes through them."""
    shapes = [{name: parameter.shape for name, parameter in block.named_parameters()} for block in blocks]
    if not shapes or any(each != shapes[0] for each in shapes):
        raise UserError(
            "The backbone's blocks are not alike, so that no line over depth goes through their weights.",
            where="backbone",
            remedy="choose a plain vision transformer, such as backbone=vit_tiny",
        )
