"""What `about` may say in the file of a method, a data set, a backbone or an optimizer: the facts that no run may set.

Each is a type of `schema.py` and a sentence. A key that is not here is refused with the nearest one that is, before
anything reads it: a restriction that is misspelt would otherwise be gone without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transfer_run.backbones.weights.published import published
from transfer_run.errors import UserError, nearest_names
from transfer_run.experiment.config.artifacts import artifact
from transfer_run.experiment.config.compatibility import known_families
from transfer_run.experiment.config.reads import reads
from transfer_run.experiment.config.schema import ABOUT, converted, parse_type
from transfer_run.methods.known_forms import OWN, packaged_forms
from transfer_run.targets import check_target

SHAPES = ("tune", "stage", "combine", "distil", "score", "reshape")
"""What a method does; `methods/base.py` says what each of them means."""


@dataclass(frozen=True)
class Fact:
    """One key of `about`.

    Attributes:
        type: what its value may be, in the words of `schema.py`.
        says: what it tells, in a sentence.
    """

    type: str | list[str]
    says: str


ANY = {
    "title": Fact("str", "what it is, in a line; a method's paper"),
    "does": Fact("str", "what it does, in two sentences; left out: what the comment at the head of its file says"),
    "choose": Fact("str", "when to choose it, and when not"),
    "commands": Fact("list[str]", "command lines that its page shows; left out: those of its family's `usual` words"),
    "options": Fact("dict", "types and choices of its own keys, where the default does not tell (`schema.py`)"),
    "later": Fact(
        "dict", "keys that came after others' runs, and the value of each that changes nothing: identities stay"
    ),
    "former": Fact("dict", "words of a paper's own code, and what to write here instead"),
}
"""What every node may say."""

OF_GROUP: dict[str, dict[str, Fact]] = {
    "method": {
        "target": Fact("str", "module.Class of the method; needed"),
        "family": Fact("str", "the family that `transfer-list methods` shows it in"),
        "shape": Fact(list(SHAPES), "what it does with a run"),
        "arxiv": Fact("str", "number of the paper"),
        "backbones": Fact("list[str]", "families of backbones that it works on; left out: all"),
        "asks": Fact("list[str]", "what it needs of a backbone's interface (`HAS` in `backbones/declared.py`)"),
        "tasks": Fact("list[str]", "forms of data set that it trains on; left out: all"),
        "needs": Fact("str", "what it needs of a backbone, for the message to whoever chooses another one"),
        "tower": Fact(["both"], "it uses both towers of a two-tower backbone, whatever the data set asks"),
        "pretrained": Fact("bool", "false: it starts from random weights, whatever the backbone names"),
        "trains_inside": Fact("bool", "true: it always trains within the backbone, so that no taps can be kept"),
        "reads": Fact("dict", "the runs, files, backbones, ... that it reads, by name or key of its own (`reads.py`)"),
        "alone": Fact("dict", "without data: keys (`base or sources`) one of which must be given, and what to write"),
        "takes": Fact("dict", "what data sets hold beside their examples (`gives`), and its own key that is as wide"),
        "saves": Fact(["activations", "states"], "what a plan's advice says that it saves, if well known for it"),
        "makes": Fact("str", "the kind of what its run leaves, where the shape does not tell (`artifacts.py`)"),
        "beside": Fact("dict", "data sets that every step reads too (`dataset.beside`): name, and what for"),
        "together": Fact("dict", "keys of its own that mean something only where another one is set, and that one"),
        "paper_profile": Fact("dict?", "what plan.profile=paper sets of its keys"),
        "matrix": Fact("list[str]", "further words of the smallest run that the common checks carry out"),
    },
    "dataset": {
        "target": Fact("str", "module.Class of the data set; needed"),
        "gives": Fact("dict", "widths of what it holds beside its examples, and what that is; a method `takes` it"),
        "elsewhere": Fact("dict", "the column of its tables that names files (`data/reading/named_files.py`)"),
        "holds": Fact("str", "what its examples are: text, images, pairs, or a kind of your own"),
        "reads": Fact("dict", "what its own keys name: runs by what they make, files, data sets (`reads.py`)"),
        "needs_path": Fact("str", "what `dataset.path` must name; left out: it needs none"),
    },
    "optimizer": {
        "target": Fact("str", "module.Class of the optimizer, torch's or your own; needed"),
    },
    "backbone": {
        "target": Fact("str", "module.Class of a family of your own; those of ours stand in `backbones/families`"),
        "targets": Fact("dict", "classes of single kinds of it, by `architecture.model_type`"),
        "reads": Fact("list[str]", "what its data may hold; left out: not checked"),
        "answers": Fact("list[str]", "the forms of data set that it answers; left out: not checked"),
        "has": Fact("list[str]", "what it has of `HAS` in `backbones/declared.py`, or of words of your own"),
        "towers": Fact("dict", "of several towers: what each of them reads, by `backbone.tower`"),
        "writes": Fact("bool", "it answers in text, a classification too"),
        "pairs": Fact("bool", "it reads two texts as a pair"),
        "relative_positions": Fact("bool", "no text is too long for it"),
        "loads": Fact("dict", "the libraries' folders that it reads, and the words that go with each"),
        "published": Fact("dict", "digests of its files, and the package that carries them (`weights/published.py`)"),
        "smallest": Fact("str", "the backbone to try a method on"),
        "tries": Fact("list[str]", "words that try it at once, on data that are installed"),
        "usual": Fact("list[str]", "words of a run as papers have it"),
    },
}


def facts(group: str) -> dict[str, Fact]:
    """The keys that `about` of this node has."""
    return {**ANY, **OF_GROUP.get(group, {})}


def check_about(
    values: Mapping[str, Any], where: Callable[[str], str] = lambda key: key, folders: Sequence[Path] = ()
) -> None:
    """Compare the `about` of a composed config's nodes with what is declared here.

    Args:
        values: the composed config, plain containers.
        where: the word or the file that sets a key, for the message.
        folders: the user's own config folders, which may declare families.

    Raises:
        UserError: a key that does not exist or is missing, a value of another type, a family or a form of data set that
            nothing declares.
    """
    for group, node in values.items():
        if isinstance(node, Mapping) and ABOUT in node:
            _check_keys(group, node[ABOUT], where)
    for group in ("method", "dataset", "optimizer"):
        if group in values and not (values[group].get(ABOUT) or {}).get("target"):
            dotted = f"{group}.{ABOUT}"
            says = facts(group)["target"].says
            raise UserError(f"{dotted}.target is missing: {says}.", where=where(dotted), remedy="add it below `about:`")
    _check_named(values.get("method", {}).get(ABOUT) or {}, where, folders)
    for group in ("method", "dataset"):
        _check_kinds(group, values.get(group) or {}, where, folders)
    _check_profile(values.get("method") or {}, where)
    published(values.get("backbone") or {})
    for group, node in values.items():
        about = (node.get(ABOUT) if isinstance(node, Mapping) else None) or {}
        for target in [about.get("target"), *(about.get("targets") or {}).values()]:
            if target is not None:
                check_target(str(target), where(f"{group}.{ABOUT}.target"), folders)


def check_facts(values: Mapping[str, Any], declared: Mapping[str, Any], where: Callable[[str], str]) -> None:
    """What `about` says is the file's to say: a word that changed it would name other code, or a run that its identity
    does not tell, for no fact is in it.

    Args:
        declared: the nodes as the files of their choices declare them.

    Raises:
        UserError: naming the word.
    """
    for group in {**values, **declared}:
        said, meant = (
            (node if isinstance(node, Mapping) else {}).get(ABOUT) for node in (values.get(group), declared.get(group))
        )
        if said == meant:
            continue
        both = [each if isinstance(each, Mapping) else {} for each in (said, meant)]
        key = next((key for key in {**both[0], **both[1]} if both[0].get(key) != both[1].get(key)), "")
        dotted = f"{group}.{ABOUT}" + (f".{key}" if key else "")
        raise UserError(
            f"{dotted} is a fact of its file: no word sets it.",
            where=where(dotted),
            remedy=f"leave it out, or write a {group} of your own (--config-dir FOLDER, a file {group}/NAME.yaml)",
        )


def _check_keys(group: str, about: Any, where: Callable[[str], str]) -> None:
    dotted, known = f"{group}.{ABOUT}", facts(group)
    if not isinstance(about, Mapping):
        raise UserError(f"{dotted} is a group of keys, not a value.", where=where(dotted), nearest=sorted(known)[:3])
    for key, value in about.items():
        if key not in known:
            near = nearest_names(str(key), known)
            raise UserError(
                f"There is no key '{dotted}.{key}'.",
                where=where(f"{dotted}.{key}"),
                nearest=[f"{dotted}.{name}" for name in near],
                remedy="" if near else f"{dotted} knows {', '.join(sorted(known))}",
            )
        converted(f"{dotted}.{key}", value, parse_type(known[key].type), where)


def _check_named(about: Mapping[str, Any], where: Callable[[str], str], folders: Sequence[Path]) -> None:
    """The families and forms that a method is restricted to must be somebody's: a misspelt one restricts to nothing."""
    checks = {
        "backbones": ("family of backbones", lambda family: [family.name]),
        "asks": ("part of a backbone's interface", lambda family: family.has),
        "tasks": ("form of data set", lambda family: family.answers),
    }
    for key, (what, of) in checks.items():
        names = {name for family in known_families().values() for name in of(family)}
        if set(about.get(key) or ()) - names:
            names = {name for family in known_families(folders).values() for name in of(family)}
        names |= set(packaged_forms()) if key == "tasks" else set()
        for name in about.get(key) or ():
            if name not in names and not (key == "tasks" and OWN in name):  # a form of one's own: module:Class
                raise UserError(
                    f"There is no {what} {name!r}.",
                    where=where(f"method.{ABOUT}.{key}"),
                    nearest=nearest_names(name, names) or sorted(names),
                )


def _check_kinds(group: str, node: Mapping[str, Any], where: Callable[[str], str], folders: Sequence[Path]) -> None:
    """The kinds of artifacts that are made and read must be somebody's, too."""
    said = {f"reads.{entry.name}": entry.kinds for entry in reads(node) if not entry.is_of_others}
    said["makes"] = tuple(filter(None, [(node.get(ABOUT) or {}).get("makes")]))
    for key, kinds in said.items():
        for kind in kinds:
            artifact(kind, folders, where(f"{group}.{ABOUT}.{key}"))


def _check_profile(method: Mapping[str, Any], where: Callable[[str], str]) -> None:
    """What plan.profile=paper sets must be keys of the method."""
    for key in (method.get(ABOUT) or {}).get("paper_profile") or {}:
        if key not in method:
            own = [name for name in method if name not in ("name", ABOUT)]
            raise UserError(
                f"{ABOUT}.paper_profile sets {key!r}, which the method does not have.",
                where=where(f"method.{ABOUT}.paper_profile"),
                nearest=nearest_names(str(key), own) or own,
            )
