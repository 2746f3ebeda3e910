"""log p(y | x) of every answer a model can give to one example: what the Fisher is an expectation over."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from transfer_run.backbones.base import Batch
from transfer_run.errors import UserError
from transfer_run.methods.base import Method

Likelihood = Callable[[Batch], Tensor]


def class_likelihood(method: Method, answers: Sequence[Sequence[int]] = ()) -> Likelihood:
    """Log-probabilities (1, C) of the C classes for one example.

    A text-to-text model with label words is a classifier over them: p(y|x) is proportional to the probability that it
    writes the word.

    Args:
        answers: token ids of each label word, the end included (text-to-text only).

    Raises:
        UserError: the task has no finite set of labels.
    """
    if method.task.form == "classification":
        return lambda batch: F.log_softmax(method(batch).float(), dim=-1)
    if method.task.form == "text_to_text" and answers:
        return lambda batch: F.log_softmax(_word_likelihoods(method, batch, answers), dim=-1)
    raise UserError(
        f"A task of form {method.task.form!r} has no list of labels to take an exact expectation over.",
        where="method.fisher.labels=exact",
        remedy="method.fisher.labels=sample",
    )


def _word_likelihoods(method: Method, batch: Batch, answers: Sequence[Sequence[int]]) -> Tensor:
    """log p(word | x) (1, C), the encoder run once."""
    memory = method.encode(batch)
    device = batch["input_ids"].device
    words = []
    for ids in answers:
        word = torch.tensor([list(ids)], device=device)
        logits = method.decode({**batch, "decoder_input_ids": method.backbone.shift_right(word)}, memory)
        words.append(F.log_softmax(logits.float(), -1).gather(-1, word.unsqueeze(-1)).sum())
    return torch.stack(words).unsqueeze(0)


def sampled_likelihood(method: Method, batch: Batch, generator: torch.Generator) -> Tensor:
    """log p(y | x), a scalar, of one answer drawn from the model."""
    form = method.task.form
    if form == "classification":
        logs = F.log_softmax(method(batch).float(), -1)
        return logs[0, _draw(logs[0], generator)]
    if form == "regression":  # a Gaussian of variance one around the prediction
        mean = method(batch).float().squeeze()
        drawn = mean.detach().cpu() + torch.randn((), generator=generator)
        return -0.5 * (mean - drawn.to(mean.device)).square()
    if form == "language_modeling":
        logs = F.log_softmax(method(batch).float(), -1)[0]
        drawn = torch.stack([torch.tensor(_draw(row, generator)) for row in logs])
        return logs.gather(-1, drawn.to(logs.device).unsqueeze(-1)).sum()
    return _written(method, batch, generator)


def _written(method: Method, batch: Batch, generator: torch.Generator) -> Tensor:
    """log p of an answer that an encoder-decoder writes token by token."""
    config = method.backbone.model.config
    start = torch.full((1, 1), config.decoder_start_token_id, device=batch["input_ids"].device)
    ids, memory = start, method.encode(batch)
    with torch.no_grad():
        for _ in range(method.task.max_target_length):
            row = method.decode({**batch, "decoder_input_ids": ids}, memory)[0, -1]
            ids = torch.cat([ids, start.new_tensor([[_draw(row, generator)]])], dim=1)
            if int(ids[0, -1]) == config.eos_token_id:
                break
    logs = F.log_softmax(method.decode({**batch, "decoder_input_ids": ids[:, :-1]}, memory).float(), -1)
    return logs.gather(-1, ids[:, 1:].unsqueeze(-1)).sum()


def labelled_likelihood(method: Method, batch: Batch) -> Tensor:
    """log p(y | x), a scalar, of the label in the data; a loss that is a mean over tokens is summed again."""
    loss = method.task_loss(method(batch), batch["labels"])
    if method.task.form == "regression":
        return -0.5 * loss
    labels = batch["labels"][:, 1:] if method.task.form == "language_modeling" else batch["labels"]
    return -loss * (labels != -100).sum()


def _draw(logs: Tensor, generator: torch.Generator) -> int:
    return int(torch.multinomial(logs.detach().float().softmax(-1).cpu(), 1, generator=generator))
