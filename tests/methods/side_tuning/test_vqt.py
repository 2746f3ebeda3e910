"""The checks of the VQT spec (10 is tests/oracles/test_vqt.py), on every family that VQT is defined on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.methods.side_tuning import models
from transfer_run.backbones.base import Backbone
from transfer_run.backbones.load import build_backbone
from transfer_run.errors import UserError
from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.run import carry_out
from transfer_run.experiment.training.module import TransferModule
from transfer_run.hardware.optimization import schedule_factor
from transfer_run.methods.base import Method
from transfer_run.methods.side_tuning.parts.summaries import Concat
from transfer_run.methods.side_tuning.vqt import VQT
from transfer_run.task import Task

EXACT = {"atol": 1e-12, "rtol": 1e-10}
CLASSES = 3
TASK = Task("classification", CLASSES)
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
CLIP = {
    "projection_dim": 16, "vision_config": TOWER | {"image_size": 8, "patch_size": 4, "num_channels": 1},
    "text_config": TOWER | {"vocab_size": models.VOCABULARY, "max_position_embeddings": 20, "eos_token_id": 2,
                            "bos_token_id": 1, "pad_token_id": 0},
}  # fmt: skip
FAMILIES = ["vit", "vit-average", "clip-image", "clip-text", "bert", "roberta", "gpt2", "llama", "qwen3", "t5"]
STREAMS = ["vit", "clip-image", "clip-text", "bert", "gpt2", "t5"]


def backbone(name: str) -> Backbone:
    if not name.startswith("clip"):
        return models.backbone(name).double()
    config = {"name": name, "family": "clip", "tower": name.partition("-")[2], "architecture": CLIP}
    torch.manual_seed(0)
    return build_backbone({**config, "weights": "random:0"}).double()


def batch(model: Backbone) -> dict[str, Tensor]:
    """Three rows with labels; text is padded."""
    draw, labels = torch.Generator().manual_seed(1), torch.arange(3) % CLASSES
    if model.stacks[0] == "image":
        return {"pixel_values": torch.randn(3, 1, 8, 8, generator=draw).double(), "labels": labels}
    ids, mask = torch.randint(3, models.VOCABULARY, (3, 7), generator=draw), torch.ones(3, 7, dtype=torch.int64)
    for row in range(3):
        mask[row, 7 - row :] = 0
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": labels}


def vqt(name: str, **settings: Any) -> VQT:
    """In eval mode, with queries that matter."""
    model = backbone(name)
    torch.manual_seed(3)
    method = VQT(model, TASK, **{"num_query_tokens": 2} | settings).double()
    with torch.no_grad():
        for parameter in method.extractor().values():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return method.eval()


# ---- 1, 2, 3
@pytest.mark.parametrize("tokens", [0, 1, 3])
@pytest.mark.parametrize("memory_mode", ["efficient", "official"])
def test_the_stream_is_the_plain_model(tokens: int, memory_mode: str) -> None:
    method = vqt("vit", num_query_tokens=tokens, memory_mode=memory_mode)
    given, model = batch(method.backbone), method.backbone
    streams = [state.hidden for state in model.taps(model.embed(given))]
    seen: list[Tensor] = []
    original = method._together if memory_mode == "official" else method._apart

    def watched(state: Any, queries: Tensor) -> Any:
        after, summary = original(state, queries)
        seen.append(after.hidden)
        return after, summary

    method._apart = method._together = watched  # type: ignore[method-assign]
    final, _ = method.summaries(given)
    for ours, theirs in zip(seen, streams, strict=True) if tokens else ():
        torch.testing.assert_close(ours, theirs, **EXACT)
    state = model.run(model.embed(given))
    torch.testing.assert_close(final, model.pool(model.finish(state), state), **EXACT)


@pytest.mark.parametrize("name", FAMILIES)
def test_summaries_are_alone(name: str) -> None:
    """A summary depends on its own query of its own block, and on no other."""
    method = vqt(name)
    given = batch(method.backbone)
    assert method.queries is not None
    final, summaries = method.summaries(given)
    assert not final.requires_grad
    for layer, summary in enumerate(summaries):
        for token in range(summary.shape[1]):
            (grad,) = torch.autograd.grad(summary[:, token].square().sum(), method.queries, retain_graph=True)
            reached = grad.abs().amax(-1).nonzero().tolist()
            assert reached == [[layer, token]]


@pytest.mark.parametrize("memory_mode", ["efficient", "official"])
@pytest.mark.parametrize("name", FAMILIES)
def test_only_queries_and_head_are_trained(name: str, memory_mode: str) -> None:
    method = vqt(name, memory_mode=memory_mode)
    given = batch(method.backbone)
    method.loss(given).backward()
    trained = {n for n, p in method.named_parameters() if p.requires_grad}
    assert trained == {"queries", "backbone.head.weight", "backbone.head.bias"}
    assert all(p.grad is None for p in method.backbone.model.parameters())
    assert method.queries is not None
    assert method.queries.grad is not None
    assert (method.queries.grad.abs().amax(-1) > 0).all()
    if memory_mode == "official":  # the final feature carries a graph, and nothing flows through it
        final, _ = method.summaries(given)
        (grad,) = torch.autograd.grad(final.sum(), method.queries)
        assert grad.abs().max() == 0


# ---- an independent form, and 4
@pytest.mark.parametrize("memory_mode", ["efficient", "official"])
def test_it_is_a_joint_sequence_under_a_mask(memory_mode: str) -> None:
    """timm's own blocks on [tokens; queries], where a mask hides the queries from everybody."""
    method = vqt("vit", num_query_tokens=3, combine="concat", memory_mode=memory_mode)
    given, model = batch(method.backbone), method.backbone
    x = model.embed(given).hidden
    length, parts = x.shape[1], []
    visible = torch.zeros(length + 3, length + 3, dtype=torch.bool)
    visible[:, :length] = True
    assert method.queries is not None
    for block, queries in zip(model.blocks("image"), method.queries, strict=True):
        out = block(torch.cat([x, queries.expand(3, -1, -1)], 1), attn_mask=visible)
        x, summary = out[:, :length], out[:, length:]
        parts.append(summary.reshape(3, -1))
    parts.insert(0, model.final_norm("image")(x)[:, 0])  # type: ignore[misc]
    features = torch.cat([part / part.norm(dim=1, keepdim=True) for part in parts], 1)
    torch.testing.assert_close(method.features(given), features, **EXACT)
    (ours,) = torch.autograd.grad(method.features(given).sin().sum(), method.queries)
    (theirs,) = torch.autograd.grad(features.sin().sum(), method.queries)
    torch.testing.assert_close(ours, theirs, **EXACT)


def test_closed_form() -> None:
    """Without query map and MLP, under an output map that does nothing: a query plus the mean of the values."""
    method = vqt("vit", num_query_tokens=2)
    given, model = batch(method.backbone), method.backbone
    width = model.width("image")
    with torch.no_grad():
        for index in range(model.depth("image")):
            part = {name: model.part("image", index, name) for name in ("qkv", "out", "mlp_out")}
            part["qkv"].weight[:width] = 0  # type: ignore[index,operator]
            part["qkv"].bias[:width] = 0  # type: ignore[index,operator]
            part["out"].weight.copy_(torch.eye(width))  # type: ignore[operator,union-attr]
            block: Any = model.blocks("image")[index]
            block.ls1.gamma.fill_(1)
            for zero in (part["out"].bias, part["mlp_out"].weight, part["mlp_out"].bias):
                zero.zero_()  # type: ignore[operator,union-attr]
    state = model.embed(given)
    _, summaries = method.summaries(given)
    assert method.queries is not None
    for index, summary in enumerate(summaries):
        seen = model.part("image", index, "norm1")(state.hidden)
        values = model.project("image", index, "v", seen).mean(1, keepdim=True)
        torch.testing.assert_close(summary, method.queries[index] + values, **EXACT)
        state = model.step(state)


# ---- 5
SETTINGS: list[dict[str, Any]] = [
    {}, {"combine": "pool"}, {"combine": "weighted"}, {"combine": "attention"}, {"combine": "mlp_attention"},
    {"normalize_feats": False}, {"final_feature": "gap"}, {"final_feature": "cls"}, {"addon": "vpt"},
    {"addon": "vpt", "vpt_deep": False}, {"addon": "adaptformer"}, {"num_query_tokens": 0}, {"stage": "compress"},
]  # fmt: skip


def modes_agree(name: str, **settings: Any) -> None:
    """Logits and every gradient to 1e-10, in training mode; activation checkpointing changes nothing either."""
    results = []
    for mode, checkpointing in (("official", False), ("efficient", False), ("efficient", True)):
        method = vqt(name, memory_mode=mode, prompt_dropout=0.4, **settings)
        method.backbone.activation_checkpointing = checkpointing
        method.train()
        given = batch(method.backbone)
        torch.manual_seed(5)
        logits = method(given)
        torch.manual_seed(5)
        results.append((logits.detach(), models.gradients(method, given)))  # type: ignore[arg-type]
    bound = {"atol": 1e-5, "rtol": 1e-4} if name in ("llama", "qwen3") else {"atol": 1e-10, "rtol": 1e-10}
    for logits, gradients in results[1:]:  # rotary models take norms in float32 whatever comes in
        torch.testing.assert_close(logits, results[0][0], **bound)
        assert set(gradients) == set(results[0][1])
        for key, gradient in gradients.items():
            torch.testing.assert_close(gradient, results[0][1][key], **bound, msg=key)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())) or "default")
def test_memory_modes_agree(settings: dict[str, Any]) -> None:
    modes_agree("vit", **settings)


@pytest.mark.parametrize("name", [n for n in FAMILIES if n != "vit"])
def test_memory_modes_agree_on_every_family(name: str) -> None:
    modes_agree(name)


@pytest.mark.parametrize("addon", ["vpt", "adaptformer"])
@pytest.mark.parametrize("name", [n for n in STREAMS if n != "vit"])
def test_addons_agree_on_every_family(name: str, addon: str) -> None:
    modes_agree(name, addon=addon)


# ---- 6, 7
@pytest.mark.parametrize("combine", ["concat", "pool", "weighted"])
def test_lengths_and_widths(combine: Any) -> None:
    method = vqt("vit", num_query_tokens=3, combine=combine)
    features = method.features(batch(method.backbone))
    depth, width = method.backbone.depth("image"), method.backbone.width("image")
    assert features.shape[1] == width * (1 + depth * (3 if combine == "concat" else 1)) == method.combine.features
    torch.testing.assert_close(features.square().sum(1), torch.full((3,), depth + 1.0).double(), **EXACT)


def test_a_weighted_sum_of_ones_is_the_mean() -> None:
    draw = torch.Generator().manual_seed(0)
    final, summaries = torch.randn(2, 8, generator=draw), [torch.randn(2, 4, 8, generator=draw) for _ in range(3)]
    raw = [Concat(kind, 3, 4, 8, normalize=False)(final, summaries) for kind in ("weighted", "pool")]  # type: ignore[arg-type]
    torch.testing.assert_close(raw[0][:, 8:], 4 * raw[1][:, 8:])
    torch.testing.assert_close(
        *(Concat(kind, 3, 4, 8, normalize=True)(final, summaries) for kind in ("weighted", "pool"))  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("name", STREAMS)
def test_without_queries_it_is_linear_probing(name: str) -> None:
    method = vqt(name, num_query_tokens=0)
    given, head = batch(method.backbone), method.backbone.head
    plain = Method(method.backbone, TASK).eval()
    method.backbone.head = head
    torch.testing.assert_close(method(given), head(F.normalize(plain.features(given))), **EXACT)


def test_final_features() -> None:
    """The patches' mean under a LayerNorm without weights; CLS after the final norm."""
    for settings in ({"final_feature": "gap"}, {"final_feature": "gap", "addon": "vpt"}, {"final_feature": "cls"}):
        method = vqt("vit", **settings)
        given, model = batch(method.backbone), method.backbone
        state = model.embed(given)
        for _ in range(model.depth("image")):
            state = model.step(state if method.addon is None else method.addon.before(model, state))
        first = 0 if method.addon is None else 10
        if settings["final_feature"] == "gap":
            expected = F.layer_norm(state.hidden[:, first + 1 :].mean(1), [model.width("image")], eps=1e-6)
        else:
            expected = model.finish(state)[:, 0]
        torch.testing.assert_close(method.summaries(given)[0], expected, **EXACT)


# ---- 9, and what the released training says
def test_schedule() -> None:
    """Ten epochs up from zero, cosine to zero at epoch 100; `optimizer.interval=epoch` moves it once an epoch."""
    factor = schedule_factor("cosine", 0.1, 100)
    expected = [0, 0.5, 1, 0.5, 0.5 * (1 + torch.cos(torch.tensor(torch.pi * 89 / 90)).item())]
    assert [factor(epoch) for epoch in (0, 5, 10, 55, 99)] == pytest.approx(expected, abs=1e-6)


def test_the_schedule_moves_once_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `optimizer.interval=epoch` the first epoch runs at a rate of zero and leaves the queries as they were."""
    rates: list[set[float]] = []
    queries: list[Tensor] = []
    ordinary = TransferModule.on_train_batch_start

    def watched(self: TransferModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            rates.append(set())
            queries.append(self.method.queries.detach().clone())
        rates[-1].add(round(self.trainer.optimizers[0].param_groups[0]["lr"], 6))
        ordinary(self, batch, batch_idx)

    monkeypatch.setattr(TransferModule, "on_train_batch_start", watched)
    words = ["method=vqt", "backbone=vit_tiny", "backbone.weights=random:0", "dataset=digits", "hardware=cpu",
             "dataset.batch_size=512", "trainer.max_epochs=4", "profiler=none", "trainer.progress=none",
             "optimizer.interval=epoch", "optimizer.warmup=2", f"output_dir={tmp_path}"]  # fmt: skip
    carry_out(compose(words))
    assert rates == [{0.0}, {0.05}, {0.1}, {0.05}]
    assert torch.equal(queries[0], queries[1])
    assert not torch.equal(queries[1], queries[2])


def test_initial_values_and_groups() -> None:
    model = build_backbone({"name": "b", "family": "vit", "weights": "random:0", "architecture": {
        "model": "vit_tiny_patch16_224", "img_size": 32, "patch_size": 16, "embed_dim": 768, "depth": 2,
        "num_heads": 4, "mlp_ratio": 0.1}})  # fmt: skip
    method = VQT(model, Task("classification", 50), num_query_tokens=20, addon="adaptformer")
    assert method.queries is not None
    assert 0.06 < method.queries.abs().max() < 0.0625  # sqrt(6 / (3 * 16 * 16 + 768))
    head: Any = method.backbone.head
    assert float(head.weight.detach().std()) == pytest.approx((2 / 50) ** 0.5, rel=0.02)
    assert (head.bias == -4.595).all()
    rest, bias, addon = method.parameter_groups()
    assert bias["weight_decay"] == 0.0
    assert bias["params"][0] is head.bias
    assert addon["lr"] == 1e-3
    count = sum(p.numel() for group in (rest, bias, addon) for p in group["params"])
    assert count == sum(p.numel() for p in method.parameters() if p.requires_grad)
    assert sum(p.numel() for p in addon["params"]) == 2 * (2 * 768 * 64 + 64 + 768)


def test_each_example_draws_its_own_dropout() -> None:
    method = vqt("vit", prompt_dropout=0.5)
    given = batch(method.backbone)
    given["pixel_values"] = given["pixel_values"][:1].expand(3, -1, -1, -1)
    _, summaries = method.train().summaries(given)
    assert not torch.allclose(summaries[0][0], summaries[0][1])
    assert not method.backbone.model.training
    _, summaries = method.eval().summaries(given)
    torch.testing.assert_close(summaries[0][0], summaries[0][1])


# ---- add-ons
@pytest.mark.parametrize("addon", ["vpt", "adaptformer"])
@pytest.mark.parametrize("name", STREAMS)
def test_addons_are_trained_through_the_stream(name: str, addon: Any) -> None:
    method = vqt(name, addon=addon)
    gradients = models.gradients(method, batch(method.backbone))  # type: ignore[arg-type]
    own = [key for key in gradients if key.startswith("addon.")]
    assert own
    assert all(gradients[key].abs().max() > 0 for key in own)
    assert {key for key, p in method.named_parameters() if p.requires_grad} == set(gradients)
    assert method.needs_backbone_gradient


def test_adaptformer_starts_as_the_plain_model_and_scales() -> None:
    """Up starts at zero; the change is s * up(relu(down(LN2(x)))), beside the MLP."""
    model, given = backbone("vit"), batch(backbone("vit"))
    before = model.run(model.embed(given)).hidden
    method = VQT(model, TASK, addon="adaptformer", adapter_width=4).double().eval()
    torch.testing.assert_close(model.run(model.embed(given)).hidden, before, **EXACT)
    adapter: Any = method.addon.adapters[0]  # type: ignore[union-attr,index]
    torch.nn.init.normal_(adapter.up.weight)
    block: Any = model.blocks("image")[0]
    x = torch.randn(2, 5, 32, dtype=torch.float64)
    change = block.mlp(x) - block.mlp.fc2.forward(block.mlp.act(block.mlp.fc1(x)))
    torch.testing.assert_close(change, 0.1 * F.relu(x @ adapter.down.weight.T) @ adapter.up.weight.T, **EXACT)


def test_deep_prompts_replace_and_shallow_ones_stay() -> None:
    for deep in (True, False):
        method = vqt("vit", addon="vpt", vpt_deep=deep, vpt_tokens=4)
        model, given = method.backbone, batch(method.backbone)
        x = model.embed(given).hidden
        rows = method.addon.rows  # type: ignore[union-attr]
        for index, block in enumerate(model.blocks("image")):
            if index < len(rows):
                x = torch.cat([rows[index].expand(3, -1, -1), x if index == 0 else x[:, 4:]], 1)
            x = block(x)
        final, _ = method.summaries(given)
        torch.testing.assert_close(final, model.final_norm("image")(x)[:, 4], **EXACT)  # type: ignore[misc]


# ---- refusals
@pytest.mark.parametrize(("name", "settings", "reason"), [
    ("deberta", {}, "place in the text"), ("vit", {"combine": "attention", "normalize_feats": False}, "normalised"),
    ("bert", {"final_feature": "gap"}, "no patches"), ("vit-average", {"final_feature": "cls"}, "no first token"),
    ("gpt2", {"final_feature": "cls"}, "no first token"), ("vit", {"stage": "featselect", "keep_frac": 0.0}, "kept"),
])  # fmt: skip
def test_refusals(name: str, settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        VQT(backbone(name), TASK, **settings)


def test_language_tasks_and_windows_are_refused() -> None:
    with pytest.raises(UserError, match="language head"):
        VQT(backbone("t5"), Task("text_to_text", 0))
    config = models.LLAMA_SIZES | {"model_type": "mistral", "sliding_window": 4}
    mistral = build_backbone({"name": "m", "family": "decoder", "weights": "random:0", "architecture": config})
    with pytest.raises(UserError, match="window"):
        VQT(mistral, TASK)


def test_regression_has_one_output_without_a_prior() -> None:
    method = VQT(backbone("vit"), replace(TASK, form="regression", num_labels=1)).double()
    assert (method.backbone.head.bias == 0).all()  # type: ignore[operator]
    assert method(batch(method.backbone)).shape == (3, 1)


@pytest.mark.parametrize(("method", "backbone", "dataset", "reason"), [
    ("vqt", "cnn_tiny", "digits", "keys and values"), ("hst", "bert_tiny", "python_docs", "images"),
    ("hst", "cnn_tiny", "digits", "grid of patches"),
])  # fmt: skip
def test_impossible_pairs_are_refused_with_the_reason(method: str, backbone: str, dataset: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        compose([f"method={method}", f"backbone={backbone}", f"dataset={dataset}"])
