"""Masks every head and neuron alone and measures how far the layers behind it and the logits move, on one batch.

    dense pass ──> input of each block (prefix), Gram matrix of each layer's features, logits
    unit of block l ──> blocks l, l + 1, ... from that prefix, several masked variants side by side in one batch

A unit's mask sits in front of the matrix that reads it (`out`, `mlp_out`), so what the unit adds is gone and biases
stay. A layer's features are what `mlp_out` returns, before dropout, residual and norm, as released.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from transfer_run.backbones.base import Backbone, Batch, State
from transfer_run.backbones.slicing import head_width
from transfer_run.methods.compression.units.terms import Aggregation, divergence, gram, trajectory

Kind = Literal["head", "neuron"]
READERS: dict[str, str] = {"head": "out", "neuron": "mlp_out"}
FEATURES = "mlp_out"


@dataclass(frozen=True)
class Chunk:
    """Units first to stop of one block, masked side by side."""

    kind: Kind
    layer: int
    first: int
    stop: int


def chunks(kind: Kind, layers: int, units: int, at_once: int) -> list[Chunk]:
    """All units of a kind, block by block."""
    firsts = range(0, units, at_once)
    return [Chunk(kind, layer, first, min(units, first + at_once)) for layer in range(layers) for first in firsts]


class Masking:
    """The dense pass of a batch, and what masked variants of it move.

    Args:
        backbone: with its head; one stack is looked at.
        batch: raw, (B, ...).
        logits: finished state -> logits (B, C), of a batch of any size.
        rows: numbers of the tokens, of B * T, that enter the Gram matrices; None: all.
        tau, aggregation: of the terms.
        reset: False: while heads of a block are masked the last head of every earlier block stays masked, as released.
        cached: False runs every variant from the first block, for comparison.
    """

    def __init__(
        self,
        backbone: Backbone,
        batch: Batch,
        logits: Callable[[Tensor, State], Tensor],
        *,
        rows: Tensor | None,
        tau: float,
        aggregation: Aggregation,
        reset: bool = True,
        cached: bool = True,
    ) -> None:
        self.backbone, self.batch, self.logits = backbone, batch, logits
        self.stack, self.depth = backbone.stacks[0], backbone.depth(backbone.stacks[0])
        self.rows, self.tau, self.aggregation, self.reset, self.cached = rows, tau, aggregation, reset, cached
        self.size = len(next(iter(batch.values())))
        self._starts: dict[int, State] = {}
        with torch.no_grad():
            self._dense()

    def units(self, kind: Kind) -> int:
        """Heads or neurons of a block."""
        width = int(self.backbone.part(self.stack, 0, READERS[kind]).in_features)  # type: ignore[arg-type]
        return width if kind == "neuron" else width // head_width(self.backbone, self.stack, 0)

    @torch.no_grad()
    def measure(self, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """MD and KD of the chunk's units, each (n,), float32."""
        count = chunk.stop - chunk.first
        masks = torch.ones(count, self.units(chunk.kind), device=self.dense_logits.device)
        masks[torch.arange(count), torch.arange(chunk.first, chunk.stop)] = 0
        return self.moved(chunk.kind, chunk.layer, masks)

    @torch.no_grad()
    def moved(self, kind: Kind, layer: int, masks: Tensor) -> tuple[Tensor, Tensor]:
        """MD and KD of variants of one block, masks (n, units): each (n,)."""
        count = len(masks)
        begin = layer if self.cached and (self.reset or kind == "neuron") else 0
        state = self._start(count)
        state = replace(state, index=begin, hidden=_repeated(self.inputs[begin], count))
        counted = range(layer if layer + 1 == self.depth else layer + 1, self.depth)
        md = masks.new_zeros(count)

        def look(index: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Tensor) -> None:
                found = gram(output.unflatten(0, (count, self.size)), self.rows)
                md.add_(trajectory(self.dense_grams[index], found, self.aggregation))

            return hook

        with ExitStack() as stack:
            stack.enter_context(self._masked(kind, layer, masks))
            if kind == "head" and not self.reset:
                for earlier in range(layer):
                    last = torch.ones_like(masks)
                    last[:, -1] = 0
                    stack.enter_context(self._masked("head", earlier, last))
            for index in counted:
                part = self.backbone.part(self.stack, index, FEATURES)
                stack.enter_context(_hooked(part.register_forward_hook(look(index))))
            logits = self._logits(self.backbone.run(state))
        kd = divergence(self.dense_logits, logits.unflatten(0, (count, self.size)), self.tau)
        return md, kd

    # ---- parts
    def _dense(self) -> None:
        """Inputs of the blocks, Gram matrices, logits; and what enters each reader, for other criteria."""
        state = self._start(1)
        self.inputs = [state.hidden]
        self.dense_grams: list[Tensor] = []
        self.norms: dict[str, list[Tensor]] = {kind: [] for kind in READERS}

        def look(module: nn.Module, args: Any, output: Tensor) -> None:
            self.dense_grams.append(gram(output, self.rows))

        def size(kind: str) -> Callable[..., None]:
            return lambda module, args: self.norms[kind].append(args[0].float().flatten(0, -2).norm(dim=0))

        with ExitStack() as stack:
            for index in range(self.depth):
                part = self.backbone.part(self.stack, index, FEATURES)
                stack.enter_context(_hooked(part.register_forward_hook(look)))
                for kind, reader in READERS.items():
                    read = self.backbone.part(self.stack, index, reader)
                    stack.enter_context(_hooked(read.register_forward_pre_hook(size(kind))))
            last = state
            for after in self.backbone.taps(state):
                self.inputs.append(after.hidden)
                last = after
        self.dense_logits = self._logits(last)

    def _start(self, count: int) -> State:
        """The embedded batch, `count` times over: its masks go with it."""
        if count not in self._starts:
            many = {name: _repeated(tensor, count) for name, tensor in self.batch.items()}
            self._starts[count] = self.backbone.embed(many, self.stack)
        return self._starts[count]

    def _logits(self, state: State) -> Tensor:
        return self.logits(self.backbone.finish(state), state)

    @contextmanager
    def _masked(self, kind: Kind, layer: int, masks: Tensor) -> Iterator[None]:
        """The block's units times masks (n, units), a variant each `size` rows."""
        reader = self.backbone.part(self.stack, layer, READERS[kind])
        wide = masks.repeat_interleave(int(reader.in_features) // masks.shape[1], dim=1)  # type: ignore[arg-type]

        def mask(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            variants = args[0].unflatten(0, (len(masks), self.size))
            shape = (len(masks), *[1] * (variants.dim() - 2), wide.shape[1])
            return ((variants * wide.to(variants.dtype).view(shape)).flatten(0, 1), *args[1:])

        with _hooked(reader.register_forward_pre_hook(mask)):
            yield


@contextmanager
def _hooked(handle: Any) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()


def _repeated(tensor: Tensor, count: int) -> Tensor:
    return tensor if count == 1 else tensor.repeat(count, *[1] * (tensor.dim() - 1))
