"""The plan of anybody's own step is what that step takes, and leaves the module as it was."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.memory import small
from tests.test_pages import blocks
from transfer_run.errors import UserError
from transfer_run.memory import plan
from transfer_run.memory.module_names import ModuleNames
from transfer_run.memory.planner import Rehearsal, Setting
from transfer_run.memory.tracker import MemoryTracker
from transfer_run.methods.tuning.lora import LoRA


def model() -> nn.Module:
    """A frozen first layer, a trained rest, dropout between, two tied matrices."""
    found = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.Dropout(0.1), nn.Linear(64, 64))
    found[0].requires_grad_(False)
    found[4].weight = found[2].weight  # type: ignore[assignment]
    return found


def loss_of(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    inputs, labels = batch
    return F.cross_entropy(module(inputs), labels)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3)


def batch(size: int = 100) -> tuple[Tensor, Tensor]:
    return torch.randn(size, 32), torch.randint(10, (size,))


def measured(module: nn.Module, data: tuple[Tensor, Tensor]) -> dict[str, int]:
    """Peaks of the second step of a plain loop on a CPU, by phase."""
    optimizer = adamw([p for p in module.parameters() if p.requires_grad])
    with MemoryTracker(module_names=ModuleNames(module)) as tracker:
        tracker.hold_model(module)
        tracker.hold(data, "inputs")
        for _ in range(2):
            tracker.reset()
            tracker.mark("forward")
            loss = loss_of(module, data)
            tracker.mark("backward")
            loss.backward()
            tracker.hold_gradients(module)
            del loss
            tracker.mark("step")
            optimizer.step()
            tracker.hold_optimizer(optimizer)
            optimizer.zero_grad()
    return {name: phase.bytes for name, phase in tracker.report().phases.items()}


def test_a_plain_loop_needs_what_was_planned() -> None:
    answer = plan(model(), batch(), adamw, loss=loss_of, target="cpu")
    real = measured(model(), batch())
    planned = {name: phase["peak"] for name, phase in answer.memory["phases"].items()}
    for phase in ("forward", "backward", "step"):
        assert planned[phase] == real[phase], phase
    assert answer.peak == max(planned.values())


def test_a_method_planned_as_anybodys_module_is_planned_as_a_method() -> None:
    setting = Setting(precision="bf16-mixed")

    def made() -> LoRA:
        return LoRA(small.backbone("bert", "meta"), small.task("bert"))

    method = made()
    own = Rehearsal(method, lambda: {"all": adamw([p for p in method.parameters() if p.requires_grad])},
                    lambda size: small.shapes("bert", size), setting).measure(8)  # fmt: skip
    answer = plan(made(), small.batch("bert", 8), adamw, loss=lambda m, b: m.training_loss(b),
                  precision="bf16-mixed", gradient_clip=1.0)  # fmt: skip
    for phase in ("forward", "backward", "step"):
        assert answer.memory["phases"][phase]["peak"] == own.phases[phase].bytes


def test_the_module_and_the_batch_stay_as_they_were() -> None:
    module, data = model(), batch()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    plan(module, data, adamw, loss=loss_of, precision="bf16-true")
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert all(p.grad is None for p in module.parameters())
    assert module[4].weight is module[2].weight  # type: ignore[index]
    assert not any(p.requires_grad for p in module[0].parameters())  # type: ignore[index]


def test_the_largest_batch_is_the_largest() -> None:
    answer = plan(model(), batch(8), adamw, loss=loss_of)
    found = answer.largest_batch("1GB", context="1B", cached=0)
    assert found.next_peak is not None
    assert found.peak <= 10**9 < found.next_peak
    assert plan(model(), batch(found.batch_size), adamw, loss=loss_of).peak == found.peak
    assert answer.largest_batch(card="l4").batch_size > found.batch_size
    with pytest.raises(UserError, match="Which memory"):
        answer.largest_batch()


class Lit(pl.LightningModule):
    """As people write it: a loss in a dict, an optimizer with a schedule."""

    def __init__(self) -> None:
        super().__init__()
        self.model = model()

    def training_step(self, data: tuple[Tensor, Tensor], batch_idx: int) -> dict[str, Tensor]:
        return {"loss": loss_of(self.model, data)}

    def configure_optimizers(self) -> Any:
        optimizer = adamw(self.model[2].parameters())  # type: ignore[index]
        return [optimizer], [torch.optim.lr_scheduler.ConstantLR(optimizer)]


def test_a_lightning_module_says_itself_what_it_needs() -> None:
    answer = plan(Lit(), batch(), target="cpu")
    bare = plan(model(), batch(), loss=loss_of, target="cpu")
    states = 2 * (64 * 64 + 64) * 4 + 2 * 4  # of the second layer alone: two moments, a counter for each tensor
    assert answer.memory["phases"]["step"]["by_kind"]["optimizer"] == states
    assert bare.memory["by_kind"]["optimizer"] == 0
    assert set(bare.memory["phases"]) == {"setup", "evaluation"}


def test_a_report_to_read() -> None:
    text = str(plan(model(), batch(), adamw, loss=loss_of))
    assert "peak of each phase" in text
    assert "The peak of" in text


class Labelled(nn.Module):
    """What transformers' models do with labels."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 10)

    def forward(self, inputs: Tensor, labels: Tensor | None = None, scale: float = 1.0) -> dict[str, Tensor | None]:
        found = self.layer(inputs) * scale
        return {"logits": found, "loss": None if labels is None else F.cross_entropy(found, labels)}


def test_a_loss_of_its_own_and_what_has_none() -> None:
    inputs, labels = batch(4)
    assert plan(Labelled(), {"inputs": inputs, "labels": labels, "scale": 2.0}, adamw).batch_size == 4
    with pytest.raises(UserError, match="gives no loss"):
        plan(Labelled(), {"inputs": inputs}, adamw)
    with pytest.raises(UserError, match=r"no scalar: a tensor \(4, 10\)"):
        plan(Labelled(), {"inputs": inputs}, adamw, loss=lambda m, b: m(**b)["logits"])


@pytest.mark.parametrize(
    ("data", "how", "what"),
    [
        ((torch.zeros(3, 2), torch.zeros(4)), {}, r"first dimensions \[3, 4\]"),
        ({"a": 1}, {}, "no tensor"),
        ((torch.zeros(3, 32), torch.zeros(3)), {"precision": "fp8"}, "no precision"),
        ((torch.zeros(3, 32), torch.zeros(3)), {"target": "tpu"}, "no target"),
    ],
)
def test_what_cannot_be_planned_is_said(data: Any, how: dict[str, Any], what: str) -> None:
    with pytest.raises(UserError, match=what):
        plan(model(), data, adamw, loss=loss_of, **how)


def test_no_optimizer_comes_out() -> None:
    with pytest.raises(UserError, match="No optimizer comes out"):
        plan(model(), batch(), lambda parameters: None, loss=loss_of)


def test_the_block_of_the_page() -> None:
    """docs/planning.md, as it stands."""
    names: dict[str, Any] = {}
    exec(blocks("docs/planning.md", "python")[0], names)
    assert names["answer"].peak > 6 * (4 * 512 * 512 + 2 * 512 * 2048) * 4
    assert names["answer"].batch_size == 32
