"""An optimizer is the class that its config names, shipped, torch's or the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose, make_importable
from transfer_run.hardware.optimization import Optimization, build_optimizer, build_optimizers, schedule_factor

OWN = "from torch.optim import SGD\n\n\nclass Halved(SGD):\n    def __init__(self, groups, lr, share):\n        super().__init__(groups, lr=lr * share)\n"  # noqa: E501
SHIPPED = {
    "adamw": torch.optim.AdamW,
    "adamw_fused": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "adafactor": torch.optim.Adafactor,
}


def groups() -> list[dict[str, Any]]:
    return [{"params": [nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))]}]


def node(*words: str, config_dir: str | None = None) -> dict[str, Any]:
    cfg = compose(["backbone=vit_tiny", "backbone.weights=random:0", "dataset=digits", *words], config_dir)
    make_importable(cfg)
    return dict(cfg.config["optimizer"])


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_ones_bear_their_names(name: str) -> None:
    built = build_optimizer(groups(), node(f"optimizer={name}", "optimizer.lr=0.01", "optimizer.weight_decay=0.1"))
    assert type(built) is SHIPPED[name]
    assert (built.defaults["lr"], built.defaults["weight_decay"]) == (0.01, 0.1)
    assert built.defaults.get("momentum", 0.9) == 0.9
    assert built.defaults.get("betas", (0.9, 0.999)) == (0.9, 0.999)


def test_one_of_torch_or_from_a_users_folder(tmp_path: Path) -> None:
    (tmp_path / "optimizer").mkdir()
    common = "schedule: constant\ninterval: step\nwarmup: 0.0\nno_decay_1d: false\n"
    for name, target, own in (("radam", "torch.optim.RAdam", "weight_decay: 0.5"), ("own", "own.Halved", "share: 0.5")):
        text = f"name: {name}\nabout: {{target: {target}}}\nlr: 0.1\n{own}\n{common}"
        (tmp_path / "optimizer" / f"{name}.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "own.py").write_text(OWN, encoding="utf-8")
    radam = build_optimizer(groups(), node("method=full", "optimizer=radam", config_dir=str(tmp_path)))
    assert (type(radam), radam.defaults["weight_decay"]) == (torch.optim.RAdam, 0.5)
    own = build_optimizer(groups(), node("method=full", "optimizer=own", "optimizer.lr=0.4", config_dir=str(tmp_path)))
    assert (type(own).__name__, own.defaults["lr"]) == ("Halved", 0.2)


@pytest.mark.parametrize(
    ("target", "what"),
    [
        ("torch.optim.Adamw", "has no optimizer"),
        ("torch.nn.Linear", "no folder that you have named"),
        ("Adam", "no module"),
    ],
)
def test_a_class_that_is_none_is_named(target: str, what: str) -> None:
    with pytest.raises(UserError, match=what) as error:
        build_optimizer(groups(), {"about": {"target": target}, "lr": 0.1})
    assert target in error.value.where


def test_an_argument_that_the_class_does_not_take_is_named() -> None:
    with pytest.raises(UserError, match="momentum"):
        build_optimizer(groups(), {"about": {"target": "torch.optim.AdamW"}, "lr": 0.1, "momentum": 0.9})


def test_what_a_method_says_of_each_optimizer_wins() -> None:
    shared = node("optimizer=adamw", "optimizer.lr=0.3", "optimizer.warmup=7")
    made = {
        "main": Optimization(groups()),
        "slow": Optimization(groups(), {"lr": 0.1, "warmup": 0}),
        "other": Optimization(groups(), {"target": "torch.optim.SGD", "momentum": 0.5}),
    }
    built = build_optimizers(made, shared)
    assert [type(one) for one in built.values()] == [torch.optim.AdamW, torch.optim.AdamW, torch.optim.SGD]
    assert [one.defaults["lr"] for one in built.values()] == [0.3, 0.1, 0.3]
    assert built["other"].defaults["momentum"] == 0.5
    assert [one.node(shared)["warmup"] for one in made.values()] == [7, 0, 7]


@pytest.mark.parametrize(("warmup", "total"), [(0.3, 100), (0.3, 7), (0.5, 3), (4, 20)])
def test_one_cycle_is_torchs(warmup: float, total: int) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    share = warmup if warmup < 1 else warmup / total
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.1, total_steps=total, pct_start=share, cycle_momentum=False
    )
    factor = schedule_factor("one_cycle", warmup, total)
    for step in range(total):
        assert 0.1 * factor(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9), step
        optimizer.step()
        if step < total - 1:
            cycle.step()
