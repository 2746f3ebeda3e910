"""Tokens that only the side network sees: visual features of a vision-and-language batch (LST, "CLIP-T5")."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.errors import UserError
from transfer_run.methods.side_tuning.ladder.mixing import small_linear


class ExtraTokens(nn.Module):
    """Visual features -> tokens of the backbone's width, trained; the object order comes from the frozen token table.

        norm(W f) + norm(W_box [x1, x2, y1, y2, area]) + image[n] + table[V - 1 - i]

    Args:
        backbone: gives the width and, for the order of the objects, the last rows of its token table.
        features: F, width of `batch['extra_embeds']` (B, N, F).
        images: how many images an example may have (NLVR2: 2).
    """

    def __init__(self, backbone: Backbone, features: int, images: int = 2) -> None:
        super().__init__()
        width = backbone.width(backbone.stacks[0])
        with torch.device(next(backbone.parameters()).device):
            self.features = nn.Sequential(small_linear(features, width), nn.RMSNorm(width, eps=1e-6))
            self.boxes = nn.Sequential(small_linear(5, width), nn.RMSNorm(width, eps=1e-6))
            self.images = nn.Embedding(images, width)

    def forward(self, batch: Batch, table: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, N, D) and their mask (B, N), 1 = seen.

        Args:
            batch: `extra_embeds` (B, N, F); `extra_boxes` (B, N, 4), x1, x2, y1, y2 in 0..1, default: the whole image;
                `extra_images` (B, N) int64, the image each token belongs to, default 0; `extra_mask` (B, N), default 1.
            table: the backbone's token table (V, D).

        Raises:
            UserError: a batch without visual features.
        """
        if "extra_embeds" not in batch:
            raise UserError(
                "The batch has no visual features, `extra_embeds` (B, N, F).",
                where="method.extra_width",
                remedy="set method.extra_width=0, or choose a data set of images and text",
            )
        features = batch["extra_embeds"]
        rows, count = features.shape[:2]
        boxes = batch.get("extra_boxes")
        if boxes is None:
            boxes = features.new_tensor([0.0, 1.0, 0.0, 1.0]).expand(rows, count, 4)
        area = (boxes[..., 1] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 2])
        images = batch.get("extra_images")
        if images is None:
            images = torch.zeros(rows, count, dtype=torch.int64, device=features.device)
        order = table[table.shape[0] - count :].flip(0)
        tokens = self.features(features) + self.boxes(torch.cat([boxes, area.unsqueeze(-1)], -1))
        mask = batch.get("extra_mask")
        return tokens + self.images(images) + order, features.new_ones(rows, count) if mask is None else mask
