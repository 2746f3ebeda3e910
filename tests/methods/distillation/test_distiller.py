"""The student, its frozen teacher and what stands between them: the spec's checks 5, 7, 8, and the choices."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.methods.distillation.models import BERT, TASK, bert, distiller, images, text, vit
from transfer_run.errors import UserError
from transfer_run.methods.base import Method
from transfer_run.methods.distillation.objectives.critics import Critic
from transfer_run.methods.distillation.teachers.activations import attention_map, collect_activations
from transfer_run.methods.tuning.full import Full
from transfer_run.task import Task

ONLY_LAYERS = {"kd": {"hard_weight": 0.0, "soft_weight": 0.0}}
BOUNDS = ["mi", "nce", "tuba", "nwj"]


def steps(method: Method, count: int = 4) -> list[float]:
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    method.train()
    losses = []
    for step in range(count):
        torch.manual_seed(step)
        loss = method.training_loss(text(seed=step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    return losses


def test_labels_alone_are_plain_fine_tuning_step_by_step() -> None:
    torch.manual_seed(3)
    plain = Full(bert(1, layers=2), TASK)
    settings: dict[str, Any] = {"kd": {"hard_weight": 1.0, "soft_weight": 0.0}, "inter": {"weight": 0.0}}
    student = distiller(bert(1, layers=2), bert(2), **settings)
    assert steps(student) == steps(plain)
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter, student.get_parameter(name)), name


def test_the_teacher_gets_no_gradient_and_the_student_ships_alone() -> None:
    method = distiller(bert(1, layers=2, width=16), bert(2), inter={"loss": "mse"})
    teacher = method.get_submodule("teacher")
    before = {name: p.clone() for name, p in teacher.named_parameters()}
    steps(method)
    assert not teacher.training
    for name, parameter in teacher.named_parameters():
        assert not parameter.requires_grad
        assert parameter.grad is None
        assert torch.equal(parameter, before[name])
    assert all(p.grad is not None for p in method.aids.parameters())
    trained = {id(p) for group in method.parameter_groups() for p in group["params"]}
    assert {id(p) for p in method.aids.parameters()} <= trained
    assert not {id(p) for p in teacher.parameters()} & trained
    alone = {f"backbone.{name}" for name, _ in method.backbone.named_parameters()}
    assert set(method.shipped()) == alone
    head = sum(p.numel() for p in method.backbone.head.parameters())
    assert method.counted_parameters() == sum(p.numel() for p in method.backbone.parameters()) - head
    logits = method.eval()(text())
    method.settle()
    assert {name for name, _ in method.named_parameters()} == alone
    assert torch.equal(method(text()), logits)
    method.train()


@pytest.mark.parametrize("loss", ["mse", "cos", "pkd"])
def test_a_copy_of_the_teacher_has_nothing_to_learn(loss: str) -> None:
    method = distiller(bert(1), bert(1), inter={"loss": loss}, **ONLY_LAYERS).eval()
    assert len(method.pairs) == 5
    assert float(method.loss(text())) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("loss", "critic"),
    [(loss, "transformer") for loss in ("mse", "ce", "l2", "cos", "fsp", "nst", *BOUNDS)]
    + [(loss, "mlp") for loss in BOUNDS],
)
def test_tokens_under_padding_change_nothing(loss: str, critic: str) -> None:
    method = distiller(bert(1, layers=2), bert(2), inter={"loss": loss}, mi={"critic": critic}).eval()
    batch = text()
    other = {**batch, "input_ids": torch.where(batch["attention_mask"].bool(), batch["input_ids"], 33)}
    with torch.no_grad():
        assert float(method.loss(other)) == pytest.approx(float(method.loss(batch)), rel=1e-5)


@pytest.mark.parametrize(
    "inter",
    [
        *({"loss": loss} for loss in ("mse", "ce", "l2", "cos", "pkd", "fsp", "nst", *BOUNDS)),
        *({"feature": "attention", "loss": loss} for loss in ("mse", "mse_sum", "ce", "ce_mean")),
        {"mapping": "last"}, {"mapping": "final", "loss": "mse", "tokens": "first"},
        {"mapping": "emd", "loss": "mse"}, {"mapping": "emd"}, {"alpha_scale": "logit", "alpha": 2.0},
    ],
    ids=lambda inter: "-".join(str(value) for value in inter.values()),
)  # fmt: skip
def test_every_objective_trains_a_narrower_student(inter: dict[str, Any]) -> None:
    method = distiller(bert(1, layers=2, width=16), bert(2), inter=inter, **ONLY_LAYERS)
    method.train()
    loss = method.training_loss(text())
    loss.backward()
    assert torch.isfinite(loss)
    grads = [p.grad for p in method.backbone.model.parameters() if p.grad is not None]
    assert grads
    assert all(torch.isfinite(g).all() for g in grads)
    assert any(g.abs().max() > 0 for g in grads)


@pytest.mark.parametrize("mi", [{"critic": "transformer"}, {"critic": "mlp"}, {"critic": "mlp", "separable": False}])
def test_a_critic_learns_which_pairs_belong_together(mi: dict[str, Any]) -> None:
    torch.manual_seed(0)
    critic = Critic(mi["critic"], 8, 6, width=16, heads=4, layers=1, separable=mi.get("separable", True))
    x, turn = torch.randn(12, 3, 8), torch.randn(8, 6)
    y, mask = x @ turn, torch.ones(12, 3)
    optimizer = torch.optim.Adam(critic.parameters(), lr=3e-3)
    for _ in range(80):
        scores, log_q = critic(x, y, mask)
        loss = torch.nn.functional.cross_entropy(scores, torch.arange(12)) + log_q.pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scores = critic(x, y, mask)[0]
    assert scores.shape == (12, 12)
    assert (scores.argmax(1) == torch.arange(12)).float().mean() > 0.9
    swapped = critic(x, y.flip(0), mask)[0]  # rows are the teacher's examples
    assert torch.allclose(swapped, scores.flip(0), atol=1e-5)


def test_projections_stand_where_widths_differ_alone() -> None:
    names = {
        "mse": ["project_0", "project_1", "project_2"], "nst": [], "mi": ["critic_0_0", "critic_1_2", "critic_2_4"]
    }  # fmt: skip
    for loss, expected in names.items():
        assert list(distiller(bert(1, layers=2, width=16), bert(2), inter={"loss": loss}).aids) == expected
    assert list(distiller(bert(1, layers=2), bert(2), inter={"loss": "mse"}).aids) == []
    assert list(distiller(bert(1, layers=2), bert(2), inter={"mapping": "emd", "loss": "mi"}).aids) == ["critic"]


def test_the_last_small_batch_of_an_epoch_has_no_bound() -> None:
    method = distiller(bert(1, layers=2), bert(2), inter={"loss": "mi"}, **ONLY_LAYERS)
    assert float(method.train().loss(text(rows=2))) == 0


def test_layer_zero_is_the_embedding_and_the_last_is_the_last_block() -> None:
    student, batch = Full(bert(1), TASK).eval(), text()
    seen = collect_activations(student, batch, layers=range(5))
    inner = student.backbone.model
    theirs = inner(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True)
    real = batch["attention_mask"].bool()
    for index, states in enumerate(theirs.hidden_states):
        assert torch.allclose(seen.hidden[index][real], states[real], atol=1e-5), index
    assert torch.equal(seen.logits, student(batch))


def test_attention_maps_are_those_of_the_library() -> None:
    method, batch = Full(bert(1), TASK).eval(), text()
    seen = collect_activations(method, batch, feature="attention", layers=range(4))
    method.backbone.set_attention("eager")
    theirs = method.backbone.model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_attentions=True
    ).attentions
    for index, maps in enumerate(theirs):
        assert torch.allclose(seen.attention[index], maps, atol=1e-5), index
    backbone = vit(1)
    backbone.eval()
    state = backbone.embed(images())
    assert torch.allclose(attention_map(backbone, state).sum(-1), torch.ones(6, 4, state.hidden.shape[1]), atol=1e-5)


def test_the_first_stage_trains_on_layers_alone() -> None:
    method = distiller(bert(1, layers=2), bert(2), inter={"loss": "mse", "first_share": 0.5}).eval()
    method.first_steps = 2.0
    seen = []
    for step in range(4):
        method.zero_grad()
        method.loss(text()).backward()
        seen.append(float(method.backbone.head.weight.grad.abs().sum()) > 0)
        method.after_step(step + 1)
    assert seen == [False, False, True, True]
    assert "steps_done" in method.changing


def test_layer_weights_of_the_transport_plan_move_and_can_be_resumed() -> None:
    method = distiller(bert(1, layers=2), bert(2), inter={"mapping": "emd", "loss": "mse"}, **ONLY_LAYERS)
    steps(method, 2)
    weights = method.get_buffer("student_weights")
    assert float(weights.sum()) == pytest.approx(1, abs=1e-5)
    assert float((weights - 0.5).abs().max()) > 0
    assert {"student_weights", "teacher_weights"} <= method.changing
    assert not {"student_weights", "teacher_weights"} & set(method.shipped())


# ---- augmentation
@pytest.mark.parametrize("augment", ["mixup", "random"])
def test_augmented_rows_carry_the_teachers_answer_alone(augment: str) -> None:
    method = distiller(bert(1, layers=2), bert(2), augment=augment)
    counted = []
    method.task_loss = lambda logits, labels: counted.append((len(logits), len(labels))) or logits.sum() * 0  # type: ignore[method-assign, assignment, func-returns-value]
    method.train().loss(text()).backward()
    assert counted == [(6, 6)]
    method.eval().loss(text())
    given, change = method._augmented(text())
    assert given.keys() == text().keys()
    assert change is None


def test_mixtures_of_images() -> None:
    method = distiller(vit(1, layers=2), vit(2), augment="mixup")
    loss = method.train().training_loss(images())
    loss.backward()
    assert torch.isfinite(loss)


# ---- refusals
def test_without_a_teacher_there_is_no_training() -> None:
    method = distiller(bert(1, layers=2), None)
    with pytest.raises(UserError, match="no teacher"):
        method.train().training_loss(text())
    assert torch.equal(method.eval().loss(text()), method.task_loss(method(text()), text()["labels"]))


class OtherPath(Full):
    """A teacher whose answer is not made by its backbone's blocks alone."""

    def features(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return super().features(batch) * 2


def test_teachers_that_do_not_fit() -> None:
    def refused(match: str, teacher: Any, **settings: Any) -> None:
        with pytest.raises(UserError, match=match):
            distiller(bert(1, layers=2), teacher, **settings)

    refused("with 5 labels", Full(bert(2), Task("classification", 5)))
    refused("vocabulary", bert(2, vocab_size=50))
    refused("fewer", bert(2, layers=1))
    refused("path of its own", OtherPath(bert(2), TASK))
    named = Task("classification", 3, ("a", "b", "c"))
    with pytest.raises(UserError, match="other classes"):
        distiller(bert(1, layers=2), Full(bert(2), Task("classification", 3, ("b", "a", "c"))), task=named)
    with pytest.raises(UserError, match="images"):
        distiller(vit(1), bert(2))
    soft = distiller(bert(1, layers=2), OtherPath(bert(2), TASK), inter={"mapping": "none"})
    assert torch.isfinite(soft.train().loss(text()))


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(UserError, match="not defined on attention"):
        distiller(bert(1), None, inter={"feature": "attention", "loss": "mi"})
    with pytest.raises(UserError, match="distribution"):
        distiller(bert(1), None, task=Task("regression", 1))
    with pytest.raises(UserError, match="translation models"):
        distiller(bert(1), None, augment="backtranslation")
    with pytest.raises(UserError, match="reads images"):
        distiller(vit(1), None, augment="random")
    with pytest.raises(UserError, match="thesaurus"):
        distiller(bert(1), None, augment="random", augmentation={"operations": ["synonym"]})
    with pytest.raises(UserError, match="masked language model"):
        distiller(bert(1, layers=2), bert(2), augment="contextual")
    deberta = {
        **BERT, "model_type": "deberta-v2", "type_vocab_size": 0, "relative_attention": True, "position_buckets": 8,
        "pos_att_type": ["p2c", "c2p"], "share_att_key": True, "norm_rel_ebd": "layer_norm",
        "position_biased_input": False, "max_relative_positions": -1,
    }  # fmt: skip
    with pytest.raises(UserError, match="attention maps"):
        distiller(bert(1, **deberta), None, inter={"feature": "attention", "loss": "mse"})


def test_regression_learns_the_teachers_number() -> None:
    task = Task("regression", 1, metrics=("pearson",))
    method = distiller(bert(1, layers=2), bert(2), task=task, kd={"soft": "mse"})
    batch = {**text(), "labels": torch.linspace(0, 1, 6)}
    assert torch.isfinite(method.train().loss(batch))
