"""Prompt tokens: where they stand, what they start from, what they leave alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from transfer_run.errors import UserError
from transfer_run.methods.tuning.prompt_tuning import PromptTuning, PTuning

Make = Callable[..., Any]


@pytest.mark.parametrize("key", ["t5", "bert", "gpt2", "llama"])
def test_prompts_of_text_start_as_the_first_rows_of_the_token_table(key: str, build: Make, task: Make) -> None:
    backbone = build(key)
    prompts = PromptTuning(backbone, task(key), length=5).prompts
    torch.testing.assert_close(prompts[0], backbone.model.get_input_embeddings().weight[:5])
    assert prompts.shape == (1, 5, 32)


def test_prompts_of_images_start_as_vpt_s(build: Make, task: Make) -> None:
    prompts = PromptTuning(build("vit"), task("vit"), length=50, depth="deep").prompts
    assert prompts.shape == (3, 50, 32)
    bound = (6 / (3 * 4 * 4 + 32)) ** 0.5
    assert 0.95 * bound < prompts.abs().max() <= bound
    with pytest.raises(UserError, match="no token table"):
        PromptTuning(build("vit"), task("vit"), init="vocabulary")
    with pytest.raises(UserError, match="384 tokens, fewer than 400"):
        PromptTuning(build("bert"), task("bert"), length=400)


@pytest.mark.parametrize("depth", ["shallow", "deep"])
@pytest.mark.parametrize("key", ["t5", "bert", "vit", "clip", "gpt2"])
def test_every_block_sees_the_prompts_before_the_input(
    depth: Any, key: str, build: Make, task: Make, batch: Make
) -> None:
    method, data = PromptTuning(build(key), task(key), length=5, depth=depth).eval(), batch(key)
    stack = method.backbone.stacks[0]
    seen: list[Tensor] = []
    for block in method.backbone.blocks(stack):
        block.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    plain = build(key).eval().embed(data, stack).hidden
    method(data)
    torch.testing.assert_close(seen[0][:, 5:], plain)  # no position is shifted
    torch.testing.assert_close(seen[0][:, :5], method.prompts[0].expand(4, -1, -1))
    for index, hidden in enumerate(seen):
        own = method.prompts[index] if depth == "deep" else None
        assert hidden.shape[1] == plain.shape[1] + 5
        if index:
            replaced = own is not None and torch.equal(hidden[:, :5], own.expand(4, -1, -1))
            assert replaced == (depth == "deep")


@pytest.mark.parametrize("depth", ["shallow", "deep"])
@pytest.mark.parametrize("key", ["t5", "bert", "gpt2", "llama"])
def test_padding_never_matters(key: str, depth: Any, build: Make, task: Make, batch: Make) -> None:
    method, data = PromptTuning(build(key), task(key), length=5, depth=depth).eval(), batch(key)
    other = {**data, "input_ids": torch.where(data["attention_mask"].bool(), data["input_ids"], 77)}
    torch.testing.assert_close(method(other), method(data), rtol=1e-5, atol=1e-6)


def test_the_head_reads_cls_and_not_a_prompt(build: Make, task: Make, batch: Make) -> None:
    method, data = PromptTuning(build("bert"), task("bert"), length=5).eval(), batch("bert")
    state = method.run(method.embed(data))
    last = method.backbone.finish(state)
    torch.testing.assert_close(method.features(data), method.backbone.model.pooler(last[:, 5:]))


def test_dropout_draws_for_every_example(build: Make, task: Make, batch: Make) -> None:
    method, data = PromptTuning(build("bert"), task("bert"), length=5, dropout=0.5).train(), batch("bert")
    hidden = method.embed(data).hidden[:, :5]
    assert 0.3 < (hidden == 0).float().mean() < 0.7
    assert not torch.equal(hidden[0], hidden[1])


def test_the_head_has_a_rate_of_its_own(build: Make, task: Make) -> None:
    prompts, head = PromptTuning(build("bert"), task("bert")).parameter_groups()
    assert head["lr"] == 1e-3
    assert len(head["params"]) == 2
    assert "lr" not in prompts
    assert len(PromptTuning(build("t5"), task("t5")).parameter_groups()) == 1
    assert len(PromptTuning(build("bert"), task("bert"), head_lr=None).parameter_groups()) == 1


@pytest.mark.parametrize("encoder", ["MLP", "LSTM"])
def test_p_tuning_keeps_the_tokens_and_drops_their_encoder(encoder: Any, build: Make, task: Make, batch: Make) -> None:
    torch.manual_seed(0)
    method, data = PTuning(build("bert"), task("bert"), length=4, encoder=encoder), batch("bert")
    optimizer = torch.optim.Adam(method.parameter_groups(), lr=1e-2)
    first = method.eval()(data)
    method.train().loss(data).backward()
    optimizer.step()
    trained = method.eval()(data)
    assert (trained - first).abs().max() > 1e-4
    assert method.counted_parameters() == 4 * 32
    method.settle()
    torch.testing.assert_close(method(data), trained)
    assert {n for n in method.shipped() if not n.startswith("backbone")} == {"prompts"}
