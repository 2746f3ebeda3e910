"""Side networks that read the taps of a frozen backbone all at once, not one after the other (UniPT, SHERL).

    tap zero ─┐
    tap 1    ─┤
    ...      ─┼─ side network ─▶ in the place of the backbone's last state (UniPT), or into its last blocks (SHERL)
    tap n    ─┘

Tap 0 is the embedding's output, tap l that of block l (counted from 1). Backward needs the taps, because the trained
maps read them, and nothing else of the forward pass: `recomputed` makes the rest again, a few rows at a time.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from transfer_run.backbones.base import Backbone, Batch, State
from transfer_run.errors import UserError, nearest_names
from transfer_run.methods.base import Method
from transfer_run.methods.form import find_form
from transfer_run.methods.side_tuning.ladder.ladder import LadderCache, LadderMemory, MemoryMode
from transfer_run.task import Task

PARTS = 4
"""Parts of a batch that are made again one by one in backward: a quarter of the side network is there at a time."""
Layers = Mapping[str, Sequence[int] | None]
ALL: Layers = {"encoder": None, "decoder": None}


class TapTuning(Method, ABC):
    """A frozen backbone and a side network on its taps; what the side network is, a subclass says.

    Args:
        memory_mode: `efficient` runs the frozen part without graph and keeps the taps alone for backward; `official`
            keeps what the released code keeps. Equal numbers.
    """

    needs_backbone_gradient = False  # late blocks on the side state are visited; the frozen stream's taps serve all

    def __init__(
        self, backbone: Backbone, task: Task, *, backbone_dropout: bool = True, memory_mode: MemoryMode = "efficient"
    ) -> None:
        super().__init__(backbone, task, backbone_dropout=backbone_dropout)
        self.freeze_backbone()
        self.memory_mode = memory_mode

    @property
    def lean(self) -> bool:
        """Make the side network's intermediate results again in backward?"""
        return self.memory_mode == "efficient"

    def frozen(self) -> AbstractContextManager[Any]:
        """For what no gradient has to pass."""
        return torch.no_grad() if self.lean else nullcontext()

    def open(self, batch: Batch, stack: str, memory: State | None = None) -> State:
        """The backbone's embedded state; of a side method's cache it takes its own part."""
        cache: Any = batch.get("cache")
        source = batch if cache is None else {**batch, "cache": cache.backbone}
        with self.frozen():
            return self.embed(source, stack, memory)

    def read(self, state: State, wanted: Collection[int], stop: int | None = None) -> tuple[dict[int, Tensor], State]:
        """Run the frozen blocks up to `stop`: the wanted taps (B, T, D) by number, and the state where it stopped.

        A tap nobody wants is freed as soon as the next block has read it.
        """
        taps = {0: in_autocast_dtype(state.hidden)} if 0 in wanted else {}
        with self.frozen():
            for after in self.backbone.taps(state, stop):
                state = after
                if state.index in wanted:
                    taps[state.index] = in_autocast_dtype(state.hidden)
        assert not state.hidden.requires_grad, "nothing below the taps may be trained: they would carry a graph"
        return taps, state

    def position(self, state: State) -> Tensor:
        """(B,): the token that the tower's global vector is taken from."""
        end: Tensor | None = state.context.get("end")
        zero = torch.zeros(len(state.hidden), dtype=torch.int64, device=state.hidden.device)
        return (zero if end is None else end) + state.prefix

    def anchor(self, state: State) -> Tensor:
        """a (B, E), the tower's own global vector; of two towers in the space of both."""
        with self.frozen():
            pooled = self.backbone.pool(self.backbone.finish(state), state)
            if not self.form.paired:
                return pooled
            projected: Tensor = self.backbone.projection(state.stack)(pooled)
            return projected

    def anchor_width(self, stack: str) -> int:
        """E."""
        if not self.form.paired:
            return self.backbone.width(stack)
        return int(self.backbone.projection(stack).get_parameter("weight").shape[0])

    # ---- the model
    @abstractmethod
    def last_hidden(self, batch: Batch, memory: LadderMemory | None) -> Tensor:
        """What the frozen language head reads (B, T, D)."""

    def decode(self, batch: Batch, memory: LadderMemory) -> Tensor:
        return self.backbone.language_logits(self.last_hidden(batch, memory))

    def language(self, batch: Batch) -> Tensor:
        return self.backbone.language_logits(self.last_hidden(batch, None))

    def new_cache(self) -> LadderCache:
        return LadderCache(self.backbone.new_cache(), None)


class SideNorm(nn.Module):
    """A trained norm of the kind that ends the backbone's stack, started at 1, and T5's dropout behind it."""

    def __init__(self, backbone: Backbone, stack: str) -> None:
        super().__init__()
        norm = backbone.final_norm(stack)
        if norm is None:
            raise UserError(
                f"The {stack} stack of {backbone.config.get('name')} ends without a norm that could be trained anew.",
                where="method.final_side_norm",
                remedy="method.final_side_norm=false",
            )
        self.norm = copy.deepcopy(norm).requires_grad_(True).to(torch.get_default_dtype())
        with torch.no_grad():
            for name, p in self.norm.named_parameters():
                p.fill_(0.0 if name.endswith("bias") else 1.0)
        self.dropout = nn.Dropout(getattr(backbone.model.config, "dropout_rate", 0.0) if backbone.family == "t5" else 0)

    def forward(self, hidden: Tensor) -> Tensor:
        normed: Tensor = self.dropout(self.norm(hidden))
        return normed


def recomputed(lean: bool, function: Callable[..., Tensor], *tensors: Tensor | None) -> Tensor:
    """`function(*tensors)`; if `lean`, by rows, and with the given tensors alone kept for backward.

    Args:
        function: treats every row of the batch by itself, draws no random numbers and has no batch norm.
        tensors: the first one (B, ...); others with as many rows are cut like it, the rest are passed whole.
    """
    if not (lean and torch.is_grad_enabled()):
        return function(*tensors)
    first = tensors[0]
    assert first is not None
    rows = first.shape[0]
    pieces = [
        (t,) * min(PARTS, rows) if t is None or t.shape[0] != rows else t.tensor_split(min(PARTS, rows))
        for t in tensors
    ]
    done = [
        checkpoint(function, *one, use_reentrant=False, preserve_rng_state=False) for one in zip(*pieces, strict=True)
    ]
    return torch.cat(done)


def in_autocast_dtype(tap: Tensor) -> Tensor:
    """Under autocast the tap in the precision in which the first map reads it: one copy is kept, the narrow one."""
    device = tap.device.type
    if not torch.is_autocast_enabled(device) or tap.dtype == torch.float64:
        return tap
    return tap.to(torch.get_autocast_dtype(device))


def widened(tap: Tensor, module: nn.Module) -> Tensor:
    """The tap in the precision of the map's weights, where the frozen part is stored in a narrower one."""
    return tap if torch.is_autocast_enabled(tap.device.type) else tap.to(next(module.parameters()).dtype)


def flat(maps: Tensor) -> Tensor:
    """Feature maps (B, C, H, W) as tokens (B, H W, C)."""
    return maps.flatten(2).transpose(1, 2)


def window(stage: Tensor, guide: Tensor) -> int:
    """R: how many cells of the stage, along one side, lie over one of the guide's.

    Raises:
        UserError: no whole number, or not the same one along both sides.
    """
    rates = {(s // g, s % g) for s, g in zip(stage.shape[-2:], guide.shape[-2:], strict=True)}
    rate, rest = next(iter(rates))
    if len(rates) > 1 or rest:
        raise UserError(
            f"Stages of {tuple(stage.shape[-2:])} and {tuple(guide.shape[-2:])} cells do not lie in windows.",
            where="backbone.image.size",
            remedy="choose a size that the network halves without a rest (multiples of 32)",
        )
    return rate


def conv_norm(inputs: int, outputs: int) -> nn.Sequential:
    """A 1x1 convolution and a batch norm: the narrowing map of a CNN's side network."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1), nn.BatchNorm2d(outputs))


def xavier(module: nn.Module) -> None:
    """Xavier-uniform matrices, as the side network of the encoder-decoder form starts."""
    for p in module.parameters():
        if p.dim() > 1:
            nn.init.xavier_uniform_(p)


def normal(module: nn.Module, std: float) -> None:
    """Linear maps N(0, std^2), biases 0."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=std)
            nn.init.zeros_(part.bias)


def chosen(backbone: Backbone, stack: str, layers: Layers, valid: Sequence[int], where: str) -> list[int]:
    """The numbers that `layers` names for the stack, ascending; all valid ones for null.

    Raises:
        UserError: a number that is not valid, or none at all.
    """
    key = "decoder" if stack == "decoder" and len(backbone.stacks) > 1 else "encoder"
    named = layers.get(key)
    wanted = sorted(set(valid if named is None else named))
    if not wanted or not set(wanted) <= set(valid):
        raise UserError(
            f"The {stack} stack of {backbone.config.get('name')} offers {valid[0]} to {valid[-1]}; "
            f"{where}.{key} names {wanted}.",
            where=f"{where}.{key}",
            remedy="name at least one that exists, or null for all",
        )
    return wanted


def divided(width: int, reduction: int, where: str = "method.reduction") -> int:
    """`width // reduction`.

    Raises:
        UserError: nothing is left.
    """
    if reduction > width:
        raise UserError(
            f"A width of {width} divided by {reduction} leaves nothing.", where=where, remedy="choose a smaller one"
        )
    return width // reduction


def variant_of(backbone: Backbone, task: Task, variant: str, known: Mapping[str, str]) -> str:
    """The variant that a run takes: the one asked for where it is possible, the paper's own for `auto`.

    Args:
        known: the method's variants, each with what it is.

    Raises:
        UserError: the variant does not exist, or is not possible on this backbone for this task.
    """
    language = find_form(task.form).writes
    own = {"cnn": "cnn", "clip": "pooled"}.get(backbone.family, "encdec" if language else "tokens")
    if variant == "auto":
        return own
    if variant not in known:
        raise UserError(
            f"There is no variant {variant!r}.", where="method.variant", nearest=nearest_names(variant, known) or known
        )
    needs = {
        "cnn": (backbone.family == "cnn", "the stages of a CNN"),
        "pooled": (backbone.family == "clip", "a tower that ends in one global vector (CLIP)"),
        "encdec": (language, "an encoder and a decoder, and a task of text to text"),
    }
    possible, what = needs.get(variant, (backbone.family != "cnn" and not language, "one stack of tokens"))
    if not possible:
        raise UserError(
            f"variant={variant} ({known[variant]}) reads {what}; {backbone.config.get('name')} "
            f"(family {backbone.family!r}) with a task of {task.form} has another form.",
            where="method.variant",
            remedy=f"method.variant={own}, or auto",
        )
    return variant


def settled(form: Mapping[str, Any], variant: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The variant's own settings with those over them that the user gave (null: not given).

    Raises:
        UserError: a setting that the variant does not have.
    """
    given = {key: value for key, value in given.items() if value is not None}
    for key in given:
        if key not in form:
            raise UserError(
                f"variant={variant} has no {key}.", where=f"method.{key}", remedy=f"method.{key}=null", nearest=form
            )
    return {**form, **given}
