"""Token ids, padding, span corruption, windows of running text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertTokenizer, ByT5Tokenizer

from tests.data.conftest import data_of, nodes
from transfer_run.data.load import batch_spec
from transfer_run.data.rows.sampling import Draw
from transfer_run.data.text.encoding import Corrupted, Labelled, TextRows, Windows
from transfer_run.data.text.tokens import padded, pair_ids, token_ids, written_out
from transfer_run.errors import UserError

TOKENIZER = ByT5Tokenizer()
WORDS = BertTokenizer(
    vocab={word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "who", "what"])}
)


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40), st.integers(4, 60))
def test_bytes_are_read_as_the_library_reads_them(a: str, b: str, limit: int) -> None:
    specials = ("<", "\x00")  # the library splits at its special tokens, and drops a few control characters
    if any(s in a + b for s in specials):
        return
    assert token_ids(TOKENIZER, a) == TOKENIZER(a, add_special_tokens=False)["input_ids"]
    assert (
        token_ids(TOKENIZER, a, end=True, limit=limit) == TOKENIZER(a, truncation=True, max_length=limit)["input_ids"]
    )
    ids = pair_ids(TOKENIZER, [a, b], limit)["input_ids"]
    assert len(ids) <= limit
    if len(a.encode()) + len(b.encode()) + 2 <= limit:
        assert ids == TOKENIZER(a, b)["input_ids"]


def test_the_longer_text_of_a_pair_is_cut_first() -> None:
    ids = pair_ids(TOKENIZER, ["a" * 50, "bc"], 10)["input_ids"]
    assert TOKENIZER.decode([i for i in ids if i > 2]) == "aaaaaabc"
    assert ids[6] == ids[-1] == TOKENIZER.eos_token_id


@pytest.mark.parametrize("tokenizer", ["bytes", "words"])
@pytest.mark.parametrize(
    ("columns", "least"), [(["a"], {"bytes": 2, "words": 3}), (["a", "b"], {"bytes": 4, "words": 5})]
)
def test_no_room_for_a_text_is_refused(tokenizer: str, columns: list[str], least: dict[str, int]) -> None:
    """As many tokens as the model's marks take, and one of each text: fewer make all rows alike."""
    rows = TextRows([{"a": "who", "b": "what"}], np.array([0]))
    reads = TOKENIZER if tokenizer == "bytes" else WORDS
    with pytest.raises(UserError, match="leave no room") as caught:
        Labelled(rows, reads, columns=columns, limit=least[tokenizer] - 1, pairs=True)
    assert f"max_source_length={least[tokenizer]} " in str(caught.value.remedy)
    example = Labelled(rows, reads, columns=columns, limit=least[tokenizer], pairs=True)(Draw(0, 0, True))
    assert len(example["input_ids"]) == least[tokenizer]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(1, 9), max_size=20), min_size=1, max_size=5), st.sampled_from([None, 4, 8]))
def test_padding_keeps_the_rows(rows: list[list[int]], multiple: int | None) -> None:
    out = padded(rows, 0, multiple, limit=20)
    longest = max(1, *map(len, rows))
    assert longest <= out.shape[1] <= 20
    assert out.shape[1] == longest if multiple is None else out.shape[1] in (20, -(-longest // multiple) * multiple)
    for row, made in zip(rows, out.tolist(), strict=True):
        assert made == row + [0] * (out.shape[1] - len(row))


def test_columns_are_written_out() -> None:
    row = {"q": "Who {x}?", "a": "me"}
    assert written_out(row, ["q", "a"], "rte question: {q} answer: {a}") == "rte question: Who {x}? answer: me"
    assert written_out(row, ["q", "a"], None) == "q: Who {x}? a: me"
    assert written_out(row, ["a"], None) == "me"


def restored(source: list[int], target: list[int], sentinels: list[int]) -> list[int]:
    """Put the hidden spans back where their sentinels stand."""
    spans: dict[int, list[int]] = {}
    for token in target[:-1]:
        if token in sentinels:
            spans[token] = []
        else:
            spans[list(spans)[-1]].append(token)
    return [token for item in source[:-1] for token in spans.get(item, [item])]


@settings(max_examples=60, deadline=None)
@given(st.integers(4, 80), st.floats(0.1, 0.6), st.floats(1, 12), st.integers(0, 4), st.integers(0, 5))
def test_hidden_spans_can_be_put_back(length: int, density: float, mean: float, epoch: int, row: int) -> None:
    text = "".join(chr(97 + i % 26) for i in range(length * 6))
    windows = Windows(TextRows([{"text": text}], None), TOKENIZER, column="text", length=length)
    corrupted = Corrupted(windows, TOKENIZER, density=density, mean=mean, seed=5)
    example = corrupted(Draw(row, epoch))
    assert restored(example["input_ids"], example["labels"], corrupted.sentinels) == windows.tokens[row].tolist()
    assert example == corrupted(Draw(row, epoch))
    assert set(corrupted(Draw(row, epoch, scored=False))["labels"]) == {-100}


def test_noise_differs_by_epoch_row_and_seed() -> None:
    windows = Windows(TextRows([{"text": "the same text " * 40}], None), TOKENIZER, column="text", length=56)
    made: Any = {
        (seed, epoch, row): tuple(
            Corrupted(windows, TOKENIZER, density=0.15, mean=3, seed=seed)(Draw(row, epoch))["labels"]
        )
        for seed in range(2)
        for epoch in range(3)
        for row in range(3)
    }
    assert len(set(made.values())) == len(made)


def test_corruption_fills_the_planned_shapes_exactly() -> None:
    overrides = ("dataset=python_docs", "dataset.task=span_corruption", "backbone=t5_tiny")
    data = data_of(*overrides)
    batch = next(iter(data.loader("train", batch_size=8)))
    assert {n: (tuple(t.shape), t.dtype) for n, t in batch.items()} == batch_spec(*nodes(*overrides), 8)
    assert data.random_examples("train")
    assert not data.random_examples("validation")
    assert data.metrics("validation").needs_predictions is False


def test_language_model_windows_are_the_text(docs: Any) -> None:
    overrides = ("dataset=python_docs", "dataset.task=language_modeling", "backbone=gpt2_tiny")
    data = data_of(*overrides)
    batch = next(iter(data.loader("validation", batch_size=4)))
    assert {n: (tuple(t.shape), t.dtype) for n, t in batch.items()} == batch_spec(*nodes(*overrides), 4)
    assert torch.equal(batch["labels"], batch["input_ids"])
    text = TOKENIZER.decode(torch.cat(tuple(batch["input_ids"])))
    assert len(text) > 200
    assert " the " in text


@pytest.mark.parametrize("multiple", [None, 8])
def test_batches_are_padded_to_their_longest_row(docs: Any, multiple: int | None) -> None:
    overrides = ("dataset=python_docs", "backbone=t5_tiny", f"dataset.pad_to_multiple_of={multiple or 'null'}")
    data, spec = data_of(*overrides), batch_spec(*nodes(*overrides), 16)
    widths = set()
    for batch in data.loader("train", batch_size=16):
        width = batch["input_ids"].shape[1]
        longest = int(batch["attention_mask"].sum(1).max())
        assert width == longest if multiple is None else width in (-(-longest // 8) * 8, spec["input_ids"][0][1])
        assert torch.equal(batch["attention_mask"], (batch["input_ids"] != 0).long())
        assert all(n <= m for name, t in batch.items() for n, m in zip(t.shape, spec[name][0], strict=True))
        assert all(t.dtype == spec[name][1] for name, t in batch.items())
        widths.add(width)
    assert max(widths) == spec["input_ids"][0][1]
