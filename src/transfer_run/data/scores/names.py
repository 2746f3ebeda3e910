"""Names of scores that a form of task knows."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from transfer_run.errors import UserError, nearest_names


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
