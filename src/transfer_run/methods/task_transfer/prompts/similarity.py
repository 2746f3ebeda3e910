"""How alike are two tasks, judged by their trained prompts? What PANDA weighs its teacher by, and what it compares.

    task_embedding   cos of two mean states of the first token, each of the same inputs read behind a task's own prompt
    e_avg            cos of two mean prompts (SPoT, Vu et al. 2022)
    e_tokens         mean cosine of every token of one prompt with every token of the other (SPoT)
    on               overlapping neurons (Su et al. 2022): cos of which neurons of the feed-forwards are active there

A prompt is (length, width): a token's keys and values of all layers side by side.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from transfer_run.backbones.base import Batch
from transfer_run.methods.base import Method
from transfer_run.methods.work import alone

METRICS = ("task_embedding", "e_avg", "e_tokens", "on")


def cosine(one: Tensor, other: Tensor) -> float:
    """Of two vectors; 0 where one of them is nothing."""
    return float(F.cosine_similarity(one.detach().flatten().double(), other.detach().flatten().double(), 0))


def e_avg(one: Tensor, other: Tensor) -> float:
    return cosine(one.mean(0), other.mean(0))


def e_tokens(one: Tensor, other: Tensor) -> float:
    unit = [F.normalize(prompt.double(), dim=-1) for prompt in (one, other)]
    return float((unit[0] @ unit[1].T).detach().mean())


@torch.no_grad()
def readings(method: Method, batches: Iterable[Batch], device: torch.device) -> tuple[Tensor, Tensor]:
    """What a model makes of inputs, at their first token: the mean state (d,) behind the last block, and the share
    (L f,) of inputs at which each neuron of each feed-forward is active, before the activation function.
    """
    stack, states, active = method.backbone.stacks[0], [], []
    seen: list[Tensor] = []

    def keep(module: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append(output[:, 0] > 0)

    places = range(method.backbone.depth(stack))
    handles = [method.backbone.part(stack, place, "mlp_in").register_forward_hook(keep) for place in places]
    try:
        for batch in batches:
            seen.clear()
            state = method.run(method.embed({name: tensor.to(device) for name, tensor in batch.items()}, stack))
            states.append(alone(method.backbone.finish(state)[:, state.prefix]))
            active.append(torch.cat(seen, -1))
            del state  # the next batch need not have it beside it
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat(states).double().mean(0), torch.cat(active).double().mean(0)


def similarities(one: tuple[Tensor, Tensor, Tensor], other: tuple[Tensor, Tensor, Tensor]) -> dict[str, float]:
    """All metrics of two tasks, each given by its prompt and its `readings` of the same inputs.

    A neuron counts as active for a task where it is at more than half of the inputs.
    """
    neurons = [(task[2] > 0.5).double() for task in (one, other)]
    return {
        "task_embedding": cosine(one[1], other[1]),
        "e_avg": e_avg(one[0], other[0]),
        "e_tokens": e_tokens(one[0], other[0]),
        "on": cosine(*neurons),
    }
