"""DP4TL: prune a source data set for a target before a large model is pretrained on it.

    target images ──> surrogate ──> nearest source class or cluster ──> hits ──> groups kept ──> rows.json
                      (small, trained once on the whole source: `sources.surrogate`)                 │
                                        a later run: method=pretrain dataset.rows=run:... <──────────┘

Zhang et al., "Selectivity Drives Productivity: Efficient Dataset Pruning for Enhanced Transfer Learning", NeurIPS
2023, arXiv 2310.08782. The run's `dataset` is the target; the source is what the surrogate was trained on.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.data.base import DataModule
from transfer_run.data.rows.subset import write_subset
from transfer_run.errors import UserError
from transfer_run.methods.base import Context, Method
from transfer_run.methods.data_selection.pruning.groups import (
    best,
    centroids,
    class_closeness,
    feature_mapping,
    kept_number,
    label_mapping,
    nearest,
)
from transfer_run.methods.data_selection.pruning.report import draw, selection_table, write_groups
from transfer_run.methods.data_selection.pruning.samples import gradient_norms, median_distance, moderate
from transfer_run.methods.data_selection.pruning.surrogate import in_order, seen_by
from transfer_run.methods.judging import Judging
from transfer_run.methods.work import as_loaded
from transfer_run.task import Task

Mapped = Literal["lm", "fm", "class_means", "random", "random_rows", "moderate", "grand"]
OF_ROWS = ("random_rows", "moderate", "grand")
SURROGATE = "surrogate"
KMEANS = {"k": 1000, "seed": 0}
Ints = NDArray[np.int64]


@dataclass
class Grouping:
    """Every source row's group by split (negative: none), the groups' names, and their centres where they are known."""

    rows: dict[str, Ints]
    names: list[str]
    centres: NDArray[np.float64] | None = None


class DP4TL(Judging):
    """Scores the groups of a source data set by how often target images map to them; keeps the rows of the best.

    Args:
        mapping: lm (the surrogate's label; supervised pretraining) | fm (the nearest centroid of its features;
            self-supervised pretraining). Rivals: class_means (source groups whose mean is closest to the target
            classes' means), random (groups), random_rows, moderate, grand (single training rows; grand averages over
            all sources whose name begins with `surrogate`).
        pruning_ratio: share of the groups (or rows) that is taken out.
        keep_groups: how many groups are kept, instead of the ratio.
        reverse: keep the groups that are used least.
        groups: of the source: its classes, or k-means clusters of the features.
        kmeans: `k` clusters, `seed`.
    """

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        *,
        mapping: Mapped = "lm",
        pruning_ratio: float = 0.6,
        keep_groups: int | None = None,
        reverse: bool = False,
        groups: Literal["classes", "kmeans"] = "classes",
        kmeans: Mapping[str, Any] = KMEANS,
    ) -> None:
        super().__init__(backbone, task)
        _refuse(mapping, groups, keep_groups, pruning_ratio, reverse)
        self.mapping, self.pruning_ratio, self.keep_groups = mapping, pruning_ratio, keep_groups
        self.reverse, self.groups, self.kmeans = reverse, groups, dict(kmeans)

    # ---- the work
    def prepare(self, context: Context) -> None:
        """Map, choose, and write `rows.json`, `groups.csv` and `selection.png` into the run's folder."""
        begin = time.perf_counter()
        data, model = context.load_data(SURROGATE), context.load_source(SURROGATE)
        record: dict[str, Any] = {"row_scores": "row_scores.npy"}
        self._check(data, model)
        if self.mapping in OF_ROWS:
            kept, scores = self._of_rows(context, data, model)
            rows = {"train": kept}
            np.save(context.folder / record["row_scores"], scores)
        else:
            rows, record = self._of_groups(context, data, model)
        write_subset(context.folder, str(data.dataset["name"]), data.label_names, data.sizes, rows)
        counts = {split: {"kept": len(kept), "of": data.sizes[split]} for split, kept in rows.items()}
        share = 100 * counts["train"]["kept"] / counts["train"]["of"]
        self.results = {
            "mapping": self.mapping,
            "source": str(data.dataset["name"]),
            "rows": counts,
            "seconds": round(time.perf_counter() - begin, 3),
            **record,
        }
        self.results["metrics"] = {"kept/rows_pct": share, **record.pop("metrics", {})}
        self.results["table"] = selection_table(self.results)
        context.log(self.results["table"][0])

    def rehearse(self, batch: Batch) -> Sequence[str]:
        """The surrogate beside the run's backbone, which is of its kind, and one batch of its pass."""
        surrogate = as_loaded(self)
        with torch.no_grad():
            self.features(batch)
        del surrogate
        lines = ["what is found of all samples (features, groups, scores), in CPU memory"]
        return [*lines, "gradients for the norms of method.mapping=grand"] if self.mapping == "grand" else lines

    def _check(self, data: DataModule, model: Method) -> None:
        own, other = self.backbone.config.get("name"), model.backbone.config.get("name")
        if own != other:
            raise UserError(
                f"The surrogate is a {other}, and the target is read for a {own}.",
                where=f"backbone={own}",
                remedy=f"backbone={other}",
            )
        if not model.form.classes or "train" not in data.sizes:
            raise UserError(
                f"The surrogate was trained on {data.dataset['name']}, which has no classes.",
                where=f"sources.{SURROGATE}",
                remedy="name a run on a classification data set",
            )

    # ---- groups
    def _of_groups(self, context: Context, data: DataModule, model: Method) -> tuple[dict[str, Ints], dict[str, Any]]:
        grouping = self._grouping(context, data, model)
        scores = self._scores(context, data, model, grouping)
        count = len(grouping.names)
        kept = best(scores, kept_number(count, self.pruning_ratio, self.keep_groups), reverse=self.reverse)
        rows = {split: np.flatnonzero(np.isin(groups, kept)) for split, groups in grouping.rows.items()}
        sizes = np.bincount(grouping.rows["train"][grouping.rows["train"] >= 0], minlength=count)
        unused = int((scores[kept] == 0).sum()) if self.mapping in ("lm", "fm") else 0
        if unused:
            context.log(
                f"{unused} of the {len(kept)} kept groups were hit by no target sample (ties: the lower number)"
            )
        write_groups(context.folder / "groups.csv", grouping.names, scores, sizes, kept)
        draw(context.folder / "selection.png", grouping.names, scores, kept, self.mapping)
        record = {
            "groups": {"kept": len(kept), "of": count, "unused_kept": unused},
            "kept_groups": [grouping.names[group] for group in kept],
            "scores": {
                name: float(score) if np.isfinite(score) else None
                for name, score in zip(grouping.names, scores, strict=True)
            },
            "picture": "selection.png",
            "metrics": {"kept/groups_pct": 100 * len(kept) / count},
        }
        return rows, record

    def _grouping(self, context: Context, data: DataModule, model: Method) -> Grouping:
        if self.groups == "classes":
            return Grouping({split: data.labels(split) for split in data.sizes}, list(model.task.label_names))
        from sklearn.cluster import KMeans

        train = seen_by(model, _in_order(context, model, data, "train"))[0]
        count = int(self.kmeans["k"])
        if count > len(train):
            raise UserError(
                f"{len(train)} training images cannot make {count} clusters.",
                where=f"method.kmeans.k={count}",
                remedy="fewer clusters",
            )
        found = KMeans(count, n_init=1, random_state=int(self.kmeans["seed"])).fit(train)
        centres = centroids(train, found.labels_.astype(np.int64), count)
        rows = {"train": found.labels_.astype(np.int64)}
        for split in data.sizes.keys() - {"train"}:
            rows[split] = nearest(seen_by(model, _in_order(context, model, data, split))[0], centres)
        return Grouping(rows, [f"cluster {i}" for i in range(count)], centres)

    def _scores(
        self, context: Context, data: DataModule, model: Method, grouping: Grouping
    ) -> NDArray[np.float64] | Ints:
        count = len(grouping.names)
        if self.mapping == "random":
            return np.random.default_rng(context.seed).permutation(count)
        target, labels = seen_by(
            model,
            context.work.follow("target batches", context.batches("train", context.batch_size)),
            logits=self.mapping == "lm",
        )
        if self.mapping == "lm":
            return label_mapping(target)
        centres = grouping.centres
        if centres is None:
            source = seen_by(model, _in_order(context, model, data, "train"))[0]
            centres = centroids(source, grouping.rows["train"], count)
        if self.mapping == "fm":
            return feature_mapping(target, centres)
        return class_closeness(centres, centroids(target, labels, self.task.num_labels))

    # ---- single rows
    def _of_rows(self, context: Context, data: DataModule, model: Method) -> tuple[Ints, NDArray[np.float64]]:
        labels = data.labels("train")
        number = kept_number(len(labels), self.pruning_ratio, None)
        if self.mapping == "moderate":
            features = seen_by(model, _in_order(context, model, data, "train"))[0]
            scores = median_distance(features, labels)
            return moderate(scores, self.pruning_ratio), scores
        if self.mapping == "random_rows":
            scores = np.random.default_rng(context.seed).permutation(len(labels)).astype(np.float64)
        else:
            names = [name for name in context.sources if name.startswith(SURROGATE)]
            models = (model if name == SURROGATE else context.load_source(name) for name in names)
            runs = [gradient_norms(each, _in_order(context, each, data, "train")) for each in models]
            context.log(f"gradient norms averaged over {len(runs)} surrogates: {', '.join(names)}")
            scores = np.mean(runs, axis=0)
        return np.sort(best(scores, number, reverse=self.reverse)), scores


def _refuse(mapping: str, groups: str, keep_groups: int | None, ratio: float, reverse: bool) -> None:
    """Options that contradict each other."""
    if mapping == "lm" and groups == "kmeans":
        raise UserError(
            "Label mapping needs the surrogate's classes, k-means makes clusters without labels.",
            where="method.mapping=lm, method.groups=kmeans",
            remedy="method.mapping=fm",
        )
    if mapping in OF_ROWS and (keep_groups is not None or groups == "kmeans"):
        raise UserError(
            f"method.mapping={mapping} keeps single rows, not groups.",
            where="method.keep_groups, method.groups",
            remedy="method.pruning_ratio says how many are pruned",
        )
    if mapping == "moderate" and reverse:
        raise UserError("moderate keeps the middle, which has no reverse.", where="method.reverse=true")
    if ratio >= 1 and keep_groups is None:
        raise UserError("Nothing would be kept.", where=f"method.pruning_ratio={ratio}", remedy="a ratio below 1")


def _in_order(context: Context, model: Method, data: DataModule, split: str) -> Iterator[Batch]:
    """The source's rows one after the other, told of."""
    return context.work.follow(f"source batches of {split}", in_order(model, data, split, context.batch_size))
