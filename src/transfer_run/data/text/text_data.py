"""Text datasets: one class for all; a dataset only says where its rows come from (`read_rows`)."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from transfer_run.backbones.declared import family_of
from transfer_run.data.asked import asked, refuse_without_classes
from transfer_run.data.base import DataModule
from transfer_run.data.reading.labels import is_unlabelled, said_of_classes, said_of_unlabelled, said_of_values
from transfer_run.data.rows.sampling import Draw
from transfer_run.data.text.answers import Answers
from transfer_run.data.text.cuts import longest_number, said_of_answers, said_of_cuts
from transfer_run.data.text.encoding import Corrupted, Encoder, Example, Labelled, TextRows, Windows
from transfer_run.data.text.lengths import (
    check_columns,
    corrupted_lengths,
    cut_lengths,
    describe_text,
    source_length,
    uses_token_types,
)
from transfer_run.data.text.tokens import padded
from transfer_run.errors import UserError
from transfer_run.task import Batch, BatchSpec, Task

if TYPE_CHECKING:
    from transfer_run.data.scores.labels import Scores


class TextData(DataModule):
    """Rows of text with a label, or running text.

    Config keys beside the common ones: `text_columns`, `prompt` (template for models that read one text),
    `answers` (`names` | `digits`: label words of text-to-text models), `pad_to_multiple_of`, and for span corruption
    `noise_density` and `mean_span`.
    """

    value_step: ClassVar[float | None] = None
    """What values are rounded to before they are written, unless `dataset.value_step` says so; None: nothing."""

    def __init__(self, dataset: Mapping[str, Any], backbone: Mapping[str, Any], seed: int) -> None:
        super().__init__(dataset, backbone, seed)
        self.encoders: dict[str, Encoder] = {}
        self.answers: Answers | None = None
        self._value_room: int | None = None

    @abstractmethod
    def read_rows(self) -> dict[str, TextRows]:
        """The splits as text columns and labels."""

    # ---- from the configs alone
    @classmethod
    def describe(cls, dataset: Mapping[str, Any], backbone: Mapping[str, Any]) -> Task:
        return describe_text(dataset, backbone)

    @classmethod
    def batch_spec(cls, dataset: Mapping[str, Any], backbone: Mapping[str, Any], batch_size: int) -> BatchSpec:
        task, row = cls.describe(dataset, backbone), asked(dataset)
        source = (batch_size, source_length(dataset, backbone))
        spec: BatchSpec = {"input_ids": (source, torch.int64)}
        if not row.full:
            spec["attention_mask"] = (source, torch.int64)
        value = torch.float32 if row.value else torch.int64
        if task.written:
            spec["labels"] = ((batch_size, task.max_target_length), torch.int64)
            if row.labelled:
                spec["targets"] = ((batch_size,), value)
        elif row.running:
            spec["labels"] = (source, torch.int64)
        else:
            spec["labels"] = ((batch_size, task.num_labels), torch.float32) if row.several else ((batch_size,), value)
            if uses_token_types(backbone):
                spec["token_type_ids"] = (source, torch.int64)
        return spec

    # ---- reading
    def read(self) -> dict[str, int]:
        check_columns(self.dataset)
        rows = self.read_rows()
        self.notes += cut_lengths(self.dataset, self.backbone)
        if self.described.written:
            self.answers = self._answers(rows)
        for name, split in rows.items():
            self.encoders[name] = self._encoder(split)
            self.notes += said_of_cuts(name, self.encoders[name])
            if self.answers is not None and split.labels is not None:
                self.notes += said_of_answers(name, list(split.labels), self.answers)
            missing = sum(map(is_unlabelled, split.labels)) if split.labels is not None else 0
            self.notes += said_of_unlabelled(name, missing, len(split))
        if "train" in rows and asked(self.dataset).classes:
            self.notes += said_of_classes(np.asarray(rows["train"].labels), self.label_names)
        if "train" in rows and asked(self.dataset).value:
            self.notes += said_of_values(np.asarray(rows["train"].labels))
        return {name: len(encoder) for name, encoder in self.encoders.items()}

    def _answers(self, rows: Mapping[str, TextRows]) -> Answers:
        """Between labels and what the model writes; room for numbers as these need it, if none was asked for."""
        if not asked(self.dataset).value:
            return Answers(self.described, self.tokenizer)
        values = [float(value) for split in rows.values() for value in _labels_of(split) if not is_unlabelled(value)]
        trained = [float(value) for value in _labels_of(rows.get("train")) if not is_unlabelled(value)]
        step = self.dataset.get("value_step") or self.value_step
        made = partial(Answers, tokenizer=self.tokenizer, values=True, step=step, lowest=min(trained, default=0.0))
        if self.dataset.get("max_target_length") is None:
            self._value_room = longest_number(values, made(self.described))
        return made(self.described)

    @property
    def described(self) -> Task:
        found = super().described
        return found if self._value_room is None else replace(found, max_target_length=self._value_room)

    def _encoder(self, rows: TextRows) -> Encoder:
        dataset, row, pairs = self.dataset, asked(self.dataset), family_of(self.backbone).pairs
        if row.running:
            room = source_length(dataset, self.backbone)
            length = corrupted_lengths(dataset, self.backbone)[0] if row.noisy else room
            if len(dataset["text_columns"]) != 1:
                raise UserError(
                    f"Running text is read from one column, not from {len(dataset['text_columns'])}.",
                    where="dataset.text_columns",
                    remedy="dataset.text_columns=[COLUMN]",
                )
            windows = Windows(rows, self.tokenizer, column=dataset["text_columns"][0], length=length)
            if not row.noisy:
                return windows
            density, mean = dataset["noise_density"], dataset["mean_span"]
            return Corrupted(windows, self.tokenizer, density=density, mean=mean, seed=self.seed)
        if not dataset["text_columns"]:
            raise UserError("No column is read.", where="dataset.text_columns", remedy="dataset.text_columns=[COLUMN]")
        return Labelled(
            rows,
            self.tokenizer,
            columns=dataset["text_columns"],
            limit=source_length(dataset, self.backbone),
            answers=self.answers,
            prompt=None if pairs else dataset.get("prompt"),
            pairs=pairs,
            several=self.described.num_labels if row.several else 0,
        )

    def labels(self, split: str) -> np.ndarray:
        rows = len(self.split(split))
        encoder = self.encoders[split]
        refuse_without_classes(self.dataset)
        assert isinstance(encoder, Labelled)
        found = np.asarray(encoder.rows.labels, dtype=np.int64)[self.subset.get(split, slice(rows))]
        return np.where(found < 0, -100, found)

    def example(self, split: str, draw: Draw) -> Example:
        return self.encoders[split](draw)

    def random_examples(self, split: str) -> bool:
        return split == "train" and asked(self.dataset).noisy

    # ---- batches
    def collate(self, examples: Sequence[Example]) -> Batch:
        multiple, limit = self.dataset.get("pad_to_multiple_of"), source_length(self.dataset, self.backbone)
        ids = [example["input_ids"] for example in examples]
        tokens = padded(ids, self.tokenizer.pad_token_id, multiple, limit)
        batch: Batch = {"input_ids": tokens}
        if not asked(self.dataset).full:
            lengths = torch.tensor([len(row) for row in ids])
            batch["attention_mask"] = (torch.arange(tokens.shape[1]) < lengths[:, None]).long()
        if uses_token_types(self.backbone) and "token_type_ids" in examples[0]:
            batch["token_type_ids"] = padded([e["token_type_ids"] for e in examples], 0, multiple, limit)
        for name in ("labels", "targets"):
            values = [example[name] for example in examples if name in example]
            if values and asked(self.dataset).several:
                batch[name] = torch.tensor(values, dtype=torch.float32)
            elif values and isinstance(values[0], list):
                cap = self.described.max_target_length if self.described.written else limit
                batch[name] = padded(values, -100, multiple, cap)
            elif values:
                kind = torch.float32 if asked(self.dataset).value else torch.int64
                batch[name] = torch.tensor(values, dtype=kind)
        return batch

    def metrics(self, split: str) -> Scores:
        from transfer_run.data.scores.labels import Scores

        self.setup()
        encoder = self.encoders.get(split)  # none of a split that there is not
        size = encoder.bytes_a_token if isinstance(encoder, Windows) else math.nan
        return Scores(self.task, self.answers, size)

    @property
    def label_names(self) -> tuple[str, ...]:
        names = self.dataset.get("label_names")
        return tuple(names or (str(n) for n in range(self.dataset.get("num_labels") or 0)))

    @property
    def transform_description(self) -> dict[str, Any]:
        dataset, task = self.dataset, self.described
        return {
            "reads": "text",
            "tokenizer": self.tokenizer_description,
            "text_columns": list(dataset["text_columns"]),
            "prompt": None if family_of(self.backbone).pairs else dataset.get("prompt"),
            "max_source_length": source_length(dataset, self.backbone),
            "max_target_length": task.max_target_length,
            "form": task.form,
            "asked": dataset["form"],
            "label_names": list(self.label_names),
            "answers": list(task.label_names) if task.written else [],
        }


def _labels_of(rows: TextRows | None) -> Sequence[Any]:
    return [] if rows is None or rows.labels is None else list(rows.labels)
