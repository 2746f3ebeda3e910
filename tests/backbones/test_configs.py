"""Every named backbone: its words, its architecture against well-known parameter counts, and a forward pass."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from transformers import BartConfig, BartModel

from transfer_run.backbones.base import Backbone
from transfer_run.backbones.declared import families
from transfer_run.backbones.families.bart import BartEncoder
from transfer_run.backbones.families.cifar_resnet import CifarResNet
from transfer_run.backbones.load import build_backbone
from transfer_run.methods.forms.classification import Classification
from transfer_run.task import Task

FOLDER = Path(__file__).parents[2] / "configs" / "backbone"
FILES = {str(path.relative_to(FOLDER))[: -len(".yaml")]: path for path in sorted(FOLDER.rglob("*.yaml"))}
TINY = [name for name in FILES if name.endswith("_tiny")]
KEYS = {
    "name",
    "family",
    "about",
    "weights",
    "hub",
    "revision",
    "tokenizer",
    "architecture",
    "image",
    "pooling",
    "tower",
}

# Published with the models or counted from the hub's files: all parameters, tied ones once. `vision` models are
# counted with their classifier of 1,000 classes (those for CIFAR of 10), RoBERTa and MiniLM with the pooler that is
# left out here, and BART with its decoder.
COUNTS = {
    "t5-small": 60_506_624,
    "t5-base": 222_903_552,
    "t5-large": 737_668_096,
    "t5-3b": 2_851_598_336,
    "t5-11b": 11_307_321_344,
    "google/flan-t5-small": 76_961_152,
    "google/flan-t5-base": 247_577_856,
    "google/flan-t5-large": 783_150_080,
    "google/flan-t5-xl": 2_849_757_184,
    "google/flan-t5-xxl": 11_135_332_352,
    "google/t5-v1_1-base": 247_577_856,
    "bert-base-uncased": 109_482_240,
    "bert-base-cased": 108_310_272,
    "bert-large-uncased": 335_141_888,
    "bert-large-cased": 333_579_264,
    "prajjwal1/bert-tiny": 4_385_920,
    "prajjwal1/bert-mini": 11_170_560,
    "prajjwal1/bert-small": 28_763_648,
    "prajjwal1/bert-medium": 41_373_184,
    "sentence-transformers/all-MiniLM-L6-v2": 22_713_216,
    "roberta-base": 124_645_632,
    "roberta-large": 355_359_744,
    "facebook/bart-base": 139_420_416,
    "facebook/bart-large": 406_291_456,
    "microsoft/deberta-v3-small": 141_304_320,
    "microsoft/deberta-v3-base": 183_831_552,
    "microsoft/deberta-v3-large": 434_012_160,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "huggyllama/llama-7b": 6_738_415_616,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "llama-stories260k": 260_032,
    "ttm-r1-512": 805_280,
    "ttm-r1-1024": 946_336,
    "ttm-r2-512": 805_280,
    "dlinear": 98_496,
    "vit_small_patch16_224": 22_050_664,
    "vit_base_patch16_224": 86_567_656,
    "vit_large_patch16_224": 304_326_632,
    "deit_small_patch16_224": 22_050_664,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnext101_32x8d": 88_791_336,
    "resnet20_cifar": 269_722,
    "resnet56_cifar": 853_018,
    "efficientnet_b0": 5_288_548,
    "mobilenetv2_100": 3_504_872,
    "mobilenetv3_large_100": 5_483_032,
    "alexnet": 61_100_840,
    "alexnet-caffe": 60_965_224,
    "openai/clip-vit-base-patch32": 151_277_313,
    "openai/clip-vit-large-patch14": 427_616_513,
}


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load(FILES[name].read_text(encoding="utf-8"))


def counted(backbone: Backbone) -> int:
    """Parameters, with what the published figures count and the backbone leaves out."""
    config = backbone.config
    count = sum(p.numel() for p in backbone.model.parameters())
    if isinstance(backbone, BartEncoder):  # the decoder's as the library builds it from the same words
        words = {key: value for key, value in config["architecture"].items() if key != "model_type"}
        with torch.device("meta"):
            whole = BartModel(BartConfig(**words))
        assert count == sum(p.numel() for p in whole.encoder.parameters())
        return sum(p.numel() for p in whole.parameters())
    if backbone.family in ("vit", "cnn", "chain"):
        return count + (backbone.feature_width + 1) * (10 if isinstance(backbone, CifarResNet) else 1000)
    if backbone.family == "encoder" and config["pooling"] != "pooler" and "deberta" not in config["name"]:
        return count + (backbone.feature_width + 1) * backbone.feature_width
    return count


@pytest.mark.parametrize("name", FILES)
def test_words(name: str) -> None:
    lines = FILES[name].read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# @package backbone"
    assert lines[1].startswith("# ")
    config = read(name)
    assert config["name"] == name
    assert config["family"] in families()
    assert set(config) <= KEYS
    assert ("image" in config) == (config["family"] in ("vit", "cnn", "chain", "clip"))
    if config["hub"]:
        assert config["weights"] == "hub"
        assert re.fullmatch(r"main|1024_96_v1|[0-9a-f]{40}", config["revision"])  # TTM: a branch a context
    if name in TINY:
        assert config["weights"] == "random" or config["weights"].startswith("run:")


@pytest.mark.parametrize("name", FILES)
def test_builds_without_memory_and_network(name: str) -> None:
    config = read(name)
    backbone = build_backbone(config, device="meta")
    assert {p.device.type for p in backbone.parameters()} == ({"meta"} if backbone.family != "naive" else set())
    if name in COUNTS:
        both = {"tower": "both"} if "tower" in config else {}
        assert counted(build_backbone(config | both, device="meta") if both else backbone) == COUNTS[name]
    if "forecast" in families()[backbone.family].has:  # its pretrained head answers
        return
    backbone.head = Classification().head(backbone, Task("classification", 3))
    assert {p.device.type for p in backbone.head.parameters()} <= {"meta"}
    for stack in backbone.stacks:
        assert backbone.depth(stack) == len(list(backbone.blocks(stack)))
        assert backbone.width(stack) == backbone.width(stack, backbone.depth(stack) - 1)
        if backbone.family not in ("cnn", "chain"):
            for index in range(backbone.depth(stack)):
                assert all(isinstance(backbone.part(stack, index, p), nn.Module) for p in backbone.parts(stack, index))
    if "image" in backbone.config:
        image = backbone.config["image"]
        assert len(image["mean"]) == len(image["std"]) == image["channels"]


def test_every_embedded_kind_has_a_tiny_one() -> None:
    assert {name: read(family.smallest)["family"] for name, family in families().items()} == {n: n for n in families()}
    assert {family.smallest for family in families().values()} <= {*TINY, "last_value"}  # of no weights at all


@pytest.mark.parametrize("name", TINY)
def test_tiny_ones_run_and_learn(name: str) -> None:
    """One step on real tensors from the words of the config alone: logits, a loss, gradients everywhere."""
    config = read(name)
    torch.manual_seed(0)
    backbone = build_backbone(config, weights=False)
    assert sum(p.numel() for p in backbone.parameters()) < 1_500_000
    if "forecast" in families()[backbone.family].has:
        forecast_and_learn(backbone)
        return
    backbone.head = Classification().head(backbone, Task("classification", 3))
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 1], [5, 8, 1, 0]]),
        "attention_mask": torch.tensor([[1] * 4, [1, 1, 1, 0]]),
    }
    if "image" in config:
        size, channels = config["image"]["size"], config["image"]["channels"]
        batch = {"pixel_values": torch.randn(2, channels, size, size)}
    if backbone.family == "t5":
        memory = backbone.finished_state(backbone.run(backbone.embed(batch)))
        words = {"decoder_input_ids": backbone.shift_right(batch["input_ids"])}
        logits = backbone.language_logits(backbone.finish(backbone.run(backbone.embed(words, "decoder", memory))))
        assert logits.shape == (2, 4, config["architecture"]["vocab_size"])
        logits.flatten(0, 1).logsumexp(-1).sum().backward()
    else:
        state = backbone.run(backbone.embed(batch))
        logits = backbone.head(backbone.pool(backbone.finish(state), state))
        assert logits.shape == (2, 3)
        nn.functional.cross_entropy(logits, torch.tensor([0, 2])).backward()
    for stack in backbone.stacks:
        for block in backbone.blocks(stack):
            assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in block.parameters())


def forecast_and_learn(backbone: Any) -> None:
    """A forecast of its full length for two of three channels, and gradients everywhere."""
    batch = {"past_values": torch.randn(2, backbone.context_length, 3), "frequency": torch.tensor([0, 1])}
    state = backbone.run(backbone.embed(batch))
    features = backbone.pool(backbone.finish(state), state)
    assert features.shape == (2, 3, backbone.feature_width)
    forecast = backbone.forecast(features, batch, backbone.prediction_length, [0, 2])
    assert forecast.shape == (2, backbone.prediction_length, 2)
    forecast.square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in backbone.parameters())


def test_hydra_finds_names_with_dots_and_folders(tmp_path: Path) -> None:
    from hydra import compose, initialize_config_dir

    (tmp_path / "run.yaml").write_text("defaults:\n  - backbone: t5_tiny\n", encoding="utf-8")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        for name in ("google/flan-t5-base", "meta-llama/Llama-3.2-1B", "vit_base_patch16_224.mae"):
            search = f"hydra.searchpath=[file://{FOLDER.parent}]"
            assert compose("run", overrides=[search, f"backbone={name}"]).backbone.name == name
