"""HST: Hierarchical Side-Tuning for Vision Transformers (Lin et al.; arXiv 2310.05393).

    [M_l; x] ─ ViT block l ─▶ [g_l; x] ─ drop g_l ─▶ [M_l+1; x] ─ ViT block l+1 ─▶ ...
                                │                                        M_l: meta tokens, trained
                       bridge T_s of the stage
             KV_l = [LN_l(T_s g_l); mean E_l],  E_l = T_s(patches resized to the stage)
                                │
    image ─ stem ─▶ side block l: attend to KV_l, add E_l, feed-forward ─▶ ... ─▶ norm, mean, BatchNorm, head

A pyramid of narrow stages (`pyramid.py`) reads every ViT block; the ViT's block norms are trained too. So gradients
pass through the whole backbone: HST saves parameters, not backward passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from transfer_run.backbones.base import Backbone, Batch, State
from transfer_run.errors import UserError
from transfer_run.methods.base import Method
from transfer_run.methods.side_tuning.ladder.ladder import MemoryMode
from transfer_run.methods.side_tuning.parts.pyramid import Bridge, HeadNorm, Stage, initialise, map_of
from transfer_run.task import Task


class ResidualDrop(DropPath):
    """Stochastic depth of a frozen block's branch."""

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook on the branch's last module."""
        dropped: Tensor = self(output)
        return dropped


class HST(Method):
    """The hierarchical side network, meta tokens, bridges and the ViT's block norms are trained, and the head.

    Args:
        side_dims: C_s, widths of the stages at strides 4, 8, 16, 32 (dense prediction: [64,128,256,384]).
        side_heads: heads of the stages' cross-attention.
        side_depths: side blocks a stage; their sum is the number of ViT blocks. None: spread evenly.
        side_mlp_ratio: inner width of the side blocks' feed-forward, as a multiple of C_s.
        num_meta_tokens: R, trained tokens put in before each ViT block and taken out after it.
        tune_block_norms: train both norms of every ViT block. With this off and R = 0 backward never visits the ViT
            (the ablation "HSN only").
        fine_injection: add the resized map E_l to the side stream.
        global_token: the mean of E_l is a summary token.
        share_bridge: one bridge a stage; else one a ViT block (ablation).
        bridge_order: `resize_first` as released, `project_first` for less memory, `auto`: as `memory_mode` says.
        drop_path: stochastic depth, rising linearly from 0 to this, of ViT and side blocks alike.
        head_bn_affine: factors and offsets in the norm before the head.
        backbone_dropout: the ViT's own dropout is active in training.
        memory_mode: `official` keeps for backward what the released code keeps. Equal numbers.

    Raises:
        UserError: a backbone that sees no images, depths that do not fit the ViT, heads that do not divide a width,
            no summary token at all.
    """

    def __init__(
        self, backbone: Backbone, task: Task, *, side_dims: Sequence[int] = (32, 48, 64, 72),
        side_heads: Sequence[int] = (2, 4, 8, 12), side_depths: Sequence[int] | None = None,
        side_mlp_ratio: float = 4.0, num_meta_tokens: int = 1, tune_block_norms: bool = True,
        fine_injection: bool = True, global_token: bool = True, share_bridge: bool = True,
        bridge_order: Literal["auto", "resize_first", "project_first"] = "auto", drop_path: float = 0.1,
        head_bn_affine: bool = False, backbone_dropout: bool = True, memory_mode: MemoryMode = "efficient",
    ) -> None:  # fmt: skip
        depths = refuse_impossible(backbone, side_dims, side_heads, side_depths, num_meta_tokens, global_token)
        super().__init__(backbone, task, backbone_dropout=backbone_dropout)
        self.freeze_backbone()
        self.needs_backbone_gradient = num_meta_tokens > 0 or tune_block_norms
        self.fine_injection, self.global_token = fine_injection, global_token
        self.lean = memory_mode == "efficient"
        depth, width = sum(depths), backbone.width("image")
        drops = [drop_path * index / max(1, depth - 1) for index in range(depth)]
        stages = [stage for stage, count in enumerate(depths) for _ in range(count)]
        entries = [next(m.in_channels for m in backbone.modules() if isinstance(m, nn.Conv2d)), *side_dims]
        with torch.device(next(backbone.parameters()).device):
            self.stages = nn.ModuleList(
                Stage(entries[s], side_dims[s], side_heads[s], side_mlp_ratio,
                      [drop for drop, place in zip(drops, stages, strict=True) if place == s],
                      stem=s == 0, lean=self.lean)
                for s in range(len(depths))
            )  # fmt: skip
            self.bridge = Bridge(
                width, [side_dims[s] for s in stages], stages, shared=share_bridge, meta=num_meta_tokens > 0,
                project_first=self.lean if bridge_order == "auto" else bridge_order == "project_first",
            )  # fmt: skip
            self.meta = nn.Parameter(torch.empty(depth, num_meta_tokens, width)) if num_meta_tokens else None
            self.head_norm = HeadNorm(side_dims[-1], eps=1e-6, affine=head_bn_affine)
            self.backbone.head = nn.Linear(side_dims[-1], task.num_labels)
        for module in (self.stages, self.bridge, self.backbone.head):
            module.apply(initialise)
        if self.meta is not None:
            for tokens in self.meta:
                nn.init.xavier_uniform_(tokens.data.unsqueeze(0))
        self._touch_blocks(drops, norms=tune_block_norms)

    def _touch_blocks(self, drops: Sequence[float], *, norms: bool) -> None:
        """What happens inside the ViT's blocks: trained norms, stochastic depth."""
        self.block_drops = nn.ModuleList()
        for index, rate in enumerate(drops):
            for name in ("norm1", "norm2") if norms else ():
                self.backbone.part("image", index, name).requires_grad_(True)
            for name in ("out", "mlp") if rate else ():
                drop = ResidualDrop(rate)
                self.block_drops.append(drop)
                self.backbone.part("image", index, name).register_forward_hook(drop.after)

    # ---- both networks
    def pyramid(self, batch: Batch) -> list[Tensor]:
        """The feature maps of all stages, (B, C_s, H / stride, W / stride): what a dense head takes."""
        maps, features = [], batch["pixel_values"]
        with self._frozen():
            state = self._with_meta(self.embed(batch, "image"))
        stage: Any
        for stage in self.stages:
            x, size = stage.entry(features)
            for block in stage.blocks:
                state, meta, tap, first = self._step(state)
                summary, injected = self._bridged(state, meta, tap, first, size)
                x = self._side(block, x, summary, injected if self.fine_injection else None)
            features = map_of(stage.norm(x), size)
            maps.append(features)
        return maps

    def features(self, batch: Batch) -> Tensor:
        """The last map's mean, through the BatchNorm: (B, C of the last stage)."""
        out: Tensor = self.head_norm(self.pyramid(batch)[-1].mean((2, 3)))
        return out

    def _frozen(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.needs_backbone_gradient else torch.no_grad()

    def _with_meta(self, state: State) -> State:
        """The meta tokens of the next block in front."""
        if self.meta is None:
            return state
        return self.backbone.prepend(state, self.meta[state.index].expand(state.hidden.shape[0], -1, -1))

    def _step(self, state: State) -> tuple[State, Tensor | None, Tensor, int]:
        """One ViT block: the state before the next one, the meta tokens' outputs, tokens that hold the patches, and
        where these begin.

        `efficient` reads the patches from the next block's input, which that block's norm keeps anyway, and copies
        the few meta outputs, so that nothing else of a block's output stays alive.
        """
        with self._frozen():
            state = self.backbone.step(state)
        output, first = state.hidden, self.backbone.special_tokens(state)
        if self.meta is None:
            return state, None, output, first
        count = self.meta.shape[1]
        meta = output[:, :count]
        if state.index < self.backbone.depth("image"):
            state = self._with_meta(self.backbone.drop_prefix(state, count))
        return (state, meta.clone(), state.hidden, first) if self.lean else (state, meta, output, first)

    def _bridged(
        self, state: State, meta: Tensor | None, tap: Tensor, first: int, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor | None]:
        """KV (B, R + 1, C_s) and E (B, H_s * W_s, C_s) of the block that has just run."""
        index, parts, fine = state.index - 1, [], None
        if meta is not None:
            parts.append(self.bridge.meta(index, meta))
        if self.fine_injection or self.global_token:
            grid = self.backbone.grid(state)
            assert grid is not None
            fine = self.bridge.fine(index, tap, first, grid, size)
        if self.global_token and fine is not None:
            parts.append(fine.mean(1, keepdim=True))
        return torch.cat(parts, dim=1), fine

    def _side(self, block: nn.Module, x: Tensor, summary: Tensor, injected: Tensor | None) -> Tensor:
        """A side block; under activation checkpointing only its inputs are kept."""
        if self.backbone.activation_checkpointing and self.training and torch.is_grad_enabled():
            out: Tensor = checkpoint(block, x, summary, injected, use_reentrant=False)
        else:
            out = block(x, summary, injected)
        return out


def refuse_impossible(
    backbone: Backbone, dims: Sequence[int], heads: Sequence[int], depths: Sequence[int] | None, meta: int, mean: bool
) -> list[int]:
    """The side blocks of every stage; raises UserError where the side network cannot be built."""
    name = backbone.config.get("name")
    if backbone.stacks[0] != "image":
        raise UserError(
            f"HST's side network has a stem on the image, and {name} reads none.",
            where="method, backbone",
            remedy="choose a ViT, or CLIP with backbone.tower=image",
        )
    blocks = backbone.depth("image")
    even = [blocks // len(dims) + (stage < blocks % len(dims)) for stage in range(len(dims))]
    wanted = even if depths is None else list(depths)
    if not len(dims) == len(heads) == len(wanted) or min(wanted) < 1 or sum(wanted) != blocks:
        raise UserError(
            f"{len(dims)} widths, {len(heads)} numbers of heads and the depths {wanted} do not fit the {blocks} blocks "
            f"of {name}: every block feeds one side block, every stage has at least one.",
            where="method.side_dims, method.side_heads, method.side_depths",
            remedy=f"give as many of each; depths that sum to {blocks}, or null",
        )
    wrong = [(d, h) for d, h in zip(dims, heads, strict=True) if d % h]
    if wrong:
        raise UserError(
            f"{wrong[0][1]} heads do not divide a width of {wrong[0][0]}.",
            where="method.side_dims, method.side_heads",
        )
    if not meta and not mean:
        raise UserError(
            "Without meta tokens and global token there is nothing to attend to.",
            where="method.num_meta_tokens, method.global_token",
            remedy="leave one of them on",
        )
    return wanted
