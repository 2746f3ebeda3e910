"""ZSCL: a CLIP learns task after task and is held, by distillation and by its weights, to what it knew before.

    task images ──> image encoder ─┐                 L_ce   task labels
    class texts ──> text encoder ──┴─ cosines * s ──────┘
    reference images ──> image encoder ──┐
                     └─> teacher ────────┤           L_img  softmax over the sentences   teacher: the initial CLIP
    reference sentences ──> teacher ─────┴─ cosines ──┴───  L_txt  softmax over the images
    weights ── to those at the task's start (WC); their mean over the task is what stays (WE)

    L = L_ce + weight (L_img + L_txt) + wc |theta - theta_start|^2

Zheng, Ma, Wang, Qin, Yue, You: "Preventing Zero-Shot Transfer Degradation in Continual Learning of Vision-Language
Models", ICCV 2023, arXiv 2303.06628, section 3; where paper and code differ, as the released code does it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfer_run.backbones.base import Batch
from transfer_run.backbones.families.clip import CLIP
from transfer_run.errors import UserError, nearest_names
from transfer_run.hardware.optimization import Optimization
from transfer_run.methods.averaging import copy_of, include, mix, set_weights
from transfer_run.methods.base import Context, Method
from transfer_run.methods.continual.sequence import losses
from transfer_run.methods.continual.sequence.accuracy import AccuracyMatrix
from transfer_run.methods.continual.sequence.counts import TaskCounts
from transfer_run.methods.continual.sequence.schedule import sequence_factor, task_factor, warmup_steps
from transfer_run.methods.forms.retrieval import gathered, precise, similarities
from transfer_run.task import Task, beside

PICTURE = "accuracy_matrix.png"
TEXTS_AT_ONCE = 256
"""Texts encoded together where no gradient is kept."""

DISTILL = {
    "image": True, "text": True, "image_image": False, "feature_mse": False, "weight": 1.0, "temperature": 2.0,
    "teacher": "initial",
}  # fmt: skip
COPIES = {"initial": "initial", "previous": "anchor", "source": "teacher"}
"""The model kept beside the trained one that each kind of teacher is."""


class ZSCL(Method):
    """Trains both encoders of a CLIP through a sequence of tasks; only the scale stays as it is.

    Args:
        distill: `image`, `text`: L_img and L_txt; `image_image`, `feature_mse`: the ablations; `weight` of their sum
            (0: none); `temperature` T; `teacher`: `initial`, `previous` (the model at the task's start, LwF), or
            `source` (the run that `sources.teacher` names).
        ce: `label_smoothing` of the task loss.
        we: `enabled`: the mean of start weights and snapshots every `every` steps is what a task leaves behind;
            `alpha`: after each snapshot that mean is mixed with the start weights (WE-WiSE); None: it is not.
        wc: `weight` of the squared distance to the weights at the task's start.
        wise: after a task theta <- alpha theta + (1 - alpha) of the model at its `start`, or the `initial` one; None:
            no mixing.
        lr_per_task: learning rates of single tasks, by name.
        memory_mode: `efficient` encodes the sentences once a task; `official` at every step, with equal losses.
    """

    backbone: CLIP
    ships = "all"  # so that it can serve as a backbone; until it is settled the accuracies found so far too

    def __init__(
        self,
        backbone: CLIP,
        task: Task,
        *,
        distill: Mapping[str, Any] = DISTILL,
        ce: Mapping[str, Any] = {"label_smoothing": 0.2},
        we: Mapping[str, Any] = {"enabled": True, "every": 100, "alpha": None},
        wc: Mapping[str, Any] = {"weight": 1.0},
        wise: Mapping[str, Any] = {"alpha": None, "towards": "start"},
        lr_per_task: Mapping[str, float] | None = None,
        memory_mode: Literal["efficient", "official"] = "efficient",
    ) -> None:
        super().__init__(backbone, task)
        _check(backbone, task, lr_per_task or {})
        self.distill, self.ce, self.we, self.wc, self.wise = distill, ce, we, wc, wise
        self.lr_per_task, self.memory_mode = dict(lr_per_task or {}), memory_mode
        self.backbone.head = nn.Identity()  # classes are texts
        self.requires_grad_(True)
        backbone.model.logit_scale.requires_grad_(False)
        self._hold_copies()
        self.counts: TaskCounts | None = TaskCounts(task.sequence, backbone.model.logit_scale.device)
        self.task_steps: int | None = None
        self.matrix: AccuracyMatrix | None = None
        self._context: Context | None = None
        self._sentences: Tensor | None = None
        self._classes: dict[tuple[int, ...], Tensor] = {}

    # ---- the models beside the trained one
    @property
    def distils(self) -> bool:
        forms = ("image", "text", "image_image", "feature_mse")
        return self.distill["weight"] > 0 and any(self.distill[form] for form in forms)

    def _hold_copies(self) -> None:
        teacher = self.distill["teacher"] if self.distils else None
        mixed = self.wise["towards"] if self.wise["alpha"] is not None else None
        if teacher == "initial" or mixed == "initial":
            self.hold("initial", copy_of(self.backbone))
        if teacher == "previous" or mixed == "start" or self.wc["weight"] > 0 or self._averages_with_start:
            self.hold("anchor", copy_of(self.backbone), changes=True)
        if self.we["enabled"]:
            self.hold("average", copy_of(self.backbone), changes=True)

    @property
    def _averages_with_start(self) -> bool:
        return self.we["enabled"] and self.we["alpha"] is not None

    def take_sources(self, load_source: Callable[[str], Method]) -> None:
        if self.distils and self.distill["teacher"] == "source":
            teacher = load_source("teacher").backbone
            if getattr(teacher, "stacks", ()) != self.backbone.stacks:
                raise UserError(
                    "The teacher is no CLIP with both towers.",
                    where="sources.teacher",
                    remedy='sources.teacher="method=zscl backbone=... dataset=sequence ..."',
                )
            self.hold("teacher", teacher)

    def train(self, mode: bool = True) -> ZSCL:
        """What was kept of the classes' texts is no longer true once training goes on."""
        self._classes.clear()
        super().train(mode)
        return self

    def settle(self) -> None:
        """Let go of the copies; the accuracies become the matrix that `conclude` reports."""
        if self.counts is not None:
            self.matrix = self.counts.matrix()
        for name in self.held:
            delattr(self, name)
        self.held = self.changing = frozenset()
        self.counts = self._sentences = self._context = None

    # ---- batch to prediction
    def forward(self, batch: Batch) -> Tensor:
        """(B, classes): scaled cosines of images and class texts, trained with one prompt, tested with all."""
        return self._logits(batch, self.class_features(batch["class_ids"]))

    def _logits(self, batch: Batch, classes: Tensor) -> Tensor:
        images = self.backbone.encode({"pixel_values": batch["pixel_values"]}, "image")
        logits = similarities(images, classes, self.scale)
        if "class_stage" not in batch or self.counts is None:
            return logits
        last = torch.maximum(self.counts.finished - 1, batch["stage"])  # classes of later tasks do not compete yet
        return logits.masked_fill(batch["class_stage"] > last, -torch.inf)

    @property
    def scale(self) -> Tensor:
        """s, that of the trained model in all losses; it never changes."""
        return self.backbone.model.logit_scale.exp()

    def class_features(self, ids: Tensor) -> Tensor:
        """Prompts (C, L), or (C, templates, L) of which the mean is taken -> (C, E) of length 1."""
        if ids.ndim == 2:
            return self.encode_texts(self.backbone, ids)
        features = self.encode_texts(self.backbone, ids.flatten(0, 1))
        return F.normalize(features.view(*ids.shape[:2], -1).mean(1), dim=-1)

    @staticmethod
    def encode_texts(model: CLIP, ids: Tensor) -> Tensor:
        """(N, L) -> (N, E) of length 1; a piece at a time where no gradient is kept."""
        pieces = [ids] if torch.is_grad_enabled() else ids.split(TEXTS_AT_ONCE)
        return torch.cat([model.encode({"input_ids": piece}, "text") for piece in pieces])

    def predict(self, batch: Batch) -> Tensor:
        """Class numbers (B,); in evaluation a task's class texts are encoded once."""
        if self.training or "stage" not in batch:
            return self(batch).argmax(-1)
        key = (int(batch["stage"]), *batch["class_ids"].shape)
        if key not in self._classes:
            self._classes[key] = self.class_features(batch["class_ids"])
        return self._logits(batch, self._classes[key]).argmax(-1)

    # ---- losses
    def loss(self, batch: Batch) -> Tensor:
        distilled = self.distillation(batch) if self.distils else None
        loss = F.cross_entropy(self(batch), batch["labels"], label_smoothing=self.ce["label_smoothing"])
        if distilled is not None:
            loss = loss + self.distill["weight"] * distilled
        if self.wc["weight"] > 0:
            anchor = self.get_submodule("anchor").parameters()
            loss = loss + self.wc["weight"] * losses.weight_constraint(self.backbone.parameters(), anchor)
        return loss

    def distillation(self, batch: Batch) -> Tensor:
        """L_img + L_txt (and the ablations) on the reference data; 0 where a task has no reference images yet.

        The current text encoder has no part in it: the sentences' features are the teacher's on both sides.
        """
        reference = beside(batch, "reference")
        if "input_ids" not in reference:
            raise UserError(
                "There is nothing to distil on.",
                where="dataset.reference",
                remedy="dataset=sequence with dataset.reference.images and .texts, or method.distill.weight=0",
            )
        if "pixel_values" not in reference:
            return batch["pixel_values"].new_zeros(())
        images = {"pixel_values": reference["pixel_values"]}
        with torch.no_grad():  # first, while nothing is kept for backward
            sentences = self._teacher_sentences(reference["input_ids"])
            before = gathered(self.teacher_model.encode(images, "image"))
        now = gathered(self.backbone.encode(images, "image"))
        a, b = (similarities(features, sentences, self.scale) for features in (now, before))
        terms, temperature = [], self.distill["temperature"]
        if self.distill["image"]:
            terms.append(losses.image_loss(b, a, temperature))
        if self.distill["text"]:
            terms.append(losses.text_loss(b, a, temperature))
        if self.distill["image_image"]:
            terms.append(losses.image_image_loss(before, now, self.scale, temperature))
        if self.distill["feature_mse"]:
            terms.append(F.mse_loss(precise(now), precise(before)))
        return torch.stack(terms).sum()

    @property
    def teacher_model(self) -> CLIP:
        """Whom the reference data's similarities are taken from."""
        teacher = getattr(self, COPIES[self.distill["teacher"]])
        assert isinstance(teacher, CLIP)
        return teacher

    def _teacher_sentences(self, ids: Tensor) -> Tensor:
        if self._sentences is None or self.memory_mode == "official":
            sentences = self.encode_texts(self.teacher_model, ids)
            if self.memory_mode == "official":
                return sentences
            self._sentences = sentences
        return self._sentences

    # ---- the sequence
    def optimizers(self, config: Mapping[str, Any], epoch_steps: int) -> dict[str, Optimization]:
        """An epoch is a task: warm-up and fall begin anew, around the task's own rate, and so do the moments."""
        self.task_steps = epoch_steps
        rise = warmup_steps(config["warmup"], epoch_steps)
        if self._context is not None and epoch_steps <= rise:
            self._context.log(
                f"a task has {epoch_steps} steps and the learning rate rises for {rise}: the model will hardly move "
                "(dataset.steps, optimizer.warmup)"
            )
        rates = [self.lr_per_task.get(name, config["lr"]) / max(config["lr"], 1e-30) for name in self.task.sequence]
        within = task_factor(config["schedule"], config["warmup"], epoch_steps)
        factor = sequence_factor(within, epoch_steps, rates)
        return {"main": Optimization(self.parameter_groups(), factor=factor, restart_every=epoch_steps)}

    def start_fit(self, total_steps: int) -> None:
        most = len(self.task.sequence) * (self.task_steps or total_steps)
        if total_steps > most:
            raise UserError(
                f"{total_steps} steps are more than the {most} of {len(self.task.sequence)} tasks.",
                where="trainer.max_steps, trainer.max_epochs",
                remedy="dataset.steps sets the steps of a task; an epoch is a task",
            )

    def after_step(self, step: int) -> None:
        """WE takes its snapshot; at the end of a task its weights are settled and all tasks are tested."""
        place = (step - 1) % self.task_steps if self.task_steps else step - 1
        if self.we["enabled"] and place % self.we["every"] == 0:
            include(self.get_submodule("average"), self.backbone, place // self.we["every"] + 1)
            if self._averages_with_start:
                mix(self.get_submodule("average"), self.get_submodule("anchor"), self.we["alpha"])
        if self.task_steps is not None and step % self.task_steps == 0:
            self._end_task()

    def _end_task(self) -> None:
        if self.we["enabled"]:
            set_weights(self.backbone, self.get_submodule("average"))
        if self.wise["alpha"] is not None:
            other = "initial" if self.wise["towards"] == "initial" else "anchor"
            mix(self.backbone, self.get_submodule(other), self.wise["alpha"])
        for name in sorted(self.changing):  # the next task starts from what was settled
            set_weights(self.get_submodule(name), self.backbone)
        self._sentences = None
        assert self.counts is not None
        self.counts.finished += 1
        self._evaluate(int(self.counts.finished))

    def prepare(self, context: Context) -> None:
        """Test every task before any training: the matrix begins with what CLIP can do by itself."""
        self._context = context
        self._evaluate(0)

    def rehearse(self, batch: Batch) -> Sequence[str]:
        with torch.no_grad():
            self.eval().predict(batch)
        return ()

    def resume(self, context: Context) -> None:
        self._context = context

    def _evaluate(self, row: int) -> None:
        """Fill a row of the matrix from the tasks' test rows; without a run (no data at hand) nothing."""
        if self._context is None or self.counts is None:
            return
        training = self.training
        self.eval()
        batches = self._context.batches("test", self._context.batch_size)
        self._context.log(self.counts.evaluate(row, batches, self.predict))
        self.train(training)

    # ---- results
    def conclude(self, context: Context) -> dict[str, Any]:
        """Transfer, average and last among the metrics; the matrix as rows, table and picture."""
        assert self.matrix is not None
        matrix = self.matrix
        matrix.draw(context.folder / PICTURE)
        continual = {
            "tasks": list(matrix.tasks), "before": _listed(matrix.before), "after": [_listed(r) for r in matrix.after],
            "by_task": matrix.by_task(),
        }  # fmt: skip
        return {"metrics": matrix.summary(), "table": matrix.table(), "continual": continual, "picture": PICTURE}


def _listed(values: Sequence[float] | np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 6) for value in values]


def _check(backbone: CLIP, task: Task, rates: Mapping[str, float]) -> None:
    if not task.sequence:
        raise UserError("zscl learns a sequence of tasks.", where="dataset", remedy="dataset=sequence")
    if backbone.stacks != ("image", "text"):
        raise UserError("zscl needs both towers of the CLIP.", where="backbone.tower", remedy="backbone.tower=both")
    unknown = next((name for name in rates if name not in task.sequence), None)
    if unknown is not None:
        raise UserError(
            f"There is no task {unknown!r}.",
            where="method.lr_per_task",
            nearest=nearest_names(unknown, task.sequence) or list(task.sequence),
        )
