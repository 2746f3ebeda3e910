"""Pictures two folders deep: what the outer folders mean (`dataset.levels`).

domain/class    photo/dog/1.png, sketch/dog/1.png    classes are the inner folders; `dataset.held_out` names the domains
                                                     that no training row is of, and all of whose pictures are the test
class/class     Greek/alpha/1.png                    a class is both names: Greek/alpha
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transfer_run.data.reading.pictures import folders_in, pictures_below
from transfer_run.errors import UserError, nearest_names

CLASS, DOMAINS, BOTH = "class", "domain/class", "class/class"
Classes = dict[str, list[Path]]


def check_levels(dataset: Mapping[str, Any]) -> None:
    """Refuse domains without one to test on, and one to test on without domains.

    Raises:
        UserError: with what to write.
    """
    held_out, levels = dataset.get("held_out"), dataset.get("levels") or CLASS
    if levels == DOMAINS and not held_out:
        raise UserError(
            "The domain that is tested, and not trained on, is not named.",
            where="dataset.held_out",
            remedy="dataset.held_out=[DOMAIN], one of the outer folders",
        )
    if levels != DOMAINS and held_out:
        raise UserError(
            "There are no domains, one of which could be held out.",
            where=f"dataset.held_out={list(held_out)}",
            remedy=f"dataset.levels={DOMAINS}, where the path holds DOMAIN/CLASS/PICTURE",
        )


def below_outer(folder: Path) -> tuple[dict[str, Classes], Counter[str]]:
    """The pictures below each outer folder by inner folder, and what else lies there, counted by ending.

    Raises:
        UserError: an outer folder holds no inner one, or pictures beside them, which are of no class.
    """
    found: dict[str, Classes] = {}
    others = Counter[str]()
    for outer in folders_in(folder):
        inner = folders_in(outer)
        loose = sorted(set(pictures_below(outer)[0]) - {p for each in inner for p in pictures_below(each)[0]})
        if loose or not inner:
            raise UserError(
                f"{outer.name} holds {'a picture that is in no class folder' if loose else 'no class folders'}.",
                where=str(loose[0] if loose else outer),
                remedy="dataset.levels=class where the outer folders are the classes",
            )
        found[outer.name] = {}
        for each in inner:
            found[outer.name][each.name], left = pictures_below(each)
            others.update(left)
    if not found:
        raise UserError("The folder holds no folders of class folders.", where=str(folder), remedy="name another one")
    return found, others


def both_names(found: Mapping[str, Classes]) -> Classes:
    """The pictures of each class, which is called after both folders."""
    return {f"{outer}/{inner}": files for outer, below in found.items() for inner, files in below.items()}


def by_domain(found: Mapping[str, Classes], held_out: Sequence[str], where: Path) -> dict[str, Classes]:
    """`train` and `test`: the pictures of each class in the domains that are trained on, and in those held out.

    Raises:
        UserError: there is no such domain, or none is left to train on.
    """
    for name in held_out:
        if name not in found:
            raise UserError(
                f"There is no domain '{name}' among {', '.join(found)}.",
                where=f"dataset.held_out, {where}",
                nearest=nearest_names(name, found),
                remedy="name outer folders",
            )
    if len(set(held_out)) == len(found):
        raise UserError(
            "Every domain is held out, and none is left to train on.",
            where=f"dataset.held_out={list(held_out)}",
            remedy="leave one out of the list",
        )
    splits: dict[str, Classes] = {"train": {}, "test": {}}
    for domain, classes in found.items():
        split = splits["test" if domain in held_out else "train"]
        for name, files in classes.items():
            split.setdefault(name, []).extend(files)
    return splits
