"""LST against numbers that the paper's own code produced: activations, loss, gradients, decoding, pruning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from transfer_run.backbones.families.t5 import T5
from transfer_run.methods.base import Context
from transfer_run.methods.side_tuning.lst import LST
from transfer_run.task import Task

ORACLE = "lst_t5_*.npz"
ATOL = 1e-5
GRADIENT = {"atol": 1e-5, "rtol": 1e-4}

Arrays = dict[str, np.ndarray]


def settings(text: np.ndarray) -> dict[str, Any]:
    """The config of a case, whatever it calls its entries."""
    return dict(json.loads(str(text)))


def under(arrays: Arrays, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): torch.from_numpy(a) for name, a in arrays.items() if name.startswith(prefix)}


def plain_t5(weights: dict[str, Tensor], config: dict[str, Any]) -> T5:
    """The backbone of a case; every size is read from the weights, the rest from the case's config."""
    blocks = {s: 1 + max(int(n.split(".")[2]) for n in weights if n.startswith(f"{s}.block.")) for s in STACKS}
    table = weights["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    inner, d_model = weights["encoder.block.0.layer.0.SelfAttention.q.weight"].shape
    architecture = {
        "vocab_size": len(weights["shared.weight"]), "d_model": d_model, "d_kv": inner // table.shape[1],
        "d_ff": len(weights["encoder.block.0.layer.1.DenseReluDense.wi.weight"]), "num_heads": table.shape[1],
        "num_layers": blocks["encoder"], "num_decoder_layers": blocks["decoder"],
        "relative_attention_num_buckets": len(table), "feed_forward_proj": "relu", "tie_word_embeddings": True,
        "pad_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    for name in ("relative_attention_max_distance", "layer_norm_epsilon"):
        if name in config:
            architecture[name] = config[name]
    backbone = T5.from_architecture({"name": "oracle", "family": "t5", "architecture": architecture})
    backbone.model.config.decoder_start_token_id = config.get("decoder_start_token_id", 0)
    own = {name: tensor for name, tensor in weights.items() if "side" not in name}
    missing, unexpected = backbone.model.load_state_dict(own, strict=False)
    assert not unexpected
    assert set(missing) <= {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"}  # tied
    return backbone


STACKS = ("encoder", "decoder")


def our_name(name: str) -> tuple[str, int | None]:
    """The name of a side tensor of the released code in ours, and its element where we hold a vector of gates."""
    if name.startswith("side_final_upsample"):
        return name.replace("side_final_upsample", "output.up"), None
    stack, rest = name.split(".", 1)
    here = f"ladders.{stack}."
    if rest.startswith("side_gate_params."):
        return here + "mix.alpha", int(rest.split(".")[1])
    for theirs, ours in (("side_block.", "steps.blocks."), ("side_first_downsample.", "first."),
                         ("side_downsamples.", "maps."), ("final_side_layer_norm.", "steps.norm.")):  # fmt: skip
        if rest.startswith(theirs):
            return here + rest.replace(theirs, ours), None
    raise AssertionError(f"a tensor of the released code that we do not know: {name}")


def build(arrays: Arrays, memory_mode: str) -> LST:
    weights, config = under(arrays, "param/"), settings(arrays["config_json"])
    backbone = plain_t5(weights, config)
    narrow = len(weights["encoder.side_first_downsample.weight"])
    method = LST(
        backbone,
        Task("text_to_text", 0, max_target_length=arrays["out/greedy_ids"].shape[1] - 1),
        reduction_factor=backbone.width("encoder") // narrow,
        side_layers={stack: config.get(f"{stack}_side_layers") for stack in STACKS},
        gate_temperature=config.get("gate_T", 0.1),
        init="random",
        memory_mode=memory_mode,  # type: ignore[arg-type]
    )
    parameters = dict(method.named_parameters())
    with torch.no_grad():
        for name, tensor in weights.items():
            if "side" not in name:
                continue
            ours, element = our_name(name)
            target = parameters[ours] if element is None else parameters[ours][element : element + 1]
            target.copy_(tensor)
    return method.eval()


@pytest.fixture(params=["efficient", "official"])
def method(request: pytest.FixtureRequest, arrays: Arrays) -> LST:
    return build(arrays, request.param)


def inputs(arrays: Arrays) -> dict[str, Tensor]:
    return under(arrays, "input/")


def same(ours: Tensor, theirs: np.ndarray) -> None:
    torch.testing.assert_close(ours.detach(), torch.from_numpy(theirs), atol=ATOL, rtol=0, check_dtype=False)


def test_activations_logits_and_loss(method: LST, arrays: Arrays) -> None:
    """Every activation that the file has, in both streams; logits; loss."""
    seen: dict[str, Tensor] = {}
    for stack, ladder in method.ladders.items():
        ladder.first.register_forward_hook(lambda m, i, o, s=stack: seen.__setitem__(f"{s}.side_initial", o))
        for index, block in ladder.steps.blocks.items():

            def keep(m: Any, i: Any, o: Any, s: str = stack, n: str = index) -> None:
                seen[f"{s}.side_block_in.{n}"], seen[f"{s}.side_block_out.{n}"] = i[0], o[0]

            block.register_forward_hook(keep)
        for index, block in enumerate(method.backbone.blocks(stack)):
            block.register_forward_hook(lambda m, i, o, s=stack, n=index: seen.__setitem__(f"{s}.block_out.{n}", o[0]))
        ladder.steps.norm.register_forward_hook(lambda m, i, o, s=stack: seen.__setitem__(f"{s}.side_last", o))
        method.backbone.final_norm(stack).register_forward_hook(
            lambda m, i, o, s=stack: seen.__setitem__(f"{s}.backbone_last", o)
        )
    method.output.register_forward_hook(lambda m, i, o: seen.__setitem__("side_upsampled", o))
    batch = inputs(arrays)
    same(method(batch), arrays["out/logits"])
    same(method.loss(batch), arrays["out/loss"])
    wanted = {name.removeprefix("act/"): value for name, value in arrays.items() if name.startswith("act/")}
    unread = range(method.depth_needed("decoder"), method.backbone.depth("decoder"))
    never_run = {"decoder.backbone_last", *(f"decoder.block_out.{index}" for index in unread)}
    assert set(wanted) - set(seen) == never_run
    for name in set(wanted) - never_run:
        same(seen[name], wanted[name])


def test_decoder_input_follows_from_the_labels(method: LST, arrays: Arrays) -> None:
    batch = {name: tensor for name, tensor in inputs(arrays).items() if name != "decoder_input_ids"}
    same(method(batch), arrays["out/logits"])


def test_greedy_ids_with_and_without_caches(method: LST, arrays: Arrays) -> None:
    """The file does not stop at the end token: ours may, and agrees up to it."""
    theirs = torch.from_numpy(arrays["out/greedy_ids"])[:, 1:]
    config = method.backbone.model.config
    config.eos_token_id = -1  # never generated, so nothing stops
    for use_cache in (True, False):
        assert torch.equal(method.generate(inputs(arrays), theirs.shape[1], use_cache), theirs)


def idle_gates(arrays: Arrays) -> set[str]:
    """Gates of dropped layers, which have no gradient: a file may leave it out or say that it is zero."""
    names = under(arrays, "param/")
    gates = {name for name in names if ".side_gate_params." in name}
    kept = {(n.split(".")[0], n.split(".")[2]) for n in names if ".side_downsamples." in n}
    return {name for name in gates if (name.split(".")[0], name.split(".")[2]) not in kept}


def test_every_gradient(method: LST, arrays: Arrays) -> None:
    """All trainable tensors, in evaluation mode; nothing else is trained and no backbone weight has a gradient."""
    method.loss(inputs(arrays)).backward()
    parameters = dict(method.named_parameters())
    covered: set[str] = set()
    gradients = under(arrays, "grad/")
    for name, theirs in gradients.items():
        ours, element = our_name(name)
        grad = parameters[ours].grad
        assert grad is not None, name
        grad = grad if element is None else grad[element : element + 1]
        torch.testing.assert_close(grad, theirs, **GRADIENT, msg=lambda m, n=name: f"{n}: {m}")
        covered.add(ours)
    assert covered == {name for name, p in parameters.items() if p.requires_grad}
    side = {name for name in under(arrays, "param/") if "side" in name}
    assert side - set(gradients) <= idle_gates(arrays), "a side tensor without its gradient"
    assert all(p.grad is None for p in method.backbone.parameters())


# ---- structural pruning
PARTS = {"SelfAttention.qkv": "qkv", "SelfAttention.o": "out", "EncDecAttention.qkv": "cross_qkv",
         "EncDecAttention.o": "cross_out", "DenseReluDense.wi": "mlp_in", "DenseReluDense.wo": "mlp_out"}  # fmt: skip


def samples(arrays: Arrays) -> Iterator[dict[str, Tensor]]:
    """Each sample alone, without its padding."""
    given = {name: torch.from_numpy(arrays[f"prune/{name}"]) for name in ("input_ids", "attention_mask", "labels")}
    for ids, mask, labels in zip(*given.values(), strict=True):
        real = int(mask.sum())
        yield {"input_ids": ids[None, :real], "attention_mask": mask[None, :real], "labels": labels[None, labels >= 0]}


@pytest.fixture
def pruned(arrays: Arrays, tmp_path: Path) -> tuple[LST, Context]:
    config = settings(arrays["prune/config_json"])
    backbone = plain_t5(under(arrays, "prune/param/"), config)
    wide = len(arrays["prune/fisher_keep/shared.weight"])
    method = LST(backbone, Task("text_to_text", 0), reduction_factor=backbone.width("encoder") // wide)
    return method, Context(seed=0, folder=tmp_path, batches=lambda split, size: samples(arrays), log=lambda line: None)


def label(name: str) -> str:
    """The released name of a decision in ours: `encoder.block.0.layer.0.SelfAttention.qkv` -> `encoder.0.qkv`."""
    if name == "shared.weight":
        return "first"
    stack, _, index, _, _, *part = name.split(".")
    return f"{stack}.{index}.{PARTS['.'.join(part)]}"


def test_fisher(pruned: tuple[LST, Context], arrays: Arrays) -> None:
    method, context = pruned
    ours = method.fisher(context.batches("train", 1))
    theirs = under(arrays, "prune/fisher/")
    compared = [name for name in theirs if f"model.{name}" in ours]
    assert len(compared) == len(ours)
    for name in compared:
        mine, other = ours[f"model.{name}"], theirs[name]
        if mine.dim() < other.dim():  # the token table: its channels alone are ranked
            mine, other = mine.float(), other.sum(0)
        torch.testing.assert_close(mine, other, atol=1e-7, rtol=1e-3)


@pytest.mark.parametrize("init", ["fisher", "magnitude"])
@pytest.mark.parametrize("order", ["ascending", "released"])
def test_pruned_rows_and_weights(pruned: tuple[LST, Context], arrays: Arrays, init: str, order: str) -> None:
    """Sets of kept rows of every decision, then every pruned weight; in the released order bit by bit."""
    method, context = pruned
    method.prune_order = order  # type: ignore[assignment]
    importance = method.fisher(context.batches("train", 1)) if init == "fisher" else None
    chain = method.cut_from_backbone(importance)
    theirs = {label(name): rows for name, rows in under(arrays, f"prune/{init}_keep/").items()}
    assert set(theirs) == set(chain.decisions)
    for name, rows in theirs.items():
        assert set(chain.decisions[name].tolist()) == set(rows.tolist()), name
        if order == "released":
            assert chain.decisions[name].tolist() == rows.tolist(), name
    if order == "released":
        compare_weights(method, under(arrays, f"prune/{init}_pruned/"))


def compare_weights(method: LST, theirs: dict[str, Tensor]) -> None:
    state = method.state_dict()
    compared = 0
    for name, tensor in theirs.items():
        stack, *rest = name.split(".")
        ours = f"ladders.{stack}.steps." + ".".join(rest).replace("block.", "blocks.", 1)
        ours = ours.replace("final_layer_norm", "norm")
        if ours in state:
            assert torch.equal(state[ours], tensor), name
            compared += 1
    assert compared == sum(1 for name in state if ".steps." in name)
