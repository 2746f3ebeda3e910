"""The loss against the tokens that were seen, as a table and a picture."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from transfer_run.files import write_atomically
from transfer_run.methods.base import Context
from transfer_run.run_folder import METRICS, read_config

TABLE, PICTURE = "learning.csv", "learning.png"
Points = Sequence[tuple[int, float]]


def learning_curve(context: Context, headline: str, start: float | None) -> list[dict[str, float]]:
    """Write the table and the picture of a run that was fitted on windows of running text; its validations.

    Args:
        headline: the metric of validation that is drawn.
        start: what it was before the first step.

    Returns:
        `tokens` and the metric, a row a validation; empty where there was none.
    """
    file = context.folder / METRICS
    rows = list(csv.DictReader(io.StringIO(file.read_text(encoding="utf-8")))) if file.is_file() else []
    tokens = _tokens(context)
    trained = [(tokens(int(row["step"])), float(row["train/loss"])) for row in rows if row.get("train/loss")]
    column = f"validation/{headline}"
    scored = [(tokens(int(row["step"])), float(row[column])) for row in rows if row.get(column)]
    if start is not None:
        scored.insert(0, (0, start))
    _write(context.folder / TABLE, headline, trained, scored)
    _draw(context.folder / PICTURE, headline, trained, scored)
    return [{"tokens": seen, headline: value} for seen, value in scored]


def _tokens(context: Context) -> Any:
    """Step -> tokens seen until then: every epoch reads all windows of the training data once."""
    windows, length = context.sizes["train"], len(context.data.split("train")[0]["input_ids"])
    each = context.batch_size * int(read_config(context.folder)["trainer"]["accumulate"])
    steps = math.ceil(windows / each)

    def tokens(step: int) -> int:
        epochs, further = divmod(step, steps)
        return (epochs * windows + further * each) * length

    return tokens


def _write(
    path: Path, headline: str, trained: Sequence[tuple[int, float]], scored: Sequence[tuple[int, float]]
) -> None:
    found: dict[int, dict[str, float]] = {}
    for name, points in (("train_loss", trained), (f"validation_{headline}", scored)):
        for seen, value in points:
            found.setdefault(seen, {})[name] = value
    text = io.StringIO()
    writer = csv.DictWriter(text, ["tokens", "train_loss", f"validation_{headline}"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({"tokens": seen, **values} for seen, values in sorted(found.items()))
    write_atomically(path, text.getvalue())


def _draw(path: Path, headline: str, trained: Points, scored: Points) -> None:
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    curves: Mapping[str, Sequence[tuple[float, float]]] = {
        "training": trained,
        "validation": [(seen, math.log(value) if headline == "perplexity" else value) for seen, value in scored],
    }
    for name, points in curves.items():
        if points:
            axes.plot(*zip(*points, strict=True), marker="." if len(points) < 40 else "", label=name)
    axes.set_xlabel("tokens seen")
    axes.set_ylabel("loss (nats a token)" if headline == "perplexity" else headline)
    axes.legend()
    figure.savefig(path, dpi=120)
