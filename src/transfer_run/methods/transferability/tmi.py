"""TMI and its rivals: rank backbones, or the blocks of one, for a data set without fine-tuning any of them.

    train split ──> backbone (frozen, eval, once) ──> features (N, D) ──> scores ──> ranking
                        each of the pool, or each block                       └─ against fine-tuned accuracy, if known

Xu and Kang, "Fast and Accurate Transferability Measurement by Evaluating Intra-class Feature Variance", ICCV 2023,
arXiv 2308.05986. The scores themselves are in `scores/`, one a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.data.scores.direction import Better
from transfer_run.errors import UserError, nearest_names
from transfer_run.memory.tracker import follows_host
from transfer_run.methods.base import Candidate, Context
from transfer_run.methods.judging import Judging
from transfer_run.methods.transfer_scores.all import OF_SOURCE, SCORES, Material, Scored, score_all
from transfer_run.methods.transferability.ranking.extraction import (
    HEAD_INPUT,
    BlockFeatures,
    Extraction,
    Tap,
    extract,
    tap_features,
)
from transfer_run.methods.transferability.ranking.picture import draw
from transfer_run.methods.transferability.ranking.ranking import agreement, missing_taus, ranking, ranking_table
from transfer_run.methods.transferability.ranking.reference import accuracies_of_runs, given_accuracies
from transfer_run.methods.work import alone
from transfer_run.task import Task

PICTURE = "ranking.png"
ALL_SCORES = list(SCORES)
TMI_SETTINGS = {"k": 3, "norm": "max", "min_distance": 1.0, "divide_by_classes": True}
LOGME_SETTINGS = {"variant": "fixed_point", "full_rank_term": True}
GBC_SETTINGS = {"kind": "spherical", "pca": 64, "logdet_times_dim": True}
TRANSRATE_SETTINGS = {"epsilon": 1.0e-4, "weighted": False}
PARC_SETTINGS = {"pca": None, "samples": 500}
LFC_SETTINGS = {"norm": "fro"}


class TMI(Judging):
    """Scores the run's backbone and those of the pool; takes no step and makes no model.

    Args:
        scores: names of `scoring.SCORES`; the first one orders the printed table.
        tap: `head_input` ranks backbones; `all_blocks` ranks the output of every block as well.
        block_features: how a block's output becomes one row per sample (`extraction.extract`).
        pool: further backbones by name, each by its name or as NAME:WEIGHTS (vit_tiny:random).
        reference: fine-tuned accuracies: a mapping from names of the ranking, or the path of a JSON file.
        reference_method: finished runs of this method on the same data set and from the same weights, found beside
            this run, count as reference where `reference` says nothing; null: only runs named as `sources`.
        max_samples: labelled samples taken of the training split; None: all.
        tmi, logme, gbc, transrate, parc, lfc: keyword arguments of the scores' functions; `parc.samples` is the
            size of the balanced subset that PARC, whose memory grows with its square, looks at.
    """

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        *,
        scores: Sequence[str] = ALL_SCORES,
        tap: Tap = "head_input",
        block_features: BlockFeatures = "auto",
        pool: Sequence[str] | None = None,
        reference: Mapping[str, Any] | str | None = None,
        reference_method: str | None = "full",
        max_samples: int | None = None,
        tmi: Mapping[str, Any] = TMI_SETTINGS,
        logme: Mapping[str, Any] = LOGME_SETTINGS,
        gbc: Mapping[str, Any] = GBC_SETTINGS,
        transrate: Mapping[str, Any] = TRANSRATE_SETTINGS,
        parc: Mapping[str, Any] = PARC_SETTINGS,
        lfc: Mapping[str, Any] = LFC_SETTINGS,
    ) -> None:
        super().__init__(backbone, task)
        for name in scores:
            if name not in SCORES:
                near = nearest_names(name, SCORES)
                raise UserError(f"There is no score {name!r}.", where="method.scores", nearest=near or ALL_SCORES)
        self.scores, self.pool = list(dict.fromkeys(scores)), list(pool or ())
        self.tap, self.block_features, self.max_samples = tap, block_features, max_samples
        self.settings = {
            "tmi": tmi, "logme": logme, "gbc": gbc, "transrate": transrate, "parc": parc, "lfc": lfc
        }  # fmt: skip
        self.given = given_accuracies(reference)
        self.reference_method = reference_method
        self.chosen_how: list[str] = []  # where a reference accuracy is one of several runs'

    # ---- the work
    def prepare(self, context: Context) -> None:
        """Extract, score, rank; writes the picture into the run's folder."""
        scored: dict[str, Scored] = {}
        layers: dict[str, list[str]] = {}
        extraction: dict[str, dict[str, Any]] = {}
        checksums: dict[str, str] = {}
        for name, candidate in self._candidates(context):
            found = self._extract(name, candidate, context)
            extraction[name] = _pass_record(found)
            context.log(f"{name}: {len(found.labels)} samples in {found.seconds:.1f} s")
            layers[name] = []
            for tap, features in found.features.items():
                layer = name if tap == HEAD_INPUT else f"{name}/{tap}"
                layers[name].append(layer)
                scored[layer] = self._score(tap, features, found)
                self._warn(layer, scored[layer], features, context.log)
            checksums[name] = str(candidate.backbone.provenance.get("checksum"))
            del candidate, found  # before the next one is built
        accuracies = self._accuracies(context, checksums) | self.given
        self._refuse_strangers(scored, lambda name: name in scored)
        self.results = self._results(scored, accuracies) | {"extraction": extraction}
        self._show(context, accuracies, layers if self.tap == "all_blocks" else {})

    def rehearse(self, batch: Batch) -> Sequence[str]:
        """One batch of the pass of the run's own backbone; what is kept of it lies in CPU memory."""
        self.backbone.eval()
        kept = []
        with torch.no_grad():
            for _, values in tap_features(self.backbone, batch, self.tap, self.block_features):
                kept += [alone(values.float())] if follows_host() else []
        del kept
        lines = ["the features of all samples, in CPU memory, and NumPy's copies while they are scored"]
        if self.pool:
            lines.append(f"the backbones of method.pool ({', '.join(self.pool)}), one after another beside this one")
        return lines

    def _candidates(self, context: Context) -> Iterator[tuple[str, Candidate]]:
        """The run's own backbone, then those of the pool, each built when its turn comes and let go of after it."""
        own = str(self.backbone.config.get("name"))
        builders: dict[str, Callable[[], Candidate]] = {own: lambda: Candidate(self.backbone, context.batches)}
        builders |= {name: context.candidates[name] for name in self.pool if name != own}
        layered = tuple(f"{name}/" for name in builders)
        self._refuse_strangers(builders, lambda name: name in builders or name.startswith(layered))
        for name, build in builders.items():
            yield name, build()

    def _extract(self, name: str, candidate: Candidate, context: Context) -> Extraction:
        return extract(
            candidate.backbone,
            context.work.follow(f"batches of {name}", candidate.batches("train", context.batch_size)),
            tap=self.tap,
            block_features=self.block_features,
            max_samples=self.max_samples,
        )

    def _score(self, tap: str, features: NDArray[np.float32], found: Extraction) -> Scored:
        names = self.scores if tap == HEAD_INPUT else [name for name in self.scores if name not in OF_SOURCE]
        return score_all(Material(features.astype(np.float64), found.labels, found.source), names, self.settings)

    def _warn(self, layer: str, scored: Scored, features: NDArray[np.float32], log: Callable[[str], None]) -> None:
        for reason in dict.fromkeys(scored.skipped.values()):
            names = ", ".join(score for score, why in scored.skipped.items() if why == reason)
            log(f"{layer}: without {names}: {reason}")
        if scored.floored is not None and scored.floored > 0.5:
            log(
                f"{layer}: {scored.floored:.0%} of the distances lie below method.tmi.min_distance, so TMI says "
                f"little but the width of the features ({features.shape[1]})"
            )
        if "hscore" in scored.values and features.shape[0] <= features.shape[1]:
            log(f"{layer}: no more samples than dimensions: hscore is C - 1 for any features, see hscore_reg")

    # ---- fine-tuned accuracies
    @property
    def _better(self) -> Better:
        """Which of two values of the headline is the better one."""
        from transfer_run.data.scores.labels import better_by  # torchmetrics takes seconds to import; a plan needs none

        return better_by(self.task.headline)

    def _accuracies(self, context: Context, checksums: dict[str, str]) -> dict[str, float]:
        own, headline = context.folder, self.task.headline
        named = [path for name, path in context.sources.items() if name != "backbone" and not name.startswith("pool.")]
        tuned, say = context.found.get("tuned", []), self.chosen_how.append
        found = accuracies_of_runs(own, tuned, checksums, headline, self._better, self.reference_method, say)
        return found | accuracies_of_runs(own, named, checksums, headline, self._better, None, say)

    def _refuse_strangers(self, ranked: Iterable[str], known: Callable[[str], bool]) -> None:
        for name in self.given:
            if not known(name):
                raise UserError(
                    f"The reference accuracy of {name!r} belongs to nothing that is ranked.",
                    where="method.reference",
                    nearest=nearest_names(name, ranked) or sorted(ranked),
                )

    # ---- results
    def _results(self, scored: Mapping[str, Scored], accuracies: dict[str, float]) -> dict[str, Any]:
        by_score = {
            score: {name: found.values[score] for name, found in scored.items() if score in found.values}
            for score in self.scores
        }
        by_score = {score: values for score, values in by_score.items() if values}
        divided, better = self.settings["tmi"]["divide_by_classes"], self._better
        return {
            "definition": {"tmi": "H(Z|Y) / classes (released code)" if divided else "H(Z|Y) (paper)"},
            "scores": by_score,
            "ranking": {score: ranking(values) for score, values in by_score.items()},
            "agreement": {score: agreement(values, accuracies, better) for score, values in by_score.items()},
            "reference": accuracies,
            "candidates": {name: asdict(found) for name, found in scored.items()},
        }

    def _show(self, context: Context, accuracies: dict[str, float], layers: dict[str, list[str]]) -> None:
        scores, agreements = self.results["scores"], self.results["agreement"]
        if not scores:
            context.log("no score can be had from this data set and these backbones")
            return
        title = "ranking, higher is better"
        if "tmi" in scores:
            title += f"; tmi is {self.results['definition']['tmi']}"
        self.results["table"] = [title, *ranking_table(scores, accuracies, agreements)]
        self.results["table"] += [*missing_taus(scores, accuracies, agreements), *self.chosen_how]
        for score, order in self.results["ranking"].items():
            context.log(f"by {score}: {', '.join(order)}")
        draw(context.folder / PICTURE, scores, accuracies, agreements, layers)
        self.results["picture"] = PICTURE


def _pass_record(found: Extraction) -> dict[str, Any]:
    """What is recorded of a pass: samples, classes, widths by tap, source classes, seconds."""
    classes = 0 if found.labels.dtype.kind == "f" else len(np.unique(found.labels))
    return {
        "samples": len(found.labels),
        "classes": classes,
        "widths": {tap: values.shape[1] for tap, values in found.features.items()},
        "source_classes": 0 if found.source is None else found.source.shape[1],
        "seconds": round(found.seconds, 3),
    }
