"""The rest of peft: one method, driven by the name of a peft config class, its settings and canonical part names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from transfer_run.backbones.base import Backbone
from transfer_run.methods.base import Method
from transfer_run.methods.inside.targets import Layers, find_targets, norms
from transfer_run.methods.tuning.attach.inject import inject, peft_config, reads_weights, save_peft, unload
from transfer_run.methods.tuning.attach.thirds import join, split
from transfer_run.task import Task


class PeftMethod(Method):
    """A tuner of peft on chosen parts is trained, and the head.

    Args:
        tuner: peft's config class, e.g. `VeraConfig`.
        settings: its keyword arguments, under peft's names.
        targets: part names (`q`, `v`, `mlp_in`, ...), or `norms` for all norms.
        fused_qkv: of a fused q, k, v projection `parts` adapts those that are named, each by itself, and leaves the
            others alone; `whole` adapts all of it when one is named, which is the only form that peft can save.
        cross_attention: adapt cross-attention's projections of these names too.
        layers: blocks to adapt, by stack; a stack that is not named: all.
    """

    beside_half = True

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        *,
        tuner: str,
        settings: Mapping[str, Any],
        targets: Sequence[str],
        cross_attention: bool = True,
        layers: Layers | None = None,
        fused_qkv: Literal["parts", "whole"] = "parts",
    ) -> None:
        super().__init__(backbone, task)
        self.freeze_backbone()
        if list(targets) == ["norms"]:
            chosen = {id(norm) for norm in norms(backbone.model)}
            paths = [path for path, module in backbone.named_modules() if id(module) in chosen]
        else:
            found = find_targets(backbone, targets, cross_attention=cross_attention, layers=layers)
            whole = list(dict.fromkeys(target.path for target in found))
            paths = whole if fused_qkv == "whole" else split(backbone, found)
        config = peft_config(tuner, settings)
        self.reads_weights = reads_weights(config)
        self._tuner = (inject(backbone, config, paths),)
        # Some tuners keep what their layers share (vector banks, random bases) beside the model.
        shared = {name: child for name, child in self._tuner[0].named_children() if name != "model"}
        self.shared = nn.ModuleDict(shared)

    def fold(self) -> None:
        unload(self.backbone)
        join(self.backbone)
        self.shared = nn.ModuleDict()

    def export(self, folder: Path) -> bool:
        return save_peft(self.backbone, folder, shared=self.shared)
