"""Small random models of every kind that the families cover, each with a batch that has padding where text has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from transfer_run.backbones.base import Backbone, State
from transfer_run.backbones.load import build_backbone

T5 = {"vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 4,
      "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}  # fmt: skip
BERT = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48,
        "max_position_embeddings": 24, "pad_token_id": 0}  # fmt: skip
BART = {"model_type": "bart", "vocab_size": 50, "d_model": 32, "encoder_layers": 3, "encoder_attention_heads": 4,
        "encoder_ffn_dim": 48, "decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 48,
        "max_position_embeddings": 24, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}  # fmt: skip
LLAMA = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
VIT = {"model": "vit_tiny_patch16_224", "img_size": 8, "patch_size": 2, "embed_dim": 32, "depth": 3, "num_heads": 4}
RESNET = {"model": "resnet18", "layers": [1, 2, 1, 1], "channels": [8, 16, 24, 32]}
CLIP = {
    "projection_dim": 24,
    "vision_config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
                      "image_size": 8, "patch_size": 2},
    "text_config": {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
                    "num_attention_heads": 2, "max_position_embeddings": 20,
                    "bos_token_id": 2, "eos_token_id": 49, "pad_token_id": 0},
}  # fmt: skip

CONFIGS: dict[str, dict[str, Any]] = {
    "t5": {"family": "t5", "architecture": T5},
    "t5_v1_1": {
        "family": "t5",
        "architecture": T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    },
    "bert": {"family": "encoder", "pooling": "pooler", "architecture": BERT | {"model_type": "bert"}},
    "roberta": {
        "family": "encoder",
        "pooling": "cls",
        "architecture": BERT | {"model_type": "roberta", "type_vocab_size": 1, "pad_token_id": 1},
    },
    "deberta": {
        "family": "encoder",
        "pooling": "mean",
        "architecture": BERT
        | {"model_type": "deberta-v2", "type_vocab_size": 0, "relative_attention": True, "position_buckets": 8,
           "norm_rel_ebd": "layer_norm", "share_att_key": True, "pos_att_type": ["p2c", "c2p"],
           "position_biased_input": False},
    },
    "bart": {"family": "encoder", "pooling": "eos", "architecture": BART},
    "gpt2": {
        "family": "decoder",
        "architecture": {"model_type": "gpt2", "vocab_size": 50, "n_embd": 32, "n_layer": 3, "n_head": 4,
                         "n_positions": 64, "bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 0},
    },
    "llama": {"family": "decoder", "architecture": LLAMA | {"model_type": "llama"}},
    "qwen2": {"family": "decoder", "architecture": LLAMA | {"model_type": "qwen2", "tie_word_embeddings": True}},
    "qwen3": {"family": "decoder", "architecture": LLAMA | {"model_type": "qwen3", "head_dim": 16}},
    "mistral": {"family": "decoder", "architecture": LLAMA | {"model_type": "mistral", "sliding_window": 4}},
    "vit": {"family": "vit", "architecture": VIT},
    "vit_average": {
        "family": "vit",
        "architecture": VIT
        | {"global_pool": "avg", "reg_tokens": 2, "no_embed_class": True, "init_values": 0.1, "qk_norm": True},
    },
    "resnet": {"family": "cnn", "architecture": RESNET},
    "resnet_deep": {"family": "cnn", "architecture": RESNET | {"stem_type": "deep", "stem_width": 8}},
    "efficientnet": {"family": "cnn", "architecture": {"model": "efficientnet_b0"}},
    "mobilenet": {"family": "cnn", "architecture": {"model": "mobilenetv3_small_050"}},
    "cifar_resnet": {
        "family": "cnn", "architecture": {"model_type": "cifar_resnet", "blocks": 2, "widths": [4, 6, 12]},
    },
    "chain": {
        "family": "chain",
        "image": {"size": 8, "channels": 3},
        "architecture": {"layers": [
            {"conv": 8, "kernel": 3, "padding": 1, "norm": "instance", "pool": ["avg", 2, 2]},
            {"conv": 12, "kernel": 3, "groups": 2, "response_norm": True}, {"linear": 16, "std": 0.3, "dropout": 0.5},
        ]},
    },
    "clip": {"family": "clip", "tower": "both", "architecture": CLIP},
}  # fmt: skip
ATTENTION = [name for name, config in CONFIGS.items() if config["family"] not in ("cnn", "chain")]
TEXT_LENGTHS = (9, 4, 7)


@dataclass
class Case:
    """A backbone in eval mode with a batch of three, two of them padded on the right."""

    name: str
    backbone: Backbone
    batch: dict[str, Tensor]

    def embed(self, stack: str) -> State:
        """Tap zero of a stack; a decoder that reads an encoder reads the finished one."""
        memory = None
        if self.backbone.family == "t5" and stack == "decoder":
            memory = self.backbone.finished_state(self.backbone.run(self.backbone.embed(self.batch, "encoder")))
        return self.backbone.embed(self.batch, stack, memory)


def make_config(name: str) -> dict[str, Any]:
    return {"name": name, "weights": "random", "hub": None, "revision": None, "tokenizer": "bytes"} | CONFIGS[name]


def make_case(name: str, dtype: torch.dtype = torch.float32) -> Case:
    backbone = build_backbone(make_config(name) | {"weights": "random:1"}).to(dtype).eval()
    generator = torch.Generator().manual_seed(2)
    lengths = torch.tensor(TEXT_LENGTHS)
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    ids = torch.randint(3, 48, mask.shape, generator=generator)
    pad = (CONFIGS[name]["architecture"].get("pad_token_id") or 0) if backbone.family != "clip" else 0
    if backbone.family == "clip":
        ids[torch.arange(3), lengths - 1] = 49
    ids = torch.where(mask.bool(), ids, pad)
    size = 64 if backbone.family == "cnn" else 8
    batch = {"input_ids": ids, "attention_mask": mask}
    if backbone.family == "t5":
        batch["decoder_input_ids"] = torch.randint(0, 50, (3, 6), generator=generator)
    if backbone.family in ("vit", "cnn", "chain", "clip"):
        images = torch.randn(3, 3, size, size, generator=generator).to(dtype)
        batch = {"pixel_values": images} | (batch if backbone.family == "clip" else {})
    return Case(name, backbone, batch)


@pytest.fixture(params=list(CONFIGS))
def case(request: pytest.FixtureRequest) -> Case:
    """Every kind of model."""
    return make_case(request.param)


@pytest.fixture(params=ATTENTION)
def attention_case(request: pytest.FixtureRequest) -> Case:
    """Every kind that has attention, in double precision."""
    return make_case(request.param, torch.float64)


@pytest.fixture
def build() -> Callable[..., Case]:
    """`build(name, dtype)`: one kind by name."""
    return make_case


@pytest.fixture
def config_of() -> Callable[[str], dict[str, Any]]:
    """`config_of(name)`: the backbone node of one kind, with random weights."""
    return make_config
