"""H-score and its shrinkage form.

H-score: Bao et al., ICIP 2019. Regularised H-score: Ibrahim et al., ECML 2022, arXiv 2110.06893.

Both are written with the singular value decomposition of the centred features F = U S V^T: the class means G are
P F with P the projection on the classes, so tr(pinv(cov F) cov G) = |P U|^2. No D x D matrix is formed.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import svd

from transfer_run.methods.transfer_scores.classes import Array, Labels, class_rows, without_empty_directions


def _between(features: Array, labels: Labels) -> tuple[Array, Array]:
    """Singular values (k,) of the centred features (N, D), and the share |P u_j|^2 (k,) that lies between classes."""
    left, singular, _ = svd(without_empty_directions(features - features.mean(0)), full_matrices=False)
    sums = np.stack([rows.sum(0) / np.sqrt(len(rows)) for rows in class_rows(left, labels)])
    return singular, (sums**2).sum(0)


def hscore(features: Array, labels: Labels, *, rcond: float = 1e-15) -> float:
    """tr(pinv(cov F) cov G), G the features replaced by their class means; 0 to C - 1, higher is better.

    With N <= D it is C - 1 whatever the features are; use `hscore_reg` there.

    Args:
        features: (N, D) float64.
        labels: (N,).
        rcond: eigenvalues of cov(F) below this share of the largest one count as zero.
    """
    singular, between = _between(features, labels)
    return float(between[singular > np.sqrt(rcond) * singular[0]].sum())


def hscore_reg(features: Array, labels: Labels) -> float:
    """tr(pinv(S_a) (1 - a) cov G), S_a the Ledoit-Wolf covariance with shrinkage a; higher is better.

    Args:
        features: (N, D) float64.
        labels: (N,).
    """
    samples, width = features.shape
    singular, between = _between(features, labels)
    if singular[0] == 0:
        return 0.0
    spectrum = singular**2 / samples
    shrink = shrinkage(features - features.mean(0), spectrum)
    shrunk = (1 - shrink) * spectrum + shrink * spectrum.sum() / width
    kept = shrunk > 0
    return float(((1 - shrink) * singular**2 / (samples - 1) * between)[kept] @ (1 / shrunk[kept]))


def shrinkage(centred: Array, spectrum: Array) -> float:
    """Ledoit and Wolf's intensity (2004, section 3.2) from centred features (N, D) and their covariance's spectrum."""
    samples, width = centred.shape
    mean = spectrum.sum() / width
    distance = (spectrum**2).sum() / width - mean**2  # of the covariance from a multiple of the identity
    fourth = ((centred**2).sum(1) ** 2).sum() / samples
    error = (fourth - (spectrum**2).sum()) / samples / width
    return float(min(error, distance) / distance) if distance > 0 else 0.0
