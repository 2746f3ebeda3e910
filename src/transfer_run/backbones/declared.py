"""What a family of backbones says of itself, as data: read from two configs alone, before torch is imported.

A family of ours has `families/KEY.yaml` beside `families/KEY.py`. A family of yours says the same under `about` of its
backbone's config, `about: {target: module.Class, reads: [text], answers: [classification]}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from transfer_run.errors import UserError, nearest_names

TEXT, IMAGES, PAIRS = "text", "images", "pairs"
"""What data sets hold (`about.holds`) and families read; a family or a data set of yours may name other kinds."""

TEXT_TO_TEXT = "text_to_text"
"""The form of an answer that is written, whatever was asked."""

HEAD = "head"
"""`dataset.answers=head`: a family that writes answers through a head on its encoder's states, as encoders do."""


HAS = {
    "blocks": "blocks that run one after another",
    "parts": "blocks whose projections, norms and feed-forward parts have names",
    "attention": "attention heads",
    "prefix": "a sequence that takes extra tokens",
    "queries": "blocks with keys and values that extra queries can read",
    "pool": "one vector of features for each example",
    "memory": "a decoder that reads an encoder",
    "language_head": "a language head",
    "cache": "a key/value cache",
    "projection": "two towers that share a space",
    "forecast": "a forecast of series",
}
"""What a family may have beyond `Backbone.embed` and `finish` (`has`), and a method may ask for (`about.asks`)."""


BY_HEAD = ("classification", "regression")
"""The forms that a head answers."""


@dataclass(frozen=True)
class Family:
    """A family of backbones, as it is declared.

    Attributes:
        name: `backbone.family`.
        target: its class, `package.module.Class`.
        targets: classes of single kinds of it, by `architecture.model_type`.
        reads: kinds of data; empty: not checked.
        towers: for a model of several towers what each reads, by `backbone.tower`.
        answers: forms of data set; empty: not checked.
        has: what it has of `HAS`, or of words of your own; a method that asks for more is refused.
        writes: it answers in text: a classification is posed as text-to-text (Raffel et al. 2020, section 2.4).
        pairs: it reads two texts as a pair; others read one text, made by `dataset.prompt` where there is one.
        relative_positions: no text is too long for it.
        loads: folders of a library that it reads, `{transformers: {MODEL_TYPE: WORDS}, timm: {PATTERN: WORDS}}`, with
            the words of the backbone's config that go with each.
        smallest: the backbone to try a method on.
        tries: words of a run that needs no download; usual: words of one as papers have it. Pages show them.
    """

    name: str
    target: str
    targets: Mapping[str, str] = field(default_factory=dict)
    reads: tuple[str, ...] = ()
    towers: Mapping[str, list[str]] = field(default_factory=dict)
    answers: tuple[str, ...] = ()
    has: tuple[str, ...] = ()
    writes: bool = False
    pairs: bool = False
    relative_positions: bool = False
    loads: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    smallest: str = ""
    tries: tuple[str, ...] = ()
    usual: tuple[str, ...] = ()

    def form(self, dataset: Mapping[str, Any]) -> str:
        """The form in which the family answers `dataset`: its own, or text-to-text where answers are written.

        Raises:
            UserError: it answers no data set of this form, and another family of ours does.
        """
        form: str = dataset["form"]
        able = [family.name for family in families().values() if form in family.answers]
        if self.answers and form not in self.answers and able:
            raise UserError(
                f"A backbone of family {self.name} cannot be asked for {form}.",
                where=f"dataset={dataset['name']}, backbone",
                remedy=f"choose a backbone of the families {', '.join(able)}",
            )
        by_head = form in BY_HEAD and dataset.get("answers") == HEAD
        written = self.writes and form in self.answers and not by_head
        return TEXT_TO_TEXT if written else form


def lacks(family: Family, about: Mapping[str, Any]) -> list[str]:
    """What a method's `about` asks for and the family does not have."""
    return [what for what in about.get("asks") or () if what not in family.has]


def takes(about: Mapping[str, Any], family: Family) -> bool:
    """Is the method of this `about` defined on the family? It names families (`backbones`), or what it `asks` for."""
    return family.name in (about.get("backbones") or [family.name]) and not lacks(family, about)


def serves(about: Mapping[str, Any], family: Family) -> bool:
    """Is the method defined on the family, and does the family answer a form that the method trains?"""
    forms = set(about.get("tasks") or family.answers)
    return takes(about, family) and (not family.answers or bool(forms & set(family.answers)))


DESCRIBES = ("title", "does", "choose", "commands", "published")
"""Keys of `about` that declare nothing of a family."""


@cache
def families() -> dict[str, Family]:
    """The families of this package, by name."""
    files = sorted((Path(__file__).parent / "families").glob("*.yaml"))
    return {file.stem: _read(file.stem, yaml.safe_load(file.read_text(encoding="utf-8")), str(file)) for file in files}


def family_of(backbone: Mapping[str, Any]) -> Family:
    """The family of a composed `backbone` node: what its `about` declares, or the one of ours that it names.

    Raises:
        UserError: there is no such family, or `about` declares none.
    """
    name, about = str(backbone.get("family")), backbone.get("about") or {}
    if set(about) - set(DESCRIBES):
        return _read(name, about, f"backbone.about of backbone={backbone.get('name')}")
    if name not in families():
        raise UserError(
            f"There is no family of backbones {name!r}.",
            where="backbone.family",
            nearest=nearest_names(name, families()) or sorted(families()),
            remedy="a family of your own is declared in the backbone's config: about: {target: MODULE.CLASS, ...}",
        )
    return families()[name]


def family_that_loads(library: str, kind: str) -> tuple[Family, dict[str, Any]] | None:
    """The family that reads models of this kind in a library's folders, and the words that go with them.

    Args:
        kind: `model_type` of transformers, the architecture's name of timm; the longest pattern that fits decides.
    """
    fitting = [
        (len(pattern), family.name, words)
        for family in families().values()
        for pattern, words in family.loads.get(library, {}).items()
        if fnmatchcase(kind, pattern)
    ]
    if not fitting:
        return None
    _, name, words = max(fitting, key=lambda found: found[0])
    return families()[name], dict(words)


def _read(name: str, about: Mapping[str, Any], where: str) -> Family:
    valid = {field.name for field in fields(Family)} - {"name"}
    for key in about:
        if key not in valid and key not in DESCRIBES:
            raise UserError(
                f"A family of backbones declares no {key!r}.", where=where, nearest=nearest_names(key, valid)
            )
    if not about.get("target"):
        raise UserError(
            f"The family {name!r} does not say where its class is.", where=where, remedy="target: MODULE.CLASS"
        )
    words = {key: value for key, value in about.items() if key in valid}
    for key in ("reads", "answers", "has", "tries", "usual"):
        words[key] = tuple(words.get(key) or ())
    if words.get("towers"):
        words["reads"] = tuple(kind for kinds in words["towers"].values() for kind in kinds)
    return Family(name, **words)
