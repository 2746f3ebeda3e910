"""A student, its extra heads and the sources that they imitate: the spec's checks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.methods.distillation.models import TASK, images, vit
from transfer_run.backbones.weights.checkpoints import checksum
from transfer_run.errors import UserError
from transfer_run.methods.base import Context, Method
from transfer_run.methods.distillation.distill_similar import KD, LABELS, SIMILARITY, DistillSimilar
from transfer_run.methods.tuning.full import Full
from transfer_run.task import ROWS, Task, named_beside

GROUPS: dict[str, Any] = {"similarity": SIMILARITY | {"pca_dim": 4}, "kd": KD, "kept_labels": LABELS}


def source(seed: int, classes: int = 5) -> Method:
    torch.manual_seed(seed)
    return Full(vit(seed, layers=1, width=16), Task("classification", classes)).eval()


def student(*sources: Method, seed: int = 1, **settings: Any) -> DistillSimilar:
    torch.manual_seed(seed)
    words = {name: value | settings.pop(name, {}) for name, value in GROUPS.items()}
    names = [f"s{number}" for number in range(len(sources))]
    method = DistillSimilar(vit(seed, layers=2), TASK, zoo=names or ["s0"], **words, **settings)
    if sources:
        method.take_sources(dict(zip(names, sources, strict=True)).__getitem__)
    return method


class Rows(Sequence[Any]):
    """Training rows of the batch that `images` makes."""

    def __init__(self, batch: dict[str, Tensor]) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return len(self.batch["labels"])

    def __getitem__(self, row: Any) -> Any:
        return {name: tensor[row] for name, tensor in self.batch.items()}


def prepared(method: DistillSimilar, folder: Path, batch: dict[str, Tensor]) -> DistillSimilar:
    rows = Rows(batch)
    data: Any = SimpleNamespace(
        labels=lambda split: batch["labels"].numpy(), split=lambda split: rows,
        collate=lambda examples: {name: torch.stack([e[name] for e in examples]) for name in batch},
    )  # fmt: skip
    method.prepare(
        Context(0, folder, lambda *_: iter(()), log=lambda line: None, sizes={"train": len(rows)}, data=data)
    )
    return method


def numbered(rows: int = 24, seed: int = 1) -> dict[str, Tensor]:
    return images(rows, seed) | {ROWS: torch.arange(rows)}


def plain(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in batch.items() if name != ROWS}


@pytest.fixture
def batch() -> dict[str, Tensor]:
    return numbered()


def test_the_loss_is_that_of_the_definition(tmp_path: Path, batch: dict[str, Tensor]) -> None:
    words = {"similarity": {"power": 1.0, "metric": "cka", "drop_below": 0.0}, "kd": {"temperature": 2.0}}
    method = prepared(student(source(2), source(3, 7), **words), tmp_path, plain(batch)).eval()
    features = method.features(batch)
    total = 0.8 * F.cross_entropy(method.backbone.head(features), batch["labels"])
    assert float(method.alpha.sum()) == pytest.approx(1)
    assert float(method.alpha.min()) > 0
    for number, name in enumerate(("s0", "s1")):
        with torch.no_grad():
            said = (method.source(name)(batch) / 2).softmax(-1)  # type: ignore[misc]
        log_q = (method.aids[name](features) / 2).log_softmax(-1)
        total = total + 0.2 * method.alpha[number] * -(said * log_q).sum(-1).mean()
    torch.testing.assert_close(method.distilled_loss(batch), total)


def test_one_source_is_nearest_and_weighted_alike(tmp_path: Path, batch: dict[str, Tensor]) -> None:
    losses = []
    for variant in ("nearest", "weighted"):
        method = student(source(2), variant=variant, similarity={"metric": "cka"})
        losses.append(prepared(method, tmp_path, plain(batch)).eval().distilled_loss(batch))
    assert torch.equal(losses[0], losses[1])


def test_labels_alone_are_plain_training_step_by_step(tmp_path: Path, batch: dict[str, Tensor]) -> None:
    torch.manual_seed(1)
    other = Full(vit(1, layers=2), TASK)
    method = prepared(student(source(2), kd={"lambda": 1.0}), tmp_path, plain(batch))
    assert not method.aids
    assert not method.held
    for model in (other, method):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model.train()
        for step in range(3):
            optimizer.zero_grad()
            model.training_loss(numbered(6, step)).backward()
            optimizer.step()
    for name, parameter in other.named_parameters():
        assert torch.equal(parameter, method.get_parameter(name)), name


def test_cached_answers_are_those_of_the_sources(tmp_path: Path, batch: dict[str, Tensor]) -> None:
    found = {}
    for how in ("online", "cached"):
        method = student(source(2), source(3, 4), pseudo_labels=how, similarity={"power": 0.0})
        method = prepared(method, tmp_path, plain(batch)).eval()
        found[how] = method.distilled_loss(batch)
        assert bool(method.held) == (how == "online")
    torch.testing.assert_close(found["online"], found["cached"])


def test_sources_stay_and_the_student_ships_alone(tmp_path: Path, batch: dict[str, Tensor]) -> None:
    method = prepared(student(source(2), source(3), similarity={"power": 0.0}), tmp_path, plain(batch))
    before = {name: checksum(method.get_submodule(name)) for name in method.held}
    assert len(before) == 2
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    method.train()
    heads = checksum(method.aids)
    for step in range(3):
        optimizer.zero_grad()
        method.training_loss(numbered(6, step)).backward()
        optimizer.step()
    assert {name: checksum(method.get_submodule(name)) for name in method.held} == before
    assert checksum(method.aids) != heads
    assert set(method.shipped()) == {f"backbone.{name}" for name in method.backbone.state_dict()}
    logits = method.eval()(batch)
    method.settle()
    assert torch.equal(method(batch), logits)
    assert not method.aids


def test_a_resumed_run_has_the_same_weights(tmp_path: Path, batch: dict[str, Tensor]) -> None:
    first = prepared(student(source(2), source(3), variant="nearest"), tmp_path, plain(batch))
    again = student(source(2), source(3), variant="nearest")
    again.prepare = again.resume  # type: ignore[method-assign]
    prepared(again, tmp_path, plain(batch))
    assert torch.equal(first.alpha, again.alpha)
    assert list(first.aids) == list(again.aids)
    assert first.held == again.held


def test_rows_without_labels_teach_through_the_sources_alone(tmp_path: Path) -> None:
    everything = numbered(24)
    method = prepared(student(source(2), kept_labels={"fraction": 0.25}), tmp_path, plain(everything)).train()
    assert int(method.labelled.sum()) == 6
    hidden = (~method.labelled).nonzero().flatten()[:4]
    part = {name: tensor[hidden] for name, tensor in everything.items()}
    loss = method.distilled_loss(part)
    turned = method.distilled_loss(part | {"labels": (part["labels"] + 1) % 3})
    assert torch.equal(loss, turned)
    loss.backward()
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in method.parameters())
    assert method.backbone.head.weight.grad is None or not method.backbone.head.weight.grad.any()


def test_images_beside_the_labelled_ones(tmp_path: Path, batch: dict[str, Tensor]) -> None:
    cka = {"metric": "cka"}
    method = prepared(student(source(2), similarity=cka), tmp_path, plain(batch)).eval()
    beside = images(9, seed=5)
    found = method.distilled_loss(batch | named_beside("unlabeled", beside))
    seen = method.distilled_loss(batch | named_beside("unlabeled", beside | {"labels": beside["labels"] * 0}))
    assert torch.equal(found, seen), "their labels are not asked"
    with torch.no_grad():
        said = method.source("s0")(beside).softmax(-1)  # type: ignore[misc]
    expected = 0.8 * F.cross_entropy(method(batch), batch["labels"])
    expected = expected - 0.2 * (said * method.aids["s0"](method.features(beside)).log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(found, expected)
    cached = prepared(student(source(2), pseudo_labels="cached", similarity=cka), tmp_path, plain(batch)).eval()
    with pytest.raises(UserError, match="not of data beside them"):
        cached.distilled_loss(batch | named_beside("unlabeled", beside))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"similarity": {"metric": "leep"}}, "orders sources, and is no weight"),
        ({"similarity": {"metric": "rsa"}}, "a model that knows the target"),
        ({"zoo": ["a", "a"]}, "named once"),
        ({"zoo": ["reference"]}, "none is called reference"),
    ],
)
def test_what_does_not_go_together(settings: dict[str, Any], told: str) -> None:
    words = {name: value | settings.get(name, {}) for name, value in GROUPS.items()}
    zoo = settings.get("zoo", ["a"])
    with pytest.raises(UserError, match=told):
        DistillSimilar(vit(1, layers=1), TASK, zoo=zoo, **words)


def test_similarity_to_a_model_that_knows_the_target(tmp_path: Path, batch: dict[str, Tensor]) -> None:
    known, other = source(4, 3), source(2)
    words = GROUPS | {"similarity": GROUPS["similarity"] | {"metric": "rsa", "reference": "model"}}
    method = DistillSimilar(vit(1, layers=2), TASK, zoo=["same", "other"], **words)
    method.take_sources({"same": source(4), "other": other, "reference": known}.__getitem__)
    prepared(method, tmp_path, plain(batch))
    values = {each["source"]: each["rsa"] for each in method.table}
    assert values["same"] == pytest.approx(100), "the same backbone"
    assert np.isfinite(values["other"])
    assert values["other"] < 99
    assert "reference" not in method.held
