"""log p(y | x) of every answer a model can give to one example: what the Fisher is an expectation over."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from transfer_run.backbones.base import Batch
from transfer_run.errors import UserError
from transfer_run.methods.base import Method

Likelihood = Callable[[Batch], Tensor]


def class_likelihood(method: Method, answers: Sequence[Sequence[int]] = ()) -> Likelihood:
    """Log-probabilities (1, C) of the C classes for one example.

    Args:
        answers: token ids of each label word, the end included (text-to-text only).

    Raises:
        UserError: the task has no finite set of labels.
    """
    if method.form.has_list(answers):
        return lambda batch: method.form.class_likelihoods(method, batch, answers)
    raise UserError(
        f"A task of form {method.task.form!r} has no list of labels to take an exact expectation over.",
        where="method.fisher.labels=exact",
        remedy="method.fisher.labels=sample",
    )


def sampled_likelihood(method: Method, batch: Batch, generator: torch.Generator) -> Tensor:
    """log p(y | x), a scalar, of one answer drawn from the model."""
    return method.form.sampled_likelihood(method, batch, generator)


def labelled_likelihood(method: Method, batch: Batch) -> Tensor:
    """log p(y | x), a scalar, of the label in the data."""
    return method.form.labelled_likelihood(method, batch)
