"""Answers a frozen stream from stored taps, and stores those that are not there yet.

A tap is stored, or read, only while the stream is the frozen one: begun by `Backbone.embed` from the very tensors that
the loader handed out, and advanced by nothing but `Backbone.step`. A method that changes the hidden state (late blocks
on a side state, tokens in front) or the inputs (mixing, masking) falls out of it and is computed as ever.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Taps = dict[tuple[str, int], tuple[tuple[int, ...], torch.dtype]]
"""(stack, block) -> shape of one row's tap, and its type."""


class Store(Protocol):
    """What `data.tap_cache.TapStore` is."""

    def tensors(self) -> list[Tensor]: ...
    def depth(self, stack: str) -> int: ...
    def has(self, stack: str, rows: Tensor) -> bool: ...
    def read(self, tap: tuple[str, int], rows: Tensor, like: Tensor) -> Tensor: ...
    def write(self, tap: tuple[str, int], rows: Tensor, value: Tensor) -> None: ...
    def mark(self, stack: str, rows: Tensor) -> None: ...


@dataclass
class _Stream:
    """A frozen stream on its way: the hidden state it has reached, and whether its rows are stored."""

    hidden: weakref.ref[Tensor]
    index: int
    stored: bool


class Replay:
    """Stands between a backbone and its blocks.

    Args:
        store: where taps are; None only notes which ones a method asks for (`taps`).
        in_training: answer in training mode, too: the backbone draws no noise there.
    """

    def __init__(self, store: Store | None = None, *, in_training: bool = False) -> None:
        self.store, self.in_training = store, in_training
        self.taps: Taps = {}
        self._inputs: dict[str, Tensor] = {}
        self._rows = torch.empty(0, dtype=torch.int64)
        self._streams: dict[str, _Stream] = {}

    def serve(self, rows: Tensor, batch: Mapping[str, Tensor]) -> None:
        """From now on `batch` holds the inputs of `rows` (B,) int64, on the CPU."""
        self._rows, self._inputs = rows, dict(batch)
        self._streams.clear()

    def begin(self, stack: str, batch: Mapping[str, Tensor], hidden: Tensor, answers: Tensor | None = None) -> None:
        """`hidden` is tap zero of `stack` for `batch`.

        Args:
            answers: decoders: what the labels that were served make as decoder inputs.
        """
        self._streams.pop(stack, None)
        if self._vouched(stack, batch, answers) and not hidden.requires_grad:
            stored = self.store is not None and self.store.has(stack, self._rows)
            self._streams[stack] = _Stream(weakref.ref(hidden), 0, stored)

    def served_labels(self, batch: Mapping[str, Tensor]) -> Tensor | None:
        """The labels of the served batch, if they are this batch's."""
        labels = self._inputs.get("labels")
        return labels if labels is not None and batch.get("labels") is labels else None

    def _vouched(self, stack: str, batch: Mapping[str, Tensor], answers: Tensor | None) -> bool:
        names = ("pixel_values",) if stack == "image" else ("input_ids", "attention_mask", "token_type_ids")
        if not any(name in self._inputs for name in names):
            return False
        if any(batch.get(name) is not self._inputs.get(name) for name in names):
            return False
        if batch.get("cache") is not None and stack == "decoder":
            return False
        given = batch.get("decoder_input_ids")
        return given is None or stack != "decoder" or (answers is not None and torch.equal(given, answers))

    def _stream(self, stack: str, index: int, hidden: Tensor) -> _Stream | None:
        stream = self._streams.get(stack)
        return stream if stream and stream.hidden() is hidden and stream.index == index else None

    def read(self, stack: str, index: int, hidden: Tensor) -> Tensor | None:
        """What block `index` makes of `hidden`, if that is the frozen stream and is stored."""
        stream = self._stream(stack, index, hidden)
        if stream is None or not stream.stored or self.store is None or index >= self.store.depth(stack):
            return None
        found = self.store.read((stack, index), self._rows, hidden)
        stream.hidden, stream.index = weakref.ref(found), index + 1
        return found

    def write(self, stack: str, index: int, hidden: Tensor, after: Tensor) -> None:
        """Block `index` made `after` of `hidden`: keep it, if `hidden` is the frozen stream."""
        stream = self._stream(stack, index, hidden)
        if stream is None or after.requires_grad:
            return
        if self.store is None:
            self.taps[stack, index] = tuple(after.shape[1:]), after.dtype
        elif not stream.stored and index < self.store.depth(stack):
            self.store.write((stack, index), self._rows, after)
            if index + 1 == self.store.depth(stack):
                self.store.mark(stack, self._rows)
        stream.hidden, stream.index = weakref.ref(after), index + 1
