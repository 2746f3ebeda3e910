"""SHERL against numbers that the paper's own code produced: outputs and every gradient, in float64.

Adapters alone, whole BERT and T5 models with the late route, and MDETR's decoder layer as the late block.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.oracles.side_networks import BOUND, Case
from transfer_run.backbones.families.encoder import Encoder
from transfer_run.backbones.families.t5 import T5
from transfer_run.methods.base import Method
from transfer_run.methods.side_tuning.parallel.early_route import ConvSensing, PooledSensing, Sensing, redundancy
from transfer_run.methods.side_tuning.sherl import FORMS, SHERL
from transfer_run.task import Task

ORACLE = "sherl_*.npz"
T5_BOUND, T5_GRADIENT = 1e-5, 1e-3  # its norms take their variance in float32

Arrays = dict[str, np.ndarray]


@pytest.fixture(params=[True, False], ids=["efficient", "official"])
def lean(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def our_name(name: str) -> str:
    """The name of a tensor of a released adapter in ours, taps numbered from 0."""
    for theirs, ours in (
        ("hor_block_last.fc.", "guide.1."), ("gate_params", "gate.g"), ("guide_block.gate_parameters", "g"),
        ("guide_block.fc_attn.", "votes.score."), ("guide_block.layer_attn.", "votes.score."),
        ("guide_block.spatial_attn.", "spatial."), ("guide_block.mlp.", "votes.mlp."), ("norm_out.", "up.2."),
    ):  # fmt: skip
        if name.startswith(theirs):
            return name.replace(theirs, ours)
    part, rest = name.split(".", 1)
    if part == "hor_block":
        index, rest = rest.split(".", 1)
        for theirs, ours in (("conv.", ""), ("fc.0.", "0."), ("fc.1.", "1."), ("norm.", "1.")):
            if rest.startswith(theirs):
                return f"downs.{index}.{rest.replace(theirs, ours, 1)}"
        return f"downs.{index}.{rest}"  # fc1, fc2, fc3; `fc` alone is the caller's
    if part == "conv_out":
        return f"up.0.{rest}"
    return f"up.{rest}" if rest[0].isdigit() else f"up.1.{rest}"


def sensing(case: Case, variant: str, lean: bool, **form: Any) -> Sensing:
    given = FORMS[variant] | {"gate_T": case.config["gate_T"]} | form
    taps = range(case.config["n_taps"])
    return Sensing(case.config["hidden"], case.config["side"], taps, given, lean=lean)


@pytest.mark.parametrize(("name", "variant"), [("bert_block", "tokens"), ("t5_block", "encdec")])
def test_adapters(arrays: Arrays, name: str, variant: str, lean: bool) -> None:
    case = Case(arrays, name)
    side = sensing(case, variant, lean)
    case.load(side, our_name)
    features = [down(tap) for down, tap in zip(side.downs.values(), case.taps(), strict=True)]
    rho = redundancy(torch.stack(features[:-1], -2), side.votes.eps)
    torch.testing.assert_close(rho.flatten(0, 1), case.mid["redundancy"], **BOUND)
    torch.testing.assert_close(
        side.votes(features[:-1], features[-1]), case.mid["guided"].view_as(features[0]), **BOUND
    )
    case.check(side(case.taps(), case.input["last"]), side, our_name)


def test_cnn(arrays: Arrays, lean: bool) -> None:
    case = Case(arrays, "cnn_block")
    form = FORMS["cnn"] | {"gate_T": case.config["gate_T"]}
    side = ConvSensing(dict(enumerate(case.config["channels"])), case.config["side"], form, lean=lean)
    case.load(side, our_name)
    case.check(side(case.taps("stage_"), case.input["last"]), side, our_name)


@pytest.mark.parametrize("name", ["global_text_gated", "global_image_plain"])
def test_pooled(arrays: Arrays, name: str, lean: bool) -> None:
    case = Case(arrays, name)
    sizes = case.config
    side = PooledSensing(
        [sizes["hidden"]] * sizes["n_taps"], sizes["embed"], sizes["side"], eps=FORMS["pooled"]["eps"],
        gated=bool(sizes["layer_gates"]), temperature=sizes["gate_T"], lean=lean,
    )  # fmt: skip

    def rename(name: str) -> str:
        return our_name(name).replace(".fc.", ".1.") if name.startswith("hor_block.") else our_name(name)

    case.load(side, rename)
    anchor = case.input["anchor"].squeeze(1)
    position = case.input.get("position", torch.zeros(len(anchor), dtype=torch.int64))
    case.check(side(case.taps(), anchor, case.input.get("mask"), position), side, rename)


# ---- MDETR
class LateLayer(nn.Module):
    """A decoder layer of DETR with norms behind its sums, and the decoder's norm."""

    def __init__(self, sizes: dict[str, Any]) -> None:
        super().__init__()
        width, heads = sizes["hidden"], sizes["heads"]
        self.self_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.cross_attn_image = nn.MultiheadAttention(width, heads, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(width, sizes["ffn"]), nn.Linear(sizes["ffn"], width)
        self.norm1, self.norm3, self.norm4, self.last = (nn.LayerNorm(width) for _ in range(4))

    def forward(self, x: Tensor, memory: Tensor, case: Case) -> Tensor:
        asked, place = case.input["query_pos"], case.input["memory_pos"]
        x = self.norm1(x + self.self_attn(x + asked, x + asked, x, need_weights=False)[0])
        padding = case.input["memory_padding_mask"]
        x = self.norm3(x + self.cross_attn_image(x + asked, memory + place, memory, padding, need_weights=False)[0])
        return self.last(self.norm4(x + self.linear2(self.linear1(x).relu())))


class Grounding(nn.Module):
    def __init__(self, case: Case, lean: bool) -> None:
        super().__init__()
        form = FORMS["tokens"] | {"eps": 1e-6, "guide_mlp": True, "up_dropout": 0.0}
        form["gate_T"] = case.config["gate_T"]
        width, side = case.config["hidden"], case.config["side"]
        self.encoder, self.decoder = (
            Sensing(width, side, case.config[f"select_{stack}_layers"], form, norm_eps=1e-5, lean=lean)
            for stack in ("encoder", "decoder")
        )
        self.late = LateLayer(case.config)
        self.late.requires_grad_(False)

    def forward(self, case: Case) -> Tensor:
        encoder, decoder = case.taps("enc_block_"), case.taps("dec_block_")
        memory = self.encoder([encoder[int(i)] for i in self.encoder.downs], encoder[-1])
        late = self.decoder([decoder[int(i)] for i in self.decoder.downs], decoder[-1])
        return torch.stack([late, self.late(late, memory, case)])


def test_encdec(arrays: Arrays, lean: bool) -> None:
    case = Case(arrays, "encdec")

    def rename(name: str) -> str:
        stack, rest = name.split(".", 1)
        if rest.startswith("layers."):
            return f"late.{rest.split('.', 2)[2]}"
        if rest.startswith("norm."):
            return f"late.last.{rest.removeprefix('norm.')}"
        rest = rest.removeprefix("side_block.")
        if rest.startswith("hor_block."):
            _, index, part, leaf = rest.split(".")
            tap = case.config[f"select_{stack}_layers"][int(index)]
            return f"{stack}.downs.{tap}.{0 if part == 'fc' else 1}.{leaf}"
        return f"{stack}.{our_name(rest)}"

    both = Grounding(case, lean)
    case.load(both, rename)
    output = both(case)
    torch.testing.assert_close(output, case.output, **BOUND)
    output.square().sum().backward()
    gradients = {name: p.grad for name, p in both.named_parameters() if p.requires_grad}
    assert {rename(name) for name in case.grad} == set(gradients)
    for name, theirs in case.grad.items():
        torch.testing.assert_close(gradients[rename(name)], theirs, **BOUND)


# ---- whole models
def load_whole(method: Method, case: Case, side: str) -> None:
    """Backbone weights by the library's names, side weights by ours."""
    ours = dict(method.named_parameters())
    with torch.no_grad():
        for name, tensor in case.weight.items():
            ours[whole_name(name, side)].copy_(tensor)


def whole_name(name: str, side: str) -> str:
    if name.startswith("side_module."):
        return f"sides.{side}.{our_name(name.removeprefix('side_module.'))}"
    stack, rest = name.split(".", 1)
    if rest.startswith("side_mtsa_block."):
        return f"sides.{stack}.{our_name(rest.removeprefix('side_mtsa_block.'))}"
    if rest.startswith("final_side_layer_norm."):
        return f"norms.{stack}.norm.weight"
    return f"backbone.model.{name.removeprefix('bert.')}"


def numbered(name: str, taps: list[int]) -> str:
    """The adapter's maps carry the numbers of their taps with us, 0, 1, ... in the file."""
    parts = name.split(".")
    if "downs" in parts:
        place = parts.index("downs") + 1
        parts[place] = str(taps[int(parts[place])])
    return ".".join(parts)


def test_bert(arrays: Arrays, lean: bool) -> None:
    case = Case(arrays, "bert_model")
    sizes = case.config
    architecture = {
        "model_type": "bert", "vocab_size": sizes["vocab"], "hidden_size": sizes["hidden"],
        "num_hidden_layers": sizes["blocks"], "num_attention_heads": sizes["heads"],
        "intermediate_size": sizes["intermediate"], "max_position_embeddings": sizes["max_positions"],
        "layer_norm_eps": sizes["layer_norm_eps"],
    }  # fmt: skip
    backbone = Encoder.from_architecture({"name": "oracle", "pooling": "cls", "architecture": architecture}).double()
    mode: Any = "efficient" if lean else "official"
    method = SHERL(backbone, Task("classification", 2), side_width=sizes["side"], memory_mode=mode).double().eval()
    load_whole(method, case, "encoder")
    taps, state = method.early(case.input, "encoder")
    for index, tap in enumerate(taps):
        torch.testing.assert_close(tap, case.mid[f"hidden_{index}"], **BOUND)
    state = method.sensed(case.input, "encoder")
    torch.testing.assert_close(state.hidden, case.mid["late_input"], **BOUND)
    output = backbone.run(state).hidden
    torch.testing.assert_close(output, case.output, **BOUND)
    output.square().sum().backward()
    gradients = {name: p.grad for name, p in method.sides.named_parameters()}
    assert {whole_name(n, "encoder") for n in case.grad} == {f"sides.{name}" for name in gradients}
    for name, theirs in case.grad.items():
        torch.testing.assert_close(gradients[whole_name(name, "encoder").removeprefix("sides.")], theirs, **BOUND)
    assert all(p.grad is None for p in backbone.model.parameters())


def test_t5(arrays: Arrays, lean: bool) -> None:
    case = Case(arrays, "t5_model")
    sizes = case.config
    architecture = {
        "vocab_size": sizes["vocab"], "d_model": sizes["hidden"], "d_kv": sizes["d_kv"], "d_ff": sizes["d_ff"],
        "num_layers": sizes["blocks"], "num_decoder_layers": sizes["blocks"], "num_heads": sizes["heads"],
        "relative_attention_num_buckets": sizes["buckets"], "layer_norm_epsilon": sizes["layer_norm_eps"],
        "feed_forward_proj": "relu", "tie_word_embeddings": bool(sizes["tie_word_embeddings"]), "pad_token_id": 0,
        "eos_token_id": 1, "decoder_start_token_id": sizes["decoder_start_token_id"],
    }  # fmt: skip
    backbone = T5.from_architecture({"name": "oracle", "family": "t5", "architecture": architecture})
    mode: Any = "efficient" if lean else "official"
    layers = {"encoder": sizes["side_layers"], "decoder": sizes["side_layers"]}
    method = SHERL(
        backbone, Task("text_to_text", 0), side_width=sizes["side"], side_layers=layers, memory_mode=mode
    ).double().eval()  # fmt: skip
    ours = dict(method.named_parameters())

    def rename(name: str) -> str:
        renamed = whole_name(name, "")
        stack = renamed.split(".")[1]
        return numbered(renamed, method.taps[stack]) if renamed.startswith("sides.") else renamed

    with torch.no_grad():
        for name, tensor in case.weight.items():
            ours[rename(name)].copy_(tensor)
    bound = {"atol": T5_BOUND, "rtol": T5_BOUND}
    batch = {name: case.input[name] for name in ("input_ids", "attention_mask", "decoder_input_ids", "labels")}
    memory = method.encode(batch)
    torch.testing.assert_close(memory.side.hidden, case.mid["enc_side_normed"], **bound)
    late = method.sensed(batch, "decoder", memory.backbone)
    torch.testing.assert_close(late.hidden, case.mid["dec_late_input"], **bound)
    logits = method(batch)
    torch.testing.assert_close(logits, case.output, **bound)
    torch.testing.assert_close(method.task_loss(logits, batch["labels"]).double(), case.mid["label_loss"], **bound)
    logits.square().sum().backward()
    trained = {name for name, p in ours.items() if p.requires_grad}
    assert {rename(name) for name in case.grad} == trained
    for name, theirs in case.grad.items():
        grad = ours[rename(name)].grad
        assert grad is not None, name
        scale = T5_GRADIENT * float(theirs.abs().max())
        torch.testing.assert_close(grad, theirs, atol=scale, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
