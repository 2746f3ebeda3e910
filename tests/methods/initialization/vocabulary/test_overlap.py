"""Which tokens two tokenizers share: of one kind by their strings, of several kinds by the text they stand for."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from transfer_run.methods.initialization.train_tokenizer import SPECIAL, Kind, trained
from transfer_run.methods.initialization.vocabulary.overlap import LEAST, Tokens, overlap, tokens_of

TEXT = ["the cat sat on the mat, and the dog sat near.", "running and sitting: the cats and the dogs are running\n"] * 8


@cache
def made(kind: Kind, size: int = 340, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=trained(kind, size, TEXT), **(special or SPECIAL))


def text_of(tokens: Tokens, name: str) -> bytes:
    return next(tokens.texts[number] for number, each in tokens.names.items() if each == name)


@pytest.mark.parametrize(
    ("kind", "says", "space", "inside"),
    [
        ("byte_bpe", "byte_level", ("Ġthe", b" the"), ("a", b"a")),
        ("bpe", "sentencepiece", ("▁the", b" the"), ("<0x0A>", b"\n")),
        ("unigram", "sentencepiece", ("▁dog", b" dog"), ("g", b"g")),
        ("wordpiece", "wordpiece", ("the", b" the"), ("##s", b"s")),
    ],
)
def test_every_kind_says_the_same_text(
    kind: Kind, says: str, space: tuple[str, bytes], inside: tuple[str, bytes]
) -> None:
    tokens = tokens_of(made(kind))
    assert tokens.kind == says
    assert text_of(tokens, space[0]) == space[1]
    assert text_of(tokens, inside[0]) == inside[1]
    assert tokens.roles == {"pad": 0, "eos": 1, "unk": 2}
    assert not {0, 1, 2} & tokens.texts.keys()


def test_punctuation_of_wordpiece_stands_behind_a_word() -> None:
    assert text_of(tokens_of(made("wordpiece")), ",") == b","


def test_bytes_are_texts_of_one_byte() -> None:
    tokens = tokens_of(ByT5Tokenizer())
    assert tokens.kind == "bytes"
    assert tokens.texts[3 + ord("a")] == b"a"
    assert tokens.texts[3 + 0xC3] == b"\xc3"
    assert tokens.rows == 384
    found = overlap(tokens_of(made("byte_bpe")), tokens)
    byte_level = tokens_of(made("byte_bpe"))
    assert {byte_level.texts[n] for n in found.shared if n in byte_level.texts} == {bytes([b]) for b in range(256)}


def test_a_vocabulary_shares_all_of_itself() -> None:
    for kind in ("byte_bpe", "bpe", "unigram", "wordpiece"):
        tokens = tokens_of(made(kind))
        for compare in ("text", "exact"):
            found = overlap(tokens, tokens, compare)
            assert found.shared == {number: number for number in tokens.names}
            assert (found.missing, found.by_role, found.share) == ((), 0, 1.0)


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece"])
def test_kinds_share_words_by_their_text_and_next_to_nothing_by_their_strings(kind: Kind) -> None:
    new, old = tokens_of(made("byte_bpe")), tokens_of(made(kind))
    found, exact = overlap(new, old), overlap(new, old, "exact")
    texts = {new.texts[n]: old.texts[other] for n, other in found.shared.items() if n in new.texts}
    assert [word for word in texts if word[:1] == b" " and len(word) > 2]  # a word's beginning
    assert all(one == other for one, other in texts.items())
    assert not [n for n in exact.shared if new.names[n].startswith("Ġ")]
    assert len(exact.shared) < len(found.shared)


def test_equal_strings_of_two_kinds_may_stand_for_two_texts() -> None:
    """WordPiece's `the` begins a word, byte-level `the` goes on in one."""
    old = tokens_of(made("wordpiece"))
    new = Tokens({0: "the", 1: "Ġthe"}, {0: b"the", 1: b" the"}, {}, "byte_level")
    found = overlap(new, old)
    assert old.names[found.shared[1]] == "the"
    assert 0 not in found.shared


def test_special_tokens_are_matched_by_their_role() -> None:
    other = {"pad_token": "[PAD]", "eos_token": "<|end|>", "unk_token": "<unk>", "bos_token": "<|end|>"}
    old = made("byte_bpe", 320, **other)
    found = overlap(tokens_of(made("byte_bpe")), tokens_of(old))
    assert found.shared[1] == old.eos_token_id  # </s> is <|end|>
    assert found.shared[0] == old.pad_token_id
    assert found.by_role == 2  # <unk> has its name in both


def test_a_letter_goes_before_the_byte_that_says_the_same() -> None:
    old = Tokens({5: "<0x61>", 9: "a"}, {5: b"a", 9: b"a"}, {}, "sentencepiece")
    new = Tokens({0: "a"}, {0: b"a"}, {}, "byte_level")
    assert overlap(new, old).shared == {0: 9}


def test_numbers_may_have_holes() -> None:
    tokenizer: Any = made("unigram", 60)
    tokens = Tokens({0: "a", 7: "b"}, {0: b"a", 7: b"b"}, {}, "plain")
    assert tokens.rows == 8
    assert tokens_of(tokenizer).rows == len(tokenizer)
    assert overlap(tokens, tokens_of(tokenizer), "exact").share > LEAST
