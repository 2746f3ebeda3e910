"""CONTRIBUTING.md names every hook there is, and none that is not there."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from functools import cached_property
from pathlib import Path

import pytest
from torch import nn

from transfer_run.backbones.base import Backbone
from transfer_run.data.base import DataModule
from transfer_run.experiment.config.artifacts import Artifact
from transfer_run.methods.base import Method
from transfer_run.methods.form import Form

PAGE = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
TABLES = {"A method": Method, "A form of task": Form, "A data set": DataModule, "A backbone": Backbone}
NOT_OURS = {"held", "changing", "dump_patches", "call_super_init"}
"""What `hold` keeps, and torch's own."""


def public(kind: type) -> set[str]:
    """What a class itself defines for others: methods, properties and class facts."""
    made = {name for name, value in vars(kind).items() if callable(value) or isinstance(value, HELD)}
    return {name for name in made | set(kind.__annotations__) if not name.startswith("_")} - NOT_OURS


HELD = (property, cached_property, classmethod, staticmethod)


def table(title: str) -> set[str]:
    """The names in backticks in the rows of the table below a bold title."""
    rows = re.search(rf"^\*\*{title}\*\*.*?\n\n(\|.*?)\n\n", PAGE, re.M | re.S)
    assert rows, title
    return {name for line in rows[1].splitlines()[2:] for name in re.findall(r"`(\w+)`", line)}


@pytest.mark.parametrize("title", TABLES)
def test_every_hook_has_its_place(title: str) -> None:
    assert public(TABLES[title]) - table(title) == set()


@pytest.mark.parametrize("title", TABLES)
def test_every_name_is_a_hook(title: str) -> None:
    kind = TABLES[title]
    known = {*dir(kind), *(name for each in inspect.getmro(kind) for name in getattr(each, "__annotations__", {}))}
    assert table(title) - known - set(dir(nn.Module)) == set()


def test_the_drawing_names_every_room() -> None:
    drawing = re.search(r"^## The rooms\n.*?```text\n(.*?)```", PAGE, re.M | re.S)
    assert drawing
    source = Path(__file__).parents[1] / "src" / "transfer_run"
    rooms = {path.stem for path in source.iterdir() if path.name[0] not in "_."}
    rooms |= {path.name for path in (source / "experiment").iterdir() if path.is_dir() and path.name[0] != "_"}
    assert len(rooms) > 15
    assert {room for room in rooms if not re.search(rf"\b{room}\b", drawing[1])} == set()


def test_every_kind_of_artifact_is_named() -> None:
    section = PAGE.partition("## Add a kind of artifact")[2].partition("\n## ")[0]
    kinds = {path.stem for path in (Path(__file__).parents[1] / "configs" / "artifact").glob("*.yaml")}
    assert len(kinds) > 3
    assert {kind for kind in kinds if f"`{kind}`" not in section} == set()
    facts = {field.name for field in fields(Artifact)} - {"kind"}
    assert {fact for fact in facts if not re.search(rf"^{fact}:", section, re.M)} == set()
