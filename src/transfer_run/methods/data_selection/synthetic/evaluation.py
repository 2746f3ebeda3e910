"""How good a small training set is: fresh networks learn it alone and are tested on real images.

SGD with momentum and weight decay on differentiably augmented images; behind half of the epochs the rate is multiplied
and the momentum is another one, with an empty buffer (Shen, Yang, Lam, arXiv 2310.10541, evaluation of the release).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD

from transfer_run.hardware.steps import Steps
from transfer_run.methods.data_selection.synthetic.augmentation import varied
from transfer_run.methods.data_selection.trajectories.network import FlatNetwork
from transfer_run.methods.work import State, Work


@dataclass(frozen=True)
class Recipe:
    """How a fresh network learns the set.

    Attributes:
        epochs: passes over it; one more is done, as released.
        every: epochs between two tests; the last epoch is tested, too.
        late_factor, late_momentum: of the rate and the momentum behind epoch `epochs // 2 + 1`.
    """

    epochs: int
    batch_size: int
    every: int
    momentum: float
    weight_decay: float
    late_factor: float
    late_momentum: float

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Recipe:
        return cls(**{name: settings[name] for name in cls.__dataclass_fields__})


def learned(
    name: str,
    network: FlatNetwork,
    images: Tensor,
    labels: Tensor,
    rate: float,
    recipe: Recipe,
    operations: Sequence[str],
    accuracy: Callable[[], float],
    work: Work,
) -> list[float]:
    """Train the network's own weights on the set; the accuracies that `accuracy` found, the last one at the end."""
    size = min(recipe.batch_size, len(images))
    each = -(-len(images) // size)
    late, epochs = recipe.epochs // 2 + 2, recipe.epochs + 1
    network.method.train_backbone()
    optimizer = SGD(network.method.parameters(), rate, recipe.momentum, weight_decay=recipe.weight_decay)
    taken, vary = Steps({"sgd": optimizer}), varied(operations)
    order = torch.arange(len(images))
    tested = sorted({*range(0, epochs, recipe.every), epochs - 1})
    curve = torch.zeros(len(tested))

    def step(number: int) -> Tensor:
        epoch, place = divmod(number, each)
        if place == 0 and each > 1:
            order.copy_(torch.randperm(len(images)))
        for group in optimizer.param_groups:
            after = epoch >= late
            group["lr"] = rate * (recipe.late_factor if after else 1.0)
            group["momentum"] = recipe.late_momentum if after else recipe.momentum
        if epoch == late and place == 0:
            optimizer.state.clear()
        rows = order[place * size : (place + 1) * size].to(images.device)
        seen = vary(images[rows] if each > 1 else images)
        loss = network.method.task_loss(network.own(seen), labels[rows] if each > 1 else labels)
        taken.backward(loss)
        taken.step()
        if place + 1 == each and epoch in tested:
            curve[tested.index(epoch)] = accuracy()
        return loss.detach()

    state: State = {"network": network.method, "sgd": optimizer, "order": order, "curve": curve}
    work.loop(name, step, epochs * each, state)
    optimizer.state.clear()  # optimizers end when Python next looks for circles
    return [float(value) for value in curve]
