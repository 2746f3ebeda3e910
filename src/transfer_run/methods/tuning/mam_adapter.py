"""MAM adapter (mix and match): a short prefix on every attention, a scaled parallel change beside every feed-forward.

He et al. 2022 (arXiv 2110.04366), section 4.6: prefix l = 30, parallel adapter r = 512, s = 4, init `lora`. With
`mlp: lora` the feed-forward's change is LoRA on both of its matrices (the paper's table 6, l = 30 and r = 102).
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from transfer_run.backbones.base import Backbone
from transfer_run.errors import UserError
from transfer_run.methods.inside.bottleneck import Norm
from transfer_run.methods.inside.targets import Layers, find_targets
from transfer_run.methods.tuning.attach.inject import inject, peft_config
from transfer_run.methods.tuning.parallel_adapter import mlp_adapters
from transfer_run.methods.tuning.prefix_tuning import PrefixTuning
from transfer_run.task import Task


class MAMAdapter(PrefixTuning):
    """Prefixes and the feed-forwards' changes are trained, and the head.

    Args:
        length, hidden: of the prefixes, see `PrefixTuning`.
        mlp: `adapter` (a parallel one) or `lora`.
        bottleneck: r of the feed-forward's change; scale: its s; dropout: its dropout.
        learn_scale, activation, init, layernorm: of the adapter, see `Bottleneck`.
        layers: blocks to adapt, by stack; a stack that is not named: all.
    """

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        *,
        length: int = 30,
        hidden: int | None = 800,
        mlp: Literal["adapter", "lora"] = "adapter",
        bottleneck: int = 512,
        scale: float = 4.0,
        learn_scale: bool = False,
        activation: str = "relu",
        dropout: float = 0.1,
        init: Literal["bert", "lora"] = "lora",
        layernorm: Norm = "none",
        layers: Layers | None = None,
    ) -> None:
        super().__init__(backbone, task, length=length, hidden=hidden, layers=layers)
        self.adapters = nn.ModuleDict()
        if mlp == "lora":
            if learn_scale:
                remedy = "set method.learn_scale=false or method.mlp=adapter"
                raise UserError("LoRA has no learned scale.", where="method.learn_scale", remedy=remedy)
            settings = {"r": bottleneck, "lora_alpha": scale * bottleneck, "lora_dropout": dropout}
            paths = [target.path for target in find_targets(backbone, ("mlp_in", "mlp_out"), layers=layers)]
            inject(backbone, peft_config("LoraConfig", settings), paths)
        else:
            unit = {
                "activation": activation, "dropout": dropout, "scale": scale, "learn_scale": learn_scale,
                "init": init, "layernorm": layernorm,
            }  # fmt: skip
            self.adapters.update(mlp_adapters(backbone, bottleneck, unit, layers))
