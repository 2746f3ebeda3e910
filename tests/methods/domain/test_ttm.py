"""Tiny Time Mixers: the checks of the paper's spec on the model, and what each stage trains."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from transfer_run.backbones.load import build_backbone
from transfer_run.backbones.mixers.layers import level_factor
from transfer_run.data.base import DataModule
from transfer_run.data.load import build_data
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.methods.domain.ttm import FCM, TTM
from transfer_run.methods.tuning.zero_shot import ZeroShot
from transfer_run.task import Task

CHANNELS = ("a", "b", "c")
SHAPE = {"context_length": 64, "patch_length": 8, "d_model": 32, "num_layers": 1, "adaptive_patching_levels": 3,
         "decoder_num_layers": 1, "decoder_d_model": 16, "prediction_length": 16}  # fmt: skip


def task(targets: tuple[str, ...] = CHANNELS, exogenous: tuple[str, ...] = (), horizon: int = 16) -> Task:
    return Task("forecasting", len(targets), targets, ("mse",), horizon=horizon, channels=CHANNELS, exogenous=exogenous)


def backbone(**words: Any) -> Any:
    return build_backbone({"name": "small", "family": "ttm", "weights": "random:1", "architecture": SHAPE | words})


def batch(rows: int = 5, past: int = 64, **more: Tensor) -> dict[str, Tensor]:
    return {"past_values": torch.randn(rows, past, 3), "labels": torch.randn(rows, 16, 3), **more}


def ttm(stage: str = "few_shot", fcm: Mapping[str, Any] | None = None, asked: Task | None = None, **words: Any) -> TTM:
    own = {key: words.pop(key) for key in list(words) if key in SHAPE or key.startswith("resolution")}
    settings: dict[str, Any] = {"stage": stage, "fcm": FCM | dict(fcm or {}), **words}
    return TTM(backbone(**own), asked or task(), **settings)


@pytest.mark.parametrize(
    ("name", "whole", "trained"), [("ttm-r1-512", 805280, 289696), ("ttm-r1-1024", 946336, 389984)]
)
def test_the_papers_parameter_counts(name: str, whole: int, trained: int) -> None:
    config: Any = compose(["method=ttm", f"backbone={name}", "dataset=ett/h1"]).config
    built = TTM(build_backbone(config["backbone"], device="meta"), task())
    assert sum(p.numel() for p in built.parameters()) == whole
    assert sum(p.numel() for p in built.parameters() if p.requires_grad) == trained


def test_channels_do_not_see_each_other_unless_they_are_mixed() -> None:
    given, order = batch(), [2, 0, 1]
    apart, mixed = ttm().eval(), ttm(decoder_mode="mix_channel").eval()
    with torch.no_grad():
        said = apart(given)
        torch.testing.assert_close(apart({"past_values": given["past_values"][..., order]}), said[..., order])
        for model, alone in ((apart, True), (mixed, False)):
            other = given["past_values"].clone()
            other[..., 1] += torch.randn(5, 64)
            changed = model({"past_values": other})
            assert torch.equal(changed[..., 0], model(given)[..., 0]) == alone
            assert not torch.equal(changed[..., 1], model(given)[..., 1])
    one = Task("forecasting", 1, ("a",), horizon=16, channels=("a",))
    single = ZeroShot(backbone(), one).eval()
    torch.testing.assert_close(single({"past_values": given["past_values"][..., :1]}), said[..., :1])


def test_scale_and_level_of_a_channel_go_through() -> None:
    past = batch()["past_values"]
    factor, shift = torch.tensor([0.5, 3.0, 20.0]), torch.tensor([-4.0, 0.0, 100.0])
    model = ttm().eval()
    with torch.no_grad():
        said, moved = model({"past_values": past}), model({"past_values": past * factor + shift})
    assert ((moved - shift) / factor - said).abs().max() < 1e-3


def test_a_constant_series_is_carried_on() -> None:
    with torch.no_grad():
        said = ttm().eval()({"past_values": torch.full((2, 64, 3), 7.0)})
    assert (said - 7).abs().max() < 5 * 1e-5**0.5
    assert (said - 7).abs().max() > 0


def test_what_was_not_observed_does_not_count_in_the_scale() -> None:
    given, model = batch(), ttm().eval()
    observed = torch.ones(5, 64, 3)
    torch.testing.assert_close(model({**given, "past_observed": observed}), model(given))
    observed[:, 20:30, 0] = 0
    wild = given["past_values"].clone()
    wild[:, 20:30, 0] = 0
    loc, scale = model.backbone._scale({"past_values": wild, "past_observed": observed})  # type: ignore[operator]
    kept = torch.cat([given["past_values"][:, :20, 0], given["past_values"][:, 30:, 0]], 1)
    torch.testing.assert_close(loc[:, 0, 0], kept.mean(1))
    torch.testing.assert_close(scale[:, 0, 0], (kept.var(1, unbiased=False) + 1e-5).sqrt())


def test_one_level_is_no_level_and_a_patch_keeps_more_than_four_entries() -> None:
    given = batch()
    levels, plain = backbone(adaptive_patching_levels=1), backbone(adaptive_patching_levels=0)
    weights = {name.replace(".mixer_layers.0", ""): t for name, t in levels.model.state_dict().items()}
    plain.model.load_state_dict(weights)
    both = [ZeroShot(each, task()).eval()(given) for each in (levels, plain)]
    assert torch.equal(*both)
    assert [level_factor(12, level) for level in (2, 1, 0)] == [1, 2, 1]
    assert [factor for _, _, factor in backbone()._layers] == [4, 2, 1]
    with pytest.raises(UserError, match="d_model=30 is no multiple of 4"):
        backbone(d_model=30)


def test_a_long_past_is_cut_to_the_last_steps_and_a_short_one_is_refused() -> None:
    model, given = ttm().eval(), batch(past=80)
    assert torch.equal(model(given), model({"past_values": given["past_values"][:, -64:]}))
    with pytest.raises(UserError, match="reads 64 steps, the series has 63"):
        model(batch(past=63))
    shorter = TTM(model.backbone, task(horizon=5)).eval()
    assert torch.equal(shorter(given), model(given)[:, :5])


@pytest.mark.parametrize("stage", ["pretrain", "zero_shot", "few_shot", "full"])
def test_each_stage_trains_what_it_says(stage: str) -> None:
    built = ttm(stage)
    trained = {name.split(".")[2] for name, p in built.named_parameters() if p.requires_grad}
    assert trained == {
        "pretrain": {"backbone", "decoder", "head"}, "zero_shot": set(), "few_shot": {"decoder", "head"},
        "full": {"decoder", "head"},
    }[stage]  # fmt: skip
    assert built.trains == (stage != "zero_shot")
    if built.trains:
        built.train().loss(batch()).backward()
        grads = {name.split(".")[2] for name, p in built.named_parameters() if p.grad is not None}
        assert grads == trained
    assert ttm("full", freeze_backbone=False).needs_backbone_gradient
    assert len(ttm("full", freeze_backbone=False).shipped()) == len(ttm("pretrain").shipped())
    assert not [name for name in ttm("few_shot").shipped() if name.startswith("backbone.model.backbone.")]


def test_dropout_of_the_frozen_part_and_of_the_head_are_choices() -> None:
    acts, rests = ttm(), ttm(backbone_dropout=False, head_dropout=0.7)
    for built, mode in ((acts.train(), True), (rests.train(), False)):
        model: Any = built.backbone.model
        assert model.backbone.encoder.mlp_mixer_encoder.training == mode
        assert model.decoder.training
    model = rests.backbone.model
    assert {m.p for m in [*model.decoder.modules(), *model.head.modules()] if isinstance(m, torch.nn.Dropout)} == {0.7}
    assert {m.p for m in model.backbone.modules() if isinstance(m, torch.nn.Dropout)} == {0.2}


@pytest.mark.parametrize("mixer", [False, True])
@pytest.mark.parametrize("around", [0, 1, 3])
def test_the_exogenous_mixer_sees_the_known_future(mixer: bool, around: int) -> None:
    asked = task(("a", "b"), ("c",))
    built = ttm(fcm={"enabled": True, "context_length": around, "use_mixer": mixer}, asked=asked).eval()
    given = batch(future_exogenous=torch.randn(5, 16, 1))
    said = built(given)
    assert said.shape == (5, 16, 2)
    later = {**given, "future_exogenous": given["future_exogenous"].clone()}
    later["future_exogenous"][:, 9] += 1
    moved = (built(later) - said).abs().sum((0, 2)) > 0
    assert moved.nonzero().flatten().tolist() == list(range(9 - around, 10 + around))
    built.loss({**given, "labels": given["labels"][..., :2]}).backward()
    assert all(p.grad is not None for n, p in built.named_parameters() if "fcm_block" in n)


def test_the_resolution_prefix_is_a_patch_in_front_and_tells_steps_apart() -> None:
    built = ttm(resolution_prefix_tuning=True).eval()
    given = batch(frequency=torch.tensor([1, 1, 1, 1, 4]))
    state = built.backbone.embed(given)
    assert state.hidden.shape == (5, 3, 9, 32)
    other = built({**given, "frequency": torch.tensor([1, 1, 1, 1, 2])})
    same = (other == built(given)).flatten(1).all(1)
    assert same.tolist() == [True] * 4 + [False]
    with pytest.raises(UserError, match="reads the length of a step"):
        built(batch())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"stage": "pretrain", "decoder_mode": "mix_channel"}, "backbone for any number of channels"),
        ({"stage": "zero_shot", "fcm": {"enabled": True}}, "stage=zero_shot trains nothing"),
        ({"lr": "find"}, "'find' is no learning rate"),
        ({"lr": 0}, "0 is no learning rate"),
    ],
)
def test_what_cannot_be_is_refused(words: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        ttm(**words)


def test_losses_are_the_named_ones_over_what_was_measured() -> None:
    given = batch()
    given["labels"][0, :4] = torch.nan
    known = ~given["labels"].isnan()
    for kind, by_hand in (
        ("mse", lambda e: e.square()), ("mae", lambda e: e.abs()),
        ("huber", lambda e: torch.where(e.abs() < 0.5, 0.5 * e.square(), 0.5 * (e.abs() - 0.25))),
        ("pinball", lambda e: torch.where(e > 0, 0.9 * e, -0.1 * e)),
    ):  # fmt: skip
        built = ttm(loss=kind, huber_delta=0.5, quantile=0.9).eval()
        error = (given["labels"] - built(given))[known]
        torch.testing.assert_close(built.loss(given), by_hand(error).mean())


def series(*words: str) -> tuple[Any, DataModule]:
    cfg: Any = compose(
        ["method=ttm", "backbone=ttm_tiny", "backbone.weights=random", "dataset=seasonal_series", *words]
    )
    return cfg, build_data(cfg.config["dataset"], cfg.config["backbone"], 0)


def test_the_stage_says_what_of_the_data_is_read() -> None:
    """1728 training rows: int(0.05 * (1728 - 96)) + 96 = 177 of them, 58 windows; the other stages read all."""
    sizes = {stage: series(f"method.stage={stage}")[1].sizes["train"] for stage in ("few_shot", "full", "zero_shot")}
    assert sizes == {"few_shot": 58, "full": 1609, "zero_shot": 1609}
    assert series("method.fewshot_fraction=0.5", "method.fewshot_location=first")[1].sizes["train"] == 816 - 24 + 1
    assert series("dataset.few_shot.fraction=0.1")[1].sizes["train"] == 163 - 24 + 1


def test_another_kind_of_data_is_refused_as_such() -> None:
    with pytest.raises(UserError, match="dataset=digits holds images, which backbone=ttm_tiny"):
        compose(["method=ttm", "backbone=ttm_tiny", "dataset=digits"])
    with pytest.raises(UserError, match="method=ttm is not defined on backbone=dlinear_tiny"):
        compose(["method=ttm", "backbone=dlinear_tiny", "dataset=seasonal_series"])
    with pytest.raises(UserError, match="method=lst is not defined on backbone=ttm_tiny"):
        compose(["method=lst", "backbone=ttm_tiny", "dataset=seasonal_series"])
    with pytest.raises(UserError, match="method=unipt is not defined on backbone=ttm_tiny"):
        compose(["method=unipt", "backbone=ttm_tiny", "dataset=seasonal_series"])


def test_a_folder_as_the_hub_has_it_is_read_by_name_and_checked(tmp_path: Path) -> None:
    model = backbone()
    model.save_library(tmp_path)
    config = {"name": "small", "family": "ttm", "weights": str(tmp_path), "architecture": SHAPE}
    again = build_backbone(config)
    assert all(torch.equal(t, again.model.state_dict()[name]) for name, t in model.model.state_dict().items())
    stored = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert stored["model_type"] == "tinytimemixer"
    (tmp_path / "config.json").write_text(json.dumps(stored | {"patch_stride": 4}), encoding="utf-8")
    with pytest.raises(UserError, match="The weights have patch_stride=4, the backbone 8"):
        build_backbone(config)
    with pytest.raises(UserError, match="A Tiny Time Mixer has no 'd_modell'"):
        backbone(d_modell=3)
    with pytest.raises(UserError, match="self_attn=True is not built here"):
        backbone(self_attn=True)


def test_lora_adapts_the_feature_mixers_and_folds_into_them() -> None:
    from transfer_run.methods.tuning.lora import LoRA

    given, plain = batch(), ZeroShot(backbone(), task()).eval()(batch())
    built = LoRA(backbone(), task(), targets=["mlp_in", "mlp_out"], rank=2)
    assert plain.shape == built(given).shape
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    built.eval()
    said = built(given)
    built.fold()
    torch.testing.assert_close(built(given), said)
    with pytest.raises(UserError, match="have no part 'q'"):
        LoRA(backbone(), task())


def test_sines_are_learned(tmp_path: Path) -> None:
    """200 steps on sine waves of many periods: the forecast beats the last value."""
    built = ttm("pretrain").train()
    optimizer = torch.optim.AdamW(built.parameters(), lr=3e-3)

    def waves(rows: int) -> dict[str, Tensor]:
        period, phase = 8 + 24 * torch.rand(rows, 1, 3), 7 * torch.rand(rows, 1, 3)
        values = torch.sin(2 * torch.pi * torch.arange(80.0)[None, :, None] / period + phase)
        return {"past_values": values[:, :64], "labels": values[:, 64:]}

    for _ in range(200):
        optimizer.zero_grad()
        built.loss(waves(32)).backward()
        optimizer.step()
    test = waves(64)
    last = (test["past_values"][:, -1:] - test["labels"]).square().mean()
    with torch.no_grad():
        assert built.eval().loss(test) < 0.3 * last
