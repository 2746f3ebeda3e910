"""peft's tuners through one class: exact targets, clear refusals, AdaLoRA's bookkeeping."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from transfer_run.backbones.load import build_backbone
from transfer_run.errors import UserError
from transfer_run.experiment.config import registry
from transfer_run.methods.tuning.adalora import AdaLoRA
from transfer_run.methods.tuning.attach.inject import inject, peft_config
from transfer_run.methods.tuning.attach.peft_method import PeftMethod

Make = Callable[..., Any]
ADALORA = {"init_r": 6, "target_r": 2, "lora_alpha": 6, "tinit": 2, "tfinal": 4, "deltaT": 1}


def test_only_the_named_parts_are_touched(build: Make, task: Make) -> None:
    """Full paths, not suffixes: BERT's `output.dense` of attention and of the feed-forward end alike."""
    settings = {"r": 2, "use_dora": True}
    method = PeftMethod(build("bert"), task("bert"), tuner="LoraConfig", settings=settings, targets=["mlp_out"])
    wrapped = [n for n, m in method.backbone.named_modules() if isinstance(m, BaseTunerLayer)]
    assert wrapped == [f"model.encoder.layer.{i}.output.dense" for i in range(3)]


@pytest.mark.parametrize("key", ["vit", "gpt2"])
def test_of_a_fused_projection_only_the_named_parts_are_adapted(key: str, build: Make, task: Make, batch: Make) -> None:
    """k stays what it was: q's and v's rows of the folded projection change, and nothing else does."""
    method = PeftMethod(build(key), task(key), tuner="LoraConfig", settings={"r": 2}, targets=["q", "v"]).eval()
    stack = method.backbone.stacks[0]
    path = method.backbone.parts(stack, 0)["qkv"]
    before = build(key)
    wrapped = [n for n, m in method.backbone.named_modules() if isinstance(m, BaseTunerLayer)]
    assert len(wrapped) == 6
    assert wrapped[:2] == [f"{path}.q", f"{path}.v"]
    plain = before.get_submodule(path)
    x = torch.randn(2, 5, plain.weight.shape[1 if key == "vit" else 0])
    torch.testing.assert_close(method.backbone.get_submodule(path)(x), plain(x))  # nothing is learned yet
    for name, parameter in method.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    adapted = method(batch(key))
    method.fold()
    folded = method.backbone.get_submodule(path)
    assert type(folded) is type(plain)
    torch.testing.assert_close(method(batch(key)), adapted, rtol=1e-4, atol=1e-4)
    changed = (folded.weight - plain.weight).abs().amax(1 if key == "vit" else 0).chunk(3)
    assert [bool((third > 1e-6).any()) for third in changed] == [True, False, True]
    assert folded.state_dict().keys() == plain.state_dict().keys()


def test_beft_trains_the_bias_of_the_values_alone(build: Make, task: Make) -> None:
    method = PeftMethod(build("vit"), task("vit"), tuner="BeftConfig", settings={}, targets=["v"])
    width = method.backbone.width(method.backbone.stacks[0])
    assert sum(p.numel() for n, p in method.named_parameters() if "beft_bias" in n) == 3 * width
    whole = PeftMethod(build("vit"), task("vit"), tuner="BeftConfig", settings={}, targets=["v"], fused_qkv="whole")
    assert sum(p.numel() for n, p in whole.named_parameters() if "beft_bias" in n) == 3 * 3 * width


def test_a_fused_projection_can_be_adapted_as_a_whole(build: Make, task: Make) -> None:
    for words in ({"targets": ["q", "v"], "fused_qkv": "whole"}, {"targets": ["qkv"]}):
        method = PeftMethod(build("vit"), task("vit"), tuner="LoraConfig", settings={"r": 2}, **words)
        wrapped = [n for n, m in method.backbone.named_modules() if isinstance(m, BaseTunerLayer)]
        assert wrapped == [f"model.blocks.{i}.attn.qkv" for i in range(3)]


def test_what_layers_share_is_in_the_state(build: Make, task: Make) -> None:
    settings = {"r": 2, "num_vectors": 8, "vector_length": 4}
    method = PeftMethod(build("bert"), task("bert"), tuner="VBLoRAConfig", settings=settings, targets=["q", "v"])
    assert any("vector_bank" in name for name in method.shipped())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"tuner": "LoraConfg", "settings": {}}, "peft has no 'LoraConfg'"),
        ({"tuner": "LoraConfig", "settings": {"rnk": 4}}, "no setting 'rnk'"),
        ({"tuner": "C3AConfig", "settings": {"block_size": 7}}, "does not fit bert-test"),
        ({"tuner": "OFTConfig", "settings": {"r": 0, "oft_block_size": 7}}, "Invalid `oft_block_size`"),
    ],
)
def test_refusals_name_what_is_wrong(words: dict[str, Any], message: str, build: Make, task: Make) -> None:
    with pytest.raises(UserError, match=message):
        PeftMethod(build("bert"), task("bert"), targets=["q"], **words)


@pytest.mark.parametrize(
    ("tuner", "settings"),
    [
        ("GraloraConfig", {"r": 4, "alpha": 8, "gralora_k": 2}),
        ("OFTConfig", {"r": 0, "oft_block_size": 4}),
        ("BOFTConfig", {"boft_block_size": 4}),
    ],
)
def test_a_tuner_of_sequences_takes_inputs_of_more_dimensions(tuner: str, settings: dict[str, Any]) -> None:
    """A mixer's states are (B, channels, patches, D), such layers take (B, L, D): each channel is a sequence."""
    config = dict(registry.entry("backbone", "ttm_tiny").content["backbone"])
    backbone = build_backbone({**config, "weights": "random"})
    path = backbone.parts(backbone.stacks[0], 0)["mlp_in"]
    inject(backbone, peft_config(tuner, settings), [path])
    layer = backbone.get_submodule(path)
    for parameter in layer.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    x = torch.randn(2, 3, 4, layer.in_features)
    assert layer(x).shape == (2, 3, 4, layer.out_features)
    torch.testing.assert_close(layer(x)[1, 2], layer(x[1, 2:])[0])
    torch.testing.assert_close(layer(x[0, 0]), layer(x)[0, 0])  # and of fewer


def test_every_listed_tuner_is_in_the_lowest_peft_that_is_allowed() -> None:
    """BEFT, DEFT, GLoRA, HiRA and UniLoRA came with 0.20 (looked up in the wheels of 0.19 and 0.20)."""
    nodes = [entry.content["method"] for entry in registry.entries("method", ())]
    tuners = {node["tuner"] for node in nodes if "tuner" in node}
    assert len(tuners) > 20
    for tuner in tuners:
        peft_config(tuner, {})
    lines = (Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8")
    assert tuple(map(int, re.search(r'"peft>=(\d+)\.(\d+)', lines).groups())) >= (0, 20)  # type: ignore[union-attr]


def test_a_tuner_that_refuses_conv1d_says_so(build: Make, task: Make) -> None:
    with pytest.raises(UserError, match="does not fit gpt2-test"):
        PeftMethod(
            build("gpt2"), task("gpt2"), tuner="OFTConfig", settings={"oft_block_size": 4, "r": 0}, targets=["q"]
        )


# ---- AdaLoRA
def fitted(method: AdaLoRA, data: Any, steps: range, optimizer: torch.optim.Optimizer) -> None:
    for step in steps:
        torch.manual_seed(step)
        optimizer.zero_grad()
        method.train().loss(data).backward()
        optimizer.step()
        method.after_step(step + 1)


def adalora(build: Make, task: Make, **settings: Any) -> AdaLoRA:
    torch.manual_seed(0)
    return AdaLoRA(build("bert"), task("bert"), settings={**ADALORA, **settings})


def ranks(method: AdaLoRA) -> int:
    return sum(int(p.count_nonzero()) for n, p in method.named_parameters() if "lora_E" in n)


def test_adalora_prunes_to_its_budget_and_stays_there(build: Make, task: Make, batch: Make) -> None:
    method = adalora(build, task)
    method.start_fit(20)
    optimizer = torch.optim.Adam(method.parameter_groups(), lr=1e-2)
    fitted(method, batch("bert"), range(2), optimizer)
    assert ranks(method) == 6 * 6
    fitted(method, batch("bert"), range(2, 20), optimizer)
    assert ranks(method) == 6 * 2
    assert int(method.kept.sum()) == 6 * 2


def test_adalora_penalises_what_is_not_orthogonal(build: Make, task: Make, batch: Make) -> None:
    method = adalora(build, task, lora_dropout=0.0).eval()
    weighted = method.loss(batch("bert"))
    method.orthogonality = 0.0
    plain = method.loss(batch("bert"))
    products = [p @ p.T if "lora_A" in n else p.T @ p for n, p in method.named_parameters()
                if "lora_A" in n or "lora_B" in n]  # fmt: skip
    penalty = torch.stack([torch.linalg.norm(g - torch.eye(6)) for g in products]).mean()
    torch.testing.assert_close(weighted - plain, 0.5 * penalty)


def test_adalora_goes_on_where_it_stopped(build: Make, task: Make, batch: Make) -> None:
    """The allocator's averages come back with the state: a resumed run is the same run."""
    whole, half, rest = (adalora(build, task) for _ in range(3))
    optimizers = [torch.optim.Adam(m.parameter_groups(), lr=1e-2) for m in (whole, half, rest)]
    for method in (whole, half, rest):
        method.start_fit(20)
    fitted(whole, batch("bert"), range(12), optimizers[0])
    fitted(half, batch("bert"), range(7), optimizers[1])
    rest.load_state_dict(half.state_dict())
    optimizers[2].load_state_dict(optimizers[1].state_dict())
    rest.after_step(7)  # a batch in the middle of an accumulated step
    fitted(rest, batch("bert"), range(7, 12), optimizers[2])
    for (name, expected), found in zip(whole.state_dict().items(), rest.state_dict().values(), strict=True):
        assert torch.equal(expected, found), name


def test_adalora_s_shares_and_refusals(build: Make, task: Make) -> None:
    method = adalora(build, task, tinit=0.1, tfinal=0.3)
    method.start_fit(50)
    config = method._tuner[0].peft_config["default"]
    assert (config.tinit, config.tfinal, config.total_step) == (5, 15, 50)
    with pytest.raises(UserError, match="leave none of 4"):
        adalora(build, task, tinit=2, tfinal=2).start_fit(4)
    with pytest.raises(UserError, match="Nothing to prune"):
        adalora(build, task, target_r=6)


def test_adalora_ships_the_model_alone(build: Make, task: Make) -> None:
    method = adalora(build, task)
    assert {"sensitivity", "uncertainty", "kept", "allocated"} <= set(method.shipped())
    method.settle()
    assert all("lora_" in n or n.startswith("backbone.head") for n in method.shipped())
