"""`dataset.prompt`: a template over the columns of a row, `question: {question} answer: {answer}`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from string import Formatter
from typing import Any

from transfer_run.errors import UserError, nearest_names

WHERE = "dataset.prompt"


def filled(template: str, row: Mapping[str, Any]) -> str:
    """The text of one row. The template is one that `check_template` has passed."""
    return "".join(part if column is None else f"{row[column]}" for part, column in _parts(template))


def check_template(template: str, columns: Sequence[str]) -> None:
    """A template names columns that are read, each as it stands, and at least one of them.

    Raises:
        UserError: it is no template, or names something else (`{text.upper}`, `{text[0]}`, `{text:>9}`, `{}`).
    """
    names = [column for _, column in _parts(template) if column is not None]
    if not names:
        raise UserError(
            f"The prompt {template!r} names no column: every row would be the same text.",
            where=WHERE,
            remedy=f"write a column's name in braces: {{{columns[0]}}}",
        )
    for name in names:
        if name not in columns:
            raise UserError(
                f"The prompt names {name!r}, which is no column that is read ({', '.join(columns)}).",
                where=f"{WHERE}, dataset.text_columns",
                nearest=nearest_names(name, columns),
                remedy="write a column's name alone in braces, and twice the brace that stands for itself: {{",
            )


@lru_cache(maxsize=8)
def _parts(template: str) -> tuple[tuple[str, str | None], ...]:
    """Text and columns' names in turn: ("question: ", None), ("", "question")."""
    found: list[tuple[str, str | None]] = []
    try:
        for text, name, form, conversion in Formatter().parse(template):
            found.append((text, None))
            if name is not None:
                found.append(("", name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")))
    except ValueError as error:
        raise UserError(
            f"The prompt {template!r} cannot be read: {error}.",
            where=WHERE,
            remedy="write a column's name in braces, and twice the brace that stands for itself: {{",
        ) from error
    return tuple(found)
