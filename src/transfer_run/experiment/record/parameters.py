"""How many numbers a model has, and how many of them are trained."""

from __future__ import annotations

from torch import nn


def count_parameters(model: nn.Module) -> dict[str, float]:
    """Scalars in all and trained; tied parameters count once."""
    total = sum(p.numel() for p in model.parameters())
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"total": total, "trainable": trainable, "trainable_pct": round(100 * trainable / max(1, total), 4)}
