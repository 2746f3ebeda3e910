"""A finished model is read from its file tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from transfer_run.backbones.load import build_backbone
from transfer_run.backbones.weights.checkpoints import not_finite
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.models.model_files import load_model, save_model
from transfer_run.files import read_json, write_json
from transfer_run.memory.tracker import MemoryTracker
from transfer_run.methods.build import build_method
from transfer_run.task import Task

TASK = Task("classification", 2, ("no", "yes"), ("accuracy",))


def saved(folder: Path) -> dict[str, Tensor]:
    """A model of full fine-tuning in `folder`; its tensors."""
    config: dict[str, Any] = dict(compose(["method=full", "backbone=bert_tiny", "dataset=python_docs",
                                           "backbone.weights=random:0"]).config)  # fmt: skip
    torch.manual_seed(0)
    method = build_method(config["method"], build_backbone(config["backbone"]), TASK)
    method.settle()
    save_model(method, folder, config, {})
    return load_file(folder / "model.safetensors")


def test_the_largest_tensor_is_there_twice_and_no_other(tmp_path: Path) -> None:
    tensors = saved(tmp_path)
    with MemoryTracker() as tracker:
        model = load_model(tmp_path)
        peak = tracker.report().peak
    largest = max(tensor.nbytes for tensor in tensors.values())
    held = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    assert held < peak <= held + largest + 64
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in tensors.items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_no_number_is_refused(value: float, tmp_path: Path) -> None:
    tensors = saved(tmp_path)
    name = max(tensors, key=lambda each: tensors[each].numel())
    tensors[name].view(-1)[7] = value
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    about = read_json(tmp_path / "model.json", "")
    write_json(tmp_path / "model.json", {**about, "sha256": {}})
    with pytest.raises(UserError, match="no finite numbers"):
        load_model(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_looking_for_values_that_are_no_numbers_needs_no_memory(dtype: torch.dtype) -> None:
    tensors = {name: torch.zeros(1000, dtype=dtype) for name in ("good", "nan", "inf", "negative")}
    tensors |= {"none": torch.zeros(0, dtype=dtype), "whole": torch.zeros(9, dtype=torch.int64)}
    for name, value in (("nan", float("nan")), ("inf", float("inf")), ("negative", -float("inf"))):
        tensors[name][500] = value
    with MemoryTracker() as tracker:
        tracker.hold(tensors.values(), "parameters")
        before = tracker.current
        assert not_finite(tensors) == ["nan", "inf", "negative"]
        assert tracker.report().peak - before < 100
