"""The module around a method: which rows it reads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from transfer_run.data.load import build_data
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.training.module import TransferModule


def test_training_alone_reads_augmented_rows() -> None:
    """`trainer` and `method` are stood in for: the loaders ask them for one rank and for stored taps."""
    cfg = compose(["method=full", "dataset=digits", "backbone=vit_tiny", 'dataset.augment=["invert p=1"]'])
    data = build_data(cfg.config["dataset"], cfg.config["backbone"], 0)
    config = {"dataset": {"batch_size": 8}, "seed": 0, "hardware": {"num_workers": 0}, "trainer": {}}
    trainer = SimpleNamespace(world_size=1, global_rank=0)
    module: Any = SimpleNamespace(
        trainer=trainer,
        data=data,
        config=config,
        method=SimpleNamespace(backbone=SimpleNamespace(replay=None), reads_row_numbers=False),
        _beside=lambda total, world: {},
    )
    for split in ("train", "validation", "test"):
        read = next(iter(TransferModule._loader(module, split)))["pixel_values"]
        plain = next(iter(data.loader(split, batch_size=8)))["pixel_values"]
        assert torch.equal(read, plain) == (split != "train")
