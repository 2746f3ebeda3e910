"""Fisher merging: average every parameter weighted by how much each model's predictions depend on it.

    theta[j] = sum_i c_i F_i[j] theta_i[j] / sum_i c_i F_i[j],   c_i = lambda_i or lambda_i / ||F_i||_2   (section 3.2)

computed as a running mean, theta <- (1 - r) theta + r theta_i with r = c_i F_i / (sum of c F up to i), so that a model
of weight zero changes nothing and a model that has all the weight is copied, to the last bit.

Matena and Raffel, "Merging Models with Fisher-Weighted Averaging", NeurIPS 2022, arXiv 2111.09832.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.errors import UserError
from transfer_run.methods.base import Context
from transfer_run.methods.merging.base import DType, Merging, Option
from transfer_run.methods.merging.engine.checkpoint import Checkpoint, open_checkpoint
from transfer_run.methods.merging.engine.opening import local_path
from transfer_run.methods.merging.engine.stream import Job, Piece, Rule, SquareSum
from transfer_run.methods.merging.runs.bodies import plain_model
from transfer_run.methods.merging.runs.source_task import SourceTask
from transfer_run.methods.merging.statistics.fisher_estimate import estimate_fisher, save_fisher
from transfer_run.methods.work import as_loaded
from transfer_run.run_folder import CHECKPOINTS
from transfer_run.task import Task


class FisherRule(Rule):
    """The mode of the product of the models' Laplace posteriors; the first model is the target.

    Where all weights vanish the target's value stays; with a target coefficient of 0 the donors' plain weighted mean
    is taken there instead.

    Args:
        coefficients: lambda_i >= 0, one a model.
        fishers: diagonal Fishers, laid out like the models; None: isotropic merging (F = 1, no normalisation).
        floor: smallest Fisher value, applied to the raw values.
        favor_target: only the target's Fisher has the floor, so that it decides where all others vanish.
        normalize: divide each coefficient by the norm of the model's whole Fisher.
    """

    def __init__(
        self,
        coefficients: Sequence[float],
        fishers: Sequence[Checkpoint] | None,
        floor: float = 1e-6,
        favor_target: bool = True,
        normalize: bool = True,
    ) -> None:
        self.coefficients, self.fishers = [float(c) for c in coefficients], fishers
        self.floor, self.favor_target, self.normalize = floor, favor_target, normalize
        self.norms: list[float] = []

    def check(self, job: Job) -> None:
        given = [len(self.coefficients), *([] if self.fishers is None else [len(self.fishers)])]
        if any(count != job.count for count in given) or min(self.coefficients) < 0 or not sum(self.coefficients):
            raise UserError(
                f"{job.count} models need as many coefficients of at least 0 and as many Fishers: {self.coefficients}.",
                where="method.coefficients",
                remedy="for example method.coefficients=[0.5,0.5]",
            )
        if self.fishers is not None:
            _check(job, self.fishers)

    def survey(self, job: Job) -> None:
        super().survey(job)
        if self.fishers is not None and self.normalize and not self.norms:
            self.norms = [_norm(job, fisher) for fisher in self.fishers]

    def merge(self, job: Job, piece: Piece) -> Tensor:
        merged = job.values(piece, 0)
        weight = self._weight(job, piece, 0, merged)
        for i in range(1, job.count):
            added = self._weight(job, piece, i, merged)
            weight.add_(added)
            share = added.div_(weight).nan_to_num_(0.0)  # 0 / 0: nobody so far knows anything about this value
            merged.mul_(1 - share).add_(job.values(piece, i).mul_(share))
        unknown = weight == 0
        if self.coefficients[0] == 0 and bool(unknown.any()):
            merged = torch.where(unknown, self._plain_mean(job, piece), merged)
        return merged

    def _weight(self, job: Job, piece: Piece, model: int, like: Tensor) -> Tensor:
        """c_i F_i at `piece`."""
        coefficient = self.coefficients[model]
        if self.fishers is None:
            return torch.full_like(like, coefficient)
        fisher = self.fishers[model].read(piece.name, piece.start, piece.stop).to(job.dtype)
        if model == 0 or not self.favor_target:
            fisher.clamp_(min=self.floor)
        return fisher.mul_(coefficient / self.norms[model] if self.normalize else coefficient)

    def _plain_mean(self, job: Job, piece: Piece) -> Tensor:
        total = job.values(piece, 0).mul_(self.coefficients[0])
        for i in range(1, job.count):
            total.add_(job.values(piece, i).mul_(self.coefficients[i]))
        return total.div_(sum(self.coefficients))


def _check(job: Job, fishers: Sequence[Checkpoint]) -> None:
    wrong = [
        f"{name} in {fisher.where}"
        for fisher in fishers
        for name, entry in job.layout.merged.items()
        if name not in fisher.entries or fisher.entries[name].shape != entry.shape
    ]
    if wrong:
        raise UserError(
            f"{len(wrong)} Fisher tensors are missing or of another shape than the models'.",
            where="\n           ".join(wrong),
            remedy="compute the Fisher with the same model, or leave the tensors out: method.exclude=[...]",
        )


def _norm(job: Job, fisher: Checkpoint) -> float:
    """||F_i||_2 over all that is merged; told by the file where it holds just that.

    Raises:
        UserError: it is zero.
    """
    if "norm" in fisher.metadata and fisher.entries.keys() == job.layout.merged.keys():
        return float(fisher.metadata["norm"])
    total = SquareSum()
    for piece in job.all_pieces():
        total.add(fisher.read(piece.name, piece.start, piece.stop).to(job.dtype))
    if not total.value > 0:
        raise UserError(
            "A Fisher that is zero everywhere cannot be normalised.",
            where=fisher.where,
            remedy="method.normalize=false, or a Fisher of more examples",
        )
    return float(total.value**0.5)


FISHER = {"examples": 4096, "labels": "exact", "paths": None}
HEADS = ("classifier.*", "score.*", "head.*")


class FisherMerging(Merging):
    """Merges models of one start; the first is the target, whose head is kept.

    Args:
        fisher: `examples` of each source's training split, one gradient each and label (`labels`: `exact` over all
            labels, `sample` of one drawn from the model, `empirical` that of the data); or `paths` of Fisher files,
            one a model.
        coefficients: lambda: `grid` (two models) or `dirichlet` (any number) searches `n_coefficients` of them on
            validation data; or the numbers themselves, one a model.
        search: the score that a search looks at: of the `target`, or the mean over `all` tasks.
        floor, favor_target, normalize: see `FisherRule`.
        isotropic: all Fishers are 1: a weighted mean.
        include_pretrained: the backbone's own weights are the last of the models: robust fine-tuning, as in WiSE
            (section 4.2). They have no head and so no Fisher of a task, which is why it goes with `isotropic`.
        others: see `Merging`; tensors of different shapes (heads) are the target's.
    """

    needs_base = False
    mismatched = "exclude"

    def __init__(
        self,
        backbone: Backbone | None,
        task: Task | None,
        *,
        base: str | None = None,
        models: Sequence[str] = (),
        fisher: Mapping[str, Any] = FISHER,
        coefficients: str | Sequence[float] = "grid",
        n_coefficients: int = 51,
        search: Literal["target", "all"] = "target",
        floor: float = 1e-6,
        favor_target: bool = True,
        normalize: bool = True,
        isotropic: bool = False,
        include_pretrained: bool = False,
        exclude: Sequence[str] = HEADS,
        dtype: DType = "float32",
        chunk_bytes: float = 2e6,
        max_shard_bytes: float = 5e9,
    ) -> None:
        super().__init__(
            backbone, task, base=base, models=models, exclude=exclude, dtype=dtype, chunk_bytes=chunk_bytes,
            max_shard_bytes=max_shard_bytes,
        )  # fmt: skip
        self.fisher, self.coefficients, self.n_coefficients = {**FISHER, **fisher}, coefficients, n_coefficients
        self.search, self.isotropic = search, isotropic
        self.floor, self.favor_target, self.normalize = floor, favor_target, normalize
        self.include_pretrained = include_pretrained
        if include_pretrained and (not isotropic or self.of_files):
            raise UserError(
                "The pretrained model has no head, and without a task no Fisher."
                if not self.of_files
                else "Files are merged without a backbone, so there are no weights of its own.",
                where="method.include_pretrained=true",
                remedy="method.isotropic=true" if not self.of_files else "name its folder: method.models=[TUNED,BASE]",
            )

    def open_runs(
        self, tasks: Sequence[SourceTask], known: Mapping[str, Tensor], context: Context
    ) -> tuple[list[Checkpoint], Checkpoint]:
        models, base = super().open_runs(tasks, known, context)
        return [*models, *([base] if self.include_pretrained else [])], base

    def searched_on(self, tasks: Sequence[SourceTask]) -> Sequence[SourceTask]:
        return tasks[:1] if self.search == "target" else tasks

    def options(self, job: Job, context: Context, tasks: Sequence[SourceTask]) -> list[Option]:
        candidates = coefficient_candidates(self.coefficients, job.count, self.n_coefficients, context.seed)
        fishers = None if self.isotropic else self._fishers(context, tasks)
        rules = [FisherRule(c, fishers, self.floor, self.favor_target, self.normalize) for c in candidates]
        return [Option({"coefficients": c}, job, rule) for c, rule in zip(candidates, rules, strict=True)]

    def rehearse_source(self, batch: Batch) -> Sequence[str]:
        """A source's model and the squared gradients of one example; the answers of a text model are as long as labels
        may be."""
        if self.isotropic or self.fisher["paths"]:
            return ()
        source = as_loaded(self)
        answers = [[0] * batch["labels"].shape[-1]] * max(1, self.task.num_labels)
        example = self.form.example(batch, 0)
        estimate_fisher(self, [example], examples=1, labels=str(self.fisher["labels"]), seed=0, answers=answers)
        del source
        return ()

    def pieces_at_once(self, models: int) -> int | None:
        """One model after the other."""
        return super().pieces_at_once(0)

    def _fishers(self, context: Context, tasks: Sequence[SourceTask]) -> list[Checkpoint]:
        if self.fisher["paths"]:
            return [open_checkpoint(local_path(path)) for path in self.fisher["paths"]]
        if not tasks:
            raise UserError(
                "A Fisher needs each model's own task and data.",
                where="method.fisher.paths, sources",
                remedy="merge finished runs (sources=...), name Fisher files (method.fisher.paths=[...]), or set "
                "method.isotropic=true",
            )
        return [self._fisher(task, context) for task in tasks]

    def _fisher(self, task: SourceTask, context: Context) -> Checkpoint:
        """The Fisher of a source on its own training data, kept beside its checkpoint."""
        examples, labels = int(self.fisher["examples"]), str(self.fisher["labels"])
        drawn = f"-{context.seed}" if labels == "sample" else ""
        path: Path = task.folder / CHECKPOINTS / f"fisher-{labels}-{examples}{drawn}.safetensors"
        if not path.is_file():
            method = plain_model(task, context)
            device = next(method.backbone.model.parameters()).device
            context.log(f"Fisher of {task.name} from {min(examples, task.data.sizes['train'])} examples")
            batches = context.work.follow(f"Fisher of {task.name}", task.batches("train", device))
            found = estimate_fisher(
                method, batches, examples=examples, labels=labels, seed=context.seed,
                answers=task.answers,
            )  # fmt: skip
            save_fisher(found, path, {"labels": labels, "examples": str(examples)})
        return open_checkpoint(path)


def coefficient_candidates(
    coefficients: str | Sequence[float], models: int, count: int, seed: int
) -> list[tuple[float, ...]]:
    """The lambda to try: given, `count` on the line between two models, or `count` flat Dirichlet draws.

    Raises:
        UserError: the grid of more or fewer than two models, or an unknown word.
    """
    if not isinstance(coefficients, str):
        return [tuple(float(value) for value in coefficients)]
    if coefficients == "grid" and models == 2:
        steps = max(2, count)
        return [(1 - k / (steps - 1), k / (steps - 1)) for k in range(steps)]
    if coefficients == "dirichlet":
        generator = torch.Generator().manual_seed(seed)
        draws = -torch.rand(count, models, generator=generator, dtype=torch.float64).clamp_(min=1e-300).log()
        return [tuple(row.tolist()) for row in draws / draws.sum(1, keepdim=True)]
    raise UserError(
        f"coefficients={coefficients} does not go with {models} models.",
        where="method.coefficients",
        remedy="grid for two models, dirichlet for any number, or the numbers: method.coefficients=[0.5,0.3,0.2]",
    )
