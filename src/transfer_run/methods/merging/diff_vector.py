"""Diff vectors: what fine-tuning changed in one version of a model is added to another version, without training.

    m'_s - m_s ── times lambda ──> + m_t ──> m_new          source_tuned, source_base, target_base

Lin, Balasubramanian, Liu, Kandpal, Vu, "Efficient Model Development through Fine-tuning Transfer", EMNLP 2025, arXiv
2503.20110. All parameters take part. What comes after is a run of its own: `backbone.weights="run:method=diff_vector
..."` goes on from the result, and so does a next stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from transfer_run.backbones.base import Backbone
from transfer_run.backbones.weights.files import adapter_config
from transfer_run.errors import UserError
from transfer_run.methods.base import Context
from transfer_run.methods.merging.base import DType, Option, check_patterns
from transfer_run.methods.merging.engine.adapters import LoraCheckpoint
from transfer_run.methods.merging.engine.align import STATISTICS
from transfer_run.methods.merging.engine.checkpoint import Checkpoint, StateDict, open_checkpoint
from transfer_run.methods.merging.engine.names import under_names_of
from transfer_run.methods.merging.engine.opening import refuse_other_computing
from transfer_run.methods.merging.engine.stream import Job, Piece, run
from transfer_run.methods.merging.engine.writer import Live
from transfer_run.methods.merging.runs.bodies import body_of, body_tensors
from transfer_run.methods.merging.runs.source_task import SourceTask
from transfer_run.methods.merging.task_arithmetic import Scales, TaskVectorMerging, TaskVectorRule
from transfer_run.methods.merging.versions.description import copy_of_tuned, said_of
from transfer_run.methods.merging.versions.tokenizers import compare
from transfer_run.methods.merging.versions.vocabulary import Resized, of_one_vocabulary
from transfer_run.task import Task

TUNED, START, TARGET = "source_tuned", "source_base", "target_base"
"""The names of the sources."""


class DiffVectorRule(TaskVectorRule):
    """m_t + scale * (m'_s - m_s); the job's models are m'_s and m_s, its base is m_t.

    Where both bases agree the result is m'_s to the bit, where nothing changed it is m_t to the bit.

    Args:
        scale: lambda.
        along: a, which puts m_t + a * (m_s - m_t) in the place of m_t (the line between the two bases).
    """

    def __init__(self, scale: float = 1.0, along: float = 0.0) -> None:
        super().__init__(scale)
        self.factor, self.along = scale, along

    def task_vector(self, job: Job, piece: Piece, base: Tensor) -> Tensor:
        return self._change(job, piece, job.values(piece, 1))[1]

    def merge(self, job: Job, piece: Piece) -> Tensor:
        target, start = job.base_values(piece), job.values(piece, 1)
        tuned, change = self._change(job, piece, start)
        if self.along:
            target = torch.lerp(target, start, self.along)
        change.mul_(self.factor)
        merged = torch.where(change == 0, target, target + change)
        if self.factor != 1:
            return merged
        bits = torch.int64 if target.dtype == torch.float64 else torch.int32
        return torch.where(start.view(bits) == target.view(bits), tuned, merged)

    @staticmethod
    def _change(job: Job, piece: Piece, start: Tensor) -> tuple[Tensor, Tensor]:
        """m'_s and m'_s - m_s; of an adapter its own change, which the sum of both would round."""
        tuned, resized = job.models[0], job.models[1]
        cut = isinstance(resized, Resized) and piece.name in resized.rows
        if tuned.changed is not None and not cut:
            change = job.difference(piece, 0, start)
            return start + change, change
        values = job.values(piece, 0)
        return values, values - start


class DiffVector(TaskVectorMerging):
    """Adds the difference of two sources to a third, or to the run's own backbone.

    Args:
        lambda_: lambda, or a list to search on the validation data of `source_tuned`.
        arithmetic: `float64` or `float32`; the result has the target's types, rounded once.
        pad_vocab: the result has the tuned model's vocabulary, new rows being its own; False: refuse other lengths.
        include, exclude: regular expressions of tensors that take part, and of those that do not: they stay the
            target's. Running statistics of batch norms always do.
        settings: whose `config.json` merged files get: `tuned` as the released code, or `target`.
        base_score: test the target without the vector, too.
        probe: so many places on the line from the target to the source's base are tested, with and without the vector.
        chunk_bytes, max_shard_bytes: see `Merging`.
    """

    def __init__(
        self,
        backbone: Backbone | None,
        task: Task | None,
        *,
        lambda_: Scales = 1.0,
        arithmetic: DType = "float64",
        pad_vocab: bool = True,
        include: Sequence[str] = (".*",),
        exclude: Sequence[str] = (),
        settings: Literal["tuned", "target"] = "tuned",
        base_score: bool = True,
        probe: int = 0,
        chunk_bytes: float = 2e6,
        max_shard_bytes: float = 5e9,
    ) -> None:
        check_patterns(include, "method.include")
        super().__init__(
            backbone, task, lambda_, exclude=exclude, dtype=arithmetic, chunk_bytes=chunk_bytes,
            max_shard_bytes=max_shard_bytes,
        )  # fmt: skip
        self.exclude += [_none_of(include), f".*{STATISTICS.pattern}"]
        self.pad_vocab, self.settings = pad_vocab, settings
        self.base_score, self.probe = base_score, probe

    def rule(self, scale: float | None, seed: int) -> DiffVectorRule:
        return DiffVectorRule(1.0 if scale is None else scale)

    def options(self, job: Job, context: Context, tasks: Sequence[SourceTask]) -> list[Option]:
        """One pass over the three for each lambda: no vector is stored."""
        return [Option({"lambda": scale}, job, self.rule(scale, context.seed)) for scale in self.scales]

    # ---- files
    def open_files(self, context: Context) -> tuple[list[Path], list[Checkpoint], Checkpoint]:
        folders = self._folders(context, TARGET)
        target = open_checkpoint(folders[TARGET])
        models, base = self._opened(folders, target, None, context)
        return [folders[name] for name in (TUNED, START, TARGET)], models, base

    def described_by(self, job: Job, folders: Sequence[Path]) -> Path:
        return folders[1]  # never an adapter's folder: the result is a whole model

    def copy_description(self, job: Job, folders: Sequence[Path], out: Path) -> list[str]:
        tuned, start, target = folders
        return copy_of_tuned(tuned, start, target, out, settings_of_target=self.settings == "target")

    # ---- runs
    def source_tasks(self, context: Context, backbone: Backbone) -> list[SourceTask]:
        """That of the tuned model, which may have started anywhere: in iterative recycling from an earlier sum."""
        return [task for name in (TUNED,) if (task := self._run_of(name, context)) is not None]

    def open_runs(
        self, tasks: Sequence[SourceTask], known: Mapping[str, Tensor], context: Context
    ) -> tuple[list[Checkpoint], Checkpoint]:
        folders = self._folders(context)
        target: Checkpoint = StateDict(known, "the backbone")
        if TARGET in folders:
            target = self._of_run(TARGET, folders, known, context) or under_names_of(
                open_checkpoint(folders[TARGET]), target
            )
        return self._opened(folders, target, known, context)

    def before_merging(self, job: Job, tasks: Sequence[SourceTask], context: Context) -> None:
        """The target alone, and the line between both bases, on the run's own test data."""
        scores: dict[str, float] = {}
        if self.base_score:
            scores = self._tested(DiffVectorRule(0.0), job, context)
            self.results["metrics"] = {f"test/{TARGET}/{name}": value for name, value in scores.items()}
            context.log("the target without the vector: " + _shown(scores))
        rows = []
        for number in range(self.probe):
            along = number / max(1, self.probe - 1)
            without, with_ = (self._tested(DiffVectorRule(scale, along), job, context) for scale in (0.0, 1.0))
            rows.append({"along": along, "without": without, "with": with_})
            context.log(f"at {along:.2f} of the way to the source's base: {_shown(without)}; with: {_shown(with_)}")
        if rows:
            self.results["probe"] = rows

    def metrics_of(self, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
        """The tuned model's own score; that of the sum on its task is in `extra.tasks`."""
        return {
            f"test/{row['task']}/{row['metric']}": row["individual"]
            for row in rows
            if row["task"] == TUNED and row["individual"] is not None
        }

    @torch.no_grad()
    def _tested(self, rule: DiffVectorRule, job: Job, context: Context) -> dict[str, float]:
        run(job, rule, Live(body_tensors(self.backbone)))
        self.eval()
        scores = self.form.scores(context.data, "test")
        for batch in context.batches("test", context.batch_size):
            self.score(batch, scores)
        return scores.compute()

    # ---- the three
    def _folders(self, context: Context, *needed: str) -> dict[str, Path]:
        for name in needed:
            if name not in context.sources:
                raise UserError(
                    "Merging files needs the version that the vector is added to.",
                    where=f"sources.{name}",
                    remedy=f"sources.{name}=FOLDER, beside sources.{TUNED} and sources.{START}",
                )
        return {name: context.sources[name] for name in (TUNED, START, TARGET) if name in context.sources}

    def _opened(
        self, folders: Mapping[str, Path], target: Checkpoint, known: Mapping[str, Tensor] | None, context: Context
    ) -> tuple[list[Checkpoint], Checkpoint]:
        """m'_s and m_s, and m_t, all with the tuned model's vocabulary.

        Raises:
            UserError: they read text or compute in other ways, or do not fit.
        """
        start = self._of_run(START, folders, known, context) or under_names_of(open_checkpoint(folders[START]), target)
        tuned = self._of_run(TUNED, folders, known, context)
        if tuned is None and adapter_config(folders[TUNED]) is not None:
            tuned = LoraCheckpoint(start, folders[TUNED], self.exclude)
        elif tuned is None:
            tuned = under_names_of(open_checkpoint(folders[TUNED]), start)
            refuse_other_computing(tuned, start)
        base, start, notes = of_one_vocabulary(target, start, tuned, stay=self.exclude, pad=self.pad_vocab)
        if self.of_files:
            notes += said_of(
                *(folders[n] for n in (TUNED, START, TARGET)), settings_of_target=self.settings == "target"
            )
        elif isinstance(base, Resized):
            raise UserError(
                "The backbone's vocabulary is not the tuned model's: " + "; ".join(notes) + ".",
                where=f"sources.{TUNED}",
                remedy="merge them as files (dataset=none), and name the result as backbone.weights",
            )
        for line in [*notes, *compare(folders)]:
            context.log(line)
        return [tuned, start], base

    def _of_run(
        self, name: str, folders: Mapping[str, Path], known: Mapping[str, Tensor] | None, context: Context
    ) -> Checkpoint | None:
        """What a run has made of its backbone, complete; None where files are merged, or no run is named."""
        task = None if known is None else self._run_of(name, context)
        return None if task is None or known is None else body_of(task, known, context)

    @staticmethod
    def _run_of(name: str, context: Context) -> SourceTask | None:
        folder = context.sources.get(name)
        if folder is None or not SourceTask.is_run(folder):
            return None
        return SourceTask(name, folder, context.source_config(name))


def _none_of(patterns: Sequence[str]) -> str:
    """A regular expression of the names that none of the patterns begins to match."""
    return f"(?!{'|'.join(f'(?:{pattern})' for pattern in patterns)})" if patterns else ""


def _shown(scores: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
