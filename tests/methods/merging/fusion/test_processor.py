"""Logits fusion inside transformers' own `generate`: left padding, caches, beams."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessorList

from transfer_run.methods.merging.fusion.processor import FusionProcessor
from transfer_run.methods.merging.fusion.search import Search, fuse, grid_values

WORDS = {"vocab_size": 23, "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64}


def model(width: int, **more: Any) -> Any:
    config = LlamaConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, bos_token_id=1, eos_token_id=2,
        pad_token_id=0, initializer_range=0.5, **{**WORDS, **more},
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def models() -> tuple[Any, Any, list[Any]]:
    """Large, small, two experts."""
    return model(16), model(8), [model(8), model(8)]


def by_hand(large: Any, small: Any, experts: list[Any], prompt: Tensor, steps: int) -> list[int]:
    """Greedy, one text, everything computed anew for each token."""
    ids, search = prompt.clone(), Search.over(len(experts), grid_values(0.0, 2.0, 0.1))
    for _ in range(steps):
        with torch.no_grad():
            last = [each(input_ids=ids[None]).logits[:, -1] for each in (large, small, *experts)]
        fused, _ = fuse(last[0], last[1], torch.stack(last[2:]), search)
        ids = torch.cat([ids, fused.argmax(-1)])
        if int(ids[-1]) == 2:
            break
    return ids[len(prompt) :].tolist()


def new(found: Tensor, length: int) -> list[list[int]]:
    """Tokens behind the prompts, without what follows the end."""
    rows = found[:, length:].tolist()
    return [row[: row.index(2) + 1] if 2 in row else row for row in rows]


def test_greedy_generation_is_fusion_by_hand_with_left_padding(models: Any) -> None:
    large, small, experts = models
    prompts = [torch.tensor([1, 5, 9]), torch.tensor([1, 8, 4, 7, 3])]
    ids = torch.tensor([[0, 0, 1, 5, 9], [1, 8, 4, 7, 3]])
    mask = (torch.arange(5) >= torch.tensor([[2], [0]])).long()
    fusion = FusionProcessor(small, experts, attention_mask=mask)
    found = large.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=8,
        do_sample=False,
        logits_processor=LogitsProcessorList([fusion]),
    )
    wanted = [by_hand(large, small, experts, prompt, 8) for prompt in prompts]
    assert new(found, 5) == wanted
    alone = large.generate(input_ids=ids, attention_mask=mask, max_new_tokens=8, do_sample=False)
    assert new(alone, 5) != wanted
    assert fusion.weights is not None
    again = large.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=8,
        do_sample=False,
        logits_processor=LogitsProcessorList([fusion]),
    )
    assert torch.equal(again, found)  # a processor may be used again


def test_padding_in_front_changes_no_score(models: Any) -> None:
    _, small, experts = models
    text, scores = torch.tensor([[1, 5, 9, 7]]), torch.randn(1, 23)
    padded = torch.tensor([[0, 0, 1, 5, 9, 7]])
    mask = (padded[:, :5] != 0).long()
    with_padding = FusionProcessor(small, experts, attention_mask=mask, alpha=1.0)
    without = FusionProcessor(small, experts, alpha=1.0)
    for length in (3, 4):  # the prompt, and a token that follows it
        found = with_padding(padded[:, : length + 2], scores)
        torch.testing.assert_close(found, without(text[:, :length], scores), rtol=1e-4, atol=1e-4)
    unmasked = FusionProcessor(small, experts, alpha=1.0)(padded, scores)
    assert not torch.allclose(unmasked, found, atol=1e-2)


def test_no_weight_is_the_large_model_token_for_token(models: Any) -> None:
    """Check 10, in transformers' generate."""
    large, small, experts = models
    ids = torch.tensor([[1, 5, 9, 3]])
    words = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "max_new_tokens": 10, "do_sample": False}
    fusion = FusionProcessor(small, experts, alpha=0.0)
    assert torch.equal(large.generate(**words, logits_processor=LogitsProcessorList([fusion])), large.generate(**words))


def test_each_token_is_one_pass_of_every_small_model(models: Any) -> None:
    large, small, experts = models
    passes: list[int] = []
    for each in (small, *experts):
        each.register_forward_pre_hook(
            lambda module, args, words: passes.append(words["input_ids"].shape[1]), with_kwargs=True
        )
    ids = torch.tensor([[1, 5, 9, 3]])
    fusion = FusionProcessor(small, experts)
    found = large.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), min_new_tokens=6, max_new_tokens=6, do_sample=False,
        logits_processor=LogitsProcessorList([fusion]),
    )  # fmt: skip
    steps = found.shape[1] - 4
    assert passes == [4] * 3 + [1] * 3 * (steps - 1)


@pytest.mark.parametrize("beams", [2, 3])
def test_caches_follow_the_beams(models: Any, beams: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same beams as without caches; and in them rows change their places."""
    large, small, experts = models
    ids = torch.tensor([[1, 5, 9, 3], [0, 1, 6, 2]])
    mask = torch.tensor([[1, 1, 1, 1], [0, 1, 1, 1]])
    words = {"input_ids": ids, "attention_mask": mask, "max_new_tokens": 8, "num_beams": beams, "do_sample": False}
    fusion = FusionProcessor(small, experts, attention_mask=mask)
    moved: list[bool] = []
    follow = FusionProcessor._follow

    def watched(self: FusionProcessor, input_ids: Tensor) -> Tensor:
        before = self._seen
        if before is not None and before.shape == (len(input_ids), input_ids.shape[1] - 1):
            moved.append(not torch.equal(before, input_ids[:, :-1]))
        return follow(self, input_ids)

    def anew(self: FusionProcessor, input_ids: Tensor) -> Tensor:
        self._seen = None
        return follow(self, input_ids)

    monkeypatch.setattr(FusionProcessor, "_follow", watched)
    found = large.generate(**words, logits_processor=LogitsProcessorList([fusion]))
    assert any(moved)
    monkeypatch.setattr(FusionProcessor, "_follow", anew)
    assert torch.equal(found, large.generate(**words, logits_processor=LogitsProcessorList([fusion])))


def test_a_padded_head_of_the_large_model_never_answers_beyond_the_vocabulary(models: Any) -> None:
    _, small, experts = models
    large = model(16, vocab_size=32)
    ids = torch.tensor([[1, 5, 9]])
    fusion = FusionProcessor(small, experts)
    scores = fusion(ids, torch.zeros(1, 32))
    assert scores.shape == (1, 32)
    assert bool((scores[:, 23:] == -torch.inf).all())
    found = large.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=6,
        logits_processor=LogitsProcessorList([fusion]),
    )
    assert int(found.max()) < 23


def test_nothing_is_differentiated(models: Any) -> None:
    """Check 11."""
    _, small, experts = models
    scores = FusionProcessor(small, experts)(torch.tensor([[1, 5]]), torch.randn(1, 23, requires_grad=True))
    assert not scores.requires_grad
