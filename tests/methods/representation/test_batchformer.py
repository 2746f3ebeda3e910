"""BatchFormer around the plain network and around other methods."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests import small
from tests.matrix.smallest import carried_out_in_two
from transfer_run.errors import UserError
from transfer_run.experiment.config import registry
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.models.model_files import load_model
from transfer_run.experiment.run import carry_out
from transfer_run.methods.build import build_method
from transfer_run.methods.representation.batchformer import BatchFormer

WORDS = ("backbone=cnn_tiny", "backbone.weights=random:0", "dataset=digits", "hardware=cpu", "trainer.progress=none",
         "dataset.long_tail={factor: 20, kind: exp, many: 60, few: 15}", "trainer.max_steps=4",
         "dataset.classes=[0,1,2,3,4]", "optimizer.warmup=0")  # fmt: skip


def node(name: str, **more: Any) -> dict[str, Any]:
    return {**registry.entry("method", name, ()).content["method"], **more}


def made(host: dict[str, Any] | None = None, backbone: str = "vit", **more: Any) -> BatchFormer:
    torch.manual_seed(0)
    built = build_method(
        node("batchformer", around=host, dropout=0.0, **more),
        small.backbone(backbone),
        small.task(backbone, "classification"),
    )
    assert isinstance(built, BatchFormer)
    return built


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    return small.batch("vit", "classification")


def without_dropout(method: BatchFormer) -> BatchFormer:
    for module in method.backbone.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return method.train()


def test_the_loss_is_the_mean_of_both_halves(batch: dict[str, torch.Tensor]) -> None:
    method = without_dropout(made())
    rows = method.features(batch)
    head = method.backbone.head
    before, after = (F.cross_entropy(head(x), batch["labels"]) for x in (rows, method.relation(rows)))
    assert torch.allclose(method.loss(batch), (before + after) / 2, atol=1e-6)
    assert method(batch).shape[0] == 2 * len(rows)
    released = without_dropout(made(fidelity="released"))
    assert torch.allclose(released.loss(batch), 1.5 * (before + after), atol=1e-5)
    alone = without_dropout(made(share_classifier=False))
    assert torch.allclose(alone.loss(batch), after, atol=1e-6)


def test_rows_see_each_other_in_training_alone(batch: dict[str, torch.Tensor]) -> None:
    method = without_dropout(made())
    other = {**batch, "pixel_values": batch["pixel_values"].clone()}
    other["pixel_values"][0] += 1
    count = len(batch["labels"])
    moved = (method(batch) - method(other)).abs().amax(1)
    assert (moved[1:count] == 0).all()  # of X
    assert (moved[count:] > 0).all()  # of X'
    method.eval()
    alone = torch.cat([method(method.form.example(batch, row)) for row in range(count)])
    assert torch.allclose(method(batch), alone, atol=1e-6)
    assert torch.equal(method(batch), method.backbone.head(method.features(batch)))


def test_the_loss_of_a_row_reaches_the_features_of_others(batch: dict[str, torch.Tensor]) -> None:
    method = without_dropout(made())
    rows = method.features(batch).detach().requires_grad_()
    related = method.backbone.head(method.relation(rows))
    (gradient,) = torch.autograd.grad(F.cross_entropy(related[:1], batch["labels"][:1]), rows)
    assert gradient.abs().amax(1).gt(0).all()
    plain = F.cross_entropy(method.backbone.head(rows)[:1], batch["labels"][:1])
    assert torch.autograd.grad(plain, rows)[0].abs().amax(1).gt(0).tolist() == [True] + [False] * (len(rows) - 1)


def test_what_ships_is_the_plain_network(batch: dict[str, torch.Tensor]) -> None:
    method = made().eval()
    expected = method(batch)
    tensors = method.shipped()
    plain = build_method(node("full"), small.backbone("vit"), small.task("vit", "classification"))
    assert tensors.keys() == plain.shipped().keys()
    assert method.counted_parameters() == plain.counted_parameters()
    plain.load_state_dict(tensors, strict=False)
    assert torch.equal(plain.eval()(batch), expected)
    method.settle()
    assert torch.equal(method(batch), expected)
    assert not any(name.startswith("relation") for name, _ in method.named_parameters())


def test_used_at_test_it_ships_and_answers_depend_on_the_batch(batch: dict[str, torch.Tensor]) -> None:
    method = made(use_at_test=True).eval()
    method.settle()
    assert any(name.startswith("relation.") for name in method.shipped())
    rows = method.features(batch)
    assert torch.equal(method(batch), method.backbone.head(method.relation(rows)))


def test_a_copy_has_an_encoder_of_its_own(batch: dict[str, torch.Tensor]) -> None:
    method = without_dropout(made())
    before, twin = method.loss(batch), copy.deepcopy(method)
    with torch.no_grad():
        for parameter in twin.relation.parameters():
            parameter.add_(0.1)
    assert torch.equal(method.loss(batch), before)
    assert not torch.equal(twin.loss(batch), before)


@pytest.mark.parametrize(
    ("host", "backbone"),
    [("lora", "bert"), ("lst", "bert"), ("linear_probe", "vit"), ("bitfit", "vit"), ("peft/adalora", "llama"),
     ("prompt_tuning", "clip"), ("prefix_tuning", "bert"), ("unipt", "vit"), ("full", "cnn"), ("full", "t5")],
)  # fmt: skip
def test_it_goes_around_any_method(host: str, backbone: str) -> None:
    own = {"lst": {"reduction_factor": 2, "init": "random"}, "prefix_tuning": {"length": 3, "hidden": 8},
           "prompt_tuning": {"length": 3}}.get(host, {})  # fmt: skip
    method = made(node(host, **own), backbone)
    method.start_fit(4)
    method.train()
    data = small.batch(backbone, "classification")
    method.loss(data).backward()
    wanted = {name for name, p in method.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in method.relation.parameters())
    assert all(p.grad is None for name, p in method.named_parameters() if name not in wanted)
    groups = [p for group in method.optimizers({"lr": 1.0}, 1)["main"].groups for p in group["params"]]
    assert {id(p) for p in groups} == {id(p) for p in method.parameters() if p.requires_grad}
    assert len(groups) == len({id(p) for p in groups})
    method.settle()
    assert method.eval()(data).shape == (len(data["labels"]), small.task(backbone, "classification").num_labels)


def test_its_rate_is_a_part_of_the_runs() -> None:
    optimization = made(lr_scale=0.1).optimizers({"lr": 0.5}, 1)["main"]
    assert [group.get("lr") for group in optimization.groups] == [None, 0.05]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["method.around=lorra"], "lorra"),
        (["method.around='lora rnak=4'"], "rnak"),
        (["method.around='lora rank=0'"], "must be"),
        (["method.around={rank: 4}"], "is the words of a method"),
        (["method.around=ties"], "cannot be wrapped"),
        (["method.around=distiller"], "cannot be wrapped"),
        (["method.around=batchformer"], "cannot be wrapped"),
        (["method.around=vqt"], "trained with optimizer=adam"),
        (["method.around='lora about.title=mine'"], "a fact of its file"),
        (["method.criterion=balanced_softmax"], "There is no key"),
    ],
)
def test_words_that_wrap_nothing_are_refused(words: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        compose(["method=batchformer", "backbone=vit_tiny", "dataset=digits", *words])


def test_a_method_inside_must_fit_the_backbone() -> None:
    with pytest.raises(UserError, match="method=lst is not defined on"):
        compose(["method=batchformer", "method.around=lst", "backbone=cnn_tiny", "dataset=digits"])


def test_forms_without_a_classifier_are_refused() -> None:
    with pytest.raises(UserError, match="does not train on"):
        compose(["method=batchformer", "backbone=bert_tiny", "dataset=glue/stsb"])
    with pytest.raises(UserError, match="before a classifier"):
        build_method(node("batchformer"), small.backbone("t5"), small.task("t5", "text_to_text"))


def test_settings_of_the_method_inside_hold_unless_words_say_otherwise() -> None:
    words = ["method=batchformer", "backbone=vit_tiny", "dataset=digits"]
    own = registry.entry("method", "lst", ()).content["optimizer"]["lr"]
    inside = compose([*words, "method.around=lst"])
    assert inside.config["optimizer"]["lr"] == own
    assert inside.config["method"]["around"]["reduction_factor"] == 8
    assert compose([*words, "method.around=lst", "optimizer.lr=0.5"]).config["optimizer"]["lr"] == 0.5
    assert compose(words).config["optimizer"]["lr"] == 3e-4
    other = compose([*words, "method.around='lst reduction_factor=4'"])
    assert len({inside.identity, other.identity, compose(words).identity}) == 3


def test_a_run_around_lora_goes_on_to_the_same_bits_and_loads(tmp_path: Path) -> None:
    """Stopped and carried out again as unbroken; what is loaded answers as what was tested."""
    base = ["method=batchformer", "method.around='peft/dora'", *WORDS, "backbone=vit_tiny", "profiler=none"]
    whole = carry_out(compose([*base, f"output_dir={tmp_path / 'one'}"]))
    again = carried_out_in_two(compose([*base, f"output_dir={tmp_path / 'two'}"]))
    files = [folder / "checkpoints" / "model" / "model.safetensors" for folder in (whole, again)]
    assert files[0].read_bytes() == files[1].read_bytes()
    result = json.loads((whole / "result.json").read_text(encoding="utf-8"))
    assert {"test/accuracy_many", "test/accuracy_few"} < set(result["metrics"])
    model = load_model(whole / "checkpoints" / "model")
    assert not model.training
    assert not any(name.startswith("relation") for name in model.state_dict())


@pytest.mark.parametrize("setting", [[], ["dataset.balanced_softmax=true"]])
def test_the_same_command_trains_with_and_without(setting: list[str], shared_runs: Path) -> None:
    counts = []
    for method in ("full", "batchformer"):
        folder = carry_out(compose([f"method={method}", *WORDS, *setting, f"output_dir={shared_runs}"]))
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        assert result["memory"]["predicted_peak"] == pytest.approx(result["memory"]["peak"], rel=0.02)
        assert result["status"] == "finished"
        model = load_model(folder / "checkpoints" / "model")
        counts.append(sum(p.numel() for p in model.parameters()))
    assert counts[0] == counts[1]


def test_a_stage_goes_on_with_a_new_encoder(tmp_path: Path) -> None:
    """What is trained and not shipped begins anew in the next stage; the rest goes on."""
    stages = "stages=[[dataset.classes=[5,6,7]],[dataset.classes=[0,1,2,3,4]]]"
    words = [word for word in WORDS if not word.startswith(("dataset.classes", "dataset.long_tail"))]
    run = compose(["method=batchformer", *words, stages, "profiler=none", f"output_dir={tmp_path}"])
    result = json.loads((carry_out(run) / "result.json").read_text(encoding="utf-8"))
    assert result["status"] == "finished"
    assert len(list((tmp_path / "runs").rglob("result.json"))) == 2
