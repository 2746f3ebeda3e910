"""Gram matrices of the inputs of linear layers, gathered by forward hooks in one pass over some examples (RegMean)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from transfer_run.backbones.base import Batch
from transfer_run.files import written_whole

TRANSPOSED = "transposed"
"""Key of the file's header: names of weights stored (in, out)."""


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Layers that are y = W x (+ b), by the name of their weight; not those whose weight another module uses too."""
    owners = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    return {
        f"{path}.weight": module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and owners[id(module.weight)] == 1
    }


class _Gram:
    """X^T X and the number of rows of X, over all calls of one layer."""

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self.rows = 0

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        rows = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).float()
        product = rows.T @ rows
        self.total = product if self.total is None else self.total.add_(product)
        self.rows += len(rows)


@torch.no_grad()
def gather_grams(model: nn.Module, forward: Any, examples: Iterable[Batch]) -> dict[str, Tensor]:
    """G = X^T X / rows (in, in), float32 on the CPU, of every linear layer that is called.

    Args:
        model: whose layers are looked at; its mode is afterwards as before.
        forward: called with every example.
        examples: without padding: padding would count as input.
    """
    grams = {name: _Gram() for name in linear_layers(model)}
    hooks = [layer.register_forward_pre_hook(grams[name]) for name, layer in linear_layers(model).items()]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        for example in examples:
            forward(example)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes.items():
            module.training = mode
    return {name: gram.total.div_(gram.rows).cpu() for name, gram in grams.items() if gram.total is not None}


def save_grams(grams: dict[str, Tensor], model: nn.Module, path: Path) -> None:
    """One safetensors file: G under the name of the weight."""
    flipped = sorted(name for name, layer in linear_layers(model).items() if isinstance(layer, Conv1D))
    with written_whole(path) as partial:
        save_file(grams, partial, metadata={"format": "pt", TRANSPOSED: json.dumps(flipped)})
