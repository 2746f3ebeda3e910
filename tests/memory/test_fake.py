"""Models of fake tensors: same shapes and ties, no memory, and answers to questions about data."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from transfer_run.errors import UserError
from transfer_run.memory.fake import AnswersNo, fake_mode, make_fake


class Tied(nn.Module):
    """A table and a head of one weight, a frozen layer, a buffer, and tensors that are no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.table.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.register_buffer("scale", torch.ones(4, dtype=torch.float64))
        self.plain = torch.arange(3)
        self.pair = (torch.zeros(2), torch.zeros(3))

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.frozen(self.table(ids)))


def test_everything_becomes_fake_and_ties_stay() -> None:
    for device in ("cpu", "meta"):
        with torch.device(device):
            model = Tied()
        mode = fake_mode()
        make_fake(model, mode)
        assert model.head.weight is model.table.weight
        assert model.head.weight.requires_grad
        assert not model.frozen.weight.requires_grad
        assert {name for name, p in model.named_parameters() if not p.requires_grad} == {"frozen.weight", "frozen.bias"}
        held = [*model.parameters(), *model.buffers(), model.plain, *model.pair]
        assert all(isinstance(tensor, FakeTensor) and tensor.device.type == "cpu" for tensor in held)
        with mode:
            model(torch.zeros(2, 3, dtype=torch.long)).sum().backward()
        assert model.table.weight.grad is not None


def test_true_half_precision_converts_floating_point_only() -> None:
    model = Tied()
    make_fake(model, fake_mode(), torch.bfloat16)
    assert model.table.weight.dtype is model.scale.dtype is torch.bfloat16
    assert model.plain.dtype is torch.int64


def test_questions_about_data_are_answered() -> None:
    with fake_mode(), AnswersNo():
        values = torch.randn(4, 5, 3, requires_grad=True)
        mask = torch.zeros(4, 5, dtype=torch.bool)
        assert not bool(mask.any())
        assert values.sum().item() == 1.0
        assert int(mask.sum()) == 1
        assert mask.nonzero().shape == (20, 2)
        assert values[mask].shape == (20, 3)
        assert torch.masked_select(values.detach(), mask[..., None]).shape == (60,)
        assert bool(torch.rand(1) > 0.1)
        assert torch.rand(7).shape == (7,)
        values[mask].sum().backward()
        assert values.grad is not None
        assert values.grad.shape == values.shape


def test_what_is_known_is_not_guessed() -> None:
    with fake_mode(), AnswersNo():
        count = torch.tensor(3.0)
        count += 4
        assert count.item() == 7.0


def test_an_outcome_that_no_rule_foresees_is_refused_in_words() -> None:
    with fake_mode(), AnswersNo(), pytest.raises(UserError, match=r"unique_consecutive.* depends on the data"):
        torch.unique_consecutive(torch.randn(6))
