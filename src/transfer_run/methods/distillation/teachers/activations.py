"""One pass through a model that keeps what a distillation looks at: logits, hidden states, attention maps."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from transfer_run.backbones.attention import split_heads
from transfer_run.backbones.base import Backbone, Batch, State
from transfer_run.errors import UserError
from transfer_run.methods.base import Method


@dataclass
class Activations:
    """What one pass leaves.

    Attributes:
        logits: (B, num_labels).
        hidden: by number, 0 = the embedding's output: (B, L, d).
        attention: by block: (B, heads, L, L), rows sum to 1.
        mask: (B, L), 1 = token.
    """

    logits: Tensor
    hidden: dict[int, Tensor] = field(default_factory=dict)
    attention: dict[int, Tensor] = field(default_factory=dict)
    mask: Tensor | None = None

    def layer(self, feature: str, index: int) -> Tensor:
        return self.hidden[index] if feature == "hidden" else self.attention[index]


def collect_activations(
    method: Method,
    batch: Batch,
    *,
    feature: str = "hidden",
    layers: Collection[int] = (),
    change: Callable[[Tensor], Tensor] | None = None,
) -> Activations:
    """Run the model's own path and keep the named layers.

    Args:
        feature: `hidden` or `attention`; what `layers` are numbers of.
        change: applied to tap zero (B, L, d): embeddings of examples that exist as no text (mixup).
    """
    backbone = method.backbone
    state = method.embed(batch, backbone.stacks[0])
    if change is not None:
        state = state.with_hidden(change(state.hidden))
    hidden: dict[int, Tensor] = {}
    attention: dict[int, Tensor] = {}
    for index in range(backbone.depth(state.stack)):
        if feature == "hidden" and index in layers:
            hidden[index] = state.hidden[:, state.prefix :]
        if feature == "attention" and index in layers:
            attention[index] = attention_map(backbone, state)
        state = backbone.step(state)
    last = state.hidden[:, state.prefix :]
    if feature == "hidden" and state.index in layers:
        hidden[state.index] = last
    logits = backbone.head(backbone.pool(backbone.finish(state), state))
    mask = last.new_ones(last.shape[:2]) if state.mask is None else state.mask[:, state.prefix :]
    return Activations(logits, hidden, attention, mask)


def attention_map(backbone: Backbone, state: State) -> Tensor:
    """The attention probabilities (B, heads, L, L) of the block that `state` is about to enter, without dropout.

    Computed from the block's own projections, because fused attention kernels do not give theirs away.
    """
    stack, index = state.stack, state.index
    hidden = backbone.part(stack, index, "norm1")(state.hidden) if backbone.pre_norm else state.hidden
    width = backbone.width(stack) // backbone.heads(stack)
    attention = backbone.part(stack, index, "attention")
    q, k = (
        getattr(attention, f"{name}_norm", nn.Identity())(
            split_heads(backbone.project(stack, index, name, hidden), width)
        )
        for name in ("q", "k")
    )
    scores = q @ k.mT / width**0.5
    if state.mask is not None:
        scores = scores.masked_fill(state.mask[:, None, None, :] == 0, torch.finfo(scores.dtype).min)
    return scores.softmax(-1)


def refuse_own_path(method: Method, what: str) -> None:
    """Refuse a teacher whose layers are not those of its backbone (side networks, prompts that replace the path).

    Raises:
        UserError: naming what needs its layers.
    """
    plain = type(method).features is Method.features and type(method).run is Method.run
    if not plain:
        raise UserError(
            f"A teacher of method={method.backbone.config.get('name')}/{type(method).__name__} answers by a path of "
            f"its own, and {what} looks at its backbone's layers.",
            where="sources.teacher",
            remedy="method.inter.mapping=none uses its predictions alone; or a teacher of method=full",
        )


def refuse_without_maps(backbone: Backbone) -> None:
    """Refuse backbones whose attention is more than a softmax over scaled products of queries and keys.

    Raises:
        UserError: DeBERTa (disentangled attention), or a family without attention here.
    """
    if backbone.family not in ("encoder", "vit") or getattr(backbone, "relative", False):
        raise UserError(
            f"The attention maps of {backbone.config.get('name')} cannot be had from its queries and keys alone.",
            where="method.inter.feature=attention",
            remedy="method.inter.feature=hidden, or a BERT, RoBERTa or ViT backbone",
        )
