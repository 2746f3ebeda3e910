"""A regressor from (pipeline, data, models) to the distillation ratio, and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.ensemble import RandomForestRegressor
from sklearn.feature_extraction import DictVectorizer

from transfer_run.methods.distillation.advice.experience import Experience, Row


class Predictor:
    """A random forest over one-hot choices and numbers (the paper takes an automatic ensemble of tabular models).

    Args:
        trees: of the forest.
        seed: of its bootstrap samples.
    """

    def __init__(self, trees: int, seed: int) -> None:
        self.encoder = DictVectorizer(sparse=False)
        self.forest = RandomForestRegressor(trees, random_state=seed)

    def fit(self, runs: Sequence[Experience]) -> Predictor:
        self.forest.fit(self.encoder.fit_transform([run.row for run in runs]), [run.ratio for run in runs])
        return self

    def predict(self, rows: Sequence[Row]) -> NDArray[np.float64]:
        """Expected ratios; a choice that no run has tried counts as none of those that were."""
        return np.asarray(self.forest.predict(self.encoder.transform(list(rows))), dtype=np.float64)

    def importance(self) -> dict[str, float]:
        """How much each factor explains, all its one-hot columns together, largest first; sums to 1."""
        totals: dict[str, float] = {}
        for column, value in zip(self.encoder.feature_names_, self.forest.feature_importances_, strict=True):
            factor = column.partition("=")[0]
            totals[factor] = totals.get(factor, 0.0) + float(value)
        return dict(sorted(totals.items(), key=lambda item: -item[1]))


def held_out(runs: Sequence[Experience], trees: int, seed: int) -> dict[str, Any]:
    """Error and rank correlation on data sets that the regressor has not seen; on single runs where there is one set.

    Returns:
        `left_out`: `data set` or `run`; `spearman` (None where nothing varies) and `mean_error` of the predictions.
    """
    names = sorted({run.dataset for run in runs})
    folds = [[i for i, run in enumerate(runs) if run.dataset == name] for name in names]
    if len(names) < 2:
        folds = [[i] for i in range(len(runs))]
    predicted = np.zeros(len(runs))
    for fold in folds:
        seen = [run for i, run in enumerate(runs) if i not in fold]
        predicted[fold] = Predictor(trees, seed).fit(seen).predict([runs[i].row for i in fold])
    true = np.array([run.ratio for run in runs])
    varies = np.ptp(true) > 0 and np.ptp(predicted) > 0
    return {
        "left_out": "data set" if len(names) > 1 else "run",
        "spearman": float(spearmanr(true, predicted).statistic) if varies else None,
        "mean_error": float(np.abs(true - predicted).mean()),
    }
