"""Check 7 of the method's spec; the schedule of an expert; its file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests import small
from transfer_run.backbones.base import Batch
from transfer_run.errors import UserError
from transfer_run.methods.base import Method
from transfer_run.methods.data_selection.trajectories import experts
from transfer_run.methods.data_selection.trajectories.network import FlatNetwork
from transfer_run.methods.work import Work
from transfer_run.task import Task

SETTINGS: dict[str, Any] = {
    "epochs": 6, "lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "lr_factor": 0.6, "clip_loss": True,
    "gradient_penalty": 2.0,
}  # fmt: skip


def network() -> FlatNetwork:
    return FlatNetwork(Method(small.backbone("chain"), Task("classification", 3)))


def test_the_clipping_of_the_loss() -> None:
    found = [experts.clipping(epoch) for epoch in range(12)]
    assert found == pytest.approx([0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.0])


def test_the_penalty_of_a_constant_network_is_its_weight() -> None:
    images = torch.randn(4, 3, 5, 5)
    found = experts.gradient_penalty(lambda seen: (0 * seen).flatten(1) + 7, images, 2.0)
    assert float(found) == pytest.approx(2.0)


def test_the_loss_is_weighed_and_its_penalty_sees_plain_images() -> None:
    flat, batch = network(), small.batch("chain", "classification")
    labels = torch.arange(len(batch["pixel_values"])) % 3
    batch = {**batch, "labels": labels}
    vary = lambda images: images * 0.5  # noqa: E731
    training = experts.Training(flat, SETTINGS, 1, vary)
    entropy = F.cross_entropy(flat.own(0.5 * batch["pixel_values"]), labels)
    penalty = experts.gradient_penalty(flat.own, batch["pixel_values"], 2.0)
    expected = float((0.65 * entropy + penalty).detach())
    assert float(training.loss(batch, 3).detach()) == pytest.approx(expected, rel=1e-5)
    plain = experts.Training(flat, SETTINGS | {"clip_loss": False, "gradient_penalty": 0.0}, 1, vary)
    assert float(plain.loss(batch, 3).detach()) == pytest.approx(float(entropy.detach()), rel=1e-6)


def test_an_experts_way_is_that_of_sgd_with_a_new_start_behind_the_middle() -> None:
    """The rate is multiplied, and the momentum is empty, from epoch E // 2 + 2 on."""
    flat, batch = network(), small.batch("chain", "classification")
    batch = {**batch, "labels": torch.arange(len(batch["pixel_values"])) % 3}
    flat.begin(3)
    theta = flat.vector()
    training = experts.Training(flat, SETTINGS, 2, lambda images: images)

    def batches(first: int) -> Iterator[Batch]:
        while True:
            yield batch

    trajectory = training.fit("expert", batches, Work())
    assert trajectory.shape == (7, flat.count)
    assert torch.equal(trajectory[0], theta)
    buffer = torch.zeros_like(theta)
    for number in range(12):
        epoch = number // 2
        gradient = _gradient(flat, training, theta, batch, epoch) + 0.01 * theta
        buffer = gradient if number == 10 else 0.9 * buffer + gradient
        theta = theta - (0.06 if epoch >= 5 else 0.1) * buffer
        if number % 2:
            torch.testing.assert_close(trajectory[epoch + 1], theta, rtol=2e-4, atol=2e-5)


def _gradient(flat: FlatNetwork, training: experts.Training, theta: Tensor, batch: Batch, epoch: int) -> Tensor:
    parts = flat.parts(theta)
    with torch.no_grad():
        for name, parameter in flat.method.named_parameters():
            parameter.copy_(parts[name])
    found = torch.autograd.grad(training.loss(batch, epoch), list(flat.method.parameters()))
    return torch.cat([each.flatten() for each in found])


def test_an_experts_file_is_read_in_parts_and_knows_its_network(tmp_path: Path) -> None:
    flat = network()
    trajectory = torch.randn(5, flat.count)
    experts.write(experts.path_of(tmp_path, 0), trajectory, flat)
    assert torch.equal(experts.read(experts.path_of(tmp_path, 0), 1, 3), trajectory[1:4])
    assert experts.epochs_of(experts.path_of(tmp_path, 0)) == 4
    assert experts.found(tmp_path, flat, 4) == [tmp_path / "expert-000.safetensors"]
    assert experts.size_of(1, 4, flat.count) == trajectory.numel() * 4
    with pytest.raises(UserError, match="trained for 4 epochs, and epoch 5"):
        experts.found(tmp_path, flat, 5)
    with pytest.raises(UserError, match="of another network"):
        experts.found(tmp_path, FlatNetwork(Method(small.backbone("chain"), Task("classification", 4))), 4)
    (tmp_path / "expert-001.safetensors").write_bytes(b"none")
    with pytest.raises(UserError, match="cannot be read"):
        experts.found(tmp_path, flat, 4)
    with pytest.raises(UserError, match="There are no experts"):
        experts.found(tmp_path / "other", flat, 4)


def test_a_full_disk_is_said_before_a_step_is_taken(tmp_path: Path) -> None:
    experts.refuse_full_disk(tmp_path, 1)
    with pytest.raises(UserError, match="GB are free"):
        experts.refuse_full_disk(tmp_path, 10**18)
