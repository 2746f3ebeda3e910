"""The accuracy of every task after every stage of a sequence, and what it says: Transfer, Average, Last, Seen.

                task 0   task 1   task 2
before             z0       z1       z2        zero-shot, before any training
after task 0      A00      A01      A02
after task 1      A10      A11      A12        above the diagonal: tasks not learned yet
after task 2      A20      A21      A22
transfer                   A01    (A02+A12)/2  mean above the diagonal
average                mean of the column
last              A20      A21      A22
seen: after each task the share of right answers to the rows of all tasks so far: A00; A10 and A11; ...
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

Floats = NDArray[np.float64]
TITLE = ("transfer", "average", "last")
"""What the picture says below the matrix."""


@dataclass(frozen=True)
class AccuracyMatrix:
    """Shares of right answers, 0 to 1.

    Attributes:
        tasks: names, in the order of learning.
        before: (T,) before any training; NaN: not evaluated.
        after: (stages, T), row j after task j; fewer rows than tasks where training was cut short.
        asked: (T,) test rows of every task.
    """

    tasks: Sequence[str]
    before: Floats
    after: Floats
    asked: NDArray[np.int64]

    @property
    def complete(self) -> bool:
        return len(self.after) == len(self.tasks)

    def transfer(self) -> Floats:
        """(T - 1,): how well tasks 1, 2, ... are done before they are learned, mean over the stages before them."""
        return np.array([self.after[:i, i].mean() for i in range(1, len(self.tasks))])

    def average(self) -> Floats:
        """(T,): mean over all stages."""
        return self.after.mean(0)

    def last(self) -> Floats:
        """(T,): after the last stage."""
        return self.after[-1]

    def seen(self) -> Floats:
        """(stages,): after each, over the rows of all tasks learned so far together; of classes that come step by step
        the accuracy on those seen so far (its mean and its last are what class-incremental tables show)."""
        found = np.full(len(self.after), np.nan)  # where no row so far has a label
        for stage, row in enumerate(self.after):
            counts = self.asked[: stage + 1]
            if counts.sum():
                found[stage] = np.average(row[: stage + 1], weights=counts)
        return found

    def summary(self) -> dict[str, float]:
        """`transfer`, `average`, `last`, each the mean over its tasks, `zero_shot`, and `seen` as the mean over the
        stages and after the last (`seen_last`); only what is known."""
        found = {"zero_shot": self.before}
        if self.complete:
            found |= {"transfer": self.transfer(), "average": self.average(), "last": self.last()}
            found |= {"seen": self.seen(), "seen_last": self.seen()[-1:]}
        return {
            name: float(values.mean()) for name, values in found.items() if len(values) and np.isfinite(values).all()
        }

    def by_task(self) -> dict[str, dict[str, float]]:
        """`transfer`, `average`, `last` of every task by name."""
        if not self.complete:
            return {}
        rows = {"transfer": self.transfer(), "average": self.average(), "last": self.last()}
        return {
            name: dict(zip(self.tasks[len(self.tasks) - len(values) :], map(float, values), strict=True))
            for name, values in rows.items()
        }

    def rows(self) -> list[tuple[str, list[float]]]:
        """What table and picture show: (label, percent by task), NaN where there is nothing."""
        known = [("zero-shot", self.before)]
        known += [(f"after {name}", row) for name, row in zip(self.tasks, self.after, strict=False)]
        if self.complete:
            known += [("transfer", np.array([np.nan, *self.transfer()])), ("average", self.average())]
        return [(name, [100 * float(value) for value in values]) for name, values in known]

    def table(self) -> list[str]:
        """The matrix in percent as lines of text; `*` marks the task that was just learned."""
        shown = self.rows()
        width, first = max(8, *(len(name) + 1 for name in self.tasks)), max(len(name) for name, _ in shown)
        lines = [" " * first + "".join(f"{name:>{width}} " for name in self.tasks)]
        for number, (label, values) in enumerate(shown):
            cells = [
                f"{'' if np.isnan(value) else f'{value:.1f}':>{width}}{'*' if number == task + 1 else ' '}"
                for task, value in enumerate(values)
            ]
            lines.append(f"{label:<{first}}" + "".join(cells))
        said = [f"{name.replace('_', '-')} {100 * value:.1f}" for name, value in self.summary().items()]
        lines.append(", ".join(part for part in said if not part.startswith("seen")) + " (%, over tasks)")
        if self.complete:
            lines.append(
                ", ".join(part for part in said if part.startswith("seen")) + " (%, over rows of tasks so far)"
            )
        return [line.rstrip() for line in lines]

    def draw(self, path: Path) -> None:
        """Write the matrix as a PNG: a cell for each task and stage, framed where the task was just learned."""
        shown = self.rows()
        values = np.array([row for _, row in shown])
        size = (2.2 + 0.85 * len(self.tasks), 1.5 + 0.42 * len(shown))
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        picture = axes.imshow(values, cmap="YlGnBu", vmin=0, vmax=100, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                axes.text(
                    column, row, f"{value:.1f}", ha="center", va="center", color="white" if value > 60 else "black"
                )
        for stage in range(len(self.after)):
            axes.add_patch(_frame(stage, stage + 1))
        for line in (0.5, len(self.after) + 0.5):
            axes.axhline(line, color="white", linewidth=3, zorder=1)
        axes.set_xticks(range(len(self.tasks)), self.tasks, rotation=45 if len(self.tasks) > 4 else 0)
        axes.set_yticks(range(len(shown)), [label for label, _ in shown])
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        title = ", ".join(f"{k.replace('_', '-')} {100 * v:.1f}" for k, v in self.summary().items() if k in TITLE)
        axes.set_xlabel(title or "cut short", labelpad=8)
        figure.colorbar(picture, label="accuracy (%)")
        figure.savefig(path, dpi=130)


def _frame(column: int, row: int) -> Rectangle:
    """A frame just inside a cell."""
    return Rectangle((column - 0.47, row - 0.46), 0.94, 0.92, fill=False, edgecolor="tab:red", linewidth=2, zorder=2)
