"""Data-partitioned distillation, flips and momentum interpolation against the definitions, computed apart in NumPy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from transfer_run.methods.averaging import mix
from transfer_run.methods.distillation.transfer import partition
from transfer_run.methods.distillation.transfer.knowledge import only

ORACLE = "knowledge_transfer_*.npz"
EXACT = {"rtol": 1e-10, "atol": 1e-12}


def logits(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        tensors["student_logits"], tensors["initial_student_logits"], tensors["teacher_logits"],
        tensors["labels"].long(),
    )  # fmt: skip


@pytest.mark.parametrize("supervised", [True, False])
def test_masks_and_partitioned_losses(tensors: dict[str, Tensor], supervised: bool) -> None:
    student, initial, teacher, labels = logits(tensors)
    name, known = ("supervised", labels) if supervised else ("unsupervised", None)
    taught = partition.taught_by("most_conf", student, initial, teacher, known)
    assert torch.equal(taught, tensors[f"mask_{name}"].bool())
    target, kept = partition.target_of("most_conf", student, initial, teacher, known)
    found = partition.divergence(target, kept, float(tensors["temperature"]))
    torch.testing.assert_close(found, tensors[f"loss_dp_{name}"], **EXACT)


def test_divergences(tensors: dict[str, Tensor]) -> None:
    student, initial, teacher, labels = logits(tensors)
    temperature = float(tensors["temperature"])
    torch.testing.assert_close(partition.kl_rows(teacher, student, temperature), tensors["kl_teacher"], **EXACT)
    torch.testing.assert_close(partition.kl_rows(initial, student, temperature), tensors["kl_initial"], **EXACT)
    torch.testing.assert_close(partition.divergence(teacher, student, temperature), tensors["loss_kl"], **EXACT)
    torch.testing.assert_close(nn.functional.cross_entropy(student, labels), tensors["loss_xe"], **EXACT)


def test_flips(tensors: dict[str, Tensor]) -> None:
    _, initial, teacher, labels = logits(tensors)
    positive, negative = partition.flips(initial, teacher, labels)
    right, taught = (each.argmax(-1).eq(labels).numpy() for each in (initial, teacher))
    for mask, shares, name in (
        (positive, only(taught, right), "pos_flip_share"), (negative, only(right, taught), "neg_flip_share"),
    ):  # fmt: skip
        torch.testing.assert_close(mask.double().mean(), tensors[name], **EXACT)
        assert shares.mean() == pytest.approx(float(tensors[name]))


def test_slow_weights(tensors: dict[str, Tensor]) -> None:
    slow, fast = nn.Module(), nn.Module()
    slow.weight = nn.Parameter(tensors["mcl_slow0"].clone())
    for weights in tensors["mcl_fast"]:
        fast.weight = nn.Parameter(weights)
        mix(slow, fast, float(tensors["mcl_tau"]))
    torch.testing.assert_close(slow.weight.detach(), tensors["mcl_slow_after3"], **EXACT)
