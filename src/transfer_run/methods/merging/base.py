"""What every merging method shares in the runner: where the models come from, the search, the table of tasks.

Two ways in:

    method.models=[FOLDER,...] dataset=none    files in, one checkpoint out; no backbone, no data
    sources={a: "method=full ...", b: ...}     finished runs: merged, then tested on every source's task with its head
"""

from __future__ import annotations

import operator
import re
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.backbones.weights.files import ADAPTER, adapter_config
from transfer_run.backbones.weights.names import is_hub_name
from transfer_run.data.scores.direction import Better, first_best
from transfer_run.errors import UserError
from transfer_run.methods.base import Context, Method
from transfer_run.methods.form import find_form
from transfer_run.methods.merging.engine.checkpoint import Checkpoint, StateDict
from transfer_run.methods.merging.engine.opening import ONES, is_at_hand, local_path, open_base, open_model, open_models
from transfer_run.methods.merging.engine.stream import TASK_VECTOR, Job, Rule, merge_to_folder, piece_length, run
from transfer_run.methods.merging.engine.tied import tie_as
from transfer_run.methods.merging.engine.writer import Live, copy_companions
from transfer_run.methods.merging.runs.bodies import BODIES, body_of, body_tensors
from transfer_run.methods.merging.runs.report import task_metrics, task_rows, task_table
from transfer_run.methods.merging.runs.source_task import SourceTask, check_one_start, save_heads
from transfer_run.run_folder import CHECKPOINTS, MODEL
from transfer_run.task import Task

INTERMEDIATE = (BODIES, TASK_VECTOR)
"""Folders below the run's `checkpoints` that are of no use once all is merged."""
DType = Literal["float32", "float64"]
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass
class Option:
    """One setting that a search tries: what it is called, and how to merge with it."""

    label: Mapping[str, Any]
    job: Job
    rule: Rule


class Common(TypedDict, total=False):
    """Settings that every merging method has; `Merging` says what they are."""

    base: str | None
    models: Sequence[str]
    exclude: Sequence[str]
    dtype: DType
    chunk_bytes: float
    max_shard_bytes: float


class Merging(Method, ABC):
    """Base of the merging methods; takes no optimization step.

    Args:
        backbone: theta_0, live, of the source runs; None where files are merged.
        task: whose head the merged model gets; None where files are merged.
        base: theta_0 as a folder, a file, a hub name, or `ones` ((IA)^3); null: the backbone's own weights.
        models: folders, files or hub names, beside the source runs.
        exclude: regular expressions of tensors that are taken from the base (from the first model without one).
        dtype: of the arithmetic, `float32` or `float64`; the result has the base's own types.
        chunk_bytes: about the size of a piece; (n + 6) pieces are in memory at once.
        max_shard_bytes: a new file is begun where the next tensor would exceed it.
    """

    trains = False
    ships = "all"  # though nothing in it is trained here
    needs_backbone_gradient = False
    needs_base = True
    mismatched = "refuse"

    def __init__(
        self,
        backbone: Backbone | None,
        task: Task | None,
        *,
        base: str | None = None,
        models: Sequence[str] = (),
        exclude: Sequence[str] = (),
        dtype: DType = "float32",
        chunk_bytes: float = 2e6,
        max_shard_bytes: float = 5e9,
    ) -> None:
        if backbone is None or task is None:
            nn.Module.__init__(self)
        else:
            super().__init__(backbone, task)
            self.requires_grad_(False)
        self.of_files = backbone is None
        check_patterns(exclude, "method.exclude")
        self.base, self.models, self.exclude = base, list(models), list(exclude)
        self.dtype, self.chunk_bytes, self.max_shard_bytes = DTYPES[dtype], chunk_bytes, max_shard_bytes
        self.results: dict[str, Any] = {}

    # ---- what a rule says
    @abstractmethod
    def options(self, job: Job, context: Context, tasks: Sequence[SourceTask]) -> list[Option]:
        """The settings to choose from; one where nothing is searched."""

    def searched_on(self, tasks: Sequence[SourceTask]) -> Sequence[SourceTask]:
        """The tasks whose mean validation score decides a search."""
        return tasks

    # ---- the work
    def prepare(self, context: Context) -> None:
        """Merge: into the backbone, or into the run's folder where there is none."""
        begin = time.perf_counter()
        if self.of_files:
            self._merge_files(context)
        else:
            self._merge_runs(self.backbone, context)
        self.results["merge"]["seconds"] = round(time.perf_counter() - begin, 3)

    def rehearse(self, batch: Batch) -> Sequence[str]:
        """The base kept beside the backbone, what the sources are looked at for, and an evaluation."""
        self.eval()
        known = [tensor.clone() for tensor in body_tensors(self.backbone).values()]
        left_out = self.rehearse_source(batch)
        with torch.no_grad():
            self.predict(batch)
        del known
        return [
            *left_out,
            "a source that did not train its whole body (LoRA and kin) is loaded once, beside all this",
            f"pieces of the checkpoints, a few times method.chunk_bytes={self.chunk_bytes:.0f}, on the CPU",
        ]

    def rehearse_source(self, batch: Batch) -> Sequence[str]:
        """What is made of one source's model and data before anything is merged; what that leaves out, in lines."""
        return ()

    def memory_of_files(self, sources: int) -> tuple[int, str] | None:
        """The most that a merge of files holds at once, n + 6 pieces, in bytes and in words; None: not in pieces alone.

        Args:
            sources: checkpoints beside `method.models`.
        """
        models = sources + len(self.models)
        if (pieces := self.pieces_at_once(models)) is None:
            return None
        said = f"{models} checkpoints are merged as files, in pieces of method.chunk_bytes={self.chunk_bytes:.0f}"
        return pieces * piece_length(self.chunk_bytes, self.dtype) * self.dtype.itemsize, said

    def pieces_at_once(self, models: int) -> int | None:
        """Pieces of checkpoints that are in memory together; None: it works on whole layers."""
        return models + 6

    def merged_parameters(self) -> int:
        """Scalars of what was merged."""
        return int(self.results["merge"]["parameters"])

    def conclude(self, context: Context) -> dict[str, Any]:
        return self.results

    def _job(self, models: list[Checkpoint], base: Checkpoint | None) -> Job:
        if base is None and self.needs_base:
            raise UserError(
                f"{type(self).__name__} merges changes, so it must know the checkpoint that they are changes of.",
                where="method.base",
                remedy="method.base=FOLDER, the model that all were fine-tuned from (ones for (IA)^3)",
            )
        return Job(
            models, base, exclude=self.exclude, mismatched=self.mismatched, dtype=self.dtype,
            chunk_bytes=self.chunk_bytes,
        )  # fmt: skip

    # ---- files in, a file out
    def check_files(self, context: Context) -> str | None:
        """Refuse what the merge would refuse, as far as names, shapes and settings say it; no values are read.

        Returns:
            What was not looked at, because it would have to be fetched; None: all was.

        Raises:
            UserError: a model does not exist or cannot be read, or they do not fit each other, the base or the rule.
        """
        named = [*self.models, *([] if self.base in (None, ONES) else [str(self.base)])]
        if absent := [name for name in named if is_hub_name(name) and not is_at_hand(name)]:
            return f"{', '.join(absent)} would be fetched: whether the models fit each other was not looked at"
        *_, options = self._opened_files(context)
        options[0].rule.check(options[0].job)
        return None

    def _opened_files(
        self, context: Context
    ) -> tuple[list[Path], list[Checkpoint], Checkpoint | None, Job, list[Option]]:
        folders, models, base = self.open_files(context)
        job = self._job(models, base)
        options = self.options(job, context, ())
        if len(options) > 1:
            raise UserError(
                "There is no task to search on where files are merged without data.",
                where=f"method.{next(iter(options[0].label))}",
                remedy="give one value, or merge finished runs: sources={a: 'method=full ...', b: ...}",
            )
        return folders, models, base, job, options

    def _merge_files(self, context: Context) -> None:
        folders, models, base, job, options = self._opened_files(context)
        stem = "model" if adapter_config(self.described_by(job, folders)) is None else ADAPTER
        out = context.folder / MODEL
        merge_to_folder(options[0].job, options[0].rule, out, max_shard_bytes=self.max_shard_bytes, stem=stem)
        copied = self.copy_description(job, folders, out)
        tie_as(out, base or models[0])
        self._note(options[0], context)
        context.log(f"{out} holds the merged checkpoint{', ' + ', '.join(copied) if copied else ''}")

    def open_files(self, context: Context) -> tuple[list[Path], list[Checkpoint], Checkpoint | None]:
        """Where the models are, the models, and theta_0."""
        folders = [local_path(name) for name in self.models]
        folders += [folder for name, folder in context.sources.items() if name != "backbone"]
        return folders, *open_models(folders, self.base, self.exclude)

    def described_by(self, job: Job, folders: Sequence[Path]) -> Path:
        """The folder whose settings and tokenizer fit the result."""
        return folders[0] if self.base in (None, ONES) or job.layout.shortened else local_path(str(self.base))

    def copy_description(self, job: Job, folders: Sequence[Path], out: Path) -> list[str]:
        """Put settings and tokenizer beside the merged weights; the names of these files."""
        return copy_companions(self.described_by(job, folders), out)

    # ---- runs in, a model with tasks out
    def source_tasks(self, context: Context, backbone: Backbone) -> list[SourceTask]:
        """The sources whose tasks the merged model is to answer: all that are runs.

        Raises:
            UserError: they did not start from the backbone's weights.
        """
        runs = {n: f for n, f in context.sources.items() if n != "backbone" and SourceTask.is_run(f)}
        tasks = [SourceTask(name, folder, context.source_config(name)) for name, folder in runs.items()]
        check_one_start(tasks, backbone)
        return tasks

    def open_runs(
        self, tasks: Sequence[SourceTask], known: Mapping[str, Tensor], context: Context
    ) -> tuple[list[Checkpoint], Checkpoint]:
        """The models and theta_0.

        Args:
            known: the backbone's own tensors.
        """
        base = StateDict(known, "the backbone") if self.base is None else open_base(self.base)
        models = [body_of(task, known, context) for task in tasks]
        seen = {"backbone", *(task.name for task in tasks)}
        others = [folder for name, folder in context.sources.items() if name not in seen]
        others += [local_path(name) for name in self.models]
        return models + [open_model(folder, base, self.exclude) for folder in others], base

    def before_merging(self, job: Job, tasks: Sequence[SourceTask], context: Context) -> None:
        """What a report compares the merged model with; the head of the run's own task is on."""

    def metrics_of(self, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
        """Metrics of the run from the rows of `task_rows`: by default the merged model's on each source's task."""
        return task_metrics(rows)

    def _merge_runs(self, backbone: Backbone, context: Context) -> None:
        tasks = self.source_tasks(context, backbone)
        own = self._own_task(tasks, backbone)
        known = {name: tensor.detach().clone() for name, tensor in body_tensors(backbone).items()}
        job = self._job(*self.open_runs(tasks, known, context))
        if own is not None:
            backbone.head = own.on(backbone).backbone.head
        self.before_merging(job, tasks, context)
        chosen = self._best(self.options(job, context, tasks), backbone, self.searched_on(tasks), context)
        run(chosen.job, chosen.rule, Live(body_tensors(backbone)))
        self._note(chosen, context)
        rows = task_rows(tasks, [task.evaluate(backbone, "test") for task in tasks])
        self.results["tasks"] = rows
        self.results["metrics"] = self.results.get("metrics", {}) | self.metrics_of(rows)
        context.log(task_table(rows))
        save_heads(tasks, context.folder / MODEL)
        self.requires_grad_(False)
        for name in INTERMEDIATE:
            shutil.rmtree(context.folder / CHECKPOINTS / name, ignore_errors=True)

    def _own_task(self, tasks: Sequence[SourceTask], backbone: Backbone) -> SourceTask | None:
        """The source whose head the merged model gets: the first one of the run's own task."""
        own = next((task for task in tasks if task.task == self.task), None)
        if own is None and any(True for _ in backbone.head.parameters()):
            raise UserError(
                "None of the sources was trained on the run's own dataset: the merged model would have no head for it.",
                where="dataset",
                remedy="choose the dataset of a source, or dataset=none for that of the first source",
            )
        return own

    def _best(
        self, options: Sequence[Option], backbone: Backbone, tasks: Sequence[SourceTask], context: Context
    ) -> Option:
        """The option of the best mean validation score; the first of equals.

        Raises:
            UserError: there is no task to score on, or a mean of the tasks' scores would say nothing.
        """
        if len(options) == 1:
            return options[0]
        if not tasks:
            raise UserError(
                "A search needs a task to score on, and checkpoints that are no runs bring none.",
                where=f"method.{next(iter(options[0].label))}",
                remedy="give one value, or finished runs as sources",
            )
        better, scores = self._direction(tasks), []
        for option in options:
            run(option.job, option.rule, Live(body_tensors(backbone)))
            found = [next(iter(task.evaluate(backbone, "validation").values())) for task in tasks]
            scores.append(sum(found) / len(found))
            context.log(f"{', '.join(f'{k}={v}' for k, v in option.label.items())}: {scores[-1]:.4f} on validation")
        self.results["search"] = [{**o.label, "validation": s} for o, s in zip(options, scores, strict=True)]
        return options[first_best(scores, better)]

    @staticmethod
    def _direction(tasks: Sequence[SourceTask]) -> Better:
        """What the headlines of all tasks are compared by, and so their mean."""
        ways = {find_form(t.task.form).scores(t.data, "validation").better(1.0, 0.0): t for t in tasks}
        if len(ways) > 1:
            named = ", ".join(f"{task.task.headline} of sources.{task.name}" for task in ways.values())
            raise UserError(
                "A search takes the best mean score, and of these one is better large, another one small.",
                where=named,
                remedy="give one value, or sources whose metrics go the same way (dataset.metrics)",
            )
        return operator.gt if True in ways else operator.lt

    def _note(self, chosen: Option, context: Context) -> None:
        layout = chosen.job.layout
        self.results["merge"] = {
            **chosen.label,
            "models": len(chosen.job.originals),
            "tensors": len(layout.merged),
            "parameters": layout.numel,
            "averaged": len(layout.averaged),
            "taken_over": len(layout.copied),
        }
        tried = len(self.results.get("search", ()))
        how = ", ".join(f"{name}={value}" for name, value in chosen.label.items())
        line = f"merged {len(chosen.job.originals)} models, {len(layout.merged)} tensors of {layout.numel:,} parameters"
        line += f", with {how}" if how else ""
        line += f", the best of {tried} on validation" if tried else ""
        self.results["table"] = [line]
        context.log(line)


def check_patterns(patterns: Sequence[str], key: str) -> None:
    """Raises UserError where one that the key names is no regular expression."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(
                f"{pattern!r} is no regular expression: {error}.",
                where=f"{key}={list(patterns)}",
                remedy=f"write for example {key}=['classifier.*']",
            ) from error
