"""What an optimizer moves, how, and along which schedule; the class is what `optimizer.about.target` names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from transfer_run.errors import UserError
from transfer_run.targets import load_class

OF_RUN = ("about", "name", "schedule", "interval", "warmup", "no_decay_1d")
"""Keys of the `optimizer` node that are not arguments of the optimizer's class."""


@dataclass(frozen=True)
class Optimization:
    """What one of a method's optimizers moves, and in what it differs from the run's `optimizer` node.

    Attributes:
        groups: parameter groups as in torch.optim; a group's own `lr` and `weight_decay` win.
        settings: keys of the node that are otherwise here (`lr`, `schedule`, `warmup`, ...). With `target`, the class
            of another optimizer (`torch.optim.SGD`), its arguments are those that stand here, and `lr` and
            `weight_decay` of the node.
        factor: the learning rate's factor at step 0, 1, ...; None: what `schedule` and `warmup` say.
        restart_every: steps after which its states begin anew (continual learning: the next task); None: never.
    """

    groups: list[dict[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    factor: Callable[[int], float] | None = None
    restart_every: int | None = None

    def node(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The complete `optimizer` node of this one."""
        own = dict(self.settings)
        target = own.pop("target", None)
        if target is None:
            return {**config, **own}
        shared = {key: value for key, value in config.items() if key in (*OF_RUN, "lr", "weight_decay")}
        return {**shared, **own, "about": {"target": target}}


def build_optimizer(groups: list[dict[str, Any]], config: Mapping[str, Any]) -> Optimizer:
    """The optimizer over a method's parameter groups; frozen parameters never reach it.

    Args:
        groups: as in `Optimization`.
        config: the `optimizer` node: `about.target`, `no_decay_1d`, the schedule's keys, and what the class takes.

    Raises:
        UserError: there is no such class, or it takes other arguments.
    """
    if config.get("no_decay_1d", False):
        groups = [part for group in groups for part in _split_1d(group)]
    groups = [group for group in groups if group["params"]]
    target = str(config["about"]["target"])
    kind: type[Optimizer] = load_class(target, Optimizer, f"optimizer.about.target: {target}", "optimizer")
    arguments = {key: value for key, value in config.items() if key not in OF_RUN}
    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
    try:
        return kind(groups, **arguments)
    except TypeError as error:
        raise UserError(
            f"{target} cannot be built: {error}.",
            where=f"optimizer: {', '.join(arguments)}",
            remedy="give its config the keys that the class takes",
        ) from error


def _split_1d(group: dict[str, Any]) -> list[dict[str, Any]]:
    """Weight matrices with decay, biases, norms and scalars without."""
    rest = {key: value for key, value in group.items() if key != "params"}
    matrices = [p for p in group["params"] if p.ndim > 1]
    vectors = [p for p in group["params"] if p.ndim <= 1]
    return [{**rest, "params": matrices}, {**rest, "params": vectors, "weight_decay": 0.0}]


def build_optimizers(made: Mapping[str, Optimization], config: Mapping[str, Any]) -> dict[str, Optimizer]:
    """The optimizers of a method by name, from `Method.optimizers` and the run's `optimizer` node."""
    return {name: build_optimizer(one.groups, one.node(config)) for name, one in made.items()}


def schedule_factor(schedule: str, warmup: float, total: int) -> Callable[[int], float]:
    """The learning rate's factor at step k of `total`: a linear rise, then constant, linear or cosine to zero; or
    `one_cycle`, torch's OneCycleLR (a cosine up from 1/25, and down to 1/250,000).

    Args:
        warmup: below 1 a share of `total`, from 1 on a number of steps.
    """
    if schedule == "one_cycle":
        return _one_cycle(warmup if warmup < 1 else warmup / total, total)
    rise = round(warmup * total) if warmup < 1 else int(warmup)

    def factor(step: int) -> float:
        if step < rise:
            return step / rise
        done = (step - rise) / max(1, total - rise)
        if schedule == "linear":
            return max(0.0, 1.0 - done)
        if schedule == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
        return 1.0

    return factor


def _one_cycle(rise: float, total: int) -> Callable[[int], float]:
    """Smith and Topin 2018 (arXiv 1708.07120) as torch's OneCycleLR has it, over `rise` of the steps up."""
    start, end = 1 / 25, 1 / 25 / 1e4
    peak, last = max(rise * total - 1, 1e-9), max(total - 1, 1e-9)

    def factor(step: int) -> float:
        up = step <= peak
        low, done = (start, step / peak) if up else (end, 1 - min(1.0, (step - peak) / max(last - peak, 1e-9)))
        return low + (1 - low) * (1 - math.cos(math.pi * done)) / 2

    return factor


def build_schedule(
    optimizer: Optimizer, config: Mapping[str, Any], total: int, factor: Callable[[int], float] | None = None
) -> LambdaLR:
    """The schedule of `config['schedule']` over `total` steps (or epochs, see `optimizer.interval`), or `factor`."""
    return LambdaLR(optimizer, factor or schedule_factor(config["schedule"], config.get("warmup", 0.0), total))
