"""Tokenizers of versions: equal sizes, other tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from transfer_run.errors import UserError
from transfer_run.methods.merging.versions.tokenizers import compare

WORDS = {"<s>": 0, "the": 1, "cat": 2, "dog": 3}


def tokenizer(folder: Path, words: Any, added: Mapping[int, str] | None = None) -> Path:
    """A folder with a `tokenizer.json`."""
    folder.mkdir(parents=True)
    special = [{"id": number, "content": word} for number, word in (added or {}).items()]
    content = {"model": {"type": "BPE", "vocab": words}, "added_tokens": special}
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_another_order_of_the_tokens_is_refused(tmp_path: Path) -> None:
    one = tokenizer(tmp_path / "one", WORDS)
    two = tokenizer(tmp_path / "two", WORDS | {"cat": 3, "dog": 2})
    with pytest.raises(UserError, match="in 2 of the 4 tokens that both have: 2 is 'cat' and 'dog'") as caught:
        compare({"source_tuned": one, "target_base": two})
    assert "source_tuned and target_base" in caught.value.what


def test_a_longer_vocabulary_and_renamed_special_tokens_are_versions(tmp_path: Path) -> None:
    one = tokenizer(tmp_path / "one", WORDS | {"bird": 4}, {5: "<|eom_id|>"})
    two = tokenizer(tmp_path / "two", WORDS, {5: "<|reserved_0|>"})
    said = compare({"source_tuned": one, "target_base": two})
    assert said == ["1 added tokens have another name in source_tuned than in target_base (5: <|eom_id|> and "
                    "<|reserved_0|>)"]  # fmt: skip


def test_one_tokenizer_says_nothing(tmp_path: Path) -> None:
    one, unigram = tokenizer(tmp_path / "one", WORDS), [[word, -1.0] for word in WORDS]
    assert compare({"a": one, "b": tokenizer(tmp_path / "two", unigram)}) == []


@pytest.mark.parametrize("file", ["vocab.json", "vocab.txt"])
def test_older_files_are_read_too(file: str, tmp_path: Path) -> None:
    one = tokenizer(tmp_path / "one", WORDS)
    for name, words in (("same", list(WORDS)), ("other", ["<s>", "the", "dog", "cat"])):
        (tmp_path / name).mkdir()
        content = "\n".join(words) if file == "vocab.txt" else json.dumps({w: i for i, w in enumerate(words)})
        (tmp_path / name / file).write_text(content, encoding="utf-8")
    assert compare({"a": one, "b": tmp_path / "same"}) == []
    with pytest.raises(UserError, match="2 of the 4"):
        compare({"a": one, "b": tmp_path / "other"})


def test_sentencepiece_files_are_compared_as_they_are(tmp_path: Path) -> None:
    for name, content in (("a", b"one"), ("b", b"one"), ("c", b"two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.model").write_bytes(content)
    assert compare({"a": tmp_path / "a", "b": tmp_path / "b"}) == []
    with pytest.raises(UserError, match="The tokenizers of a and c differ"):
        compare({"a": tmp_path / "a", "c": tmp_path / "c"})
    said = compare({"a": tmp_path / "a", "json": tokenizer(tmp_path / "json", WORDS)})
    assert said == ["the tokenizers of a and json are stored in two ways: they were not compared"]


def test_what_is_not_known_is_said(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    said = compare({"a": tokenizer(tmp_path / "one", WORDS), "b": tmp_path / "bare"})
    assert said == ["the tokenizer of b is not known: it was not compared"]
