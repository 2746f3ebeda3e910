"""VQT: Visual Query Tuning (Tu, Mai, Chao; CVPR 2023; arXiv 2212.03220).

    x ─────▶ frozen block m ─────▶ x ...                 no gradient, nothing kept
               │ keys, values
    P_m ─────▶ the same block's attention and feed-forward ─▶ Z_m     (queries only: nobody sees them)

    h = [f_0, Z_1, ..., Z_L], each part of length 1  ─▶  one linear head

A few trained queries summarise every frozen block; the final feature f_0 and all summaries are the head's input. As
the stream of tokens depends on nothing trained, only the queries' own activations and the keys and values they read
are kept for backward.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from transfer_run.backbones.base import Backbone, Batch, State
from transfer_run.backbones.precise import as_head
from transfer_run.errors import UserError
from transfer_run.methods.base import Context, Method
from transfer_run.methods.form import find_form
from transfer_run.methods.side_tuning.ladder.ladder import MemoryMode
from transfer_run.methods.side_tuning.parts.addons import build_addon
from transfer_run.methods.side_tuning.parts.summaries import Kind, build_combiner
from transfer_run.methods.work import as_loaded
from transfer_run.run_folder import HEAD_PREFIX
from transfer_run.task import Task

StageName = Literal["train", "compress", "featselect", "finetune"]
Addon = Literal["none", "vpt", "adaptformer"]
Final = Literal["pooled", "cls", "gap"]


class VQT(Method):
    """Visual query tuning: queries, combiner and head are trained; the backbone is frozen, its norms too.

    Args:
        num_query_tokens: T a block; 0 leaves linear probing.
        prompt_dropout: of the queries, each example with a mask of its own.
        normalize_feats: every part of h has length 1.
        combine: a block's part of h: all its summaries (`concat`), their mean (`pool`), a trained weighted sum
            (`weighted`); or the ablations' trained attention block over all parts (`attention`, `mlp_attention` with
            an MLP a layer).
        final_feature: f_0: `pooled`, what the backbone's own head would read; `cls`, the first token after the final
            norm; `gap`, the mean of the patches under a LayerNorm without weights, in the place of the final norm (the
            released code on MAE).
        stage: `train`; or, from the run `sources.trained`: `compress`, a fresh head under group lasso on frozen
            queries; `featselect`, a fresh head on the features that kept the longest columns; `finetune`, everything
            from there on.
        group_lasso: weight of the sum of the columns' lengths in the head, in stage `compress`.
        keep_frac: share of the features that `featselect` keeps.
        head_bias_init: where the head's biases start.
        addon: `vpt` or `adaptformer` changes the frozen stream, too: gradients then visit the backbone.
        vpt_tokens, vpt_deep: prompts a block; new ones in every block.
        adapter_width, adapter_scale: bottleneck and factor of AdaptFormer.
        addon_lr: learning rate of the add-on, which the queries' large one would ruin; None: the same.
        backbone_dropout: the frozen backbone's dropout is active in training.
        memory_mode: `official` runs queries and tokens through the blocks together, as the released code does: all
            of the stream is then kept for backward. Equal numbers.

    Raises:
        UserError: a task without labels, a backbone without a place for queries, parts that do not go together.
    """

    needs_backbone_gradient = False
    asks_inside = True

    def __init__(
        self, backbone: Backbone, task: Task, *, num_query_tokens: int = 1, prompt_dropout: float = 0.1,
        normalize_feats: bool = True, combine: Kind = "concat", final_feature: Final = "pooled",
        stage: StageName = "train", group_lasso: float = 1e-4, keep_frac: float = 1.0, head_bias_init: float = -4.595,
        addon: Addon = "none", vpt_tokens: int = 10, vpt_deep: bool = True, adapter_width: int = 64,
        adapter_scale: float = 0.1, addon_lr: float | None = 1e-3, backbone_dropout: bool = False,
        memory_mode: MemoryMode = "efficient",
    ) -> None:  # fmt: skip
        refuse_impossible(backbone, task, combine, normalize_feats, final_feature, stage, keep_frac)
        super().__init__(backbone, task, backbone_dropout=backbone_dropout)
        self.freeze_backbone()
        self.stack = stack = backbone.stacks[0]
        depth, width, bound = backbone.depth(stack), backbone.width(stack), query_bound(backbone, stack)
        self.dropout, self.final_feature = prompt_dropout, final_feature
        self.stage, self.group_lasso, self.addon_lr = stage, group_lasso, addon_lr
        self.lean = memory_mode == "efficient"
        self.together = not self.lean or addon != "none"
        self.needs_backbone_gradient = addon != "none"
        with torch.device(next(backbone.parameters()).device):
            queries = torch.empty(depth, num_query_tokens, width).uniform_(-bound, bound)
            self.queries = nn.Parameter(queries) if num_query_tokens else None
            self.combine = build_combiner(
                combine, depth, num_query_tokens, width, backbone.heads(stack), normalize=normalize_feats
            )
            self.addon = build_addon(
                addon, backbone, stack, tokens=vpt_tokens, deep=vpt_deep, bound=bound, dropout=prompt_dropout,
                inner=adapter_width, scale=adapter_scale,
            )  # fmt: skip
            self._fresh_head(keep_frac, head_bias_init)

    def _fresh_head(self, keep_frac: float, bias: float) -> None:
        """The head of this stage, and which features it reads; the stages that only fit it freeze all before it."""
        features, selects = self.combine.features, self.stage in ("featselect", "finetune")
        if selects:
            features = max(1, int(keep_frac * features))
        self.kept: Tensor | None
        self.register_buffer("kept", torch.arange(features) if selects else None)
        self.backbone.head = fresh_head(features, self.task, bias)
        if self.backbone.in_bf16:
            self.backbone.head.register_forward_pre_hook(as_head)
        if self.stage in ("compress", "featselect"):
            for p in self.extractor().values():
                p.requires_grad_(False)

    def extractor(self) -> dict[str, nn.Parameter]:
        """All that VQT adds but the head, by name: queries, combiner, add-on."""
        return {name: p for name, p in self.named_parameters() if not name.startswith("backbone.")}

    def shipped(self) -> dict[str, Tensor]:
        """The frozen queries of the later stages as well: they are in no other place."""
        state = self.state_dict()
        return super().shipped() | {name: state[name] for name in self.extractor()}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """No weight decay on the head's bias; the add-on with its own rate."""
        named = {name: p for name, p in self.named_parameters() if p.requires_grad}
        bias = named.pop(f"{HEAD_PREFIX}bias")
        addon = [p for name, p in named.items() if name.startswith("addon.")]
        rest = [p for name, p in named.items() if not name.startswith("addon.")]
        own = {} if self.addon_lr is None else {"lr": self.addon_lr}
        groups: list[dict[str, Any]] = [
            {"params": rest}, {"params": [bias], "weight_decay": 0.0}, {"params": addon, **own},
        ]  # fmt: skip
        return [group for group in groups if group["params"]]

    # ---- features
    def features(self, batch: Batch) -> Tensor:
        """h, (B, features)."""
        final, summaries = self.summaries(batch)
        combined: Tensor = self.combine(final, summaries)
        return combined if self.kept is None else combined[:, self.kept]

    def summaries(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """f_0 (B, D) and, block by block, Z_m (B, T, D)."""
        found = []
        with self._frozen():
            state = self.embed(batch, self.stack)
        while state.index < self.backbone.depth(self.stack):
            if self.addon is not None:
                state = self.addon.before(self.backbone, state)
            if self.queries is None:
                with self._frozen():
                    state = self.backbone.step(state)
                continue
            queries = self.queries[state.index].expand(state.hidden.shape[0], -1, -1)
            queries = F.dropout(queries, self.dropout, self.training)
            state, summary = (self._together if self.together else self._apart)(state, queries)
            found.append(summary)
        with self._frozen():
            return self._final(state), found

    def _frozen(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.together else torch.no_grad()

    def _apart(self, state: State, queries: Tensor) -> tuple[State, Tensor]:
        """The tokens without a graph, then the queries against the keys and values of what the block has read."""
        with torch.no_grad():
            after = self.backbone.step(state)
        if not torch.is_autocast_enabled(queries.device.type):
            queries = queries.to(state.hidden.dtype)  # backbone.load
        return after, self._recomputed(lambda asked: self.backbone.attend_queries(state, asked), queries)

    def _together(self, state: State, queries: Tensor) -> tuple[State, Tensor]:
        """Queries and tokens as one tensor, so that all of it carries gradient.

        Where every token sees every other one and no place matters, a block is its tokens asking for themselves, and
        one pass does for both. Elsewhere (causal masks, position bias) the tokens run apart, with gradient.
        """
        count = queries.shape[1]
        both = torch.cat([queries.to(state.hidden.dtype), state.hidden], dim=1)
        if state.stack == "image" or self.backbone.family == "encoder":

            def block(both: Tensor) -> Tensor:
                return self.backbone.attend_queries(state.with_hidden(both[:, count:]), both)

            both = self._recomputed(block, both)
            after = replace(state, hidden=both[:, count:], index=state.index + 1)
            # A summary that is kept as a view, as released, keeps all of the block's output.
            return after, both[:, :count].clone() if self.lean else both[:, :count]
        state = state.with_hidden(both[:, count:])
        return self.backbone.step(state), self.backbone.attend_queries(state, both[:, :count])

    def _recomputed(self, function: Callable[[Tensor], Tensor], given: Tensor) -> Tensor:
        """The function's result; under activation checkpointing only what goes in is kept."""
        if self.backbone.activation_checkpointing and self.training and torch.is_grad_enabled():
            out: Tensor = checkpoint(function, given, use_reentrant=False)
            return out
        return function(given)

    def _final(self, state: State) -> Tensor:
        """f_0, (B, D)."""
        if self.final_feature == "gap":
            mean = state.hidden[:, self.backbone.special_tokens(state) :].mean(1)
            return F.layer_norm(mean, mean.shape[-1:], eps=1e-6)
        last = self.backbone.finish(state)
        return last[:, state.prefix] if self.final_feature == "cls" else self.backbone.pool(last, state)

    # ---- loss and stages
    def loss(self, batch: Batch) -> Tensor:
        loss = super().loss(batch)
        return loss + self.group_lasso * self.column_norms().sum() if self.stage == "compress" else loss

    def column_norms(self) -> Tensor:
        """Lengths of the head's columns, one for each feature of h: (features,)."""
        head = self.backbone.head
        assert isinstance(head, nn.Linear)
        return head.weight.norm(dim=0)

    def prepare(self, context: Context) -> None:
        """Later stages take over from the run `sources.trained`.

        Raises:
            UserError: there is no such source, or it does not fit.
        """
        if self.stage == "train":
            return
        if "trained" not in context.sources:
            raise UserError(
                f"Stage {self.stage} goes on from a finished run, and none is named.",
                where="sources.trained",
                remedy='sources.trained="method=vqt ..." (or its identity or folder)',
            )
        self.take_over(context.load_source("trained"))
        context.log(f"stage {self.stage}: {self.column_norms().numel()} of {self.combine.features} features")

    def rehearse(self, batch: Batch) -> Sequence[str]:
        """Of the later stages the source, whose frozen backbone is this one."""
        if self.stage != "train":
            as_loaded(self, self.shipped().values())
        return ()

    @torch.no_grad()
    def take_over(self, source: Method) -> None:
        """Queries, combiner and add-on of `source`; to select, the features by its head; to finetune, its head too.

        Raises:
            UserError: the source is no VQT of the same shapes in the stage before.
        """
        before = {"compress": "train", "featselect": "compress", "finetune": "featselect"}[self.stage]
        own = self.extractor()
        if not isinstance(source, VQT) or source.stage != before:
            raise _unfit(f"is no run of method=vqt method.stage={before}")
        theirs = source.extractor()
        if {n: p.shape for n, p in own.items()} != {n: p.shape for n, p in theirs.items()}:
            raise _unfit("has other queries, another combiner or another add-on")
        for name, p in own.items():
            p.copy_(theirs[name])
        if self.kept is None:
            return
        if self.stage == "featselect":
            self.kept.copy_(source.column_norms().argsort(descending=True, stable=True)[: len(self.kept)])
            return
        if source.kept is None or source.kept.shape != self.kept.shape:
            raise _unfit("keeps another share of the features (method.keep_frac)")
        self.kept.copy_(source.kept)
        self.backbone.head.load_state_dict(source.backbone.head.state_dict())


def _unfit(why: str) -> UserError:
    return UserError(f"The source 'trained' {why}.", where="sources.trained", remedy="name the run of the stage before")


def query_bound(backbone: Backbone, stack: str) -> float:
    """v of U(-v, v), VPT's rule: Xavier over a patch's numbers, or the hidden width in text, and the hidden width."""
    width = backbone.width(stack)
    patches = [m for m in backbone.modules() if isinstance(m, nn.Conv2d)] if stack == "image" else []
    return math.sqrt(6 / ((patches[0].weight[0].numel() if patches else width) + width))


def fresh_head(features: int, task: Task, bias: float) -> nn.Linear:
    """Weights N(0, 2 / classes) (Kaiming, fan out); a class's bias as if its prior were 0.01, a value's 0."""
    head = nn.Linear(features, task.num_labels)
    nn.init.kaiming_normal_(head.weight, mode="fan_out")
    nn.init.constant_(head.bias, bias if find_form(task.form).classes else 0.0)
    return head


def refuse_impossible(
    backbone: Backbone, task: Task, combine: Kind, normalize: bool, final: Final, stage: StageName, keep: float
) -> None:
    """Raises UserError for what is not defined."""
    name, stack = backbone.config.get("name"), backbone.stacks[0]
    if reader := find_form(task.form).reader:
        raise UserError(
            f"VQT puts a linear head on summaries of the layers; a task of {task.form} is answered by a {reader}, "
            "which reads none.",
            where="method, dataset",
            remedy="choose a dataset of classification or regression",
        )
    backbone.check_queries(stack)
    if combine in ("attention", "mlp_attention") and not (normalize and stage == "train"):
        raise UserError(
            "Combining by attention is defined on normalised features, and its output is not compressed.",
            where="method.combine, method.normalize_feats, method.stage",
            remedy="set method.normalize_feats=true and method.stage=train, or choose combine=concat",
        )
    has_first = stack == "image" and getattr(backbone.model, "cls_token", True) is not None
    if (final == "gap" and stack != "image") or (final == "cls" and not has_first and backbone.family != "encoder"):
        raise UserError(
            f"{name} has no {'patches' if final == 'gap' else 'first token made'} to take the final feature from.",
            where="method.final_feature",
            remedy="set method.final_feature=pooled",
        )
    if stage in ("featselect", "finetune") and not 0 < keep <= 1:
        raise UserError("No feature is kept.", where="method.keep_frac", remedy="choose a share above 0, up to 1")
