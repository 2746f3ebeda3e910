"""Scores of rows that have several labels, or none: each label is there (probability above 0.5) or not.

    micro_f1         2 right / (answered + there), over all rows and labels together
    macro_f1         the mean over the labels of the same, 0 for one that is neither there nor answered
    samples_f1       the mean over the rows of the same, 0 for one without any label or answer
    subset_accuracy  share of the rows that are answered with just their labels
    mean_average_precision   mean over the labels that are there of the average precision of their rows' ranking
    ranking_average_precision  mean over the rows of the label ranking average precision; 1 for one without labels

All are those of scikit-learn (`f1_score(zero_division=0)`, `accuracy_score`, `average_precision_score`,
`label_ranking_average_precision_score`). A row without a label column's value is answered, not scored.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from transfer_run.backbones.base import Batch
from transfer_run.data.scores.names import check_metrics
from transfer_run.task import Task

Rows = np.ndarray


def _f1(axis: int | None) -> Callable[[Rows, Rows], float]:
    """Over all at once (None), or the mean over the labels (0) or the rows (1)."""

    def score(right: Rows, chances: Rows) -> float:
        there, said = right > 0, chances > 0.5
        total = there.sum(axis) + said.sum(axis)
        return float(np.mean(2 * (there & said).sum(axis) / np.maximum(total, 1)))

    return score


def _subset_accuracy(right: Rows, chances: Rows) -> float:
    return float((right == (chances > 0.5)).all(1).mean())


def _mean_average_precision(right: Rows, chances: Rows) -> float:
    from sklearn.metrics import average_precision_score

    there = np.flatnonzero(right.any(0))
    return float(np.mean([average_precision_score(right[:, n], chances[:, n]) for n in there])) if len(there) else 0.0


def _ranking_average_precision(right: Rows, chances: Rows) -> float:
    from sklearn.metrics import label_ranking_average_precision_score

    return float(label_ranking_average_precision_score(right, chances))


SCORES: dict[str, Callable[[Rows, Rows], float]] = {
    "micro_f1": _f1(None),
    "macro_f1": _f1(0),
    "samples_f1": _f1(1),
    "subset_accuracy": _subset_accuracy,
    "mean_average_precision": _mean_average_precision,
    "ranking_average_precision": _ranking_average_precision,
}


class _Kept(Metric):
    """Probabilities and labels of all rows, from all ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("pairs", default=[], dist_reduce_fx="cat")

    def update(self, chances: Tensor, right: Tensor) -> None:
        """(B, C) each."""
        self.pairs.append(torch.stack([chances.float(), right.float()], 1))  # type: ignore[union-attr, operator]

    def compute(self) -> Tensor:
        """(rows, 2, C); no rows where none were counted."""
        kept = self.pairs
        return kept if isinstance(kept, Tensor) else torch.cat(kept) if kept else torch.empty(0, 2, 1)  # type: ignore[arg-type]


class MultiLabelScores(nn.Module):
    """The scores of one split; used like `labels.Scores`.

    Raises:
        UserError: `task.metrics` names one that there is not.
    """

    needs_predictions, needs_loss = True, False

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task, self.kept = task, _Kept()
        check_metrics("multi_label", task.metrics)

    def better(self, first: float, second: float) -> bool:
        """Is `first` the better value of the headline? All are shares."""
        return first > second

    @torch.no_grad()
    def update(
        self,
        predictions: Tensor | None,
        batch: Batch,
        loss: Tensor | None = None,
        counted: Tensor | None = None,
    ) -> None:
        """Count one batch of probabilities (B, C)."""
        assert predictions is not None
        self.to(batch["labels"].device)
        known = (batch["labels"] >= 0).all(1)
        self.kept.update(predictions[known], batch["labels"][known])

    def compute(self) -> dict[str, float]:
        """The scores of all ranks together, the headline first; empty if no row has labels."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*before the ``update`` method.*")
            pairs = self.kept.compute().cpu().numpy()
        if not len(pairs):
            return {}
        chances, right = pairs[:, 0], pairs[:, 1].astype(int)
        return {name: SCORES[name](right, chances) for name in self.task.metrics}

    def reset(self) -> None:
        self.kept.reset()
