"""LoRA: frozen linears plus a trained product of two thin matrices. Hu et al. 2022 (arXiv 2106.09685).

    y = W x + b + s * B A dropout(x)        s = alpha / rank, A (rank, in) Kaiming-uniform, B (out, rank) zero

peft's LoRA where a part is a linear of its own; a small module here where it is a third of a fused projection
(timm's qkv, GPT-2's c_attn), which peft could only adapt as a whole.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from transfer_run.backbones.base import Backbone
from transfer_run.methods.base import Method
from transfer_run.methods.inside.precision import in_type_of, trained_type
from transfer_run.methods.inside.targets import (
    Layers,
    Target,
    chosen_blocks,
    find_targets,
    in_features,
    out_features,
    third_of,
)
from transfer_run.methods.tuning.attach.biases import add_zero_biases
from transfer_run.methods.tuning.attach.inject import inject, peft_config, save_peft, unload
from transfer_run.task import Task


class FusedLora(nn.Module):
    """A fused q, k, v projection with low-rank changes of some of its thirds, each with its own A, B and dropout.

    Args:
        linear: the frozen projection, (B, T, D) -> (B, T, 3 W).
        thirds: 0, 1, 2 for q, k, v.
    """

    def __init__(self, linear: nn.Module, thirds: Sequence[int], rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.base_layer, self.scale, self.dropout = linear, alpha / rank, dropout
        width, weight = out_features(linear), next(linear.parameters())
        self.columns = {str(third): third_of(Target("", 0, "", "", third), width) for third in thirds}
        self.lora_A = nn.ParameterDict()
        self.lora_B = nn.ParameterDict()
        for key in self.columns:
            self.lora_A[key] = nn.Parameter(weight.new_empty(rank, in_features(linear), dtype=trained_type(weight)))
            self.lora_B[key] = nn.Parameter(weight.new_zeros(width // 3, rank, dtype=trained_type(weight)))
            nn.init.kaiming_uniform_(self.lora_A[key], a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base_layer(x)
        pieces = list(out.chunk(3, -1))
        for key in self.columns:
            dropped = F.dropout(in_type_of(self.lora_A[key], x), self.dropout, self.training)
            change = F.linear(F.linear(dropped, self.lora_A[key]), self.lora_B[key])
            pieces[int(key)] = pieces[int(key)] + in_type_of(out, change * self.scale)
        return torch.cat(pieces, -1)

    @torch.no_grad()
    def merge(self) -> nn.Module:
        """The projection with the changes folded into its weight."""
        for key, columns in self.columns.items():
            change = self.scale * (self.lora_B[key] @ self.lora_A[key])
            weight = self.base_layer.weight
            assert isinstance(weight, Tensor)
            if isinstance(self.base_layer, Conv1D):
                weight[:, columns] += change.T
            else:
                weight[columns] += change
        return self.base_layer


class LoRA(Method):
    """Low-rank changes of chosen linears are trained, and the head.

    Args:
        rank, alpha, dropout: s = alpha / rank.
        targets: part names (`q`, `k`, `v`, `out`, `mlp_in`, `mlp_out`, ...); q and v by default.
        cross_attention: adapt cross-attention's projections of these names too.
        layers: blocks to adapt, by stack; a stack that is not named: all.
        bias: `all` also trains every parameter with "bias" in its name (as the LoRA authors' own library does, so
            T5's tables of relative position biases are among them).
        add_biases: give linears, norms and the language head zero biases where they have none.
    """

    beside_half = True

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        *,
        rank: int = 32,
        alpha: float = 32.0,
        dropout: float = 0.1,
        targets: Sequence[str] = ("q", "v"),
        cross_attention: bool = True,
        layers: Layers | None = None,
        bias: Literal["none", "all"] = "none",
        add_biases: bool = False,
    ) -> None:
        super().__init__(backbone, task)
        self.bias = bias
        if add_biases:
            add_zero_biases(backbone, language_head=self.form.speaks, layers=layers)
        self.freeze_backbone()
        found = find_targets(backbone, targets, cross_attention=cross_attention, layers=layers)
        separate = [target.path for target in found if target.third is None]
        if separate:
            settings = {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout}
            inject(backbone, peft_config("LoraConfig", settings), separate)
        fused = defaultdict(list)
        for target in found:
            if target.third is not None:
                fused[target.path].append(target.third)
        for path, thirds in fused.items():
            backbone.set_submodule(path, FusedLora(backbone.get_submodule(path), thirds, rank, alpha, dropout))
        if bias == "all":
            self._train_biases(layers)

    def _train_biases(self, layers: Layers | None) -> None:
        """All biases but those of the blocks left out by `layers`; a backward pass need not visit these."""
        chosen = set(chosen_blocks(self.backbone, layers))
        frozen = {id(p) for p in self.idle_parameters()}
        for stack in self.backbone.stacks:
            for index, block in enumerate(self.backbone.blocks(stack)):
                frozen |= {id(p) for p in block.parameters()} if (stack, index) not in chosen else set()
        for name, parameter in self.backbone.model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad or ("bias" in name and id(parameter) not in frozen))

    def fold(self) -> None:
        """Fold the changes into the weights: the backbone's model is the library's plain model again."""
        for path, module in list(self.backbone.named_modules()):
            if isinstance(module, FusedLora):
                self.backbone.set_submodule(path, module.merge())
        unload(self.backbone)

    def export(self, folder: Path) -> bool:
        """As peft does, but for thirds of a fused projection, which it has no form for."""
        return save_peft(self.backbone, folder, settings={"bias": self.bias})
