"""8- and 4-bit layers below methods that train beside them: what is kept, what hangs on them, who may."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tests.memory import small
from transfer_run.backbones.load import build_backbone
from transfer_run.backbones.quantised import Packed, PlannedLinear, pack
from transfer_run.errors import UserError
from transfer_run.experiment.config import registry
from transfer_run.memory.tracker import MemoryTracker
from transfer_run.methods.base import Method
from transfer_run.methods.build import build_method

ROWS, INPUTS, OUTPUTS = 32, 64, 128


def built(method: str, load: str, **settings: Any) -> Method:
    """On three Llama blocks of bfloat16 weights, as a run builds it before its layers are packed."""
    backbone = build_backbone({**small.CONFIGS["llama"], "load": "bf16"})
    backbone.config = {**backbone.config, "load": load}
    config = {**registry.entry("method", method, ()).content["method"], "name": method, **settings}
    return build_method(config, backbone, small.task("llama"))


@pytest.mark.parametrize(("load", "kept"), [("nf4", 0), ("nf4_double", 0), ("int8", ROWS * INPUTS * 2)])
def test_forward_keeps_what_bitsandbytes_keeps(load: str, kept: int) -> None:
    """Its autograd functions: 4 bits keep the packed weight alone, 8 bits also what they read."""
    linear = nn.Linear(INPUTS, OUTPUTS, bias=False).bfloat16().requires_grad_(False)
    layer = PlannedLinear(linear, load)
    with MemoryTracker() as tracker:
        tracker.hold_model(layer)
        tracker.mark("forward")
        read = torch.ones(ROWS, INPUTS, dtype=torch.bfloat16).requires_grad_()
        tracker.hold([read], "inputs")
        held = tracker.current
        out = layer(read * 1)
        assert tracker.current - held == kept + ROWS * OUTPUTS * 2
        tracker.mark("backward")
        out.sum().backward()
    assert read.grad is not None
    assert read.grad.shape == read.shape
    peak = tracker.report().phases["backward"].by_kind["activations"]
    assert peak >= INPUTS * OUTPUTS * 2  # the whole matrix is unpacked once more


@pytest.mark.parametrize("method", ["lora", "ia3", "peft/adalora", "peft/road", "peft/randlora", "peft/ln_tuning",
                                    "peft/oft", "peft/delora", "prompt_tuning", "prefix_tuning"])  # fmt: skip
def test_packed_layers_are_applied_by_all_that_train_beside_them(method: str) -> None:
    made = built(method, "nf4")
    linears = sum(type(m) is nn.Linear and m.weight.dtype is torch.bfloat16 for b in made.backbone.blocks("decoder")
                  for m in b.modules())  # fmt: skip
    pack(made.backbone, planned=True)
    assert sum(isinstance(m, Packed) for m in made.modules()) == linears == 3 * 7
    made.train().training_loss(small.batch("llama", 2)).backward()
    trained = {n: p for n, p in made.named_parameters() if p.requires_grad}
    assert trained
    assert all(p.grad is not None and p.dtype is torch.float32 for p in trained.values())


@pytest.mark.parametrize("method", ["peft/dora", "peft/hira", "peft/hra", "peft/loha", "peft/lokr", "peft/deft"])
def test_who_computes_with_the_matrices_is_refused_in_words(method: str) -> None:
    with pytest.raises(UserError, match="matrices themselves"):
        built(method, "nf4")
    made = built(method, "bf16")
    made.backbone.config = {**made.backbone.config, "load": "nf4"}
    pack(made.backbone, planned=True)
    with pytest.raises((AttributeError, TypeError)):  # the refusal is true
        made.train().training_loss(small.batch("llama", 2))


@pytest.mark.parametrize(("method", "settings"), [("adapter", {"train_norms": False}), ("parallel_adapter", {})])
def test_adapters_still_hang_on_packed_layers(method: str, settings: dict[str, Any]) -> None:
    made = built(method, "nf4", **settings)
    pack(made.backbone, planned=True)
    made.train().training_loss(small.batch("llama", 2)).backward()
    assert all(p.grad is not None for p in made.parameters() if p.requires_grad)


def test_adapters_that_hold_a_layer_are_refused() -> None:
    with pytest.raises(UserError, match="matrices themselves"):
        built("parallel_adapter", "int8", attention="multihead", mlp=False)


def test_gpt2s_layers_are_packed_too() -> None:
    sizes = {"vocab_size": 50, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 8}
    config: dict[str, Any] = {"name": "gpt2", "family": "decoder", "load": "bf16", "weights": "random"}
    config["architecture"] = {"model_type": "gpt2", **sizes}
    backbone = build_backbone(config)
    backbone.requires_grad_(False)
    maps = {path: m for path, m in backbone.named_modules() if isinstance(m, Conv1D)}
    backbone.config = {**config, "load": "int8"}
    pack(backbone, planned=True)
    assert len(maps) == 4
    for path, conv in maps.items():
        layer = backbone.get_submodule(path).layer
        assert (layer.inputs, layer.outputs) == tuple(conv.weight.shape)
        assert layer.packed.numel() == conv.weight.numel()
    text = {"input_ids": torch.ones(1, 8, dtype=torch.long)}
    assert backbone.run(backbone.embed(text)).hidden.shape == (1, 8, 32)


def test_nothing_to_pack_is_said() -> None:
    backbone = small.backbone("llama")
    backbone.config = {**backbone.config, "load": "nf4"}
    with pytest.raises(UserError, match="no linear layers"):
        pack(backbone, planned=True)  # float32 ones are no frozen backbone's
