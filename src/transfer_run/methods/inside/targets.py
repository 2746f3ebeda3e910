"""Where in a backbone a tuning method acts: the parts of its blocks by their canonical names, fused or not.

`q`, `k`, `v` and `out` mean those of self-attention and, where a block has it, of cross-attention. A fused `qkv` is
one module that holds three parts; a target then says which third of its output is meant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from transfer_run.backbones.base import PARTS, Backbone
from transfer_run.errors import UserError, nearest_names

_THIRD = {"q": 0, "k": 1, "v": 2}
_WITH_CROSS = ("q", "k", "v", "out")
Layers = Mapping[str, Sequence[int] | None]
"""Block numbers by stack; None: all of the stack."""


@dataclass(frozen=True)
class Target:
    """One part of one block.

    Attributes:
        stack, index, part: where; `part` is a name of `PARTS`.
        path: the module's dotted path from the backbone.
        third: 0, 1 or 2 when the module is a fused `qkv` and the part is that third of its output; else None.
    """

    stack: str
    index: int
    part: str
    path: str
    third: int | None = None


def chosen_blocks(backbone: Backbone, layers: Layers | None = None) -> Iterator[tuple[str, int]]:
    """(stack, index) of the blocks that a method acts on.

    Args:
        layers: block numbers by stack; a stack that is not named, or None, means all of them.

    Raises:
        UserError: no such stack or block, or no list of numbers.
    """
    layers = layers or {}
    for stack, wanted in layers.items():
        if stack not in backbone.stacks:
            raise UserError(
                f"{backbone.config.get('name')} has no stack {stack!r}.",
                where="method.layers",
                nearest=nearest_names(stack, backbone.stacks) or backbone.stacks,
            )
        if wanted is not None and (isinstance(wanted, int | str) or not all(isinstance(i, int) for i in wanted)):
            raise UserError(
                f"Blocks are a list of numbers, not {wanted!r}.",
                where=f"method.layers.{stack}",
                remedy=f"method.layers={{{stack}: [0, 1]}}, or null for all",
            )
        wrong = [index for index in wanted or () if not 0 <= index < backbone.depth(stack)]
        if wrong:
            raise UserError(
                f"{backbone.config.get('name')} has no block {wrong[0]} in its stack {stack!r}.",
                where=f"method.layers.{stack}",
                remedy=f"choose among 0 to {backbone.depth(stack) - 1}",
            )
    for stack in backbone.stacks:
        chosen = layers.get(stack)
        yield from ((stack, index) for index in (range(backbone.depth(stack)) if chosen is None else chosen))


def find_targets(
    backbone: Backbone, names: Sequence[str], *, cross_attention: bool = True, layers: Layers | None = None
) -> list[Target]:
    """All targets of the parts `names` in the chosen blocks, block by block.

    Args:
        names: names of `PARTS`; `q`, `k`, `v`, `out` include those of cross-attention unless that is switched off.

    Raises:
        UserError: a name is unknown, or no chosen block has such a part.
    """
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise UserError(
            f"A block has no part {unknown[0]!r}.", where="method", nearest=nearest_names(unknown[0], PARTS) or PARTS
        )
    wanted = list(names)
    if cross_attention:
        wanted += [f"cross_{name}" for name in names if name in _WITH_CROSS and f"cross_{name}" not in names]
    found: list[Target] = []
    for stack, index in chosen_blocks(backbone, layers):
        parts = backbone.parts(stack, index)
        for name in wanted:
            if name in parts:
                found.append(Target(stack, index, name, parts[name]))
            elif name in _THIRD and "qkv" in parts:
                found.append(Target(stack, index, name, parts["qkv"], _THIRD[name]))
    missing = [n for n in names if not any(target.part in (n, f"cross_{n}") for target in found)]
    if missing:
        raise UserError(
            f"The blocks of {backbone.config.get('name')} have no part {missing[0]!r}.",
            where="method",
            remedy="choose among " + ", ".join(backbone.parts(*next(chosen_blocks(backbone, layers)))),
        )
    return found


def out_features(linear: nn.Module) -> int:
    """Width of a linear's output; transformers' Conv1D keeps its weight as (in, out)."""
    width = getattr(linear, "out_features", None) or getattr(linear, "nf", None)
    assert isinstance(width, int), f"{type(linear).__name__} is no linear map"
    return width


def in_features(linear: nn.Module) -> int:
    """Width of a linear's input."""
    width = getattr(linear, "in_features", None) or getattr(linear, "nx", None)
    assert isinstance(width, int), f"{type(linear).__name__} is no linear map"
    return width


def third_of(target: Target, width: int) -> slice:
    """The columns of the module's output (`width` wide) that are the target's part."""
    if target.third is None:
        return slice(0, width)
    return slice(target.third * width // 3, (target.third + 1) * width // 3)


def project(linear: nn.Module, target: Target, x: Tensor) -> Tensor:
    """The part's own output for x (B, T, D), past any hooks of the module (a hook may call this)."""
    out: Tensor = linear.forward(x)
    return out if target.third is None else out[..., third_of(target, out.shape[-1])]


def norms(module: nn.Module) -> Iterator[nn.Module]:
    """All normalisation layers below `module` that have parameters of their own."""
    for child in module.modules():
        if "norm" in type(child).__name__.lower() and next(child.parameters(recurse=False), None) is not None:
            yield child
