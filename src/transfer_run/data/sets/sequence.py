"""A sequence of image data sets, one task after another, whose classes are named in words.

    epoch 0: task 0     pixel_values (B,C,H,W), labels (B,)         the classes' numbers within the task
    epoch 1: task 1     class_ids (classes, L)                      their prompts, first template
    ...                 reference/pixel_values (B,C,H,W)            images to refer to, no labels
                        reference/input_ids (sentences, L)          texts to refer to
    validation, test:   all tasks, a batch is of one task; class_ids (classes, templates, L)

Every batch brings `stage` (), the number of its task. Which images and texts a batch refers to is the data's matter
(`dataset.reference`), what is done with them the method's.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from transfer_run.backbones.declared import family_of
from transfer_run.data.base import DataModule, Example
from transfer_run.data.load import build_data, data_class
from transfer_run.data.rows.sampling import Draw, EpochBatches, Loader
from transfer_run.data.rows.splits import SPLITS, shuffled
from transfer_run.data.rows.task_batches import StageBatches, TaskByTask
from transfer_run.data.text.class_texts import prompt_length, prompts, random_ids, templates_of, text_ids
from transfer_run.data.text.cuts import said_of_captions
from transfer_run.data.text.text_data import TextData
from transfer_run.errors import UserError
from transfer_run.task import Batch, BatchSpec, Task, named_beside

if TYPE_CHECKING:
    from transfer_run.data.scores.labels import Scores

REFERENCE = -1
"""The part that a reference image belongs to; tasks are parts 0, 1, ..."""


class TaskSequence(DataModule):
    """`dataset.tasks` names the tasks; `dataset.nodes` holds their configs (see `experiment/members.py`).

    `dataset.scenario`: `task`, every task is tested among its own classes; `class`, the tasks' classes are those of
    one large task, and in evaluation all classes come along (`class_stage` says which task each belongs to).
    """

    augments = True

    def __init__(self, dataset: Mapping[str, Any], backbone: Mapping[str, Any], seed: int) -> None:
        super().__init__(dataset, backbone, seed)
        nodes = dataset["nodes"]
        vary = {"augment": dataset.get("augment")}  # the tasks' images; those to refer to stay as they are
        self.members = {name: build_data({**node, **vary}, backbone, seed) for name, node in nodes["tasks"].items()}
        self.referred = build_data(nodes["images"], backbone, seed) if nodes["images"] else None
        self.offsets: dict[str, list[int]] = {}
        self.texts: list[Tensor] = []  # of every task: (classes, templates, L)
        self.sentences: Tensor | None = None

    # ---- from the configs alone
    @classmethod
    def describe(cls, dataset: Mapping[str, Any], backbone: Mapping[str, Any]) -> Task:
        counts = _class_counts(dataset, backbone)
        count = sum(counts) if dataset["scenario"] == "class" else max(counts)
        names = tuple(dataset["nodes"]["tasks"])
        return Task(family_of(backbone).form(dataset), count, (), tuple(dataset["metrics"]), sequence=names)

    @classmethod
    def batch_spec(cls, dataset: Mapping[str, Any], backbone: Mapping[str, Any], batch_size: int) -> BatchSpec:
        first, nodes = next(iter(dataset["nodes"]["tasks"].values())), dataset["nodes"]
        spec = dict(data_class(first).batch_spec(first, backbone, batch_size))
        counts, length = _class_counts(dataset, backbone), prompt_length(dataset, backbone)
        classes = sum(counts) if dataset["negatives"] == "previous" else max(counts)
        classes += dataset["negative_sentences"] if dataset["negatives"] == "sentences" else 0
        spec |= {"stage": ((), torch.int64), "class_ids": ((classes, length), torch.int64)}
        images, texts = dataset["reference"]["images"], dataset["reference"]["texts"]
        reference = {"pixel_values": spec["pixel_values"]} if images is not None else {}
        if texts is not None:
            sentences = dataset["reference"]["sentences"]
            if texts == "classes":
                sentences = max(counts)
            elif texts == "reference":
                sentences = data_class(nodes["images"]).describe(nodes["images"], backbone).num_labels
            reference["input_ids"] = ((sentences, length), torch.int64)
        return spec | named_beside("reference", reference)

    # ---- reading
    def read(self) -> dict[str, int]:
        for name, member in self.members.items():
            member.setup()
            self.notes += [f"{name}: {note}" for note in member.notes]
        if self.referred is not None:
            self.referred.setup()
        length = prompt_length(self.dataset, self.backbone)
        for name in self.members:
            names, templates = self.class_names(name), templates_of(self.dataset["templates"], name)
            ids = self._ids(name, prompts(names, templates), length, "prompts").view(len(names), len(templates), length)
            self._refuse_equal(name, names, ids[:, 0])
            self.texts.append(ids)
        self.sentences = self._read_sentences(length)
        self.offsets = {split: [0, *accumulate(self._sizes_of(split))] for split in SPLITS}
        return {split: offsets[-1] for split, offsets in self.offsets.items()}

    def _ids(self, what: str, texts: Sequence[str], length: int, called: str) -> Tensor:
        """(N, length); how many texts are longer than that becomes a note."""
        self.notes += said_of_captions(what, texts, self.tokenizer, length, called)
        return text_ids(self.tokenizer, texts, length)

    def _refuse_equal(self, task: str, names: Sequence[str], ids: Tensor) -> None:
        """Two classes of a task whose prompts are the same tokens cannot be told apart."""
        seen: dict[tuple[int, ...], str] = {}
        for name, row in zip(names, ids.tolist(), strict=True):
            other = seen.setdefault(tuple(row), name)
            if other is not name:
                raise UserError(
                    f"The prompts of {other!r} and {name!r} are the same {ids.shape[1]} tokens.",
                    where=f"dataset.tasks, {task}; dataset.templates, dataset.prompt_length",
                    remedy="a shorter template, other names (dataset.class_names), or a larger dataset.prompt_length",
                )

    def class_names(self, task: str) -> tuple[str, ...]:
        """The classes of a task in words, in the order of their numbers."""
        given = self.dataset["class_names"].get(task)
        own = self.members[task].label_names
        if given and own and len(given) != len(own):
            raise UserError(
                f"The task {task!r} has {len(own)} classes, not {len(given)}.",
                where=f"dataset.class_names.{task}",
                remedy="name every class, in the order of the class numbers",
            )
        return tuple(map(str, given or own))

    def _sizes_of(self, split: str) -> list[int]:
        return [member.sizes[split] for member in self.members.values()]

    def _read_sentences(self, length: int) -> Tensor | None:
        """(M, L): what `dataset.reference.texts` names; None where it is nothing, or the classes of each task."""
        texts, count = self.dataset["reference"]["texts"], self.dataset["reference"]["sentences"]
        if texts in (None, "classes"):
            return None
        if texts == "random":
            return random_ids(self.tokenizer, count, length, self.seed)
        if texts == "reference":
            if self.referred is None:
                raise UserError(
                    "There is no reference data set whose classes could be named.",
                    where="dataset.reference.texts=reference",
                    remedy='dataset.reference.images="image_folder path=FOLDER"',
                )
            first = templates_of(self.dataset["templates"], "reference")[:1]
            return self._ids("reference", prompts(self.referred.label_names, first), length, "prompts")
        return self._ids("reference", self._captions()[:count], length, "sentences")

    def _captions(self) -> list[str]:
        node = self.dataset["nodes"]["texts"]
        data = build_data(node, self.backbone, self.seed)
        if not isinstance(data, TextData):
            raise UserError(
                f"dataset={node['name']} holds no text.",
                where=f"dataset.reference.texts: {node['name']}",
                remedy='name a text data set ("text_files path=FILE text_columns=[caption]"), classes or random',
            )
        column = node["text_columns"][0]
        return [str(row[column]) for row in data.read_rows()["train"].rows]

    def example(self, split: str, draw: Draw) -> Example:
        """Rows count on from task to task; behind all of them, once more, stand the rows to refer to."""
        offsets = self.offsets[split]
        row, refers = (draw.row, False) if draw.row < offsets[-1] else (draw.row - offsets[-1], True)
        if refers and self.referred is not None:
            return self.referred.split("train").draw(draw._replace(row=row)) | {"part": REFERENCE}
        part = bisect_right(offsets, row) - 1
        member = list(self.members.values())[part]
        example = member.split(split).draw(draw._replace(row=row - offsets[part]))
        return example | {"part": REFERENCE if refers else part}

    # ---- batches
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
        """As in the base; training batches are always full, and `steps` an epoch."""
        rows, spread = self.split(split), {"world_size": world_size, "rank": rank}
        batches: EpochBatches = TaskByTask(self._sizes_of(split), batch_size, **spread)
        collate = self.collate_evaluation
        if split == "train":
            seed, shuffle = self.seed if seed is None else seed, shuffle is None or shuffle
            steps = self.dataset["steps"] or -(-max(self._sizes_of(split)) // (batch_size * world_size))
            batches = StageBatches(
                self._task_rows(), self._reference_rows(), batch_size, steps=steps, seed=seed, shuffle=shuffle, **spread
            )
            collate = self.collate
        read = rows.augmented if augment else rows.draw
        return Loader(read, batches, collate, num_workers=num_workers, pin_memory=torch.cuda.is_available())

    def _task_rows(self) -> list[range]:
        offsets = self.offsets["train"]
        return [range(start, stop) for start, stop in pairwise(offsets)]

    def _reference_rows(self) -> list[Sequence[int]]:
        """The rows to refer to during each task, numbered behind those of all tasks."""
        tasks, total, images = self._task_rows(), self.offsets["train"][-1], self.dataset["reference"]["images"]
        if images is None:
            return [[] for _ in tasks]
        if self.referred is not None:
            return [range(total, total + self.referred.sizes["train"])] * len(tasks)
        chosen = [range(0), *(self._exemplars(number) for number in range(1, len(tasks)))]
        return [
            [total + row for row in (rows if images == "task" else kept)]
            for rows, kept in zip(tasks, chosen, strict=True)
        ]

    def _exemplars(self, stage: int) -> list[int]:
        """Rows kept of the tasks before `stage`: the memory in equal shares, drawn at random, the same in every run."""
        share = self.dataset["reference"]["memory"] // stage
        return [rows[position] for rows in self._task_rows()[:stage] for position in shuffled(len(rows))[:share]]

    def collate(self, examples: Sequence[Example]) -> Batch:
        """A training batch: rows of one task, then those to refer to."""
        own = [example for example in examples if example["part"] != REFERENCE]
        others = [example for example in examples if example["part"] == REFERENCE]
        stage = int(own[0]["part"])
        member = list(self.members.values())[stage]
        classes = self.texts[stage][:, 0]
        batch = member.collate(own) | {"stage": torch.tensor(stage), "class_ids": self._with_negatives(stage, examples)}
        reference = {}
        if self.dataset["reference"]["texts"] is not None:
            reference["input_ids"] = classes if self.sentences is None else self.sentences
        if others:
            reference["pixel_values"] = (self.referred or member).collate(others)["pixel_values"]
        return batch | named_beside("reference", reference)

    def _with_negatives(self, stage: int, examples: Sequence[Example]) -> Tensor:
        """The task's class prompts, behind them those of earlier classes or some of the sentences, which are wrong."""
        classes, kind = self.texts[stage][:, 0], self.dataset["negatives"]
        if kind == "previous":
            return torch.cat([classes, *(texts[:, 0] for texts in self.texts[:stage])])
        if kind == "sentences" and self.sentences is not None:
            labels = [int(example["labels"]) for example in examples]  # these seed the draw: no state to save
            seed = np.random.SeedSequence([self.seed, stage, *(label + 100 for label in labels)])
            count = min(self.dataset["negative_sentences"], len(self.sentences))
            drawn = np.random.default_rng(seed).choice(len(self.sentences), count, replace=False)
            return torch.cat([classes, self.sentences[torch.from_numpy(drawn)]])
        return classes

    def collate_evaluation(self, examples: Sequence[Example]) -> Batch:
        """Rows of one task, with all prompts of its classes, or of the classes of all tasks."""
        stage = int(examples[0]["part"])
        batch = list(self.members.values())[stage].collate(examples)
        batch |= {"stage": torch.tensor(stage), "class_ids": self.texts[stage]}
        if self.dataset["scenario"] == "class":
            sizes = [len(texts) for texts in self.texts]
            batch["class_ids"] = torch.cat(self.texts)
            batch["class_stage"] = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
            batch["labels"] = torch.where(batch["labels"] < 0, batch["labels"], batch["labels"] + sum(sizes[:stage]))
        return batch

    def metrics(self, split: str) -> Scores:
        from transfer_run.data.scores.sequence import SequenceScores

        return SequenceScores(self.task)

    @property
    def described(self) -> Task:
        """As the members describe themselves once they are read."""
        counts = [member.task.num_labels for member in self.members.values()]
        count = sum(counts) if self.dataset["scenario"] == "class" else max(counts)
        metrics = tuple(self.dataset["metrics"])
        return Task(family_of(self.backbone).form(self.dataset), count, (), metrics, sequence=tuple(self.members))

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(name for task in self.members for name in self.class_names(task))

    @property
    def transform_description(self) -> dict[str, Any]:
        first = next(iter(self.members.values()))
        described = {
            name: {
                "label_names": list(self.class_names(name)),
                "templates": templates_of(self.dataset["templates"], name),
            }
            for name in self.members
        }
        return first.transform_description | {"label_names": list(self.label_names), "tasks": described}


def _class_counts(dataset: Mapping[str, Any], backbone: Mapping[str, Any]) -> list[int]:
    """Classes of every task, from the configs alone."""
    return [data_class(node).describe(node, backbone).num_labels for node in dataset["nodes"]["tasks"].values()]
