"""The small language for words inside words."""

from __future__ import annotations

import shlex

import pytest

from transfer_run.errors import UserError
from transfer_run.words import joined, named, quoted_lists, split


@pytest.mark.parametrize(
    "text",
    [
        "method=full  dataset=glue/rte\n seed=1",
        "a='b c' d=\"e f\" g=h\\ i",
        'a=\'it\'"\'"\'s\' b="say \\"no\\" \\n"',
        "a='' '' b",
        "path=/x(1/b lists=[1,2]",
        "path=/x(1).csv",
        "",
    ],
)
def test_words_are_those_of_a_shell(text: str) -> None:
    assert split(text, "", "") == shlex.split(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a=[0, 1] b={c: 'd e'}", ["a=[0, 1]", "b={c: 'd e'}"]),
        ("a=[x, [y, z]] b=(1, 2)", ["a=[x, [y, z]]", "b=(1, 2)"]),
        ("a=[']', \"[\"] b", ["a=[']', \"[\"]", "b"]),
        ("a=[x (y, z] b", ["a=[x (y, z]", "b"]),
        ("a=[x b=1", ["a=[x", "b=1"]),
    ],
)
def test_brackets_keep_what_is_in_them(text: str, words: list[str]) -> None:
    assert split(text, "", "") == words


def test_joined_words_are_split_again() -> None:
    words = ["a=1", "b=[x, 'y z']", 'c=it\'s "so"', 'stages=[["d=\\"e\\""]]', ""]
    assert split(joined(words), "", "") == words


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("digits", ("digits", {})),
        ("digits classes=[0, 1] share=0.5 note='a b'", ("digits", {"classes": [0, 1], "share": 0.5, "note": "a b"})),
        ("vit weights=random:3", ("vit", {"weights": "random:3"})),
        ("vit:run:method=full seed=1", ("vit", {"weights": "run:method=full seed=1"})),
    ],
)
def test_a_name_and_its_keys(words: str, found: tuple[str, dict[str, object]]) -> None:
    assert named(words, "", "a thing", "x y=1", short="weights") == found


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("digits 'a=1", "quotation mark ' is not closed"),
        ("digits a", "'a' is not KEY=VALUE"),
        ("digits \\", "last backslash"),
        ("''", "Nothing is named"),
        ("digits a=[1", "'a=\\[1' cannot be"),
    ],
)
def test_all_that_cannot_be_read_gets_one_remedy(words: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        named(words, "the place", "a data set", "digits a=1")
    assert error.value.where == "the place"
    assert "write KEY=VALUE KEY=[1,2], and quotes" in error.value.remedy.replace("NAME ", "")


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        ("k=[a=1,[b=[2,3], 'c=4,5']]", 'k=["a=1",["b=[2,3]",\'c=4,5\']]'),
        ("k=[vit weights=random,cnn]", 'k=["vit weights=random",cnn]'),
        ("k=[{a:1},[~b]]", 'k=[{a:1},["~b"]]'),
        ("k=v=[a=1]", "k=v=[a=1]"),
    ],
)
def test_inner_words_of_lists_are_quoted(word: str, quoted: str) -> None:
    assert quoted_lists(word) == quoted
