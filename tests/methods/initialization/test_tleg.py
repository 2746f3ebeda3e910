"""The auxiliary model: its loss, its teacher, what it stores, and an ordinary run that begins from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import transfer_run
from tests.methods.initialization.models import TASK, batch, learned, taught, vit
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.models.model_files import load_model
from transfer_run.experiment.run import carry_out
from transfer_run.methods.initialization.tleg import Tleg, distillation
from transfer_run.methods.tuning.full import Full
from transfer_run.run_folder import model_folder, read_description, read_result

WORDS = ["backbone=vit_tiny", "dataset=digits", "hardware=cpu", "trainer.progress=none", "trainer.max_steps=2",
         "optimizer.warmup=0"]  # fmt: skip
TEACHER = "sources.teacher=method=full backbone=vit_tiny dataset=digits backbone.weights=random:1 trainer.max_steps=2"


def test_the_divergence_is_divided_by_the_number_of_logits() -> None:
    """Check 6, and the trap: not by the number of rows."""
    z, t = torch.randn(5, 7).requires_grad_(), torch.randn(5, 7)
    expected = sum(
        float((F.softmax(b / 2, -1) * (F.log_softmax(b / 2, -1) - F.log_softmax(a / 2, -1))).sum())
        for a, b in zip(z.detach(), t, strict=True)
    )
    assert float(distillation(z, t, 2.0, "numel")) == pytest.approx(4 * expected / 35, rel=1e-5)
    assert float(distillation(z, t, 2.0, "batch")) == pytest.approx(4 * expected / 5, rel=1e-5)
    torch.testing.assert_close(distillation(z + 3, t - 2, 2.0, "numel"), distillation(z, t, 2.0, "numel"))
    same = distillation(z, z.detach(), 2.0, "numel")
    assert float(same) == pytest.approx(0, abs=1e-6)
    assert float(torch.autograd.grad(same, z)[0].abs().max()) < 1e-6
    small = [torch.autograd.grad(distillation(0.01 * z, 0.01 * t, tau, "batch"), z)[0] for tau in (1.0, 4.0)]
    torch.testing.assert_close(small[0], small[1], rtol=0.05, atol=1e-6)


def test_the_loss_is_the_teachers_share_and_the_labels() -> None:
    method, data = taught(distill={"alpha": 0.25, "tau": 2.0, "divide_by": "numel"}), batch()
    teacher = method.the_teacher()
    assert teacher is not None
    kd = distillation(method(data), teacher(data), 2.0, "numel")
    assert torch.allclose(method.loss(data), 0.25 * kd + 0.75 * F.cross_entropy(method(data), data["labels"]))
    method.eval()
    assert torch.allclose(method.loss(data), F.cross_entropy(method(data), data["labels"]))
    labels = learned(distill={"alpha": 0.0, "tau": 1.0, "divide_by": "numel"}).train()
    labels.take_sources(lambda name: pytest.fail("no teacher is asked for"))
    assert torch.allclose(labels.loss(data), F.cross_entropy(labels(data), data["labels"]))


def test_teacher_and_student_see_the_same_mixed_images(monkeypatch: pytest.MonkeyPatch) -> None:
    method, data, seen = taught(mixup=0.8, cutmix=1.0), batch(), []
    assert method.couples_rows
    teacher = method.the_teacher()
    assert teacher is not None
    for each in (method.backbone, teacher.teacher.backbone):
        plain = each.embed

        def watched(given: dict[str, torch.Tensor], *rest: object, plain: object = plain) -> object:
            seen.append(given["pixel_values"])
            return plain(given, *rest)  # type: ignore[operator]

        monkeypatch.setattr(each, "embed", watched)
    method.loss(data)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], data["pixel_values"])


def test_mixed_labels_count_by_their_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    method, data = learned(distill={"alpha": 0.0, "tau": 1.0, "divide_by": "numel"}, mixup=1.0).train(), batch()
    share = torch.tensor(0.3)
    monkeypatch.setattr("transfer_run.methods.initialization.tleg.mixed", lambda x, **how: (x, share))
    logits, labels = method(data), data["labels"]
    expected = 0.3 * F.cross_entropy(logits, labels) + 0.7 * F.cross_entropy(logits, labels.flip(0))
    assert torch.allclose(method.loss(data), expected)


def test_the_teacher_is_left_alone_and_not_shipped() -> None:
    """Check 7."""
    method, data = taught(), batch()
    teacher = method.the_teacher()
    assert teacher is not None
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    optimizer = torch.optim.SGD(method.parameter_groups(), lr=0.1)
    method.loss(data).backward()
    optimizer.step()
    assert all(p.grad is None for p in teacher.parameters())
    assert not teacher.training
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert not any(name.startswith("teacher") for name in method.shipped())


def test_a_line_without_a_teacher_is_refused_in_words() -> None:
    with pytest.raises(UserError, match="no teacher"):
        learned().train().loss(batch())
    assert float(learned().eval().loss(batch())) > 0


def test_its_size_does_not_depend_on_depth() -> None:
    """Check 5: two blocks, stem, norm, head."""
    counts = [sum(p.numel() for p in learned(depth).parameters()) for depth in (2, 4, 9)]
    plain = Full(vit(4), TASK)
    block = sum(p.numel() for p in plain.backbone.blocks("image")[0].parameters())
    assert counts == [sum(p.numel() for p in plain.parameters()) - 2 * block] * 3


def test_vectors_and_positions_do_not_decay() -> None:
    method = learned()
    decayed, still = method.parameter_groups()
    names = {id(p): name for name, p in method.named_parameters()}
    assert still["weight_decay"] == 0.0
    assert "weight_decay" not in decayed
    found = {names[id(p)] for p in still["params"]}
    assert {"line.slope.norm1.weight", "line.base.attn.qkv.bias", "backbone.model.pos_embed"} <= found
    assert not any(name.endswith(("qkv.weight", "fc1.weight", "head.weight")) for name in found)
    assert len(decayed["params"]) + len(still["params"]) == len(names)


def test_released_norms_have_the_released_constant() -> None:
    paper, released = learned(), learned(fidelity="released")
    for method, eps in ((paper, 1e-6), (released, 1e-5)):
        block = method.backbone.blocks("image")[2]
        assert {block.get_submodule(name).eps for name in ("norm1", "norm2")} == {eps}
    assert not torch.equal(paper(batch()), released(batch()))


def test_folded_it_is_an_ordinary_network_of_its_depth() -> None:
    """Check 1."""
    method, data = learned().eval(), batch()
    expected = method(data)
    assert not method.has_whole_backbone()
    method.fold()
    torch.testing.assert_close(method(data), expected, atol=1e-5, rtol=0)
    assert method.shipped().keys() == Full(vit(4), TASK).shipped().keys()
    assert method.has_whole_backbone()


def test_what_is_stored_is_two_blocks_and_loads(shared_runs: Path) -> None:
    run = compose(["method=tleg", *WORDS, TEACHER, "trainer.max_steps=4", f"output_dir={shared_runs}"])
    folder = model_folder(carry_out(run))
    about = read_description(folder)
    assert not about["complete"]
    loaded = load_model(folder)
    assert isinstance(loaded, Tleg)
    assert sum(name.startswith("line.") for name in loaded.shipped()) == 24
    assert not any("blocks" in name for name in loaded.shipped())


@pytest.mark.parametrize("depth", [6, 3])
def test_an_ordinary_run_begins_from_its_line(shared_runs: Path, depth: int) -> None:
    """At its own depth by itself; at any through method=expand, by one word."""
    aux = f'method=tleg {" ".join(WORDS)} trainer.max_steps=4 "{TEACHER}"'
    sized = f"backbone=vit_tiny backbone.architecture.depth={depth}"
    expanded = f"method=expand {sized} dataset=digits sources.model='{aux}'"
    weights = aux if depth == 6 else expanded
    run = compose(["method=full", *WORDS, f"backbone.architecture.depth={depth}", "optimizer.lr=1e-9",
                   f"backbone.weights=run:{weights}", f"output_dir={shared_runs}"])  # fmt: skip
    folder = carry_out(run)
    blocks = transfer_run.load(folder).backbone.blocks("image")
    line = transfer_run.load(carry_out(compose(["method=tleg", *WORDS, TEACHER, "trainer.max_steps=4",
                                                f"output_dir={shared_runs}"]))).line  # fmt: skip
    assert isinstance(line, torch.nn.Module)
    for number, block in enumerate(blocks):
        found = block.get_parameter("attn.qkv.weight")
        expected = line.weight("attn.qkv.weight", number / depth)  # type: ignore[operator]
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert read_result(folder) is not None


def test_words_that_are_refused() -> None:
    with pytest.raises(UserError, match=r"method=expand backbone\.architecture\.depth"):
        compose(["method=tleg", "backbone=vit_tiny", "dataset=digits", "method.depths=[3,4]"])
    with pytest.raises(UserError, match="method=tleg is not defined on"):
        compose(["method=tleg", "backbone=cnn_tiny", "dataset=digits"])
    with pytest.raises(UserError, match="must be"):
        compose(["method=tleg", "backbone=vit_tiny", "dataset=digits", "method.distill.alpha=1.5"])
