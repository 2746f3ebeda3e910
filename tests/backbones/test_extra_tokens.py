"""Tokens put in front of the sequence, and separate queries that read a block without being seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from transfer_run.backbones.base import Backbone, State
from transfer_run.errors import UserError

EXACT = {"atol": 1e-10, "rtol": 1e-8}
REFUSE = ("deberta", "mistral")
TEXT = ["t5", "bert", "deberta", "gpt2", "llama", "qwen3", "clip"]


def text_stack(case: Any) -> str:
    return "text" if case.name == "clip" else case.backbone.stacks[0]


def tokens_for(state: State, count: int = 2, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (state.hidden.shape[0], count, state.hidden.shape[-1])
    return torch.randn(shape, generator=generator, dtype=state.hidden.dtype)


@pytest.mark.parametrize("place", [0, 1])
def test_put_in_and_taken_out_leaves_everything_as_it_was(attention_case: Any, place: int) -> None:
    backbone: Backbone = attention_case.backbone
    for stack in backbone.stacks:
        if attention_case.name == "mistral":
            backbone.model.config.sliding_window = 64
        state = backbone.run(attention_case.embed(stack), stop=place)
        again = backbone.drop_prefix(backbone.prepend(state, tokens_for(state)), 2)
        assert again.prefix == state.prefix == 0
        torch.testing.assert_close(backbone.run(again).hidden, backbone.run(state).hidden, **EXACT)


@pytest.mark.parametrize("place", [0, 1])
def test_real_tokens_see_what_is_put_in(attention_case: Any, place: int) -> None:
    """The tokens put in before a block change the output at every real place, the length grows, pooling skips them."""
    backbone: Backbone = attention_case.backbone
    if attention_case.name == "mistral":
        pytest.skip("its window is shorter than the text: it refuses (tested below)")
    for stack in backbone.stacks:
        state = backbone.run(attention_case.embed(stack), stop=place)
        longer = backbone.prepend(state, tokens_for(state))
        assert longer.hidden.shape[1] == state.hidden.shape[1] + 2
        assert backbone.special_tokens(longer) == backbone.special_tokens(state) + 2
        seen, plain = backbone.run(longer, place + 1).hidden[:, 2:], backbone.run(state, place + 1).hidden
        changed = (seen - plain).abs().amax(-1) > 1e-9
        assert changed[torch.ones_like(changed) if state.mask is None else state.mask.bool()].all()
        features = backbone.pool(backbone.finish(backbone.run(longer)), longer)
        assert features.shape == backbone.pool(backbone.finish(backbone.run(state)), state).shape


@pytest.mark.parametrize("name", TEXT)
@pytest.mark.parametrize("place", [0, 1])
def test_text_positions_do_not_shift(build: Callable[..., Any], name: str, place: int) -> None:
    """Masked out again, the tokens in front leave the text exactly as it was: they moved nothing."""
    case = build(name, torch.float64)
    backbone, stack = case.backbone, text_stack(case)
    state = backbone.run(case.embed(stack), stop=place)
    longer = backbone.prepend(state, tokens_for(state))
    mask = longer.mask.clone()
    mask[:, :2] = 0
    hidden = replace(longer, mask=mask)
    hidden = backbone._with_mask(hidden) if name == "clip" else backbone._with_masks(hidden)
    real = state.mask.bool()
    shifted, plain = backbone.run(hidden).hidden[:, 2:], backbone.run(state).hidden
    torch.testing.assert_close(shifted[real], plain[real], **EXACT)


@pytest.mark.parametrize("name", TEXT)
def test_padding_stays_invisible(build: Callable[..., Any], name: str) -> None:
    case = build(name, torch.float64)
    outputs = []
    for filler in (4, 7):
        real = case.batch["attention_mask"].bool()
        case.batch["input_ids"] = torch.where(real, case.batch["input_ids"], filler)
        state = case.embed(text_stack(case))
        longer = case.backbone.run(case.backbone.prepend(state, tokens_for(state)))
        outputs.append(longer.hidden[:, 2:][real])
    torch.testing.assert_close(*outputs, **EXACT)


def test_rotary_prompts_equal_the_library_with_a_longer_text(build: Callable[..., Any]) -> None:
    """Positions -R..-1 before 0..S-1 are, rotated, the same as 0..R+S-1."""
    case = build("llama")
    backbone, ids = case.backbone, case.batch["input_ids"][:1]
    state = backbone.embed({"input_ids": ids})
    ours = backbone.finish(backbone.run(backbone.prepend(state, tokens_for(state))))
    theirs = backbone.model.model(inputs_embeds=torch.cat([tokens_for(state), state.hidden], 1)).last_hidden_state
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_prompted_decoding_with_a_cache(build: Callable[..., Any], name: str) -> None:
    """Tokens put in at the first step stay in the cache; the text's positions go on as if they were not there."""
    case = build(name, torch.float64)
    backbone, ids, mask = case.backbone, case.batch["input_ids"], case.batch["attention_mask"]
    state = backbone.embed({"input_ids": ids, "attention_mask": mask})
    whole = backbone.finish(backbone.run(backbone.prepend(state, tokens_for(state))))[:, 2:]
    cache = backbone.new_cache()
    state = backbone.embed({"input_ids": ids[:, :3], "attention_mask": mask[:, :3], "cache": cache})
    steps = [backbone.finish(backbone.run(backbone.prepend(state, tokens_for(state))))[:, 2:]]
    for place in range(3, ids.shape[1]):
        words = {"input_ids": ids[:, place : place + 1], "attention_mask": mask[:, : place + 1], "cache": cache}
        steps.append(backbone.finish(backbone.run(backbone.embed(words))))
    torch.testing.assert_close(torch.cat(steps, 1)[mask.bool()], whole[mask.bool()], **EXACT)


def test_prompted_t5_decoding_with_a_cache(build: Callable[..., Any]) -> None:
    case = build("t5", torch.float64)
    backbone, ids = case.backbone, case.batch["decoder_input_ids"]
    memory = backbone.finished_state(backbone.run(backbone.embed(case.batch, "encoder")))
    state = backbone.embed(case.batch, "decoder", memory)
    whole = backbone.finish(backbone.run(backbone.prepend(state, tokens_for(state))))[:, 2:]
    cache, steps = backbone.new_cache(), []
    for place in range(ids.shape[1]):
        words = {"decoder_input_ids": ids[:, place : place + 1], "cache": cache}
        step = backbone.embed(words, "decoder", memory)
        step = backbone.prepend(step, tokens_for(step)) if place == 0 else step
        steps.append(backbone.finish(backbone.run(step))[:, -1:])
    torch.testing.assert_close(torch.cat(steps, 1), whole, **EXACT)


# ---- separate queries
def joint(backbone: Backbone, state: State, queries: Tensor) -> Tensor:
    """The block's output at queries that are appended to the sequence and masked so that nobody sees them."""
    rows, length, count = state.hidden.shape[0], state.hidden.shape[1], queries.shape[1]
    real = torch.ones(rows, length) if state.mask is None else state.mask
    allowed = torch.zeros(rows, 1, length + count, length + count, dtype=torch.bool)
    allowed[..., :length] = real.bool()[:, None, None, :]
    if state.stack in ("decoder", "text"):
        allowed[:, :, :length, :length] &= torch.ones(length, length).tril().bool()
    both, context = torch.cat([state.hidden, queries], 1), dict(state.context)
    block: Any = backbone.blocks(state.stack)[state.index]
    if backbone.family == "vit":
        return block(both, attn_mask=allowed)[:, length:]
    if backbone.family == "t5":
        first: Any = backbone.blocks(state.stack)[0]
        bias = torch.zeros(1, backbone.heads(state.stack), length + count, length + count, dtype=both.dtype)
        bias[..., :length, :length] = first.layer[0].SelfAttention.compute_bias(length, length)
        words = {"attention_mask": allowed, "position_bias": bias}
        if state.stack == "decoder":
            memory = context["memory"]
            words |= {"encoder_hidden_states": memory.hidden,
                      "encoder_attention_mask": memory.mask.bool()[:, None, None, :]}  # fmt: skip
        return block(both, **words)[0][:, length:]
    if backbone.family == "encoder" or backbone.family == "clip":
        return block(both, allowed)[:, length:]
    words = {"attention_mask": allowed}
    if backbone.rotary:  # type: ignore[attr-defined]
        behind = real.sum(1, keepdim=True).long().expand(-1, count)
        positions = torch.cat([torch.arange(length).expand(rows, -1), behind], 1)
        words["position_embeddings"] = backbone.model.model.rotary_emb(both, position_ids=positions)
    return block(both, **words)[:, length:]


@pytest.mark.parametrize("place", [0, 1])
def test_queries_equal_the_joint_masked_block(attention_case: Any, place: int) -> None:
    backbone: Backbone = attention_case.backbone.requires_grad_(False)
    if attention_case.name in REFUSE:
        pytest.skip("it refuses separate queries (tested below)")
    for stack in backbone.stacks:
        state = backbone.run(attention_case.embed(stack), stop=place)
        before = state.hidden.clone()
        queries = tokens_for(state, 3).requires_grad_()
        ours = backbone.attend_queries(state, queries)
        (gradient,) = torch.autograd.grad(ours.square().sum(), queries)
        theirs = joint(backbone, state, queries)
        (expected,) = torch.autograd.grad(theirs.square().sum(), queries)
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)
        assert torch.equal(state.hidden, before)


def test_queries_are_alone(attention_case: Any) -> None:
    """One query's output does not depend on the others, and nothing of the frozen stream is kept for backward."""
    if attention_case.name in REFUSE:
        pytest.skip("it refuses separate queries (tested below)")
    backbone: Backbone = attention_case.backbone.requires_grad_(False)
    state = attention_case.embed(backbone.stacks[0])
    queries = tokens_for(state, 3)
    alone = backbone.attend_queries(state, queries[:, 1:2])
    torch.testing.assert_close(backbone.attend_queries(state, queries)[:, 1:2], alone, **EXACT)
    assert not kept_streams(backbone, state, queries)
    backbone.requires_grad_(True)
    assert kept_streams(backbone, state, queries)


def kept_streams(backbone: Backbone, state: State, queries: Tensor) -> list[Tensor]:
    """What autograd keeps of all tokens, (B, T, D) or (B * T, D); keys and values, (B, H, T, d), do not count."""
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        backbone.attend_queries(state, queries.requires_grad_())
    size, width = state.hidden.numel(), state.hidden.shape[-1]
    return [tensor for tensor in kept if tensor.dim() < 4 and tensor.numel() == size and tensor.shape[-1] == width]


def test_deberta_refuses_queries(build: Callable[..., Any]) -> None:
    case = build("deberta")
    state = case.embed("encoder")
    with pytest.raises(UserError, match="place in the text"):
        case.backbone.attend_queries(state, tokens_for(state))


def test_sliding_windows_refuse_queries(build: Callable[..., Any]) -> None:
    case = build("mistral")
    state = case.embed("decoder")
    with pytest.raises(UserError, match="window"):
        case.backbone.attend_queries(state, tokens_for(state))
    with pytest.raises(UserError, match="window"):
        case.backbone.prepend(state, tokens_for(state))


@pytest.mark.parametrize("name", ["resnet", "mobilenet"])
def test_a_cnn_has_no_sequence(build: Callable[..., Any], name: str) -> None:
    case = build(name)
    state = case.embed("image")
    for refused in (case.backbone.prepend, case.backbone.drop_prefix):
        with pytest.raises(UserError, match="does not have a sequence that takes extra tokens"):
            refused(state, torch.zeros(3, 1, 8))
    for refused in (case.backbone.check_queries, lambda stack: case.backbone.attend_queries(state, state.hidden)):
        with pytest.raises(UserError, match="does not have blocks with keys and values"):
            refused("image")
    with pytest.raises(UserError, match="attention heads"):
        case.backbone.heads("image")
