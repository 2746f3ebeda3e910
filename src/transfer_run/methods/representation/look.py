"""LOOK: an encoder learns so that each image is classified by its own nearest neighbours, itself left out.

    image ──> encoder ──> projection ──> z, |z| = 1 ─── similarities ──> the k nearest of the queue ──> -log p(label)
      └─────> averages of both (EMA) ──> key ──> queue of the last Q keys, after the step

Feng, Jiang, Tang, Jin, Gao, "Rethinking Supervised Pre-training for Better Downstream Transferring", ICLR 2022, arXiv
2110.06014. The text could not be read: the idea and the weighted leave-one-out classifier are the abstract's, queue and
average are MoCo's. A later run takes the encoder (`backbone.weights="run:method=look ..."`); the projection stays.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.errors import UserError
from transfer_run.methods.averaging import copy_of, mix, set_weights
from transfer_run.methods.base import Context, Method
from transfer_run.methods.representation.neighbours.losses import (
    leave_one_out,
    nearest,
    posterior,
    supcon,
    with_positive,
)
from transfer_run.methods.representation.neighbours.queue import UNKNOWN, Queue, of_all_processes
from transfer_run.methods.representation.neighbours.source import on_source
from transfer_run.task import ROWS, Task


class Encoder(nn.Module):
    """Batch -> z (B, d) of unit length."""

    def __init__(self, features: Method, projection: nn.Module) -> None:
        super().__init__()
        self.network, self.projection = features, projection

    def forward(self, batch: Batch) -> Tensor:
        return F.normalize(self.projection(self.network.features(batch)).float(), dim=1)


class Look(Method):
    """The whole backbone is trained, and a projection that no other run takes.

    Args:
        objective: `look`; `nca`, with all references for neighbours; `supcon`; `ce`, cross-entropy of a head.
        k: neighbours.
        temperature: t.
        queue_size: Q, references.
        ema_momentum: m of average <- m average + (1 - m) model after every step; the average makes the keys.
        proj_dim, proj_hidden: width of z, and of the layer before it.
        no_positive: where none of the k has the label: `add_nearest` puts the nearest that has it in the place of the
            furthest; `skip` leaves the image out of the step. An image whose label no reference has is left out.
        k_warmup_epochs: over so many epochs the number of neighbours falls from Q to k.
    """

    ships = "all"
    queue: Queue
    projection: nn.Module
    average: Encoder

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        *,
        objective: Literal["look", "nca", "supcon", "ce"] = "look",
        k: int = 400,
        temperature: float = 0.1,
        queue_size: int = 65536,
        ema_momentum: float = 0.999,
        proj_dim: int = 128,
        proj_hidden: int = 2048,
        no_positive: Literal["add_nearest", "skip"] = "add_nearest",
        k_warmup_epochs: int = 0,
    ) -> None:
        super().__init__(backbone, task, head=None if objective == "ce" else nn.Identity())
        if k > queue_size:
            raise UserError(f"There are no {k} neighbours among {queue_size} references.",
                            where="method.k, method.queue_size", remedy=f"method.k={queue_size}, or less")  # fmt: skip
        self.objective, self.k, self.temperature, self.momentum = objective, k, temperature, ema_momentum
        self.queue_size, self.warmup, self.no_positive = queue_size, k_warmup_epochs, no_positive
        self.neighbours, self.reads_row_numbers = k, objective != "ce"
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []  # keys of the step that is under way
        if objective != "ce":
            device, width = next(backbone.model.parameters()).device, backbone.feature_width
            self.projection = nn.Sequential(nn.Linear(width, proj_hidden, device=device), nn.ReLU(),
                                            nn.Linear(proj_hidden, proj_dim, device=device))  # fmt: skip
            self.queue = Queue(queue_size, proj_dim, device)
            self.couples_rows = True  # through the keys of the step: a batch is not taken in parts twice
        self.train_backbone()
        if objective != "ce":
            self.hold("average", copy_of(Encoder(self.plain(), self.projection)), changes=True)
            self.changing |= {"queue"}

    # ---- a batch
    def encode_rows(self, batch: Batch) -> Tensor:
        """z (B, d) of unit length."""
        return F.normalize(self.projection(self.features(batch)).float(), dim=1)

    def forward(self, batch: Batch) -> Tensor:
        """log p (B, num_labels) of the k nearest in the queue; of `ce` the head's logits."""
        if self.objective == "ce":
            return super().forward(batch)
        similarities = self.encode_rows(batch) @ self.queue.keys.t()
        chosen = nearest(similarities, self.queue.others(None).expand_as(similarities), self.k)
        return posterior(similarities, chosen, self.queue.labels, self.temperature, self.task.num_labels)

    def loss(self, batch: Batch) -> Tensor:
        if self.objective == "ce" or not self.training:
            return super().loss(batch)
        labels = batch["labels"]
        rows = batch[ROWS] if ROWS in batch else torch.full_like(labels, UNKNOWN)
        similarities = self.encode_rows(batch) @ self.queue.keys.t()
        loss = self.of_references(similarities, labels, self.queue.others(rows if ROWS in batch else None))
        with torch.no_grad():
            self._waiting.append((self.average(batch), labels, rows))
        return loss

    def of_references(self, similarities: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
        """The loss of similarities (B, Q), labels (B,), and which references `counts` as no image's own."""
        same, classes = self.queue.labels[None] == labels[:, None], self.task.num_labels
        counts = counts.expand_as(similarities)
        if self.objective == "supcon":
            return supcon(similarities, counts, same, self.temperature, classes)
        chosen = counts if self.objective == "nca" else nearest(similarities, counts, self.neighbours)
        if self.no_positive == "add_nearest":
            chosen = with_positive(similarities, chosen, counts, same)
        return leave_one_out(similarities, chosen, same, self.temperature, classes)

    # ---- between steps
    def start_fit(self, total_steps: int) -> None:
        """The average begins where the model does, whatever an earlier stage has handed on."""
        if self.objective != "ce" and not bool(self.queue.filled().any()):
            set_weights(self.average, Encoder(self.plain(), self.projection))

    def start_epoch(self, epoch: int, epochs: int) -> None:
        left = max(0.0, 1 - epoch / self.warmup) if self.warmup else 0.0
        self.neighbours = round(self.k + left * (self.queue_size - self.k))

    def after_step(self, step: int) -> None:
        """Keys of all processes and all parts of the step enter the queue, in that order; then the average moves."""
        if self.objective == "ce":
            return
        if self._waiting:
            parts = zip(*self._waiting, strict=True)
            self.queue.put(*(of_all_processes(torch.cat(each)) for each in parts))
            self._waiting = []
        mix(self.average, Encoder(self.plain(), self.projection), self.momentum)

    # ---- afterwards
    def settle(self) -> None:
        """Without the average; the queue stays, for the model answers by it."""
        self._modules.pop("average", None)
        self.held, self.changing, self._waiting = frozenset(), frozenset(), []

    def conclude(self, context: Context) -> dict[str, Any]:
        """Of the training set by the features that a later run takes: how many are classified by their neighbours, and
        how far apart the images of a class are."""
        self.eval()
        batches = context.batches("train", context.batch_size)
        return {"source": on_source(self.features, batches, k=self.k, temperature=self.temperature,
                                    classes=self.task.num_labels)}  # fmt: skip
