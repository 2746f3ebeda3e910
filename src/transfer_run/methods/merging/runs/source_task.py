"""Finished source runs as a merge sees them: a body to merge, a head, a task with its data, and the scores so far."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.data.base import DataModule
from transfer_run.data.load import build_data
from transfer_run.errors import UserError
from transfer_run.files import write_json
from transfer_run.memory.tracker import followed_in_part
from transfer_run.methods.base import Method
from transfer_run.run_folder import (
    BODY_PREFIX,
    HEAD_PREFIX,
    HEADS,
    TASKS,
    WEIGHTS,
    has_model,
    is_run,
    model_folder,
    read_description,
    read_result,
)
from transfer_run.task import Task


class SourceTask:
    """One finished run that a merge takes as a source.

    Args:
        name: under `sources.`.
        folder: the run's folder.
        config: the run's, with the files of its data (`Context.source_config`).
    """

    def __init__(self, name: str, folder: Path, config: Mapping[str, Any]) -> None:
        self.name, self.folder, self.config = name, folder, config
        self.model_folder = model_folder(folder)
        self.about = read_description(self.model_folder)
        names = self._tensors(lambda name: True, read=False)
        strange = sorted(name for name in names if not name.startswith((BODY_PREFIX, HEAD_PREFIX)))
        if strange:
            raise UserError(
                f"The source {name!r} ({self.about['method']['name']}) trained more than its backbone and head, which "
                "merging would lose.",
                where=f"sources.{name}: {', '.join(strange[:4])}",
                remedy="merge runs of methods that change the backbone's own weights: full, partial, bitfit, lora",
            )

    @staticmethod
    def is_run(folder: Path) -> bool:
        return is_run(folder) and has_model(model_folder(folder))

    @property
    def complete(self) -> bool:
        """Does the run hold its whole body, and not only what it trained?"""
        return bool(self.about["complete"])

    @property
    def checksum(self) -> str | None:
        """Of the weights that the run started from."""
        return self.about["provenance"].get("checksum")

    @cached_property
    def task(self) -> Task:
        return Task.from_json(self.about["task"])

    @cached_property
    def data(self) -> DataModule:
        data = build_data(self.config["dataset"], self.config["backbone"], self.config["seed"])
        data.setup()
        return data

    @property
    def answers(self) -> list[list[int]] | None:
        """Token ids of the label words of a text-to-text task."""
        found = getattr(self.data, "answers", None)
        return None if found is None else found.ids

    def batches(self, split: str, device: torch.device) -> Iterator[Batch]:
        size = self.config["dataset"]["batch_size"]
        for batch in followed_in_part(self.data.loader(split, batch_size=size, seed=self.config["seed"])):
            yield {name: tensor.to(device) for name, tensor in batch.items()}

    def scores(self) -> dict[str, float]:
        """The run's own test scores by metric."""
        metrics = (read_result(self.folder) or {}).get("metrics", {})
        return {k.removeprefix("test/"): v for k, v in metrics.items() if k.startswith("test/")}

    def on(self, backbone: Backbone) -> Method:
        """This task with this run's head on whatever body `backbone` has now, which keeps its own; in eval mode."""
        method = Method(backbone, self.task)
        head = self._tensors(lambda name: name.startswith(HEAD_PREFIX))
        method.backbone.head.load_state_dict({name.removeprefix(HEAD_PREFIX): tensor for name, tensor in head.items()})
        return method.to(next(backbone.model.parameters()).device).eval()

    def save_head(self, file: Path) -> None:
        """The run's head as an export has it; no file where the task needs none (text-to-text)."""
        head = self._tensors(lambda name: name.startswith(HEAD_PREFIX))
        if head:
            save_file({f"head.{name.removeprefix(HEAD_PREFIX)}": tensor for name, tensor in head.items()}, file)

    @torch.no_grad()
    def evaluate(self, backbone: Backbone, split: str) -> dict[str, float]:
        """Scores of this task on `split`, the headline first."""
        method = self.on(backbone)
        scores = method.form.scores(self.data, split)
        for batch in self.batches(split, next(backbone.model.parameters()).device):
            method.score(batch, scores)
        return scores.compute()

    def _tensors(self, wanted: Any, read: bool = True) -> dict[str, Tensor]:
        with safe_open(self.model_folder / WEIGHTS, framework="pt") as file:
            names = [name for name in file.keys() if wanted(name)]  # noqa: SIM118 - the file is no mapping
            return {name: file.get_tensor(name) if read else torch.empty(0) for name in names}


def save_heads(tasks: list[SourceTask], folder: Path) -> None:
    """Every task and its head beside the merged model: `heads/NAME.safetensors`, and `heads/tasks.json` of all."""
    (folder / HEADS).mkdir(parents=True, exist_ok=True)
    for task in tasks:
        task.save_head(folder / HEADS / f"{task.name}.safetensors")
    about = {task.name: {key: task.about[key] for key in ("task", "transform")} for task in tasks}
    write_json(folder / HEADS / TASKS, about)


def check_one_start(tasks: list[SourceTask], backbone: Backbone) -> None:
    """Refuse to merge what was not fine-tuned from the same weights: far apart, their mean is no model.

    Raises:
        UserError: naming the runs that started elsewhere.
    """
    known = backbone.provenance.get("checksum")
    strangers = [task for task in tasks if task.checksum != known]
    if strangers:
        raise UserError(
            "Models can only be merged when they were fine-tuned from the same weights.",
            where="; ".join(f"sources.{task.name} started from {task.about['provenance']}" for task in strangers),
            remedy=f"fine-tune all of them from {backbone.provenance.get('weights')}, with one backbone and seed",
        )
