"""How a frozen backbone is kept: in a smaller type than float32, or in CPU memory with its blocks brought in one by one
(`build_backbone` does it).

    backbone.load=bf16                weights and stream in bfloat16
    backbone.load=int8|nf4|nf4_double the blocks' linear layers in 8 or 4 bits (bitsandbytes, CUDA), the rest bfloat16
    backbone.offload=cpu              CPU memory ── copy of block i+1 ──▶ device, while block i runs

Only for methods that train nothing of the backbone itself: beside it, or float32 layers around its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfer_run.errors import UserError

if TYPE_CHECKING:
    from transfer_run.backbones.base import Backbone

QUANTISED = ("int8", "nf4", "nf4_double")
NF4_BLOCK, SCALE_BLOCK = 64, 256
"""Weights that share a scale in nf4; scales that share another under double quantisation (QLoRA, section 3)."""


class Packed(nn.Module):
    """A quantised linear layer in the place of one of the library's.

    `weight` is None: the library's code asks for its type and would cast activations to that of the packed bytes.

    Args:
        layer: what computes.
    """

    weight: None = None

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.layer(hidden)
        return out


class PlannedLinear(nn.Module):
    """The bytes of a quantised layer, for plans: packed weights and scales are held, what forward makes is made.

    nf4: half a byte a weight and a float32 scale every 64, or a byte every 64 and a float32 every 16384 under double
    quantisation; forward unpacks the whole matrix to bfloat16. int8: a byte a weight and a float32 a row; forward
    quantises the activations and sums in int32 (LLM.int8, section 2). Backward unpacks the whole matrix once more;
    until then int8 keeps what it read and nf4 nothing, as bitsandbytes has it (`autograd/_functions.py`).
    """

    def __init__(self, linear: nn.Linear, load: str) -> None:
        super().__init__()
        self.load, self.outputs, self.inputs = load, linear.out_features, linear.in_features
        self.bias = linear.bias
        device, count = linear.weight.device, linear.weight.numel()
        sizes = {"packed": (count if load == "int8" else -(-count // 2), torch.uint8)}
        if load == "int8":
            sizes["scales"] = (self.outputs, torch.float32)
        else:
            double, scales = load == "nf4_double", -(-count // NF4_BLOCK)
            sizes["scales"] = (scales, torch.uint8 if double else torch.float32)
            if double:
                sizes["scales_of_scales"] = (-(-scales // SCALE_BLOCK), torch.float32)
        for name, (size, dtype) in sizes.items():
            self.register_buffer(name, torch.empty(size, dtype=dtype, device=device), persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        wanted = hidden if self.load == "int8" else hidden.bfloat16()  # the type that 4-bit layers compute in
        out: Tensor = _Applied.apply(wanted, self)
        return out.to(hidden.dtype)

    def product(self, hidden: Tensor) -> Tensor:
        if self.load != "int8":
            return F.linear(hidden, self.unpacked(hidden), self.bias)
        half = hidden.half()
        packed = half.new_empty(hidden.shape, dtype=torch.int8)
        del half
        sums = packed.new_empty((*hidden.shape[:-1], self.outputs), dtype=torch.int32)
        out = sums.to(hidden.dtype)
        return out if self.bias is None else out.add_(self.bias)

    def unpacked(self, like: Tensor) -> Tensor:
        """The whole matrix (outputs, inputs) in the type of `like`, made for one product."""
        if self.load == "nf4_double":
            like.new_empty(self.outputs * self.inputs // NF4_BLOCK, dtype=torch.float32)  # the scales come first
        return like.new_empty(self.outputs, self.inputs)


class _Applied(torch.autograd.Function):
    """hidden (..., inputs) -> (..., outputs) through a packed matrix, with the gradient of hidden alone."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, layer: PlannedLinear) -> Tensor:
        ctx.layer, ctx.read = layer, hidden if layer.load == "int8" else None
        return layer.product(hidden)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] @ ctx.layer.unpacked(grads[0]), None


def pack(backbone: Backbone, *, planned: bool = False) -> None:
    """Put quantised layers in the place of the blocks' linear ones; bitsandbytes packs them on their way to the GPU.

    Args:
        planned: sizes alone, for a memory plan.

    Raises:
        UserError: bitsandbytes or CUDA is missing, or there is nothing to pack.
    """
    load = backbone.config.get("load")
    if load not in QUANTISED:
        return
    make = _planned if planned else _bitsandbytes(load)
    for block in _blocks(backbone):
        for path, module in list(block.named_modules()):
            linear = _own_linear(module)
            if linear is not None:
                packed = Packed(make(linear, load))
                for hooks in _HOOKS:  # adapters hang on the layer, whatever computes in it
                    setattr(packed, hooks, getattr(module, hooks))
                block.set_submodule(path, packed)
    if not any(isinstance(module, Packed) for module in backbone.modules()):
        raise UserError(
            f"The blocks of {backbone.config.get('name')} have no linear layers that could be packed.",
            where=f"backbone.load={load}",
            remedy="set backbone.load=bf16",
        )


_HOOKS = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
          "_forward_pre_hooks_with_kwargs")  # fmt: skip


def _own_linear(module: nn.Module) -> nn.Linear | None:
    """A frozen linear map of the backbone itself, transformers' Conv1D as what it is; None for all else: what tuners
    put beside it is trained, or float32."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.requires_grad or weight.dtype is not torch.bfloat16:
        return None
    if type(module).__name__ == "Conv1D":  # keeps its weight as (in, out)
        linear = nn.Linear(weight.shape[0], weight.shape[1], device="meta")
        linear.weight = nn.Parameter(weight.T.contiguous(), requires_grad=False)
        linear.bias = module.bias  # type: ignore[assignment]
        return linear
    return module if type(module) is nn.Linear else None


def _planned(linear: nn.Linear, load: str) -> nn.Module:
    return PlannedLinear(linear, load)


def check_quantised(config: Mapping[str, Any]) -> None:
    """Raises UserError where a backbone's config asks for what needs CUDA and bitsandbytes, and they are not there."""
    if config.get("load") in QUANTISED:
        _bitsandbytes(config["load"])


def _bitsandbytes(load: str) -> Callable[[nn.Linear, str], nn.Module]:
    where, remedy = f"backbone.load={load}", "set backbone.load=bf16; transfer-plan needs neither"
    if not torch.cuda.is_available():
        raise UserError("8- and 4-bit weights need a CUDA GPU, and this machine has none.", where=where, remedy=remedy)
    try:
        library: Any = importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise UserError(
            "8- and 4-bit weights need bitsandbytes, which is not installed.",
            where=where,
            remedy=f"pip install bitsandbytes, or {remedy}",
        ) from error

    def make(linear: nn.Linear, load: str) -> nn.Module:
        sizes, bias, weight = (linear.in_features, linear.out_features), linear.bias is not None, linear.weight.data
        if load == "int8":
            layer = library.nn.Linear8bitLt(*sizes, bias=bias, has_fp16_weights=False)
            layer.weight = library.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        else:
            double = load == "nf4_double"
            layer = library.nn.Linear4bit(
                *sizes, bias=bias, compute_dtype=torch.bfloat16, compress_statistics=double, quant_type="nf4"
            )
            layer.weight = library.nn.Params4bit(
                weight, requires_grad=False, compress_statistics=double, quant_type="nf4"
            )
        if bias:
            layer.bias = nn.Parameter(linear.bias.data, requires_grad=False)
        return layer

    return make


def _blocks(backbone: Backbone) -> Iterator[nn.Module]:
    for stack in backbone.stacks:
        yield from backbone.blocks(stack)
