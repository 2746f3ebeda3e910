"""Greedy answers through a method equal those of the library, with and without key/value caches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from transfer_run.methods.tuning.full import Full
from transfer_run.task import Task


def full_of(case: Any, form: Any) -> Full:
    method = Full(case.backbone, Task(form, 0, max_target_length=6))
    return method.eval()


@pytest.mark.parametrize("name", ["t5", "t5_v1_1"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_encoder_decoders(build: Callable[..., Any], name: str, use_cache: bool) -> None:
    case = build(name)
    words = {key: case.batch[key] for key in ("input_ids", "attention_mask")}
    expected = case.backbone.model.generate(**words, max_new_tokens=6, do_sample=False)[:, 1:]
    assert torch.equal(full_of(case, "text_to_text").generate(words, 6, use_cache), expected)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("side", ["right", "left"])
def test_decoders(build: Callable[..., Any], name: str, use_cache: bool, side: str) -> None:
    """The library wants the padding on the left; ours may stand on either side, and each row gets the same answer."""
    case = build(name)
    ids, mask = case.batch["input_ids"], case.batch["attention_mask"]
    left_ids, left_mask = to_the_left(ids, mask), mask.flip(1)
    case.backbone.model.generation_config.pad_token_id = 0
    expected = case.backbone.model.generate(
        input_ids=left_ids, attention_mask=left_mask, max_new_tokens=6, do_sample=False, pad_token_id=0
    )[:, ids.shape[1] :]
    words = {"input_ids": left_ids, "attention_mask": left_mask} if side == "left" else case.batch
    case.backbone.model.config.pad_token_id = 0
    assert torch.equal(full_of(case, "language_modeling").generate(words, 6, use_cache), expected)


def to_the_left(ids: Tensor, mask: Tensor) -> Tensor:
    """Move each row's padding from its end to its beginning."""
    return torch.stack([row.roll(int((real == 0).sum())) for row, real in zip(ids, mask, strict=True)])


def test_rows_end_on_their_own(build: Callable[..., Any]) -> None:
    """After its end token a row is padded while the others go on; when all have ended, generation stops."""
    case = build("llama")
    method = full_of(case, "language_modeling")
    free = method.generate(case.batch, 6)
    case.backbone.model.config.eos_token_id = int(free[0, 2])
    case.backbone.model.config.pad_token_id = 0
    ended = method.generate(case.batch, 6)
    for before, after in zip(free, ended, strict=True):
        places = (before == free[0, 2]).nonzero()
        stop = int(places[0]) + 1 if len(places) else 6
        assert torch.equal(after[:stop], before[: min(stop, len(after))])
        assert bool((after[stop:] == 0).all())
