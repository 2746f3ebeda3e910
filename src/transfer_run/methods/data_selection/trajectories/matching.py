"""Trajectory matching: a student's way from an expert's weights, its distance from the expert's own, the gradients.

    theta_0 ── N steps of SGD on the synthetic images, step size eta ──> theta_N
    b_n = mu b_{n-1} + g_n        theta_{n+1} = theta_n - eta b_n         g_n: of the mean cross-entropy
    L = |theta_N - theta*_{t+M}|^2 / |theta_0 - theta*_{t+M}|^2 + sum_i beta_i (the same after N // M * i steps)

Two ways to the same gradients to the images and to eta: `whole` keeps the graph of all N steps, `stepwise` (the chain
rule by hand) one step's, beside 2 sqrt(N) students; its price is two more passes forward.
Equations: Cazenavette et al., CVPR 2022, arXiv 2203.11932, algorithm 1; Shen, Yang, Lam, arXiv 2310.10541.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Network = Callable[[Tensor, Tensor], Tensor]
"""(theta, images) -> logits."""
State = tuple[Tensor, ...]
"""A student between two steps: its weights and, where there is momentum, the buffer."""


@dataclass(frozen=True)
class Step:
    """What one step reads: which images (None: all), and how they are varied."""

    rows: Tensor | None = None
    vary: Callable[[Tensor], Tensor] = lambda images: images


@dataclass(frozen=True)
class Goal:
    """Where a student should be after so many steps, and what the distance weighs."""

    after: int
    theta: Tensor
    weight: float = 1.0


@dataclass(frozen=True)
class Student:
    """How a student learns; `advance` is one of its steps.

    Attributes:
        labels: of all images (n,).
        factor: of the cross-entropy (`balance`).
        loss: (logits, labels) -> the mean cross-entropy.
    """

    network: Network
    labels: Tensor
    steps: Sequence[Step]
    momentum: float = 0.0
    factor: float = 1.0
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy

    def begin(self, theta: Tensor) -> State:
        return (theta, torch.zeros_like(theta)) if self.momentum else (theta,)

    def advance(self, state: State, number: int, images: Tensor, rate: Tensor, *, graph: bool) -> State:
        """The state after step `number`; with `graph` it can be differentiated, the gradient in it too."""
        theta, step = state[0], self.steps[number]
        if not graph or not theta.requires_grad:
            theta = theta.detach().requires_grad_()
        chosen, labels = (images, self.labels) if step.rows is None else (images[step.rows], self.labels[step.rows])
        loss = self.loss(self.network(theta, step.vary(chosen)), labels)
        if self.factor != 1:
            loss = self.factor * loss
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=graph)
        with torch.set_grad_enabled(graph):
            if not self.momentum:
                return (theta - rate * gradient,)
            buffer = self.momentum * state[1] + gradient
            return theta - rate * buffer, buffer


@dataclass(frozen=True)
class Matched:
    """The loss of one start, each goal's part of it without its weight, and the gradients."""

    loss: Tensor
    terms: list[Tensor]
    images: Tensor
    rate: Tensor


def balance(start: int, most: int) -> float:
    """The factor of a student's loss that begins at epoch `start` of `most`: by log_5, below 1 for early starts."""
    half = most // 2
    return math.log(start - half + 8, 5) if start >= half else 1 / math.log(half - start + 8, 5)


def goals(targets: Tensor, steps: int, middle: str) -> list[Goal]:
    """The goals of a student of so many steps.

    Args:
        targets: the expert's weights of the epochs t+1, ..., t+M (M, P).
        middle: `none`, `sum` (every weight is 1) or `adaptive` (i/M).
    """
    count = len(targets)
    found = [] if middle == "none" else [
        Goal(steps // count * i, targets[i - 1], i / count if middle == "adaptive" else 1.0) for i in range(1, count)
    ]  # fmt: skip
    return [*found, Goal(steps, targets[-1])]


def whole(student: Student, images: Tensor, rate: Tensor, start: Tensor, aims: Sequence[Goal],
          truncate: int | None = None) -> Matched:  # fmt: skip
    """The loss and its gradients, the graph of all steps kept.

    Args:
        images: (n, C, H, W), rate: (): leaves with gradients.
        start: theta_0 (P,), without a gradient; the denominators' too.
        truncate: only so many last steps are differentiated; None: all.
    """
    first, count = _first(student, truncate), len(student.steps)
    state = student.begin(start.detach().requires_grad_())
    terms: list[Tensor] = [start.new_zeros(())] * len(aims)
    for number in range(count):
        state = student.advance(state, number, images, rate, graph=number >= first)
        for place, aim in enumerate(aims):
            if aim.after == number + 1:
                terms[place] = distance(state[0], aim.theta, start)
    loss = torch.stack([aim.weight * term for aim, term in zip(aims, terms, strict=True)]).sum()
    of_images, of_rate = torch.autograd.grad(loss, (images, rate))
    return Matched(loss.detach(), [term.detach() for term in terms], of_images, of_rate)


def stepwise(student: Student, images: Tensor, rate: Tensor, start: Tensor, aims: Sequence[Goal],
             truncate: int | None = None) -> Matched:  # fmt: skip
    """As `whole`, with the graph of one step at a time: every step is taken again on the way back."""
    first, count = _first(student, truncate), len(student.steps)
    length = math.isqrt(max(0, count - first - 1)) + 1
    state, kept, terms = student.begin(start), dict[int, State](), dict[int, Tensor]()
    pulls: dict[int, Tensor] = {}
    for number in range(count):
        if number >= first and (number - first) % length == 0:
            kept[number] = state
        state = student.advance(state, number, images.detach(), rate.detach(), graph=False)
        for place, aim in enumerate(aims):
            if aim.after == number + 1:
                theta = state[0].detach().requires_grad_()
                terms[place] = distance(theta, aim.theta, start)
                if number >= first:
                    (pull,) = torch.autograd.grad(aim.weight * terms[place], theta)
                    pulls[number + 1] = pulls[number + 1] + pull if number + 1 in pulls else pull
    loss = torch.stack([aim.weight * terms[place].detach() for place, aim in enumerate(aims)]).sum()
    of_images, of_rate = _back(student, images, rate, kept, pulls)
    return Matched(loss, [terms[place].detach() for place in range(len(aims))], of_images, of_rate)


def _back(
    student: Student, images: Tensor, rate: Tensor, kept: dict[int, State], pulls: dict[int, Tensor]
) -> tuple[Tensor, Tensor]:
    """Gradients to the images and to the rate, from the last step to the first, a stretch of steps after the other.

    Args:
        kept: the state before the first step of every stretch; used up.
        pulls: steps done -> the gradient of the distances there to the weights; used up.
    """
    end = len(student.steps)
    of_images, of_rate = torch.zeros_like(images), torch.zeros_like(rate)
    pulled: State | None = None
    for begin in sorted(kept, reverse=True):
        states = [kept.pop(begin)]
        for number in range(begin, end - 1):
            states.append(student.advance(states[-1], number, images.detach(), rate.detach(), graph=False))
        for number in reversed(range(begin, end)):
            state = tuple(tensor.detach().requires_grad_() for tensor in states.pop())
            after = student.advance(state, number, images, rate, graph=True)
            if pulled is None:
                pulled = tuple(torch.zeros_like(tensor) for tensor in after)
            if number + 1 in pulls:
                pulled = (pulled[0] + pulls.pop(number + 1), *pulled[1:])
            *back, to_images, to_rate = torch.autograd.grad(after, (*state, images, rate), pulled)
            pulled, of_images, of_rate = tuple(back), of_images + to_images, of_rate + to_rate
        end = begin
    return of_images, of_rate


def distance(theta: Tensor, target: Tensor, start: Tensor) -> Tensor:
    """|theta - target|^2 / |start - target|^2, a scalar."""
    return (theta - target).square().sum() / (start - target).square().sum()


def _first(student: Student, truncate: int | None) -> int:
    """The first step that is differentiated."""
    return 0 if truncate is None else max(0, len(student.steps) - truncate)
