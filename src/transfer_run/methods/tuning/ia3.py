"""(IA)^3: keys, values and the feed-forward's inner activations are rescaled by trained vectors.

    k <- l_k * k      v <- l_v * v      inner <- l_ff * act(W_in x)

All vectors start at one, so that the model starts at the pretrained function. Liu et al. 2022 (arXiv 2205.05638).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from transfer_run.backbones.base import Backbone
from transfer_run.methods.base import Method
from transfer_run.methods.inside.precision import in_type_of, trained_type
from transfer_run.methods.inside.targets import Layers, Target, find_targets, out_features, third_of
from transfer_run.methods.tuning.attach.inject import inject, peft_config, save_peft, unload
from transfer_run.task import Task


class FusedScale(nn.Module):
    """A fused q, k, v projection whose chosen thirds are rescaled, (B, T, D) -> (B, T, 3 W)."""

    def __init__(self, linear: nn.Module, thirds: Sequence[int]) -> None:
        super().__init__()
        self.base_layer = linear
        weight, width = next(linear.parameters()), out_features(linear) // 3
        self.ia3_l = nn.ParameterDict(
            {str(third): nn.Parameter(weight.new_ones(width, dtype=trained_type(weight))) for third in thirds}
        )

    def forward(self, x: Tensor) -> Tensor:
        pieces = list(self.base_layer(x).chunk(3, -1))
        for key, scale in self.ia3_l.items():
            pieces[int(key)] = pieces[int(key)] * in_type_of(pieces[int(key)], scale)
        return torch.cat(pieces, -1)

    @torch.no_grad()
    def merge(self) -> nn.Module:
        """The projection with its rows rescaled."""
        width = out_features(self.base_layer)
        for key, scale in self.ia3_l.items():
            columns = third_of(Target("", 0, "", "", int(key)), width)
            for tensor in self.base_layer.parameters():
                if isinstance(self.base_layer, Conv1D) or tensor.ndim == 1:
                    tensor[..., columns] *= scale
                else:
                    tensor[columns] *= scale[:, None]
        return self.base_layer


class IA3(Method):
    """Three vectors a block (five in a decoder's that attends to an encoder) are trained, and the head.

    Args:
        cross_attention: rescale cross-attention's keys and values too.
        layers: blocks to change, by stack; a stack that is not named: all.
    """

    beside_half = True

    def __init__(
        self, backbone: Backbone, task: Task, *, cross_attention: bool = True, layers: Layers | None = None
    ) -> None:
        super().__init__(backbone, task)
        self.freeze_backbone()
        found = find_targets(backbone, ("k", "v"), cross_attention=cross_attention, layers=layers)
        inner = [target.path for target in find_targets(backbone, ("mlp_out",), layers=layers)]
        separate = [target.path for target in found if target.third is None]
        settings = {"feedforward_modules": [path.removeprefix("model.") for path in inner]}
        settings["target_modules"] = [path.removeprefix("model.") for path in separate + inner]
        inject(backbone, peft_config("IA3Config", settings), separate + inner)
        fused = defaultdict(list)
        for target in found:
            if target.third is not None:
                fused[target.path].append(target.third)
        for path, thirds in fused.items():
            backbone.set_submodule(path, FusedScale(backbone.get_submodule(path), thirds))

    def fold(self) -> None:
        for path, module in list(self.backbone.named_modules()):
            if isinstance(module, FusedScale):
                self.backbone.set_submodule(path, module.merge())
        unload(self.backbone)

    def export(self, folder: Path) -> bool:
        """As peft does, but for thirds of a fused projection, which it has no form for."""
        return save_peft(self.backbone, folder)
