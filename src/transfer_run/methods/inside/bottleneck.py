"""The adapter unit and the ways to put one beside or behind a part of a frozen block.

    A(z) = s * (dropout(act(LN?(z) W_down + b_down)) W_up + b_up)        arXiv 2110.04366, section 2 and table 1

    sequential   u <- u + A(u)                 behind a part's output
    parallel     u <- u + A(x)                 x: what the part (or the group of parts) read
    heads        (heads + A(x)) W_o            beside attention, before its output projection

Units are attached by hooks, so that a block's own modules keep their names and places. All hooks are bound methods:
a copy of the method gets hooks of its own.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from transfer_run.errors import UserError, nearest_names
from transfer_run.methods.inside.precision import in_type_of, trained_type

Norm = Literal["none", "in", "out"]


class Bottleneck(nn.Module):
    """One adapter, (..., width) -> (..., out_width); the residual is the caller's.

    Args:
        width, bottleneck: d and r.
        out_width: of the result; None: `width`.
        activation: a name of transformers' ACT2FN.
        scale, learn_scale: s, a constant, or one trained number that starts there.
        layernorm: a trained LayerNorm on the input, on the output after the scale, or none.
        init: `bert`: both weights normal with `init_std`, biases zero. `lora`: W_down Kaiming-uniform with a = sqrt 5,
            W_up and biases zero, so that the unit starts at zero.
        like: a frozen weight beside which the new parameters stand, for their device and type.

    Raises:
        UserError: the activation has no such name.
    """

    def __init__(
        self,
        width: int,
        bottleneck: int,
        *,
        out_width: int | None = None,
        activation: str = "relu",
        dropout: float = 0.0,
        scale: float = 1.0,
        learn_scale: bool = False,
        layernorm: Norm = "none",
        init: Literal["bert", "lora"] = "bert",
        init_std: float = 0.02,
        like: Tensor | None = None,
    ) -> None:
        super().__init__()
        if activation not in ACT2FN:
            nearest = nearest_names(activation, ACT2FN)
            raise UserError(f"There is no activation {activation!r}.", where="method.activation", nearest=nearest)
        out_width = width if out_width is None else out_width
        factory: Any = {} if like is None else {"device": like.device, "dtype": trained_type(like)}
        self.down, self.up = (
            nn.Linear(width, bottleneck, **factory),
            nn.Linear(bottleneck, out_width, **factory),
        )
        self.activation, self.dropout = ACT2FN[activation], nn.Dropout(dropout)
        self.norm_in = nn.LayerNorm(width, **factory) if layernorm == "in" else None
        self.norm_out = nn.LayerNorm(out_width, **factory) if layernorm == "out" else None
        self.scale = nn.Parameter(torch.full((1,), float(scale), **factory)) if learn_scale else float(scale)
        self._initialise(init, init_std)

    def _initialise(self, init: str, std: float) -> None:
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.bias)
        if init == "lora":
            nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
            nn.init.zeros_(self.up.weight)
        else:
            nn.init.normal_(self.down.weight, std=std)
            nn.init.normal_(self.up.weight, std=std)

    def forward(self, x: Tensor) -> Tensor:
        return in_type_of(x, self._change(in_type_of(self.down.weight, x)))

    def _change(self, x: Tensor) -> Tensor:
        if self.norm_in is not None:
            x = self.norm_in(x)
        change: Tensor = self.up(self.dropout(self.activation(self.down(x))))
        if not isinstance(self.scale, float) or self.scale != 1.0:
            change = change * self.scale
        return change if self.norm_out is None else self.norm_out(change)

    # ---- hooks
    def after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook, sequential: the unit reads what the module returns."""
        return output + self(output)

    def beside(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook, parallel: the unit reads what the module reads."""
        return output + self(args[0])

    def after_norm(self, norm: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook on a post-norm block's last norm (Pfeiffer et al. 2021).

        With f the feed-forward's output, u the block's residual and z = LN(f + u), the block returns
        LN(A(z) + f + u): the same pretrained norm twice. The norm's input is f + u.
        """
        result: Tensor = norm.forward(self(output) + args[0])
        return result


class Bypass(nn.Module):
    """A change that is read at one module and added at another one of the same block.

    Args:
        change: (B, T, D) -> (B, T, D'), what is added.
    """

    def __init__(self, change: nn.Module) -> None:
        super().__init__()
        self.change = change
        self._read: list[Tensor] = []

    def read(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Forward pre-hook of the module that reads x."""
        self._read[:] = [args[0]]

    def add_to_output(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook: the module's output plus the change."""
        return output + self.change(self._read.pop())

    def add_to_input(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Forward pre-hook: the module reads its input plus the change."""
        return (args[0] + self.change(self._read.pop()), *args[1:])
