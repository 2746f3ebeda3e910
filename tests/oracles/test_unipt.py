"""UniPT's side networks against numbers that the paper's own code produced, in float64: outputs and every gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.oracles.side_networks import BOUND, Case
from transfer_run.methods.side_tuning.parallel.unipt_sides import ConvSide, PooledSide, TokenSide
from transfer_run.methods.side_tuning.unipt import FORMS

ORACLE = "unipt_*.npz"


@pytest.fixture(params=[True, False], ids=["efficient", "official"])
def lean(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def plain_name(name: str, guide: int) -> str:
    """Names of the tokens and cnn variants in ours; `guide` is the number of the last tap."""
    for theirs, ours in (
        (f"downsample_layers.{guide}.", "guide."), ("downsample_layers.", "downs."), ("downsample_layer.", "guide."),
        ("projection_layer.", "projection."), ("upsample_layer.", "up."), ("gate_layer.", "interaction.gate."),
    ):  # fmt: skip
        if name.startswith(theirs):
            return name.replace(theirs, ours, 1)
    stage, rest = name.removeprefix("identity_layers.").split(".", 1)
    return f"pools.{stage}.ask.{rest}"


def test_tokens(arrays: dict[str, np.ndarray], lean: bool) -> None:
    case = Case(arrays, "tokens")
    sizes, last = case.config, case.config["n_taps"] - 1
    side = TokenSide(sizes["hidden"], sizes["side"], range(last), FORMS["tokens"], out=sizes["embed"], lean=lean)
    case.load(side, rename := lambda name: plain_name(name, last))
    *targets, guide = case.taps()
    seen: dict[str, Any] = {}
    side.projection.register_forward_hook(lambda m, i, o: seen.update(merged=i[0], projected=o))
    mask = case.input["mask"]
    features = [side.narrow(str(index), tap) for index, tap in enumerate(targets)]
    query = side.guide(guide)
    for index, feature in enumerate(features):
        torch.testing.assert_close(side.interaction.interact(query, feature, mask), case.mid[f"interacted_{index}"])
    confidence = side.interaction.confidence(query, features, mask, query.shape[1]).squeeze(1)
    torch.testing.assert_close(confidence, case.mid["confidence"], **BOUND)
    output = side(targets, guide, mask)
    if not lean:  # else the hook saw one part of the batch
        torch.testing.assert_close(seen["merged"], case.mid["merged"], **BOUND)
    case.check(output, side, rename)
    assert side.interaction.gate.bias.grad.abs().item() < 1e-9


def test_joint(arrays: dict[str, np.ndarray], lean: bool) -> None:
    case = Case(arrays, "joint")
    sizes, last = case.config, case.config["n_taps"] - 1
    side = TokenSide(sizes["hidden"], sizes["side"], range(last), FORMS["joint"], out=sizes["hidden"], lean=lean)

    def rename(name: str) -> str:
        for theirs, ours in (
            ("side_first_downsample_l.", "downs.0."), (f"side_downsamples_l.{last - 1}.", "guide."),
            ("side_projection_l.", "projection."), ("side_final_upsample_l.", "up."),
            ("side_gate_layer_l.", "interaction.gate."),
        ):  # fmt: skip
            if name.startswith(theirs):
                return name.replace(theirs, ours)
        index, rest = name.removeprefix("side_downsamples_l.").split(".", 1)
        return f"downs.{int(index) + 1}.{rest}"

    case.load(side, rename)
    *targets, guide = case.taps()
    case.check(side(targets, guide, case.input["mask"]), side, rename)


@pytest.mark.parametrize("variant", ["global_text", "global_image"])
def test_pooled(arrays: dict[str, np.ndarray], variant: str, lean: bool) -> None:
    case = Case(arrays, variant)
    sizes = case.config
    widths = [sizes["hidden"]] * sizes["n_taps"]
    side = PooledSide(widths, sizes["embed"], sizes["side"], eps=FORMS["pooled"]["eps"], lean=lean)
    case.load(side, rename := lambda name: plain_name(name, -1))
    anchor = case.input["anchor"].squeeze(1)
    position = case.input.get("position", torch.zeros(len(anchor), dtype=torch.int64))
    case.check(side(case.taps(), anchor, case.input.get("mask"), position), side, rename)


def test_cnn(arrays: dict[str, np.ndarray], lean: bool) -> None:
    case = Case(arrays, "cnn")
    sizes = case.config
    *channels, guide = sizes["channels"]
    side = ConvSide(dict(enumerate(channels)), guide, sizes["embed"], sizes["side"], FORMS["cnn"], lean=lean)
    case.load(side, rename := lambda name: plain_name(name, len(channels)))
    *stages, last = case.taps("stage_")
    for index, stage in enumerate(stages):
        torch.testing.assert_close(side.pools[str(index)](stage, last), case.mid[f"pooled_{index}"], **BOUND)
    case.check(side(stages, last), side, rename)


class Grounding(nn.Module):
    """MDETR's two side networks; their outputs go through one map and one norm, those of the targets too."""

    def __init__(self, sizes: dict[str, Any], lean: bool) -> None:
        super().__init__()
        form, select = FORMS["encdec"], sizes["select_layers"]
        self.encoder = TokenSide(sizes["hidden"], sizes["side"], select, form, out=None, lean=lean)
        self.decoder = TokenSide(
            sizes["hidden"], sizes["side"], select, form, out=sizes["hidden"], reads_memory=True, lean=lean
        )
        self.norm = nn.LayerNorm(sizes["hidden"])

    def forward(self, encoder: list[Tensor], decoder: list[Tensor], mask: Tensor) -> Tensor:
        targets = [int(name) for name in self.encoder.downs]
        memory = self.encoder([encoder[index] for index in targets], encoder[-1], mask)
        said = self.decoder([decoder[index] for index in targets], decoder[-1], None, memory, mask)
        assert self.decoder.up is not None
        helped = [self.decoder.up(self.decoder.narrow(str(i), decoder[i], memory, mask)) for i in targets]
        return self.norm(torch.stack([*helped, said]))


PARTS = {"downsample0": "guide", "projection": "projection", "gate_layer": "interaction.gate"}


def test_encdec(arrays: dict[str, np.ndarray], lean: bool) -> None:
    case = Case(arrays, "encdec")
    select = case.config["select_layers"]

    def rename(name: str) -> str:
        if name.startswith("side_final_upsample"):
            return name.replace("side_final_upsample.1", "decoder.up.1").replace("side_final_upsample.2", "norm")
        if name.startswith("side_projection_crosser"):
            _, index, rest = name.split(".", 2)
            return f"decoder.readers.{select[int(index)]}.{rest}"
        part, rest = name.removeprefix("side_").split(".", 1)
        kind, stack = part.rsplit("_", 1)
        if kind == "downsamples":
            index, rest = rest.split(".", 1)
            return f"{stack}.downs.{select[int(index)]}.{rest}"
        return f"{stack}.{PARTS[kind]}.{rest}"

    both = Grounding(case.config, lean)
    case.load(both, rename)
    case.check(both(case.taps("enc_hidden_"), case.taps("dec_hidden_"), case.input["enc_mask"]), both, rename)


def test_float32(arrays: dict[str, np.ndarray]) -> None:
    case = Case(arrays, "tokens")
    sizes, last = case.config, case.config["n_taps"] - 1
    side = TokenSide(sizes["hidden"], sizes["side"], range(last), FORMS["tokens"], out=sizes["embed"])
    case.load(side, lambda name: plain_name(name, last))
    *targets, guide = [tap.float() for tap in case.taps()]
    torch.testing.assert_close(
        side.float()(targets, guide, case.input["mask"]), case.output.float(), atol=1e-4, rtol=1e-4
    )
