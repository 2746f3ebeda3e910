"""The small language for words inside words: `NAME KEY=VALUE KEY=[1,2]`, as one text. Imports nothing heavy.

digits classes=[0,1]                     a data set and some of its keys
random_resized_crop scale=[0.5,1]        an operation and some of its arguments
"""

from __future__ import annotations

import shlex
from typing import Any

import yaml

from transfer_run.errors import UserError


def named(words: str, where: str, what: str, example: str) -> tuple[str, dict[str, Any]]:
    """`digits classes=[0,1]` as ("digits", {"classes": [0, 1]}); values as YAML reads them.

    Args:
        where: the place of the words, for an error.
        what: what the first word names (`a data set`).
        example: such words, for an error's remedy.

    Raises:
        UserError: no words, quotes that do not close, or a later word that is not KEY=VALUE.
    """
    if not words.strip():
        raise UserError(f"Nothing is named where {what} must be.", where=where, remedy=f'write it as "{example}"')
    try:
        name, *pairs = shlex.split(words)
        split: list[tuple[str, str, str]] = [pair.partition("=") for pair in pairs]
        settings = {key: yaml.safe_load(value) for key, _, value in split}
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"The words cannot be read: {str(error).splitlines()[0]}.",
            where=where,
            remedy=f'write "NAME KEY=VALUE KEY=[1,2]", without spaces inside lists, as "{example}"',
        ) from error
    wrong = next((key for key, equals, _ in split if not equals), None)
    if wrong is not None:
        raise UserError(
            f"{wrong!r} is not KEY=VALUE.",
            where=where,
            remedy=f'the first word names {what}, the others set its keys: "{example}"',
        )
    return name, settings
