"""What a dataset is to the runner: a task, splits, batches and scores.

A dataset is a config `configs/dataset/NAME.yaml` whose `about.target` names a `DataModule`. The module says what it
asks for (`describe`) and how large its batches are (`batch_spec`) from the configs alone; `setup` reads the data.

    rows ──example(split, draw)──> examples ──collate──> batch {name: tensor}
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, overload

import numpy as np
import torch

from transfer_run.data.asked import refuse_without_classes
from transfer_run.data.long_tail import LONG_TAIL, long_tailed, with_counts
from transfer_run.data.loss import with_loss
from transfer_run.data.oversample import OVERSAMPLE, topped_up
from transfer_run.data.rows.beside import Beside
from transfer_run.data.rows.sampling import Draw, EpochBatches, Loader
from transfer_run.data.rows.subset import Rows, read_subset
from transfer_run.errors import UserError, nearest_names
from transfer_run.task import Batch, BatchSpec, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from transfer_run.data.scores.labels import Scores

Example = dict[str, Any]


class DataModule(ABC):
    """Base of all datasets.

    Args:
        dataset, backbone: composed config nodes as plain containers.
        seed: the run's seed; it orders the training rows and draws random noise. Splits never depend on it.
    """

    augments: ClassVar[bool] = False
    """Does it read images one by one, so that `dataset.augment` can vary them?"""
    no_taps: ClassVar[str] = ""
    """Why `cache.taps` cannot keep what a frozen backbone makes of its rows; empty where it can."""

    def __init__(self, dataset: Mapping[str, Any], backbone: Mapping[str, Any], seed: int) -> None:
        self.refuse_augment(dataset)
        self.dataset, self.backbone, self.seed = dataset, backbone, seed
        self.notes: list[str] = []
        """What a user should know of the data (unlabelled rows, cut texts), for the log."""
        self._sizes: dict[str, int] | None = None
        self.subset: dict[str, Rows] = {}
        """Rows of the whole split that are read (`dataset.long_tail`, then `dataset.rows`, then `dataset.oversample`,
        which names rows again); one not named is whole."""
        self.readings: dict[str, Rows] = {}
        """Of each of these, which reading of its row it is, where `dataset.oversample` makes several."""

    # ---- from the configs alone
    @classmethod
    @abstractmethod
    def describe(cls, dataset: Mapping[str, Any], backbone: Mapping[str, Any]) -> Task:
        """The task, without data, network or tokenizer files."""

    @classmethod
    @abstractmethod
    def batch_spec(cls, dataset: Mapping[str, Any], backbone: Mapping[str, Any], batch_size: int) -> BatchSpec:
        """Shape and type of every tensor of the largest possible batch, without data, network or tokenizer files."""

    @classmethod
    def refuse_augment(cls, dataset: Mapping[str, Any]) -> None:
        """UserError for a `dataset.augment` that this data set cannot follow."""
        if dataset.get("augment") and not cls.augments:
            raise UserError(
                f"dataset={dataset['name']} has no single images that could be augmented.",
                where="dataset.augment",
                remedy="dataset.augment=null",
            )

    # ---- reading
    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer that goes with the backbone; its files are read when it is first asked for.

        Raises:
            UserError: there is none where one is expected, or the backbone's vocabulary is too small for it.
        """
        from transfer_run.backbones.tokenizer import build_tokenizer  # transformers: not needed for a plan

        return build_tokenizer(dict(self.backbone))

    @property
    def tokenizer_description(self) -> dict[str, Any]:
        """What `transform_description` says of it."""
        return {key: self.backbone.get(key) for key in ("tokenizer", "hub", "revision")}

    @abstractmethod
    def read(self) -> dict[str, int]:
        """Read the data; rows by split. Called once."""

    @abstractmethod
    def example(self, split: str, draw: Draw) -> Example:
        """One row, ready for `collate`."""

    @abstractmethod
    def collate(self, examples: Sequence[Example]) -> Batch:
        """Examples as one batch: text padded to the longest, images stacked."""

    @property
    @abstractmethod
    def label_names(self) -> tuple[str, ...]:
        """The classes' own names, in the order of their numbers (empty without classes)."""

    @property
    @abstractmethod
    def transform_description(self) -> dict[str, Any]:
        """All that makes a batch of raw data, as plain JSON: a saved model needs it to be used again."""

    @property
    def described(self) -> Task:
        """What the config, and label names found in the data, say of the task."""
        return self.describe(self.dataset, self.backbone)

    @property
    def task(self) -> Task:
        """What the dataset asks of the backbone, with what only its rows tell (`dataset.class_weights=balanced`)."""

        def counts() -> list[int]:
            return self.class_counts.tolist()

        def once() -> list[int]:
            return self._counts(of_rows=True).tolist()

        original = (self.dataset.get(OVERSAMPLE) or {}).get("weights") == "original"
        task = with_loss(self.described, self.dataset, once if original else counts)
        return with_counts(task, self.dataset, counts, once)

    @property
    def class_counts(self) -> Rows:
        """Rows of each class in the training split as it is read (num_labels,), one that is read several times as often
        as that; rows without a label do not count.

        Raises:
            UserError: its rows have no classes.
        """
        return self._counts()

    def _counts(self, *, of_rows: bool = False) -> Rows:
        """As `class_counts`; `of_rows` counts a row once however often it is read."""
        refuse_without_classes(self.dataset)
        labels = self.labels("train")
        if of_rows and "train" in self.readings:
            labels = labels[self.readings["train"] == 0]
        return np.bincount(labels[labels >= 0], minlength=self.described.num_labels).astype(np.int64)

    def random_examples(self, split: str) -> bool:
        """Do a row's examples differ from epoch to epoch (noise, augmentation)? Then its taps cannot be kept."""
        return split == "train" and bool(self.dataset.get("augment"))

    def setup(self) -> None:
        """Read the data; safe to call again.

        Raises:
            UserError: something about the data is wrong; it names file, row and column.
        """
        if self._sizes is None:
            self._sizes = self.read()
            if (self.dataset.get(LONG_TAIL) or {}).get("factor"):
                self._make_long_tailed(**{key: self.dataset[LONG_TAIL][key] for key in ("factor", "kind")})
            if self.dataset.get("rows"):
                self._keep(
                    read_subset(str(self.dataset["rows"]), str(self.dataset["name"]), self.label_names, self._sizes)
                )
            if (to := (self.dataset.get(OVERSAMPLE) or {}).get("to")) is not None:
                self._oversample(to)
            empty = [name for name, size in self._sizes.items() if size == 0]
            if empty:
                raise UserError(
                    f"The split '{empty[0]}' has no rows.",
                    where=f"dataset={self.dataset['name']}",
                    remedy="give it rows: see dataset.path and the split keys of the dataset's config",
                )

    def _keep(self, rows: Mapping[str, Rows]) -> None:
        """Read these rows alone of what is read so far."""
        assert self._sizes is not None
        for split, kept in rows.items():
            self.subset[split] = self.subset[split][kept] if split in self.subset else kept
            self._sizes[split] = len(kept)

    def _make_long_tailed(self, factor: float, kind: str) -> None:
        before, (labels, names) = self.sizes["train"], self.fine_labels("train")
        rows = long_tailed(labels, names, factor, kind)
        self._keep({"train": rows})
        left = np.bincount(labels[rows], minlength=len(names)).tolist()
        counts = ", ".join(f"{name} {n}" for name, n in list(zip(names, left, strict=True))[:12])
        more = ", ..." * (len(names) > 12)
        self.notes.append(f"train: {self.sizes['train']} of {before} rows, a long tail: {counts}{more}")

    def _oversample(self, to: str | Sequence[float]) -> None:
        before = self.sizes["train"]
        rows, readings = topped_up(self.labels("train"), len(self.label_names), to)
        self._keep({"train": rows})
        self.readings["train"] = readings
        counts = ", ".join(
            f"{name} {n}" for name, n in list(zip(self.label_names, self.class_counts.tolist(), strict=True))[:12]
        )
        more = ", ..." * (len(self.label_names) > 12)
        self.notes.append(f"train: {before} rows are read as {len(rows)}: {counts}{more}")

    @property
    def sizes(self) -> dict[str, int]:
        """Rows by split."""
        self.setup()
        assert self._sizes is not None
        return self._sizes

    def split(self, name: str) -> Split:
        """All examples of `train`, `validation` or `test` in order."""
        if name not in self.sizes:
            raise UserError(
                f"The dataset has no split '{name}'.",
                where=f"dataset={self.dataset['name']}",
                nearest=nearest_names(name, self.sizes) or sorted(self.sizes),
                remedy="give the data such a split, or use one of those it has",
            )
        return Split(self, name, self.sizes[name])

    def part(self, rows: Mapping[str, Rows]) -> DataModule:
        """The same data of which these rows alone are read, numbered as here; a split that is not named stays whole."""
        self.setup()  # read once, by the whole
        found = copy(self)
        before = {split: self.subset.get(split, np.arange(self.sizes[split])) for split in rows}
        found.subset = self.subset | {split: before[split][kept] for split, kept in rows.items()}
        found.readings = {split: readings[rows.get(split, slice(None))] for split, readings in self.readings.items()}
        found._sizes = self.sizes | {split: len(kept) for split, kept in rows.items()}
        return found

    def labels(self, split: str) -> Rows:
        """Class number of every row of a split, in order (n,); -100 where a row has none.

        Raises:
            UserError: its rows have no classes.
        """
        rows = self.split(split)
        return np.array([int(rows[i]["labels"]) for i in range(len(rows))], dtype=np.int64)

    def fine_labels(self, split: str) -> tuple[Rows, tuple[str, ...]]:
        """The classes by which a long tail is cut, and their names: the labels, or finer ones of the same rows."""
        return self.labels(split), self.label_names

    def row_id(self, split: str, row: int) -> str:
        """What a row of a split is known by besides its number: its own file, where it has one; else nothing."""
        return ""

    # ---- batches and scores
    def loader(
        self,
        split: str,
        *,
        batch_size: int,
        seed: int | None = None,
        num_workers: int = 0,
        world_size: int = 1,
        rank: int = 0,
        drop_last: bool = False,
        shuffle: bool | None = None,
        augment: bool = False,
    ) -> Loader:
        """Batches of one device.

        `loader.batch_sampler.set_epoch(epoch)` chooses the order, `start_at(batch)` goes on in the middle of it.

        Args:
            batch_size: rows per batch on this device (`dataset.batch_size` is the total over devices).
            seed: of the order; default: the run's.
            drop_last: leave out a last batch that is not full.
            shuffle: default: train is shuffled, other splits stand in order.
            augment: rows as `dataset.augment` varies them: training asks for it, every other pass sees them plain.
        """
        rows = self.split(split)
        batches = EpochBatches(
            len(rows),
            batch_size,
            seed=self.seed if seed is None else seed,
            shuffle=split == "train" if shuffle is None else shuffle,
            drop_last=drop_last,
            world_size=world_size,
            rank=rank,
        )
        read = rows.augmented if augment else rows.draw
        return Loader(read, batches, self.collate, num_workers=num_workers, pin_memory=torch.cuda.is_available())

    def beside(self, size: int) -> Beside:
        """The training rows as what every step of another data set's training brings along, `size` a batch."""
        rows = self.split("train")
        read = rows.augmented if self.dataset.get("augment") else rows.draw
        return Beside([range(len(rows))], size, read, self.collate)

    def metrics(self, split: str) -> Scores:
        """Fresh scores for one split: `update(predictions, batch)`, `compute()`, `reset()`."""
        from transfer_run.data.scores.labels import Scores  # torchmetrics takes seconds to import; a plan needs none

        return Scores(self.task)


class Split(Sequence[Example]):
    """The examples of one split; `split[i]` is row i as it is read in epoch 0."""

    def __init__(self, data: DataModule, name: str, size: int) -> None:
        self.data, self.name, self.size = data, name, size

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self.draw(Draw(i)) for i in range(*index.indices(self.size))]
        if not -self.size <= index < self.size:
            raise IndexError(f"row {index} of {self.size}")
        return self.draw(Draw(index % self.size))

    def draw(self, draw: Draw) -> Example:
        """One row as a loader reads it; of a part of the split, row i is the i-th one that was kept."""
        kept, readings = self.data.subset.get(self.name), self.data.readings.get(self.name)
        if readings is not None:
            reading = int(readings[draw.row])
            copies = self.data.dataset[OVERSAMPLE]["vary"] == "copies"
            draw = draw._replace(reading=reading, augmented=draw.augmented and (reading > 0 or not copies))
        return self.data.example(self.name, draw if kept is None else draw._replace(row=int(kept[draw.row])))

    def augmented(self, draw: Draw) -> Example:
        """One row as training reads it."""
        return self.draw(draw._replace(augmented=True))
