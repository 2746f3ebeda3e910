"""Names the module that is at work, in forward and in backward.

Forward: global module hooks keep a stack of names. Backward: autograd numbers its nodes in the order in which forward
made them, so the module of a node is the one that was at work when that number was given out.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

_ACCUMULATE = "torch::autograd::AccumulateGrad"
_PASSES_ON = (
    "TBackward0",
    "TransposeBackward0",
    "ToCopyBackward0",
    "ViewBackward0",
    "UnsafeViewBackward0",
    "CloneBackward0",
)


class ModuleNames:
    """Knows the dotted name of the module at work.

    Args:
        model: the names are those of its modules.
    """

    def __init__(self, model: nn.Module) -> None:
        self.names = {id(module): name for name, module in model.named_modules()}
        self._stack: list[str] = []
        self._numbers = [-1]  # autograd's sequence number at which the name below begins
        self._names = [""]
        self._hooks: list[Any] = []

    def __enter__(self) -> ModuleNames:
        self._hooks = [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, always_call=True),
        ]
        return self

    def __exit__(self, *exception: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        self._stack.clear()

    def here(self) -> str:
        """The module at work; in backward the one whose forward made the node that runs."""
        if self._stack:
            return self._stack[-1]
        node = torch._C._current_autograd_node()
        if node is None or node.name() == _ACCUMULATE:
            return ""
        return self._names[bisect_right(self._numbers, node._sequence_nr()) - 1]

    def _enter(self, module: nn.Module, args: Any) -> None:
        above = self._stack[-1] if self._stack else ""
        self._stack.append(self.names.get(id(module), above))
        self._note()

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._stack:
            self._stack.pop()
        self._note()

    def _note(self) -> None:
        number, name = torch.autograd._get_sequence_nr(), self._stack[-1] if self._stack else ""
        if self._numbers[-1] == number:
            self._names[-1] = name
        else:
            self._numbers.append(number)
            self._names.append(name)


def leaf_shapes(node: Any) -> set[tuple[int, ...]]:
    """Shapes, also transposed, of the leaves whose gradients `node` makes, directly or through views and casts."""
    shapes = set()
    for follower, _ in node.next_functions:
        for _ in range(3):
            if follower is None or follower.name() not in _PASSES_ON:
                break
            follower = follower.next_functions[0][0]
        if follower is not None and follower.name() == _ACCUMULATE:
            shape = tuple(follower.variable.shape)
            shapes |= {shape, shape[::-1]}
    return shapes
