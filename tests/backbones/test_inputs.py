"""Inputs that a model cannot take are refused in words, before a library fails in its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from transfer_run.backbones.load import build_backbone
from transfer_run.errors import UserError


@pytest.mark.parametrize(
    ("name", "room", "stack"), [("bert", 24, None), ("roberta", 22, None), ("gpt2", 64, None), ("clip", 20, "text")]
)
def test_texts_that_are_too_long(build: Callable[..., Any], name: str, room: int, stack: str | None) -> None:
    """Up to the last learned position it runs, one token more is refused."""
    backbone = build(name).backbone
    ids = torch.full((1, room), 5)
    assert backbone.run(backbone.embed({"input_ids": ids}, stack)).hidden.shape[1] == room
    with pytest.raises(UserError, match=f"longer than the {room}") as error:
        backbone.embed({"input_ids": torch.full((1, room + 1), 5)}, stack)
    assert f"dataset.max_source_length={room}" in error.value.remedy


@pytest.mark.parametrize("name", ["t5", "deberta", "llama"])
def test_relative_positions_have_no_end(build: Callable[..., Any], name: str) -> None:
    backbone = build(name).backbone
    ids = torch.full((1, 200), 5)
    assert bool(backbone.run(backbone.embed({"input_ids": ids})).hidden.isfinite().all())


@pytest.mark.parametrize("name", ["vit", "clip"])
def test_images_of_another_size(build: Callable[..., Any], name: str) -> None:
    with pytest.raises(UserError, match=r"Images of 8 x 10 pixels"):
        build(name).backbone.embed({"pixel_values": torch.zeros(1, 3, 8, 10)}, "image")


def test_a_vit_for_images_of_any_size(config_of: Callable[[str], dict[str, Any]]) -> None:
    config = config_of("vit")
    backbone = build_backbone(config | {"architecture": config["architecture"] | {"dynamic_img_size": True}})
    state = backbone.run(backbone.embed({"pixel_values": torch.zeros(1, 3, 8, 12)}))
    assert backbone.grid(state) == (4, 6)
    assert state.hidden.shape[1] == backbone.special_tokens(state) + 24


def test_a_text_without_a_mask_is_all_real(build: Callable[..., Any]) -> None:
    for name in ("t5", "bert", "deberta", "gpt2", "llama"):
        case = build(name)
        ids = case.batch["input_ids"][:1]
        features = []
        for batch in ({"input_ids": ids}, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}):
            state = case.backbone.run(case.backbone.embed(batch))
            features.append(case.backbone.pool(case.backbone.finish(state), state))
        torch.testing.assert_close(*features, atol=1e-6, rtol=1e-5)


def test_a_decoder_needs_its_encoder(build: Callable[..., Any]) -> None:
    case = build("t5")
    with pytest.raises(ValueError, match="memory"):
        case.backbone.embed(case.batch, "decoder")


def test_another_memory_for_the_last_block(build: Callable[..., Any]) -> None:
    """The last decoder block reads what it is given, whatever its length; earlier blocks are not touched."""
    case = build("t5", torch.float64)
    backbone = case.backbone
    encoded = backbone.finished_state(backbone.run(backbone.embed(case.batch, "encoder")))
    state = backbone.run(backbone.embed(case.batch, "decoder", encoded), stop=1)
    plain = backbone.run(state).hidden
    other = encoded.with_hidden(torch.randn_like(encoded.hidden))
    assert not torch.allclose(backbone.run(backbone.with_memory(state, other)).hidden, plain)
    torch.testing.assert_close(backbone.run(backbone.with_memory(state, encoded)).hidden, plain)
    shorter = backbone.drop_prefix(backbone.embed(case.batch, "encoder"), 2)
    assert backbone.run(backbone.with_memory(state, shorter)).hidden.shape == plain.shape
    with pytest.raises(UserError, match="does not have a decoder that reads an encoder"):
        build("bert").backbone.with_memory(state, other)
