"""A trained student, its frozen beginning and its teachers: the spec's checks, and what goes together."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.methods.distillation.models import CLASSES, TASK, images, vit
from transfer_run.backbones.weights.checkpoints import checksum
from transfer_run.errors import UserError
from transfer_run.hardware.optimization import build_optimizers
from transfer_run.methods.averaging import set_weights
from transfer_run.methods.base import Method
from transfer_run.methods.distillation.knowledge_transfer import CD, CRD, DP, KD, MCL, KnowledgeTransfer
from transfer_run.methods.distillation.transfer import partition
from transfer_run.methods.tuning.full import Full
from transfer_run.task import ROWS

GROUPS: dict[str, Any] = {"dp": DP, "kd": KD, "mcl": MCL, "cd": CD, "crd": CRD}


def finished(seed: int, head: int | None = None) -> Method:
    """A trained model of some weights."""
    torch.manual_seed(seed if head is None else head)
    return Full(vit(seed, layers=2), TASK).eval()


def transfer(*teachers: Method, seed: int = 1, epoch_steps: int = 1, **settings: Any) -> KnowledgeTransfer:
    """A student of the weights of `seed`; settings of groups are changed keys."""
    torch.manual_seed(seed)
    words = {name: GROUPS[name] | value if name in GROUPS else value for name, value in settings.items()}
    names = [f"t{number}" for number in range(len(teachers))]
    backbone = vit(seed, layers=2)
    method = KnowledgeTransfer(backbone, TASK, teachers=names or ["t0"], classifier="fresh", **words)
    known = dict(zip(names, teachers, strict=True))
    if teachers:
        method.take_sources(known.__getitem__)
    method.optimizers({}, epoch_steps)
    return method


def train(method: KnowledgeTransfer, steps: int, rate: float = 0.05) -> list[float]:
    """SGD steps as a run takes them."""
    node = {"about": {"target": "torch.optim.SGD"}, "lr": rate, "momentum": 0.9}
    made = method.optimizers(node, method.epoch_steps or 1)
    optimizer = build_optimizers(made, node)["main"]
    method.train()
    losses = []
    for step in range(1, steps + 1):
        torch.manual_seed(step)
        loss = method.training_loss(images(seed=step) | {ROWS: torch.arange(6)})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.after_step(step)
        if made["main"].restart_every and step % made["main"].restart_every == 0:
            optimizer.state.clear()
        losses.append(float(loss.detach()))
    return losses


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def fixed(value: Tensor) -> Callable[[Any], Tensor]:
    return lambda batch: value


# ---- check 2: a teacher that is the student itself
def test_a_student_has_nothing_to_learn_from_itself() -> None:
    method = transfer(finished(1))
    set_weights(method.readers[0].teacher.backbone, method.backbone)
    method.eval()
    loss = method.transfer_loss(images())
    loss.backward()
    assert float(loss) == pytest.approx(0, abs=1e-6)
    assert all(p.grad is None or float(p.grad.abs().max()) < 1e-6 for p in method.parameters())
    with torch.no_grad():
        z = method(images())
    assert not partition.taught_by("most_conf", z, z, z, images()["labels"]).any(), "ties go to the initial student"


# ---- check 3: who is sure of the right class teaches
@pytest.mark.parametrize("knows", [True, False])
def test_a_teacher_that_knows_all_or_nothing(knows: bool) -> None:
    method, batch = transfer(finished(2)).eval(), images()
    right = F.one_hot(batch["labels"], CLASSES).float()
    method.readers[0].forward = fixed((right if knows else -right) * 40)  # type: ignore[method-assign]
    with torch.no_grad():
        student = method(batch)
        expected = method.readers[0](batch) if knows else method.get_submodule("initial")(batch)
    assert torch.allclose(method.transfer_loss(batch), partition.divergence(expected, student), atol=1e-6)


# ---- checks 4 and 9, and the strategies
def test_without_labels_they_are_not_touched() -> None:
    garbage = images() | {"labels": torch.full((6,), 10_000)}
    unsupervised = transfer(finished(2), dp={"supervised": False}).eval()
    assert torch.equal(unsupervised.transfer_loss(images()), unsupervised.transfer_loss(garbage))
    turned = images() | {"labels": (images()["labels"] + 1) % CLASSES}
    supervised = transfer(finished(2)).eval()
    with torch.no_grad():
        assert not torch.equal(
            partition.target_of("most_conf", *[each(images()) for each in trio(supervised)], images()["labels"])[0],
            partition.target_of("most_conf", *[each(images()) for each in trio(supervised)], turned["labels"])[0],
        )


def trio(method: KnowledgeTransfer) -> list[Any]:
    return [method, method.get_submodule("initial"), method.readers[0]]


@pytest.mark.parametrize("strategy", ["most_conf", "flip_st", "flip_t", "flip_avg", "self"])
def test_each_strategy_sample_by_sample(strategy: str) -> None:
    draw = torch.Generator().manual_seed(5)
    student, initial, teacher = (torch.randn(40, CLASSES, generator=draw) for _ in range(3))
    labels = torch.randint(0, CLASSES, (40,), generator=draw)
    found, _ = partition.target_of(strategy, student, initial, teacher, labels)
    for row in range(40):
        z, z0, zt, y = student[row], initial[row], teacher[row], int(labels[row])
        right, taught = int(z.argmax()) == y, int(zt.argmax()) == y
        expected = {
            "most_conf": zt if zt.softmax(0)[y] > z0.softmax(0)[y] else z0,
            "flip_st": zt if taught and not right else z0,
            "flip_t": z0 if right and not taught else zt,
            "flip_avg": (zt + z) / 2 if right == taught else zt if taught else z0,
            "self": z0,
        }[strategy]
        assert torch.allclose(found[row], expected), row


def test_topk() -> None:
    every, batch = transfer(finished(2), approach="kl", kd={"topk": CLASSES}).eval(), images()
    plain = transfer(finished(2), approach="kl").eval()
    assert torch.allclose(every.transfer_loss(batch), plain.transfer_loss(batch), atol=1e-6)
    teacher, student = torch.randn(6, 5), torch.randn(6, 5)
    kept = teacher.topk(2).indices
    moved = student + 3.0
    moved = moved.scatter(1, kept, student.gather(1, kept))
    first, second = (partition.divergence(*partition.largest(teacher, 2, each)) for each in (student, moved))
    assert torch.equal(first, second)
    assert not torch.equal(partition.divergence(teacher, student), partition.divergence(teacher, moved))


# ---- check 10 and the weights of the two terms
def test_a_second_softmax_inside_the_cross_entropy() -> None:
    batch = images()
    method = transfer(finished(2), approach="xekl", xe={"input": "probs"}, kd={"alpha": 0.0}).eval()
    sure = F.one_hot(batch["labels"], CLASSES).float() * 100
    method.forward = fixed(sure)  # type: ignore[method-assign]
    assert float(method.transfer_loss(batch)) == pytest.approx(math.log(math.e + CLASSES - 1) - 1, abs=1e-5)


def test_the_two_terms_are_weighed() -> None:
    batch = images()
    for approach, alpha in (("kl", 1.0), ("xekl", 0.5)):
        method = transfer(finished(2), approach=approach, kd={"temperature": 3.0}).eval()
        with torch.no_grad():
            student, teacher = method(batch), method.readers[0](batch)
        expected = alpha * partition.divergence(teacher, student, 3.0)
        expected = expected + (1 - alpha) * F.cross_entropy(student, batch["labels"])
        assert torch.allclose(method.transfer_loss(batch), expected, atol=1e-6)


def test_mcl_leaves_out_what_only_the_student_gets_right() -> None:
    batch = images(rows=6)
    method = transfer(finished(2), approach="xekl_mcl", kd={"alpha": 1.0})
    right = F.one_hot(batch["labels"], CLASSES).float() * 5
    wrong = right.roll(1, dims=1)
    student = torch.cat([right[:3], wrong[3:]])  # the first three: negative flips
    method.train()
    method.forward, method.readers[0].forward = fixed(student), fixed(wrong)  # type: ignore[method-assign]
    assert torch.allclose(method.transfer_loss(batch), partition.divergence(wrong[3:], student[3:]))
    method.forward = fixed(right)  # type: ignore[method-assign]
    assert float(method.transfer_loss(batch)) == 0


# ---- checks 5 and 11: slow weights
def test_slow_weights_that_never_move() -> None:
    method = transfer(finished(2), approach="xekl_mcl", mcl={"tau": 1.0, "every": 1, "reset_fast": "never"})
    before = checksum(method.get_submodule("average"))
    train(method, 4)
    assert checksum(method.get_submodule("average")) == before
    assert not same(method.backbone, method.get_submodule("average").backbone)  # type: ignore[arg-type]


def test_slow_weights_that_follow_at_once_are_plain_training() -> None:
    same_loss = {"kd": {"alpha": 0.5, "negative_flips": "keep"}}
    slow = transfer(finished(2), approach="xekl_mcl", mcl={"tau": 0.0, "every": 1}, **same_loss)
    plain = transfer(finished(2), approach="xekl", **same_loss)
    assert train(slow, 4) == train(plain, 4)
    slow.settle()
    assert same(slow.backbone, plain.backbone)


@pytest.mark.parametrize("reset", ["epoch", "never", "every"])
def test_after_an_epoch_training_goes_on_from_the_slow_weights(reset: str) -> None:
    method = transfer(finished(2), approach="xekl_mcl", epoch_steps=3, mcl={"tau": 0.5, "reset_fast": reset})
    average = method.get_submodule("average").backbone
    moved = []
    for steps in (1, 2, 3):
        method = transfer(finished(2), approach="xekl_mcl", epoch_steps=3, mcl={"tau": 0.5, "reset_fast": reset})
        train(method, steps)
        average = method.get_submodule("average").backbone
        moved.append(same(method.backbone, average))  # type: ignore[arg-type]
    assert moved == {"epoch": [False, False, True], "never": [False] * 3, "every": [True, False, True]}[reset]


def test_slow_weights_answer_in_evaluation_and_ship() -> None:
    method = transfer(finished(2), approach="xekl_mcl", mcl={"tau": 0.9, "every": 1, "reset_fast": "never"})
    train(method, 3)
    fast = method.train()(images())
    slow = method.eval()(images())
    assert not torch.allclose(fast, slow)
    method.settle()
    assert torch.equal(method(images()), slow)
    assert {name.partition(".")[0] for name in method.shipped()} == {"backbone"}


def test_slow_weights_of_released_code_begin_behind_the_first_update() -> None:
    words = {"mcl": {"tau": 1.0, "start": "first_update", "reset_fast": "never"}}
    method = transfer(finished(2), approach="xekl_mcl", epoch_steps=9, **words)
    train(method, 1)
    assert same(method.backbone, method.get_submodule("average").backbone)  # type: ignore[arg-type]


# ---- check 7: the frozen ones stay as they are
@pytest.mark.parametrize("approach", ["kl", "xekl", "xekl_mcl", "kl_dp", "cd", "crd"])
def test_frozen_models_stay_and_the_student_learns(approach: str) -> None:
    method = transfer(finished(2), approach=approach, crd={"width": 8, "negatives": 5})
    if approach == "crd":
        method.contrast.open(torch.arange(6) % CLASSES, 0)
    frozen = [name for name in method.held if name != "average"]
    sums = {name: checksum(method.get_submodule(name)) for name in frozen}
    before = checksum(method.backbone)
    assert all(math.isfinite(loss) for loss in train(method, 3))
    assert checksum(method.backbone) != before
    for name in frozen:
        module = method.get_submodule(name)
        assert not module.training
        assert all(not p.requires_grad and p.grad is None for p in module.parameters())
        assert checksum(module) == sums[name], name
    method.settle()
    assert set(method.shipped()) == {f"backbone.{name}" for name in method.backbone.state_dict()}
    assert not method.readers


# ---- several teachers
def test_one_teacher_at_once_is_one_teacher() -> None:
    student, initial, teacher = torch.randn(3, 20, CLASSES).unbind()
    labels = torch.arange(20) % CLASSES
    for known in (labels, None):
        who = partition.most_confident(initial, [teacher], known)
        alone, _ = partition.target_of("most_conf", student, initial, teacher, known)
        assert torch.equal(torch.stack([initial, teacher])[who, torch.arange(20)], alone)


def test_the_most_confident_of_several_teaches_and_the_first_wins_ties() -> None:
    method = transfer(finished(2), finished(3), multi="parallel").eval()
    batch = images()
    with torch.no_grad():
        said = torch.stack([each(batch) for each in (method.get_submodule("initial"), *method.readers)])
        sure = said.softmax(-1)[:, torch.arange(6), batch["labels"]]
        target = said[sure.argmax(0), torch.arange(6)]
        expected = partition.divergence(target, method(batch))
    assert torch.allclose(method.transfer_loss(batch), expected, atol=1e-6)
    z = torch.randn(4, CLASSES)
    assert partition.most_confident(z, [z, z], None).tolist() == [0] * 4
    weak = torch.zeros(4, CLASSES)
    assert partition.most_confident(weak, [z, z], None).tolist() == [1] * 4


@pytest.mark.parametrize("multi", ["sequential", "soup"])
def test_teachers_one_after_another(multi: str) -> None:
    def alone(number: int, start: KnowledgeTransfer | None) -> KnowledgeTransfer:
        """What the phase of one teacher leaves, on the batches of the steps of that phase."""
        method = transfer(finished(2 + number))
        if start is not None:
            set_weights(method.plain(), start.plain())
            set_weights(method.get_submodule("initial"), start.plain())
        offset = 2 * number
        node = {"about": {"target": "torch.optim.SGD"}, "lr": 0.05, "momentum": 0.9}
        optimizer = build_optimizers(method.optimizers(node, 1), node)["main"]
        method.train()
        for step in range(offset + 1, offset + 3):
            torch.manual_seed(step)
            optimizer.zero_grad()
            method.training_loss(images(seed=step)).backward()
            optimizer.step()
        return method

    method = transfer(finished(2), finished(3), multi=multi, teacher_epochs=2)
    method.start_fit(4)
    train(method, 4)
    first = alone(0, None)
    second = alone(1, first if multi == "sequential" else None)
    pairs = zip(method.backbone.parameters(), first.backbone.parameters(), second.backbone.parameters(), strict=True)
    for found, a, b in pairs:
        assert torch.allclose(found, b if multi == "sequential" else (a + b) / 2, atol=1e-6)


def test_a_run_of_another_length_is_refused() -> None:
    method = transfer(finished(2), finished(3), teacher_epochs=2, epoch_steps=5)
    with pytest.raises(UserError, match="take 20 steps, and the run has 10") as error:
        method.start_fit(10)
    assert error.value.remedy == "trainer.max_steps=null trainer.max_epochs=4"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"dp": {"supervised": False, "strategy": "flip_t"}}, "takes labels"),
        ({"dp": {"supervised": False}, "kd": {"alpha": 0.5}}, "Without labels"),
        ({"approach": "cd", "teachers": ["a", "b"]}, "approach=cd learns from one teacher"),
        ({"teachers": ["a", "b"]}, "so many epochs"),
        ({"teachers": ["a", "b"], "multi": "parallel", "kd": {"topk": 2}}, "which of the teachers"),
        ({"teachers": ["a", "b"], "multi": "parallel", "dp": {"strategy": "self"}}, "by confidence alone"),
        ({"teachers": ["a", "a"]}, "named once"),
        ({"teachers": []}, "named once"),
        ({"kd": {"topk": 9}}, "There are 3 classes"),
    ],
)
def test_what_does_not_go_together(settings: dict[str, Any], told: str) -> None:
    words = {name: GROUPS[name] | value if name in GROUPS else value for name, value in settings.items()}
    with pytest.raises(UserError, match=told):
        KnowledgeTransfer(vit(1, layers=2), TASK, **words)


def test_without_a_teacher_nothing_is_trained() -> None:
    with pytest.raises(UserError, match="no teacher"):
        transfer().train().training_loss(images())
    assert torch.isfinite(transfer().eval().loss(images()))
