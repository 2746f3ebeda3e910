"""Ladders beside CLIP's towers, one of them or both, and both memory modes of the methods beyond the five."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.methods.side_tuning import models
from tests.methods.side_tuning.parallel_models import EXTRA
from tests.methods.side_tuning.parallel_models import batch as tower_batch
from transfer_run.backbones.base import Backbone
from transfer_run.backbones.load import build_backbone
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.methods.base import Context, Method
from transfer_run.methods.side_tuning.dtl import DTL
from transfer_run.methods.side_tuning.lst import LST
from transfer_run.methods.side_tuning.qst import QST
from transfer_run.methods.side_tuning.res_tuning_bypass import ResTuningBypass
from transfer_run.task import Task

BOUND = {"atol": 1e-9, "rtol": 1e-9}
TOWERS = ("clip-image", "clip-text")
SETTINGS: dict[type[Method], dict[str, Any]] = {
    LST: {"reduction_factor": 2, "init": "random", "backbone_dropout": False},
    QST: {"reduction_factor": 2, "rank": 3},
    ResTuningBypass: {"tuner_width": 4},
    DTL: {},
}
LADDERS = pytest.mark.parametrize("kind", [LST, QST, ResTuningBypass])


def clip(tower: str) -> Backbone:
    torch.manual_seed(0)
    config = {**EXTRA["clip-image"], "name": "clip", "weights": "random", "tower": tower}
    return build_backbone(config).double()


def built(kind: type[Method], name: str, **settings: Any) -> Any:
    """In float64, every trained weight at a value that matters."""
    if name in ("clip-image", "clip-text", "clip-both"):
        model = clip(name.removeprefix("clip-"))
        task = Task("retrieval", 0, loss="infonce") if name == "clip-both" else Task("classification", models.CLASSES)
    else:
        model = models.backbone(name).double()
        task = models.task(model)
    method = kind(model, task, **SETTINGS[kind] | settings).double()
    torch.manual_seed(7)
    with torch.no_grad():
        for key, p in method.named_parameters():
            if p.requires_grad:
                p.copy_((0.05 if "alpha" in key else 0.3) * torch.randn_like(p) + (p.dim() == 1 and "norm" in key))
    return method.eval()


def batch(name: str, method: Any, rows: int = 5) -> dict[str, Tensor]:
    if name == "clip-both":
        text = tower_batch("clip-text", method, rows)
        return {**tower_batch("clip-image", method, rows), **text, "labels": torch.arange(rows)}
    if name in TOWERS:
        return tower_batch(name, method, rows)
    given = models.batch(method.backbone, rows)
    return {n: t.double() if t.is_floating_point() else t for n, t in given.items()}


PAIRS = [
    *((kind, name) for kind in (LST, QST, ResTuningBypass) for name in (*TOWERS, "clip-both")),
    *((kind, name) for kind in (QST, ResTuningBypass) for name in ("t5", "bert", "gpt2", "vit")),
    (DTL, "clip-image"), (DTL, "vit"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_memory_modes_agree_and_the_backbone_stays_as_it_is(kind: type[Method], name: str) -> None:
    """Outputs and every gradient to 1e-9; all that is trained has a gradient, nothing of the backbone has.

    The library's CLIP takes the softmax of its eager attention, which official side blocks use, in float32: to 1e-5.
    """
    bound = {"atol": 1e-5, "rtol": 1e-5} if name.startswith("clip") and kind in (LST, QST) else BOUND
    found = {}
    for mode in ("efficient", "official"):
        method = built(kind, name, memory_mode=mode)
        given = batch(name, method)
        found[mode] = method(given), models.gradients(method, given)
        assert set(found[mode][1]) == {n for n, p in method.named_parameters() if p.requires_grad}
        assert not any(n.startswith("backbone.model.") for n in found[mode][1])
    torch.testing.assert_close(found["efficient"][0], found["official"][0], **bound)
    for key, gradient in found["official"][1].items():
        torch.testing.assert_close(found["efficient"][1][key], gradient, **bound, msg=lambda m, n=key: f"{n}: {m}")


@pytest.mark.parametrize(("kind", "name"), [(QST, "vit"), (ResTuningBypass, "vit"), (DTL, "vit"), (LST, "clip-image")])
def test_efficient_keeps_less(kind: type[Method], name: str) -> None:
    kept = {}
    for mode in ("efficient", "official"):
        method = built(kind, name, memory_mode=mode).train()
        kept[mode] = models.kept_bytes(method, batch(name, method))
    assert kept["efficient"] < kept["official"]


@pytest.mark.parametrize("name", TOWERS)
def test_a_side_network_of_full_width_is_the_tower(name: str) -> None:
    """r = 1, cut out of the backbone, no ladders, maps that change nothing: the tower's own features."""
    method = built(LST, name, reduction_factor=1, init="magnitude", gate="one")
    method.cut_from_backbone(None)
    with torch.no_grad():
        for linear in (method.ladders[method.last_stack].first, method.output.up):
            linear.weight.copy_(torch.eye(len(linear.weight)))
            linear.bias.zero_()
    plain = Method(method.backbone, method.task)
    given = batch(name, method)
    torch.testing.assert_close(method.features(given), plain.features(given), **BOUND)


def test_each_tower_is_cut_from_its_own_first_weights() -> None:
    method = built(LST, "clip-both", init="magnitude")
    chain = method.cut_from_backbone(None)
    for stack in ("image", "text"):
        side = method.side_steps(stack).blocks["0"]
        wide = method.backbone.blocks(stack)[0]
        rows = chain.decisions[f"{stack}.0.mlp_in"]
        assert torch.equal(side.mlp.fc1.bias, wide.mlp.fc1.bias[rows])
    assert {label for label in chain.decisions if label.endswith("mlp_out")} == {
        *(f"image.{i}.mlp_out" for i in range(4)), *(f"text.{i}.mlp_out" for i in range(3)),
    }  # fmt: skip


@pytest.mark.parametrize("name", TOWERS)
def test_fisher_on_a_tower(name: str, tmp_path: Path) -> None:
    method = built(LST, name, init="fisher", init_samples=3)
    rows = [{n: t[i : i + 1] for n, t in batch(name, method).items()} for i in range(5)]
    before = {n: p.clone() for n, p in method.named_parameters() if ".blocks." in n}
    method.prepare(Context(0, tmp_path, lambda split, size: iter(rows), log=lambda line: None))
    assert any(not torch.equal(before[n], p) for n, p in method.named_parameters() if n in before)
    assert all(p.grad is None for p in method.backbone.parameters())


@LADDERS
def test_later_tokens_and_padding_change_nothing_before(kind: type[Method]) -> None:
    """The side network's text is causal, and padding is seen by nobody: the end token's feature stays."""
    method = built(kind, "clip-text")
    given = batch("clip-text", method)
    other = {**given, "input_ids": given["input_ids"].where(given["attention_mask"].bool(), 5)}
    assert not torch.equal(other["input_ids"], given["input_ids"])
    torch.testing.assert_close(method(other), method(given), **BOUND)


@LADDERS
def test_both_towers_in_retrieval(kind: type[Method]) -> None:
    method = built(kind, "clip-both")
    given = batch("clip-both", method)
    assert method.predict(given).shape == (5, 2, 16)
    torch.testing.assert_close(method.predict(given).norm(dim=2), torch.ones(5, 2, dtype=torch.float64))
    assert not method.backbone.model.logit_scale.requires_grad


@pytest.mark.parametrize("kind", [LST, QST, ResTuningBypass, DTL])
@pytest.mark.parametrize("tower", ["image", "both"])
def test_it_builds_on_meta_with_the_same_parameters(kind: type[Method], tower: str) -> None:
    if (kind, tower) == (DTL, "both"):
        pytest.skip("DTL works on one image tower")
    name = f"clip-{tower}"
    config = {**EXTRA["clip-image"], "name": "clip", "weights": "random", "tower": tower}
    real = built(kind, name)
    meta = kind(build_backbone(config, weights=False, device="meta"), real.task, **SETTINGS[kind])
    assert all(p.is_meta for p in meta.parameters())
    assert {n: p.shape for n, p in meta.named_parameters()} == {n: p.shape for n, p in real.named_parameters()}


def test_the_bypass_of_a_t5_is_its_decoders() -> None:
    method = built(ResTuningBypass, "t5")
    assert list(method.ladders) == ["decoder"]
    method.backbone.model.config.eos_token_id = -1
    texts = [method.generate(batch("t5", method), 4, use_cache) for use_cache in (True, False)]
    assert torch.equal(*texts)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="text tower"):
        built(DTL, "clip-text")
    with pytest.raises(UserError, match="a pair alone") as caught:
        built(LST, "clip-both", init="fisher")
    assert "magnitude" in caught.value.remedy
    with pytest.raises(UserError, match="times narrower"):
        built(LST, "clip-image", reduction_factor=16)
    for method in ("lst", "qst"):
        with pytest.raises(UserError, match="it needs blocks that can be made narrower"):
            compose([f"method={method}", "backbone=cnn_tiny", "dataset=digits"])
    with pytest.raises(UserError, match="it needs blocks of one width"):
        compose(["method=res_tuning_bypass", "backbone=cnn_tiny", "dataset=digits"])
    with pytest.raises(UserError, match="does not train on"):
        compose(["method=dtl", "backbone=clip_tiny", "backbone.tower=both", "dataset=digit_captions"])
