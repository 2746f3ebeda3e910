"""The same words make the same run as ever: what a user has carried out once is not carried out again.

tests/recorded/identities.json holds words and the identity that they had when they were first listed:
`scripts/record_identities.py` writes it. An identity that changes takes a line in CHANGELOG.md that says why.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from transfer_run.experiment.config import registry
from transfer_run.experiment.config.compose import compose

RECORDED = Path(__file__).parents[2] / "recorded" / "identities.json"
FILES = {
    "rows.json": '{"rows": {"train": [0, 1, 5, 7, 9]}}',
    "pairs.csv": "text,label\nit works,1\nit does not,0\n",
    "teacher/model.safetensors": "no tensors, but bytes",
    "teacher/config.json": "{}",
}
"""What the words may name: all of it is part of an identity, where it lies is not."""


def identities(folder: Path, all_words: list[str]) -> Iterator[tuple[str, str]]:
    """Each of the words and its identity, composed in a folder (the working folder) that holds `FILES` alone."""
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    for words in all_words:
        yield words, compose(shlex.split(words)).identity


LISTED: dict[str, str] = json.loads(RECORDED.read_text(encoding="utf-8")) if RECORDED.is_file() else {}


@pytest.mark.parametrize("words", LISTED)
def test_the_identity_is_the_recorded_one(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert dict(identities(tmp_path, [words])) == {words: LISTED[words]}


def test_every_method_and_experiment_is_listed() -> None:
    """An experiment whose data only its user has is not: it cannot be composed without them."""
    named = {word for words in LISTED for word in shlex.split(words) if word.startswith(("method=", "experiment="))}
    methods = {f"method={name}" for name in registry.names("method", ())}
    experiments = {f"experiment={name}" for name in registry.names("experiment", ())}
    assert methods | experiments - {"experiment=double_finetuning"} <= named


def test_words_that_cannot_matter_are_listed_beside_those_that_do() -> None:
    same = [words for words in LISTED if LISTED[words] == LISTED["backbone=t5_tiny"]]
    assert len(same) >= 5
    assert len(set(LISTED.values())) > 100
