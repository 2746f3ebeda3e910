"""What the values of a config may be, and one clear error for each that is something else.

The type of a value is that of its default. Where the default alone does not tell, configs/options.yaml says it, and
for a method's or a dataset's own keys `about.options` of its file, in one of two forms:

    gate: [learnable, none, one]      the only choices
    reduction_factor: int >= 1        a type: int, float, str, bool, dict, any, list, list[int], list[float], list[str],
                                      with `?` where null is allowed (`int?`), and a bound: `>= 1`, `> 0`, `<= 1`,
                                      `< 1`, `in 0..1` (of a list: of each item); below a `dict` every key is free;
                                      `list[float] of 2` has two items, an item of `list[int*]` may be a list of such

A group of keys that are all null takes the word `all` (`taps=all`, `side_layers=all`). `about.former` says what to
write for a word of a paper's own code that a method does not have: `key: remedy`, or `key=value: remedy`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from transfer_run.errors import UserError, nearest_names

ABOUT = "about"
"""The key below which a node says what it is; `about.py` says what may stand there."""

_SCALARS = {"int": "a whole number", "float": "a number", "str": "text", "bool": "true or false"}
_COMPARE: dict[str, tuple[Callable[[Any, Any], bool], str]] = {
    ">=": (operator.ge, "of at least"),
    ">": (operator.gt, "above"),
    "<=": (operator.le, "of at most"),
    "<": (operator.lt, "below"),
}
_NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"
_GRAMMAR = re.compile(
    rf"(?P<name>int|float|str|bool|dict|list|any)(?:\[(?P<item>int|float|str|bool)(?P<nested>\*)?\])?(?P<nullable>\?)?"
    r"(?: of (?P<length>\d+))?"
    rf"(?: (?:(?P<sign>>=|>|<=|<) (?P<bound>{_NUMBER})|in (?P<low>{_NUMBER})\.\.(?P<high>{_NUMBER})))?"
)


@dataclass(frozen=True)
class Type:
    """What one value may be.

    Attributes:
        name: int, float, str, bool, dict, list, any or choice.
        item: type of a list's items.
        bounds: (`>=`, `>`, `<=` or `<`, number) pairs, all of which hold.
        choices: the only values, of a choice.
        length: items of a list; None: any number.
        nested: may an item of a list be a list of such items?
    """

    name: str
    item: str | None = None
    nullable: bool = False
    bounds: tuple[tuple[str, float], ...] = ()
    choices: tuple[Any, ...] = ()
    length: int | None = None
    nested: bool = False

    def __str__(self) -> str:
        if self.name == "choice":
            return "one of " + ", ".join(_shown(choice) for choice in self.choices)
        text = _SCALARS.get(self.name, {"dict": "keys with values, as {a: 1}"}.get(self.name, "a list, as [1,2]"))
        if self.item:
            items = ("" if self.length is None else f"{self.length} ") + _SCALARS[self.item].removeprefix("a ")
            text = f"a list of {items}{'' if self.item == 'str' else 's'}, as [1,2]{' or [[1,2],[3]]' * self.nested}"
        limits = " and ".join(f"{_COMPARE[sign][1]} {number:g}" for sign, number in self.bounds)
        return " ".join(part for part in (text, limits) if part) + (" or null" if self.nullable else "")

    def convert(self, value: Any) -> Any:
        """`value` as this type: 1 becomes 1.0 where a float is meant, 1e3 becomes 1000 where an int is.

        Raises:
            ValueError: it is none.
        """
        if self.name == "any" or (value is None and self.nullable):
            return value
        if self.name == "choice":
            return self._choose(value)
        if self.name == "dict":
            if not isinstance(value, dict):
                raise ValueError
            return value
        if self.name == "list":
            if not isinstance(value, list) or self.length not in (None, len(value)):
                raise ValueError
            return [self._item(item) for item in value]
        return self._within(_scalar(self.name, value))

    def _item(self, value: Any) -> Any:
        if self.nested and isinstance(value, list):
            return [self._within(_scalar(str(self.item), each)) for each in value]
        return self._within(_scalar(self.item, value)) if self.item else value

    def _choose(self, value: Any) -> Any:
        for choice in self.choices:
            if choice == value and isinstance(choice, bool) == isinstance(value, bool):
                return choice
        raise ValueError

    def _within(self, value: Any) -> Any:
        if not all(_COMPARE[sign][0](value, number) for sign, number in self.bounds):
            raise ValueError
        return value


def _scalar(name: str, value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if name == "int" and number and value == value // 1:
        return int(value)
    if name == "float" and number:
        return float(value)
    if name == "bool" and isinstance(value, bool):
        return value
    if name == "str" and (isinstance(value, str) or (isinstance(value, int) and number)):
        return str(value)
    raise ValueError


def _shown(value: Any) -> str:
    """A value as it is written in YAML or on the command line."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def parse_type(option: Any) -> Type:
    """The type that an entry of `about.options` describes.

    Raises:
        ValueError: it is neither a list of choices nor a type of the grammar.
    """
    if isinstance(option, list) and option and not any(isinstance(choice, list | dict) for choice in option):
        return Type("choice", choices=tuple(option))
    match = _GRAMMAR.fullmatch(option) if isinstance(option, str) else None
    if match is None or ((match["item"] or match["length"]) and match["name"] != "list"):
        raise ValueError(f"{option!r} is neither a type, as `int? >= 1`, nor a list of choices")
    bounds: tuple[tuple[str, float], ...] = ()
    if match["sign"]:
        bounds = ((match["sign"], float(match["bound"])),)
    elif match["low"]:
        bounds = ((">=", float(match["low"])), ("<=", float(match["high"])))
    length = int(match["length"]) if match["length"] else None
    return Type(
        match["name"], match["item"], bool(match["nullable"]), bounds, length=length, nested=bool(match["nested"])
    )


def type_of(default: Any) -> Type:
    """The type that a default value stands for; null and `${...}` stand for anything."""
    if isinstance(default, list):
        kinds = {type(item).__name__ for item in default}
        kinds = {"float"} if kinds == {"int", "float"} else kinds
        item = kinds.pop() if len(kinds) == 1 else None
        return Type("list", item if item in _SCALARS else None)
    name = type(default).__name__
    interpolated = isinstance(default, str) and "${" in default
    return Type(name if name in _SCALARS and not interpolated else "any")


def flatten(config: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves of nested mappings by dotted key; an empty mapping is a leaf."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def options(declared: Mapping[str, Any]) -> dict[str, Type]:
    """The types that the `about.options` of a config's nodes declare, by dotted key.

    Raises:
        UserError: an entry is no type, or names a key that its node does not have.
    """
    found: dict[str, Type] = {}
    for name, node in declared.items():
        about = (node.get(ABOUT) if isinstance(node, Mapping) else None) or {}
        for key, option in (about.get("options") or {}).items():
            dotted = f"{name}.about.options.{key}"
            try:
                found[f"{name}.{key}"] = parse_type(option)
            except ValueError as error:
                raise UserError(f"{dotted}: {error}.", where=dotted) from error
            if not has(node, key):
                keys = [leaf for leaf in flatten(node) if not leaf.startswith(f"{ABOUT}.")]
                raise UserError(f"{dotted} describes a key that does not exist.", nearest=nearest_names(key, keys))
    return found


def all_types(declared: Mapping[str, Any], general: Mapping[str, Any]) -> dict[str, Type]:
    """The types that are said: for all runs in `general`, and over them those of the nodes' own `about.options`."""
    return {**{key: parse_type(option) for key, option in general.items()}, **options(declared)}


def has(node: Any, dotted: str) -> bool:
    """Does a nested mapping have this dotted key?"""
    for key in dotted.split("."):
        if not isinstance(node, Mapping) or key not in node:
            return False
        node = node[key]
    return True


def check(
    values: dict[str, Any],
    declared: Mapping[str, Any],
    where: Callable[[str], str] = lambda key: key,
    general: Mapping[str, Any] | None = None,
) -> None:
    """Compare a config with what its defaults declare; values are put into their declared type in place.

    Args:
        values: the composed config, plain containers, interpolations resolved.
        declared: the same choices without anybody's changes: all keys there are, with their defaults.
        where: the place that sets a key, for the message.
        general: options by dotted key from the root; those in an `about` win over them.

    Raises:
        UserError: a key that does not exist, or a value of the wrong type or out of its bounds.
    """
    types = all_types(declared, general or {})
    _refuse_former(values, declared, where)
    unknown = next(_unknown(values, declared, types), None)
    if unknown is not None:
        raise unknown_key(unknown, declared, where(unknown))
    _convert(values, declared, types, where, "")


def _refuse_former(values: Mapping[str, Any], declared: Mapping[str, Any], where: Callable[[str], str]) -> None:
    """UserError for a word of `about.former`, with what to write instead."""
    for name, node in declared.items():
        about = (node.get(ABOUT) if isinstance(node, Mapping) else None) or {}
        for word, ours in (about.get("former") or {}).items():
            key, equals, value = str(word).partition("=")
            if has(values.get(name), key) and (not equals or str(values[name][key]) == value):
                what = f"There is no {name}.{word} here." if equals else f"There is no key '{name}.{key}'."
                raise UserError(what, where=where(f"{name}.{key}"), remedy=str(ours))


def _unknown(
    values: Mapping[str, Any], declared: Mapping[str, Any], types: Mapping[str, Type], prefix: str = ""
) -> Iterator[str]:
    for key, value in values.items():
        path = f"{prefix}{key}"
        if (key == ABOUT and prefix.count(".") == 1) or (path in types and types[path].name == "dict"):
            continue
        if key not in declared:
            yield path
        elif isinstance(value, Mapping) and isinstance(declared[key], Mapping):
            yield from _unknown(value, declared[key], types, f"{path}.")


def taken_out(key: str, where: str | None = None) -> UserError:
    """What `~KEY` is answered, where a run needs the key."""
    return UserError(f"{key} was taken out, but a run needs it.", where=where or f"~{key}", remedy="leave it in")


def _convert(
    values: dict[str, Any],
    declared: Mapping[str, Any],
    types: Mapping[str, Type],
    where: Callable[[str], str],
    prefix: str,
) -> None:
    for key, default in declared.items():
        path = f"{prefix}{key}"
        if key == ABOUT:
            continue
        if key not in values:
            raise taken_out(path, where(path))
        kind = types.get(path)
        if kind is None and isinstance(default, Mapping):
            if values[key] == "all" and all(value is None for value in default.values()):
                values[key] = dict(default)
            if not isinstance(values[key], dict):
                raise UserError(
                    f"{path} is a group of keys, not a value.",
                    where=where(path),
                    nearest=[f"{path}.{name}" for name in default if name != ABOUT][:3],
                )
            _convert(values[key], default, types, where, f"{path}.")
            continue
        values[key] = converted(path, values[key], kind or type_of(default), where)


def converted(path: str, value: Any, kind: Type, where: Callable[[str], str]) -> Any:
    """The value of a key in its type.

    Raises:
        UserError: it is of another type, or out of its bounds.
    """
    try:
        return kind.convert(value)
    except (ValueError, OverflowError):
        near = nearest_names(str(value), [str(choice) for choice in kind.choices if choice is not None])
        shown = _shown(value) if not isinstance(value, str) else repr(value)
        raise UserError(f"{path} must be {kind}, not {shown}.", where=where(path), nearest=near) from None


def unknown_key(key: str, declared: Mapping[str, Any], where: str) -> UserError:
    """The error for a key that does not exist, with the nearest ones that do, groups of keys included."""
    leaves = [path for path in flatten(declared) if ABOUT not in path.split(".")]
    groups = {path.rsplit(".", depth)[0] for path in leaves for depth in range(1, path.count(".") + 1)}
    valid = {*leaves, *groups}
    parent, _, last = key.rpartition(".")
    same = sorted(path for path in valid if path.endswith(f".{last}"))
    beside = nearest_names(key, [path for path in valid if path.rpartition(".")[0] == parent])
    near = list(dict.fromkeys([*(same if not parent else []), *beside, *same, *nearest_names(key, valid)]))[:3]
    return UserError(
        f"There is no key {key!r}.", where=where, nearest=near, remedy="`transfer-run --cfg job` shows every key"
    )
