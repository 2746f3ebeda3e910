"""Do the folders' tokenizers give one token one number? Of equal sizes they pass every check of shapes, and what was
learned of a token would be added to another one's row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transfer_run.backbones.weights.names import BYTES, uses_bytes
from transfer_run.errors import UserError
from transfer_run.run_folder import has_model, model_folder, read_description

WHOLE = ("tokenizer.model", "spiece.model", "spm.model", "sentencepiece.bpe.model")
"""Files of SentencePiece, whose bytes are compared: equal ones are one tokenizer."""
SHOWN = 4


@dataclass
class Vocabulary:
    """Tokens by number, as files say them.

    Attributes:
        added: numbers that were added to the tokenizer (special tokens), which releases rename.
        digest: the bytes of a file that says it all; empty where the tokens were read.
    """

    tokens: dict[int, str] = field(default_factory=dict)
    added: set[int] = field(default_factory=set)
    digest: bytes = b""


def read_vocabulary(folder: Path) -> Vocabulary | None:
    """That of a folder: a library's, or a run of ours by the tokenizer it names; None where it is not to be had."""
    folder = model_folder(folder)
    if has_model(folder):
        node = read_description(folder).get("backbone") or {}
        if uses_bytes(node):
            return Vocabulary(digest=BYTES.encode())
        named = Path(str(node.get("tokenizer") or node.get("weights") or ""))
        folder = named if named.is_dir() else folder
    if (folder / "tokenizer.json").is_file():
        return _of_json(json.loads((folder / "tokenizer.json").read_text(encoding="utf-8")))
    if (folder / "vocab.json").is_file():
        words = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        return Vocabulary({int(number): word for word, number in words.items()})
    if (folder / "vocab.txt").is_file():
        return Vocabulary(dict(enumerate((folder / "vocab.txt").read_text(encoding="utf-8").splitlines())))
    whole = next((folder / name for name in WHOLE if (folder / name).is_file()), None)
    return None if whole is None else Vocabulary(digest=whole.read_bytes())


def _of_json(content: Mapping[str, Any]) -> Vocabulary | None:
    words = (content.get("model") or {}).get("vocab")
    if not words:
        return None
    if isinstance(words, dict):
        tokens = {int(number): word for word, number in words.items()}
    else:  # Unigram: a list of tokens with their scores
        tokens = {number: each[0] for number, each in enumerate(words)}
    added = {int(each["id"]): str(each["content"]) for each in content.get("added_tokens") or ()}
    return Vocabulary(tokens | added, set(added))


def compare(folders: Mapping[str, Path]) -> list[str]:
    """Compare the tokenizers of the folders with that of the first one; what is to be known, in lines.

    Args:
        folders: by the role of each model.

    Raises:
        UserError: one gives the number of a token to another one.
    """
    known = {role: read_vocabulary(folder) for role, folder in folders.items()}
    lines = [f"the tokenizer of {role} is not known: it was not compared" for role, v in known.items() if v is None]
    there = {role: vocabulary for role, vocabulary in known.items() if vocabulary is not None}
    if len(there) < 2:
        return lines
    first, *others = there
    for other in others:
        one, two = there[first], there[other]
        if bool(one.digest) != bool(two.digest):
            lines.append(f"the tokenizers of {first} and {other} are stored in two ways: they were not compared")
            continue
        shared = sorted(one.tokens.keys() & two.tokens.keys())
        unlike = [n for n in shared if one.tokens[n] != two.tokens[n]]
        plain = [n for n in unlike if n not in one.added and n not in two.added]
        if plain or one.digest != two.digest:
            shown = "; ".join(f"{n} is {one.tokens[n]!r} and {two.tokens[n]!r}" for n in plain[:SHOWN])
            raise UserError(
                f"The tokenizers of {first} and {other} differ"
                + (f" in {len(plain)} of the {len(shared)} tokens that both have: {shown}." if plain else "."),
                where=f"{folders[first]}, {folders[other]}",
                remedy="name versions of one model that read text alike: the difference is added row by row",
            )
        if unlike:
            shown = "; ".join(f"{n}: {one.tokens[n]} and {two.tokens[n]}" for n in unlike[:SHOWN])
            lines.append(f"{len(unlike)} added tokens have another name in {first} than in {other} ({shown})")
    return lines
