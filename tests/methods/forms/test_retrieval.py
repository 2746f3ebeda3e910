"""Losses over pairs of images and texts, against sums by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests import small
from transfer_run.backbones.base import Batch
from transfer_run.errors import UserError
from transfer_run.methods.base import Method
from transfer_run.methods.forms.retrieval import gathered, infonce, same_image, similarities, triplet

COSINES = torch.tensor([[0.9, 0.5, 0.1], [0.2, 0.3, 0.4], [0.0, 0.6, 0.7]], dtype=torch.float64)
EACH = torch.arange(3)


def test_infonce_by_hand() -> None:
    rows = [[9.0, 5.0, 1.0], [2.0, 3.0, 4.0], [0.0, 6.0, 7.0]]
    sides = (rows, list(zip(*rows, strict=True)))
    terms = [math.log(sum(map(math.exp, row))) - row[i] for side in sides for i, row in enumerate(side)]
    assert float(infonce(10 * COSINES, EACH)) == pytest.approx(sum(terms) / 6)


def test_triplet_by_hand() -> None:
    """Rows: 0.5 - 0.9, 0.4 - 0.3, 0.6 - 0.7; columns: 0.2 - 0.9, 0.6 - 0.3, 0.4 - 0.7; a margin of 0.2 on each."""
    assert float(triplet(COSINES, EACH)) == pytest.approx((0.3 + 0.1) + 0.5)
    assert float(triplet(COSINES, EACH, margin=0.0)) == pytest.approx(0.1 + 0.3)


def test_another_caption_of_the_same_image_is_no_negative() -> None:
    labels = torch.tensor([4, 7, 4])
    assert same_image(labels).nonzero().tolist() == [[0, 2], [2, 0]]
    changed = COSINES.clone()
    changed[0, 2], changed[2, 0] = 5.0, -5.0
    for loss in (infonce, triplet):
        assert torch.equal(loss(COSINES, labels), loss(changed, labels))
        assert loss(changed, labels) != loss(changed, EACH)


@pytest.mark.parametrize("loss", [infonce, triplet])
def test_a_pair_alone_teaches_nothing(loss: object) -> None:
    one = torch.tensor([[0.3]], requires_grad=True)
    value = loss(one, torch.tensor([0]))  # type: ignore[operator]
    value.backward()
    assert value == 0
    assert one.grad is not None
    assert one.grad.abs().sum() == 0


def test_similarities_are_precise() -> None:
    left, right = torch.randn(3, 8).bfloat16(), torch.randn(4, 8).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = similarities(left, right, torch.tensor(100.0))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, 100 * left.float() @ right.float().T)


def _rank(rank: int, folder: str) -> None:
    """One of two processes: the gradient of its half of the batch, divided by two as DDP does."""
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    images, texts, labels = (part.chunk(2)[rank] for part in _batch())
    sides = [side.clone().requires_grad_() for side in (images, texts)]
    loss = infonce(similarities(*map(gathered, sides), torch.tensor(5.0)), gathered(labels))
    loss.backward()
    torch.save([loss.detach(), *(side.grad / 2 for side in sides)], f"{folder}/{rank}.pt")  # type: ignore[operator]
    dist.destroy_process_group()


def _batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(6, 4, generator=draw, dtype=torch.float64) for _ in range(2))
    return images, texts, torch.tensor([0, 1, 2, 0, 3, 4])


@pytest.mark.slow
def test_two_processes_tell_pairs_from_those_of_both(tmp_path: Path) -> None:
    """The loss and its gradients are those of the whole batch in one process."""
    torch.multiprocessing.spawn(_rank, args=(str(tmp_path),), nprocs=2)
    images, texts, labels = _batch()
    sides = [side.requires_grad_() for side in (images, texts)]
    loss = infonce(similarities(*sides, torch.tensor(5.0)), labels)
    loss.backward()
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for part in parts:
        torch.testing.assert_close(part[0], loss.detach())
    for index, side in enumerate(sides, 1):
        torch.testing.assert_close(torch.cat([part[index] for part in parts]), side.grad)


def test_a_method_that_makes_one_feature_is_refused() -> None:
    class OneFeature(Method):
        def features(self, batch: Batch) -> Tensor:
            return super().features(batch) * 2

    class Both(OneFeature):
        def stack_features(self, batch: Batch, stack: str) -> Tensor:
            return super().stack_features(batch, stack) * 2

    backbone, task = small.backbone("clip-both"), small.task("clip-both")
    with pytest.raises(UserError, match="no form for two"):
        OneFeature(backbone, task)
    assert Both(backbone, task).form.paired
