"""The likelihoods behind a Fisher, on small models of every form of task."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from transfer_run.backbones.base import Batch
from transfer_run.backbones.load import build_backbone
from transfer_run.errors import UserError
from transfer_run.experiment.config import registry
from transfer_run.methods.base import Method
from transfer_run.methods.merging.statistics.examples import single_examples
from transfer_run.methods.merging.statistics.fisher_estimate import body_parameters, estimate_fisher
from transfer_run.methods.merging.statistics.likelihood import class_likelihood, labelled_likelihood, sampled_likelihood
from transfer_run.task import Task

ANSWERS = [[30, 31, 1], [40, 1]]


def method(backbone: str, form: Any, labels: int = 0) -> Method:
    config = dict(registry.entry("backbone", backbone).content["backbone"])
    torch.manual_seed(0)
    built = build_backbone({**config, "weights": "random:0"})
    return Method(built, Task(form, labels, max_target_length=4)).eval()


def text(rows: int = 2) -> Batch:
    ids = torch.randint(3, 200, (rows, 6), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_label_words_are_classes() -> None:
    t5 = method("t5_tiny", "text_to_text", 2)
    batch = text(1)
    logs = class_likelihood(t5, ANSWERS)(batch)
    assert float(logs.detach().exp().sum()) == pytest.approx(1, abs=1e-5)
    sums = []
    for word in ANSWERS:
        loss = t5.task_loss(t5({**batch, "labels": torch.tensor([word])}), torch.tensor([word]))
        sums.append(-loss * len(word))
    assert torch.allclose(logs[0], F.log_softmax(torch.stack(sums), 0), atol=1e-4)
    with pytest.raises(UserError, match="no list of labels"):
        class_likelihood(t5)


def test_a_label_of_the_data() -> None:
    t5 = method("t5_tiny", "text_to_text", 2)
    batch = {**text(1), "labels": torch.tensor([[30, 31, 1, -100]])}
    logs = F.log_softmax(t5(batch), -1)[0]
    wanted = sum(logs[i, token] for i, token in enumerate([30, 31, 1]))
    assert torch.allclose(labelled_likelihood(t5, batch), wanted, atol=1e-4)
    bert = method("bert_tiny", "classification", 3)
    batch = {**text(1), "labels": torch.tensor([2])}
    assert torch.allclose(labelled_likelihood(bert, batch), F.log_softmax(bert(batch), -1)[0, 2])


@pytest.mark.parametrize(
    ("backbone", "form", "labels"),
    [
        ("t5_tiny", "text_to_text", 0),
        ("gpt2_tiny", "language_modeling", 0),
        ("bert_tiny", "classification", 3),
        ("bert_tiny", "regression", 1),
    ],
)
def test_sampled_fishers_of_every_form(backbone: str, form: str, labels: int) -> None:
    built = method(backbone, form, labels)
    batch = text()

    def fisher(seed: int) -> dict[str, torch.Tensor]:
        return estimate_fisher(built, [batch], examples=2, labels="sample", seed=seed)

    found = fisher(0)
    assert found.keys() == body_parameters(built).keys()
    assert any(bool((total > 0).any()) for total in found.values())
    assert all(bool((total >= 0).all()) and bool(total.isfinite().all()) for total in found.values())
    again, other = fisher(0), fisher(7)
    assert all(torch.equal(found[name], again[name]) for name in found)
    assert any(not torch.equal(found[name], other[name]) for name in found)
    example = next(single_examples([batch], 1))
    assert sampled_likelihood(built, example, torch.Generator().manual_seed(0)).shape == ()


def test_the_exact_fisher_of_a_regression_is_the_squared_gradient_of_its_mean() -> None:
    bert = method("bert_tiny", "regression", 1)
    batch = text(1)
    found = estimate_fisher(bert, [batch], examples=1, labels="exact", seed=0)
    mean = bert(batch).squeeze()
    for name, parameter in body_parameters(bert).items():
        (gradient,) = torch.autograd.grad(mean, parameter, retain_graph=True, allow_unused=True)
        wanted = torch.zeros_like(parameter) if gradient is None else gradient.square()
        assert torch.allclose(found[name], wanted, atol=1e-7), name


def test_tied_weights_have_one_fisher_through_both_uses() -> None:
    t5 = method("t5_tiny", "text_to_text", 2)
    parameters = body_parameters(t5)
    assert "shared.weight" in parameters
    assert not {"lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"} & parameters.keys()
    found = estimate_fisher(t5, [text(1)], examples=1, labels="exact", seed=0, answers=ANSWERS)["shared.weight"]
    unread = set(range(384)) - set(text(1)["input_ids"].flatten().tolist())
    assert bool((found[sorted(unread)[5]] > 0).any())  # never read, but a row of the language head
