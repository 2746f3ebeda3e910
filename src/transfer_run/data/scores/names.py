"""Names of scores that a form of task knows; no torch, so that a wrong one is refused before anything heavy."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from transfer_run.data.long_tail import OF_GROUP
from transfer_run.errors import UserError, nearest_names

MULTI_LABEL = (
    "micro_f1", "macro_f1", "samples_f1", "subset_accuracy", "mean_average_precision", "ranking_average_precision",
)  # fmt: skip
DEPTHS = (1, 5, 10)
DIRECTIONS = ("image_to_text", "text_to_image")
RSUM = "rsum"
RETRIEVAL = (RSUM, *(f"{direction}_r{depth}" for direction in DIRECTIONS for depth in DEPTHS))
OF_VIDEOS = {name.replace("image", "video"): name for name in RETRIEVAL}
"""What the scores are called where what is found, or looked for by a text, is a video."""


BY_CLASS = "by_class"
"""Precision, recall and F1 of each class, and which is taken for which: many numbers, so never the headline."""
MOST_CLASSES = 100
KINDS = {"classification": "classes", "regression": "values", "forecasting": "values", "language_modeling": "loss"}
"""What the metrics of a form compare, or sum; of all others texts."""
PHRASES = {"loss": "running text"}
ORDERED = ("pearson", "spearman")
"""Correlations: of values, or of the numbers of classes that have an order."""
OF_KIND = {
    "classes": ("accuracy", "mean_class_accuracy", "f1", "f1_macro", "matthews", *ORDERED, *OF_GROUP, BY_CLASS),
    "values": (*ORDERED, "mse", "mae"),
    "texts": ("exact_match", "number_match", "rouge1", "rouge2", "rougeL"),
    "loss": ("bits_per_byte",),
}
LOSSES = ("perplexity",)
"""What any form may be scored by that has a loss of tokens or classes."""
MEAN = "glue"
"""The headline of a GLUE task with two metrics: their mean."""
ONES_OWN = "classification", "regression", "text_to_text"
"""Forms whose rows say by their own form what is compared, whatever the backbone makes of it (a T5 writes classes)."""


def scored_by(kind: str) -> tuple[str, ...]:
    """The metrics of what is compared, or summed."""
    return (*OF_KIND[kind], *LOSSES)


def check_metrics(form: str, metrics: Sequence[str], own_scores: bool = False) -> None:
    """Refuse a metric that does not score the form, as far as its name alone tells it.

    Args:
        own_scores: of a data set of the user's own, which may have scores of its own.

    Raises:
        UserError: with the nearest that does.
    """
    if form == "multi_label":
        check_names(metrics, MULTI_LABEL, "several labels a row")
    if form == "retrieval":
        check_names(metrics, OF_VIDEOS if any("video" in name for name in metrics) else RETRIEVAL, "retrieval")
    if form in ONES_OWN and not own_scores:
        kind = KINDS.get(form, "texts")
        check_names([name for name in metrics if name != MEAN], scored_by(kind), f"{form} with {kind}")
        if MEAN in metrics and len(set(metrics)) == 1:
            raise UserError(
                f"The metric '{MEAN}' is the mean of the others, and there are none.",
                where="dataset.metrics",
                remedy=f"choose among {', '.join(scored_by(kind))}",
            )


def check_names(asked: Iterable[str], known: Collection[str], scored: str) -> None:
    """Raises UserError where a name in `dataset.metrics` is none of `known`; `scored` says what these score."""
    for name in asked:
        if name not in known:
            raise UserError(
                f"The metric '{name}' does not score {scored}.",
                where="dataset.metrics",
                nearest=nearest_names(name, known),
                remedy=f"choose among {', '.join(known)}",
            )
