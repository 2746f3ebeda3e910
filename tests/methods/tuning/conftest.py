"""Tiny backbones with random weights, one or two a family, and a batch for each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from transfer_run.backbones.base import Backbone
from transfer_run.backbones.load import build_backbone
from transfer_run.task import Task

_SIZES = {"vocab_size": 384, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
          "intermediate_size": 48, "max_position_embeddings": 64}  # fmt: skip
_CLIP_TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_IDS = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
CONFIGS: dict[str, dict[str, Any]] = {
    "t5": {"family": "t5", "architecture": {
        "vocab_size": 384, "d_model": 32, "d_kv": 12, "d_ff": 48, "num_layers": 3, "num_decoder_layers": 2,
        "num_heads": 4, "feed_forward_proj": "relu", "tie_word_embeddings": True, "decoder_start_token_id": 0,
        "pad_token_id": 0, "eos_token_id": 1}},
    "bert": {"family": "encoder", "pooling": "pooler", "architecture": {"model_type": "bert", **_SIZES}},
    "deberta": {"family": "encoder", "pooling": "cls", "architecture": {
        "model_type": "deberta-v2", **_SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}},
    "gpt2": {"family": "decoder", "architecture": {
        "model_type": "gpt2", "vocab_size": 384, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, **_IDS}},
    "llama": {"family": "decoder", "architecture": {"model_type": "llama", **_SIZES, "num_key_value_heads": 2}},
    "vit": {"family": "vit", "architecture": {
        "model": "vit_tiny_patch16_224", "img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 4}},
    "clip": {"family": "clip", "architecture": {
        "text_config": {"vocab_size": 384, "max_position_embeddings": 32, **_CLIP_TOWER, **_IDS},
        "vision_config": {"image_size": 16, "patch_size": 4, **_CLIP_TOWER}, "projection_dim": 16}},
    "cnn": {"family": "cnn", "architecture": {"model": "resnet10t"}},
}  # fmt: skip
IMAGES = ("vit", "clip", "cnn")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def build() -> Callable[..., Backbone]:
    """build("bert", seed=0): a backbone whose weights depend on the seed alone; any setting can be given."""

    def make(key: str, seed: int = 0, device: str = "cpu", **architecture: Any) -> Backbone:
        config = {"name": f"{key}-test", "weights": f"random:{seed}", **CONFIGS[key]}
        words = {**config["architecture"], **architecture}
        backbone = build_backbone({**config, "architecture": words}, device=device)
        random = torch.Generator().manual_seed(seed)
        for parameter in backbone.model.parameters():
            if parameter.ndim == 1 and not parameter.is_meta:  # no bias stays at zero, no norm at one
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=random)
        return backbone

    return make


@pytest.fixture
def task() -> Callable[[str], Task]:
    def make(key: str) -> Task:
        if key == "t5":
            return Task("text_to_text", 2, ("2", "3"), max_target_length=3)
        return Task("classification", 3)

    return make


@pytest.fixture
def batch() -> Callable[..., dict[str, Tensor]]:
    """batch("bert"): four examples; texts of ten tokens, the second one padded from the seventh on."""

    def make(key: str, rows: int = 4) -> dict[str, Tensor]:
        random = torch.Generator().manual_seed(7)
        labels = torch.arange(rows) % 3
        if key in IMAGES:
            size = 32 if key == "cnn" else 16
            return {"pixel_values": torch.randn(rows, 3, size, size, generator=random), "labels": labels}
        ids, mask = torch.randint(3, 259, (rows, 10), generator=random), torch.ones(rows, 10, dtype=torch.long)
        ids[1, 6:], mask[1, 6:] = 0, 0
        if key == "t5":
            labels = torch.stack([50 + torch.arange(rows) % 2, torch.ones(rows, dtype=torch.long)], dim=1)
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    return make
