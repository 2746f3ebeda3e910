"""What a half type would spoil keeps float32: rotary frequencies, batch norms, peft's shared bases and norms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.matrix import smallest
from tests.memory import small
from transfer_run.backbones.load import build_backbone
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.planning.plan import plan_run
from transfer_run.memory.fake import fake_mode, make_fake
from transfer_run.methods.tuning.linear_probe import LinearProbe

WORDS = ["backbone=llama_tiny", "dataset=python_docs", "dataset.batch_size=2", "backbone.weights=random:0",
         "hardware=cpu", "backbone.load=bf16"]  # fmt: skip
FREQUENCIES = 10000.0 ** (-torch.arange(8) / 8)  # 16 dimensions a head


@pytest.mark.parametrize("load", ["bf16", "int8", "nf4", None])
def test_rotary_frequencies_are_those_of_float32(load: str | None) -> None:
    """10000^(-k/8), which bfloat16 rounds by up to 1/256 of itself."""
    config = {**small.CONFIGS["llama"], "load": load}
    method = LinearProbe(build_backbone({**config, "load": load if load == "bf16" else None}), small.task("llama"))
    on_meta = build_backbone(config, device="meta")
    if load is None:
        method.to(torch.bfloat16)  # as hardware.precision=bf16-true does
    rotary = method.backbone.model.model.rotary_emb
    if load in (None, "bf16"):
        assert next(method.backbone.model.parameters()).dtype is torch.bfloat16
    torch.testing.assert_close(rotary.inv_freq, FREQUENCIES, rtol=1e-6, atol=0.0)
    assert on_meta.model.model.rotary_emb.inv_freq.dtype is torch.float32
    method.float()
    torch.testing.assert_close(rotary.inv_freq, FREQUENCIES, rtol=1e-6, atol=0.0)


def test_a_plan_of_true_half_precision_keeps_them_too() -> None:
    method = LinearProbe(small.backbone("llama", "meta"), small.task("llama"))
    make_fake(method, fake_mode(), torch.bfloat16)
    assert method.backbone.model.model.rotary_emb.inv_freq.dtype is torch.float32
    assert {p.dtype for p in method.parameters()} == {torch.bfloat16}


def test_batch_norms_stay_whole() -> None:
    made, data = smallest.build(compose(["method=linear_probe", "backbone=cnn_tiny", "dataset=digits",
                                       "backbone.weights=random:0", "backbone.load=bf16"]))  # fmt: skip
    norms = [m for m in made.backbone.model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {t.dtype for m in norms for t in (m.weight, m.bias, m.running_mean, m.running_var)} == {torch.float32}
    assert {m.weight.dtype for m in made.backbone.model.modules() if isinstance(m, nn.Conv2d)} == {torch.bfloat16}
    data.setup()
    assert torch.isfinite(made.training_loss(smallest.batch_of(data, 4)))


@pytest.mark.parametrize(
    ("method", "wide"),
    [
        ("peft/ln_tuning", "ln_tuning_layers"),  # trained norms
        ("peft/vera", "vera_A"),
        ("peft/pvera", "vera_A"),
        ("peft/randlora", "randlora_B"),
        ("peft/delora", "delora_w_norm"),
        ("peft/tinylora", "tinylora_P"),
    ],
)
def test_what_peft_adds_to_bf16_weights_is_float32(method: str, wide: str) -> None:
    """As `PeftModel` has it around a whole model (`autocast_adapter_dtype`); the run and its plan both go through."""
    cfg = compose([f"method={method}", *WORDS])
    made, data = smallest.build(cfg)
    data.setup()
    named = [*made.named_parameters(), *made.named_buffers()]
    own = {t.dtype for name, t in named if wide in name and t.is_floating_point()}
    assert own == {torch.float32}
    assert made.backbone.model.get_input_embeddings().weight.dtype is torch.bfloat16
    made.train().training_loss(smallest.batch_of(data, 2)).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in made.parameters() if p.requires_grad)
    assert plan_run(cfg).memory["peak"] > 0
