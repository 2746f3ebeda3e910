"""The tuning methods on BART layers, against outputs and gradients of the paper's own modules (arXiv 2110.04366)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BartConfig, BartModel

from transfer_run.backbones.base import Backbone
from transfer_run.methods.base import Method
from transfer_run.methods.tuning.adapter import Adapter
from transfer_run.methods.tuning.lora import LoRA
from transfer_run.methods.tuning.mam_adapter import MAMAdapter
from transfer_run.methods.tuning.parallel_adapter import ParallelAdapter
from transfer_run.methods.tuning.prefix_tuning import PrefixTuning
from transfer_run.task import Task

ORACLE = "unified_petl_*.npz"

ATOL = 1e-10
STACK = {"enc": "encoder", "dec": "decoder"}
KIND = {"encoder": "encoder_self", "self": "decoder_self", "encoder_decoder": "decoder_cross"}
_SELF = {"attention": "self_attn", "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj",
         "out": "self_attn.out_proj", "norm1": "self_attn_layer_norm", "mlp_in": "fc1", "mlp_out": "fc2",
         "norm2": "final_layer_norm"}  # fmt: skip
_CROSS = {f"cross_{name}": f"encoder_attn.{name}_proj" for name in ("q", "k", "v", "out")}


class Bart(Backbone):
    """One encoder layer and one decoder layer of the library's BART, post-norm, with the oracle's weights."""

    family = "bart"
    stacks = ("encoder", "decoder")
    pre_norm = False
    model: BartModel

    def blocks(self, stack: str) -> Any:
        return self.model.get_submodule(stack).layers

    def heads(self, stack: str) -> int:
        return self.model.config.encoder_attention_heads

    def parts(self, stack: str, index: int) -> dict[str, str]:
        names = _SELF if stack == "encoder" else _SELF | _CROSS
        return {name: f"model.{stack}.layers.{index}.{path}" for name, path in names.items()}


Bart.__abstractmethods__ = frozenset()  # the layers alone: nothing is embedded or finished here

Arrays = dict[str, Tensor]


def sizes(tensors: Arrays) -> tuple[int, int, int, int, int]:
    """Width, heads, feed-forward width, prefix length, rank."""
    d, heads, inner, _, _, _, length, rank = (int(n) for n in tensors["dims"])
    return d, heads, inner, length, rank


def bart(tensors: Arrays) -> Bart:
    d, heads, inner, _, _ = sizes(tensors)
    config = BartConfig(
        vocab_size=4, d_model=d, encoder_layers=1, decoder_layers=1, encoder_attention_heads=heads,
        decoder_attention_heads=heads, encoder_ffn_dim=inner, decoder_ffn_dim=inner, dropout=0.0,
        attention_dropout=0.0, activation_dropout=0.0, max_position_embeddings=8, pad_token_id=0, bos_token_id=1,
        eos_token_id=2, decoder_start_token_id=2,
    )  # fmt: skip
    backbone = Bart(BartModel(config).double(), {"name": "bart-layers"})
    for short, stack in STACK.items():
        prefix = f"base/{short}/"
        layer = {n.removeprefix(prefix): a for n, a in tensors.items() if n.startswith(prefix)}
        backbone.blocks(stack)[0].load_state_dict(layer)
    return backbone


def method(variant: str, backbone: Bart, tensors: Arrays) -> Method:
    """The variant in this project's words."""
    *_, length, rank = sizes(tensors)
    task = Task("text_to_text", 0)
    prefix: dict[str, Any] = {"length": length, "hidden": None}
    adapter: dict[str, Any] = {"bottleneck": rank, "activation": "relu", "train_norms": False}
    beside: dict[str, Any] = {"dropout": 0.0, "bottleneck": rank, "attention_bottleneck": rank}
    lora: dict[str, Any] = {"rank": rank, "alpha": 8.0, "dropout": 0.0}
    if variant in ("prefix", "prefix_gated", "prefix_nogate"):
        composition = {"prefix": "concat", "prefix_gated": "gated", "prefix_nogate": "ungated"}[variant]
        return PrefixTuning(backbone, task, composition=composition, **prefix)  # type: ignore[arg-type]
    if variant == "mh_parallel":
        beside = {**beside, "attention_bottleneck": length, "hidden": None}
        return ParallelAdapter(backbone, task, mlp=False, attention="multihead", **beside)
    if variant == "houlsby":
        return Adapter(backbone, task, cross_attention=True, attention_layernorm="in", **adapter)
    if variant == "pa_attn":
        return ParallelAdapter(backbone, task, mlp=False, attention="parallel", **beside)
    if variant == "sa_ffn":
        return Adapter(backbone, task, sites=("mlp",), **adapter)
    if variant in ("pa_ffn", "scaled_pa_ffn"):
        return ParallelAdapter(backbone, task, scale=4.0 if variant.startswith("scaled") else 1.0, **beside)
    if variant in ("lora_attn", "lora_ffn"):
        return LoRA(backbone, task, targets=("q", "v") if variant == "lora_attn" else ("mlp_in", "mlp_out"), **lora)
    if variant == "mam":
        return MAMAdapter(backbone, task, bottleneck=rank, scale=4.0, dropout=0.0, **prefix)
    assert variant == "none"
    tuned = Method(backbone, task)
    tuned.freeze_backbone()
    return tuned


_UNIT = {"adapter_layer_norm_before": "norm_in", "down_proj": "down", "up_proj": "up"}


def own_name(variant: str, stack: str, name: str) -> str:
    """Where the paper's weight `name` of a layer is in our method."""
    path, _, leaf = name.rpartition(".")
    if "lora" in leaf:
        return f"backbone.model.{stack}.layers.0.{path}.{leaf.removeprefix('ef_')}.default.weight"
    place = "cross_out" if path.startswith("encoder_attn") else "out"
    if path.endswith("ef_transform_layer_norm"):
        return f"adapters.{stack}_0_{place}.change.norm.{leaf}"
    beside = variant in ("pa_attn", "pa_ffn", "scaled_pa_ffn", "mam")
    if path.startswith("ef_ffn_adapter"):
        place = "mlp" if beside else "mlp_out"
    unit = f"{stack}_0_{place}" + (".change" if beside else "")
    return f"adapters.{unit}.{_UNIT[path.rpartition('.')[2]]}.{leaf}"


def trained(variant: str, side: str, tuned: Method, tensors: Arrays) -> Iterator[tuple[Tensor, Tensor | slice, Tensor]]:
    """(parameter, the part of it that is meant, its gradient in the oracle), the oracle's values put in."""
    parameters = dict(tuned.named_parameters())
    for name, value in tensors.items():
        if name.startswith(f"{variant}/{side}/w/"):
            weight = name.removeprefix(f"{variant}/{side}/w/")
            parameter = parameters[own_name(variant, STACK[side], weight)]
            parameter.data.copy_(value)
            yield parameter, slice(None), tensors[f"{variant}/{side}/g/{weight}"]
        elif name.startswith(f"{variant}/{side}/gprefix/"):
            kind, part = name.split("/")[3:]
            parameter, row = parameters[f"prefixes.{KIND[kind]}.rows"], ("key", "value").index(part)
            parameter.data[0, row].copy_(tensors[f"P/{kind}/{part}"])
            yield parameter, torch.tensor([0, row]), value


def output(side: str, backbone: Bart, tensors: Arrays) -> Tensor:
    layer: nn.Module = backbone.blocks(STACK[side])[0]
    padding = (1.0 - tensors["keep"].double())[:, None, None, :] * -1e9
    if side == "enc":
        x = tensors["x_enc"]
        return layer(x, padding.expand(-1, 1, x.shape[1], -1))
    x = tensors["x_dec"]
    steps = x.shape[1]
    causal = torch.full((steps, steps), -1e9, dtype=torch.float64).triu(1).expand(x.shape[0], 1, -1, -1)
    memory = {"encoder_hidden_states": tensors["enc_out"], "encoder_attention_mask": padding.expand(-1, 1, steps, -1)}
    return layer(x, attention_mask=causal, use_cache=False, **memory)


VARIANTS = ("none", "prefix", "prefix_gated", "prefix_nogate", "mh_parallel", "houlsby", "pa_attn", "sa_ffn", "pa_ffn",
            "scaled_pa_ffn", "lora_attn", "lora_ffn", "mam")  # fmt: skip


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["enc", "dec"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_outputs_and_gradients(variant: str, side: str, kernel: str, tensors: Arrays) -> None:
    backbone = bart(tensors)
    backbone.set_attention(kernel)
    tuned = method(variant, backbone, tensors)
    expected = list(trained(variant, side, tuned, tensors))
    y = output(side, backbone, tensors)
    torch.testing.assert_close(y, tensors[f"{variant}/{side}/y"], atol=ATOL, rtol=0)
    if not expected:
        assert variant == "none"
        assert not y.requires_grad
        return
    (y * tensors[f"G_{side}"]).sum().backward()
    for parameter, part, gradient in expected:
        assert parameter.grad is not None
        found = parameter.grad if isinstance(part, slice) else parameter.grad[part[0], part[1]]
        torch.testing.assert_close(found, gradient, atol=ATOL, rtol=0)


@pytest.mark.parametrize("side", ["enc", "dec"])
def test_every_trained_weight_of_the_oracle_is_ours(side: str, tensors: Arrays) -> None:
    """A variant trains exactly what the paper's layer trains: the same number of scalars, nothing besides."""
    for variant in VARIANTS[1:]:
        backbone = bart(tensors)
        tuned = method(variant, backbone, tensors)
        places = tuple(f"{root}{STACK[side]}" for root in ("backbone.model.", "adapters.", "prefixes."))
        ours = sum(p.numel() for n, p in tuned.named_parameters() if p.requires_grad and n.startswith(places))
        assert ours == sum(g.numel() for _, _, g in trained(variant, side, tuned, tensors)), variant
