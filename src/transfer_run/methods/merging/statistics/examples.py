"""Single examples out of batches, without padding: what a Fisher and a Gram matrix are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from transfer_run.backbones.base import Batch
from transfer_run.memory.tracker import followed_in_part
from transfer_run.methods.form import one_row

Cut = Callable[[Batch, int], Batch]
"""One row of a batch, as `Form.example` cuts it out."""


def single_examples(batches: Iterable[Batch], count: int | None, cut: Cut = one_row) -> Iterator[Batch]:
    """The first `count` examples (None: all), each a batch of one with padding cut off."""
    yield from followed_in_part(_rows(batches, count, cut))


def _rows(batches: Iterable[Batch], count: int | None, cut: Cut) -> Iterator[Batch]:
    taken = 0
    for batch in batches:
        for row in range(len(next(iter(batch.values())))):
            if taken == count:
                return
            yield _unpadded(cut(batch, row))
            taken += 1


def _unpadded(example: Batch) -> Batch:
    """Without the positions that the attention mask hides and the label positions at the end that no loss counts."""
    cut = dict(example)
    mask = example.get("attention_mask")
    if mask is not None:
        real = mask[0].bool()
        cut = {name: t[:, real] if t.shape == mask.shape else t for name, t in example.items()}
    labels = cut.get("labels")
    if labels is not None and labels.dim() == 2 and not (mask is not None and labels.shape == mask.shape):
        counted = (labels[0] != -100).nonzero()
        end = int(counted[-1]) + 1 if len(counted) else 1
        cut["labels"] = labels[:, :end]
        if "decoder_input_ids" in cut:
            cut["decoder_input_ids"] = cut["decoder_input_ids"][:, :end]
    return cut
