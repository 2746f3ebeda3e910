"""Words of the command line, one by one."""

from __future__ import annotations

from pathlib import Path

import pytest

from transfer_run.errors import UserError
from transfer_run.experiment.config.words import parse, separate


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("seed=3", "seed", 3),
        ("optimizer.lr=1e-3", "optimizer.lr", 0.001),
        ("a.b=[1,2]", "a.b", [1, 2]),
        ("a=null", "a", None),
        ("a=", "a", ""),
        ("sources.t=method=full dataset=x", "sources.t", "method=full dataset=x"),
        ("sources.t=method=full x='a b'", "sources.t", "method=full x='a b'"),
        ("sources.t='method=full seed=1'", "sources.t", "method=full seed=1"),
        ("dataset.path=/a b/c(1).csv", "dataset.path", "/a b/c(1).csv"),
        ("++a.b=1", "a.b", 1),
        ("a=[digits classes=[0, 1],b]", "a", ["digits classes=[0, 1]", "b"]),
    ],
)
def test_a_word_is_read(word: str, key: str, value: object) -> None:
    override = parse(word)
    assert (override.key_or_group, override.value()) == (key, value)


@pytest.mark.parametrize(
    ("word", "message"), [("seed", "not KEY=VALUE"), ("=1", "not KEY=VALUE"), ("a=[1,", "cannot be read")]
)
def test_no_word(word: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(word)


def test_a_bare_choice_is_completed() -> None:
    with pytest.raises(UserError) as error:
        parse("lst")
    assert error.value.nearest == ["method=lst"]


def test_folders_are_taken_out_of_the_words(tmp_path: Path) -> None:
    a, b, c = (tmp_path / name for name in "abc")
    for folder in (a, b, c):
        folder.mkdir()
    words, folders = separate(["seed=1", f"hydra.searchpath=[file://{b},{a}]", "+x=2"], str(a), [str(c)])
    assert words == ["seed=1", "+x=2"]
    assert folders == [a.resolve(), c.resolve(), b.resolve()]


def test_a_package_of_configs_is_found() -> None:
    _, folders = separate(["hydra.searchpath=[pkg://hydra.conf]"], None, ())
    assert (folders[0] / "hydra").is_dir()


@pytest.mark.parametrize("place", ["file:///no/such/folder", "/no/such/folder", "pkg://no_such_package.configs"])
def test_a_folder_that_does_not_exist(place: str) -> None:
    with pytest.raises(UserError, match=r"does not exist|no package"):
        separate([f"hydra.searchpath=[{place}]"], None, ())
