"""The checks of the LST spec on every family of backbones (1 is in tests/oracles, 8 and 9 in test_pruning.py, 11 in
test_extra_tokens.py; 12 belongs to the memory plan)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.methods.side_tuning.models import BACKBONES, FORMS, backbone, batch, gradients, lst, task
from transfer_run.backbones.base import Backbone
from transfer_run.backbones.load import build_backbone
from transfer_run.methods.side_tuning.lst import LST
from transfer_run.task import Task

ROOT = Path(__file__).parents[3]
ONE_OF_EACH = ["t5", "bert", "gpt2", "llama", "vit"]


def identity(model: Backbone, memory_mode: str) -> LST:
    """r = 1, everything copied from the backbone, maps that do nothing, gates open to the side stream."""
    method = LST(model, task(model), reduction_factor=1, init="random", memory_mode=memory_mode)  # type: ignore[arg-type]
    method.cut_from_backbone(None)
    with torch.no_grad():
        for ladder in method.ladders.values():
            ladder.first.weight.copy_(torch.eye(len(ladder.first.weight)))
            ladder.mix.alpha.fill_(100)
        method.output.up.weight.copy_(torch.eye(len(method.output.up.weight)))
    return method.eval()


# ---- 2
@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("memory_mode", ["efficient", "official"])
def test_at_full_width_it_is_the_backbone(name: str, memory_mode: str) -> None:
    """No difference at all in float32, padded rows included."""
    model = backbone(name)
    if memory_mode == "official" and name != "deberta":
        model.set_attention("eager")  # as the official mode attends
    method, given = identity(model, memory_mode), batch(model)
    with torch.no_grad():  # PyTorch picks another attention kernel where a gradient is asked for
        assert torch.equal(method(given), method.plain().eval()(given))


# ---- 3
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_gate_limits(name: str) -> None:
    """g = 0 forgets the side stream before the last gate, g = 1 does not look at the taps."""
    model = backbone(name)
    method, given = lst(model), batch(model)

    def moved(which: str) -> bool:
        before = method(given)
        parts = [getattr(ladder, which) for ladder in method.ladders.values()]
        with torch.no_grad():
            for p in (p for part in parts for p in part.parameters()):
                p.add_(torch.randn_like(p))
        return not torch.equal(before, method(given))

    assert moved("first")
    assert moved("maps")
    with torch.no_grad():
        for ladder in method.ladders.values():
            ladder.mix.alpha.fill_(-100)
    assert not moved("first")
    with torch.no_grad():
        for ladder in method.ladders.values():
            ladder.mix.alpha.fill_(100)
    assert not moved("maps")
    before = method(given)
    with torch.no_grad():
        for stack in method.ladders:
            for p in (p for block in model.blocks(stack) for p in block.parameters()):
                p.add_(torch.randn_like(p))
    assert torch.equal(before, method(given))


# ---- 4
def test_gate_depends_on_alpha_over_temperature() -> None:
    """Doubling both changes nothing; at T = 0.1 alpha's gradient is ten times that of alpha / T."""
    model = backbone("t5").double()
    given = batch(model)
    one, other = (lst(model, gate_temperature=t).double() for t in (0.1, 1.0))
    with torch.no_grad():
        for name in one.ladders:
            other.ladders[name].mix.alpha.copy_(one.ladders[name].mix.alpha * 10)
    torch.testing.assert_close(one(given), other(given), atol=1e-12, rtol=0)
    ours, theirs = gradients(one, given), gradients(other, given)
    for name in (n for n in ours if n.endswith("alpha")):
        torch.testing.assert_close(ours[name], 10 * theirs[name], atol=1e-12, rtol=1e-9)


# ---- 5
@pytest.mark.parametrize("name", BACKBONES)
def test_only_the_side_network_is_trained(name: str) -> None:
    model = backbone(name)
    method, given = lst(model).train(), batch(model)
    before = {n: p.clone() for n, p in model.named_parameters()}
    grads = gradients(method, given)
    trained = {n for n, p in method.named_parameters() if p.requires_grad}
    assert set(grads) == trained
    assert all(n.startswith(("ladders.", "output.", "backbone.head.")) for n in trained)
    frozen_heads = FORMS[model.family] != "classification"
    assert not (frozen_heads and any(n.startswith("backbone.") for n in trained))
    torch.optim.AdamW(method.parameter_groups()).step()
    kept = {n: p for n, p in model.named_parameters() if not n.startswith("head.")}
    assert all(p.grad is None and torch.equal(p, before[n]) for n, p in kept.items())


SETTINGS: list[dict[str, Any]] = [
    {}, {"gate": "none"}, {"gate": "one"}, {"gate": "schedule-linear"}, {"fuse_after": True}, {"merge_last": True},
    {"side_layers": {"encoder": [1], "decoder": [0, 1]}, "ladder_bias": False},
]  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(s) or "default")
@pytest.mark.parametrize("name", ["t5", "bert"])
def test_memory_modes_agree(name: str, settings: dict[str, Any]) -> None:
    modes_agree(name, settings)


@pytest.mark.parametrize("name", [n for n in BACKBONES if n not in ("t5", "bert")])
def test_memory_modes_agree_on_every_family(name: str) -> None:
    modes_agree(name, {})


def modes_agree(name: str, settings: dict[str, Any]) -> None:
    """Loss, logits and every gradient to 1e-9 in float64; recomputing the side blocks changes nothing either.

    The library's rotary models take norms and the eager softmax in float32 whatever comes in, so there to 1e-5.
    """
    bound = 1e-5 if name in ("llama", "qwen2", "qwen3") else 1e-9
    model = backbone(name).double()
    given = {n: t.double() if t.is_floating_point() else t for n, t in batch(model).items()}
    results = []
    for mode, checkpointing in (("official", False), ("efficient", False), ("efficient", True)):
        method = lst(model, memory_mode=mode, **settings).double()
        model.activation_checkpointing = checkpointing
        method.train()
        for module in method.modules():  # no dropout, but the training path
            if hasattr(module, "p"):
                module.p = 0.0
            for rate in ("dropout", "input_dropout", "output_dropout"):
                if isinstance(getattr(module, rate, None), float):
                    setattr(module, rate, 0.0)
        results.append((method(given).detach(), gradients(method, given)))
    logits, grads = results[0]
    for others, other_grads in results[1:]:
        torch.testing.assert_close(others, logits, atol=bound, rtol=0)
        assert set(other_grads) == set(grads)
        for n in grads:
            torch.testing.assert_close(other_grads[n], grads[n], atol=bound, rtol=bound, msg=f"{name}: {n}")


# ---- 6
COUNTS: list[tuple[str, int, list[int] | None, int]] = [
    ("t5-base", 8, [1, 2, 3, 5, 6, 7, 9, 10, 11], 3878712),
    ("t5-base", 8, [2, 3, 6, 7, 10, 11], 2660184),
    ("t5-base", 8, [3, 7, 11], 1441656),
    ("t5-base", 2, None, 57543192),
    ("t5-base", 4, None, 16386072),
    ("t5-base", 8, None, 5097240),
    ("t5-base", 16, None, 1775256),
    ("t5-base", 32, None, 694872),
    ("t5-large", 8, list(range(1, 24, 2)), 9057328),
    ("t5-large", 8, None, 17718832),
    ("t5-3b", 8, [23], 2494896),
    ("t5-3b", 8, None, 50750000),
]


@pytest.mark.parametrize("name", ["t5-base", "t5-large", "t5-3b"])
def test_trainable_counts(name: str) -> None:
    """A count of the released modules; built on the meta device, so no weight takes memory."""
    config = yaml.safe_load((ROOT / f"configs/backbone/{name}.yaml").read_text())
    model = build_backbone(config, device="meta")
    for _, reduction, kept, count in (row for row in COUNTS if row[0] == name):
        method = LST(
            model, Task("text_to_text", 0), reduction_factor=reduction, side_layers={"encoder": kept, "decoder": kept}
        )
        assert all(p.is_meta for p in method.parameters())
        assert sum(p.numel() for p in method.parameters() if p.requires_grad) == count


def test_trainable_count_with_visual_tokens() -> None:
    """The spec's 17.97 M of the vision-and-language model: side network at r = 4 and visual embedding."""
    config = yaml.safe_load((ROOT / "configs/backbone/t5-base.yaml").read_text())
    method = LST(build_backbone(config, device="meta"), Task("text_to_text", 0), reduction_factor=4, extra_width=2048)
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    assert round(trained / 1e6, 2) == 17.97


# ---- 7
@pytest.mark.parametrize("name", ["t5", "bert", "gpt2", "llama", "deberta", "vit"])
def test_dropped_layers(name: str) -> None:
    """No side block, no map and no gradient for the gate of a dropped layer; one kept layer is enough."""
    model = backbone(name)
    given, last = batch(model), {s: model.depth(s) - 1 for s in model.stacks}
    kept = {"encoder": [last[model.stacks[0]]], "decoder": [last[model.stacks[-1]]]}
    method = lst(model, side_layers=kept)
    grads = gradients(method, given)
    for stack, ladder in method.ladders.items():
        assert list(ladder.maps) == list(ladder.steps.blocks) == [str(last[stack])]
        gate = grads[f"ladders.{stack}.mix.alpha"]
        assert len(gate) == model.depth(stack)
        assert gate[:-1].abs().max() == 0
        assert gate[-1] != 0
    assert torch.isfinite(method(given)).all()


def test_first_kept_block_owns_the_position_table() -> None:
    model = backbone("t5")
    method = lst(model, side_layers={"encoder": [1, 3], "decoder": None})
    tables = [n for n, _ in method.named_parameters() if n.startswith("ladders") and "relative_attention_bias" in n]
    assert tables == [
        f"ladders.{stack}.steps.blocks.{first}.layer.0.SelfAttention.relative_attention_bias.weight"
        for stack, first in (("encoder", 1), ("decoder", 0))
    ]
    assert all(name in gradients(method, batch(model)) for name in tables)
    method.cut_from_backbone(None)
    source = model.blocks("encoder")[0].get_parameter("layer.0.SelfAttention.relative_attention_bias.weight")
    assert torch.equal(method.get_parameter(tables[0]), source)


# ---- 10
@pytest.mark.parametrize("settings", [{}, {"merge_last": True}, {"side_layers": {"encoder": [2], "decoder": [1]}}])
@pytest.mark.parametrize("name", ["t5", "t5-gated"])
@pytest.mark.parametrize("memory_mode", ["efficient", "official"])
def test_cached_decoding_is_decoding(name: str, settings: dict[str, Any], memory_mode: str) -> None:
    model = backbone(name)
    model.model.config.eos_token_id = -1  # nothing ends early
    method, given = lst(model, memory_mode=memory_mode, **settings), batch(model)
    assert torch.equal(method.generate(given, 6), method.generate(given, 6, use_cache=False))
    memory, cache, ids = method.encode(given), method.new_cache(), given["input_ids"][:, :6]
    steps = [method.decode({**given, "decoder_input_ids": ids[:, i : i + 1], "cache": cache}, memory) for i in range(6)]
    whole = method.decode({**given, "decoder_input_ids": ids}, memory)
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
def test_cached_language_model(name: str) -> None:
    """Token by token with both caches, the same logits as in one go."""
    model = backbone(name)
    method, ids = lst(model), batch(model)["input_ids"]
    cache = method.new_cache()
    steps = [method({"input_ids": ids[:, i : i + 1], "cache": cache}) for i in range(ids.shape[1])]
    torch.testing.assert_close(torch.cat(steps, 1), method({"input_ids": ids}), atol=1e-4, rtol=1e-4)


def test_beams_reorder_both_caches() -> None:
    """After `reorder` each row goes on as the row it was taken from."""
    model = backbone("t5")
    method, given = lst(model), batch(model)
    rows, memory = torch.tensor([2, 2, 0]), method.encode(given)
    cache, start = method.new_cache(), torch.zeros(3, 1, dtype=torch.int64)
    method.decode({**given, "decoder_input_ids": start, "cache": cache}, memory)
    cache.reorder(rows)
    for stream in (memory.backbone, memory.side):
        stream.hidden, stream.mask = stream.hidden[rows], stream.mask[rows]
    following = torch.full((3, 1), 5)
    stepped = method.decode({**given, "decoder_input_ids": following, "cache": cache}, memory)[:, -1]
    whole = method.decode({**given, "decoder_input_ids": torch.cat([start, following], 1)}, memory)[:, -1]
    torch.testing.assert_close(stepped, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [n for n in BACKBONES if not n.startswith("vit")])
def test_more_padding_changes_nothing(name: str) -> None:
    model = backbone(name)
    method, given = lst(model), batch(model)
    pad = {"input_ids": int(model.model.config.pad_token_id or 0), "attention_mask": 0, "labels": -100}
    longer = {n: torch.cat([t, t.new_full((len(t), 4), pad[n])], 1) if t.dim() > 1 else t for n, t in given.items()}
    short, long = method(given), method(longer)
    if short.dim() == 3:
        real = given["labels"] != -100
        short, long = short[real], long[:, : short.shape[1]][real]
    torch.testing.assert_close(short, long, atol=1e-5, rtol=1e-5)
