"""LST on the encoder of BART (table 2 of the paper): the forward pass by hand, the head, the pruning, one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.methods.side_tuning.models import backbone, batch, gradients, lst, task
from transfer_run.backbones.load import build_backbone
from transfer_run.experiment.config import registry
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.run import carry_out
from transfer_run.methods.base import Context
from transfer_run.methods.side_tuning.ladder.pruning import PruningChain
from transfer_run.methods.side_tuning.lst import LST
from transfer_run.task import Task


def test_the_forward_pass_by_hand() -> None:
    """s_0 = first_down(LN(token + position)); fusion with each layer's output, then the side layer; final_up without
    a norm; the state at the last end-of-text token through dense, tanh and out."""
    model = backbone("bart")
    method, given = lst(model), batch(model)
    given["input_ids"][:, 3] = 1  # the end of a first sentence
    given["input_ids"][torch.arange(3), given["attention_mask"].sum(1) - 1] = 1
    encoder, ladder = model.model, method.ladders["encoder"]
    mask = given["attention_mask"]
    taps = encoder(input_ids=given["input_ids"], attention_mask=mask, output_hidden_states=True).hidden_states
    bias = torch.where(mask[:, None, None, :].bool(), 0.0, torch.finfo(torch.float32).min)
    s = ladder.first(taps[0])
    for index in range(3):
        gate = torch.sigmoid(ladder.mix.alpha[index] / 0.1)
        s = gate * s + (1 - gate) * ladder.maps[str(index)](taps[index + 1])
        s = ladder.steps.blocks[str(index)](s, bias)
    state = method.output.up(s)[torch.arange(3), mask.sum(1) - 1]
    head: Any = method.backbone.head
    expected = head.out_proj(torch.tanh(head.dense(state)))
    torch.testing.assert_close(method(given), expected, atol=1e-5, rtol=1e-5)
    assert ladder.steps.norm is None
    assert s.shape == (3, 7, 16)
    loss = F.cross_entropy(expected, given["labels"])
    torch.testing.assert_close(method.loss(given), loss, atol=1e-5, rtol=1e-5)


def test_side_layers_are_barts_own_at_a_narrower_width() -> None:
    model = backbone("bart", dropout=0.2, attention_dropout=0.1, activation_dropout=0.3)
    method = LST(model, task(model), reduction_factor=2, init="random")
    block = method.side_steps("encoder").blocks["1"]
    assert type(block) is type(model.blocks("encoder")[0])
    assert (block.self_attn.num_heads, block.self_attn.head_dim, block.fc1.out_features) == (4, 4, 24)
    assert (block.dropout, block.self_attn.dropout, block.activation_dropout) == (0.2, 0.1, 0.3)
    assert method.side_steps("encoder").input_dropout == 0.2


def test_the_side_stream_draws_its_own_dropout() -> None:
    """Both streams start from the same embedding under two draws."""
    model = backbone("bart", dropout=0.5)
    method, given = lst(model).train(), batch(model)
    seen: dict[str, Tensor] = {}
    method.ladders["encoder"].first.register_forward_hook(lambda m, i, o: seen.update(side=i[0]))
    model.blocks("encoder")[0].register_forward_hook(lambda m, i, o: seen.update(backbone=i[0]))
    method(given)
    side, other = seen["side"] != 0, seen["backbone"] != 0
    assert 0.3 < side.float().mean() < 0.7
    assert not torch.equal(side, other)
    torch.testing.assert_close(seen["side"][side & other], seen["backbone"][side & other])


def test_trained_are_the_side_and_the_head() -> None:
    model = backbone("bart")
    method, given = lst(model).train(), batch(model)
    trained = set(gradients(method, given))
    assert {n for n in trained if n.startswith("backbone.")} == {
        f"backbone.head.{layer}.{kind}" for layer in ("dense", "out_proj") for kind in ("weight", "bias")
    }


def test_parameters_on_bart_large() -> None:
    """r = 8, all twelve layers: side layers, maps with biases, gates, final_up, and BART's head of two classes."""
    config = registry.entry("backbone", "facebook/bart-large").content["backbone"]
    model = build_backbone(dict(config), device="meta")
    method = LST(model, Task("classification", 2), reduction_factor=8)
    d, narrow, inner = 1024, 128, 512
    layer = 4 * (narrow * narrow + narrow) + (narrow * inner + inner) + (inner * narrow + narrow) + 4 * narrow
    maps = 13 * (d * narrow + narrow) + 12 + (narrow * d + d)
    head = (d * d + d) + (2 * d + 2)
    assert sum(p.numel() for p in method.parameters() if p.requires_grad) == 12 * layer + maps + head == 5_268_622


def test_pruning_starts_at_the_token_table_and_cuts_biases_and_norms_along() -> None:
    model = backbone("bart")
    chain = PruningChain(model, None, 2)
    first = chain.columns
    table = model.model.embed_tokens.weight.double().abs().sum(0)
    assert torch.equal(first, table.topk(16).indices.sort().values)
    cut, block = chain.block("encoder", 0), model.blocks("encoder")[0]
    qkv, out, inner, last = (chain.decisions[f"encoder.0.{name}"] for name in ("qkv", "out", "mlp_in", "mlp_out"))
    for name in ("q", "k", "v"):
        wide = getattr(block.self_attn, f"{name}_proj")
        assert torch.equal(cut[f"self_attn.{name}_proj.weight"], wide.weight[qkv][:, first])
        assert torch.equal(cut[f"self_attn.{name}_proj.bias"], wide.bias[qkv])
    for name, rows, columns in (("self_attn.out_proj", out, qkv), ("fc1", inner, out), ("fc2", last, inner)):
        wide = block.get_submodule(name)
        assert torch.equal(cut[f"{name}.weight"], wide.weight[rows][:, columns])
        assert torch.equal(cut[f"{name}.bias"], wide.bias[rows])
    for name, rows in (("self_attn_layer_norm", out), ("final_layer_norm", last)):
        for kind in ("weight", "bias"):
            assert torch.equal(cut[f"{name}.{kind}"], block.get_submodule(name).get_parameter(kind)[rows])


def test_scores_of_the_released_code_keep_other_rows(tmp_path: Path) -> None:
    """`prune_compat`: of importances below one, |sum of logarithms| is largest for the least important rows."""
    model = backbone("bart")

    def samples(split: str, size: int) -> list[dict[str, Tensor]]:
        return [batch(model, rows=1, seed=seed) for seed in range(4)]

    def kept(compat: bool) -> PruningChain:
        method = LST(model, task(model), reduction_factor=2, prune_compat=compat)
        torch.manual_seed(3)
        method.backbone.head = method.form.head(model, task(model))
        importance = method.fisher(iter(samples("train", 1)))
        assert all(0 <= float(t.max()) < 1 for t in importance.values())
        return method.cut_from_backbone(importance)

    paper, released = kept(False).decisions["encoder.0.qkv"], kept(True).decisions["encoder.0.qkv"]
    assert set(paper.tolist()) != set(released.tolist())
    method = LST(model, task(model), reduction_factor=2, prune_compat=True)
    before = {n: p.clone() for n, p in method.named_parameters()}
    method.prepare(Context(seed=0, folder=tmp_path, batches=samples))
    changed = [n for n, p in method.named_parameters() if not torch.equal(p, before[n])]
    assert changed
    assert all(".steps.blocks." in name for name in changed)


def test_it_learns() -> None:
    """Side network and head fit a batch through the frozen encoder."""
    model = backbone("bart")
    method, given = LST(model, task(model), reduction_factor=2, init="random", backbone_dropout=False), batch(model)
    optimizer = torch.optim.AdamW(method.parameter_groups(), lr=3e-3)
    first = method.train().loss(given).item()
    for _ in range(60):
        optimizer.zero_grad()
        method.loss(given).backward()
        optimizer.step()
    assert method.eval().loss(given).item() < 0.1 * first


def test_a_run(tmp_path: Path) -> None:
    """On the Python documentation, Fisher pass and pruning included: the plan is what is measured."""
    words = ["method=lst", "backbone=bart_tiny", "dataset=python_docs", "hardware=cpu", "trainer.progress=none"]
    words += [f"output_dir={tmp_path}", "method.init_samples=8", "trainer.max_steps=4", "plan.profile=paper"]
    result = json.loads((carry_out(compose(words)) / "result.json").read_text("utf-8"))
    assert result["memory"]["predicted_peak"] == pytest.approx(result["memory"]["peak"], rel=0.02)
    assert result["parameters"]["trainable"] == 38_940
