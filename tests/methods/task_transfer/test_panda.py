"""PANDA: prompts, their transfer, the teacher's term, and how alike two tasks are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests import small
from transfer_run.backbones.load import build_backbone
from transfer_run.data.scores.correlation import spearman
from transfer_run.errors import UserError
from transfer_run.experiment.config import registry
from transfer_run.methods.base import Method
from transfer_run.methods.task_transfer.panda import Panda
from transfer_run.methods.task_transfer.prompts.similarity import METRICS, e_avg, e_tokens, readings, similarities
from transfer_run.task import Task

BATCH = small.batch("bert")
CPU = torch.device("cpu")


def panda(seed: int = 0, start: dict[str, Method] | None = None, **settings: Any) -> Panda:
    """On the same backbone weights every time; the prompt and the head are the seed's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        words: dict[str, Any] = {"prompt": {"length": 3}, "backbone_dropout": False, **settings}
        made = Panda(small.backbone("bert"), small.task("bert"), **words)
        with torch.no_grad():
            for parameter in made.prefixes.parameters():
                parameter.normal_()
    if start is not None:
        made.take_sources(lambda name: start[name])
    return made.eval()


def student(similarity: float = 1.0, teacher: Panda | None = None, **settings: Any) -> Panda:
    kd = {"similarity": similarity, **settings.pop("kd", {})}
    prompt = {"length": 3, "dropout": 0.0}
    known: dict[str, Method] = {"teacher": teacher if teacher is not None else panda(9)}
    return panda(1, known, transfer="panda", kd=kd, prompt=prompt, **settings)


def gradients(method: Panda) -> list[Tensor | None]:
    method.train().zero_grad()
    torch.manual_seed(3)
    method.loss(BATCH).backward()
    return [p.grad for p in method.parameters() if p.requires_grad]


@pytest.mark.parametrize("nothing", [{"similarity": 0.0}, {"kd": {"weight": 0.0}}])
def test_a_teacher_of_no_weight_changes_no_bit(nothing: dict[str, Any]) -> None:
    """Check 1."""
    alone = panda(1, prompt={"length": 3, "dropout": 0.0})
    for mine, plain in zip(gradients(student(**nothing)), gradients(alone), strict=True):
        assert mine is not None
        assert plain is not None
        assert torch.equal(mine, plain)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(gradients(student()), gradients(alone))


def test_a_teacher_like_its_student_teaches_nothing() -> None:
    """Check 2."""
    alone = panda(1, prompt={"length": 3, "dropout": 0.0})
    twin = student(teacher=panda(1, prompt={"length": 3, "dropout": 0.0}), kd={"weight": 5.0})
    torch.testing.assert_close(gradients(twin), gradients(alone))
    assert torch.equal(twin.train().loss(BATCH), alone.train().loss(BATCH))


@pytest.mark.parametrize(("divided", "added"), [(True, 0.0025), (False, 0.005)])
def test_the_teachers_term_in_numbers(divided: bool, added: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check 3: logits [[1, 0], [0, 1]] against zeros at a weight of 0.01."""
    method = student(0.1, kd={"weight": 0.1, "extra_batch_division": divided}).train()
    teacher = method.the_teacher()
    assert teacher is not None
    monkeypatch.setattr(Method, "forward", lambda self, batch: torch.eye(2) * (self is not teacher))
    labels = torch.tensor([0, 1])
    plain = nn.functional.cross_entropy(torch.eye(2), labels)
    assert method.loss({"labels": labels}).item() == pytest.approx(plain.item() + added, abs=1e-7)
    assert method.eval().loss({"labels": labels}).item() == pytest.approx(plain.item(), abs=1e-7)


@pytest.mark.parametrize("dropout", [False, True])
def test_the_prompt_and_the_head_alone_are_trained(dropout: bool) -> None:
    """Check 4."""
    method = student(kd={"teacher_dropout": dropout}).train()
    teacher = method.the_teacher()
    assert teacher is not None
    assert teacher.training is dropout
    before = copy.deepcopy(method.state_dict())
    optimizer = torch.optim.AdamW(method.parameter_groups(), lr=1e-2)
    method.loss(BATCH).backward()
    optimizer.step()
    assert [n for n, p in method.named_parameters() if p.grad is not None and not p.requires_grad] == []
    moved = {name for name, tensor in method.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"prefixes.encoder_self.rows", "backbone.head.weight", "backbone.head.bias"}


def test_prompt_transfer_begins_with_the_sources_prompt_and_a_head_of_its_own() -> None:
    """Check 5."""
    source = panda(4)
    target = panda(5, {"source": source}, transfer="pot")
    assert torch.equal(target.rows(), source.rows())
    assert not torch.equal(target.backbone.head.weight, source.backbone.head.weight)  # type: ignore[arg-type]
    target.backbone.head.load_state_dict(source.backbone.head.state_dict())
    assert torch.equal(target.loss(BATCH), source.loss(BATCH))


def test_cosines() -> None:
    """Check 6."""
    one, other = torch.randn(3, 8), torch.randn(3, 8)
    for measure in (e_avg, e_tokens):
        assert measure(one, other) == pytest.approx(measure(other, one))
        assert measure(7 * one, other) == pytest.approx(measure(one, other))
    assert e_avg(one, one) == pytest.approx(1)
    assert e_tokens(one[:1], one[:1]) == pytest.approx(1)
    assert e_tokens(torch.eye(2), torch.eye(2)) == pytest.approx(0.5)
    half, rest = torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert similarities((one, half, half), (one, half, rest))["on"] == 0
    alike = similarities((one, half, half), (one, half, half))
    assert list(alike) == list(METRICS)
    assert [alike[name] for name in ("task_embedding", "e_avg", "on")] == pytest.approx([1, 1, 1])


def test_rank_correlation_of_table_6() -> None:
    """Check 7: CB's column against itself, against what grows with it, and turned round."""
    column = torch.tensor([75.0, 80.4, 60.7, 67.9, 50.0, 69.6, 41.1, 85.7, 73.2, 71.4, 58.9, 55.4, 48.2, 57.1, 62.5])
    found = [float(spearman(column, other)) for other in (column, column.exp(), -column)]
    assert found == pytest.approx([1, 1, -1])


def test_no_token_is_a_linear_probe() -> None:
    """Check 8."""
    none = panda(prompt={"length": 0})
    plain = Method(none.backbone, none.task, head=none.backbone.head).eval()
    assert torch.equal(none(BATCH), plain(BATCH))
    assert none.counted_parameters() == 0


def test_the_papers_parameter_count() -> None:
    """Check 9: BERT-large, 20 tokens, three classes."""
    node = dict(registry.entry("backbone", "bert-large-cased", ()).content["backbone"])
    with torch.device("meta"):
        method = Panda(build_backbone(node, weights=False, device="meta"), Task("classification", 3))
    assert method.counted_parameters() == 2 * 24 * 1024 * 20 == 983_040
    assert sum(p.numel() for p in method.parameters() if p.requires_grad) == 983_040 + 1024 * 3 + 3


def test_related_tasks_are_more_alike() -> None:
    """Check 10: two prompts near one another, and one far away, by what a random frozen encoder makes of inputs."""
    one, related, stranger = panda(1), panda(1), panda(2)
    with torch.no_grad():
        for parameter in related.prefixes.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    given = [(m.rows(), *readings(m, [BATCH], CPU)) for m in (one, related, stranger)]
    near, far = similarities(given[0], given[1]), similarities(given[0], given[2])
    assert all(near[name] > far[name] for name in METRICS)


def test_readings_are_of_the_first_token_whatever_the_batches() -> None:
    method = panda()
    state, active = readings(method, [BATCH], CPU)
    halves = [{name: tensor[part] for name, tensor in BATCH.items()} for part in (slice(0, 2), slice(2, 4))]
    torch.testing.assert_close(readings(method, halves, CPU), (state, active))
    assert state.shape == (32,)
    assert active.shape == (3 * 48,)
    embedded = method.run(method.embed(BATCH))
    torch.testing.assert_close(state, method.backbone.finish(embedded)[:, 0].double().mean(0))


def test_the_prompts_dropout_is_each_examples_own_and_none_in_evaluation() -> None:
    method = panda(prompt={"length": 3, "dropout": 0.5}, backbone_dropout=True)
    same = {name: tensor[:1].expand(4, *tensor.shape[1:]) for name, tensor in BATCH.items()}
    assert torch.equal(method(same)[0], method(same)[1])
    for module in method.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    method.train()
    rows = method(same)
    assert len({tuple(row.tolist()) for row in rows.detach()}) == 4


def test_the_teacher_holds_the_very_weights_of_the_student() -> None:
    method = student()
    teacher = method.the_teacher()
    assert teacher is not None
    own, theirs = (dict(each.backbone.model.named_parameters()) for each in (method, teacher))
    assert {id(p) for p in own.values()} == {id(p) for p in theirs.values()}
    assert not torch.equal(teacher.rows(), method.rows())
    assert torch.equal(teacher(BATCH), panda(9)(BATCH))
    copied = copy.deepcopy(method)
    assert copied.the_teacher().backbone.model.pooler.dense.weight is copied.backbone.model.pooler.dense.weight  # type: ignore[union-attr]


def test_what_is_shipped_is_the_student() -> None:
    method = student(0.7)
    method.settle()
    assert set(method.shipped()) == {
        "prefixes.encoder_self.rows", "backbone.head.weight", "backbone.head.bias", "similarity", "judged",
    }  # fmt: skip
    assert method.the_teacher() is None


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("teacher", lambda: Method(small.backbone("bert"), small.task("bert")), "no prompt of 3 tokens"),
        ("teacher", lambda: panda(prompt={"length": 4}), "no prompt of 3 tokens"),
        ("teacher", lambda: Panda(small.backbone("bert"), Task("classification", 2), prompt={"length": 3}),
         "has other classes"),
        ("teacher", lambda: Panda(small.backbone("bert", seed=1), small.task("bert"), prompt={"length": 3}),
         "other weights of the backbone"),
    ],
)  # fmt: skip
def test_sources_that_do_not_fit_are_refused(name: str, make: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        student(teacher=make())


def test_a_similarity_is_a_number() -> None:
    with pytest.raises(UserError, match="not 'high'"):
        panda(kd={"similarity": "high"})
