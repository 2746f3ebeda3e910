"""From scores to a ranking, and how well it agrees with the accuracies that fine-tuning reached."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import weightedtau

from transfer_run.data.scores.direction import Better, first_best

TOP = 5


def ranking(scores: Mapping[str, float]) -> list[str]:
    """Names, the best score first; equal scores in the order given."""
    return sorted(scores, key=lambda name: -scores[name])


def agreement(
    scores: Mapping[str, float], accuracies: Mapping[str, float], better: Better = operator.gt
) -> dict[str, Any] | None:
    """How the scores agree with fine-tuned accuracies, over the names that have both; None for fewer than two.

    Args:
        better: is the first accuracy better than the second? Of errors the smaller one is.

    Returns:
        `weighted_tau`: Kendall's tau weighted by 1 / (rank + 1), the mean over the two rankings (TMI section 5; None
        where all scores or all accuracies are equal); `candidates`: how many were compared; `top5_mean` and
        `top5_best`: accuracy of the five best-scored ones.
    """
    names = [name for name in ranking(scores) if name in accuracies]
    if len(names) < 2:
        return None
    sign = 1 if better(1.0, 0.0) else -1
    tau = weightedtau([scores[n] for n in names], [sign * accuracies[n] for n in names]).statistic
    top = [accuracies[n] for n in names[:TOP]]
    return {
        "weighted_tau": float(tau) if np.isfinite(tau) else None,
        "candidates": len(names),
        "top5_mean": float(np.mean(top)),
        "top5_best": float(top[first_best(top, better)]),
    }


def ranking_table(
    scores: Mapping[str, Mapping[str, float]], accuracies: Mapping[str, float], agreements: Mapping[str, Any]
) -> list[str]:
    """Lines of a table: a candidate a row, best by the first score first, a score a column with its rank in brackets.

    Args:
        scores: by score, then by candidate.
        accuracies: fine-tuned accuracy by candidate, as far as known.
        agreements: by score, as `agreement` gives them.
    """
    orders = {score: ranking(values) for score, values in scores.items()}
    candidates = list(dict.fromkeys(name for order in orders.values() for name in order))
    rows = [["", *scores, *(["accuracy"] if accuracies else [])]]
    for name in candidates:
        cells = [_cell(scores[score], orders[score], name) for score in scores]
        known = [f"{accuracies[name]:.4f}" if name in accuracies else "-"] if accuracies else []
        rows.append([name, *cells, *known])
    if any(agreements.values()):
        taus = [agreements.get(score) for score in scores]
        rows.append(["weighted tau", *(_tau(found) for found in taus), *([""] if accuracies else [])])
    return _aligned(rows)


def missing_taus(
    scores: Mapping[str, Mapping[str, float]], accuracies: Mapping[str, float], agreements: Mapping[str, Any]
) -> list[str]:
    """Why a score has no weighted tau, a line a reason; nothing where no accuracy is known at all."""
    by_reason: dict[str, list[str]] = {}
    for score, values in scores.items():
        found, names = agreements.get(score), [name for name in values if name in accuracies]
        if not accuracies or (found and found["weighted_tau"] is not None):
            continue
        what = "accuracies" if len({accuracies[name] for name in names}) == 1 else "scores"
        reason = f"all {what} compared are equal" if found else f"{len(names)} of {len(values)} have an accuracy"
        by_reason.setdefault(reason, []).append(score)
    return [f"no weighted tau of {', '.join(names)}: {reason}" for reason, names in by_reason.items()]


def _cell(values: Mapping[str, float], order: Sequence[str], name: str) -> str:
    return f"{values[name]:.4f} [{order.index(name) + 1}]" if name in values else "-"


def _tau(found: Mapping[str, Any] | None) -> str:
    return f"{found['weighted_tau']:+.3f}" if found and found["weighted_tau"] is not None else "-"


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]
