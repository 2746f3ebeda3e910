"""LOOK on a small network: the loss it takes, what enters the queue, what a later run takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import transfer_run
from tests import small
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.run import carry_out
from transfer_run.methods.representation.look import Encoder, Look
from transfer_run.task import ROWS

SIZES: dict[str, Any] = {"k": 4, "queue_size": 12, "proj_dim": 8, "proj_hidden": 16, "ema_momentum": 0.5}
WORDS = ["method=look", "backbone=mlp_tiny", "backbone.weights=random:0", "hardware=cpu", "trainer.progress=none",
         "optimizer.warmup=0", "dataset=digits", "dataset.classes=[0,1,2,3,4]", "method.k=20", "method.queue_size=256",
         "method.proj_dim=16", "method.proj_hidden=64", "method.ema_momentum=0.9"]  # fmt: skip


def made(**more: Any) -> Look:
    torch.manual_seed(0)
    method = Look(small.backbone("vit"), small.task("vit", "classification"), **{**SIZES, **more})
    method.start_fit(10)
    method.train()
    return method


def batch(first: int = 0) -> dict[str, torch.Tensor]:
    found = small.batch("vit", "classification", 6)
    found["pixel_values"] = found["pixel_values"] + first
    return {**found, ROWS: torch.arange(first, first + 6)}


def filled(**more: Any) -> Look:
    method = made(**more)
    for first in (0, 6):
        method.loss(batch(first))
        method.after_step(1)
    return method


def test_keys_enter_after_the_step_and_are_the_averages_own() -> None:
    """Check 7, and leave one out: the loss of a step does not see the keys of its own batch."""
    method, data = made(), batch()
    expected = method.average(data)
    assert float(method.loss(data).detach()) == pytest.approx(torch.tensor(3.0).log())  # of no reference
    assert not method.queue.filled().any()
    method.after_step(1)
    torch.testing.assert_close(method.queue.keys[:6], expected)
    assert method.queue.labels[:6].tolist() == data["labels"].tolist()
    assert method.queue.rows.tolist() == [*range(6), *[-1] * 6]


def test_of_a_batch_in_several_parts_all_keys_enter_together() -> None:
    method = made()
    for first in (0, 6):
        method.loss(batch(first))
    assert not method.queue.filled().any()
    method.after_step(1)
    assert method.queue.rows.tolist() == list(range(12))
    method.eval()
    method.loss(batch(20))
    method.after_step(2)
    assert method.queue.rows.tolist() == list(range(12))  # evaluation leaves none


def test_the_average_follows() -> None:
    method = made()
    before = {name: p.clone() for name, p in method.average.named_parameters()}
    with torch.no_grad():
        for parameter in method.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    new = dict(Encoder(method.plain(), method.projection).named_parameters())
    method.after_step(1)
    for name, parameter in method.average.named_parameters():
        torch.testing.assert_close(parameter, 0.5 * before[name] + 0.5 * new[name])
        assert not parameter.requires_grad
    assert not method.average.training


def test_the_loss_is_of_the_others_in_the_queue() -> None:
    method, data = filled(), batch()
    z = method.encode_rows(data)
    s = z @ method.queue.keys.t()
    rows = []
    for i in range(6):
        others = method.queue.rows != i
        near = s[i].masked_fill(~others, -2).topk(4).indices.tolist()
        if not any(method.queue.labels[j] == data["labels"][i] for j in near):
            mine = [j for j in range(12) if others[j] and method.queue.labels[j] == data["labels"][i]]
            near[-1] = max(mine, key=lambda j: float(s[i, j]))
        shares = (s[i, near] / 0.1).softmax(0)
        rows.append(-shares[method.queue.labels[near] == data["labels"][i]].sum().log())
    torch.testing.assert_close(method.loss(data), torch.stack(rows).mean())


def test_references_carry_no_gradient_and_scale_does_not_matter() -> None:
    """Checks 5 and 6."""
    method, data = filled(), batch(3)
    loss = method.loss(data)
    loss.backward()
    assert all(p.grad is None for p in method.average.parameters())
    assert all(p.grad is not None for p in method.projection.parameters())
    with torch.no_grad():
        for parameter in method.projection[2].parameters():  # type: ignore[index]
            parameter.mul_(7)
    torch.testing.assert_close(method.loss(data), loss, atol=1e-5, rtol=1e-5)


def test_the_baselines_are_of_the_same_class() -> None:
    data = batch(3)
    look, nca, supcon, ce = (filled(objective=name) for name in ("look", "nca", "supcon", "ce"))
    s = nca.encode_rows(data) @ nca.queue.keys.t() / 0.1
    same = nca.queue.labels[None] == data["labels"][:, None]
    counts = nca.queue.others(data[ROWS])
    logs = s.masked_fill(~counts, float("-inf")).log_softmax(1)
    expected = -logs.masked_fill(~same, float("-inf")).logsumexp(1).mean()
    torch.testing.assert_close(nca.loss(data), expected)
    means = -torch.stack([row[own].mean() for row, own in zip(logs, same & counts, strict=True)]).mean()
    torch.testing.assert_close(supcon.loss(data), means)
    torch.testing.assert_close(ce.loss(data), F.cross_entropy(ce(data), data["labels"]))
    assert "queue" not in ce._modules
    assert not ce.held
    assert not ce.reads_row_numbers
    assert not torch.equal(look.loss(data), nca.loss(data))


def test_answers_are_those_of_the_neighbours_and_ship_without_the_average() -> None:
    method = filled().eval()
    data = {name: tensor for name, tensor in batch(1).items() if name != ROWS}
    before = method(data)
    torch.testing.assert_close(before.exp().sum(1), torch.ones(6))
    names = method.shipped()
    assert {"queue.keys", "queue.labels", "projection.0.weight"} <= names.keys()
    assert not any(name.startswith("average") for name in names)
    assert not any(name.startswith("backbone.head") for name in names)
    method.settle()
    assert torch.equal(method(data), before)


def test_neighbours_fall_from_the_whole_queue() -> None:
    method, found = made(k_warmup_epochs=2), []
    for epoch in range(4):
        method.start_epoch(epoch, 4)
        found.append(method.neighbours)
    assert found == [12, 8, 4, 4]


def test_more_neighbours_than_references_are_refused() -> None:
    with pytest.raises(UserError, match="no 20 neighbours"):
        made(k=20)


def test_neighbours_learn_digits_and_a_probe_takes_the_encoder(shared_runs: Path) -> None:
    """Check 8; the projection is left behind."""
    source = [*WORDS, "trainer.max_epochs=4", f"output_dir={shared_runs}"]
    folder = carry_out(compose(source))
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    assert result["extra"]["source"]["neighbour_accuracy"] > 0.95
    assert result["extra"]["source"]["rows"] > 500
    assert result["metrics"]["test/accuracy"] > 0.9
    words = " ".join(source)
    probe = carry_out(compose(["method=linear_probe", "backbone=mlp_tiny", f"backbone.weights=run:{words}",
                               "dataset=digits", "hardware=cpu", "trainer.max_epochs=3", "optimizer.lr=1e-2",
                               "trainer.progress=none", f"output_dir={shared_runs}"]))  # fmt: skip
    taken, model = transfer_run.load(folder).backbone.model, transfer_run.load(probe).backbone.model
    assert all(torch.equal(a, b) for a, b in zip(taken.parameters(), model.parameters(), strict=True))
    assert json.loads((probe / "result.json").read_text(encoding="utf-8"))["metrics"]["test/accuracy"] > 0.5
