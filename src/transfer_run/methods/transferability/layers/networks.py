"""Which networks an experiment trains, and how one is trained.

base          trained on its half from random weights
BnB, AnB      layers 1..n of base B, or of base A, frozen; the others from random weights, trained on B
BnB+, AnB+    the same, but the copied layers learn, too
random        layers 1..n random and frozen, the others trained on all classes
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD

from transfer_run.backbones.base import Batch
from transfer_run.backbones.layer_groups import copy_stages, freeze_stages, reinitialize, stages
from transfer_run.hardware.steps import Steps
from transfer_run.methods.base import Method
from transfer_run.methods.work import Work

TREATMENTS = ("BnB", "AnB", "BnB+", "AnB+", "random")
ALL = "all"
"""The target of the networks that learn every class."""
BEST = 10
"""Evaluations whose mean is a network's accuracy."""


@dataclass(frozen=True)
class Network:
    """One network of the experiment.

    Attributes:
        repeat: which split, or which draw of random numbers.
        target: what it learns: `A`, `B` or `all`.
        source: whose base it is copied from; None: its first layers are random.
        cut: layers that are copied, or stay random; 0: a base.
        learns: do the copied layers learn, too?
    """

    repeat: int
    target: str
    source: str | None = None
    cut: int = 0
    learns: bool = False

    @property
    def name(self) -> str:
        """Of its work and its record: `0-base-B`, `0-A3B+`, `0-random-3`."""
        if self.source is not None:
            return f"{self.repeat}-{self.source}{self.cut}{self.target}{'+' * self.learns}"
        return f"{self.repeat}-base-{self.target}" if self.target != ALL else f"{self.repeat}-random-{self.cut}"

    def curve(self, pooled: bool) -> str:
        """The curve it is a point of; `pooled` takes the halves for each other, as samples of one experiment."""
        if self.target == ALL:
            return "random"
        if self.source is None:
            return "base" if pooled else f"base{self.target}"
        same = self.source == self.target
        ends = ("B" if same else "A", "B") if pooled else (self.source, self.target)
        return f"{ends[0]}n{ends[1]}{'+' * self.learns}"


def networks(repeat: int, cuts: Sequence[int], treatments: Sequence[str], both_ways: bool) -> list[Network]:
    """The networks of one repeat in the order of their trainings: a base before those that are copied from it."""
    targets, found = ("A", "B") if both_ways else ("B",), []
    transfers = [name for name in treatments if name != "random"]
    if transfers:
        needs_other = any(name.startswith("A") for name in transfers)
        found += [Network(repeat, half) for half in ("A", "B") if half in targets or needs_other]
    for cut in cuts:
        for name in transfers:
            for target in targets:
                other = "A" if target == "B" else "B"
                source = other if name.startswith("A") else target
                found.append(Network(repeat, target, source, cut, name.endswith("+")))
    if "random" in treatments:
        found += [Network(repeat, ALL, None, cut) for cut in (0, *cuts)]
    return found


def layers(method: Method) -> list[str]:
    """The layers of a network with weights that its task runs, in order, the head last: what is cut between."""
    idle = {id(parameter) for parameter in method.idle_parameters()}
    runs = {name for name, each in method.backbone.named_parameters(remove_duplicate=False) if id(each) not in idle}
    return [stage for stage, names in stages(method.backbone).items() if runs & set(names)]


def start(method: Method, network: Network, base: Mapping[str, Tensor] | None, seed: int) -> None:
    """Give a network its first weights: fresh ones of `seed`, the copied ones of `base`; freeze what does not learn.

    Args:
        method: the backbone under the head of the target's classes; its weights are overwritten.
        base: the tensors of the trained backbone that `network.source` names.
    """
    order = layers(method)
    method.train_backbone()
    reinitialize(method.backbone, stages(method.backbone), seed)
    kept = order[: network.cut]
    if base is not None:
        copy_stages(method.backbone, base, kept)
    if not network.learns:
        freeze_stages(method.backbone, kept)


def optimizer_of(method: Method, settings: Mapping[str, Any]) -> SGD:
    """SGD over what learns: weight decay on weights alone, biases and norms with a rate of their own."""
    learning = [p for p in method.parameters() if p.requires_grad]
    rate = float(settings["lr"])
    weights = {"params": [p for p in learning if p.ndim > 1], "weight_decay": float(settings["weight_decay"])}
    vectors = {"params": [p for p in learning if p.ndim <= 1], "lr": rate * float(settings["bias_lr"])}
    groups = [group for group in (weights, vectors) if group["params"]]
    return SGD(groups, lr=rate, momentum=float(settings["momentum"]))


def fit(
    method: Method,
    name: str,
    settings: Mapping[str, Any],
    steps: int,
    batches: Callable[[int], Iterator[Batch]],
    accuracy: Callable[[], float],
    work: Work,
    every: int,
) -> list[float]:
    """Train a network for so many steps; its accuracy after every `every` of them, and after the last.

    Args:
        batches: number of the first step -> its batch and those that follow, labels counted from 0.
        accuracy: of the network as it stands.
        work: where it is trained: saved, gone on with, watched.
    """
    optimizer = optimizer_of(method, settings)
    taken = Steps({"sgd": optimizer})
    rates = [group["lr"] for group in optimizer.param_groups]
    curve = torch.zeros(-(-steps // every))
    source: Iterator[Batch] | None = None
    method.train()

    def step(number: int) -> Tensor:
        nonlocal source
        source = batches(number) if source is None else source
        factor = float(settings["factor"]) ** (number // settings["factor_every"] if settings["factor_every"] else 0)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        loss = method.training_loss(next(source))
        taken.backward(loss)
        taken.step()
        if (number + 1) % every == 0 or number + 1 == steps:
            method.eval()
            curve[number // every] = accuracy()
            method.train()
        return loss.detach()

    work.loop(name, step, steps, {"network": method, "sgd": optimizer, "curve": curve})
    return [float(value) for value in curve]


def best_mean(curve: Sequence[float]) -> float:
    """The mean of a network's ten best evaluations (of all where there are fewer), as the paper counts it."""
    best = sorted(curve)[-BEST:]
    return sum(best) / len(best)


def relabelled(batches: Iterable[Batch], classes: Sequence[int]) -> Iterator[Batch]:
    """The same batches, their classes counted from 0 in the order of `classes`."""
    for batch in batches:
        labels = batch["labels"]
        numbers = labels.new_full((max(classes) + 1,), -100)
        numbers[torch.tensor(classes, device=labels.device)] = torch.arange(len(classes), device=labels.device)
        yield {**batch, "labels": torch.where(labels < 0, labels, numbers[labels.clamp(min=0)])}


@torch.no_grad()
def accuracy(method: Method, batches: Iterable[Batch]) -> float:
    """The share of the rows whose class is predicted."""
    right = rows = 0
    for batch in batches:
        right += int((method.predict(batch) == batch["labels"]).sum())
        rows += len(batch["labels"])
    return right / rows


def seed_of(seed: int, name: str) -> int:
    """The seed of a network's new layers: another one for every network of every run."""
    return int.from_bytes(hashlib.sha256(f"{seed} weights of {name}".encode()).digest()[:4], "big")
