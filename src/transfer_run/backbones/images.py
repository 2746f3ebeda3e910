"""What a model of images asks of them, whatever its family."""

from __future__ import annotations

from torch import Tensor

from transfer_run.errors import UserError


def refuse_channels(images: Tensor, channels: int) -> None:
    """Images (B, C, H, W) with another number of channels than the model's first layer reads.

    Raises:
        UserError: naming both.
    """
    if images.shape[1] != channels:
        raise UserError(
            f"Images of {images.shape[1]} channels reached a model for {channels}.",
            where="backbone.image.channels, backbone.architecture.in_chans",
            remedy="set both to the same number",
        )
