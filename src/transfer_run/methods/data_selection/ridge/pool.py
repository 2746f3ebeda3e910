"""A pool of students, each trained for some steps on the synthetic images as they are, and begun anew after the most.

    a visit: the outer loss looks through student l as it stands, then l takes one step, or, after `most` of them, gets
    new weights and waits for its next visit

The release never sets a counter back: a student that has once had its steps gets new weights at every visit and is
never trained again (`keep_counter_bug`).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

from transfer_run.backbones.layer_groups import reinitialize, stages
from transfer_run.hardware.steps import Steps
from transfer_run.methods.base import Method
from transfer_run.methods.work import State, Work


class Pool:
    """Students with an optimizer and a counter each.

    Args:
        students: networks whose head has as many outputs as the targets.
        settings: `max_steps`, `lr`, `momentum`, `weight_decay`, `keep_counter_bug`.
    """

    def __init__(self, students: nn.ModuleList, settings: Mapping[str, Any]) -> None:
        self.students = students
        self.settings, self.most = settings, int(settings["max_steps"])
        self.counters = torch.zeros(len(students), dtype=torch.int64)
        self.optimizers = [
            SGD(each.parameters(), float(settings["lr"]), float(settings["momentum"]),
                weight_decay=float(settings["weight_decay"]))
            for each in students
        ]  # fmt: skip

    def state(self) -> State:
        return {
            "students": self.students, "counters": self.counters,
            **{f"sgd-{number}": each for number, each in enumerate(self.optimizers)},
        }  # fmt: skip

    def begin(self, number: int, seed: int) -> None:
        """New weights for a student."""
        student = self.student(number)
        reinitialize(student.backbone, stages(student.backbone), seed)
        self.optimizers[number].state.clear()

    def student(self, number: int) -> Method:
        found = self.students[number]
        assert isinstance(found, Method)
        return found

    def visit(self, number: int, images: Tensor, targets: Tensor) -> None:
        """One step of a student, or its new start."""
        if int(self.counters[number]) >= self.most:
            self.begin(number, random.getrandbits(32))
            if not self.settings["keep_counter_bug"]:
                self.counters[number] = 0
            return
        regress(self.student(number), self.optimizers[number], images, targets)
        self.counters[number] += 1

    def warm(self, steps: Sequence[int], images: Tensor, targets: Tensor, work: Work) -> None:
        """The students' first steps, before the first outer one: as many as `steps` says of each."""
        ends = torch.tensor(steps).cumsum(0).tolist()

        def step(number: int) -> Tensor:
            place = next(place for place, end in enumerate(ends) if number < end)
            loss = regress(self.student(place), self.optimizers[place], images, targets)
            self.counters[place] += 1
            return loss

        work.loop("pool", step, ends[-1], self.state())

    def close(self) -> None:
        """Buffers that optimizers would keep until Python next looks for circles."""
        for optimizer in self.optimizers:
            optimizer.state.clear()


def regress(student: Method, optimizer: torch.optim.Optimizer, images: Tensor, targets: Tensor) -> Tensor:
    """One step on the mean squared error of the whole batch, in train mode, without a gradient to images or targets."""
    student.requires_grad_(True).train()
    taken = Steps({"sgd": optimizer})
    loss = F.mse_loss(answers(student, images.detach()), targets.detach())
    taken.backward(loss)
    taken.step()
    return loss.detach()


def answers(student: Method, images: Tensor) -> Tensor:
    """The head's outputs (n, d_h)."""
    found: Tensor = student.backbone.head(features(student, images))
    return found


def features(student: Method, images: Tensor) -> Tensor:
    """The head's inputs (n, d_v)."""
    return student.features({"pixel_values": images})
