"""The side network of HST: a small pyramid at strides 4, 8, 16, 32 beside a vision transformer, fed by every block.

image ─ stem ─▶ x ─ block ─ block ─ norm ─▶ map 1 ─ downsample ─▶ x ─ block ... ─▶ map 4
                    ▲
             bridge(ViT block l): two summary tokens for cross-attention, one map to add
"""

from __future__ import annotations

import math

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from transfer_run.backbones.attention import split_heads

Size = tuple[int, int]


def tokens_of(features: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C), row by row."""
    return features.flatten(2).transpose(1, 2)


def map_of(tokens: Tensor, size: Size) -> Tensor:
    """(B, H * W, C) -> (B, C, H, W)."""
    return tokens.transpose(1, 2).unflatten(2, size)


class Entry(nn.Module):
    """What leads into a stage: the stem on the image (stride 4), or a convolution on the last stage's map (stride 2).

    Args:
        channels: of what comes in.
        width: C_s.
        stem: build the stem.
    """

    def __init__(self, channels: int, width: int, *, stem: bool) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width),
            nn.ReLU(inplace=True), nn.Conv2d(width, width, 2, stride=2),
        ) if stem else nn.Conv2d(channels, width, 3, stride=2, padding=1)  # fmt: skip
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor) -> tuple[Tensor, Size]:
        """(B, channels, H, W) -> tokens (B, H' * W', C_s) and (H', W')."""
        if isinstance(self.conv, nn.Conv2d) and tuple(features.shape[-2:]) == (1, 1):
            # Only the middle of the kernel meets the map. (PyTorch's bfloat16 convolution on a CPU would read undefined
            # memory in this case's backward: gradients that differ from call to call, some of them no numbers.)
            middle = self.conv.weight[..., 1, 1]
            features = F.linear(features[..., 0, 0], middle, self.conv.bias)[..., None, None]
        else:
            features = self.conv(features)
        return self.norm(tokens_of(features)), (features.shape[-2], features.shape[-1])


class CrossAttention(nn.Module):
    """Many side tokens ask few summary tokens: softmax(q k^T / sqrt(d)) v, projected; all four maps have biases.

    Args:
        width, heads: C_s and n_s.
        lean: multiply the maps of the queries and of the output into the few keys and values, as long as these are
            no wider than the tokens: q k^T = x (W_q^T k), so neither queries nor contexts are made or kept.
    """

    def __init__(self, width: int, heads: int, *, lean: bool) -> None:
        super().__init__()
        self.heads, self.lean, self.scale = heads, lean, (width // heads) ** -0.5
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, summary: Tensor) -> Tensor:
        """x (B, N, C), summary (B, M, C) -> (B, N, C)."""
        width = x.shape[-1]
        k, v = (split_heads(part(summary), width // self.heads) for part in (self.k, self.v))
        if self.lean and self.heads * summary.shape[1] <= width:
            return self._through_summary(x, k, v)
        weights = (split_heads(self.q(x), width // self.heads) @ k.transpose(-2, -1) * self.scale).softmax(-1)
        out: Tensor = self.proj((weights @ v).transpose(1, 2).flatten(2))
        return out

    def _through_summary(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """k, v (B, n, M, d); the (n M) pairs of a head and a summary token stand in one dimension."""
        split = (self.heads, -1)
        k = k * self.scale
        keys = torch.einsum("bnmd,ndc->bcnm", k, self.q.weight.unflatten(0, split))
        constant = torch.einsum("bnmd,nd->bnm", k, self.q.bias.unflatten(0, split))
        values = torch.einsum("bnmd,cnd->bnmc", v, self.proj.weight.unflatten(1, split))
        scores = torch.baddbmm(constant.flatten(1).unsqueeze(1), x, keys.flatten(2))
        weights = scores.unflatten(2, split).softmax(-1).flatten(2)
        return weights @ values.flatten(1, 2) + self.proj.bias


class SideBlock(nn.Module):
    """x + attention to the summary, + the injected map, + feed-forward; both norms come first and have eps 1e-6."""

    def __init__(self, width: int, heads: int, mlp_ratio: float, drop_path: float, *, lean: bool) -> None:
        super().__init__()
        inner = int(width * mlp_ratio)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attention = CrossAttention(width, heads, lean=lean)
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, summary: Tensor, injected: Tensor | None) -> Tensor:
        """x, injected (B, N, C), summary (B, M, C) -> (B, N, C)."""
        x = x + self.drop_path(self.attention(self.norm1(x), summary))
        if injected is not None:
            x = x + injected
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out


class Stage(nn.Module):
    """One level of the pyramid: entry, side blocks, closing norm (eps 1e-6)."""

    def __init__(self, channels: int, width: int, heads: int, mlp_ratio: float, drops: list[float], *, stem: bool,
                 lean: bool) -> None:  # fmt: skip
        super().__init__()
        self.entry = Entry(channels, width, stem=stem)
        self.blocks = nn.ModuleList(SideBlock(width, heads, mlp_ratio, drop, lean=lean) for drop in drops)
        self.norm = nn.LayerNorm(width, eps=1e-6)


class Bridge(nn.Module):
    """From a ViT block's output to a side block's inputs, D -> C_s (T-Bridge; "adaptive feature bridge" in v1).

    Args:
        width: D.
        widths: C_s of the stage that each ViT block feeds, one entry a block.
        stages: number of the stage that each ViT block feeds.
        shared: one map a stage, as in the paper; else one a block.
        meta: there are meta tokens, each block's with a norm of its own (eps 1e-5).
        project_first: map the patches before they are resized. Bilinear weights sum to 1, so the numbers are the
            same, and what the map keeps for backward is the ViT's grid and not the side stage's.
    """

    def __init__(self, width: int, widths: list[int], stages: list[int], *, shared: bool, meta: bool,
                 project_first: bool) -> None:  # fmt: skip
        super().__init__()
        self.place = stages if shared else list(range(len(stages)))
        self.maps = nn.ModuleList(nn.Linear(width, widths[self.place.index(i)]) for i in range(self.place[-1] + 1))
        self.norms = nn.ModuleList(nn.LayerNorm(w) for w in widths) if meta else None
        self.project_first = project_first

    def meta(self, index: int, tokens: Tensor) -> Tensor:
        """The meta tokens' outputs (B, R, D) of block `index` -> (B, R, C_s)."""
        assert self.norms is not None
        out: Tensor = self.norms[index](self.maps[self.place[index]](tokens))
        return out

    def fine(self, index: int, tokens: Tensor, first: int, grid: Size, size: Size) -> Tensor:
        """The patches of a block's output on the side stage's grid.

        Args:
            tokens: (B, T, D), patches from `first` on, which make up `grid`.
            size: (H_s, W_s).

        Returns:
            (B, H_s * W_s, C_s).
        """
        project = self.maps[self.place[index]]
        if not self.project_first:
            resized = F.interpolate(map_of(tokens[:, first:], grid), size, mode="bilinear", align_corners=False)
            out: Tensor = project(tokens_of(resized))
            return out
        patches: Tensor = project(tokens)[:, first:]
        if grid == size:
            return patches
        return tokens_of(F.interpolate(map_of(patches, grid), size, mode="bilinear", align_corners=False))


class HeadNorm(nn.BatchNorm1d):
    """The norm before the head, (B, C); a batch of one, which has no variance, is normed by the running statistics."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and len(input) == 1:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(input)


def initialise(module: nn.Module) -> None:
    """For `Module.apply`: linears truncated normal 0.02, convolutions N(0, 2 / fan out), biases zero."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)
