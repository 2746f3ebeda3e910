"""Contrastive losses against loops over their definitions, and the memory of training rows."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from transfer_run.methods.distillation.transfer.contrast import EPSILON, Memory, relations


def memory(labels: list[int], negatives: int = 6) -> Memory:
    torch.manual_seed(0)
    made = Memory(4, 5, 3, width=8, negatives=negatives, temperature=0.5, momentum=0.75)
    made.open(torch.tensor(labels), seed=1)
    return made


def test_relations_by_a_double_loop() -> None:
    student, teacher = torch.randn(5, 4), torch.randn(5, 7)
    total = 0.0
    for i in range(5):
        rows = [[float(F.cosine_similarity(x[i], x[j], dim=0)) for j in range(5)] for x in (student, teacher)]
        q, p = (torch.tensor(row).softmax(0) for row in rows)
        total += float((p * (p / q).log()).sum())
    assert float(relations(student, teacher)) == pytest.approx(total, rel=1e-4)
    assert float(relations(teacher[:, :4] * 3, teacher[:, :4])) == pytest.approx(0, abs=1e-6), "lengths do not count"


def test_negatives_are_of_other_classes_and_every_one_is_drawn() -> None:
    labels = [0, 2, 1, 0, 2, 2, 1, 0]
    drawn = memory(labels, negatives=400).others(torch.tensor([0, 1, 2]))
    for label, rows in zip([0, 1, 2], drawn, strict=True):
        assert set(rows.tolist()) == {row for row, other in enumerate(labels) if other != label}
        shares = torch.bincount(rows, minlength=8) / 400
        assert float(shares.max()) < 2 / (8 - labels.count(label)), "all are as likely"


def test_the_loss_by_its_definition() -> None:
    made, labels = memory([0, 1, 2, 0, 1, 2]), torch.tensor([0, 1])
    student, teacher, rows = torch.randn(2, 4), torch.randn(2, 5), torch.tensor([3, 4])
    kept = made.student_rows.clone(), made.teacher_rows.clone()
    torch.manual_seed(7)
    found = made(student, teacher, rows, labels)
    torch.manual_seed(7)
    compared = torch.cat([rows[:, None], made.others(labels)], 1)
    own, other = F.normalize(made.student(student), dim=-1), F.normalize(made.teacher(teacher), dim=-1)
    total = 0.0
    for anchors, bank in ((own, kept[1]), (other, kept[0])):
        likely = torch.stack([(bank[compared[b]] @ anchors[b] / 0.5).exp() for b in range(2)])
        likely = likely / (likely.mean() * 6)
        noise = 6 / 6
        for b in range(2):
            total -= float((likely[b, 0] / (likely[b, 0] + noise + EPSILON)).log())
            total -= sum(math.log(noise / (float(p) + noise + EPSILON)) for p in likely[b, 1:])
    assert float(found.detach()) == pytest.approx(total / 2, rel=1e-4)
    for bank, before, seen in ((made.student_rows, kept[0], own), (made.teacher_rows, kept[1], other)):
        expected = before.clone()
        expected[rows] = F.normalize(0.75 * before[rows] + 0.25 * seen.detach(), dim=-1)
        torch.testing.assert_close(bank, expected)


def test_the_scale_is_that_of_the_first_batch_and_evaluation_remembers_nothing() -> None:
    made = memory([0, 1, 2])
    given = torch.randn(2, 4), torch.randn(2, 5), torch.tensor([0, 1]), torch.tensor([0, 1])
    made.eval()(*given)
    assert made.scale.tolist() == [-1, -1]
    made.train()(*given)
    first, rows = made.scale.clone(), made.student_rows.clone()
    assert (first > 0).all()
    made.train()(*given)
    assert torch.equal(made.scale, first)
    assert not torch.equal(made.student_rows, rows)


def test_one_class_has_no_negatives() -> None:
    with pytest.raises(ValueError, match="no negatives"):
        memory([1, 1, 1])
