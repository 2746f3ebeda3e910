"""`cache.taps`: lets a run train its side network alone after the first time each row was seen.

Refuses, with the reason, where the taps would not be the same every time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from transfer_run.backbones.base import Batch
from transfer_run.backbones.taps.replay import Replay, Taps
from transfer_run.backbones.taps.store import open_store, sizes
from transfer_run.data.base import DataModule
from transfer_run.data.load import batch_spec
from transfer_run.data.rows.sampling import Draw, Loader
from transfer_run.data.rows.subset import digest
from transfer_run.errors import UserError
from transfer_run.experiment.config.compatibility import taps_change
from transfer_run.experiment.record.log import LOG
from transfer_run.files import make_folder
from transfer_run.hardware.devices import device_of
from transfer_run.methods.base import Method
from transfer_run.task import ROWS

TRAINING = ("augment", "class_weights", "label_smoothing", "balanced_softmax", "tests")
"""Keys of a data set that change how it is trained on and what else is tested, not what a row is."""
PARTS = ("rows", "long_tail", "oversample")
"""Those that say which rows are read: what they leave is named by its numbers."""


def open_replay(config: Mapping[str, Any], method: Method, data: DataModule) -> Replay:
    """The replay of this run's taps; its size is logged before anything is written.

    Raises:
        UserError: taps cannot be kept for this run, or there is no room for them.
    """
    _refuse(config, method, data)
    settings, rows = config["cache"], sum(data.sizes.values())
    narrow = getattr(torch, settings["dtype"]) if settings["dtype"] else None
    asked = _asked_for(config, method, data)
    if not asked:
        raise UserError(
            f"method={config['method']['name']} runs no frozen block whose output could be kept.",
            where="cache.taps",
            remedy="set cache.taps=none",
        )
    folder = Path(settings["folder"] or Path(config["output_dir"]) / "taps")
    make_folder(folder, f"cache.folder={settings['folder']}")
    files = {key: said for key, said in config["contents"].items() if key.startswith("dataset.")}
    about = {
        "backbone": method.backbone.provenance["checksum"],
        "attention": getattr(getattr(method.backbone.model, "config", None), "_attn_implementation", None),
        "precision": config["hardware"]["precision"],
        "device": device_of(config["hardware"]).type,  # a GPU's kernels round otherwise than the CPU's
        "dataset": {k: v for k, v in config["dataset"].items() if k not in ("about", "batch_size", *PARTS, *TRAINING)},
        **({"contents": files} if files else {}),
        **({"kept": digest(data.subset)} if data.subset else {}),
        "transform": data.transform_description,
        "rows": dict(data.sizes),
        "taps": [[*tap, *shape, str(narrow or dtype)] for tap, (shape, dtype) in asked.items()],
    }
    size = sum(sizes(rows, asked, narrow).values())
    LOG.info("taps of %d rows: %d tensors a row, up to %.1f MiB in all", rows, len(asked), size / 2**20)
    store = open_store(settings["taps"], folder, about, rows, asked, narrow)
    return Replay(store, in_training=True)  # whatever draws noise was refused


def _refuse(config: Mapping[str, Any], method: Method, data: DataModule) -> None:
    where = f"cache.taps={config['cache']['taps']}"
    if method.needs_backbone_gradient:
        raise taps_change(config["method"]["name"], config["cache"]["taps"])
    if any(data.random_examples(split) for split in data.sizes):
        raise UserError(
            f"dataset={config['dataset']['name']} draws its examples anew in every epoch.",
            where=where,
            remedy="set cache.taps=none, or turn the augmentation off",
        )
    if config["dataset"].get("beside"):
        raise UserError(
            "Every step reads other data sets too, whose taps are not kept.",
            where=where,
            remedy="set cache.taps=none",
        )
    if data.no_taps:
        raise UserError(
            f"dataset={config['dataset']['name']} {data.no_taps}.",
            where=where,
            remedy="set cache.taps=none",
        )
    method.train()
    if method.backbone.model.training and _has_noise(method):
        raise UserError(
            "The frozen backbone's dropout draws new noise in every step.",
            where=where,
            remedy="set method.backbone_dropout=false"
            if "backbone_dropout" in config["method"]
            else "set cache.taps=none",
        )


def _has_noise(method: Method) -> bool:
    """Would the backbone in training mode give other numbers than in evaluation mode?"""
    rates = [getattr(m, "p", getattr(m, "drop_prob", 0.0)) for m in method.backbone.model.modules()]
    settings = getattr(method.backbone.model, "config", None)  # transformers keep some rates only here
    rates += [] if settings is None else [value for key, value in vars(settings).items() if "drop" in key]
    return any(isinstance(rate, int | float) and rate > 0 for rate in rates)


@torch.no_grad()
def _asked_for(config: Mapping[str, Any], method: Method, data: DataModule) -> Taps:
    """The taps that the method reads, with the shapes of the longest row: seen by running one row."""
    device = next(method.parameters()).device
    batch = next(iter(data.loader("train", batch_size=1, shuffle=False)))
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    spec = batch_spec(config["dataset"], config["backbone"], 1)
    watch = Replay()
    watch.serve(torch.zeros(1, dtype=torch.int64), batch)
    method.backbone.answer_from(watch)
    method.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            method.loss(batch)
    finally:
        method.backbone.answer_from(None)
        method.train()
    return {tap: (_longest(tap[0], shape, batch, spec), dtype) for tap, (shape, dtype) in watch.taps.items()}


def _longest(stack: str, shape: tuple[int, ...], batch: Batch, spec: Mapping[str, Any]) -> tuple[int, ...]:
    """A text's tap (T, D) at the greatest length that the dataset allows."""
    if stack == "image":
        return shape
    name = "labels" if stack == "decoder" and shape[0] != batch["input_ids"].shape[1] else "input_ids"
    return (max(shape[0], spec[name][0][1]), *shape[1:])


def numbered(loader: Loader, first: int) -> Loader:
    """The same batches, which also carry their rows' numbers, counted from `first`."""
    dataset: Any = loader.dataset
    join: Any = loader.collate_fn
    dataset.read, join.collate = _NumberedRead(dataset.read, first), _NumberedCollate(join.collate)
    return loader


class _NumberedRead:
    def __init__(self, read: Callable[[Draw], Any], first: int) -> None:
        self.read, self.first = read, first

    def __call__(self, draw: Draw) -> tuple[int, Any]:
        return self.first + draw.row, self.read(draw)


class _NumberedCollate:
    def __init__(self, collate: Callable[[list[Any]], Batch]) -> None:
        self.collate = collate

    def __call__(self, examples: Sequence[tuple[int, Any]]) -> Batch:
        rows = torch.tensor([row for row, _ in examples])
        return {**self.collate([example for _, example in examples]), ROWS: rows}


def first_row(data: DataModule, split: str) -> int:
    """Where the rows of `split` begin when all splits are counted through."""
    names = list(data.sizes)
    return sum(data.sizes[name] for name in names[: names.index(split)])
