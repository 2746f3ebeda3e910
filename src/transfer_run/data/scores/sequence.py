"""Scores of a sequence: one for each task, and their mean over the tasks as the headline."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from transfer_run.backbones.base import Batch
from transfer_run.data.scores.labels import Scores
from transfer_run.task import Task


class SequenceScores(Scores):
    """`METRIC`: the mean over tasks that have a labelled row; `METRIC/TASK`: that of one task.

    Args:
        task: names the metrics and the tasks.
    """

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self.by_task = nn.ModuleList(Scores(replace(task, sequence=())) for _ in task.sequence)

    @torch.no_grad()
    def update(
        self,
        predictions: Tensor | None,
        batch: Batch,
        loss: Tensor | None = None,
        counted: Tensor | None = None,
    ) -> None:
        part = self.by_task[int(batch["stage"])]
        assert isinstance(part, Scores)
        part.update(predictions, batch, loss, counted)

    def compute(self) -> dict[str, float]:
        found: dict[str, dict[str, float]] = {}
        for name, part in zip(self.task.sequence, self.by_task, strict=True):
            assert isinstance(part, Scores)
            if values := part.compute():
                found[name] = values
        means = {
            metric: sum(values[metric] for values in found.values()) / len(found)
            for metric in self.task.metrics
            if found
        }
        single = {f"{metric}/{name}": value for name, values in found.items() for metric, value in values.items()}
        return means | single

    def reset(self) -> None:
        for part in self.by_task:
            assert isinstance(part, Scores)
            part.reset()
