"""Distiller: task-specific distillation as independent choices, each of which a sweep can search over.

    batch ──> augmentation ──> student ──> logits ── hard labels, teacher's logits
                    │             └── layers i ──┐ mapping i -> j, objective (MSE, cosine, ..., MI-alpha)
                    └────────> teacher (frozen) ─┴─ layers j, logits

    loss = w_hard CE(z_S, y) + w_soft L_pred(z_S, z_T) + w_inter sum_(i,j) L_inter(h_i, h_j)

He, Shi, Mueller, Zha, Li, Karypis, "Distiller: A Systematic Study of Model Distillation Methods in Natural Language
Processing", SustaiNLP 2021, arXiv 2109.11105, section 3. The teacher is a source run; projections and critics are
trained with the student and dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.errors import UserError
from transfer_run.methods.base import Context, Method
from transfer_run.methods.distillation.advice.record import facts_of, recorded
from transfer_run.methods.distillation.objectives import augmentation as augment_by
from transfer_run.methods.distillation.objectives.critics import Critic
from transfer_run.methods.distillation.objectives.information import BOUNDS, SMALLEST_BATCH, mi_bound, weight_of
from transfer_run.methods.distillation.objectives.mapping import adapted_weights, layer_pairs, transport_plan
from transfer_run.methods.distillation.objectives.objectives import ATTENTION, HIDDEN, PREDICTION, WIDTH_FREE
from transfer_run.methods.distillation.teachers.activations import (
    Activations,
    collect_activations,
    refuse_own_path,
    refuse_without_maps,
)
from transfer_run.methods.distillation.teachers.teachers import refuse_stranger, shared_tokenizer
from transfer_run.task import Task

KD = {"hard_weight": 0.1, "soft_weight": 1.0, "soft": "ce", "temperature": 8.0}
INTER = {
    "mapping": "skip", "feature": "hidden", "loss": "mse", "alpha": 0.9, "alpha_scale": "prob", "weight": 1.0,
    "tokens": "all", "first_share": 0.0, "emd_temperature": 5.0,
}  # fmt: skip
MI = {"critic": "transformer", "critic_layers": 1, "width": None, "separable": True}
AUGMENTATION = {"mixup_alpha": 0.4, "share": 0.15, "operations": ["delete", "swap"], "model": None, "mask_id": None}


class Distiller(Method):
    """A student, the run's backbone, fully trained under its labels, a teacher's predictions and a teacher's layers.

    Args:
        kd: weights of the labels (`hard_weight`) and of the teacher's predictions (`soft_weight`), the loss on them
            (`soft`: `ce` or `mse`) and its `temperature`.
        inter: the intermediate objective. `mapping` (`mapping.layer_pairs`), `feature` (`hidden` or `attention`),
            `loss` (`objectives.HIDDEN`, `objectives.ATTENTION`, or a bound of `information.BOUNDS`), `alpha` of
            `mi` and how it is read (`alpha_scale`), `weight`; `tokens` `first` compares position 0 alone;
            `first_share`: the share of the steps that train on this term alone, before the predictions' terms alone
            (0: all terms in all steps); `emd_temperature` of the layer weights under `mapping=emd`.
        mi: the critic of the bounds (`critics.Critic`); `width` null: the student's.
        augment: how rows are varied (`objectives/augmentation.py`); new rows carry the teacher's answer alone.
        augmentation: `mixup_alpha` of Beta(a, a); `share` of the tokens that an operation touches, `operations` of
            `random`; `model`, the folder of a masked language model for `contextual`, and its `mask_id` where its
            tokenizer has none.
    """

    ships = "all"

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        *,
        kd: Mapping[str, Any] = KD,
        inter: Mapping[str, Any] = INTER,
        mi: Mapping[str, Any] = MI,
        augment: Literal["none", "mixup", "random", "contextual", "backtranslation"] = "none",
        augmentation: Mapping[str, Any] = AUGMENTATION,
    ) -> None:
        super().__init__(backbone, task)
        self.train_backbone()
        self.kd, self.inter, self.mi, self.augmentation = dict(kd), dict(inter), dict(mi), dict(augmentation)
        self.augment = augment if self.kd["soft_weight"] or self.inter["weight"] else "none"
        self._refuse_bad_settings()
        self.aids = nn.ModuleDict()  # projections and critics: trained, not shipped
        self.pairs: list[tuple[int, int]] = []
        self.special: tuple[int, ...] = ()  # token ids that no augmentation touches; known from the first step on
        self.first_steps = 0.0
        self.couples_rows = self.compares_layers and self.inter["loss"] in BOUNDS
        self._facts: dict[str, Any] = {}

    def _refuse_bad_settings(self) -> None:
        inter = self.inter
        known = {*HIDDEN, *BOUNDS} if inter["feature"] == "hidden" else set(ATTENTION)
        if inter["loss"] not in known:
            raise UserError(
                f"{inter['loss']} is not defined on {inter['feature']} features.",
                where="method.inter.loss, method.inter.feature",
                nearest=sorted(known),
            )
        if not self.form.classes and self.kd["soft"] == "ce" and self.kd["soft_weight"]:
            raise UserError(
                "A single number has no distribution to take a cross-entropy of.",
                where="method.kd.soft=ce",
                remedy="method.kd.soft=mse",
            )
        if inter["feature"] == "attention" and self.compares_layers:
            refuse_without_maps(self.backbone)
        augment_by.refuse_impossible(self.augment, self.augmentation["operations"], self.backbone.family)

    @property
    def compares_layers(self) -> bool:
        return self.inter["mapping"] != "none" and self.inter["weight"] > 0

    def the_teacher(self) -> Method | None:
        """The frozen teacher, `self.teacher`; none in a model that was loaded to be used."""
        return self._modules.get("teacher")  # type: ignore[return-value]

    # ---- the teacher, and what is trained beside the student
    def take_sources(self, load_source: Callable[[str], Method]) -> None:
        """Hold the teacher and make the projections and critics that go between the two.

        Raises:
            UserError: there is no teacher, or it does not fit the student.
        """
        teacher = load_source("teacher")
        refuse_stranger(self, teacher)
        if self.compares_layers or self.augment == "mixup":
            refuse_own_path(teacher, "method.inter" if self.compares_layers else "method.augment=mixup")
        if self.compares_layers and self.inter["feature"] == "attention":
            refuse_without_maps(teacher.backbone)
        self.hold("teacher", teacher)
        device = next(self.backbone.model.parameters()).device
        if self.augment == "contextual":
            model = augment_by.masked_language_model(self.augmentation["model"], meta=device.type == "meta")
            self.hold("masked_lm", model)
        with torch.random.fork_rng(devices=[]):
            self._make_aids(teacher.backbone, device)
        self._facts = facts_of(self.backbone, teacher.backbone, self.task)

    def _make_aids(self, teacher: Backbone, device: torch.device) -> None:
        own, inter = self.backbone, self.inter
        student, other = own.stacks[0], teacher.stacks[0]
        if self.compares_layers:
            self.pairs = layer_pairs(inter["mapping"], inter["feature"], own.depth(student), teacher.depth(other))
        for i, j in self.pairs:
            widths = own.width(student), teacher.width(other)
            if inter["loss"] in BOUNDS and self._critic_name(i, j) not in self.aids:
                self.aids[self._critic_name(i, j)] = self._critic(*widths).to(device)
            elif self._projects and widths[0] != widths[1] and f"project_{i}" not in self.aids:
                self.aids[f"project_{i}"] = nn.Linear(*widths, device=device)
        if inter["mapping"] == "emd" and self.pairs:
            for name, depth in (("student_weights", own.depth(student)), ("teacher_weights", teacher.depth(other))):
                self._keep(name, torch.full((depth,), 1 / depth, device=device))
        if inter["first_share"] and self.pairs:
            self._keep("steps_done", torch.zeros((), device=device))

    @property
    def _projects(self) -> bool:
        """Does the loss compare feature by feature, so that widths must agree?"""
        return self.inter["feature"] == "hidden" and self.inter["loss"] not in (*BOUNDS, *WIDTH_FREE)

    def _keep(self, name: str, value: Tensor) -> None:
        """A buffer that an interrupted run needs to go on, and a finished one does not."""
        self.register_buffer(name, value)
        self.changing |= {name}

    def _critic_name(self, i: int, j: int) -> str:
        """A critic a pair; one for all under a transport plan, which has a pair for all layers with all."""
        return "critic" if self.inter["mapping"] == "emd" else f"critic_{i}_{j}"

    def _critic(self, student: int, teacher: int) -> Critic:
        width, heads = self.mi["width"] or student, self.backbone.heads(self.backbone.stacks[0])
        return Critic(
            self.mi["critic"], student, teacher, width=width, heads=1 if width % heads else heads,
            layers=self.mi["critic_layers"], separable=self.mi["separable"],
        )  # fmt: skip

    def start_fit(self, total_steps: int) -> None:
        """Find out what no plan needs to know: the tokenizer's special ids, and where the first stage ends."""
        teacher = self.the_teacher()
        assert teacher is not None
        self.first_steps = self.inter["first_share"] * total_steps
        if self.backbone.family == "vit":
            return
        tokenizer = shared_tokenizer(self.backbone, teacher.backbone)
        self.special = tuple(int(token) for token in tokenizer.all_special_ids)
        if self.augment == "contextual" and self.augmentation["mask_id"] is None:
            self.augmentation["mask_id"] = augment_by.mask_token(self.augmentation["model"], tokenizer.get_vocab())

    def after_step(self, step: int) -> None:
        if "steps_done" in self._buffers:
            self.steps_done.fill_(step)  # type: ignore[operator]

    def shipped(self) -> dict[str, Tensor]:
        """The student's backbone and head, all of it."""
        return {name: tensor for name, tensor in super().shipped().items() if name.startswith("backbone.")}

    def counted_parameters(self) -> int:
        return super().counted_parameters() - sum(p.numel() for p in self.aids.parameters())

    def settle(self) -> None:
        """Drop the teacher and everything that was trained beside the student."""
        for name in ("teacher", "masked_lm"):
            self._modules.pop(name, None)
        for name in self.changing:
            self._buffers.pop(name, None)
        self.held, self.changing, self.pairs = frozenset(), frozenset(), []
        self.aids = nn.ModuleDict()

    # ---- the loss
    def loss(self, batch: Batch) -> Tensor:
        """The three terms; of a model without a teacher, which is not trained any more, the labels' term."""
        held = self.the_teacher()
        if held is None:
            if self.training:
                raise UserError(
                    "There is no teacher to learn from.",
                    where="sources.teacher",
                    remedy="sources.teacher='method=full backbone=NAME dataset=NAME'",
                )
            return super().loss(batch)
        given, change = self._augmented(batch)
        feature, layers = self.inter["feature"], {i for i, _ in self.pairs}
        student = collect_activations(self, given, feature=feature, layers=layers, change=change)
        hard = self.task_loss(student.logits[: len(batch["labels"])], batch["labels"])
        total = self.kd["hard_weight"] * hard
        if not (self.kd["soft_weight"] or self.pairs):
            return total
        teacher = self._taught(held, given, change)
        if self.kd["soft_weight"]:
            predictions = PREDICTION[self.kd["soft"]](student.logits, teacher.logits, self.kd["temperature"])
            total = total + self.kd["soft_weight"] * predictions
        if not self.pairs:
            return total
        layered = self.inter["weight"] * self.intermediate(student, teacher)
        if "steps_done" not in self._buffers:
            return total + layered
        first = self.get_buffer("steps_done").lt(self.first_steps).to(total.dtype)
        return first * layered + (1 - first) * total

    @torch.no_grad()
    def _taught(self, teacher: Method, batch: Batch, change: Callable[[Tensor], Tensor] | None) -> Activations:
        if not self.pairs and change is None:
            return Activations(teacher(batch))  # whatever path it has
        return collect_activations(
            teacher, batch, feature=self.inter["feature"], layers={j for _, j in self.pairs}, change=change
        )

    def _augmented(self, batch: Batch) -> tuple[Batch, Callable[[Tensor], Tensor] | None]:
        settings = self.augmentation
        if self.augment == "none" or not self.training:
            return batch, None
        if self.augment == "mixup":
            return augment_by.mixup(batch, settings["mixup_alpha"])
        changed, special, share = batch, self.special, settings["share"]
        if self.augment == "contextual":
            mask_id = settings["mask_id"] or 0
            changed = augment_by.substitute(changed, special, share, self.get_submodule("masked_lm"), mask_id)
        else:
            if "swap" in settings["operations"]:
                changed = augment_by.swap(changed, special, share)
            if "delete" in settings["operations"]:
                pad = getattr(self.backbone.model.config, "pad_token_id", None) or 0
                changed = augment_by.delete(changed, special, share, pad)
        return augment_by.doubled(batch, changed), None

    def intermediate(self, student: Activations, teacher: Activations) -> Tensor:
        """sum over the mapped pairs of L_inter; under `emd` each weighted by its flow."""
        costs = [self._cost(student, teacher, i, j) for i, j in self.pairs]
        if self.inter["mapping"] != "emd":
            return torch.stack(costs).sum()
        by_pair = torch.stack(costs).reshape(len(self.student_weights), -1)  # type: ignore[arg-type]
        flow = transport_plan(by_pair.detach(), self.student_weights, self.teacher_weights)  # type: ignore[arg-type]
        if self.training:
            self._adapt(flow * (by_pair.detach() - by_pair.detach().min().clamp(max=0)))
        return (flow * by_pair).sum()

    def _adapt(self, spent: Tensor) -> None:
        for weights, each in ((self.student_weights, spent.sum(1)), (self.teacher_weights, spent.sum(0))):
            weights.copy_(adapted_weights(weights, each, self.inter["emd_temperature"]))  # type: ignore[operator, arg-type]

    def _cost(self, student: Activations, teacher: Activations, i: int, j: int) -> Tensor:
        inter, loss = self.inter, self.inter["loss"]
        s, t = student.layer(inter["feature"], i), teacher.layer(inter["feature"], j)
        mask = student.mask
        assert mask is not None
        if s.shape[:2] != t.shape[:2] and inter["feature"] == "hidden":
            raise UserError(
                f"The student has {s.shape[1]} positions and the teacher {t.shape[1]}, which cannot be compared.",
                where="method.inter.mapping",
                remedy="method.inter.mapping=none, or a teacher of the same patches",
            )
        if inter["feature"] == "attention":
            return ATTENTION[loss](s, t, mask)
        if inter["tokens"] == "first":
            s, t, mask = s[:, :1], t[:, :1], torch.ones_like(mask[:, :1])
        if loss not in BOUNDS:
            return HIDDEN[loss](self.aids[f"project_{i}"](s) if f"project_{i}" in self.aids else s, t, mask)
        return self._information(self.aids[self._critic_name(i, j)], s, t, mask)

    def _information(self, critic: nn.Module, student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
        """-I_alpha over all pairs of the batch."""
        scores, log_q = critic(student, teacher, mask)
        if len(scores) < SMALLEST_BATCH:  # the rest of an epoch
            return 0 * (scores.sum() + log_q.sum())
        if self.inter["loss"] == "nwj":
            log_q = torch.ones_like(log_q)
        alpha = weight_of(self.inter["loss"], self.inter["alpha"], self.inter["alpha_scale"])
        with torch.autocast(scores.device.type, enabled=False):
            return -mi_bound(scores, log_q, alpha)

    # ---- results
    def conclude(self, context: Context) -> dict[str, Any]:
        """The teacher's score, that of a student without teacher (`sources.baseline`), and the distillation ratio."""
        return recorded(self._facts, self.task, context)
