"""How synthetic images begin: as real ones drawn at random, as representatives of their classes, or as noise.

representative: k-means of a class's logits under a trained expert, k images a class; the real image nearest to each
centre (Shen, Yang, Lam, arXiv 2310.10541, whose code fixes ten clusters; here as many as images are wanted).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from transfer_run.backbones.base import Batch
from transfer_run.data.base import DataModule
from transfer_run.errors import UserError
from transfer_run.memory.tracker import followed_in_part

Rows = NDArray[np.int64]


def classes_of(data: DataModule, classes: int) -> list[Rows]:
    """The training rows of each class.

    Raises:
        UserError: a class without any.
    """
    labels = data.labels("train")
    found = [np.flatnonzero(labels == number) for number in range(classes)]
    empty = next((number for number, rows in enumerate(found) if not len(rows)), None)
    if empty is not None:
        raise UserError(
            f"No training image is of class {data.label_names[empty]}, and every class gets synthetic ones.",
            where=f"dataset={data.dataset['name']}",
            remedy="leave the class out, or give it images",
        )
    return found


def random_rows(rows: list[Rows], count: int, seed: int) -> Rows:
    """`count` rows of each class, class by class (classes * count,); of a class with fewer, some of them twice."""
    draws = np.random.default_rng(seed)
    return np.concatenate([draws.permutation(_repeated(each, count))[:count] for each in rows])


def representative_rows(rows: list[Rows], logits: NDArray[np.float32], count: int, seed: int) -> Rows:
    """As `random_rows`: those nearest to the centres of k-means, each row once as far as they go.

    Args:
        logits: of all training rows (n, classes).
    """
    from sklearn.cluster import KMeans

    found = []
    for each in rows:
        own = logits[each].astype(np.float64)
        fitted = KMeans(min(count, len(each)), n_init=1, random_state=seed).fit(own)
        distances = np.linalg.norm(own[:, None] - fitted.cluster_centers_[None], axis=2)
        chosen: list[int] = []
        for centre in range(distances.shape[1]):
            free = np.setdiff1d(np.arange(len(each)), chosen)
            chosen.append(int(free[distances[free, centre].argmin()]))
        found.append(_repeated(each[chosen], count)[:count])
    return np.concatenate(found)


def _repeated(rows: Rows, count: int) -> Rows:
    return np.tile(rows, -(-count // len(rows)))


def few(rows: list[Rows], count: int, names: tuple[str, ...]) -> str:
    """Says which classes have fewer real images than synthetic ones begin from; empty where none."""
    short = [f"{names[number]} ({len(each)})" for number, each in enumerate(rows) if len(each) < count]
    said = ", ".join(short[:8]) + ", ..." * (len(short) > 8)
    return (
        f"classes with fewer than {count} images, some of which begin several synthetic ones: {said}" if short else ""
    )


def images_of(data: DataModule, rows: Rows) -> Tensor:
    """Training images as the backbone reads them (n, C, H, W)."""
    split = data.split("train")
    return torch.stack([split[int(row)]["pixel_values"] for row in rows])


@torch.no_grad()
def logits_of(network: Callable[[Tensor], Tensor], batches: Iterator[Batch]) -> NDArray[np.float32]:
    """Of all images in the order of the batches (n, classes)."""
    return np.concatenate([network(batch["pixel_values"]).float().cpu().numpy() for batch in batches])


def in_order(data: DataModule, batch_size: int, device: torch.device) -> Iterator[Batch]:
    """The training rows one after the other."""
    for batch in followed_in_part(data.loader("train", batch_size=batch_size, shuffle=False)):
        yield {name: tensor.to(device) for name, tensor in batch.items()}
