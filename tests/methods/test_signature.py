"""The types of a class's arguments and those of its config's keys are the same ones."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytest

from transfer_run.experiment.config import registry, schema
from transfer_run.methods.base import Method
from transfer_run.methods.build import method_class, method_settings

NAMES = {bool: "bool", int: "int", float: "float", str: "str", Sequence: "list", Mapping: "dict"}


def hints_of(kind: type[Method]) -> dict[str, Any]:
    """Annotations of a class's arguments, those of the classes that it hands `**common` to included."""
    found: dict[str, Any] = {}
    for each in kind.__mro__:
        if "__init__" in vars(each):
            found = typing.get_type_hints(vars(each)["__init__"]) | found
    return found


def said_by(annotation: Any) -> tuple[str, str | None, bool, set[Any]]:
    """Name, items, whether null is allowed, and choices, as `schema.Type` has them; `any` of a union of several."""
    nullable = False
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        parts = [part for part in typing.get_args(annotation) if part is not type(None)]
        nullable = len(parts) < len(typing.get_args(annotation))
        if len(parts) > 1:
            return "any", None, True, set()
        annotation = parts[0]
    if typing.get_origin(annotation) is Literal:
        return "choice", None, False, {*typing.get_args(annotation), *([None] if nullable else [])}
    name = NAMES[typing.get_origin(annotation) or annotation]
    item = NAMES[typing.get_args(annotation)[0]] if name == "list" else None
    return name, item, nullable, set()


def declared_in(node: Mapping[str, Any], key: str, types_: Mapping[str, schema.Type]) -> schema.Type:
    written = key if key in node else key.removesuffix("_")
    default = node[written]
    return types_.get(f"method.{written}") or (
        schema.Type("dict") if isinstance(default, dict) else schema.type_of(default)
    )


@pytest.mark.parametrize("method", registry.names("method", ()))
def test_types_and_choices_are_said_once(method: str) -> None:
    node = registry.entry("method", method, ()).content["method"]
    declared, hints = schema.options({"method": node}), hints_of(method_class(node["about"]["target"]))
    for key in method_settings(node):
        type_ = declared_in(node, key, declared)
        name, item, nullable, choices = said_by(hints[key])
        wanted = (type_.name, type_.item, type_.nullable, set(type_.choices))
        assert (name, item, name == "any" or nullable, choices) == (
            *wanted[:2],
            name == "any" or wanted[2],
            wanted[3],
        ), key
