"""Two small methods that take their steps themselves, as a user's own stand outside the package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from transfer_run.backbones.base import Backbone, Batch
from transfer_run.hardware.optimization import Optimization
from transfer_run.hardware.steps import Steps
from transfer_run.methods.base import Method
from transfer_run.task import Task


class Reinforced(Method):
    """A policy masks the columns of an image; it learns by REINFORCE, the classifier by the loss on what is left.

    Args:
        in_turn: two losses and two updates, each to its own parameters, instead of one backward pass for both.
        bias: of the policy; where it is large every column is kept.
    """

    def __init__(self, backbone: Backbone, task: Task, *, in_turn: bool = False, bias: float = 0.0) -> None:
        super().__init__(backbone, task)
        self.in_turn = in_turn
        device = next(backbone.model.parameters()).device
        self.policy = nn.Linear(8, 8, device=device)
        nn.init.constant_(self.policy.bias, bias)
        self.register_buffer("baseline", torch.zeros((), device=device))

    def optimizers(self, config: Mapping[str, Any], epoch_steps: int) -> dict[str, Optimization]:
        policy = list(self.policy.parameters())
        own = {id(p) for p in policy}
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in own]
        settings = {"target": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9, "schedule": "cosine"}
        return {"main": Optimization([{"params": rest}]), "policy": Optimization([{"params": policy}], settings)}

    def step(self, batch: Batch, steps: Steps) -> Tensor:
        images = batch["pixel_values"]
        keep = torch.sigmoid(self.policy(images.mean((1, 2))))
        mask = (torch.rand_like(keep) < keep).to(keep.dtype)
        likelihood = torch.where(mask > 0, keep, 1 - keep).log().mean()
        loss = self.loss({**batch, "pixel_values": images * mask[:, None, None, :]})
        advantage = (loss.detach() - self.baseline) * likelihood  # type: ignore[operator]
        if self.in_turn:
            steps.backward(advantage, "policy")
            steps.step("policy")
            steps.backward(loss, "main")
            steps.step("main")
        else:
            steps.backward(loss + advantage)
            steps.step()
        with torch.no_grad():
            self.baseline.lerp_(loss.detach(), 0.1)  # type: ignore[operator]
        return loss


class Bilevel(Method):
    """The rate of one inner step of the head is learned with the backbone: gradients of gradients."""

    def __init__(self, backbone: Backbone, task: Task) -> None:
        super().__init__(backbone, task)
        self.rate = nn.Parameter(torch.full((), 0.1, device=next(backbone.model.parameters()).device))

    def step(self, batch: Batch, steps: Steps) -> Tensor:
        labels, features, head = batch["labels"], self.features(batch), self.backbone.head
        inner = F.cross_entropy(head(features), labels)
        (slope,) = torch.autograd.grad(inner, [head.weight], create_graph=True)
        outer = F.cross_entropy(F.linear(features.flip(0), head.weight - self.rate * slope, head.bias), labels.flip(0))
        steps.backward(outer)
        steps.step()
        return outer
