"""General knowledge transfer: a trained classifier teaches another one what it knows more, and little is forgotten.

    batch ──> student ──────────────────────────────┐
          ├─> initial student (frozen) ─┐           │ T^2 KL(target || student)
          └─> teacher(s) (frozen) ──────┴─> target ─┘
                    of each sample: whoever is the more confident, of the true class or (unsupervised) of its own

Roth, Thede, Koepke, Vinyals, Henaff, Akata: "Fantastic Gains and Where to Find Them", ICLR 2024, arXiv 2310.17653.
`kl_dp` is the paper's method, the other approaches are those that it compares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.errors import UserError
from transfer_run.hardware.optimization import Optimization
from transfer_run.methods.averaging import copy_of, mix, set_weights
from transfer_run.methods.base import Context, Method
from transfer_run.methods.classifier import refuse_untrained, take_classifier
from transfer_run.methods.distillation.transfer import partition
from transfer_run.methods.distillation.transfer.contrast import Memory, relations
from transfer_run.methods.distillation.transfer.knowledge import Answers, answers
from transfer_run.methods.distillation.transfer.report import conclusions
from transfer_run.methods.teacher import Reader, reader_of
from transfer_run.task import ROWS, Task

ALPHA = {"kl": 1.0, "xekl": 0.5, "xekl_mcl": 0.68, "kl_dp": 1.0}
"""Weight of the divergence beside the labels' cross-entropy, where `kd.alpha` says nothing."""
CONTRASTIVE = ("cd", "crd")
DP = {"supervised": True, "strategy": "most_conf"}
KD = {"temperature": 1.0, "alpha": None, "topk": None, "negative_flips": None}
MCL = {"tau": 0.9999, "every": 2, "reset_fast": "epoch", "start": "initial"}
CD = {"ce": 0.1, "weight": 10.0, "kl": 0.0}
CRD = {"ce": 1.0, "weight": 0.8, "kl": 0.0, "width": 128, "negatives": 4096, "temperature": 0.07, "momentum": 0.5}
POOL = "answers.npz"


class KnowledgeTransfer(Method):
    """The run's backbone goes on as it is, with the classifier of its weights, and learns from `teachers`.

    Args:
        approach: `kl`, `xekl` (beside the labels), `xekl_mcl` (with slow weights), `kl_dp` (partitioned), `cd`, `crd`.
        dp: of kl_dp: `supervised` compares the confidence in the true class; `strategy` (`partition.target_of`).
        kd: `temperature` T; `alpha` weight of the divergence, null: the approach's own; `topk` of the teacher's classes
            that are compared, null: all; `negative_flips`: `skip` leaves out samples that only the student gets right,
            null: skip for xekl_mcl, `keep` elsewhere.
        xe: `input` of the cross-entropy: `logits`, or `probs`, which the released code puts through a second softmax.
        mcl: `tau` of the slow weights, `every` how many updates; `reset_fast` when training goes on from the slow ones;
            `start`: are the first slow weights the initial ones, or those after the first update, as released?
        cd, crd: weights of the labels (`ce`), of the contrast (`weight`) and of the divergence (`kl`); of crd the
            `contrast.Memory`.
        teachers: names of the sources that teach.
        multi: several teachers one after another (`sequential`), all at once (`parallel`), or each alone and the
            students averaged (`soup`); `teacher_order` of the first and last, by accuracy on the validation split.
        teacher_epochs: of each teacher, under `sequential` and `soup`.
        data: `normalize` pixels `per_model` or as the `student` reads them; `size`: the `student`'s, or `per_model`.
        classifier: `checkpoint`: that of the backbone's weights; `fresh`: a new head, to try things on random weights.
    """

    ships = "all"
    order: Tensor
    phase: Tensor

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        *,
        approach: Literal["kl", "xekl", "xekl_mcl", "kl_dp", "cd", "crd"] = "kl_dp",
        dp: Mapping[str, Any] = DP,
        kd: Mapping[str, Any] = KD,
        xe: Mapping[str, Any] = {"input": "logits"},
        mcl: Mapping[str, Any] = MCL,
        cd: Mapping[str, Any] = CD,
        crd: Mapping[str, Any] = CRD,
        teachers: Sequence[str] = ("teacher",),
        multi: Literal["sequential", "parallel", "soup"] = "sequential",
        teacher_order: Literal["asc", "desc", "random"] = "asc",
        teacher_epochs: int | None = None,
        data: Mapping[str, Any] = {"normalize": "per_model", "size": "student"},
        classifier: Literal["checkpoint", "fresh"] = "checkpoint",
    ) -> None:
        super().__init__(backbone, task)
        self.approach, self.dp, self.kd, self.xe, self.mcl = approach, dp, kd, xe, mcl
        self.contrast_settings = {"cd": cd, "crd": crd}.get(approach, {})
        self.names, self.multi, self.ordered_by, self.teacher_epochs = (
            list(teachers),
            multi,
            teacher_order,
            teacher_epochs,
        )
        self.data, self.classifier = data, classifier
        self.alpha = kd["alpha"] if kd["alpha"] is not None else ALPHA.get(approach, 1.0)
        self.skips = (kd["negative_flips"] or ("skip" if approach == "xekl_mcl" else "keep")) == "skip"
        self._refuse_bad_settings()
        self.train_backbone()
        self.reads_row_numbers = approach == "crd"
        self.couples_rows = approach == "cd" or self.skips
        if approach == "kl_dp" or self.phased:
            self.hold("initial", copy_of(self.plain()), changes=self.phased or classifier == "fresh")
        if approach == "xekl_mcl" or (self.phased and multi == "soup"):
            self.hold("average", copy_of(self.plain()), changes=True)
        self._order, self._phase = list(range(len(self.names))), 0
        if self.phased:
            device = next(backbone.model.parameters()).device
            self.register_buffer("order", torch.arange(len(self.names), device=device))
            self.register_buffer("phase", torch.zeros((), dtype=torch.int64, device=device))
            self.changing |= {"order", "phase"}
        self.epoch_steps: int | None = None

    # ---- what goes together
    @property
    def phased(self) -> bool:
        """Do several teachers teach one after another?"""
        return len(self.names) > 1 and self.multi != "parallel"

    @property
    def uses_labels(self) -> bool:
        return self.approach != "kl_dp" or self.dp["supervised"]

    def _refuse_bad_settings(self) -> None:
        several, strategy = len(self.names) > 1, self.dp["strategy"]
        bad: tuple[str, str, str] | None = None
        if not self.names or len(set(self.names)) < len(self.names):
            bad = "Each teacher is named once, and there is at least one.", "method.teachers", "method.teachers=[a,b]"
        elif self.approach == "kl_dp" and not self.dp["supervised"] and strategy in partition.OF_FLIPS:
            bad = (f"The strategy {strategy} asks who is right, which takes labels.", "method.dp.strategy",
                   "method.dp.strategy=most_conf, or method.dp.supervised=true")  # fmt: skip
        elif not self.uses_labels and self.alpha < 1:
            bad = ("Without labels there is no cross-entropy beside the divergence.", "method.kd.alpha",
                   "method.kd.alpha=1, or method.dp.supervised=true")  # fmt: skip
        elif several and self.approach not in ("kl", "xekl", "kl_dp"):
            bad = (f"approach={self.approach} learns from one teacher.", "method.teachers", "method.approach=kl_dp")
        elif several and self.multi == "parallel" and (self.approach, strategy) != ("kl_dp", "most_conf"):
            bad = ("Several teachers at once share the samples by confidence alone.", "method.multi=parallel",
                   "method.approach=kl_dp method.dp.strategy=most_conf, or method.multi=sequential")  # fmt: skip
        elif several and self.multi == "parallel" and self.kd["topk"] is not None:
            bad = ("The largest classes of which of the teachers?", "method.kd.topk", "method.kd.topk=null")
        elif self.phased and self.teacher_epochs is None:
            bad = ("Teachers that come one after another each have so many epochs.", "method.teacher_epochs",
                   f"method.teacher_epochs=10 trainer.max_epochs={10 * len(self.names)}")  # fmt: skip
        elif self.kd["topk"] is not None and self.kd["topk"] > self.task.num_labels:
            bad = (f"There are {self.task.num_labels} classes.", f"method.kd.topk={self.kd['topk']}", "null takes all")
        if bad:
            raise UserError(bad[0], where=bad[1], remedy=bad[2])

    # ---- the models beside the student
    def take_sources(self, load_source: Callable[[str], Method]) -> None:
        if self.classifier == "checkpoint":
            refuse_untrained(self)
        how = {"normalize": self.data["normalize"] == "per_model", "own_size": self.data["size"] == "per_model"}
        for number, name in enumerate(self.names):
            self.hold(f"teacher_{number + 1}", reader_of(self, load_source(name), name, **how))
        if self.approach == "crd":
            words = {key: self.contrast_settings[key] for key in ("width", "negatives", "temperature", "momentum")}
            widths = self.backbone.feature_width, self.readers[0].teacher.backbone.feature_width
            device = next(self.backbone.model.parameters()).device
            with torch.random.fork_rng(devices=[]):
                self.contrast = Memory(*widths, self.task.num_labels, **words, device=device)
            self.changing |= {"contrast"}

    @property
    def readers(self) -> list[Reader]:
        """All teachers; none in a model that was loaded to be used."""
        found = [self._modules.get(f"teacher_{number + 1}") for number in range(len(self.names))]
        return [each for each in found if isinstance(each, Reader)]

    def settle(self) -> None:
        """Drop all models beside the student; under xekl_mcl the slow weights are the student."""
        if self.approach == "xekl_mcl" and "average" in self._modules:
            set_weights(self.plain(), self.get_submodule("average"))
        for name in self.held | {"contrast"}:
            self._modules.pop(name, None)
        for name in self.changing:
            self._buffers.pop(name, None)
        self.held = self.changing = frozenset()

    def shipped(self) -> dict[str, Tensor]:
        """The student, all of it."""
        return {name: tensor for name, tensor in super().shipped().items() if name.startswith("backbone.")}

    # ---- before the first step
    def prepare(self, context: Context) -> None:
        """The classifier goes on; what student and teachers know before is kept, pair by pair."""
        self._begin(context)
        self.eval()
        if (split := _studied(context)) is not None:
            models = {"student": self, **dict(zip(self.names, self.readers, strict=True))}
            batches = context.work.follow("answers of the pool", context.batches(split, context.batch_size))
            answers(models, batches).write(context.folder / POOL)
        if self.phased:
            self.order.copy_(torch.tensor(self._ordered(context)))
            named = ", ".join(self.names[int(i)] for i in self.order)
            context.log(f"teachers one after another: {named}")

    def resume(self, context: Context) -> None:
        self._begin(context)

    def _begin(self, context: Context) -> None:
        """The copies are those of the student as it begins; the memory has a row for each of the data."""
        if self.classifier == "checkpoint":
            take_classifier(self)
        for name in self.held & {"initial", "average"}:
            set_weights(self.get_submodule(name), self.plain())
        if self.approach == "crd":
            labels = torch.as_tensor(context.data.labels("train"))
            if bool((labels < 0).any()):
                raise UserError(
                    f"{int((labels < 0).sum())} training rows have no label, and crd compares rows by their classes.",
                    where="method.approach=crd",
                    remedy="method.approach=cd or kl_dp, or leave these rows out (dataset.rows)",
                )
            self.contrast.open(labels, context.seed)

    def _ordered(self, context: Context) -> list[int]:
        """Numbers of the teachers in the order in which they teach."""
        numbers = list(range(len(self.names)))
        if self.ordered_by == "random":
            return torch.randperm(len(numbers), generator=torch.Generator().manual_seed(context.seed)).tolist()
        if "validation" not in context.sizes:
            raise UserError(
                "Teachers are ordered by their accuracy on the validation split, and there is none.",
                where=f"method.teacher_order={self.ordered_by}",
                remedy="method.teacher_order=random, or give the data one (dataset.split_shares.validation)",
            )
        batches = context.batches("validation", context.batch_size)
        right = answers(dict(zip(self.names, self.readers, strict=True)), batches).right.mean(1)
        return sorted(numbers, key=lambda i: float(right[i]) * (1 if self.ordered_by == "asc" else -1))

    def rehearse(self, batch: Batch) -> Sequence[str]:
        """One batch of the pass of all models."""
        self.eval()
        with torch.no_grad():
            kept = torch.stack([model(batch).float().softmax(-1) for model in (self, *self.readers)])
        del kept
        width = self.contrast_settings.get("width")
        return [f"crd's memories, 2 x {width} numbers for each training row"] if self.approach == "crd" else []

    # ---- the loss
    def forward(self, batch: Batch) -> Tensor:
        """Logits (B, C); under xekl_mcl the slow weights answer whenever it is not trained."""
        if not self.training and self.approach == "xekl_mcl" and "average" in self._modules:
            logits: Tensor = self.get_submodule("average")(batch)
            return logits
        return super().forward(batch)

    def loss(self, batch: Batch) -> Tensor:
        """What is trained; of a model in evaluation the task's own loss."""
        if not self.training:
            return super().loss(batch)
        if not self.readers:
            raise UserError(
                "There is no teacher to learn from.",
                where="sources.teacher",
                remedy="sources.teacher='method=full backbone=NAME dataset=NAME'",
            )
        return self.transfer_loss(batch)

    def transfer_loss(self, batch: Batch) -> Tensor:
        """The approach's loss; the frozen models first, while nothing is kept for backward."""
        if self.approach in CONTRASTIVE:
            return self._contrasted(batch)
        teachers = [reader(batch) for reader in self._active()]
        target = self._initial(batch)
        student = self(batch)
        found = self._divergence(student, target, teachers, batch["labels"] if self.uses_labels else None)
        if self.alpha == 1:
            return found
        spoken = student.float().softmax(-1) if self.xe["input"] == "probs" else student
        return self.alpha * found + (1 - self.alpha) * self.task_loss(spoken, batch["labels"])

    @torch.no_grad()
    def _initial(self, batch: Batch) -> Tensor | None:
        """Logits of the initial student, where it may teach."""
        if self.approach != "kl_dp":
            return None
        logits: Tensor = self.get_submodule("initial")(batch)
        return logits

    def _active(self) -> list[Reader]:
        """The teachers of this step."""
        return [self.readers[self._order[self._phase]]] if self.phased else self.readers

    def _divergence(
        self, student: Tensor, initial: Tensor | None, teachers: Sequence[Tensor], labels: Tensor | None
    ) -> Tensor:
        temperature, count = self.kd["temperature"], self.kd["topk"]
        if initial is not None and len(teachers) > 1:
            who = partition.most_confident(initial, teachers, labels)
            target = torch.stack([initial, *teachers])[who, torch.arange(len(who), device=who.device)]
        elif initial is not None:
            target, student = partition.target_of(self.dp["strategy"], student, initial, teachers[0], labels, count)
        else:
            kept = None
            if self.skips and labels is not None:
                kept = ~partition.flips(student, teachers[0], labels)[1]
            target, student = partition.largest(teachers[0], count, student)
            return partition.divergence(target, student, temperature, kept)
        return partition.divergence(target, student, temperature)

    def _contrasted(self, batch: Batch) -> Tensor:
        settings, labels = self.contrast_settings, batch["labels"]
        features, teacher = self.readers[0].both(batch)
        own = self.features(batch)
        student = self.backbone.head(own)
        if self.approach == "crd":
            contrast = self.contrast(own, features, batch[ROWS], labels)
        else:
            contrast = relations(own, features)
        total: Tensor = settings["ce"] * self.task_loss(student, labels) + settings["weight"] * contrast
        if settings["kl"]:
            total = total + settings["kl"] * partition.divergence(teacher, student, self.kd["temperature"])
        return total

    # ---- while it is trained
    def optimizers(self, config: Mapping[str, Any], epoch_steps: int) -> dict[str, Optimization]:
        """With every teacher the optimizer begins anew."""
        self.epoch_steps = epoch_steps
        return {"main": Optimization(self.parameter_groups(), restart_every=self.phase_steps)}

    @property
    def phase_steps(self) -> int | None:
        """Updates of one teacher; None where there is one phase."""
        return (
            self.teacher_epochs * self.epoch_steps if self.phased and self.teacher_epochs and self.epoch_steps else None
        )

    def start_fit(self, total_steps: int) -> None:
        if (each := self.phase_steps) is None:
            return
        if total_steps != each * len(self.names):
            raise UserError(
                f"{len(self.names)} teachers of {self.teacher_epochs} epochs each take {each * len(self.names)} steps, "
                f"and the run has {total_steps}.",
                where="trainer.max_epochs, trainer.max_steps, method.teacher_epochs",
                remedy=f"trainer.max_steps=null trainer.max_epochs={len(self.names) * (self.teacher_epochs or 1)}",
            )
        self._order, self._phase = self.order.tolist(), int(self.phase)

    def after_step(self, step: int) -> None:
        if self.approach == "xekl_mcl":
            self._interpolate(step)
        if self.phase_steps and step % self.phase_steps == 0:
            self._end_phase(step // self.phase_steps)

    def _interpolate(self, step: int) -> None:
        """The slow weights follow; updates are counted from 0 in each epoch."""
        slow, fast, settings = self.get_submodule("average"), self.plain(), self.mcl
        place = (step - 1) % self.epoch_steps if self.epoch_steps else step - 1
        if step == 1 and settings["start"] == "first_update":
            set_weights(slow, fast)
        if place % settings["every"] == 0:
            mix(slow, fast, settings["tau"])
            if settings["reset_fast"] == "every":
                set_weights(fast, slow)
        if settings["reset_fast"] == "epoch" and place + 1 == self.epoch_steps:
            set_weights(fast, slow)

    def _end_phase(self, done: int) -> None:
        """The next teacher finds the student as it is now, which it shall not forget, or (soup) as it was at first."""
        student, initial, left = self.plain(), self.get_submodule("initial"), done < len(self.names)
        if self.multi == "soup":
            average = self.get_submodule("average")
            mix(average, student, (done - 1) / done)
            set_weights(student, initial if left else average)
        else:
            set_weights(initial, student)
        self._phase = min(done, len(self.names) - 1)
        self.phase.fill_(self._phase)

    # ---- results
    def conclude(self, context: Context) -> dict[str, Any]:
        """What was gained, what was lost, and what every pair of the pool does not share."""
        split = _studied(context)
        if split is None or not (context.folder / POOL).is_file():
            return {}
        self.eval()
        after = answers({"student after": self}, context.batches(split, context.batch_size))
        before = Answers.read(context.folder / POOL)
        return conclusions(before, after, self.task.label_names, split, context.folder)


def _studied(context: Context) -> str | None:
    """The split that models are compared on."""
    return next((split for split in ("test", "validation") if split in context.sizes), None)
