"""What is infinite or no number is never merged, wherever it comes from: a model, the base, a factor, a narrow type."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.methods.merging.toy import merged, random_models
from transfer_run.errors import UserError
from transfer_run.methods.merging.average import AverageRule
from transfer_run.methods.merging.dare_linear import DareLinearRule
from transfer_run.methods.merging.engine.stream import Rule, is_finite
from transfer_run.methods.merging.task_arithmetic import TaskArithmetic, TaskArithmeticRule
from transfer_run.methods.merging.ties import TiesRule
from transfer_run.methods.merging.trimming.drop import Drop

RULES: dict[str, Any] = {
    "average": AverageRule, "task_arithmetic": TaskArithmeticRule, "ties": lambda: TiesRule(keep=0.5),
    "dare": lambda: DareLinearRule(Drop(0.1, 0)),
}  # fmt: skip


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("whose", [0, 1, "base"])
def test_the_tensor_and_the_model_are_named(rule: str, whose: int | str, value: float) -> None:
    base, models = random_models(2)
    if whose == "base" and rule == "average":
        pytest.skip("reads no base")
    (base if whose == "base" else models[int(whose)])["conv"][1, 2, 0] = value
    with pytest.raises(UserError, match=r"conv .*not? finite numbers|conv has changes") as error:
        merged(base, models, RULES[rule]())
    assert whose == "base" or f"model{whose}" in error.value.where


@pytest.mark.parametrize("name", ["bn.running_mean", "head"])
def test_in_what_is_averaged_or_taken_over(name: str) -> None:
    base, models = random_models(2)
    for i, tensors in enumerate((base, *models)):
        tensors[name] = torch.full((3,), float("nan") if i == (1 if "bn" in name else 0) else 1.0)
    with pytest.raises(UserError, match=rf"{name} holds"):
        merged(base, models, TaskArithmeticRule(), exclude=["head"])


def test_too_large_for_the_type_of_the_result() -> None:
    rule: Rule = TaskArithmeticRule(1.0)
    base = {"x": torch.tensor([1.0, 2.0], dtype=torch.float16)}
    models = [{"x": torch.tensor([1.0, 40000.0], dtype=torch.float16)} for _ in range(2)]
    with pytest.raises(UserError, match="x would hold values too large for float16") as error:
        merged(base, models, rule)
    assert "float32" in error.value.remedy
    wide = merged({"x": base["x"].float()}, models, rule)
    assert wide["x"].tolist() == [1.0, 2.0 + 2 * (40000.0 - 2.0)]
    huge = [{"x": torch.tensor([3e38, 1.0])}] * 2
    with pytest.raises(UserError, match="no finite numbers"):
        merged({"x": torch.zeros(2)}, huge, rule)


def test_large_finite_values_whose_sum_is_not() -> None:
    assert is_finite(torch.full((4,), 3e38))
    assert not is_finite(torch.tensor([float("inf"), -float("inf")]))
    assert is_finite(torch.tensor([1, 2]))


@pytest.mark.parametrize("weights", [[1.0, -1.0], [float("nan"), 1.0], [float("inf"), 1.0]])
def test_weights_without_a_mean(weights: list[float]) -> None:
    with pytest.raises(UserError, match=r"sum to zero|and the weights"):
        merged(None, random_models(2)[1], AverageRule(weights))


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), [0.5, float("nan")], True, "much"])
def test_lambda_is_a_finite_number(scale: Any) -> None:
    with pytest.raises(UserError, match="neither a finite number"):
        TaskArithmetic(None, None, lambda_=scale)
