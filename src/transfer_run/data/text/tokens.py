"""Texts to token ids, and rows of ids to one padded tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from transfer_run.data.text.template import filled


def token_ids(tokenizer: Any, text: str, *, end: bool = False, limit: int | None = None) -> list[int]:
    """Token ids of one text; with `end` the end token stands last, also where the text was cut at `limit`.

    For byte tokenizers this is 100 times faster than the library's way, which joins and splits tokens as strings.
    """
    if is_bytes(tokenizer):
        ids = [byte + tokenizer.offset for byte in text.encode()]
    else:
        ids = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    room = len(ids) if limit is None else limit - end
    return ids[:room] + ([tokenizer.eos_token_id] if end else [])


def is_bytes(tokenizer: Any) -> bool:
    return type(tokenizer).__name__ == "ByT5Tokenizer"


def is_longer(tokenizer: Any, texts: Sequence[str], limit: int) -> bool:
    """Have texts, one or a pair with the special tokens, more than `limit` tokens?

    Most are known by their bytes alone: no tokenizer makes more tokens than there are, but for a word's beginning.
    """
    ends = len(texts) if is_bytes(tokenizer) else tokenizer.num_special_tokens_to_add(len(texts) > 1)
    if sum(len(text.encode()) + 1 for text in texts) + ends <= limit:
        return False
    return sum(len(token_ids(tokenizer, text)) for text in texts) + ends > limit


def pair_ids(tokenizer: Any, texts: Sequence[str], limit: int) -> dict[str, list[int]]:
    """`input_ids`, and `token_type_ids` from tokenizers that make them, of one text or a pair, with the special tokens
    of the model; the longer text is cut first where both are too long for `limit` tokens."""
    if is_bytes(tokenizer):
        parts = [token_ids(tokenizer, text) for text in texts]
        while sum(map(len, parts)) + len(parts) > limit:
            max(parts, key=len).pop()
        return {"input_ids": [token for part in parts for token in (*part, tokenizer.eos_token_id)]}
    words = tokenizer(*texts, truncation="longest_first", max_length=limit)
    return {name: words[name] for name in ("input_ids", "token_type_ids") if name in words}


def written_out(row: Mapping[str, Any], columns: Sequence[str], template: str | None) -> str:
    """The one text of a row: the template filled in, or its columns as `name: value`; a single column as it stands."""
    if template:
        return filled(template, row)
    if len(columns) == 1:
        return str(row[columns[0]])
    return " ".join(f"{column}: {row[column]}" for column in columns)


def padded(rows: Sequence[Sequence[int]], value: int, multiple: int | None = None, limit: int | None = None) -> Tensor:
    """Rows of ids as (B, longest) int64, filled up on the right with `value`.

    Args:
        multiple: the length becomes a multiple of this (tensor cores like 8), but not more than `limit`.
    """
    length = max(1, *(len(row) for row in rows))
    if multiple:
        length = max(length, min(-(-length // multiple) * multiple, limit or length))
    out = torch.full((len(rows), length), value, dtype=torch.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.as_tensor(row, dtype=torch.int64)
    return out
