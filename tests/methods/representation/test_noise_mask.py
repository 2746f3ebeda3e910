"""The two stages of noise_mask on a small network."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests import small
from tests.matrix.smallest import carried_out_in_two
from transfer_run.data.load import build_task
from transfer_run.errors import UserError
from transfer_run.experiment.config import registry
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.models.model_files import load_model
from transfer_run.experiment.run import carry_out
from transfer_run.hardware.optimization import build_optimizers
from transfer_run.hardware.steps import Steps
from transfer_run.methods.build import build_method
from transfer_run.methods.representation import noise_mask
from transfer_run.methods.representation.noise_mask import NoiseMask

Batch = dict[str, torch.Tensor]
SGD = {"about": {"target": "torch.optim.SGD"}, "lr": 0.1, "schedule": "constant", "warmup": 0, "interval": "step"}


def node(**more: Any) -> dict[str, Any]:
    content = registry.entry("method", "noise_mask", ()).content["method"]
    return {**content, "grid": 4, "blur": {"kernel": 3, "sigma": 1.0}, **more}


def made(**more: Any) -> NoiseMask:
    torch.manual_seed(0)
    built = build_method(node(**more), small.backbone("vit"), small.task("vit", "classification"))
    assert isinstance(built, NoiseMask)
    return built.train()


@pytest.fixture
def batch() -> Batch:
    return small.batch("vit", "classification")


def gradients(method: NoiseMask, part: str) -> list[torch.Tensor]:
    return [p.grad for name, p in method.named_parameters() if name.startswith(part) and p.grad is not None]


def seen(method: NoiseMask, batch: Batch) -> dict[str, Any]:
    """The loss, and the masks and densities of its step."""
    found: dict[str, Any] = {}
    plain = method.mask

    def watched(a: torch.Tensor, b: torch.Tensor, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        found["parameters"], found["masks"] = (a, b), plain(a, b, images)
        return found["masks"]

    method.mask = watched  # type: ignore[method-assign]
    found["loss"] = method.loss(batch)
    return found


def test_the_loss_is_the_cross_entropy_times_the_mean_log_sum(batch: Batch) -> None:
    method = made()
    found = seen(method, batch)
    cells, over = found["masks"]
    assert over.shape == (len(cells), 1, *batch["pixel_values"].shape[-2:])
    logits = super(NoiseMask, method).forward({**batch, "pixel_values": batch["pixel_values"] * over})
    density = torch.distributions.Beta(*(each.exp() for each in found["parameters"])).log_prob(cells)
    expected = F.cross_entropy(logits, batch["labels"]) * density.exp().sum(1).log().mean()
    assert torch.allclose(found["loss"], expected, rtol=1e-4)
    assert not cells.requires_grad
    assert not over.requires_grad


def test_each_part_learns_by_its_own_way(batch: Batch) -> None:
    """With the network frozen the policy has a gradient; with the policy frozen the network's is that of CE, scaled."""
    method = made()
    method.backbone.requires_grad_(False)
    method.loss(batch).backward()
    assert any(g.abs().max() > 0 for g in gradients(method, "policy"))
    assert gradients(method, "backbone") == []
    other = made()
    assert other.the_policy() is not None
    other.the_policy().requires_grad_(False)  # type: ignore[union-attr]
    found = seen(other, batch)
    found["loss"].backward()
    scaled = [g.clone() for g in gradients(other, "backbone")]
    assert gradients(other, "policy") == []
    other.zero_grad()
    cells, over = found["masks"]
    logits = super(NoiseMask, other).forward({**batch, "pixel_values": batch["pixel_values"] * over})
    F.cross_entropy(logits, batch["labels"]).backward()
    factor = torch.distributions.Beta(*(e.exp() for e in found["parameters"])).log_prob(cells).exp().sum(1).log().mean()
    for ours, plain in zip(scaled, gradients(other, "backbone"), strict=True):
        assert torch.allclose(ours, factor * plain, rtol=1e-3, atol=1e-6)


def test_with_all_of_the_base_the_policy_learns_nothing(batch: Batch) -> None:
    method = made(mix=1.0)
    policy = method.the_policy()
    assert policy is not None
    base = policy.base_a.clone()
    found = seen(method, batch)
    assert torch.equal(found["parameters"][0], base.expand(len(batch["labels"]), -1))
    found["loss"].backward()
    assert all(not g.any() for g in gradients(method, "policy"))


def test_a_step_mixes_the_old_base_and_moves_it_after(batch: Batch) -> None:
    method = made()
    policy = method.the_policy()
    assert policy is not None
    before = policy.base_a.clone(), policy.base_b.clone()
    heads: list[Any] = []
    policy.register_forward_hook(lambda module, given, out: heads.append(out))
    found = seen(method, batch)
    assert len(heads) == 1  # the batch norms count a batch once
    for place, base in enumerate((policy.base_a, policy.base_b)):
        head = heads[0][place].detach()
        assert torch.allclose(found["parameters"][place], 0.9 * before[place] + 0.1 * head, atol=1e-6)
        assert torch.allclose(base, 0.99 * before[place] + 0.01 * head.mean(0, keepdim=True), atol=1e-6)
    assert policy.lowest == pytest.approx(math.log(16), abs=2)


def test_under_a_mask_of_ones_it_is_plain_training(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise_mask, "drawn", lambda a, b: torch.full_like(a, 1 - 1e-7))
    method = made().eval()
    plain = method(batch)
    assert torch.equal(plain, super(NoiseMask, method).forward(batch))
    method.backbone.eval()
    method.training = True
    assert torch.allclose(method(batch), plain, atol=1e-5)


def test_validation_is_plain_or_under_the_base(batch: Batch) -> None:
    assert torch.equal(*(made().eval()(batch) for _ in range(2)))
    method = made(masked_validation=True).eval()
    assert not torch.equal(method(batch), super(NoiseMask, method).forward(batch))
    method.settle()
    assert torch.equal(method(batch), super(NoiseMask, method).forward(batch))


def test_two_optimizers_move_two_networks(batch: Batch) -> None:
    method = made(decay={"every": 2, "factor": 0.5})
    made_of = method.optimizers({**SGD, "schedule": "linear"}, 10)
    assert list(made_of) == ["main", "policy"]
    assert made_of["policy"].node(SGD)["lr"] == pytest.approx(0.01)
    assert made_of["policy"].node(SGD)["schedule"] == "cosine"
    assert [made_of["main"].factor(step) for step in (0, 19, 20, 40)] == [1, 1, 0.5, 0.25]  # type: ignore[misc]
    steps = Steps(build_optimizers(method.optimizers(SGD, 10), SGD))
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    steps.carry_out(method, batch)
    moved = {name.split(".")[0] for name, p in method.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"backbone", "policy"}


def test_after_fine_tuning_no_policy_is_left(batch: Batch) -> None:
    plain = build_method(
        registry.entry("method", "full", ()).content["method"],
        small.backbone("vit"),
        small.task("vit", "classification"),
    )
    for stage in ("heat", "finetune"):
        method = made(stage=stage)
        method.start_epoch(0, 1)
        assert method.counted_parameters() == plain.counted_parameters()
        method.settle()
        assert method.shipped().keys() == plain.shipped().keys()
        assert sum(p.numel() for p in method.parameters()) == sum(p.numel() for p in plain.parameters())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "finer than an image of 32 pixels"),
        (["method.grid=8", "method.blur.kernel=4"], "are odd"),
        (["method.grid=8", "method.blur.kernel=71"], "reflects 35"),
        (["method.grid=8", "method.objective=per_sample", "dataset.label_smoothing=0.1"], "neither class weights"),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], says: str) -> None:
    run = compose(["method=noise_mask", "backbone=cnn_tiny", "backbone.weights=random", "dataset=digits", *words])
    backbone = small.backbone("cnn")
    backbone.config = {**backbone.config, "image": run.config["backbone"]["image"]}
    with pytest.raises(UserError, match=says):
        build_method(run.config["method"], backbone, build_task(run.config["dataset"], run.config["backbone"]))


def test_both_stages_stop_and_go_on_to_the_same_bits(tmp_path: Path) -> None:
    """Heat, then fine-tuning from it with the mean of the last epochs; the second stage is stopped in the middle."""
    words = ["experiment=noise_mask_digits", "backbone=vit_tiny", "backbone.weights=random:0", "hardware=cpu",
             "trainer.progress=none", "profiler=none", "method.grid=4", "method.blur.kernel=3",
             "dataset.batch_size=540",
             "stages=[[trainer.max_epochs=1],[method.stage=finetune,trainer.max_epochs=3]]"]  # fmt: skip
    folder = carry_out(compose([*words, f"output_dir={tmp_path}"]))
    heat = next(path for path in (tmp_path / "runs").rglob("masks.png")).parent
    extra = json.loads((heat / "result.json").read_text(encoding="utf-8"))["extra"]
    assert extra["masks"] == "masks.png"
    assert extra["smallest_factor"] > 0
    weights = (folder / "checkpoints" / "model" / "model.safetensors").read_bytes()
    for path in [folder / "result.json", *(folder / "checkpoints").rglob("*")]:
        if path.is_file():
            path.unlink()
    again = carried_out_in_two(compose([*words, f"output_dir={tmp_path}"]), step=3)
    assert again == folder
    assert (folder / "checkpoints" / "model" / "model.safetensors").read_bytes() == weights
    model = load_model(folder / "checkpoints" / "model")
    assert not any(name.startswith(("policy", "average")) for name in model.state_dict())
