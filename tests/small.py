"""Small backbones by name, of every family, with a task and a batch of every form; each is built once in a process.

small.backbone("bert")                      weights depend on the seed alone; a copy of its own for every caller
small.task("t5"), small.batch("t5")         the form that the family has first
small.batch("gpt2", "language_modeling")    another one that it answers
"""

from __future__ import annotations

import copy
import json
from functools import cache
from typing import Any

import torch
from torch import Tensor

from transfer_run.backbones.base import Backbone
from transfer_run.backbones.load import build_backbone
from transfer_run.task import Task

VOCABULARY, CLASSES, LENGTH = 384, 3, 10
_SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
          "intermediate_size": 48, "max_position_embeddings": 64}  # fmt: skip
_CLIP_TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_IDS = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
_CLIP: dict[str, Any] = {"family": "clip", "architecture": {
    "text_config": {"vocab_size": VOCABULARY, "max_position_embeddings": 32, **_CLIP_TOWER, **_IDS},
    "vision_config": {"image_size": 16, "patch_size": 4, **_CLIP_TOWER}, "projection_dim": 16}}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "t5": {"family": "t5", "architecture": {
        "vocab_size": VOCABULARY, "d_model": 32, "d_kv": 12, "d_ff": 48, "num_layers": 3, "num_decoder_layers": 2,
        "num_heads": 4, "feed_forward_proj": "relu", "tie_word_embeddings": True, "decoder_start_token_id": 0,
        "pad_token_id": 0, "eos_token_id": 1}},
    "bert": {"family": "encoder", "pooling": "pooler", "architecture": {"model_type": "bert", **_SIZES}},
    "deberta": {"family": "encoder", "pooling": "cls", "architecture": {
        "model_type": "deberta-v2", **_SIZES, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}},
    "gpt2": {"family": "decoder", "architecture": {
        "model_type": "gpt2", "vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64,
        **_IDS}},
    "llama": {"family": "decoder", "architecture": {"model_type": "llama", **_SIZES, "num_key_value_heads": 2}},
    "vit": {"family": "vit", "architecture": {
        "model": "vit_tiny_patch16_224", "img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 4}},
    "cnn": {"family": "cnn", "architecture": {"model": "resnet10t"}},
    "chain": {"family": "chain", "image": {"size": 16, "channels": 3}, "architecture": {"layers": [
        {"conv": 8, "kernel": 3, "norm": "instance", "pool": ["avg", 2, 2]}, {"linear": 24}, {"linear": 16}]}},
    "clip": _CLIP,
    "clip-both": {**_CLIP, "tower": "both"},
}  # fmt: skip
FORMS: dict[str, tuple[str, ...]] = {
    "t5": ("text_to_text", "classification", "regression"),
    "gpt2": ("classification", "regression", "language_modeling"),
    "llama": ("classification", "regression", "language_modeling"),
    "clip-both": ("retrieval",),
}
"""The forms that a backbone answers; others: a head's two."""
HEADS: tuple[str, ...] = ("classification", "regression")
IMAGES = ("vit", "cnn", "chain", "clip", "clip-both")


def forms(name: str) -> tuple[str, ...]:
    return FORMS.get(name, HEADS)


def backbone(name: str, seed: int = 0, device: str = "cpu", **architecture: Any) -> Backbone:
    """One of `CONFIGS`, any of its settings changed; no bias stands at zero and no norm at one."""
    return copy.deepcopy(_built(name, seed, device, json.dumps(architecture, sort_keys=True)))


@cache
def _built(name: str, seed: int, device: str, changed: str) -> Backbone:
    config = {"name": f"{name}-test", "weights": f"random:{seed}", **CONFIGS[name]}
    words = {**config["architecture"], **json.loads(changed)}
    built = build_backbone({**config, "architecture": words}, device=device)
    random = torch.Generator().manual_seed(seed)
    for parameter in built.model.parameters():
        if parameter.ndim == 1 and not parameter.is_meta:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=random)
    return built


def task(name: str, form: str | None = None) -> Task:
    form = form or forms(name)[0]
    if form == "text_to_text":
        return Task(form, 2, ("2", "3"), max_target_length=3)
    labels = {"classification": CLASSES, "regression": 1}.get(form, 0)
    return Task(form, labels, loss="infonce" if form == "retrieval" else "")


def batch(name: str, form: str | None = None, rows: int = 4) -> dict[str, Tensor]:
    """Texts of ten tokens, the second one padded from the seventh on; images as large as the backbone's."""
    form, random, made = form or forms(name)[0], torch.Generator().manual_seed(7), {}
    if name in IMAGES:
        size = 32 if name == "cnn" else 16
        made["pixel_values"] = torch.randn(rows, 3, size, size, generator=random)
    if name not in IMAGES or form == "retrieval":
        ids, mask = torch.randint(3, 259, (rows, LENGTH), generator=random), torch.ones(rows, LENGTH, dtype=torch.long)
        if name == "clip-both":
            ids[:, -1] = 1
        ids[1, 6:], mask[1, 6:] = 0, 0
        if name == "clip-both":
            ids[1, 5] = 1
        made |= {"input_ids": ids, "attention_mask": mask}
    made["labels"] = torch.arange(rows) % (rows if form == "retrieval" else CLASSES)
    if form == "text_to_text":
        made["labels"] = torch.stack([50 + torch.arange(rows) % 2, torch.ones(rows, dtype=torch.long)], dim=1)
    elif form == "language_modeling":
        made["labels"] = made["input_ids"].masked_fill(made["attention_mask"] == 0, -100)
    elif form == "regression":
        made["labels"] = torch.linspace(0, 1, rows)
    return made
