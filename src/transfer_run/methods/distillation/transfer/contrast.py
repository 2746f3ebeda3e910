"""Contrastive distillation: a student's features shall stand to each other as the teacher's do.

cd     rows of the batch to each other: KL between the softmaxes of both models' cosines
crd    each row to the other model's memory of all training rows: its own is the positive one, rows of other classes
       are the negatives (Tian et al. 2020, arXiv 1910.10699)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfer_run.methods.distillation.objectives.critics import of_all_devices
from transfer_run.methods.distillation.transfer.partition import wide

EPSILON = 1e-7


def relations(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(S_t || S_s) summed over the rows: S the row softmax of the cosines (B, B) of features (B, d), any two widths.

    Over several devices the rows of all of them are related, which gives the gradient of one device with the batch.
    """
    own, other = (F.normalize(of_all_devices(wide(x)), dim=-1) for x in (student, teacher))
    log_q, log_p = (own @ own.mT).log_softmax(-1), (other @ other.mT).log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum()


class Memory(nn.Module):
    """What both models made of every training row when it was last seen, and the loss against it.

    Args:
        student, teacher: widths of the two features.
        width: of the space that both are brought to.
        negatives: rows of other classes that each row is compared with, drawn with repetition.
        temperature: of the comparison.
        momentum: of a row's memory.

    Attributes:
        student_rows, teacher_rows: (N, width), rows of length 1; N = 1 until `open` says how many rows there are.
        scale: (2,) what makes the exponentials probabilities, set by the first batch; below 0: not yet.
        order, first, count: (N,) rows sorted by class, and where a class begins in it and its size (C,).
    """

    student_rows: Tensor
    teacher_rows: Tensor
    scale: Tensor
    order: Tensor
    first: Tensor
    count: Tensor

    def __init__(
        self, student: int, teacher: int, classes: int, *, width: int, negatives: int, temperature: float,
        momentum: float, device: Any = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.student = nn.Linear(student, width, device=device)
        self.teacher = nn.Linear(teacher, width, device=device)
        self.negatives, self.temperature, self.momentum = negatives, temperature, momentum
        self.register_buffer("scale", torch.full((2,), -1.0, device=device))
        one = torch.zeros(1, dtype=torch.int64, device=device)
        self._lay_out(one, classes, torch.zeros(2, 1, width, device=device))

    def open(self, labels: Tensor, seed: int) -> None:
        """Make room for training rows of these classes (N,), with random memories.

        Raises:
            ValueError: there are no two classes, so no negatives.
        """
        if len(labels.unique()) < 2:
            raise ValueError("rows of one class alone have no negatives")
        width, classes = self.student_rows.shape[1], len(self.first)
        spread = 1 / math.sqrt(width / 3)
        drawn = torch.rand(2, len(labels), width, generator=torch.Generator().manual_seed(seed))
        device = self.student_rows.device
        self._lay_out(labels.to(device), classes, (2 * spread * drawn - spread).to(device))

    def _lay_out(self, labels: Tensor, classes: int, rows: Tensor) -> None:
        count = torch.zeros(classes, dtype=torch.int64, device=labels.device)
        count = count.index_add(0, labels, torch.ones_like(labels))
        laid = {
            "student_rows": rows[0].clone(), "teacher_rows": rows[1].clone(), "order": labels.argsort(stable=True),
            "first": count.cumsum(0) - count, "count": count,
        }  # fmt: skip
        for name, value in laid.items():
            self.register_buffer(name, value)

    def others(self, labels: Tensor) -> Tensor:
        """Rows (B, negatives) of other classes than the labels (B,), each as likely as any other."""
        outside = (len(self.order) - self.count[labels]).clamp(min=1)
        uniform = torch.rand(len(labels), self.negatives, device=labels.device)
        place = (uniform * outside[:, None]).long()
        place = place + (place >= self.first[labels][:, None]) * self.count[labels][:, None]
        return self.order[place.clamp(max=len(self.order) - 1)]

    def forward(self, student: Tensor, teacher: Tensor, rows: Tensor, labels: Tensor) -> Tensor:
        """The loss of features (B, d_S) and (B, d_T) of these training rows (B,); in training they are remembered."""
        own = F.normalize(self.student(wide(student)), dim=-1)
        other = F.normalize(self.teacher(wide(teacher)), dim=-1)
        compared = torch.cat([rows[:, None], self.others(labels)], dim=1)
        loss = self._side(own, self.teacher_rows[compared], 0) + self._side(other, self.student_rows[compared], 1)
        if self.training:
            self._remember(own.detach(), other.detach(), rows)
        return loss

    def _side(self, anchors: Tensor, compared: Tensor, side: int) -> Tensor:
        """-log of telling the positive (first) from the negatives, by noise-contrastive estimation; mean over rows.

        Args:
            anchors: (B, width). compared: (B, 1 + negatives, width).
        """
        likely = (torch.einsum("bkw,bw->bk", compared, anchors) / self.temperature).exp()
        total = len(self.order)
        with torch.no_grad():
            first = of_all_devices(likely.mean().reshape(1)).mean() * total
            scale = torch.where(self.scale[side] < 0, first, self.scale[side])
            if self.training:
                self.scale[side] = scale
        likely = likely / scale
        noise = self.negatives / total
        positive = (likely[:, 0] / (likely[:, 0] + noise + EPSILON)).log()
        negative = (noise / (likely[:, 1:] + noise + EPSILON)).log()
        return -(positive.sum() + negative.sum()) / len(anchors)

    @torch.no_grad()
    def _remember(self, own: Tensor, other: Tensor, rows: Tensor) -> None:
        """Every process remembers the rows of all of them, so that all have one memory."""
        own, other, rows = (of_all_devices(each) for each in (own, other, rows))
        for memory, seen in ((self.student_rows, own), (self.teacher_rows, other)):
            moved = self.momentum * memory[rows] + (1 - self.momentum) * seen
            memory[rows] = F.normalize(moved, dim=-1)
