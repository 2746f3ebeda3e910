"""Labels as the scores read them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


def one_hot(labels: Labels) -> Array:
    """Membership (N, C) of the labels (N,) in the C classes that occur, in the order of their numbers."""
    return (labels[:, None] == np.unique(labels)).astype(np.float64)


def class_rows(features: Array, labels: Labels) -> list[Array]:
    """The rows of (N, D) of each class that occurs, in the order of their numbers."""
    return [features[labels == label] for label in np.unique(labels)]


def without_empty_directions(features: Array) -> Array:
    """(N, min(N, D)): the rows of (N, D) turned so that the directions without data fall away; inner products stay."""
    samples, width = features.shape
    return np.asarray(np.linalg.qr(features.T, mode="r")).T if width > samples else features


def balanced(labels: Labels, samples: int) -> NDArray[np.int64]:
    """Positions of at most `samples` labels, as evenly over the classes as they allow, first come first kept."""
    place = np.empty(len(labels), dtype=np.int64)  # the how-manieth of its class each sample is
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        place[members] = np.arange(len(members))
    return np.sort(np.argsort(place, kind="stable")[:samples])
