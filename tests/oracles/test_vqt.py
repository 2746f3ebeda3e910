"""VQT against numbers that the paper's own code produced, in float64: streams, summaries, logits, gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from transfer_run.backbones.families.vit import ViT
from transfer_run.methods.side_tuning.parts.summaries import Concat
from transfer_run.methods.side_tuning.vqt import VQT
from transfer_run.task import Task

ORACLE = "vqt_*.npz"
BOUND = {"atol": 1e-10, "rtol": 1e-9}
VARIANTS: dict[str, dict[str, Any]] = {
    "concat": {}, "concat_nonorm": {"normalize_feats": False}, "pool": {"combine": "pool"},
    "weighted": {"combine": "weighted"},
}  # fmt: skip

Arrays = dict[str, np.ndarray]
ENCODER = "enc.transformer.encoder."


def tensor(arrays: Arrays, name: str) -> Tensor:
    return torch.from_numpy(arrays[name]).double()


def backbone(arrays: Arrays) -> ViT:
    """The file's ViT in timm's form: q, k and v are one map."""
    sizes = dict(zip(arrays["config_names"].tolist(), arrays["config"].tolist(), strict=True))
    built = ViT.from_architecture({"name": "oracle", "family": "vit", "architecture": {
        "model": "vit_base_patch16_224", "img_size": sizes["img_size"], "patch_size": sizes["patch_size"],
        "embed_dim": sizes["hidden_size"], "depth": sizes["num_layers"], "num_heads": sizes["num_heads"],
        "mlp_ratio": sizes["mlp_dim"] / sizes["hidden_size"],
    }}).double()  # fmt: skip
    start, weights = "w/enc.transformer.embeddings.", {}
    for theirs, ours in (("cls_token", "cls_token"), ("position_embeddings", "pos_embed"),
                         ("patch_embeddings.weight", "patch_embed.proj.weight"),
                         ("patch_embeddings.bias", "patch_embed.proj.bias")):  # fmt: skip
        weights[ours] = tensor(arrays, start + theirs)
    for kind in ("weight", "bias"):
        weights[f"norm.{kind}"] = tensor(arrays, f"w/{ENCODER}encoder_norm.{kind}")
        for layer in range(sizes["num_layers"]):
            place, block = f"w/{ENCODER}layer.{layer}.", f"blocks.{layer}."
            parts = [tensor(arrays, f"{place}attn.{part}.{kind}") for part in ("query", "key", "value")]
            weights[f"{block}attn.qkv.{kind}"] = torch.cat(parts)
            for theirs, ours in (("attention_norm", "norm1"), ("ffn_norm", "norm2"), ("attn.out", "attn.proj"),
                                 ("ffn.fc1", "mlp.fc1"), ("ffn.fc2", "mlp.fc2")):  # fmt: skip
                weights[f"{block}{ours}.{kind}"] = tensor(arrays, f"{place}{theirs}.{kind}")
    built.model.load_state_dict(weights)
    return built


def build(arrays: Arrays, variant: str, memory_mode: str, **settings: Any) -> VQT:
    queries = tensor(arrays, f"w/{ENCODER}query_prompt_embeddings")
    classes = len(arrays[f"{variant}/w/head.last_layer.bias"])
    method = VQT(
        backbone(arrays), Task("classification", classes), num_query_tokens=queries.shape[1],
        memory_mode=memory_mode, **VARIANTS.get(variant, {}) | settings,  # type: ignore[arg-type]
    ).double()  # fmt: skip
    with torch.no_grad():
        assert method.queries is not None
        method.queries.copy_(queries)
        if isinstance(method.combine, Concat) and method.combine.weights is not None:
            method.combine.weights.copy_(tensor(arrays, "w/enc.combine_params"))
        for kind in ("weight", "bias"):
            method.backbone.head.get_parameter(kind).copy_(tensor(arrays, f"{variant}/w/head.last_layer.{kind}"))
    return method.eval()


def images(arrays: Arrays) -> dict[str, Tensor]:
    return {"pixel_values": tensor(arrays, "input")}


def same(ours: Tensor, arrays: Arrays, name: str) -> None:
    torch.testing.assert_close(ours.detach(), tensor(arrays, name), **BOUND, msg=name)


@pytest.fixture(params=["efficient", "official"])
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_streams_and_summaries(arrays: Arrays, mode: str) -> None:
    method = build(arrays, "concat", mode)
    state = method.backbone.embed(images(arrays))
    same(state.hidden, arrays, "embedding_output")
    final, summaries = method.summaries(images(arrays))
    for layer, summary in enumerate(summaries):
        same(summary, arrays, f"layer{layer}/query_summary")
        assert method.queries is not None
        queries = method.queries[layer].expand(len(state.hidden), -1, -1)
        state, _ = (method._apart if mode == "efficient" else method._together)(state, queries)
        same(state.hidden, arrays, f"layer{layer}/tokens")
    same(method.backbone.finish(state), arrays, "encoder_norm_output")
    assert len(summaries) == sum(name.endswith("/tokens") for name in arrays)
    torch.testing.assert_close(final.detach(), tensor(arrays, "encoder_norm_output")[:, 0], **BOUND)


@pytest.mark.parametrize("variant", VARIANTS)
def test_features_logits_and_every_gradient(arrays: Arrays, mode: str, variant: str) -> None:
    method = build(arrays, variant, mode)
    same(method.features(images(arrays)), arrays, f"{variant}/features")
    logits = method(images(arrays))
    same(logits, arrays, f"{variant}/logits")
    logits.square().sum().backward()
    trained = {name: p for name, p in method.named_parameters() if p.requires_grad}
    ours = {f"{ENCODER}query_prompt_embeddings": "queries", "enc.combine_params": "combine.weights",
            "head.last_layer.weight": "backbone.head.weight", "head.last_layer.bias": "backbone.head.bias"}  # fmt: skip
    theirs = [name for name in arrays if name.startswith(f"{variant}/grad/")]
    for name in theirs:
        grad = trained.pop(ours[name.removeprefix(f"{variant}/grad/")]).grad
        assert grad is not None
        same(grad, arrays, name)
    assert not trained


def test_selection_of_features(arrays: Arrays, mode: str) -> None:
    """Column lengths, group lasso, the kept indices in their order, and the logits of a head on them."""
    source = build(arrays, "concat", mode, stage="compress")
    same(source.column_norms(), arrays, "select/column_norms")
    same(source.column_norms().sum(), arrays, "select/group_lasso")
    selected = VQT(
        backbone(arrays), source.task, num_query_tokens=source.queries.shape[1],  # type: ignore[union-attr]
        stage="featselect", keep_frac=float(arrays["select/keep_frac"]), memory_mode=mode,  # type: ignore[arg-type]
    ).double()  # fmt: skip
    selected.take_over(source)
    assert selected.kept is not None
    assert selected.kept.tolist() == arrays["select/ids"].tolist()
    with torch.no_grad():
        for kind in ("weight", "bias"):
            selected.backbone.head.get_parameter(kind).copy_(tensor(arrays, f"select/w/head.last_layer.{kind}"))
    same(selected.eval()(images(arrays)), arrays, "select/logits")
