"""Distilling from similar tasks: a small network learns from few labels and from models of other tasks that are alike.

    labelled images ───> trunk ─> head ─────────────────────────────── lambda CE with the labels
    unlabelled images ─> trunk ─> extra head of source s (C_s) ─┐
                     └─> source s (frozen), its own classes ────┴─ (1 - lambda) sum_s alpha_s CE with its answers

    alpha_s grows with the similarity of the source's features to the target's labels; the nearest source alone, or all

Borup, Phoo, Hariharan: "Distilling from Similar Tasks for Transfer Learning on a Budget", ICCV 2023, arXiv 2304.12314.
The extra heads are dropped at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.errors import UserError
from transfer_run.files import read_json, write_json
from transfer_run.memory.tracker import followed_in_part
from transfer_run.methods.base import Context, Method
from transfer_run.methods.distillation.transfer.partition import wide
from transfer_run.methods.distillation.zoo.similarity import (
    RANKING,
    TO_REFERENCE,
    Probe,
    similarity,
    stratified,
    weights,
)
from transfer_run.methods.form import IGNORED
from transfer_run.methods.means import is_shared
from transfer_run.methods.teacher import Reader, reader_of
from transfer_run.task import ROWS, Task, beside

SIMILARITY = {
    "metric": "parc", "reference": "labels", "pca_dim": 32, "probe": 500, "power": 9.0, "drop_below": 1.0e-4,
}  # fmt: skip
KD = {"lambda": 0.8, "temperature": 1.0}
LABELS = {"fraction": 1.0, "seed": 0}
TABLE = "similarity.json"
UNLABELLED = "unlabeled"
REFERENCE = "reference"


class DistillSimilar(Method):
    """The run's backbone under its labels and the answers of the sources in `zoo`.

    Args:
        zoo: names of the sources: models of any architecture and of any classes.
        variant: `weighted` takes all of them, `nearest` the most similar one.
        similarity: `metric` (`zoo.similarity.METRICS`); `reference` of rsa, cka and dds: the `labels`, or the features
            of a `model` that knows the target (`sources.reference`); `pca_dim` of parc, rsa and dds, `probe` labelled
            samples, `power` p of the weights; sources of a weight below `drop_below` are let go of.
        kd: `lambda` of the labels; `temperature` of the sources' answers.
        pseudo_labels: `online`: sources see the image that the student sees; `cached`: they answer every training image
            once, as it is.
        kept_labels: `fraction` of every class that keeps its labels, drawn by `seed`; all images are distilled on.
    """

    ships = "all"
    alpha: Tensor
    labelled: Tensor

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        *,
        zoo: Sequence[str] = ("source",),
        variant: Literal["weighted", "nearest"] = "weighted",
        similarity: Mapping[str, Any] = SIMILARITY,
        kd: Mapping[str, Any] = KD,
        pseudo_labels: Literal["online", "cached"] = "online",
        kept_labels: Mapping[str, Any] = LABELS,
    ) -> None:
        super().__init__(backbone, task)
        self.zoo, self.variant, self.similarity = list(zoo), variant, similarity
        self.kd, self.pseudo_labels, self.kept_labels = kd, pseudo_labels, kept_labels
        self._refuse_bad_settings()
        self.train_backbone()
        self.reads_row_numbers = True
        self.aids = nn.ModuleDict()
        device = next(backbone.model.parameters()).device
        self._keep("alpha", torch.full((len(self.zoo),), 1 / len(self.zoo), device=device))
        self._keep("labelled", torch.ones(1, dtype=torch.bool, device=device))
        self.said: dict[str, Tensor] = {}  # cached answers by source, (N, C_s)
        self.table: list[dict[str, Any]] = []

    def _refuse_bad_settings(self) -> None:
        metric = self.similarity["metric"]
        if not self.zoo or len(set(self.zoo)) < len(self.zoo) or REFERENCE in self.zoo:
            raise UserError(
                f"Each source is named once, there is at least one, and none is called {REFERENCE}.",
                where="method.zoo",
                remedy="method.zoo=[a,b] sources.a=... sources.b=...",
            )
        if self.variant == "weighted" and metric in RANKING:
            raise UserError(
                f"{metric} is never positive: it orders sources, and is no weight.",
                where="method.similarity.metric",
                remedy="method.variant=nearest, or method.similarity.metric=parc",
            )

        if metric in TO_REFERENCE and self.similarity["reference"] != "model":
            raise UserError(
                f"{metric} compares with the features of a model that knows the target.",
                where="method.similarity.reference",
                remedy="method.similarity.reference=model sources.reference='method=full ...'",
            )

    def _keep(self, name: str, value: Tensor) -> None:
        """What a run that goes on reads again from its data and its table, so no checkpoint holds it."""
        self.register_buffer(name, value, persistent=False)

    # ---- the sources, and what is trained beside the student
    def take_sources(self, load_source: Callable[[str], Method]) -> None:
        device = next(self.backbone.model.parameters()).device
        for name in self.zoo:
            source = load_source(name)
            if source.task.num_labels < 2 or not source.form.classes:
                raise UserError(
                    "A source answers with classes of its own, and this one has none.",
                    where=f"sources.{name}",
                    remedy="a model that was trained for a classification",
                )
            reader = reader_of(self, source, name, normalize=True, own_size=True, same_task=False)
            self.hold(_held(name), reader)
            with torch.random.fork_rng(devices=[]):
                self.aids[name] = nn.Linear(self.backbone.feature_width, source.task.num_labels, device=device)
        if self.similarity["reference"] == "model":
            known = load_source(REFERENCE)
            self.hold(REFERENCE, reader_of(self, known, REFERENCE, normalize=True, own_size=True))

    def source(self, name: str) -> Reader | None:
        found = self._modules.get(_held(name))
        return found if isinstance(found, Reader) else None

    def _let_go(self, held: str) -> None:
        """Of a model that is not asked any more."""
        self._modules.pop(held, None)
        self.held -= {held}

    def _leave_out(self, name: str) -> None:
        """A source that does not count."""
        self._let_go(_held(name))
        del self.aids[name]

    def settle(self) -> None:
        """Drop the sources and the extra heads."""
        for name in self.held:
            self._modules.pop(name, None)
        for name in ("alpha", "labelled"):
            self._buffers.pop(name, None)
        self.held, self.said, self.aids = frozenset(), {}, nn.ModuleDict()

    def shipped(self) -> dict[str, Tensor]:
        """The student, all of it."""
        return {name: tensor for name, tensor in super().shipped().items() if name.startswith("backbone.")}

    def counted_parameters(self) -> int:
        return super().counted_parameters() - sum(p.numel() for p in self.aids.parameters())

    # ---- before the first step
    def prepare(self, context: Context) -> None:
        """Which sources are alike? The table is written down, so that a run that goes on has the same weights."""
        self._choose_labels(context)
        found = self._similarities(context)
        asked = self.kd["lambda"] < 1
        nearest, power = self.variant == "nearest", float(self.similarity["power"])
        alpha = weights(found, nearest=nearest, power=power) if asked else np.zeros(len(found))
        self.table = [
            {"source": name, self.similarity["metric"]: value, "weight": float(weight)}
            for name, value, weight in zip(self.zoo, found, alpha, strict=True)
        ]
        write_json(context.folder / TABLE, {"similarity": self.table})
        self._weigh(context)

    def resume(self, context: Context) -> None:
        self._choose_labels(context)
        self.table = read_json(context.folder / TABLE, "start the run again with force=true")["similarity"]
        self._weigh(context)

    def _choose_labels(self, context: Context) -> None:
        kept = stratified(
            np.asarray(context.data.labels("train")), self.kept_labels["fraction"], self.kept_labels["seed"]
        )
        self._keep("labelled", torch.from_numpy(kept).to(self.alpha.device))

    def _weigh(self, context: Context) -> None:
        """Set alpha, let go of the sources that do not count, and ask the others where answers are cached."""
        alpha = torch.tensor([each["weight"] for each in self.table], dtype=torch.float32)
        self._keep("alpha", alpha.to(self.alpha.device))
        for row in self.table:
            name, weight = row["source"], row["weight"]
            context.log(
                f"{name}: {self.similarity['metric']} {row[self.similarity['metric']]:.4f}, weight {weight:.4f}"
            )
            if weight < self.similarity["drop_below"] or weight == 0:
                self._leave_out(name)
        self._let_go(REFERENCE)
        if self.pseudo_labels == "cached":
            self._cache(context)

    def _cache(self, context: Context) -> None:
        rows = range(context.sizes["train"])
        for name in self.aids:
            reader = self.source(name)
            assert reader is not None
            batches = context.work.follow(f"answers of {name}", self._plain(context, rows), len(rows))
            self.said[name] = torch.cat([self._answers(reader, batch) for batch in batches])
            self._let_go(_held(name))

    def _plain(self, context: Context, rows: Sequence[int]) -> Iterator[Batch]:
        """These training rows as evaluation sees them, in order."""
        split, size = context.data.split("train"), context.batch_size
        for first in range(0, len(rows), size):
            batch = context.data.collate([split[int(row)] for row in rows[first : first + size]])
            yield {name: tensor.to(self.alpha.device) for name, tensor in batch.items()}

    def _similarities(self, context: Context) -> list[float]:
        """Of each source, on the first of the labelled rows."""
        self.eval()
        rows = self.labelled.nonzero().flatten().tolist()
        draw = np.random.default_rng(self.kept_labels["seed"])
        chosen = sorted(draw.permutation(rows)[: self.similarity["probe"]].tolist())
        batches = list(followed_in_part(self._plain(context, chosen)))
        labels = torch.cat([batch["labels"] for batch in batches]).cpu().numpy()
        reference = self._modules.get(REFERENCE)
        known = self._seen(reference, batches)[0] if isinstance(reference, Reader) else None
        found = []
        for name in context.work.follow("sources", self.zoo):
            features, probabilities = self._seen(self.source(name), batches)
            probe = Probe(features, probabilities, labels, known)
            found.append(float(similarity(self.similarity["metric"], probe, self.similarity["pca_dim"])))
        return found

    @staticmethod
    def _seen(reader: Reader | None, batches: Sequence[Batch]) -> tuple[Any, Any]:
        assert reader is not None
        features, probabilities = _joined([reader.both(batch) for batch in batches])
        return features.cpu().numpy(), probabilities.cpu().numpy()

    def rehearse(self, batch: Batch) -> Sequence[str]:
        """The rows of the probe and what each source makes of them; of the nearest source alone the largest is kept."""
        self.eval()
        more = max(0, -(-self.similarity["probe"] // len(batch["labels"])) - 1)
        probe = [{name: torch.empty_like(tensor) for name, tensor in batch.items()} for _ in range(more)]
        known = [self._modules[REFERENCE]] if REFERENCE in self._modules else []
        for reader in [*known, *(self.source(name) for name in self.zoo)]:
            assert isinstance(reader, Reader)
            features, logits = reader.both(batch)
            both = [(features, logits)]
            both += [(torch.empty_like(features), torch.empty_like(logits)) for _ in range(more - 1)]
            _joined([*both, reader.both(batch)] if more else both)
        del probe
        self._let_go(REFERENCE)
        return self._as_planned(batch["labels"].device)

    def _as_planned(self, device: torch.device) -> list[str]:
        """Let go of what a run is sure to let go of; what it cannot know, in words."""
        sizes = {name: sum(p.numel() for p in self.get_submodule(_held(name)).parameters()) for name in self.zoo}
        largest, lines = max(sizes, key=sizes.__getitem__), []
        if self.variant == "nearest":
            lines.append(f"which source is the nearest is not known before: planned is the largest, {largest}")
        elif len(self.zoo) > 1:
            lines.append("sources of small weight are let go of: planned are all")
        for name in self.zoo:
            if self.kd["lambda"] == 1 or (self.variant == "nearest" and name != largest):
                self._leave_out(name)
        if self.pseudo_labels == "cached":
            lines.append("the sources' answers, a number for each training row and class of theirs")
            for name, head in self.aids.items():
                self._let_go(_held(name))
                self.said[name] = torch.zeros(1, len(head.weight), device=device)  # type: ignore[arg-type]
        return lines

    # ---- the loss
    def loss(self, batch: Batch) -> Tensor:
        """What is trained; of a model in evaluation the task's own loss."""
        if not self.training:
            return super().loss(batch)
        if not self.aids and self.kd["lambda"] < 1:
            raise UserError("There is no source to learn from.", where="method.zoo", remedy="sources.NAME=...")
        return self.distilled_loss(batch)

    def distilled_loss(self, batch: Batch) -> Tensor:
        """lambda CE + (1 - lambda) sum_s alpha_s CE of the sources' answers."""
        other = beside(batch, UNLABELLED)
        share = self.kd["lambda"]
        if share == 1:
            return self._supervised(self(batch), batch)
        unlabelled = other or batch
        said = {name: self._said(name, unlabelled, bool(other)) for name in self.aids}
        features = self.features(batch)
        logits = self.backbone.head(features)
        seen = self.features(unlabelled) if other else features
        total = share * self._supervised(logits, batch)
        for name, answers in said.items():
            number = self.zoo.index(name)
            each = soft_cross_entropy(answers, self.aids[name](seen), self.kd["temperature"])
            total = total + (1 - share) * self.alpha[number] * each
        return total

    def _supervised(self, logits: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy of the rows that keep their labels; 0 where a batch has none."""
        labels = batch["labels"]
        if len(self.labelled) > 1:  # known from the first step on
            labels = torch.where(self.labelled[batch[ROWS]], labels, IGNORED)
        if is_shared():  # over all processes there are some
            return self.task_loss(logits, labels)
        known = (labels != IGNORED).any()  # of no labels the mean is no number: then of any, which weigh nothing
        return self.task_loss(logits, torch.where(known, labels, labels.clamp(min=0))) * known

    @torch.no_grad()
    def _said(self, name: str, batch: Batch, apart: bool) -> Tensor:
        """The source's answers (B, C_s)."""
        if name in self.said:
            if apart:
                raise UserError(
                    "Answers are cached of the run's own training rows, not of data beside them.",
                    where=f"method.pseudo_labels=cached, dataset.beside.{UNLABELLED}",
                    remedy="method.pseudo_labels=online",
                )
            return self.said[name][batch[ROWS]]
        reader = self.source(name)
        assert reader is not None
        return self._answers(reader, batch)

    def _answers(self, reader: Reader, batch: Batch) -> Tensor:
        return (wide(reader(batch)) / self.kd["temperature"]).softmax(-1)

    # ---- results
    def conclude(self, context: Context) -> dict[str, Any]:
        metric = self.similarity["metric"]
        lines = [f"{each['source']}: {metric} {each[metric]:.4f}, weight {each['weight']:.4f}" for each in self.table]
        return {"similarity": self.table, "table": [f"similarity of the sources ({metric})", *lines]}


def soft_cross_entropy(answers: Tensor, logits: Tensor, temperature: float = 1.0) -> Tensor:
    """-sum_c q_c log softmax(z / T)_c, mean over rows; q (B, C) probabilities."""
    return F.cross_entropy(wide(logits) / temperature, answers)


def _held(name: str) -> str:
    return f"source_{name}"


def _joined(both: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Features (N, D) and probabilities (N, C) of all batches, in float64."""
    features = torch.cat([each[0] for each in both]).double()
    return features, torch.cat([each[1] for each in both]).double().softmax(-1)
