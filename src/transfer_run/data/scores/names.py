"""Names of scores that a form of task knows; no torch, so that a wrong one is refused before anything heavy."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

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


def check_metrics(form: str, metrics: Sequence[str]) -> None:
    """Refuse a metric that does not score one of the two forms that know all theirs; others are asked with their data.

    Raises:
        UserError: with the nearest that does.
    """
    if form == "multi_label":
        check_names(metrics, MULTI_LABEL, "several labels a row")
    if form == "retrieval":
        check_names(metrics, OF_VIDEOS if any("video" in name for name in metrics) else RETRIEVAL, "retrieval")


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
