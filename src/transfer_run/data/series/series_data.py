"""Series as a data set of forecasting: windows of past steps, and the steps behind them as what is right.

    past_values (B, T, C)   ──▶  labels (B, H, targets)

T is the backbone's context length, H `dataset.horizon`, at most what the backbone forecasts. Values are standardised
(`windows.py`); scores are those of standardised values, too, as papers give them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from transfer_run.data.base import DataModule, Example
from transfer_run.data.rows.sampling import Draw
from transfer_run.data.series.steps import Regular, filled
from transfer_run.data.series.windows import Part, Scaler, check_windows, few_shot, parts, split_sizes
from transfer_run.errors import UserError, nearest_names
from transfer_run.task import Batch, BatchSpec, Task


class SeriesData(DataModule):
    """Base of data sets of series; a data set says where its rows come from (`read_series`).

    Keys: `channels` (names, in order), `targets` (those that are forecast; null: all), `exogenous` (those that are
    known in the future, too), `horizon`, `split_rows` or `split_shares`, `few_shot`, `gaps`.
    """

    def __init__(self, dataset: Mapping[str, Any], backbone: Mapping[str, Any], seed: int) -> None:
        super().__init__(dataset, backbone, seed)
        self.past, self.future = lengths(dataset, backbone)
        self.values = np.empty((0, 0), dtype=np.float32)
        """(rows, channels), standardised; NaN where nothing was measured and `gaps` is mask."""
        self.parts: dict[str, Part] = {}
        self.scaler = Scaler(np.zeros(0), np.ones(0))
        self.token = 0

    # ---- from the configs alone
    @classmethod
    def describe(cls, dataset: Mapping[str, Any], backbone: Mapping[str, Any]) -> Task:
        channels, targets, exogenous = named_channels(dataset)
        return Task(
            form=dataset["form"],
            num_labels=len(targets),
            label_names=targets,
            metrics=tuple(dataset["metrics"]),
            horizon=lengths(dataset, backbone)[1],
            channels=channels,
            exogenous=exogenous,
        )

    @classmethod
    def batch_spec(cls, dataset: Mapping[str, Any], backbone: Mapping[str, Any], batch_size: int) -> BatchSpec:
        channels, targets, exogenous = named_channels(dataset)
        past, future = lengths(dataset, backbone)
        spec: BatchSpec = {
            "past_values": ((batch_size, past, len(channels)), torch.float32),
            "labels": ((batch_size, future, len(targets)), torch.float32),
        }
        if exogenous:
            spec["future_exogenous"] = ((batch_size, future, len(exogenous)), torch.float32)
        if dataset["gaps"] == "mask":
            spec["past_observed"] = ((batch_size, past, len(channels)), torch.float32)
        if reads_resolution(backbone):
            spec["frequency"] = ((batch_size,), torch.int64)
        return spec

    # ---- reading
    @abstractmethod
    def read_series(self) -> Regular:
        """All rows of `dataset.channels`, in time; NaN where nothing was measured."""

    def read(self) -> dict[str, int]:
        channels, where = named_channels(self.dataset)[0], f"dataset={self.dataset['name']}"
        series = self.read_series()
        values = filled(series, self.dataset["gaps"], channels, self.notes)
        sizes = split_sizes(len(values), self.dataset["split_rows"], self.dataset["split_shares"], where)
        if left := len(values) - sum(sizes.values()):
            self.notes.append(f"the last {left} of {len(values)} rows are in no split")
        found = parts(sizes, self.past)
        self.scaler, self.token = Scaler.of(values[: sizes["train"]]), series.token
        for name, rows in zip(channels, values[: sizes["train"]].T, strict=True):
            if np.nanstd(rows) == 0:
                self.notes.append(f"'{name}' is constant in the training rows and keeps its scale")
        self.values = self.scaler(values).astype(np.float32)
        found["train"] = self._few_shot(found["train"])
        check_windows(found, self.past, self.future, where)
        self.parts = found
        return {name: part.windows(self.past, self.future) for name, part in found.items()}

    def _few_shot(self, whole: Part) -> Part:
        """What training reads of its rows; the scaler is that of all of them."""
        few = self.dataset["few_shot"]
        kept = few_shot(whole, self.past, few["fraction"], few["location"])
        if kept != whole:
            self.notes.append(
                f"train: the {few['location']} {kept.last - kept.first} of {whole.last - whole.first} rows, "
                f"{kept.windows(self.past, self.future)} windows (dataset.few_shot)"
            )
        return kept

    def example(self, split: str, draw: Draw) -> Example:
        channels, targets, exogenous = named_channels(self.dataset)
        begin = self.parts[split].first + draw.row
        past = self.values[begin : begin + self.past]
        future = self.values[begin + self.past : begin + self.past + self.future]
        labels = future[:, [channels.index(name) for name in targets]]
        example: Example = {"past_values": past, "labels": labels if draw.scored else np.full_like(labels, np.nan)}
        if exogenous:
            example["future_exogenous"] = future[:, [channels.index(name) for name in exogenous]]
        if self.dataset["gaps"] == "mask":
            observed = ~np.isnan(past)
            example |= {"past_values": np.where(observed, past, 0), "past_observed": observed.astype(np.float32)}
            example |= {name: np.nan_to_num(example[name]) for name in ("future_exogenous",) if name in example}
        if reads_resolution(self.backbone):
            example["frequency"] = np.int64(self.token)
        return example

    def collate(self, examples: Sequence[Example]) -> Batch:
        return {name: torch.from_numpy(np.stack([each[name] for each in examples])) for name in examples[0]}

    @property
    def label_names(self) -> tuple[str, ...]:
        return named_channels(self.dataset)[1]

    @property
    def transform_description(self) -> dict[str, Any]:
        """The channels, and what their values were standardised by: (x - mean) / std."""
        channels, targets, exogenous = named_channels(self.dataset)
        return {
            "reads": "series", "channels": list(channels), "targets": list(targets), "exogenous": list(exogenous),
            "past": self.past, "horizon": self.future,
            "mean": self.scaler.mean.tolist(), "std": self.scaler.std.tolist(),
        }  # fmt: skip


def lengths(dataset: Mapping[str, Any], backbone: Mapping[str, Any]) -> tuple[int, int]:
    """Past and future steps, T and H.

    Raises:
        UserError: the backbone does not say how many it reads and forecasts, or fewer than are asked.
    """
    shape = backbone.get("architecture") or {}
    past, most = shape.get("context_length"), shape.get("prediction_length")
    if not past or not most:
        raise UserError(
            "The backbone does not say how many steps it reads and forecasts.",
            where="backbone.architecture.context_length, backbone.architecture.prediction_length",
            remedy="give both, as its config.json has them",
        )
    horizon = dataset["horizon"] or most
    if horizon > most:
        raise UserError(
            f"backbone={backbone.get('name')} forecasts {most} steps, {horizon} are asked.",
            where=f"dataset.horizon={horizon}",
            remedy=f"dataset.horizon={most}, or a backbone that forecasts as many (backbone.architecture."
            f"prediction_length={horizon} of one from random weights)",
        )
    return int(past), int(horizon)


def named_channels(dataset: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """All channels, those that are forecast, and those that are known in the future.

    Raises:
        UserError: none are named, one twice, or a target or exogenous channel is none of them.
    """
    channels = tuple(map(str, dataset["channels"] or ()))
    name = f"dataset={dataset['name']}"
    if not channels:
        raise UserError(
            "The channels are not named.", where=name, remedy="dataset.channels=[COLUMN,...] in the order you want"
        )
    exogenous = tuple(map(str, dataset["exogenous"]))
    targets = tuple(map(str, dataset["targets"] or (c for c in channels if c not in exogenous)))
    for key, names in (("channels", channels), ("targets", targets), ("exogenous", exogenous)):
        for each in names:
            if each not in channels:
                near = nearest_names(each, channels) or channels
                raise UserError(f"{each!r} is no channel.", where=f"dataset.{key}", nearest=near)
            if names.count(each) > 1:
                raise UserError(f"The channel {each!r} is named twice.", where=f"dataset.{key}")
    both = next((each for each in targets if each in exogenous), None)
    if both or not targets:
        said = f"The channel {both!r} is forecast and known beforehand." if both else "No channel is forecast."
        raise UserError(said, where="dataset.targets, dataset.exogenous", remedy="name each channel for one of both")
    ordered = tuple(each for each in channels if each in targets)
    return channels, ordered, tuple(each for each in channels if each in exogenous)


def reads_resolution(backbone: Mapping[str, Any]) -> bool:
    """Is the length of a step part of what the backbone reads?"""
    return bool((backbone.get("architecture") or {}).get("resolution_prefix_tuning"))
