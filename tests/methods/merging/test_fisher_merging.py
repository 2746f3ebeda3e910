"""The Checks of Fisher merging: the merge and the estimate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from tests.methods.merging.toy import LONG, SHAPES, Tensors, equal, flat, merged, random_models, streamed
from transfer_run.backbones.base import Batch
from transfer_run.errors import UserError
from transfer_run.methods.merging.average import AverageRule
from transfer_run.methods.merging.engine.checkpoint import StateDict, open_checkpoint
from transfer_run.methods.merging.fisher_merging import FisherRule, coefficient_candidates
from transfer_run.methods.merging.statistics.examples import single_examples
from transfer_run.methods.merging.statistics.fisher_estimate import diagonal_fisher, exact, one_label, save_fisher


def random_fishers(count: int, shapes: dict[str, tuple[int, ...]] = SHAPES, seed: int = 0) -> list[StateDict]:
    """Log-uniform between 1e-9 and 1e-1, as real ones are, a tenth of them zero."""
    generator = torch.Generator().manual_seed(seed)

    def one(shape: tuple[int, ...]) -> Tensor:
        values = 10 ** (torch.rand(shape, generator=generator) * 8 - 9)
        return values * (torch.rand(shape, generator=generator) > 0.1)

    return [StateDict({n: one(s) for n, s in shapes.items()}, f"fisher{i}") for i in range(count)]


def constant(value: float, count: int) -> list[StateDict]:
    return [StateDict({name: torch.full(shape, value) for name, shape in SHAPES.items()}) for _ in range(count)]


# ---- the merge
@pytest.mark.parametrize("value", [1.0, 3e-4])
def test_equal_fishers_give_the_weighted_mean(value: float) -> None:
    """Check 2."""
    _, models = random_models(3)
    weights = [0.5, 0.3, 0.2]
    out = merged(None, models, FisherRule(weights, constant(value, 3)))
    assert torch.allclose(flat(out), flat(merged(None, models, AverageRule(weights))), atol=1e-6)
    plain = merged(None, models, FisherRule([1 / 3] * 3, constant(1.0, 3), normalize=False))
    assert torch.allclose(flat(plain), flat(merged(None, models, AverageRule())), atol=1e-6)
    assert torch.allclose(flat(merged(None, models, FisherRule([1 / 3] * 3, None))), flat(plain), atol=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("favor", [True, False])
def test_all_weight_on_the_target_gives_the_target_exactly(normalize: bool, favor: bool) -> None:
    """Check 3."""
    _, models = random_models(3)
    rule = FisherRule([1.0, 0, 0], random_fishers(3), favor_target=favor, normalize=normalize)
    assert equal(merged(None, models, rule), models[0])
    assert equal(merged(None, models[:1], FisherRule([0.7], random_fishers(1))), models[0])


def test_scale_of_one_fisher() -> None:
    """Check 4."""
    _, models = random_models(2)
    fishers = random_fishers(2)
    scaled = [fishers[0], StateDict({name: tensor * 50 for name, tensor in fishers[1].tensors.items()})]

    def out(which: list[StateDict], normalize: bool) -> Tensor:
        return flat(merged(None, models, FisherRule([0.5, 0.5], which, 0.0, normalize=normalize)))

    assert torch.allclose(out(fishers, True), out(scaled, True), atol=1e-6)
    before, after = out(fishers, False), out(scaled, False)
    away = (flat(models[1]) - before).abs() - (flat(models[1]) - after).abs()
    assert bool((away >= -1e-6).all())
    assert float(away.max()) > 0.01


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), favor=st.booleans(), normalize=st.booleans(), data=st.data())
def test_values_lie_between_those_of_the_models(seed: int, favor: bool, normalize: bool, data: st.DataObject) -> None:
    """Check 5."""
    _, models = random_models(3, seed=seed)
    weights = data.draw(st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0]), min_size=3, max_size=3).filter(any))
    rule = FisherRule(weights, random_fishers(3, seed=seed), 1e-6, favor, normalize)
    stacked = torch.stack([flat(model) for model in models])
    out = flat(merged(None, models, rule))
    assert bool(out.isfinite().all())
    slack = 1e-6 * stacked.abs().amax(0)
    assert bool((out >= stacked.amin(0) - slack).all())
    assert bool((out <= stacked.amax(0) + slack).all())


def test_where_fishers_vanish() -> None:
    """Check 6, and what is said of a target coefficient of zero."""
    _, models = random_models(2)
    zero, one = constant(0.0, 1)[0], constant(1.0, 1)[0]
    out = merged(None, models, FisherRule([0.5, 0.5], [zero, one], normalize=False))
    assert torch.allclose(flat(out), flat(models[1]), rtol=1e-6, atol=1e-6)
    for floor in (1e-6, 0.0):
        assert equal(merged(None, models, FisherRule([0.5, 0.5], [zero, zero], floor, normalize=False)), models[0])
    with pytest.raises(UserError, match="zero everywhere"):
        merged(None, models, FisherRule([0.5, 0.5], [zero, one]))
    _, three = random_models(3)
    out = merged(None, three, FisherRule([0.0, 0.75, 0.25], [zero, zero, zero], normalize=False))
    wanted = 0.75 * flat(three[1]) + 0.25 * flat(three[2])
    assert torch.allclose(flat(out), wanted, atol=1e-6)


def test_a_gaussian_with_diagonal_precision_merges_to_the_joint_minimiser() -> None:
    """Check 9, second half: losses 1/2 sum_j a_ij (theta_j - theta_ij)^2."""
    _, models = random_models(4)
    precisions = [StateDict({n: torch.rand(s) + 0.1 for n, s in SHAPES.items()}) for _ in models]
    out = merged(None, models, FisherRule([1.0] * 4, precisions, 0.0, normalize=False), dtype=torch.float64)
    total = sum(flat(p.tensors).double() for p in precisions)
    pairs = zip(precisions, models, strict=True)
    wanted = sum(flat(p.tensors).double() * flat(m).double() for p, m in pairs) / total
    assert torch.allclose(flat(out).double(), wanted, atol=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
def test_streaming_and_memory_give_identical_bits(normalize: bool, tmp_path: Path) -> None:
    _, models = random_models(3, LONG)
    fishers = random_fishers(3, dict(LONG))
    for i, fisher in enumerate(fishers):
        save_fisher(fisher.tensors, tmp_path / f"fisher{i}.safetensors", {})
    stored = [open_checkpoint(tmp_path / f"fisher{i}.safetensors") for i in range(3)]
    weights = [0.5, 0.2, 0.3]
    whole = merged(None, models, FisherRule(weights, fishers, normalize=normalize), chunk_bytes=1e9)
    rule = FisherRule(weights, stored, normalize=normalize)
    assert equal(whole, streamed(None, models, rule, tmp_path, chunk_bytes=1))


def test_the_file_tells_its_norm(tmp_path: Path) -> None:
    fisher = random_fishers(1)[0].tensors
    save_fisher(fisher, tmp_path / "fisher.safetensors", {"labels": "exact"})
    with safe_open(tmp_path / "fisher.safetensors", framework="pt") as file:
        assert float(file.metadata()["norm"]) == pytest.approx(float(flat(fisher).double().norm()), rel=1e-12)
        assert file.metadata()["labels"] == "exact"


def test_misfits_are_refused() -> None:
    _, models = random_models(2)
    for bad in ([1.0], [0.0, 0.0], [1.0, -0.5]):
        with pytest.raises(UserError, match="coefficients"):
            merged(None, models, FisherRule(bad, None))
    short = {name: torch.ones(shape) for name, shape in SHAPES.items() if name != "conv"}
    with pytest.raises(UserError, match="1 Fisher tensors") as raised:
        merged(None, models, FisherRule([0.5, 0.5], [constant(1.0, 1)[0], StateDict(short, "there")]))
    assert raised.value.where == "conv in there"


def test_candidates() -> None:
    assert coefficient_candidates([1, 2], 2, 9, 0) == [(1.0, 2.0)]
    assert coefficient_candidates("grid", 2, 3, 0) == [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)]
    draws = coefficient_candidates("dirichlet", 3, 400, 0)
    assert draws == coefficient_candidates("dirichlet", 3, 400, 0) != coefficient_candidates("dirichlet", 3, 400, 1)
    np.testing.assert_allclose(np.sum(draws, axis=1), 1)
    np.testing.assert_allclose(np.mean(draws, axis=0), 1 / 3, atol=0.04)
    for wrong in ("grid", "gird"):
        with pytest.raises(UserError, match="3 models"):
            coefficient_candidates(wrong, 3, 5, 0)


# ---- the estimate
class Softmax(nn.Module):
    """Logits x W + b."""

    def __init__(self, features: int, classes: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(features, classes, generator=generator))
        self.dropout = nn.Dropout(0.5)

    def forward(self, batch: Batch) -> Tensor:
        return self.dropout(batch["x"] @ self.weight)


def data(rows: int = 6, features: int = 4) -> Tensor:
    return torch.randn(rows, features, generator=torch.Generator().manual_seed(3))


def batches(x: Tensor, size: int, labels: Tensor | None = None) -> Iterator[Batch]:
    for at in range(0, len(x), size):
        batch = {"x": x[at : at + size]}
        yield batch if labels is None else {**batch, "labels": labels[at : at + size]}


def fisher_of(model: nn.Module, source: Any, count: int | None = None) -> Tensors:
    scored = exact(lambda batch: F.log_softmax(model(batch), -1))
    return diagonal_fisher(model, dict(model.named_parameters()), single_examples(source, count), scored)


def test_linear_softmax_has_a_closed_form() -> None:
    """Check 7."""
    model, x = Softmax(4, 3), data()
    found = fisher_of(model, batches(x, 2))["weight"]
    p = (x @ model.weight).softmax(-1).detach()
    assert torch.allclose(found, torch.einsum("nd,nk->dk", x.square(), p * (1 - p)) / len(x), atol=1e-6)
    one = Softmax(1, 2)
    with torch.no_grad():
        one.weight[0, 1] = 0
    p = float(one.weight[0, 0].detach().sigmoid())
    assert float(fisher_of(one, batches(torch.ones(1, 1), 1))["weight"][0, 0]) == pytest.approx(p * (1 - p), rel=1e-5)


def test_neither_batch_size_nor_order_nor_labels_matter() -> None:
    """Check 8."""
    model, x = Softmax(4, 3), data()
    found = fisher_of(model, batches(x, 1))
    for size in (2, 4, len(x)):
        assert equal(fisher_of(model, batches(x, size)), found)
    assert torch.allclose(flat(fisher_of(model, batches(x.flip(0), 2))), flat(found), atol=1e-7)
    assert equal(fisher_of(model, batches(x, 2, torch.zeros(len(x), dtype=torch.int64))), found)
    wrong = torch.autograd.grad(F.log_softmax(x @ model.weight, -1)[:, 0].sum(), model.weight)[0].square()
    assert not torch.allclose(wrong / len(x), found["weight"], atol=1e-3)  # a batch's squared gradient is another thing


def test_only_so_many_examples_are_taken() -> None:
    model, x = Softmax(4, 3), data()
    assert equal(fisher_of(model, batches(x, 4), 3), fisher_of(model, batches(x[:3], 3)))
    with pytest.raises(ValueError, match="at least one"):
        fisher_of(model, [])


def test_nothing_remains_on_the_model() -> None:
    """Check 10."""
    model = Softmax(4, 3).train()
    model.weight.requires_grad_(False)
    model.dropout.eval()
    fisher_of(model, batches(data(), 2))
    assert model.training
    assert not model.dropout.training
    assert model.weight.grad is None
    assert not model.weight.requires_grad
    model.train()
    assert equal(fisher_of(model, batches(data(), 2)), fisher_of(model, batches(data(), 3)))  # dropout was off


def test_a_sampled_label_has_the_same_expectation() -> None:
    model, x = Softmax(4, 3), data(2)
    generator = torch.Generator().manual_seed(0)

    def drawn(batch: Batch) -> Tensor:
        logs = F.log_softmax(model(batch), -1)[0]
        return logs[int(torch.multinomial(logs.detach().exp(), 1, generator=generator))]

    many = diagonal_fisher(
        model, dict(model.named_parameters()), single_examples([{"x": x}] * 1500, None), one_label(drawn)
    )
    assert torch.allclose(flat(many), flat(fisher_of(model, batches(x, 2))), atol=0.03)


def test_padding_is_cut_off_each_example() -> None:
    batch = {
        "input_ids": torch.tensor([[5, 6, 0], [0, 7, 8]]),
        "attention_mask": torch.tensor([[1, 1, 0], [0, 1, 1]]),
        "labels": torch.tensor([[9, 1, -100, -100], [9, 9, 9, 1]]),
        "targets": torch.tensor([0, 1]),
    }
    first, second = single_examples([batch], None)
    assert first["input_ids"].tolist() == [[5, 6]]
    assert second["input_ids"].tolist() == [[7, 8]]
    assert first["labels"].tolist() == [[9, 1]]
    assert second["labels"].tolist() == [[9, 9, 9, 1]]
    assert [int(e["targets"]) for e in (first, second)] == [0, 1]


# ---- both together
def train_logistic(x: Tensor, y: Tensor, start: Tensor) -> Tensor:
    weight = start.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS([weight], max_iter=30)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight, y) + 1e-3 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach()


def test_merging_two_halves_of_the_digits_beats_plain_averaging() -> None:
    """Check 9, first half."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    x = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    wins = 0
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        first = (torch.rand(len(y), generator=generator) < torch.where(y < 5, 0.9, 0.1)).bool()  # unlike halves
        start = 0.01 * torch.randn(65, 10, generator=generator)
        weights, fishers = [], []
        for half in (first, ~first):
            weight = train_logistic(x[half], y[half], start)
            p = (x[half] @ weight).softmax(-1)
            fisher = torch.einsum("nd,nk->dk", x[half].square(), p * (1 - p)) / int(half.sum())
            weights.append({"w": weight})
            fishers.append(StateDict({"w": fisher}))
        merges = [merged(None, weights, FisherRule([0.5, 0.5], which))["w"] for which in (fishers, None)]
        losses = [float(F.cross_entropy(x @ weight, y)) for weight in merges]
        wins += losses[0] <= losses[1]
    assert wins >= 2
