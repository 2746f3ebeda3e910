"""Tiny Time Mixers against the official model: hidden states and forecasts to ten digits, in float64."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from transfer_run.backbones.families.ttm import TinyTimeMixer
from transfer_run.methods.form import find_form
from transfer_run.methods.tuning.zero_shot import ZeroShot
from transfer_run.task import Task

ORACLE = "ttm_*.npz"
ENCODER, DECODER = "backbone.encoder.mlp_mixer_encoder.mixers", "decoder.decoder_block.mixers"
Tensors = dict[str, Tensor]


def cases(tensors: Tensors) -> Iterator[tuple[Tensors, Tensors]]:
    """What each case gives and expects, and its weights by their own names."""
    for case in sorted({name.partition("/")[0] for name in tensors}):
        given = {n.removeprefix(f"{case}/"): t for n, t in tensors.items() if n.startswith(f"{case}/")}
        yield given, {n.removeprefix("w."): t for n, t in given.items() if n.startswith("w.")}


def count(weights: Tensors, pattern: str) -> int:
    """How many numbers stand in the place of the group of a pattern."""
    return len({found[1] for name in weights if (found := re.match(pattern, name))})


def architecture(given: Tensors, weights: Tensors) -> dict[str, Any]:
    """The words that the shapes of a case say."""
    width, patch = weights["backbone.encoder.patcher.weight"].shape
    past, prefix = given["past_values"].shape[1], any(".freq_mod." in name for name in weights)
    patches = given["backbone_hidden"].shape[2] - prefix
    stride = patch if (past - patch) // patch + 1 == patches else (past - patch) // (patches - 1)
    levels = count(weights, rf"{re.escape(ENCODER)}\.(\d+)\.mixer_layers")
    first = rf"{re.escape(ENCODER)}\.0\.mixer_layers\.(\d+)" if levels else rf"{re.escape(ENCODER)}\.(\d+)"
    wide = next(t for n, t in weights.items() if n.endswith("feature_mixer.mlp.fc1.weight"))

    def mode(stack: str) -> str:
        mixed = any(n.startswith(stack) and "channel_feature_mixer" in n for n in weights)
        return "mix_channel" if mixed else "common_channel"

    return {
        "context_length": past, "patch_length": patch, "patch_stride": stride, "d_model": width,
        "num_input_channels": given["past_values"].shape[2], "expansion_factor": wide.shape[0] // wide.shape[1],
        "num_layers": count(weights, first), "adaptive_patching_levels": levels,
        "gated_attn": any("mixer.gating_block" in n for n in weights),
        "norm_mlp": "BatchNorm" if any("batchnorm" in n for n in weights) else "LayerNorm",
        "mode": mode(ENCODER), "decoder_mode": mode(DECODER),
        "decoder_num_layers": count(weights, rf"{re.escape(DECODER)}\.(\d+)"),
        "decoder_d_model": given["decoder_hidden"].shape[-1],
        "decoder_raw_residual": "decoder.decoder_raw_embedding.weight" in weights,
        "prediction_length": len(weights["head.base_forecast_block.bias"]),
        "resolution_prefix_tuning": prefix,
        "frequency_token_vocab_size": len(weights["backbone.encoder.freq_mod.0.weight"]) if prefix else 5,
    }  # fmt: skip


def targets_of(given: Tensors) -> list[int]:
    """The channels that are forecast: those whose windows have the means that are given."""
    means = given["past_values"].mean(1)[0]
    return [int((means - loc).abs().argmin()) for loc in given["loc"][0, 0]]


def model_of(given: Tensors, weights: Tensors) -> ZeroShot:
    backbone = TinyTimeMixer.from_architecture({"name": "oracle", "architecture": architecture(given, weights)})
    channels, targets = given["past_values"].shape[2], targets_of(given)
    others = [place for place in range(channels) if place not in targets]
    if any("fcm_block" in name for name in weights):
        mixer = weights.get("head.fcm_block.fcm_embedding.weight")
        whole = weights["head.fcm_block.mlp.weight"].shape[1] // channels
        window = mixer.shape[1] if mixer is not None else whole
        layers = count(weights, r"head\.fcm_block\.exog_mixer\.mixers\.(\d+)") if mixer is not None else None
        gated = "head.fcm_block.fcm_gating_block.attn_layer.weight" in weights
        backbone.model.mix_forecasts(
            len(targets), others, around=(window - 1) // 2, gated=gated, past=True, mixer_layers=layers
        )
    backbone.double().model.load_state_dict(weights)
    names = tuple(f"c{place}" for place in range(channels))
    horizon = given["prediction"].shape[1]
    task = Task(
        "forecasting", len(targets), tuple(names[t] for t in targets), ("mse",), horizon=horizon, channels=names
    )
    return ZeroShot(backbone, task).eval()


def batch_of(given: Tensors) -> Tensors:
    targets = targets_of(given)
    others = [place for place in range(given["past_values"].shape[2]) if place not in targets]
    batch = {"past_values": given["past_values"], "labels": given["future_values"][..., targets]}
    if others:
        batch["future_exogenous"] = given["future_values"][..., others]
    if "freq_token" in given:
        batch["frequency"] = given["freq_token"]
    return batch


def near(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


def test_hidden_states_and_forecasts_are_the_official_ones(tensors: Tensors) -> None:
    for given, weights in cases(tensors):
        model, batch = model_of(given, weights), batch_of(given)
        backbone = model.backbone
        state = backbone.run(backbone.embed(batch))
        near(state.hidden, given["backbone_hidden"])
        near(backbone.pool(backbone.finish(state), state), given["decoder_hidden"].flatten(2))
        forecast = model(batch)
        near(forecast, given["prediction"])
        near((forecast - batch["labels"]).square().mean(), given["loss"])
        loss = find_form("forecasting").loss(model, forecast, batch["labels"])
        assert float(loss) == pytest.approx(float(given["loss"]), rel=1e-5)
        assert sum(p.numel() for p in backbone.parameters()) == int(given["n_params"])
