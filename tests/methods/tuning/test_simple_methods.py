"""Full, pretraining, probes, the last blocks, norms, biases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from transfer_run.errors import UserError
from transfer_run.methods.tuning.bitfit import BitFit
from transfer_run.methods.tuning.full import Full
from transfer_run.methods.tuning.layernorm import LayerNormTuning
from transfer_run.methods.tuning.linear_probe import LinearProbe
from transfer_run.methods.tuning.partial import Partial
from transfer_run.methods.tuning.pretrain import Pretrain

Make = Callable[..., Any]


def trained(method: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in method.named_parameters() if p.requires_grad}


def test_full_leaves_the_other_tower_and_an_unused_language_head_alone(build: Make, task: Make) -> None:
    names = trained(Full(build("clip"), task("clip")))
    assert not [n for n in names if "text_model" in n or "projection" in n or "logit_scale" in n]
    assert "backbone.model.lm_head.weight" not in trained(Full(build("llama"), task("llama")))
    full = Full(build("t5"), task("t5"))
    assert trained(full).keys() == dict(full.named_parameters()).keys()


def test_what_full_ships_is_the_whole_model(build: Make, task: Make) -> None:
    full = Full(build("clip"), task("clip"))
    assert full.shipped().keys() >= dict(full.named_parameters()).keys()
    pretrained = Pretrain(build("t5"), task("t5"))
    assert (
        pretrained.shipped().keys() >= dict(pretrained.backbone.model.named_parameters(prefix="backbone.model")).keys()
    )


def test_linear_probe_runs_without_gradient_in_eval_mode(build: Make, task: Make, batch: Make) -> None:
    probe = LinearProbe(build("bert"), task("bert")).train()
    assert not probe.backbone.model.training
    assert not probe.features(batch("bert")).requires_grad
    assert trained(probe).keys() == {"backbone.head.weight", "backbone.head.bias"}
    assert torch.equal(probe(batch("bert")), probe(batch("bert")))
    assert not probe.needs_backbone_gradient


def test_linear_probe_of_t5_trains_an_untied_language_head(build: Make, task: Make, batch: Make) -> None:
    probe = LinearProbe(build("t5"), task("t5")).train()
    assert trained(probe).keys() == {"backbone.model.lm_head.weight"}
    table = probe.backbone.model.shared.weight.clone()
    optimizer = torch.optim.SGD(probe.parameter_groups(), lr=1.0)
    before = probe.loss(batch("t5"))
    before.backward()
    optimizer.step()
    assert probe.loss(batch("t5")) < before
    assert torch.equal(probe.backbone.model.shared.weight, table)


def test_partial_trains_from_the_end_and_backward_stops_there(build: Make, task: Make, batch: Make) -> None:
    partial = Partial(build("bert"), task("bert"), blocks=2)
    assert {n.split(".")[4] for n in trained(partial) if ".layer." in n} == {"1", "2"}
    state = partial.embed(batch("bert"))
    after_first = partial.backbone.step(state)
    assert not after_first.hidden.requires_grad
    assert partial.backbone.step(after_first).hidden.requires_grad


def test_partial_of_an_encoder_decoder_is_the_decoder_unless_told(build: Make, task: Make) -> None:
    names = trained(Partial(build("t5"), task("t5")))
    assert names
    assert all(n.startswith("backbone.model.decoder.") for n in names)
    assert "backbone.model.decoder.final_layer_norm.weight" in names
    both = trained(Partial(build("t5"), task("t5"), stacks=["encoder", "decoder"]))
    assert any(n.startswith("backbone.model.encoder.block.2.") for n in both)


def test_partial_refuses_what_is_not_there(build: Make, task: Make) -> None:
    with pytest.raises(UserError, match="has 3 blocks, not 4"):
        Partial(build("bert"), task("bert"), blocks=4)
    with pytest.raises(UserError, match="no stack 'decodr'"):
        Partial(build("t5"), task("t5"), stacks=["decodr"])


def test_layernorm_trains_scales_and_shifts_only(build: Make, task: Make) -> None:
    names = trained(LayerNormTuning(build("bert"), task("bert")))
    norms = {n for n in names if not n.startswith("backbone.head")}
    assert len(norms) == 2 * 7
    assert all("LayerNorm" in n for n in norms)


def test_bitfit_on_t5_is_refused_with_the_way_out(build: Make, task: Make) -> None:
    with pytest.raises(UserError, match="no bias terms") as error:  # check 9
        BitFit(build("t5"), task("t5"))
    assert "add_biases=true" in error.value.remedy
    with pytest.raises(UserError, match="no bias terms"):
        BitFit(build("llama"), task("llama"))


def test_bitfit_on_bert_trains_the_biases_and_the_head(build: Make, task: Make) -> None:
    bitfit = BitFit(build("bert"), task("bert"))
    width, inner, blocks = 32, 48, 3
    biases = width + blocks * (4 * width + inner + width + 2 * width) + width  # embedding norm, blocks, pooler
    assert bitfit.counted_parameters() == biases
    assert sum(p.numel() for p in trained(bitfit).values()) == biases + 3 * width + 3


def test_added_biases_are_zero_and_change_nothing(build: Make, task: Make, batch: Make) -> None:
    plain, data = Full(build("t5"), task("t5")).eval(), batch("t5")
    bitfit = BitFit(build("t5"), task("t5"), add_biases=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(bitfit(data), plain(data), rtol=0, atol=0)
    assert all(not p.any() for p in trained(bitfit).values())
    d, inner, words, attention = 32, 48, 384, 3 * 4 * 12 + 32
    encoder, decoder = attention + inner + d + 2 * d, 2 * attention + inner + d + 3 * d
    assert bitfit.counted_parameters() == 3 * encoder + 2 * decoder + words


def test_bitfit_of_some_blocks(build: Make, task: Make) -> None:
    names = trained(BitFit(build("bert"), task("bert"), layers={"encoder": [1]}))
    assert {n.split(".")[4] for n in names if ".layer." in n} == {"1"}
    assert not [n for n in names if "embeddings" in n]
