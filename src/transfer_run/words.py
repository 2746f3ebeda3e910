"""The small language for words inside words: a text of words, read here and nowhere else. Imports nothing heavy.

method=full dataset=glue/rte seed=1      a run: a source, a stage, weights of a run
digits classes=[0,1]                     a data set and some of its keys
random_resized_crop scale=[0.5,1]        an operation and some of its arguments
vit_tiny weights=random                  a backbone and other weights
[[seed=1],[seed=2]]                      a list of such texts, on the command line

Words stand between spaces. Quotes and backslashes keep spaces in a word, as in a shell, and so do brackets; in brackets
they stay, for they belong to the value. A bracket that nothing closes is a character as any other.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import yaml

from transfer_run.errors import UserError

_CLOSING = {"[": "]", "{": "}", "(": ")"}
_SPACES, _COMMA = " \t\r\n", ","


def split(text: str, where: str, example: str) -> list[str]:
    """The words of a text, quotes around them taken off.

    Args:
        where: the place of the text, for an error.
        example: such words, for an error's remedy.

    Raises:
        UserError: quotes that do not close.
    """
    try:
        return _parts(text, _SPACES, unquoted=True)
    except ValueError as error:
        raise _unreadable(f"The words cannot be read: {error}", where, example) from error


def joined(words: Sequence[str]) -> str:
    """The text that `split` reads as these words."""
    return shlex.join(words)


def named(words: str, where: str, what: str, example: str, short: str = "") -> tuple[str, dict[str, Any]]:
    """`digits classes=[0,1]` as ("digits", {"classes": [0, 1]}); values as YAML reads them.

    Args:
        what: what the first word names (`a data set`).
        short: the key that may be set as `NAME:VALUE`, all that follows the colon being its value.

    Raises:
        UserError: no words, words that cannot be read, or a later one is not KEY=VALUE.
    """
    name, colon, rest = words.partition(":")
    if short and colon and not set(name) & set(_SPACES):
        return name, {short: rest}
    name, *others = split(words, where, example) or [""]
    if not name:
        raise _unreadable(f"Nothing is named where {what} must be", where, example, what)
    settings = {}
    for word in others:
        key, value = pair(word, where, example, what)
        try:
            settings[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            problem = f"{word!r} cannot be read: {str(error).splitlines()[0]}"
            raise _unreadable(problem, where, example, what) from error
    return name, settings


def pair(word: str, where: str, example: str, first: str = "") -> tuple[str, str]:
    """KEY and VALUE of a word.

    Args:
        first: what the first word of the text names, where that is no KEY=VALUE.

    Raises:
        UserError: it is not KEY=VALUE.
    """
    key, equals, value = word.partition("=")
    if not equals:
        raise _unreadable(f"{word!r} is not KEY=VALUE", where, example, first)
    return key, value


def _unreadable(what: str, where: str, example: str, first: str = "") -> UserError:
    """The one error of all such texts."""
    form = "NAME KEY=VALUE KEY=[1,2]" if first else "KEY=VALUE KEY=[1,2]"
    remedy = f'write {form}, and quotes around what holds spaces, as "{example}"'
    return UserError(f"{what}.", where=where, remedy=f"{remedy}; the first word names {first}" if first else remedy)


def quoted_lists(word: str) -> str:
    """`KEY=[a=1,[b=2]]` with each inner word of a list in quotes, for Hydra's grammar knows no `=` in a list.

    Raises:
        UserError: quotes that do not close.
    """
    key, _, value = word.partition("=")
    try:
        return f"{key}={_quoted_list(value.strip())}" if value.strip().startswith("[") else word
    except ValueError as error:
        raise _unreadable(f"The list cannot be read: {error}", word, f"{key}=['a=1 b=2',c]") from error


def _quoted_list(text: str) -> str:
    if not (text.startswith("[") and text.endswith("]")):
        return quoted(text) if ("=" in text and text[0] != "{") or text[0] == "~" else text
    return f"[{','.join(map(_quoted_list, _parts(text[1:-1], _COMMA, unquoted=False)))}]"


def quoted(word: str) -> str:
    """A word in quotes, as Hydra reads it in a list."""
    if word[:1] in ("'", '"') and word[-1:] == word[:1]:
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _parts(text: str, separators: str, *, unquoted: bool) -> list[str]:
    """What stands between separators that are outside of quotes and brackets.

    Args:
        unquoted: take off quotes and backslashes that are outside of brackets.

    Raises:
        ValueError: quotes do not close.
    """
    characters = _characters(text)
    inside = _in_brackets(characters)
    parts: list[str | None] = [None]
    for place, (written, meant, free) in enumerate(characters):
        if free and place not in inside and written in separators:
            parts.append(None)
        else:
            parts[-1] = (parts[-1] or "") + (meant if unquoted and place not in inside else written)
    found = [part for part in parts if part is not None]
    return found if unquoted else [part.strip() for part in found if part.strip()]


def _characters(text: str) -> list[tuple[str, str, bool]]:
    """Every character as written, what quotes and backslashes make of it, and whether it is free of both."""
    found, quote, escape = [], "", ""
    for character in text:
        if escape:
            escape = ""
            kept = "\\" if quote and character not in '"\\' else ""
            found.append(("\\" + character, kept + character, False))
        elif character == "\\" and quote != "'":
            escape = character
        elif quote:
            found.append((character, "" if character == quote else character, False))
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
            found.append((character, "", False))
        else:
            found.append((character, character, True))
    if quote or escape:
        raise ValueError(f"the quotation mark {quote} is not closed" if quote else "nothing follows the last backslash")
    return found


def _in_brackets(characters: Sequence[tuple[str, str, bool]]) -> set[int]:
    """Places from an opening bracket to the one that closes it."""
    inside: set[int] = set()
    waiting: list[int] = []
    for place, (character, _, free) in enumerate(characters):
        if free and character in _CLOSING:
            waiting.append(place)
        elif free and character in _CLOSING.values():
            fitting = [opened for opened in waiting if _CLOSING[characters[opened][0]] == character]
            if fitting:
                inside.update(range(fitting[-1], place + 1))
                del waiting[waiting.index(fitting[-1]) :]
    return inside
