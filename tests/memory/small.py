"""Small backbones of every library, tasks and batches for the memory tests; sizes such that activations count."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from transfer_run.backbones.base import Backbone
from transfer_run.backbones.load import build_backbone
from transfer_run.memory.planner import Shapes
from transfer_run.task import Task

CONFIGS: dict[str, dict[str, Any]] = {
    "t5": {
        "family": "t5",
        "architecture": {"vocab_size": 384, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 3, "num_heads": 4,
                         "num_decoder_layers": 2, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1},
    },
    "bert": {
        "family": "encoder",
        "pooling": "cls",
        "architecture": {"model_type": "bert", "vocab_size": 384, "hidden_size": 64, "num_hidden_layers": 3,
                         "num_attention_heads": 4, "intermediate_size": 128, "max_position_embeddings": 64},
    },
    "llama": {
        "family": "decoder",
        "architecture": {"model_type": "llama", "vocab_size": 384, "hidden_size": 64, "intermediate_size": 128,
                         "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
                         "max_position_embeddings": 64},
    },
    "vit": {
        "family": "vit",
        "architecture": {"model": "vit_tiny_patch16_224", "img_size": 16, "patch_size": 4, "embed_dim": 64, "depth": 3,
                         "num_heads": 4},
    },
}  # fmt: skip
for _name, _config in CONFIGS.items():
    _config |= {"name": _name, "weights": "random"}

LABELS = 5
ANSWER = 4


def backbone(name: str, device: str = "cpu") -> Backbone:
    return build_backbone(CONFIGS[name], weights=False, device=device)


def task(name: str) -> Task:
    """Text-to-text for T5, classification for the others."""
    if name == "t5":
        return Task("text_to_text", LABELS, max_target_length=ANSWER)
    return Task("classification", LABELS)


def shapes(name: str, size: int, length: int = 24) -> Shapes:
    if name == "vit":
        return {"pixel_values": ((size, 3, 16, 16), torch.float32), "labels": ((size,), torch.long)}
    labels = (size, ANSWER) if name == "t5" else (size,)
    text = dict.fromkeys(("input_ids", "attention_mask"), ((size, length), torch.long))
    return {**text, "labels": (labels, torch.long)}


def batch(name: str, size: int, length: int = 24) -> dict[str, Tensor]:
    """A real batch of these shapes, with padding where there is a mask."""
    made = {}
    for key, (shape, dtype) in shapes(name, size, length).items():
        made[key] = torch.rand(shape) if dtype.is_floating_point else torch.randint(2, LABELS, shape)
    if "attention_mask" in made:
        made["attention_mask"] = torch.ones(size, length, dtype=torch.long)
        made["attention_mask"][:, -2:] = 0
    return made
