"""Recall of retrieval over a whole split: how often what belongs together is among the K nearest.

    image_to_text_rK   share of the images for which one of their captions is among the K nearest captions
    text_to_image_rK   share of the captions whose image is among the K nearest images
    video_to_text_rK   the same of videos, text_to_video_rK too
    rsum               sum of these six for K = 1, 5, 10: 0 to 6 (papers print 100 times as much)

Nearness is the cosine. A wrong candidate that is as near as the right one stands before it, so that a model that makes
everything alike finds nothing.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from transfer_run.backbones.base import Batch
from transfer_run.data.scores.names import DEPTHS, OF_VIDEOS, RSUM, check_metrics
from transfer_run.task import Task

QUERIES_AT_ONCE = 1024
"""Rows of the similarity matrix that are there at a time."""


def first_ranks(queries: Tensor, candidates: Tensor, right: Tensor, of_candidates: Tensor) -> Tensor:
    """Number of wrong candidates before the first right one, for each query: (N, E), (M, E) -> (N,).

    Args:
        right: (N,), what each query looks for.
        of_candidates: (M,), what each candidate is of.
    """
    ranks = []
    for some, wanted in zip(queries.split(QUERIES_AT_ONCE), right.split(QUERIES_AT_ONCE), strict=True):
        cosines = some @ candidates.T
        wrong = of_candidates.unsqueeze(0) != wanted.unsqueeze(1)
        best = cosines.masked_fill(wrong, -torch.inf).amax(1, keepdim=True)
        ranks.append((wrong & (cosines >= best)).sum(1))
    return torch.cat(ranks)


class Pairs(Metric):
    """All images and captions of a split, from all ranks; an image with several captions comes with each of them."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("embeddings", "images"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, embeddings: Tensor, images: Tensor) -> None:
        """Embeddings (B, 2, E), image beside caption, and the images' numbers (B,)."""
        self.embeddings.append(embeddings.float())  # type: ignore[union-attr, operator]
        self.images.append(images)  # type: ignore[union-attr, operator]

    def compute(self) -> dict[str, float]:
        """All scores by name; none without rows."""
        embeddings, owners = (self._whole(name) for name in ("embeddings", "images"))
        if not len(owners):
            return {}
        images, order = owners.unique(return_inverse=True)
        first = torch.full_like(images, len(owners)).scatter_reduce(
            0, order, torch.arange(len(owners), device=owners.device), "amin"
        )
        pictures, captions = embeddings[first, 0], embeddings[:, 1]
        ranks = {
            "image_to_text": first_ranks(pictures, captions, images, owners),
            "text_to_image": first_ranks(captions, pictures, owners, images),
        }
        found = {f"{name}_r{k}": float((r < k).float().mean()) for name, r in ranks.items() for k in DEPTHS}
        return {RSUM: sum(found.values()), **found}

    def _whole(self, name: str) -> Tensor:
        kept = getattr(self, name)
        whole: Tensor = kept if isinstance(kept, Tensor) else torch.cat(kept) if kept else torch.empty(0)
        return whole


class RetrievalScores(nn.Module):
    """The scores of a retrieval task over one split; used like `metrics.Scores`.

    Raises:
        UserError: `task.metrics` names one that there is not.
    """

    needs_predictions, needs_loss = True, False

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task, self.pairs = task, Pairs()
        check_metrics("retrieval", task.metrics)

    def better(self, first: float, second: float) -> bool:
        """Is `first` the better value of the headline? All of them are shares, or sums of shares, of what was found."""
        return first > second

    @torch.no_grad()
    def update(
        self,
        predictions: Tensor | None,
        batch: Batch,
        loss: Tensor | None = None,
        counted: Tensor | None = None,
    ) -> None:
        """Count one batch of `Method.predict`'s pairs (B, 2, E)."""
        assert predictions is not None
        self.to(batch["labels"].device)
        known = batch["labels"] >= 0
        self.pairs.update(predictions[known], batch["labels"][known])

    def compute(self) -> dict[str, float]:
        with warnings.catch_warnings():
            # a rank may have had no scored rows
            warnings.filterwarnings("ignore", message=".*before the ``update`` method.*")
            found = self.pairs.compute()
        asked = {name: OF_VIDEOS.get(name, name) for name in self.task.metrics}
        return {name: found[own] for name, own in asked.items() if own in found}

    def reset(self) -> None:
        self.pairs.reset()
