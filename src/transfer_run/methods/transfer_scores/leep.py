"""LEEP and NCE: how well the source classifier's classes predict the target's.

LEEP: Nguyen et al., ICML 2020, arXiv 2002.12462. NCE: Tran et al., ICCV 2019, arXiv 1908.08142.
"""

from __future__ import annotations

import numpy as np

from transfer_run.methods.transfer_scores.classes import Array, Labels, one_hot


def leep(probabilities: Array, labels: Labels) -> float:
    """Mean log-likelihood of the labels under the empirical predictor; at most 0, higher is better.

    Args:
        probabilities: (N, S) softmax output of the source classifier; rows sum to 1.
        labels: (N,) target labels.
    """
    target = one_hot(labels)
    joint = target.T @ probabilities / len(labels)  # P(y, z), (C, S)
    marginal = joint.sum(0)
    conditional = np.divide(joint, marginal, out=np.zeros_like(joint), where=marginal > 0)  # P(y | z)
    likelihood = (probabilities @ conditional.T * target).sum(1)
    return float(np.log(likelihood).mean())


def nce(source_labels: Labels, labels: Labels) -> float:
    """Negative conditional entropy -H(Y | Z) of the labels given the source classifier's hard answers, in nats.

    Args:
        source_labels: (N,) the most likely source class of each sample.
        labels: (N,) target labels.
    """
    joint = one_hot(labels).T @ one_hot(source_labels) / len(labels)
    marginal = np.broadcast_to(joint.sum(0), joint.shape)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / marginal[seen])).sum())
