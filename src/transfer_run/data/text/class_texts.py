"""Classes and sentences as tokens for a text tower: prompts of class names, captions, random tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from transfer_run.data.text.tokens import is_bytes, padded, pair_ids
from transfer_run.errors import UserError

RANDOM_TOKENS = 10
"""Tokens of a random sentence (LwF-VR; Ding et al. 2022, as the ZSCL code draws them)."""


def prompt_length(dataset: Mapping[str, Any], backbone: Mapping[str, Any]) -> int:
    """Tokens of every text, padding included: `dataset.prompt_length`, else all positions of the text tower.

    Raises:
        UserError: the text tower has fewer positions.
    """
    room = int(((backbone.get("architecture") or {}).get("text_config") or {}).get("max_position_embeddings", 77))
    length = dataset.get("prompt_length") or room
    if length > room:
        raise UserError(
            f"The text tower of {backbone.get('name')!r} has {room} positions.",
            where=f"dataset.prompt_length={length}",
            remedy=f"dataset.prompt_length={room} or less",
        )
    return int(length)


def templates_of(templates: Mapping[str, Sequence[str]], task: str) -> list[str]:
    """The task's own prompts, or those under `default`; `{}` stands for the class.

    Raises:
        UserError: there are none, or one has no place for the class.
    """
    found = templates.get(task) or templates.get("default") or []
    wrong = [template for template in found if "{}" not in template]
    if wrong or not found:
        raise UserError(
            f"A prompt has no place for the class: {wrong[0]!r}." if wrong else f"The task {task!r} has no prompt.",
            where=f"dataset.templates.{task if templates.get(task) else 'default'}",
            remedy='dataset.templates.default=["a photo of a {}."]',
        )
    return list(found)


def prompts(names: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Class by class, the prompts of all templates; underscores in a name (folders) become spaces."""
    return [template.replace("{}", name.replace("_", " ")) for name in names for template in templates]


def text_ids(tokenizer: Any, texts: Sequence[str], length: int) -> Tensor:
    """(N, length) int64: texts with the tokenizer's own special tokens, cut and padded to `length`."""
    rows = [pair_ids(tokenizer, [text], length)["input_ids"] for text in texts]
    return padded(rows, tokenizer.pad_token_id, length, length)


def random_ids(tokenizer: Any, count: int, length: int, seed: int) -> Tensor:
    """(count, length) int64: sentences of ten random tokens between the tokenizer's start and end."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary = 256 + tokenizer.offset if is_bytes(tokenizer) else len(tokenizer)
    words = torch.tensor(sorted(set(range(vocabulary)) - set(tokenizer.all_special_ids)))
    drawn = words[torch.randint(len(words), (count, min(RANDOM_TOKENS, length - 2)), generator=generator)]
    start = [] if is_bytes(tokenizer) or tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    rows = [[*start, *row, tokenizer.eos_token_id] for row in drawn.tolist()]
    return padded(rows, tokenizer.pad_token_id, length, length)
