"""Forecasting as a form: the loss, the scores, and baselines that answer it."""

from __future__ import annotations

import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import mean_absolute_error, mean_squared_error

from transfer_run.backbones.load import build_backbone
from transfer_run.data.scores.labels import Scores
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.run import carry_out
from transfer_run.methods.form import find_form
from transfer_run.methods.tuning.full import Full
from transfer_run.methods.tuning.linear_probe import LinearProbe
from transfer_run.methods.tuning.zero_shot import ZeroShot
from transfer_run.tables.html.runs import write_report
from transfer_run.task import Task

CHANNELS = ("a", "b", "c")


def task(horizon: int = 5, targets: tuple[str, ...] = CHANNELS) -> Task:
    return Task("forecasting", len(targets), targets, ("mse", "mae"), horizon=horizon, channels=CHANNELS)


def forecaster(family: str, past: int = 12, future: int = 6, **more: Any) -> Any:
    shape = {"context_length": past, "prediction_length": future, **more}
    return build_backbone({"name": family, "family": family, "weights": "random", "architecture": shape})


def batch(past: int = 12, future: int = 5, rows: int = 4) -> dict[str, torch.Tensor]:
    return {"past_values": torch.randn(rows, past, 3), "labels": torch.randn(rows, future, 3)}


def test_scores_are_scikit_learns_over_all_values_that_were_measured() -> None:
    scores, said, right = Scores(task()), torch.randn(9, 5, 3), torch.randn(9, 5, 3)
    right[2, 1:, 0] = torch.nan
    for rows in (slice(0, 4), slice(4, 9)):
        scores.update(said[rows], {"labels": right[rows]})
    known = ~right.isnan()
    found = scores.compute()
    assert found["mse"] == pytest.approx(mean_squared_error(right[known], said[known]))
    assert found["mae"] == pytest.approx(mean_absolute_error(right[known], said[known]))
    assert scores.better(1.0, 2.0)
    with pytest.raises(UserError, match="'accuracy' does not score forecasting"):
        Scores(Task("forecasting", 1, metrics=("accuracy",)))


def test_the_loss_leaves_out_what_was_not_measured() -> None:
    form, method = find_form("forecasting"), ZeroShot(forecaster("naive", period=3), task())
    said, right = torch.randn(4, 5, 3, requires_grad=True), torch.randn(4, 5, 3)
    assert torch.allclose(form.loss(method, said, right), (said - right).square().mean())
    right[0] = torch.nan
    loss = form.loss(method, said, right)
    assert torch.allclose(loss, (said[1:] - right[1:]).square().mean())
    loss.backward()
    assert said.grad is not None
    assert not said.grad[0].any()
    assert torch.isfinite(said.grad).all()
    assert form.loss(method, said, torch.full_like(right, torch.nan)) == 0


@pytest.mark.parametrize(("period", "expected"), [(1, [11] * 5), (3, [9, 10, 11, 9, 10])])
def test_naive_forecasts_repeat_the_last_season(period: int, expected: list[int]) -> None:
    given = batch()
    method = ZeroShot(forecaster("naive", period=period), task())
    assert torch.equal(method(given), given["past_values"][:, expected])
    later = {"past_values": torch.cat([torch.zeros(4, 7, 3), given["past_values"]], 1)}
    assert torch.equal(method(later), method(given))
    with pytest.raises(UserError, match="reads 12 steps, the series has 11"):
        method({"past_values": given["past_values"][:, 1:]})


def test_only_the_targets_are_forecast() -> None:
    given, method = batch(), ZeroShot(forecaster("naive", period=1), task(targets=("a", "c")))
    assert torch.equal(method(given), given["past_values"][:, [11] * 5][..., [0, 2]])


def test_dlinear_is_two_linear_maps_of_a_moving_average_and_the_rest() -> None:
    """Zeng et al. 2023, section 4, written out by hand for one channel."""
    backbone = forecaster("dlinear", kernel=5)
    given, method = batch(), Full(backbone, task())
    past = given["past_values"][0, :, 1].double().numpy()
    padded = np.concatenate([past[:1].repeat(2), past, past[-1:].repeat(2)])
    trend = np.array([padded[i : i + 5].mean() for i in range(12)])
    weights = {name: p.detach().double().numpy() for name, p in backbone.model.named_parameters()}
    both = (("rest", past - trend), ("trend", trend))
    expected = sum(weights[f"{name}.weight"] @ part + weights[f"{name}.bias"] for name, part in both)
    np.testing.assert_allclose(method(given)[0, :, 1].detach(), expected[:5], atol=1e-5)
    assert sum(p.numel() for p in backbone.parameters()) == 2 * (12 * 6 + 6)


def test_a_probe_trains_the_pretrained_head_and_a_fresh_head_is_refused_without_training() -> None:
    probe = LinearProbe(forecaster("dlinear", kernel=5), task())
    probe.loss(batch()).backward()
    assert all(p.grad is not None for p in probe.backbone.model.parameters())
    words = ["method=full", "backbone=vit_tiny", "backbone.weights=random", "dataset=digits"]
    config: Any = compose(words).config
    with pytest.raises(UserError, match="fresh head"):
        ZeroShot(build_backbone(config["backbone"]), Task("classification", 2))


@pytest.mark.parametrize("kind", ["patchtst", "patchtsmixer"])
def test_the_librarys_forecasters_answer_as_they_do_alone(kind: str) -> None:
    shape: dict[str, Any] = {"model_type": kind, "patch_length": 4, "patch_stride": 4, "d_model": 8}
    given, small = batch(), {"num_input_channels": 1} | shape
    method = ZeroShot(forecaster("patchtst", **small), task()).eval()
    alone = method.backbone.model(past_values=given["past_values"][..., 1:2]).prediction_outputs
    torch.testing.assert_close(method(given)[..., 1:2], alone[:, :5])
    whole = ZeroShot(forecaster("patchtst", **shape, num_input_channels=3), task()).eval()
    torch.testing.assert_close(
        whole(given), whole.backbone.model(past_values=given["past_values"]).prediction_outputs[:, :5]
    )
    other = ZeroShot(forecaster("patchtst", **shape, num_input_channels=2), task()).eval()
    with pytest.raises(UserError, match="made for 2 channels, the series has 3"):
        other(given)
    with pytest.raises(UserError, match="no forecaster of type 'patchtsd'"):
        forecaster("patchtst", model_type="patchtsd")


@pytest.mark.parametrize(("period", "wrong"), [(0, "season of 0"), (13, "season of 13")])
def test_a_season_lies_within_what_is_read(period: int, wrong: str) -> None:
    with pytest.raises(UserError, match=wrong):
        forecaster("naive", period=period)


def test_a_linear_forecast_beats_the_last_value_in_a_run(tmp_path: Path) -> None:
    words = ["dataset=seasonal_series", f"output_dir={tmp_path}", "hardware=cpu", "trainer.progress=none"]
    scores, drawn = {}, set()
    for name, own in (
        ("last", ["method=zero_shot", "backbone=last_value", "dataset.horizon=24"]),
        ("dlinear", ["method=pretrain", "backbone=dlinear_tiny", "trainer.max_steps=60", "optimizer.lr=0.01"]),
    ):
        folder = carry_out(compose([*own, *words]))
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        with Image.open(folder / "forecast.png") as picture:
            drawn.add(picture.size)
        page = write_report(folder).read_text(encoding="utf-8")
        assert f"data:image/png;base64,{b64encode((folder / 'forecast.png').read_bytes()).decode()}" in page
        scores[name] = result["metrics"]["test/mse"]
        assert result["headline"] == {"metric": "test/mse", "better": "small"}
    assert len(drawn) == 1
    assert min(drawn.pop()) > 400  # three windows, four channels
    assert scores["dlinear"] < 0.8 * scores["last"]
    assert result["memory"]["predicted_peak"] == pytest.approx(result["memory"]["peak"], rel=0.02)
