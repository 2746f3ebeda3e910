"""Sequential adapters: a small bottleneck behind frozen sub-layers.

Houlsby et al. 2019 (arXiv 1902.00751): one behind attention's output projection, one behind the feed-forward's last
linear, each before the residual sum. Pfeiffer et al. 2021 (arXiv 2005.00247): one a block. The defaults are the
adapters that the LST paper compares with (arXiv 2206.06522): reduction 16, norms trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from transfer_run.backbones.base import Backbone
from transfer_run.errors import UserError
from transfer_run.methods.base import Method
from transfer_run.methods.inside.bottleneck import Bottleneck, Norm
from transfer_run.methods.inside.targets import Layers, Target, chosen_blocks, find_targets, norms, out_features
from transfer_run.task import Task


class Adapter(Method):
    """Sequential adapters are trained, and the head.

    Args:
        placement: `houlsby`, or `pfeiffer`: behind the feed-forward alone, inside the block's last norm where the
            norm stands after the sum.
        sites: of `houlsby`: `attention`, `mlp`.
        cross_attention: adapters behind cross-attention as well.
        bottleneck: r; None: the width divided by `reduction`.
        activation, dropout, scale, learn_scale, layernorm, init, init_std: see `Bottleneck`.
        attention_layernorm: `layernorm` of the units behind attention.
        train_norms: train the norms of the adapted blocks and the final norms, too.
        layers: blocks to adapt, by stack; a stack that is not named: all.

    Raises:
        UserError: a width that the reduction brings to nothing.
    """

    beside_half = True

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        *,
        placement: Literal["houlsby", "pfeiffer"] = "houlsby",
        sites: Sequence[str] = ("attention", "mlp"),
        cross_attention: bool = False,
        bottleneck: int | None = None,
        reduction: int = 16,
        activation: str = "gelu_new",
        dropout: float = 0.0,
        scale: float = 1.0,
        learn_scale: bool = False,
        layernorm: Norm = "none",
        attention_layernorm: Norm = "none",
        init: Literal["bert", "lora"] = "bert",
        init_std: float = 0.01,
        train_norms: bool = True,
        layers: Layers | None = None,
    ) -> None:
        super().__init__(backbone, task)
        self.freeze_backbone()
        self.unit = {
            "activation": activation, "dropout": dropout, "scale": scale, "learn_scale": learn_scale,
            "init": init, "init_std": init_std,
        }  # fmt: skip
        self.size, self.reduction = bottleneck, reduction
        self.placement, self.train_norms = placement, train_norms
        self.adapters = nn.ModuleDict()
        names = ("mlp_out",) if placement == "pfeiffer" else [{"attention": "out", "mlp": "mlp_out"}[s] for s in sites]
        for target in find_targets(backbone, names, cross_attention=cross_attention, layers=layers):
            inside_norm = placement == "pfeiffer" and not backbone.pre_norm
            self._attach(target, layernorm if target.part == "mlp_out" else attention_layernorm, inside_norm)
        if train_norms:
            self._train_norms(layers)

    def _attach(self, target: Target, layernorm: Norm, inside_norm: bool) -> None:
        linear = self.backbone.get_submodule(target.path)
        width = out_features(linear)
        size = self.size or width // self.reduction
        if size < 1:
            raise UserError(
                f"A width of {width} divided by {self.reduction} leaves no bottleneck.",
                where="method.reduction",
                remedy=f"choose at most {width}, or set method.bottleneck",
            )
        like = next(linear.parameters())
        adapter = Bottleneck(width, size, layernorm=layernorm, like=like, **self.unit)  # type: ignore[arg-type]
        self.adapters[f"{target.stack}_{target.index}_{target.part}"] = adapter
        if inside_norm:
            self.backbone.part(target.stack, target.index, "norm2").register_forward_hook(adapter.after_norm)
        else:
            linear.register_forward_hook(adapter.after)

    def _train_norms(self, layers: Layers | None) -> None:
        blocks = [self.backbone.blocks(stack)[index] for stack, index in chosen_blocks(self.backbone, layers)]
        finals = [self.backbone.final_norm(stack) for stack in self.backbone.stacks]
        for module in [*blocks, *(norm for norm in finals if norm is not None)]:
            for norm in norms(module):
                norm.requires_grad_(True)
