"""What a backbone's config says of its weights and its tokenizer, before a file or the hub is asked. Imports nothing
heavy.

`backbone.weights` is parsed here and nowhere else:

hub              the backbone's `hub` at its `revision`
random           the architecture alone; `random:SEED` with the weights of that seed
run:WORDS        the backbone of an earlier run: its words, identity or folder
stage:WORDS      all that a next stage goes on from: the run's backbone, trained modules and head
anything else    a path: a folder of a library, a file, a model that a run has saved
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from transfer_run.backbones.weights.files import tokenizer_files
from transfer_run.errors import UserError
from transfer_run.files import user_path
from transfer_run.run_folder import has_model, model_folder, read_description

BYTES = "bytes"
"""`backbone.tokenizer=bytes`: 256 bytes and 128 special ids, no files."""


_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


def is_hub_name(words: str) -> bool:
    """May these words be a model of the hub, NAME or NAME@REVISION? What lies in a folder that exists is a path."""
    return _HUB_NAME.fullmatch(words) is not None and not user_path(words, words).parent.exists()


Kind = Literal["hub", "random", "run", "stage", "path"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Weights:
    """Where a backbone's weights come from.

    Attributes:
        words: the seed of `random:SEED`, the words of the run of `run:` and `stage:`, or the path; else empty.
    """

    kind: Kind
    words: str = ""

    @classmethod
    def of(cls, backbone: Mapping[str, Any]) -> Weights:
        """The weights of a `backbone` node; none are said: random ones.

        Raises:
            UserError: `random:` and no whole number.
        """
        text = str(backbone.get("weights") or "random")
        start, colon, words = text.partition(":")
        if start == "random" and words and not words.isdecimal():
            raise UserError(
                f"{words!r} is no seed.", where=f"backbone.weights={text}", remedy="write random or random:SEED"
            )
        if start == "random" and words:
            words = str(int(words))  # 007 is 7: one seed, one run
        if text in ("hub", "random") or (colon and start in ("random", "run", "stage")):
            return cls(next(kind for kind in KINDS if kind == start), words)
        return cls("path", text)

    def __str__(self) -> str:
        """As it is written in a config."""
        if self.kind == "path":
            return self.words
        return f"{self.kind}:{self.words}" if self.words or self.kind in ("run", "stage") else self.kind

    @property
    def of_run(self) -> bool:
        """Are they what another run made?"""
        return self.kind in ("run", "stage")

    @property
    def path(self) -> Path | None:
        """The folder or file that is named; None where none is."""
        return Path(self.words).expanduser() if self.kind == "path" else None

    @property
    def saved(self) -> Path | None:
        """The folder of a model of ours that is named by its path; None where none is."""
        folder = None if self.path is None else model_folder(self.path)
        return folder if folder is not None and has_model(folder) else None


def hub_name(backbone: Mapping[str, Any]) -> str:
    """`backbone.hub`.

    Raises:
        UserError: the backbone is on no hub; nobody is asked.
    """
    hub = backbone.get("hub")
    if not hub:
        raise UserError(
            f"The backbone {backbone.get('name')!r} is on no hub: its weights and tokenizer must be given.",
            where="backbone.weights=hub, backbone.hub=null",
            remedy="backbone.weights=PATH for a folder that holds the model, or backbone.weights=random",
        )
    return str(hub)


def uses_bytes(backbone: Mapping[str, Any]) -> bool:
    """Does the backbone read bytes? So say its config, or weights that come with no tokenizer: random ones, and those
    of an earlier run of ours that has read bytes."""
    words, weights = backbone.get("tokenizer"), Weights.of(backbone)
    if words:
        return str(words) == BYTES
    if weights.path is None:
        return weights.kind in ("random", "run", "stage")
    return weights.saved is not None and tokenizer_words(backbone) in (None, BYTES)


def tokenizer_words(backbone: Mapping[str, Any]) -> str | None:
    """The tokenizer of a backbone in the words of `backbone.tokenizer`: that of its config, or of its weights.

    None where the weights come with none: random ones, those of a run that names none, those of no hub.
    """
    words, weights = backbone.get("tokenizer"), Weights.of(backbone)
    if words:
        return str(words)
    if weights.kind == "hub" and backbone.get("hub"):
        return f"{backbone['hub']}@{backbone['revision']}" if backbone.get("revision") else str(backbone["hub"])
    if weights.saved is not None and not tokenizer_files(weights.saved):
        return tokenizer_words(read_description(weights.saved).get("backbone") or {})
    return None if weights.path is None else str(weights.path)
