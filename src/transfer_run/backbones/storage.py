"""How a frozen backbone is kept: narrower than float32, or in CPU memory with its blocks brought in one by one.

    backbone.load=bf16                weights and stream in bfloat16
    backbone.load=int8|nf4|nf4_double the blocks' linear layers in 8 or 4 bits (bitsandbytes, CUDA), the rest bfloat16
    backbone.offload=cpu              CPU memory ── copy of block i+1 ──▶ device, while block i runs

Only for methods that do not train inside the backbone; peft's float32 layers may stand in a bfloat16 one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
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

Place = tuple[str, int]


# ---- narrower weights
def narrow(backbone: Backbone) -> None:
    """Weights and stream in bfloat16, what reaches the head in the head's own type; does nothing without `load`."""
    if backbone.config.get("load"):
        backbone.model.to(torch.bfloat16)
        backbone.narrow = True


def as_head(head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Forward pre-hook of the task's head: features come in the backbone's type."""
    weight = next(head.parameters(), None)
    wide = lambda x: x.to(weight.dtype) if weight is not None and isinstance(x, Tensor) else x  # noqa: E731
    return tuple(wide(value) for value in args)


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
    quantises the activations and sums in int32 (LLM.int8, section 2).
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
        if self.load == "int8":
            hidden.new_empty(hidden.shape, dtype=torch.int8)
            sums = hidden.new_empty((*hidden.shape[:-1], self.outputs), dtype=torch.int32)
            out = sums.to(hidden.dtype)
            return out if self.bias is None else out + self.bias
        weight = hidden.new_empty(self.outputs, self.inputs, dtype=torch.bfloat16)
        return F.linear(hidden, weight.to(hidden.dtype), self.bias)


def pack(backbone: Backbone, *, planned: bool = False) -> None:
    """Put quantised layers in the place of the blocks' linear ones; bitsandbytes packs them on their way to the GPU.

    Args:
        planned: sizes alone, for a memory plan.

    Raises:
        UserError: bitsandbytes or CUDA is missing.
    """
    load = backbone.config.get("load")
    if load not in QUANTISED:
        return
    make = _planned if planned else _bitsandbytes(load)
    for block in _blocks(backbone):
        for path, module in list(block.named_modules()):
            if type(module) is nn.Linear:
                block.set_submodule(path, Packed(make(module, load)))


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


# ---- blocks in CPU memory
class BlockStream:
    """Brings the blocks of a frozen backbone to the device one by one, the next one while one runs.

    At most two blocks are there at a time. On a GPU the homes are pinned and copies run on a stream of their own; on a
    CPU they are plain copies.

    Args:
        backbone: its blocks stay where they are, whatever is moved around them.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.blocks = {(s, i): block for s in backbone.stacks for i, block in enumerate(backbone.blocks(s))}
        self.noted: Callable[[Iterable[Tensor]], None] = lambda tensors: None  # told of copies (memory plans)
        self._ahead: dict[Place, dict[int, Tensor]] = {}
        self._side: Any = None  # CUDA stream

    def homes(self) -> list[Tensor]:
        """All tensors that stay in CPU memory."""
        return [t for block in self.blocks.values() for t in (*block.parameters(), *block.buffers())]

    def differentiated(self, stack: str, index: int) -> bool:
        """Does somebody want gradients of the block's weights (a preparation on the CPU)? Then they run at home."""
        return any(home.requires_grad for home in self.blocks[stack, index].parameters())

    @contextmanager
    def there(self, place: Place, device: torch.device) -> Iterator[None]:
        """Block `place` has its tensors on `device` while this lasts; the one behind it is under way."""
        copies = self._ahead.pop(place, None)
        self._ahead.clear()  # another way was taken: what was under way is of no use
        if copies is None:
            copies = self._copied(place, device)
        following = (place[0], place[1] + 1)
        if self._side is not None:
            torch.cuda.current_stream(device).wait_stream(self._side)
            for copy in copies.values():
                copy.record_stream(torch.cuda.current_stream(device))
        if following in self.blocks:
            self._ahead[following] = self._copied(following, device)
        homes = list(_registered(self.blocks[place]))
        try:
            for registry, name, home in homes:
                registry[name] = copies[id(home)]
            yield
        finally:
            for registry, name, home in homes:
                registry[name] = home

    def _copied(self, place: Place, device: torch.device) -> dict[int, Tensor]:
        """Copies on the device of the block's tensors, by the id of the home."""
        homes = {id(home): home for _, _, home in _registered(self.blocks[place])}
        if device.type == "cuda":
            copies = self._on_side(homes, device)
        else:
            copies = {key: home.detach().to(device, copy=True) for key, home in homes.items()}
        self.noted(copies.values())
        return copies

    def _on_side(self, homes: Mapping[int, Tensor], device: torch.device) -> dict[int, Tensor]:
        if self._side is None:
            self._side = torch.cuda.Stream(device)
        for home in homes.values():
            if home.device.type == "cpu" and not home.is_pinned():
                home.data = home.data.pin_memory()  # once: later copies run beside the computation
        with torch.cuda.stream(self._side):
            return {key: home.detach().to(device, copy=True, non_blocking=True) for key, home in homes.items()}


def offload(backbone: Backbone) -> None:
    """Stream the blocks where the config says so."""
    if backbone.config.get("offload"):
        backbone.stream = BlockStream(backbone)


def staying(stream: BlockStream, move: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`move` (`nn.Module._apply`) for all but the streamed blocks: their types change with it, their place does not."""
    homes = {id(tensor) for tensor in stream.homes()}

    def moved(tensor: Tensor) -> Tensor:
        if id(tensor) not in homes:
            return move(tensor)
        like = move(tensor.new_empty(0))  # tells the type without moving the whole
        return move(tensor) if "meta" in (like.device.type, tensor.device.type) else tensor.to(like.dtype)

    return moved


def _registered(block: nn.Module) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    for module in block.modules():
        for registry in (module._parameters, module._buffers):
            for name, tensor in registry.items():
                if tensor is not None:
                    yield registry, name, tensor


def _blocks(backbone: Backbone) -> Iterator[nn.Module]:
    for stack in backbone.stacks:
        yield from backbone.blocks(stack)


# ---- who may
def check_storage(method: Any, backbone: Backbone) -> None:
    """Refuse to keep a backbone narrow or away where the method trains inside it.

    Raises:
        UserError: with the reason.
    """
    load, away = backbone.config.get("load"), backbone.config.get("offload")
    if not (load or away):
        return
    where = f"backbone.load={load}" if load else f"backbone.offload={away}"
    if load in QUANTISED and away:
        raise UserError(
            "8- and 4-bit weights are packed on the GPU; they are not streamed to it.",
            where=f"{where} backbone.offload={away}",
            remedy="choose one of the two (backbone.load=bf16 goes with backbone.offload=cpu)",
        )
    trained = [p for p in backbone.model.parameters() if p.requires_grad]
    if load == "bf16" and not away and trained and _in_float32(backbone, trained):
        return
    if method.needs_backbone_gradient or trained:
        raise UserError(
            "This method trains inside the backbone: its weights and gradients are needed whole, in full precision.",
            where=where,
            remedy="choose a method that leaves the backbone alone (lst, qst, unipt, linear_probe); with "
            "backbone.load=bf16 alone also peft's lora, where q, k and v are not fused",
        )
    if away and method.asks_inside:
        raise UserError(
            "This method reads the insides of every block and needs them all for backward.",
            where=where,
            remedy="choose lst, qst, unipt or linear_probe, or keep the blocks on the device",
        )


def _in_float32(backbone: Backbone, trained: list[nn.Parameter]) -> bool:
    """Are all trained weights float32 ones that peft has put beside the frozen bfloat16 weights?"""
    by_peft = any(type(module).__module__.startswith("peft.") for module in backbone.model.modules())
    return by_peft and all(parameter.dtype == torch.float32 for parameter in trained)
