"""What every method does with a batch: the losses and the answers of the base class."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from tests import small
from transfer_run.methods.base import Method


def plain(name: str, form: str) -> Method:
    return Method(small.backbone(name), small.task(name, form)).eval()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_language_model_is_asked_for_the_next_token(name: str) -> None:
    method, batch = plain(name, "language_modeling"), small.batch(name, "language_modeling")
    logs = method(batch).log_softmax(-1)
    ids, real = batch["input_ids"], batch["attention_mask"].bool()
    terms = [-logs[row, at, ids[row, at + 1]] for row in range(4) for at in range(9) if real[row, at + 1]]
    torch.testing.assert_close(method.loss(batch), torch.stack(terms).mean())


def test_values_and_classes_have_their_losses() -> None:
    method, batch = plain("bert", "regression"), small.batch("bert", "regression")
    torch.testing.assert_close(method.loss(batch), (method(batch)[:, 0] - batch["labels"]).square().mean())
    method, batch = plain("bert", "classification"), small.batch("bert", "classification")
    batch["labels"][2] = -100
    seen = torch.tensor([0, 1, 3])
    torch.testing.assert_close(method.loss(batch), F.cross_entropy(method(batch)[seen], batch["labels"][seen]))


def test_an_encoder_decoder_says_nothing_behind_a_rows_end(monkeypatch: pytest.MonkeyPatch) -> None:
    method, batch = plain("t5", "text_to_text"), small.batch("t5")
    words = torch.tensor([[7, 1, 9, 9], [7, 8, 9, 1], [1, 9, 9, 9], [5, 6, 7, 8]])
    said = iter(F.one_hot(words, small.VOCABULARY).float().unbind(1))
    monkeypatch.setattr(method, "decode", lambda step, memory: next(said)[:, None])
    answers = method.generate(batch, 4)
    assert answers.tolist() == [[7, 1, 0, 0], [7, 8, 9, 1], [1, 0, 0, 0], [5, 6, 7, 8]]


@pytest.mark.parametrize("name", ["t5", "bert", "deberta", "gpt2", "llama"])
def test_more_padding_changes_no_answer(name: str) -> None:
    method, batch = plain(name, "classification"), small.batch(name, "classification")
    longer = {key: F.pad(batch[key], (0, 3)) for key in ("input_ids", "attention_mask")} | {"labels": batch["labels"]}
    torch.testing.assert_close(method(longer), method(batch))


def test_methods_on_one_backbone_keep_their_own_heads() -> None:
    """Neither the backbone nor another method on it changes; a plain view has the same weights, head included."""
    backbone = small.backbone("bert")
    before = backbone.head
    first, second = (Method(backbone, small.task("bert", form)) for form in ("classification", "regression"))
    assert backbone.head is before
    assert (first.backbone.head.out_features, second.backbone.head.out_features) == (small.CLASSES, 1)
    assert first.backbone.model is second.backbone.model is backbone.model
    plain_view = first.plain()
    assert {n: id(p) for n, p in plain_view.named_parameters()} == {n: id(p) for n, p in first.named_parameters()}
    assert "backbone.head.weight" in first.state_dict()
