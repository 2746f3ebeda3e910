"""How transferable is each layer: networks cut after layer n, copied below the cut, trained anew above it.

    base A ──layers 1..n──> [frozen | learning] + new layers n+1..L ── trained on B ──> AnB, AnB+   transfer
    base B ──layers 1..n──> [frozen | learning] + new layers n+1..L ── trained on B ──> BnB, BnB+   selffer
    random weights ───────> [frozen]            + new layers n+1..L ── all classes ───> random

    base - BnB: what is lost by cutting neighbours that have adapted to each other     BnB - AnB: specificity to A
    AnB+ - base: what transfer leaves after fine-tuning                                BnB+ - base: the check on it

Yosinski, Clune, Bengio, Lipson, "How transferable are features in deep neural networks?", NIPS 2014, arXiv 1411.1792.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import repeat as again
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.errors import UserError, nearest_names
from transfer_run.files import read_json, write_json
from transfer_run.methods.base import Context, Method
from transfer_run.methods.judging import Judging
from transfer_run.methods.transferability.layers.networks import (
    ALL,
    TREATMENTS,
    Network,
    accuracy,
    best_mean,
    fit,
    layers,
    networks,
    relabelled,
    seed_of,
    start,
)
from transfer_run.methods.transferability.layers.report import draw, results_of, write_curves
from transfer_run.methods.transferability.layers.splits import halves, rows_of
from transfer_run.methods.work import Rehearsed
from transfer_run.task import Task

SPLIT = {"kind": "random", "seed": 0, "fraction": 0.5, "classes": None}
RECIPE = {
    "epochs": 60, "steps": None, "lr": 0.05, "momentum": 0.9, "weight_decay": 0.0, "bias_lr": 1.0, "factor": 0.1,
    "factor_every": None, "measure_every": None,
}  # fmt: skip
RECORDS = "networks"
REMEDY = "delete it, and the network is trained again"


class LayerTransferability(Judging):
    """Trains the bases and all cut networks of the backbone's architecture from random weights; makes no model.

    Args:
        cuts: after which layers; None: after every one but the last. A layer is a stage with weights: the embedding,
            each block, the final norm where there is one; the head is the last and is always new.
        treatments: of `networks.TREATMENTS`.
        both_ways: A and B change places, too: BnA and AnA are further samples (random splits) or curves of their own.
        repeats: how often all of it is done, each time with other random numbers and, if random, another split.
        split: see `splits.halves`.
        per_class: training images of each class, at most; None: all.
        head_classes: outputs of every head; None: as many as the classes that it learns. The paper's had 1000.
        measured_on: the split whose rows of the target's classes a network is measured on while it trains.
        recipe: SGD of every network. `epochs`, or `steps` instead; `bias_lr` times the rate for biases and norms,
            which have no weight decay; the rate times `factor` every `factor_every` steps; an evaluation every
            `measure_every` steps (None: every epoch).
    """

    def __init__(
        self,
        backbone: Backbone,
        task: Task,
        *,
        cuts: Sequence[int] | None = None,
        treatments: Sequence[str] = TREATMENTS,
        both_ways: bool = True,
        repeats: int = 1,
        split: Mapping[str, Any] = SPLIT,
        per_class: int | None = None,
        head_classes: int | None = None,
        measured_on: Literal["validation", "test"] = "validation",
        recipe: Mapping[str, Any] = RECIPE,
    ) -> None:
        super().__init__(backbone, task)
        for name in treatments:
            if name not in TREATMENTS:
                near = nearest_names(str(name), TREATMENTS) or list(TREATMENTS)
                raise UserError(f"There is no treatment {name!r}.", where="method.treatments", nearest=near)
        last = len(layers(self)) - 1
        self.cuts = list(range(1, last + 1)) if cuts is None else sorted(set(cuts))
        if any(not 1 <= cut <= last for cut in self.cuts):
            raise UserError(
                f"{backbone.config.get('name')} has {last + 1} layers: {', '.join(layers(self))}.",
                where=f"method.cuts={list(cuts or ())}",
                remedy=f"cuts from 1 to {last}, or null for all of them",
            )
        self.treatments, self.both_ways, self.repeats = list(dict.fromkeys(treatments)), both_ways, repeats
        self.split, self.per_class, self.head_classes = dict(split), per_class, head_classes
        self.measured_on, self.recipe = measured_on, {**RECIPE, **recipe}
        self.pooled = self.split["kind"] == "random"
        if self.treatments != ["random"]:
            self._check_heads(halves(self.split, task, 0))

    def _check_heads(self, classes: Mapping[str, Sequence[int]]) -> None:
        most = max(map(len, classes.values()))
        most = self.task.num_labels if "random" in self.treatments else most
        if self.head_classes is not None and self.head_classes < most:
            raise UserError(
                f"A head of {self.head_classes} outputs cannot answer {most} classes.",
                where="method.head_classes",
                remedy=f"{most} or more, or null",
            )

    # ---- the work
    def prepare(self, context: Context) -> None:
        """Train every network, each a piece of work that is gone on with; writes curves and the picture."""
        found: dict[Network, list[float]] = {}
        splits: list[dict[str, list[str]]] = []
        for repeat in range(self.repeats):
            classes = self._classes(repeat)
            splits.append({half: [self.task.label_names[c] for c in classes[half]] for half in ("A", "B")})
            found |= self._repeat(repeat, classes, context)
        write_curves(context.folder / "curves.csv", found)
        self.results = results_of({network: best_mean(curve) for network, curve in found.items()}, self.pooled)
        draw(context.folder / "layers.png", self.results["curves"], layers(self))
        self.results |= {
            "layers": layers(self),
            "last": results_of({network: curve[-1] for network, curve in found.items()}, self.pooled)["curves"],
            "splits": splits if self.treatments != ["random"] else [],
            "measured_on": self.measured_on,
            "picture": "layers.png",
        }
        for line in self.results["table"]:
            context.log(line)

    def rehearse(self, batch: Batch) -> Sequence[str]:
        """Two steps of the network that needs most: everything learns, with both bases beside it."""
        classes = self._classes(0)
        transfers = [name for name in self.treatments if name != "random"]
        most = max((len(classes[half]) for half in ("A", "B")), default=0) if transfers else self.task.num_labels
        method = self._headed(most, None)
        bases = [self._copy(method) for _ in range(len({name[0] for name in transfers}))]
        method.train_backbone()
        labels = torch.zeros_like(batch["labels"])
        seen = {**batch, "labels": labels}
        fit(method, "network", self.recipe, 2, lambda first: again(seen), lambda: 0.0, Rehearsed(), 2)
        del bases
        return ["the weights of a new network beside the one before, while its layers are drawn"]

    def _classes(self, repeat: int) -> dict[str, list[int]]:
        everything = list(range(self.task.num_labels))
        if self.treatments == ["random"]:
            return {"A": [], "B": [], ALL: everything}
        return {**halves(self.split, self.task, repeat), ALL: everything}

    def _repeat(
        self, repeat: int, classes: Mapping[str, Sequence[int]], context: Context
    ) -> dict[Network, list[float]]:
        """The curves of one repeat; a network whose curve is written is not trained again."""
        folder = context.folder / RECORDS
        folder.mkdir(exist_ok=True)
        wanted = networks(repeat, self.cuts, self.treatments, self.both_ways)
        found = {each: _read(path) for each in wanted if (path := folder / f"{each.name}.json").is_file()}
        if len(found) == len(wanted):
            return {each: found[each] for each in wanted}
        bases: dict[str, dict[str, Tensor]] = {}
        for each in wanted:
            is_base = each.cut == 0 and each.target != ALL
            if each in found and not is_base:
                continue
            method = self._headed(len(classes[each.target]), classes[each.target])
            base = None if each.source is None else bases[each.source]
            found[each] = self._train(each, method, base, classes[each.target], context)
            if is_base:
                bases[each.target] = self._copy(method)
            else:
                context.work.forget(each.name)
            write_json(folder / f"{each.name}.json", {"network": vars(each), "curve": found[each]})
            context.log(f"{each.name}: {100 * best_mean(found[each]):.2f} %")
        for half in bases:
            context.work.forget(Network(repeat, half).name)
        return {each: found[each] for each in wanted}

    def _train(
        self,
        network: Network,
        method: Method,
        base: Mapping[str, Tensor] | None,
        classes: Sequence[int],
        context: Context,
    ) -> list[float]:
        """The curve of one network, which has learned when this returns."""
        seed = int(self.split["seed"]) + network.repeat
        rows = {
            "train": rows_of(context.data, "train", classes, self.per_class, seed),
            self.measured_on: rows_of(context.data, self.measured_on, classes, None, seed),
        }
        part, size = context.data.part(rows), context.batch_size
        epoch = -(-len(rows["train"]) // size)
        steps = self.recipe["steps"] or int(self.recipe["epochs"]) * epoch
        start(method, network, base, seed_of(context.seed, network.name))

        def batches(first: int) -> Iterator[Batch]:
            """Every repeat reads in orders of its own."""
            begin = first + network.repeat * epoch * 10_000
            return relabelled(context.endless("train", size, begin, data=part, augment=True), classes)

        def measured() -> float:
            return accuracy(method, relabelled(context.batches(self.measured_on, size, data=part), classes))

        every = self.recipe["measure_every"] or epoch
        return fit(method, network.name, self.recipe, steps, batches, measured, context.work, every)

    # ---- networks
    def _headed(self, count: int, classes: Sequence[int] | None) -> Method:
        """The backbone under a head for so many classes; every network has its weights there in its turn."""
        outputs, given = self.head_classes or count, self.task.class_weights
        weights = tuple(given[c] for c in classes) if given and classes is not None else ()
        weights += (1.0,) * (outputs - len(weights) if weights else 0)
        return Method(self.backbone, replace(self.task, num_labels=outputs, label_names=(), class_weights=weights))

    def _copy(self, method: Method) -> dict[str, Tensor]:
        """A trained base, on the device."""
        return {name: tensor.detach().clone() for name, tensor in method.backbone.state_dict().items()}


def _read(path: Path) -> list[float]:
    return [float(value) for value in read_json(path, REMEDY)["curve"]]
