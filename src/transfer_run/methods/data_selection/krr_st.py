"""KRR-ST: unlabelled images distilled into a few pairs of an image and a representation, for transfer.

    real image, augmented ──┬─> teacher (frozen) ──────────────> Y ─┐
                            └─> student l of a pool ──> F_r ─┐      ├─> mean squared error ──> X_s, Y_s
    synthetic X_s ────────────> the same student ──> F_s ────┴─> kernel ridge regression on Y_s
    a fresh network learns X_s -> Y_s ──> weights/ ──> backbone.weights=run:... of a later run, on any target

Lee, Lee, Ko, Kawaguchi, Lee, Hwang, "Self-Supervised Dataset Distillation for Transfer Learning", ICLR 2024,
arXiv 2310.06511. The synthetic images begin as pixels in 0..1 and are seen by students as they are; real images are
normalised, and augmented as `dataset.augment` says, the same way for teacher and student.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import repeat as again
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.backbones.layer_groups import reinitialize, stages
from transfer_run.data.images.synthetic import Synthetic
from transfer_run.errors import UserError
from transfer_run.files import written_whole
from transfer_run.hardware.steps import Steps
from transfer_run.methods.base import Context, Method
from transfer_run.methods.data_selection.ridge.pool import Pool, features, regress
from transfer_run.methods.data_selection.ridge.regression import kernel_loss
from transfer_run.methods.data_selection.synthetic import export
from transfer_run.methods.data_selection.synthetic.initial import images_of
from transfer_run.methods.data_selection.synthetic.report import seed_of
from transfer_run.methods.judging import Judging
from transfer_run.methods.work import Rehearsed, Work
from transfer_run.task import Task

POOL = {
    "size": 10, "max_steps": 1000, "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3, "keep_counter_bug": False,
}  # fmt: skip
OUTER = {"lr": 1e-4, "steps": 160_000, "final_lr_factor": 1e-3, "clip": 0.0}
PRETRAIN = {"epochs": 1000, "batch_size": 256, "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}
AT_EACH_END = 20
"""Outer steps whose mean loss tells how the distillation began and ended."""


class KrrSt(Judging):
    """Distils the run's data with a teacher's representations; makes the weights of a network that learned the pairs.

    Args:
        num_images: m, pairs of an image and a representation.
        pool: `size` students, `max_steps` of each before it begins anew, SGD's settings; `keep_counter_bug`: as
            released (see `ridge/pool.py`).
        outer: AdamW without decay: `lr`, falling linearly to `final_lr_factor` of it in `steps`; `clip` the
            gradients' norm, 0: not. Its batches are of `dataset.batch_size`.
        ridge: lambda's share of the kernel's trace.
        init_normalised: the images begin normalised, as real ones are seen.
        pretrain: SGD of the fresh network on the pairs; `epochs` 0: none.
    """

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        *,
        num_images: int = 1000,
        pool: Mapping[str, Any] = POOL,
        outer: Mapping[str, Any] = OUTER,
        ridge: float = 1e-6,
        init_normalised: bool = False,
        pretrain: Mapping[str, Any] = PRETRAIN,
    ) -> None:
        super().__init__(backbone, task)
        self.num_images, self.ridge, self.init_normalised = num_images, ridge, init_normalised
        self.pool, self.outer, self.pretrain = {**POOL, **pool}, {**OUTER, **outer}, {**PRETRAIN, **pretrain}

    def take_sources(self, load_source: Callable[[str], Method]) -> None:
        """The teacher, which sees the very pixels that the students see, and the pool's networks.

        Raises:
            UserError: it reads images of another size or normalisation.
        """
        teacher = load_source("teacher")
        own, other = self.backbone.config["image"], teacher.backbone.config.get("image") or {}
        unlike = [key for key in ("size", "channels", "mean", "std") if own[key] != other.get(key)]
        if unlike:
            raise UserError(
                f"Teacher and students see the same pixels, and the {', '.join(unlike)} of their images differ.",
                where=f"sources.teacher, backbone={self.backbone.config.get('name')}",
                remedy=f"backbone.image.{unlike[0]}={other.get(unlike[0])}, or another teacher",
            )
        self.hold("teacher", teacher)
        self.hold("students", nn.ModuleList(self._student() for _ in range(int(self.pool["size"]))))

    @property
    def width(self) -> int:
        """d_h, of the teacher's representations."""
        return int(self.source.backbone.feature_width)

    # ---- the work
    def prepare(self, context: Context) -> None:
        """The first pairs, the pool, the outer steps, a fresh network on the pairs."""
        rows = np.random.default_rng(seed_of(context.seed, "first images")).permutation(context.sizes["train"])
        if self.num_images > len(rows):
            raise UserError(
                f"{self.num_images} synthetic images begin from as many real ones, and there are {len(rows)}.",
                where=f"method.num_images={self.num_images}",
                remedy=f"method.num_images={len(rows)} or fewer",
            )
        chosen = rows[: self.num_images]
        device = next(self.backbone.parameters()).device
        real = images_of(context.data, chosen).to(device)
        images, targets = self.first_pairs(real)

        def batches(first: int) -> Iterator[Batch]:
            return context.endless("train", context.batch_size, first, augment=True)

        pool = self._warm_pool(images, targets, context.seed, context.work)
        images, targets, losses = self._distil(pool, images, targets, batches, context.work)
        pool.close()
        labels = torch.from_numpy(context.data.labels("train")[chosen])
        pixels = images.cpu() if not self.init_normalised else export.pixels_of(images, self.backbone.config["image"])
        said = export.write(context.folder, Synthetic(pixels, labels, tuple(self.task.label_names)))
        with written_whole(context.folder / "targets.safetensors") as partial:
            save_file({"targets": targets.cpu()}, partial)
        export.write_losses(context.folder / "losses.csv", losses)
        last = self._pretrain(images, targets, context.seed, context.work)
        self._write_weights(context)
        self.results = self._told(losses, last)
        for line in (said, *self.results["table"]):
            context.log(line)

    def rehearse(self, batch: Batch) -> Sequence[str]:
        """The pool's first steps, two outer ones, two of the fresh network; the teacher stands beside."""
        work = Rehearsed()
        images, targets = self.first_pairs(torch.zeros(self.num_images, *batch["pixel_values"].shape[1:]))
        pool = self._warm_pool(images, targets, 0, work)
        images, targets, _ = self._distil(pool, images, targets, lambda first: again(batch), work)
        pool.close()
        self._pretrain(images, targets, 0, work)
        return []

    @torch.no_grad()
    def first_pairs(self, real: Tensor) -> tuple[Tensor, Tensor]:
        """X_s and Y_s of normalised real images (m, C, H, W): their pixels, and what the teacher says of them."""
        targets = features(self.source, real)
        image = self.backbone.config["image"]
        pixels = real.clone() if self.init_normalised else export.pixels_of(real, image).to(real.device)
        return pixels, targets

    # ---- distillation
    def _student(self) -> Method:
        """A network of the run's architecture with a head for the teacher's representations."""
        backbone = deepcopy(self.backbone)
        device = next(backbone.parameters()).device
        return Method(backbone, self.task, head=nn.Linear(backbone.feature_width, self.width, device=device))

    def _warm_pool(self, images: Tensor, targets: Tensor, seed: int, work: Work) -> Pool:
        students = self._modules["students"]
        assert isinstance(students, nn.ModuleList)
        pool = Pool(students, self.pool)
        for number in range(len(pool.students)):
            pool.begin(number, seed_of(seed, f"student {number}"))
        draws = np.random.default_rng(seed_of(seed, "steps of the pool"))
        steps = draws.integers(1, max(2, pool.most), len(pool.students)).tolist()
        pool.warm(steps, images, targets, work)
        return pool

    def _distil(
        self, pool: Pool, images: Tensor, targets: Tensor, batches: Callable[[int], Iterator[Batch]], work: Work
    ) -> tuple[Tensor, Tensor, list[float]]:
        """X_s, Y_s and all losses after the last outer step."""
        images, targets = images.requires_grad_(), targets.requires_grad_()
        steps, first = int(self.outer["steps"]), float(self.outer["lr"])
        optimizer = AdamW([images, targets], first, weight_decay=0.0)
        taken, losses = Steps({"adamw": optimizer}, clip=float(self.outer["clip"]) or None), torch.zeros(max(steps, 1))
        source: Iterator[Batch] | None = None

        def step(number: int) -> Tensor:
            nonlocal source
            source = batches(number) if source is None else source
            place = random.randrange(len(pool.students))
            share = 1 - (1 - float(self.outer["final_lr_factor"])) * number / steps
            optimizer.param_groups[0]["lr"] = first * share
            loss = self.outer_loss(pool.student(place), images, targets, next(source)["pixel_values"])
            taken.backward(loss, "adamw")
            taken.step()
            losses[number] = loss.detach()
            pool.visit(place, images, targets)
            return loss.detach()

        state = {"images": images, "targets": targets, "adamw": optimizer, "losses": losses, **pool.state()}
        work.loop("distill", step, steps, state)
        optimizer.state.clear()  # optimizers end when Python next looks for circles
        return images.detach(), targets.detach(), losses[:steps].tolist()

    def outer_loss(self, student: Method, images: Tensor, targets: Tensor, real: Tensor) -> Tensor:
        """The loss of one student as it stands, in eval mode, on a batch of real images; a graph to the pairs alone."""
        student.requires_grad_(False).eval()
        with torch.no_grad():
            answers, others = features(self.source, real), features(student, real)
        with torch.autocast(real.device.type, enabled=False):
            own = features(student, images)
            return kernel_loss(own.float(), targets, others.float(), answers.float(), self.ridge)

    @property
    def source(self) -> Method:
        """The teacher."""
        found = self._modules["teacher"]
        assert isinstance(found, Method)
        return found

    # ---- use
    def _pretrain(self, images: Tensor, targets: Tensor, seed: int, work: Work) -> float | None:
        """Train the run's own backbone from new weights on the pairs; its last loss."""
        settings, count = self.pretrain, len(images)
        reinitialize(self.backbone, stages(self.backbone), seed_of(seed, "pretrained"))
        if not settings["epochs"]:
            return None
        device = images.device
        head = nn.Linear(self.backbone.feature_width, self.width, device=device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "head"))
            head.reset_parameters()
        student = Method(self.backbone, self.task, head=head).requires_grad_(True)
        optimizer = SGD(student.parameters(), float(settings["lr"]), float(settings["momentum"]),
                        weight_decay=float(settings["weight_decay"]))  # fmt: skip
        size = min(int(settings["batch_size"]), count)
        each = -(-count // size)
        order, last = torch.arange(count), torch.zeros(())

        def step(number: int) -> Tensor:
            place = number % each
            if place == 0:
                order.copy_(torch.randperm(count))
            rows = order[place * size : (place + 1) * size].to(device)
            last.copy_(regress(student, optimizer, images[rows], targets[rows]))
            return last

        work.loop("pretrain", step, int(settings["epochs"]) * each,
                  {"network": student, "sgd": optimizer, "order": order, "last": last})  # fmt: skip
        optimizer.state.clear()
        self.requires_grad_(False)
        return float(last)

    def _write_weights(self, context: Context) -> None:
        """The backbone that has learned the pairs, without a head, for later runs."""
        tensors = {name: each.detach().cpu().contiguous() for name, each in self.backbone.model.state_dict().items()}
        with written_whole(context.folder / "weights" / "model.safetensors") as partial:
            save_file(tensors, partial)

    def _told(self, losses: Sequence[float], last: float | None) -> dict[str, Any]:
        metrics: dict[str, float] = {"images": float(self.num_images)}
        lines = [f"{self.num_images} pairs of an image and a representation of {self.width} numbers"]
        if losses:
            ends = float(np.mean(losses[:AT_EACH_END])), float(np.mean(losses[-AT_EACH_END:]))
            metrics |= {"outer/first": ends[0], "outer/last": ends[1]}
            lines.append(f"  outer error, first and last {AT_EACH_END} steps: {ends[0]:.4g}, {ends[1]:.4g}")
        if last is not None:
            metrics["pretrain/last"] = last
            lines.append(f"  error of the network that learned them: {last:.4g}")
        return {"metrics": metrics, "table": lines, "picture": "synthetic.png"}
