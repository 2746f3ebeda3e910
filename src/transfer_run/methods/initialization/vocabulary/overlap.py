"""Which tokens do two tokenizers share? By their strings, or by the text that they stand for.

    byte-level BPE   Ġthe  ing   Ċ        a space begins the token; every symbol is a byte
    SentencePiece    ▁the  ing   <0x0A>   the same space under another name; bytes as a last resort
    WordPiece        the   ##ing          a word's beginning is unmarked, its continuation is marked
    bytes            one of 256

All of these say " the" and "ing": two tokenizers of several kinds then share what they read alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Compare = Literal["text", "exact"]
ROLES = ("bos", "eos", "pad", "unk", "cls", "sep", "mask")
"""Special tokens, which every model calls otherwise, in the order in which a token of several roles is matched."""
LEAST = 0.03
"""Less of the new vocabulary than this is shared by tokenizers that mark words in two ways, or by none alike."""

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE, _INSIDE = "▁", "##"


@dataclass(frozen=True)
class Tokens:
    """A tokenizer's tokens by number.

    Attributes:
        names: as it writes them.
        texts: the bytes that they stand for; special tokens have none.
        roles: numbers of the special tokens by their role.
        kind: `bytes`, `byte_level`, `sentencepiece`, `wordpiece` or `plain`.
    """

    names: Mapping[int, str]
    texts: Mapping[int, bytes]
    roles: Mapping[str, int]
    kind: str

    @property
    def rows(self) -> int:
        """Rows that an embedding of all of them has: numbers may have holes."""
        return max(self.names) + 1


def tokens_of(tokenizer: Any) -> Tokens:
    """The tokens of a tokenizer of transformers."""
    names = {int(number): str(name) for name, number in tokenizer.get_vocab().items()}
    special = set(tokenizer.all_special_ids) | {
        number for number, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    kind = _kind(tokenizer, {name for number, name in names.items() if number not in special})
    texts = {number: _text(name, kind) for number, name in names.items() if number not in special}
    known = {role: getattr(tokenizer, f"{role}_token_id", None) for role in ROLES}
    return Tokens(names, texts, {role: number for role, number in known.items() if number is not None}, kind)


def _kind(tokenizer: Any, names: set[str]) -> str:
    if type(tokenizer).__name__ == "ByT5Tokenizer":
        return "bytes"
    if _BYTE_OF.keys() <= names:  # all 256 of them: some are letters of their own in other vocabularies
        return "byte_level"
    if any(name.startswith(_SPACE) for name in names):
        return "sentencepiece"
    return "wordpiece" if any(name.startswith(_INSIDE) for name in names) else "plain"


def _byte_of() -> dict[str, int]:
    """GPT-2's symbols: printable bytes are themselves, the others the characters from 256 on, in their order."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + place): byte for place, byte in enumerate(hidden)}


_BYTE_OF = _byte_of()


def _text(name: str, kind: str) -> bytes:
    if kind == "byte_level":
        return bytes(_BYTE_OF[c] for c in name) if all(c in _BYTE_OF for c in name) else name.encode()
    if kind == "bytes":
        return bytes([ord(name)]) if len(name) == 1 and ord(name) < 256 else name.encode()
    if kind == "sentencepiece":
        byte = _BYTE.fullmatch(name)
        return bytes([int(byte[1], 16)]) if byte else name.replace(_SPACE, " ").encode()
    if kind == "wordpiece":
        if name.startswith(_INSIDE):
            return name.removeprefix(_INSIDE).encode()
        mark = len(name) == 1 and not name.isalnum()  # punctuation mostly stands behind a word, not behind a space
        return name.encode() if mark else f" {name}".encode()
    return name.encode()


@dataclass(frozen=True)
class Overlap:
    """What a new vocabulary has of an old one.

    Attributes:
        shared: number in the new one -> number in the old one.
        missing: numbers of the new one that the old one lacks, ascending.
        by_role: how many of the shared are special tokens of one role under two names.
    """

    shared: Mapping[int, int]
    missing: tuple[int, ...]
    by_role: int

    @property
    def share(self) -> float:
        return len(self.shared) / max(1, len(self.shared) + len(self.missing))


def overlap(new: Tokens, old: Tokens, compare: Compare = "text") -> Overlap:
    """The tokens of `new` that `old` has: special ones by their role, then equal strings, then equal texts.

    Args:
        compare: `exact`: equal strings alone (as the released code).
    """
    shared: dict[int, int] = {}
    for role in ROLES:
        if role in new.roles and role in old.roles:
            shared.setdefault(new.roles[role], old.roles[role])
    by_role = sum(new.names[number] != old.names.get(other) for number, other in shared.items())
    by_name = {name: number for number, name in old.names.items() if number in old.texts}
    by_text: dict[bytes, int] = {}
    for number, text in sorted(old.texts.items(), key=lambda each: _BYTE.fullmatch(old.names[each[0]]) is not None):
        by_text.setdefault(text, number)  # a letter before the byte that says the same
    alike = compare == "exact" or new.kind == old.kind
    for number, text in new.texts.items():
        found = by_name.get(new.names[number]) if alike else None
        if found is None and compare == "text":
            found = by_text.get(text)
        if found is not None:
            shared.setdefault(number, found)
    return Overlap(shared, tuple(sorted(new.names.keys() - shared.keys())), by_role)
