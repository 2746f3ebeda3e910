"""The classifier of a backbone's weights becomes the head, or is refused."""

from __future__ import annotations

import pytest
import torch

from tests.methods.distillation.models import TASK, vit
from transfer_run.errors import UserError
from transfer_run.methods.classifier import refuse_other_names, refuse_untrained, take_classifier
from transfer_run.methods.tuning.full import Full
from transfer_run.task import Task


def test_it_goes_on() -> None:
    backbone = vit(1, layers=1)
    backbone.source_head = (torch.arange(96.0).view(3, 32), torch.tensor([1.0, 2.0, 3.0]))
    method = Full(backbone, TASK)
    method.backbone.source_head = backbone.source_head
    take_classifier(method)
    assert torch.equal(method.backbone.head.weight, backbone.source_head[0])
    assert method.backbone.head.bias.tolist() == [1, 2, 3]
    refuse_untrained(method)


def test_none_and_others_are_refused() -> None:
    method = Full(vit(1, layers=1), TASK)
    with pytest.raises(UserError, match="are random"):
        refuse_untrained(method)
    with pytest.raises(UserError, match="No linear classifier"):
        take_classifier(method)
    method.backbone.source_head = (torch.zeros(5, 32), torch.zeros(5))
    with pytest.raises(UserError, match="of 5 classes from 32 features; the run's task has 3"):
        take_classifier(method)


def test_names() -> None:
    task = Task("classification", 2, ("cat", "dog"))
    refuse_other_names((), task, "here")
    refuse_other_names(("0", "1"), task, "here")
    refuse_other_names(("cat", "dog"), task, "here")
    refuse_other_names(("dog", "cat"), Task("classification", 2, ("0", "1")), "here")
    with pytest.raises(UserError, match="classes are dog, cat, the run's cat, dog"):
        refuse_other_names(("dog", "cat"), task, "here")
