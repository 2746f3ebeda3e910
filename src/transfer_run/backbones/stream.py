"""Blocks in CPU memory, brought to the device one by one (`backbone.offload=cpu`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

BlockId = tuple[str, int]
"""Stack and index."""


class BlockStream:
    """Brings the blocks of a frozen backbone to the device one by one, the next one while one runs.

    At most two blocks are there at a time. On a GPU the host's tensors are pinned and copies run on a stream
    of their own; on a CPU they are plain copies.

    Args:
        blocks: stay where they are, whatever is moved around them; by (stack, index).
    """

    def __init__(self, blocks: Mapping[BlockId, nn.Module]) -> None:
        self.blocks = dict(blocks)
        self.on_copies: Callable[[Iterable[Tensor]], None] = lambda tensors: None  # told of copies (memory plans)
        self._ahead: dict[BlockId, dict[int, Tensor]] = {}
        self._side: Any = None  # CUDA stream

    def host_tensors(self) -> list[Tensor]:
        """All tensors that stay in CPU memory."""
        return [t for block in self.blocks.values() for t in (*block.parameters(), *block.buffers())]

    def differentiated(self, stack: str, index: int) -> bool:
        """Does somebody want gradients of the block's weights (a preparation on the CPU)? then they run on the host."""
        return any(host.requires_grad for host in self.blocks[stack, index].parameters())

    @contextmanager
    def on_device(self, block: BlockId, device: torch.device) -> Iterator[None]:
        """The block `block` has its tensors on `device` while this lasts; the one behind it is under way."""
        copies = self._ahead.pop(block, None)
        self._ahead.clear()  # another way was taken: what was under way is of no use
        if copies is None:
            copies = self._copied(block, device)
        following = (block[0], block[1] + 1)
        if self._side is not None:
            torch.cuda.current_stream(device).wait_stream(self._side)
            for copy in copies.values():
                copy.record_stream(torch.cuda.current_stream(device))
        if following in self.blocks:
            self._ahead[following] = self._copied(following, device)
        hosts = list(_registered(self.blocks[block]))
        try:
            for registry, name, host in hosts:
                registry[name] = copies[id(host)]
            yield
        finally:
            for registry, name, host in hosts:
                registry[name] = host

    def _copied(self, block: BlockId, device: torch.device) -> dict[int, Tensor]:
        """Copies on the device of the block's tensors, by the id of the host."""
        hosts = {id(host): host for _, _, host in _registered(self.blocks[block])}
        if device.type == "cuda":
            copies = self._on_side(hosts, device)
        else:
            copies = {key: host.detach().to(device, copy=True) for key, host in hosts.items()}
        self.on_copies(copies.values())
        return copies

    def _on_side(self, hosts: Mapping[int, Tensor], device: torch.device) -> dict[int, Tensor]:
        if self._side is None:
            self._side = torch.cuda.Stream(device)
        for host in hosts.values():
            if host.device.type == "cpu" and not host.is_pinned():
                host.data = host.data.pin_memory()  # once: later copies run beside the computation
        with torch.cuda.stream(self._side):
            return {key: host.detach().to(device, copy=True, non_blocking=True) for key, host in hosts.items()}


def all_but_streamed(stream: BlockStream, move: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`move` (`nn.Module._apply`) for all but the streamed blocks: their types change with it, their place does not."""
    hosts = {id(tensor) for tensor in stream.host_tensors()}

    def moved(tensor: Tensor) -> Tensor:
        if id(tensor) not in hosts:
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
