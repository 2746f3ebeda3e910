"""HST against numbers that the paper's own code produced, in float64: every activation, logits, every gradient."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from transfer_run.backbones.families.vit import ViT
from transfer_run.methods.side_tuning.hst import HST
from transfer_run.task import Task

ORACLE = "hst_*.npz"
BOUND = {"atol": 1e-10, "rtol": 1e-9}

Arrays = dict[str, np.ndarray]


def under(arrays: Arrays, prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): torch.from_numpy(a).double() for n, a in arrays.items() if n.startswith(prefix)}


RENAMED = {
    r"m_patch_embed(\d+)\.(?:conv|proj)": "stages.{}.entry.conv", r"m_patch_embed(\d+)\.norm": "stages.{}.entry.norm",
    r"m_block(\d+)": "stages.{}.blocks", r"m_norm(\d+)": "stages.{}.norm", r"T_Bridge_(\d+)": "bridge.maps.{}",
    r"m_proj_norm(\d+)": "bridge.norms.{}",
}  # fmt: skip
INNER = {".attn.": ".attention.", ".mlp.fc1.": ".mlp.0.", ".mlp.fc2.": ".mlp.2."}


def our_name(name: str) -> str:
    """The name of a tensor of the released code in ours; `m_embeddings.l` are rows of one tensor here."""
    for theirs, ours in RENAMED.items():
        found = re.match(theirs + r"\.", name)
        if found:  # the released code counts stages and norms from 1
            rest = "." + name[found.end() :]
            for old, new in INNER.items():
                rest = rest.replace(old, new)
            return ours.format(int(found[1]) - 1) + rest
    if name.startswith("fc_norm."):
        return name.replace("fc_norm.", "head_norm.")
    return f"backbone.{name}" if name.startswith("head.") else f"backbone.model.{name}"


def build(arrays: Arrays, memory_mode: str) -> HST:
    sizes = dict(zip(arrays["config_names"].tolist(), arrays["config"].tolist(), strict=True))
    ratio = float(arrays["config/mlp_ratio"])
    config = {
        "model": "vit_base_patch16_224", "img_size": (sizes["img_h"], sizes["img_w"]),
        "patch_size": sizes["patch_size"], "embed_dim": sizes["embed_dim"], "depth": sizes["depth"],
        "num_heads": sizes["num_heads"], "mlp_ratio": ratio,
    }  # fmt: skip
    method = HST(
        ViT.from_architecture({"name": "oracle", "family": "vit", "architecture": config}),
        Task("classification", sizes["num_classes"]),
        side_dims=arrays["config/m_embed_dims"].tolist(), side_heads=arrays["config/m_c_num_heads"].tolist(),
        side_depths=arrays["config/m_depths"].tolist(), side_mlp_ratio=ratio, num_meta_tokens=sizes["metaG_num"],
        drop_path=0.0, memory_mode=memory_mode,  # type: ignore[arg-type]
    ).double()  # fmt: skip
    own = method.state_dict()
    filled = {name for name in own if name.endswith("num_batches_tracked")}
    with torch.no_grad():
        for name, tensor in under(arrays, "w/").items():
            if name.startswith("m_embeddings."):
                own["meta"][int(name.split(".")[1])] = tensor[0]
                filled.add("meta")
            else:
                own[our_name(name)].copy_(tensor)
                filled.add(our_name(name))
    assert set(own) == filled
    return method.eval()


@pytest.fixture(params=["efficient", "official"])
def method(request: pytest.FixtureRequest, arrays: Arrays) -> HST:
    return build(arrays, request.param)


def images(arrays: Arrays) -> dict[str, Tensor]:
    return {"pixel_values": torch.from_numpy(arrays["input"]).double()}


def watch(method: HST, seen: dict[str, Tensor]) -> None:
    """Note every activation of the file while the method runs."""

    def note(module: nn.Module, keep: Any) -> None:
        module.register_forward_hook(lambda m, args, out: seen.update(keep(args, out)))

    count = method.meta.shape[1] if method.meta is not None else 0
    for index, block in enumerate(method.backbone.blocks("image")):
        note(block, lambda args, out, n=index: {
            f"vit{n}/meta": out[:, :count], f"vit{n}/cls_and_patches": out[:, count:],
        })  # fmt: skip
    for number, stage in enumerate(method.stages, 1):
        note(stage.entry, lambda args, out, s=number: {f"stage{s}/in": out[0]})
        note(stage.norm, lambda args, out, s=number: {f"stage{s}/features": out})
        for place, block in enumerate(stage.blocks):
            note(block, lambda args, out, n=f"stage{number}/block{place}": {
                f"{n}/kv": args[1], f"{n}/fine": args[2], f"{n}/out": out,
            })  # fmt: skip
    note(method.head_norm, lambda args, out: {"pooled": args[0], "fc_norm_output": out})


def test_activations_and_logits(method: HST, arrays: Arrays) -> None:
    seen: dict[str, Tensor] = {}
    watch(method, seen)
    seen["logits"] = method(images(arrays))
    wanted = {n for n in arrays if n.startswith(("vit", "stage")) or n in ("pooled", "fc_norm_output", "logits")}
    assert wanted == set(seen)
    for name in wanted:
        torch.testing.assert_close(seen[name].detach(), torch.from_numpy(arrays[name]), **BOUND, msg=name)


def test_logits_in_training(method: HST, arrays: Arrays) -> None:
    """Batch statistics in both BatchNorms."""
    logits = method.train()(images(arrays)).detach()
    torch.testing.assert_close(logits, torch.from_numpy(arrays["train_mode/logits"]), **BOUND)


def test_every_gradient(method: HST, arrays: Arrays) -> None:
    """All trained tensors; the released rule of what is trained gives the same set."""
    loss = method(images(arrays)).square().sum()
    torch.testing.assert_close(loss.detach(), torch.from_numpy(arrays["loss"]), **BOUND)
    loss.backward()
    parameters = dict(method.named_parameters())
    gradients = under(arrays, "grad/")
    assert set(gradients) == set(arrays["trainable_names"].tolist())
    compared = set()
    for name, theirs in gradients.items():
        is_meta = name.startswith("m_embeddings.")
        ours = "meta" if is_meta else our_name(name)
        grad = parameters[ours].grad
        assert grad is not None, name
        grad = grad[int(name.split(".")[1])][None] if is_meta else grad
        torch.testing.assert_close(grad, theirs, **BOUND, msg=name)
        compared.add(ours)
    assert compared == {name for name, p in parameters.items() if p.requires_grad}
    for name in arrays["frozen_names"].tolist():
        assert parameters[our_name(name)].grad is None, name
