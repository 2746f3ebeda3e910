"""LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning (Sung, Cho, Bansal; NeurIPS 2022).

    tap zero ─ first_down ─▶ s ─▶ g s + (1-g) down(tap) ─▶ side block ─▶ s ...  ─ final_norm ─ final_up ─▶ frozen head
                                           ▲
                            output of frozen block i, widths D -> D/r

A copy of the backbone, r times narrower, reads every kept block's output through a learned map and a gate and alone
makes the prediction. Gradients visit the side network only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfer_run.backbones.base import Backbone, Batch, State
from transfer_run.errors import UserError
from transfer_run.methods.base import Context
from transfer_run.methods.form import find_form
from transfer_run.methods.side_tuning.ladder.extra_tokens import ExtraTokens
from transfer_run.methods.side_tuning.ladder.fisher import FirstWeights, squared_gradients
from transfer_run.methods.side_tuning.ladder.ladder import Ladder, LadderTuning, MemoryMode, outputs, task_stacks
from transfer_run.methods.side_tuning.ladder.mixing import ScheduledGate, build_mix, small_linear
from transfer_run.methods.side_tuning.ladder.pruning import (
    Order,
    PruningChain,
    decision_matrices,
    first_parameter,
    first_parameters,
)
from transfer_run.methods.side_tuning.ladder.slim_blocks import side_blocks
from transfer_run.task import Task

Gate = Literal["learnable", "none", "one", "schedule-linear", "schedule-hyperbolic"]
Kept = Mapping[str, Sequence[int] | None]
ALL_LAYERS: Kept = {"encoder": None, "decoder": None}
TEACHER_TEMPERATURE = 0.1


class FinalUp(nn.Module):
    """h = W s + b, d' -> D; with `merge` a learned gate mixes the backbone's own last state in (`merge_last`)."""

    def __init__(self, up: nn.Linear, *, merge: bool, gate_init: float, temperature: float) -> None:
        super().__init__()
        self.up = up
        self.alpha = nn.Parameter(torch.full((), float(gate_init))) if merge else None
        self.temperature = temperature

    def forward(self, side: Tensor, last: Callable[[], Tensor]) -> Tensor:
        hidden: Tensor = self.up(side)
        if self.alpha is None:
            return hidden
        gate = torch.sigmoid(self.alpha / self.temperature)
        return gate * hidden + (1 - gate) * last()


class LST(LadderTuning):
    """Ladder Side-Tuning.

    Args:
        reduction_factor: r; every width of the side blocks is the backbone's divided by it, the heads stay.
        side_layers: kept layers, `encoder` (also the only stack of other families) and `decoder`; None: all.
        gate: `learnable`; `none` adds the ladder without a gate; `one` has no ladders (the side-tuning and
            network-pruning ablations); `schedule-*` moves one value with the epochs.
        gate_init, gate_temperature: alpha and T in g = sigmoid(alpha / T).
        ladder_bias: biases in first_down, down and final_up.
        fuse_after: mix the ladder in after the side block instead of before it.
        merge_last: a learned gate mixes the backbone's last state into the output.
        lambda_distill: weight of the divergence from the backbone's own predictions (language tasks).
        init: where side blocks start: `fisher` and `magnitude` prune the backbone, `random` uses the library's rule.
        init_samples: samples of the Fisher pass.
        prune_order: order of kept rows, `ascending` or as `released`.
        prune_compat: score rows by logarithms as the released BART code does, which keeps the least important ones.
        backbone_dropout: the frozen model's dropout is active in training, as in the paper.
        extra_width: width of visual features in `extra_embeds` that only the side encoder sees (the vision-and-language
            variant; the data's `feature_width`); 0: none.
        memory_mode: `official` keeps for backward what the released code keeps. Equal numbers.

    Raises:
        UserError: layers that do not exist, a reduction factor that leaves no valid width, extra tokens or a
            distillation where they are not defined.
    """

    def __init__(
        self, backbone: Backbone, task: Task, *, reduction_factor: int = 8, side_layers: Kept = ALL_LAYERS,
        gate: Gate = "learnable", gate_init: float = 0.0, gate_temperature: float = 0.1, ladder_bias: bool = True,
        fuse_after: bool = False, merge_last: bool = False, lambda_distill: float = 0.0,
        init: Literal["fisher", "magnitude", "random"] = "fisher", init_samples: int = 1024,
        prune_order: Order = "ascending", prune_compat: bool = False, backbone_dropout: bool = True,
        extra_width: int = 0, memory_mode: MemoryMode = "efficient",
    ) -> None:  # fmt: skip
        refuse_impossible(backbone, task, lambda_distill=lambda_distill, extra_width=extra_width, init=init)
        if prune_compat and init == "magnitude":
            raise UserError(
                "The released scores are logarithms of importances, and weights may be negative.",
                where="method.prune_compat=true, method.init=magnitude",
                remedy="method.init=fisher, or method.prune_compat=false",
            )
        lean = memory_mode == "efficient"

        def ladder(stack: str) -> Ladder:
            width = backbone.width(stack)
            kept = kept_layers(backbone, stack, side_layers)
            steps = side_blocks(backbone, stack, kept, reduction_factor, eager=not lean)
            linear = partial(small_linear, width, width // reduction_factor, bias=ladder_bias)
            maps = {} if gate == "one" else {index: linear() for index in kept}
            mix = build_mix(gate, backbone.depth(stack), init=gate_init, temperature=gate_temperature, lean=lean)
            return Ladder(linear(), maps, mix, steps, fuse_after=fuse_after)

        def up(width: int) -> FinalUp:
            linear = small_linear(width // reduction_factor, width, bias=ladder_bias)
            return FinalUp(linear, merge=merge_last, gate_init=gate_init, temperature=gate_temperature)

        with torch.device(next(backbone.parameters()).device):
            ladders = {stack: ladder(stack) for stack in task_stacks(backbone, task)}
            output = outputs(backbone, task, up)
        super().__init__(
            backbone, task, ladders, output, reads_last=merge_last or lambda_distill > 0,
            backbone_dropout=backbone_dropout, memory_mode=memory_mode,
        )  # fmt: skip
        self.extra = ExtraTokens(backbone, extra_width) if extra_width else None
        self.reduction_factor, self.lambda_distill = reduction_factor, lambda_distill
        self.init, self.init_samples = init, init_samples
        self.prune_order, self.prune_compat = prune_order, prune_compat

    def begin(self, ladder: Ladder, tap_zero: Tensor, state: State, batch: Batch) -> State:
        """s_0; in the vision-and-language variant the visual tokens stand behind the text of the side encoder."""
        if self.extra is None or state.stack != "encoder":
            return super().begin(ladder, tap_zero, state, batch)
        tokens, seen = self.extra(batch, first_parameter(self.backbone))
        rate = ladder.steps.input_dropout
        both = torch.cat([tap_zero, F.dropout(tokens, rate, self.training)], dim=1)
        mask = state.mask if state.mask is not None else seen.new_ones(tap_zero.shape[:2])
        side = super().begin(ladder, both, state, batch)
        context = side.context | {"extra": tokens.shape[1]}
        return replace(side, mask=torch.cat([mask, seen.to(mask.dtype)], dim=1), context=context)

    def loss(self, batch: Batch) -> Tensor:
        if not self.lambda_distill:
            return super().loss(batch)
        logits, state = self.spoken(batch)
        with torch.no_grad():
            teacher = self.backbone.language_logits(self.backbone.finish(state))
        # As released: only the teacher is sharpened, the sum over positions is divided by the batch.
        divergence = F.kl_div(
            logits.float().log_softmax(-1), (teacher.float() / TEACHER_TEMPERATURE).log_softmax(-1),
            reduction="batchmean", log_target=True,
        )  # fmt: skip
        return self.task_loss(logits, batch["labels"]) + self.lambda_distill * divergence

    def start_epoch(self, epoch: int, epochs: int) -> None:
        for ladder in self.ladders.values():
            if isinstance(ladder.mix, ScheduledGate):
                ladder.mix.start_epoch(epoch, epochs)

    # ---- initialisation from the backbone
    def prepare(self, context: Context) -> None:
        """Cut the side blocks out of the backbone: the paper's structural weight initialisation (`pruning.py`).

        Fisher: evaluation mode, one sample a backward pass, float32, loss of the true label on the plain backbone
        (outside language tasks under the fresh head, as in the paper's BART runs).

        Raises:
            UserError: a Fisher pass without training data.
        """
        if self.init == "random":
            return
        importance = None
        if self.init == "fisher":
            context.log(f"importance of the backbone's weights: Fisher pass over up to {self.init_samples} samples")
            total = min(self.init_samples, context.sizes.get("train", self.init_samples))
            importance = self.fisher(context.work.follow("Fisher pass", context.batches("train", 1), total))
            if not any(bool(t.any()) for t in importance.values()):
                raise UserError(
                    "The Fisher pass saw no gradient: the training split is empty or its labels are all ignored.",
                    where="method.init=fisher",
                    remedy="check the data, or set method.init=magnitude",
                )
        self.cut_from_backbone(importance)
        context.log(f"side blocks cut out of the backbone by {self.init}")

    def rehearse(self, batch: Batch) -> Sequence[str]:
        """One sample's pass of the Fisher estimate, its sums included, then the cutting."""
        importance = None
        if self.init == "fisher":
            importance = self.fisher(iter([self.form.example(batch, 0)]))
        if self.init != "random":
            self.cut_from_backbone(importance, "ascending")  # the released order is read from values
        return ()

    def fisher(self, batches: Iterator[Batch]) -> dict[str, Tensor]:
        """Importance of what the pruning decides on, by parameter name of the backbone (`ladder/fisher.py`).

        Args:
            batches: of one sample each.
        """
        training = self.training
        plain = self.plain().eval()
        firsts = first_parameters(self.backbone, self.ladders)
        matrices = decision_matrices(self.backbone, self.ladders)
        if self.prune_compat:  # logarithms of single entries: sums over them do not do
            total = squared_gradients(plain.loss, {**firsts, **matrices}, batches, self.init_samples)
        else:
            channels = {name: FirstWeights(p, self.backbone) for name, p in firsts.items()}
            total = squared_gradients(plain.loss, matrices, batches, self.init_samples, channels)
        self.train(training)
        return total

    @torch.no_grad()
    def cut_from_backbone(self, importance: Mapping[str, Tensor] | None, order: Order | None = None) -> PruningChain:
        """Load pruned weights into every side block and final side norm; returns the chain with its decisions."""
        chain = PruningChain(
            self.backbone, importance, self.reduction_factor, order=order or self.prune_order, logs=self.prune_compat
        )
        for stack in self.ladders:
            if stack != "decoder":  # which goes on where the encoder ends
                chain.start(stack)
            steps = self.side_steps(stack)
            steps.inherit(self.backbone, stack, chain.columns)
            for index in range(self.backbone.depth(stack)):
                pruned = chain.block(stack, index)  # dropped layers too: the chain passes through them
                if index in steps.kept:
                    steps.blocks[str(index)].load_state_dict(pruned, strict=False)
            norm = self.backbone.final_norm(stack)
            if steps.norm is not None and norm is not None:
                steps.norm.load_state_dict(chain.norm(norm))
        return chain


def refuse_impossible(backbone: Backbone, task: Task, *, lambda_distill: float, extra_width: int, init: str) -> None:
    """Raises UserError for a distillation, extra tokens or a Fisher pass where they are not defined."""
    form = find_form(task.form)
    if init == "fisher" and form.paired:
        raise UserError(
            "The Fisher pass takes one sample at a time, and a pair alone has nothing to be told from.",
            where="method.init=fisher",
            remedy="method.init=magnitude, or random",
        )
    if lambda_distill and not form.speaks:
        raise UserError(
            "Distillation compares the side network with the backbone's own predictions, which a new head lacks.",
            where="method.lambda_distill",
            remedy="set method.lambda_distill=0, or choose a language task",
        )
    if extra_width and backbone.family != "t5":
        raise UserError(
            f"Extra tokens are defined for the encoder of T5, not for {backbone.config.get('name')}.",
            where="method.extra_width",
            remedy="set method.extra_width=0",
        )


def kept_layers(backbone: Backbone, stack: str, side_layers: Kept) -> list[int]:
    """The kept layer indices of a stack, ascending.

    Raises:
        UserError: an index outside the stack, or none at all.
    """
    key = "decoder" if stack == "decoder" and len(backbone.stacks) > 1 else "encoder"
    depth, wanted = backbone.depth(stack), side_layers.get(key)
    kept = sorted(set(range(depth) if wanted is None else wanted))
    if not kept or kept[0] < 0 or kept[-1] >= depth:
        raise UserError(
            f"The {stack} of {backbone.config.get('name')} has layers 0 to {depth - 1}; kept are {kept}.",
            where=f"method.side_layers.{key}",
            remedy="name at least one layer that exists, or null for all",
        )
    return kept
