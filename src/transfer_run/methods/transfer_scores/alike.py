"""How alike two sets of features of the same samples are: RSA, linear CKA, DDS; and how well the labels are told apart.

With one-hot labels as the second set these say how alike features are to a task, as PARC does. Definitions and
standardisation as in the benchmark of PARC's authors (Bolya et al., NeurIPS 2021, arXiv 2111.06977); linear CKA:
Kornblith et al., ICML 2019, arXiv 1905.00414, section 3.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

from transfer_run.methods.transfer_scores.classes import Array, Labels
from transfer_run.methods.transfer_scores.gbc import reduced
from transfer_run.methods.transfer_scores.parc import DECIMALS, correlation, row_correlations, standardised

FOLDS = 5


def rsa(features: Array, reference: Array, *, pca: int | None = None) -> float:
    """100 times the rank correlation of the pairs' distances (1 - correlation) in both; -100 to 100.

    Args:
        features: (N, D). reference: (N, E): of a model that knows the target. Columns are standardised.
        pca: reduce both to so many dimensions first.
    """
    pairs = np.triu_indices(len(features), 1)
    distances = [np.round(1 - row_correlations(standardised(reduced(x, pca)))[pairs], DECIMALS)
                 for x in (features, reference)]  # fmt: skip
    return 100 * correlation(*(rankdata(each) for each in distances))


def cka(features: Array, reference: Array) -> float:
    """Linear CKA, |Fc' Rc|^2 / (|Fc' Fc| |Rc' Rc|) of column-centred features; 0 to 1."""
    a, b = (x - x.mean(0) for x in (features, reference))
    shared = float(np.linalg.norm(a.T @ b) ** 2)
    size = float(np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    return shared / size if size > 0 else 0.0


def dds(features: Array, reference: Array, *, pca: int | None = None) -> float:
    """100 times the debiased, centred CKA of the two matrices of cosine distances of standardised features."""
    a, b = (_unbiased(1 - _cosines(standardised(reduced(x, pca)))) for x in (features, reference))
    size = float(np.sqrt(abs((a * a).sum() * (b * b).sum())))
    return 100 * float((a * b).sum()) / size if size > 0 else 0.0


def _cosines(features: Array) -> Array:
    length = np.linalg.norm(features, axis=1, keepdims=True)
    rows = features / np.where(length > 0, length, 1.0)
    return rows @ rows.T


def _unbiased(gram: Array) -> Array:
    """A Gram matrix (N, N), N > 3, centred without bias: its diagonal is zero (Szekely and Rizzo 2014)."""
    count = len(gram)
    kept = gram - np.diag(np.diag(gram))
    means = kept.sum(0) / (count - 2)
    means = means - means.sum() / (2 * (count - 1))
    centred = kept - means[None] - means[:, None]
    return centred - np.diag(np.diag(centred))


def neighbour(features: Array, labels: Labels) -> float:
    """Share of samples whose nearest other one, by cosine, is of their class."""
    near = _cosines(features)
    np.fill_diagonal(near, -np.inf)
    return float((labels[near.argmax(1)] == labels).mean())


def logistic(features: Array, labels: Labels) -> float:
    """Accuracy of a logistic regression on standardised features over five folds, fewer where a class is smaller."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    folds = int(min(FOLDS, np.unique(labels, return_counts=True)[1].min()))
    if folds < 2:
        raise ValueError("a class has a single sample")
    split = StratifiedKFold(folds, shuffle=True, random_state=0)
    model = LogisticRegression(max_iter=1000)
    return float(cross_val_score(model, standardised(features), labels, cv=split).mean())
