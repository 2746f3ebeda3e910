"""The grammar of types, and what it lets pass."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transfer_run.errors import UserError
from transfer_run.experiment.config import registry, schema
from transfer_run.experiment.config.compose import compose
from transfer_run.files import read_yaml


@pytest.mark.parametrize(
    ("option", "good", "bad"),
    [
        ("int", [0, -3, 5.0], [1.5, "1", True, None, [1]]),
        ("int >= 1", [1, 100], [0, -1]),
        ("int? >= 1", [None, 1], [0, "null"]),
        ("int > 0", [1], [0]),
        ("int <= 3", [3, -9], [4]),
        ("int < 3", [2], [3]),
        ("float", [0, 1.5, -2], ["a", False, None]),
        ("float in 0..1", [0, 1, 0.5], [1.01, -0.01]),
        ("float in -1.5..2e3", [-1.5, 2000], [-1.6, 2001]),
        ("float? > 0", [None, 0.1], [0]),
        ("str", ["a", "", 3], [None, ["a"], True, 1.5]),
        ("bool", [True, False], [0, 1, "yes", None]),
        ("dict", [{}, {"a": [1]}], [None, [], "a"]),
        ("dict?", [None, {}], [[]]),
        ("list", [[], [1, "a"]], [None, 1, "a"]),
        ("list[int]", [[], [1, 2]], [[1.5], ["a"], 1, [True]]),
        ("list[int]? >= 0", [None, [0]], [[-1]]),
        ("list[int*]", [[1, 2], [[1, 2], [3]], [1, [2]]], [[1.5], [[["1"]]], [["a"]], 1]),
        ("list[float] of 2", [[0.9, 0.999]], [[0.9], [], [1, 2, 3], 0.9]),
        ("list[str]", [["a"], []], ["a", [None]]),
        ("any", [None, 1, "a", [1], {"a": 1}], []),
        (["a", "b"], ["a", "b"], ["c", None, 1]),
        ([1, None, "x"], [1, None, "x"], [2, True, "1"]),
    ],
)
def test_grammar(option: Any, good: list[Any], bad: list[Any]) -> None:
    kind = schema.parse_type(option)
    for value in good:
        assert kind.convert(value) == value or str(value) == kind.convert(value)
    for value in bad:
        with pytest.raises(ValueError):
            kind.convert(value)


@pytest.mark.parametrize(
    "option",
    ["integer", "int >> 1", "int >=1", "int >= one", "int[str]", "list[dict]", "int?>=1", "int of 2", "", [], 3],
)
def test_no_type(option: Any) -> None:
    with pytest.raises(ValueError, match="neither a type"):
        schema.parse_type(option)


@settings(deadline=None)
@given(st.integers(-(10**6), 10**6))
def test_numbers_take_their_declared_type(number: int) -> None:
    as_float, as_int = schema.parse_type("float").convert(number), schema.parse_type("int").convert(float(number))
    assert type(as_float) is float
    assert type(as_int) is int
    assert as_float == as_int == number


@settings(deadline=None)
@given(st.floats(allow_nan=True, allow_infinity=True))
def test_only_whole_floats_are_ints(number: float) -> None:
    kind = schema.parse_type("int")
    if number.is_integer():
        assert kind.convert(number) == number
    else:
        with pytest.raises((ValueError, OverflowError)):
            kind.convert(number)


@pytest.mark.parametrize(
    ("default", "name", "item"),
    [(1, "int", None), (1.0, "float", None), ("a", "str", None), (True, "bool", None), (None, "any", None),
     ("${seed}", "any", None),
     ([1, 2], "list", "int"), ([1, 0.5], "list", "float"), ([], "list", None), ([1, "a"], "list", None)],
)  # fmt: skip
def test_type_of_a_default(default: Any, name: str, item: str | None) -> None:
    kind = schema.type_of(default)
    assert (kind.name, kind.item) == (name, item)
    assert kind.convert(default) == default


METHOD: dict[str, Any] = {
    "name": "m",
    "about": {"title": "M", "options": {"rank": "int >= 1", "gate": ["one", "none"], "free": "dict"}},
    "rank": 8,
    "gate": "one",
    "free": {},
    "inner": {"bias": True, "blocks": [1, 2]},
}
DECLARED = {"seed": 0, "method": METHOD}


def changed(**values: Any) -> dict[str, Any]:
    return {"seed": 0, "method": {**METHOD, **values}}


def test_valid_values_pass_and_are_converted() -> None:
    values = changed(rank=4.0, free={"x": {"y": 1}}, inner={"bias": False, "blocks": [3.0]})
    schema.check(values, DECLARED)
    assert type(values["method"]["rank"]) is int
    assert type(values["method"]["inner"]["blocks"][0]) is int


@pytest.mark.parametrize(
    ("values", "message", "near"),
    [
        ({"rnak": 4}, "There is no key 'method.rnak'", "method.rank"),
        (
            {"inner": {"bias": True, "blocks": [1], "bais": 1}},
            "There is no key 'method.inner.bais'",
            "method.inner.bias",
        ),
        ({"rank": "two"}, "method.rank must be a whole number of at least 1, not 'two'", None),
        ({"rank": 0}, "method.rank must be a whole number of at least 1, not 0", None),
        ({"gate": "on"}, "method.gate must be one of one, none, not 'on'", "one"),
        ({"inner": 3}, "method.inner is a group of keys", "method.inner.bias"),
        ({"inner": {"bias": "yes", "blocks": [1]}}, "method.inner.bias must be true or false, not 'yes'", None),
        ({"inner": {"bias": True, "blocks": ["x"]}}, "method.inner.blocks must be a list of whole numbers", None),
        ({"inner": {"bias": True}}, "method.inner.blocks was taken out", None),
        ({"free": 3}, "method.free must be keys with values", None),
    ],
)
def test_wrong_values(values: dict[str, Any], message: str, near: str | None) -> None:
    with pytest.raises(UserError) as error:
        schema.check(changed(**values), DECLARED, lambda key: f"here: {key}")
    assert message in error.value.what
    assert error.value.where.startswith("here: method")
    if near is not None:
        assert error.value.nearest[0] == near


def test_general_options_yield_to_the_nodes_own() -> None:
    general = {"seed": "int >= 5", "method.rank": "int >= 100"}
    with pytest.raises(UserError, match="seed must be a whole number of at least 5"):
        schema.check(changed(), DECLARED, general=general)
    schema.check(changed(), DECLARED, general={"method.rank": "int >= 100"})


def test_general_options_describe_keys_that_exist() -> None:
    """Every key of options.yaml is a key of run.yaml, or of a file of the group that it begins with."""
    root = read_yaml(registry.config_root() / "run.yaml")
    homes = {group: [root] + [e.content for e in registry.entries(group)] for group in registry.KINDS.values()}
    keys = read_yaml(registry.config_root() / "options.yaml")
    orphans = [
        key for key in keys if not any(schema.has(home, key) for home in homes.get(key.partition(".")[0], [root]))
    ]
    assert orphans == []


def test_flatten() -> None:
    assert schema.flatten({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}


# ---- words of the papers
def test_all_stands_for_a_group_of_nulls() -> None:
    declared: dict[str, Any] = {
        "method": {"name": "m", "taps": {"encoder": None, "decoder": None}, "rates": {"head": 1.0}}
    }
    values: dict[str, Any] = {"method": {"name": "m", "taps": "all", "rates": {"head": 2.0}}}
    schema.check(values, declared)
    assert values["method"]["taps"] == {"encoder": None, "decoder": None}
    for wrong in ({"taps": "some"}, {"rates": "all"}):
        with pytest.raises(UserError, match="is a group of keys"):
            schema.check({"method": declared["method"] | wrong}, declared)


@pytest.mark.parametrize(
    ("method", "word", "remedy"),
    [
        ("unipt", "freeze_dropout=true", "method.backbone_dropout"),
        ("unipt", "guide=last", "always the last block"),
        ("sherl", "freeze_dropout=true", "method.backbone_dropout"),
        ("lst", "vision_to_side_only=true", "method.extra_width"),
        ("vqt", "stages=[train]", "method.stage=compress"),
        ("vqt", "compress_lr_scale=0.5", "optimizer.lr"),
        ("vqt", "memory_mode=separate", "method.memory_mode=efficient"),
        ("vqt", "memory_mode=joint", "method.memory_mode=official"),
        ("hst", "head=fpn", "HST.pyramid()"),
    ],
)
def test_a_papers_own_word_is_answered_by_ours(method: str, word: str, remedy: str) -> None:
    with pytest.raises(UserError, match=r"There is no") as caught:
        compose([f"method={method}", "backbone=vit_tiny", "dataset=digits", f"method.{word}"])
    assert remedy in caught.value.remedy
    assert caught.value.where == f"method.{word}"


@pytest.mark.parametrize("word", ["method=unipt method.taps=all", "method=sherl method.side_layers=all",
                                  "method=lst method.side_layers=all"])  # fmt: skip
def test_all_layers_are_no_other_run(word: str) -> None:
    general = ["backbone=vit_tiny", "dataset=digits"]
    method, layers = word.split()
    assert compose([method, layers, *general]) == compose([method, *general])
