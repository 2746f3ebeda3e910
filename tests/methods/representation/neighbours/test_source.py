"""What is told of the training set."""

from __future__ import annotations

import torch

from transfer_run.methods.representation.neighbours import source


def test_two_tight_classes_and_their_width() -> None:
    points = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    batches = [{"x": 5 * points[:2], "labels": torch.tensor([0, 0])}, {"x": points[2:], "labels": torch.tensor([1, 1])}]
    found = source.on_source(lambda batch: batch["x"], batches, k=1, temperature=0.1, classes=2)
    assert found == {"rows": 4, "neighbour_accuracy": 1.0, "distance_within_class": 0.1}  # (0 + 0.2) / 2


def test_no_image_is_its_own_neighbour() -> None:
    batches = [{"x": torch.eye(3), "labels": torch.tensor([0, 1, 2])}]
    assert (
        source.on_source(lambda batch: batch["x"], batches, k=1, temperature=0.1, classes=3)["neighbour_accuracy"] == 0
    )


def test_of_a_large_set_some_rows() -> None:
    batches = ({"x": torch.rand(4, 2), "labels": torch.zeros(4).long()} for _ in range(2))
    old, source.AT_MOST = source.AT_MOST, 3
    try:
        assert source.on_source(lambda batch: batch["x"], batches, k=1, temperature=0.1, classes=1)["rows"] == 3
    finally:
        source.AT_MOST = old
