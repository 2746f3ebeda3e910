"""Stored taps answer the frozen stream and nothing else."""

from __future__ import annotations

import torch

from transfer_run.backbones.base import Backbone
from transfer_run.backbones.load import build_backbone
from transfer_run.backbones.taps.replay import Replay
from transfer_run.backbones.taps.store import TapStore
from transfer_run.experiment.config.compose import compose

ROWS = torch.tensor([1, 0])


def backbone_and_batch() -> tuple[Backbone, dict[str, torch.Tensor]]:

    cfg = compose(["method=linear_probe", "backbone=vit_tiny", "dataset=digits", "backbone.weights=random:0"])
    backbone = build_backbone(cfg.config["backbone"]).eval()
    backbone.requires_grad_(False)
    return backbone, {"pixel_values": torch.randn(2, 1, 8, 8)}


def filled(backbone: Backbone, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Run once to see which taps there are, once to store them; the last hidden state."""
    backbone.replay = watch = Replay()
    watch.serve(ROWS, batch)
    backbone.run(backbone.embed(batch))
    backbone.replay = Replay(TapStore(2, watch.taps, None, None))
    backbone.replay.serve(ROWS, batch)
    return backbone.run(backbone.embed(batch)).hidden


def spoil(backbone: Backbone) -> None:
    """Blocks that give something else: whoever still gives the same numbers did not run them."""
    for block in backbone.blocks("image"):
        for parameter in block.parameters():
            parameter.zero_()


def test_the_frozen_stream_is_read() -> None:
    backbone, batch = backbone_and_batch()
    wanted = filled(backbone, batch)
    spoil(backbone)
    assert torch.equal(backbone.run(backbone.embed(batch)).hidden, wanted)


def test_a_changed_stream_or_batch_is_computed() -> None:
    backbone, batch = backbone_and_batch()
    wanted = filled(backbone, batch)
    spoil(backbone)
    state = backbone.embed(batch)
    assert not torch.equal(backbone.run(state.with_hidden(state.hidden + 1)).hidden, wanted)
    assert not torch.equal(backbone.run(backbone.embed({"pixel_values": batch["pixel_values"] * 2})).hidden, wanted)
    longer = backbone.prepend(backbone.embed(batch), torch.zeros(2, 3, state.hidden.shape[-1]))
    assert backbone.run(longer).hidden.shape[1] == state.hidden.shape[1] + 3


def test_a_backbone_in_training_mode_is_computed() -> None:
    backbone, batch = backbone_and_batch()
    wanted = filled(backbone, batch)
    spoil(backbone)
    assert not torch.equal(backbone.train().run(backbone.embed(batch)).hidden, wanted)
