"""What a word of `dataset.form` asks of a data set's rows, declared: nothing that reads rows asks for the words.

A form of another word (`retrieval`, or one of your own) has a data set that knows its rows by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transfer_run.errors import UserError


@dataclass(frozen=True)
class Asked:
    """What is asked of a row.

    Attributes:
        classes: which one of several classes it is.
        value: a number.
        several: which of several classes it is, none and all of them included.
        running: nothing but the text that it is a part of.
        noisy: of running text, what was hidden of it.
    """

    classes: bool = False
    value: bool = False
    several: bool = False
    running: bool = False
    noisy: bool = False

    @property
    def full(self) -> bool:
        """Are all rows full windows of text? They need no mask, and attention without one keeps less."""
        return self.running and not self.noisy

    @property
    def labelled(self) -> bool:
        """Has a row one label, which is a number?"""
        return self.classes or self.value

    @property
    def named(self) -> bool:
        """Are there classes, which have names?"""
        return self.classes or self.several


ASKED = {
    "classification": Asked(classes=True),
    "regression": Asked(value=True),
    "multi_label": Asked(several=True),
    "language_modeling": Asked(running=True),
    "span_corruption": Asked(running=True, noisy=True),
}


def asked(dataset: Mapping[str, Any]) -> Asked:
    """What the form of a composed `dataset` node asks."""
    return ASKED.get(dataset["form"], Asked())


def refuse_without_classes(dataset: Mapping[str, Any]) -> None:
    """UserError for whoever asks for the class of each row where rows have none, or several."""
    if not asked(dataset).classes:
        raise UserError(
            f"Rows of {dataset['form']} have no classes.",
            where=f"dataset={dataset['name']}",
            remedy="choose a dataset of classification",
        )
