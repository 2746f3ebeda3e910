"""Tiny backbones of every family and a batch that goes with each task form."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from transfer_run.backbones.base import Backbone
from transfer_run.backbones.load import build_backbone
from transfer_run.methods.side_tuning.lst import LST
from transfer_run.task import Task

VOCABULARY, CLASSES = 40, 3
T5_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 4, "num_decoder_layers": 3,
    "num_heads": 4, "feed_forward_proj": "relu", "dropout_rate": 0.1,
    "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
BERT_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 64, "type_vocab_size": 2, "pad_token_id": 0,
}  # fmt: skip
LLAMA_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 1,
}  # fmt: skip
BACKBONES: dict[str, dict[str, Any]] = {
    "t5": {"family": "t5", "architecture": T5_SIZES},
    "t5-gated": {"family": "t5", "architecture": T5_SIZES | {"feed_forward_proj": "gated-gelu"}},
    "bert": {"family": "encoder", "architecture": BERT_SIZES | {"model_type": "bert"}},
    "roberta": {"family": "encoder", "architecture": BERT_SIZES | {"model_type": "roberta", "pad_token_id": 1}},
    "deberta": {
        "family": "encoder", "architecture": BERT_SIZES | {
            "model_type": "deberta-v2", "type_vocab_size": 0, "relative_attention": True, "position_buckets": 8,
            "norm_rel_ebd": "layer_norm", "share_att_key": True, "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False, "max_relative_positions": -1,
        },
    },
    "bart": {
        "family": "encoder", "pooling": "eos", "architecture": {
            "model_type": "bart", "vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 3,
            "encoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_layers": 1, "decoder_attention_heads": 4,
            "decoder_ffn_dim": 48, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 2,
            "eos_token_id": 1,
        },
    },
    "gpt2": {
        "family": "decoder", "architecture": {
            "model_type": "gpt2", "vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64,
        },
    },
    "llama": {"family": "decoder", "architecture": LLAMA_SIZES | {"model_type": "llama"}},
    "qwen2": {"family": "decoder", "architecture": LLAMA_SIZES | {"model_type": "qwen2"}},
    "qwen3": {"family": "decoder", "architecture": LLAMA_SIZES | {"model_type": "qwen3", "head_dim": 8}},
    "vit": {
        "family": "vit", "architecture": {
            "model": "vit_tiny_patch16_224", "img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 32,
            "depth": 3, "num_heads": 4, "init_values": 0.3,
        },
    },
    "vit-average": {
        "family": "vit", "architecture": {
            "model": "vit_tiny_patch16_224", "img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 32,
            "depth": 3, "num_heads": 4, "global_pool": "avg", "class_token": False,
        },
    },
}  # fmt: skip
FORMS = {"t5": "text_to_text", "encoder": "classification", "decoder": "language_modeling", "vit": "classification"}


def backbone(name: str, seed: int = 0, **architecture: Any) -> Backbone:
    """A random tiny backbone whose norms and biases are not at their trivial values."""
    config = BACKBONES[name]
    config = {**config, "name": name, "weights": "random", "architecture": config["architecture"] | architecture}
    torch.manual_seed(seed)
    built = build_backbone(config)
    with torch.no_grad():
        for p in built.parameters():
            if p.dim() == 1:
                p.add_(0.1 * torch.randn_like(p))
    return built


def task(model: Backbone) -> Task:
    form = FORMS[model.family]
    return Task(form, CLASSES if form == "classification" else 0, max_target_length=5)  # type: ignore[arg-type]


def lst(model: Backbone, **settings: Any) -> LST:
    """LST at r = 2 with side weights, gates and maps that all matter."""
    method = LST(model, task(model), **{"reduction_factor": 2, "init": "random"} | settings)
    stir(method)
    return method.eval()


def stir(method: LST) -> None:
    torch.manual_seed(7)
    with torch.no_grad():
        for name, p in method.named_parameters():
            if p.requires_grad:
                p.copy_((0.05 if "alpha" in name else 0.3) * torch.randn_like(p) + (p.dim() == 1 and "norm" in name))


def batch(model: Backbone, rows: int = 3, length: int = 7, seed: int = 1) -> dict[str, Tensor]:
    """A right-padded batch of the backbone's task."""
    draw = torch.Generator().manual_seed(seed)
    if model.family == "vit":
        images = torch.randn(rows, 1, 8, 8, generator=draw)
        return {"pixel_values": images, "labels": torch.arange(rows) % CLASSES}
    ids = torch.randint(3, VOCABULARY, (rows, length), generator=draw)
    mask = torch.ones(rows, length, dtype=torch.int64)
    for row in range(rows):
        mask[row, length - row :] = 0
    pad = 1 if model.model.config.model_type == "roberta" else 0
    ids = ids.where(mask.bool(), pad)
    if model.family == "t5":
        labels = torch.randint(3, VOCABULARY, (rows, 4), generator=draw)
        labels[1:, -1] = -100
    elif model.family == "encoder":
        labels = torch.arange(rows) % CLASSES
    else:
        labels = ids.masked_fill(mask == 0, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def kept_bytes(method: LST, given: dict[str, Tensor]) -> int:
    """Bytes that autograd keeps for backward, parameters and buffers of the method left out."""
    own = {t.untyped_storage()._cdata for t in (*method.parameters(), *method.buffers())}
    kept: dict[int, Any] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        method.loss(given)
    return sum(storage.nbytes() for storage in kept.values())


def gradients(method: LST, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradient of every trained parameter; parameters that take no part are left out."""
    method.zero_grad()
    method.loss(given).backward()
    return {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
