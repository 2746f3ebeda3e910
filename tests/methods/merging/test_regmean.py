"""The Checks of RegMean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from tests.methods.merging.toy import Tensors, equal, flat, merged, random_models, streamed
from transfer_run.errors import UserError
from transfer_run.methods.merging.average import AverageRule
from transfer_run.methods.merging.engine.checkpoint import StateDict, open_checkpoint
from transfer_run.methods.merging.regmean import ROWS, RegMeanRule
from transfer_run.methods.merging.statistics.gram import TRANSPOSED, gather_grams, linear_layers, save_grams

SHAPES = {"linear.weight": (ROWS + 5, 6), "linear.bias": (ROWS + 5,), "conv": (2, 3, 3)}


def inputs(count: int, rows: int = 40, width: int = 6) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(rows + 7 * i, width, generator=generator) * (i + 1) for i in range(count)]


def grams(samples: list[Tensor], name: str = "linear.weight") -> list[StateDict]:
    return [StateDict({name: x.T @ x / len(x)}) for x in samples]


def test_equal_grams_give_the_average() -> None:
    """Check 11."""
    _, models = random_models(3, SHAPES)
    x = inputs(1)[0]
    out = merged(None, models, RegMeanRule(grams([x, x, x])))
    assert torch.allclose(flat(out), flat(merged(None, models, AverageRule())), atol=1e-5)


def test_one_model_is_itself() -> None:
    _, models = random_models(1, SHAPES)
    assert torch.allclose(flat(merged(None, models, RegMeanRule(grams(inputs(1))))), flat(models[0]), atol=1e-5)


def test_minimises_the_distance_on_every_models_inputs() -> None:
    _, models = random_models(2, SHAPES)
    samples = inputs(2)
    out = merged(None, models, RegMeanRule(grams(samples), off_diagonal=1.0))["linear.weight"]
    stacked = torch.cat([x / len(x) ** 0.5 for x in samples]).double()
    targets = torch.cat(
        [x.double() @ m["linear.weight"].double().T / len(x) ** 0.5 for x, m in zip(samples, models, strict=True)]
    )
    wanted = torch.linalg.lstsq(stacked, targets).solution.T
    assert torch.allclose(out.double(), wanted, atol=1e-5)


def test_small_off_diagonals_weigh_each_input_for_itself() -> None:
    _, models = random_models(2, SHAPES)
    samples = inputs(2)
    out = merged(None, models, RegMeanRule(grams(samples), off_diagonal=1e-9))["linear.weight"]
    power = torch.stack([x.square().mean(0) for x in samples])
    wanted = sum(m["linear.weight"] * p for m, p in zip(models, power, strict=True)) / power.sum(0)
    assert torch.allclose(out, wanted, atol=1e-5)


def test_inputs_that_nobody_sees_are_averaged() -> None:
    _, models = random_models(2, SHAPES)
    samples = inputs(2)
    for x in samples:
        x[:, 2] = 0
    out = merged(None, models, RegMeanRule(grams(samples), off_diagonal=1.0))["linear.weight"]
    wanted = (models[0]["linear.weight"][:, 2] + models[1]["linear.weight"][:, 2]) / 2
    assert torch.allclose(out[:, 2], wanted, atol=1e-5)
    assert bool(out.isfinite().all())


@pytest.mark.parametrize("flipped", [False, True])
def test_streaming_and_memory_give_identical_bits(flipped: bool, tmp_path: Path) -> None:
    _, models = random_models(2, SHAPES)
    names = frozenset[str]()
    if flipped:  # weights stored (in, out)
        names = frozenset({"linear.weight"})
        plain = merged(None, models, RegMeanRule(grams(inputs(2))))
        models = [{**m, "linear.weight": m["linear.weight"].T.contiguous()} for m in models]
    rule = RegMeanRule(grams(inputs(2)), transposed=names)
    whole = merged(None, models, rule, chunk_bytes=1e9)
    assert equal(whole, streamed(None, models, rule, tmp_path, chunk_bytes=1))
    if flipped:
        assert torch.allclose(whole["linear.weight"].T, plain["linear.weight"], atol=1e-5)


def test_misfitting_grams_are_refused() -> None:
    _, models = random_models(2, SHAPES)
    with pytest.raises(UserError, match="2 models and 1 file"):
        merged(None, models, RegMeanRule(grams(inputs(1))))
    with pytest.raises(UserError, match="not 6 x 6"):
        merged(None, models, RegMeanRule(grams(inputs(2, width=5))))


class Toy(nn.Module):
    """A linear, a Conv1D, an embedding tied to a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.linear = nn.Linear(4, 3)
        self.conv1d = Conv1D(2, 3)
        self.unused = nn.Linear(4, 4)
        self.head = nn.Linear(4, 10, bias=False)
        self.head.weight = self.embedding.weight
        self.dropout = nn.Dropout(0.5)

    def forward(self, ids: Tensor) -> Tensor:
        self.seen = self.dropout(self.embedding(ids))
        self.hidden = self.linear(self.seen)
        return self.conv1d(self.hidden)


def test_grams_are_those_of_the_layers_inputs(tmp_path: Path) -> None:
    model = Toy().train()
    batches = [torch.tensor([[1, 2, 3]]), torch.tensor([[4, 5]])]
    assert set(linear_layers(model)) == {"linear.weight", "conv1d.weight", "unused.weight"}
    seen: Tensors = {}

    def forward(ids: Tensor) -> None:
        model(ids)
        seen["linear.weight"] = torch.cat([seen.get("linear.weight", torch.zeros(0, 4)), model.seen.detach()[0]])
        seen["conv1d.weight"] = torch.cat([seen.get("conv1d.weight", torch.zeros(0, 3)), model.hidden.detach()[0]])

    found = gather_grams(model, forward, batches)
    assert found.keys() == {"linear.weight", "conv1d.weight"}  # the unused layer has no inputs
    for name, x in seen.items():
        assert len(x) == 5
        assert torch.allclose(found[name], x.T @ x / 5, atol=1e-6)
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
    save_grams(found, model, tmp_path / "gram.safetensors")
    opened = open_checkpoint(tmp_path / "gram.safetensors")
    assert json.loads(opened.metadata[TRANSPOSED]) == ["conv1d.weight"]
    assert opened.entries.keys() == found.keys()
