"""The diagonal Fisher of a model from its own predictions, one gradient an example and label (section 3.1).

    F = (1/N) sum_n sum_y p(y | x_n) (d log p(y | x_n) / d theta)^2

A gradient summed over a batch or over labels before it is squared has cross terms and is not the Fisher; here every
example is a batch of its own, so the batch size cannot matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from transfer_run.backbones.base import Batch
from transfer_run.files import written_whole
from transfer_run.methods.base import Method
from transfer_run.methods.merging.engine.stream import SquareSum
from transfer_run.methods.merging.statistics.examples import single_examples
from transfer_run.methods.merging.statistics.likelihood import (
    Likelihood,
    class_likelihood,
    labelled_likelihood,
    sampled_likelihood,
)

Scored = Callable[[Batch], Iterator[tuple[float, Tensor]]]
"""Of one example: pairs of a probability and the log-likelihood whose squared gradient it weighs."""


def exact(likelihood: Likelihood) -> Scored:
    """The expectation over all labels, from log-probabilities (1, C)."""

    def scored(example: Batch) -> Iterator[tuple[float, Tensor]]:
        logs = likelihood(example)[0]
        yield from zip(logs.detach().exp().tolist(), logs, strict=True)

    return scored


def one_label(log_likelihood: Callable[[Batch], Tensor]) -> Scored:
    """One label: drawn from the model, or that of the data."""

    def scored(example: Batch) -> Iterator[tuple[float, Tensor]]:
        yield 1.0, log_likelihood(example)

    return scored


def diagonal_fisher(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], examples: Iterable[Batch], scored: Scored
) -> dict[str, Tensor]:
    """F of the named parameters, float32 on the CPU.

    The model's mode, its `requires_grad` flags and its gradient buffers are afterwards as before; dropout is off
    meanwhile.

    Args:
        examples: batches of one.

    Raises:
        ValueError: there are none.
    """
    totals = {name: torch.zeros(p.shape, dtype=torch.float32, device=p.device) for name, p in parameters.items()}
    count = 0
    with _for_gradients(model, parameters):
        for example in examples:
            count += 1
            pairs = list(scored(example))
            for at, (probability, log) in enumerate(pairs):
                last = at == len(pairs) - 1
                found = torch.autograd.grad(log, list(parameters.values()), retain_graph=not last, allow_unused=True)
                for total, gradient in zip(totals.values(), found, strict=True):
                    if gradient is not None:
                        total.add_(gradient.float().square().mul_(probability))
    if not count:
        raise ValueError("a Fisher needs at least one example")
    return {name: total.div_(count).cpu() for name, total in totals.items()}


@contextmanager
def _for_gradients(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    flags = {parameter: parameter.requires_grad for parameter in parameters.values()}
    model.eval()
    for parameter in flags:
        parameter.requires_grad_(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)
        for module, mode in modes.items():
            module.training = mode


def body_parameters(method: Method) -> dict[str, nn.Parameter]:
    """The backbone's parameters under its library's names; tied ones once, heads left out."""
    return dict(method.backbone.model.named_parameters())


def estimate_fisher(
    method: Method,
    batches: Iterable[Batch],
    *,
    examples: int,
    labels: str,
    seed: int,
    answers: list[list[int]] | None = None,
) -> dict[str, Tensor]:
    """The Fisher of a finished model's body on its own task.

    Args:
        batches: of the model's training split.
        labels: `exact` sums over all labels; `sample` draws one from the model; `empirical` takes the data's (which is
            another quantity). A regression model's exact Fisher is that of a Gaussian of variance one: (d mean)^2.
        answers: token ids of the label words of a text-to-text task.
    """
    generator = torch.Generator().manual_seed(seed)
    if labels == "sample":
        scored = one_label(lambda example: sampled_likelihood(method, example, generator))
    elif labels == "empirical":
        scored = one_label(lambda example: labelled_likelihood(method, example))
    elif method.form.gaussian:
        scored = one_label(lambda example: method(example).float().squeeze())
    else:
        scored = exact(class_likelihood(method, answers or ()))
    singles = single_examples(batches, examples, method.form.example)
    return diagonal_fisher(method, body_parameters(method), singles, scored)


def save_fisher(fisher: Mapping[str, Tensor], path: Path, about: Mapping[str, str]) -> None:
    """One safetensors file beside the checkpoint; its norm stands in the header, so that merging needs one pass."""
    total = SquareSum()
    for name in sorted(fisher):
        total.add(fisher[name].reshape(-1))
    with written_whole(path) as partial:
        save_file(dict(fisher), partial, metadata={"format": "pt", **about, "norm": repr(total.value**0.5)})
