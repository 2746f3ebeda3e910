"""Wrong command lines by the thousand: exit code 2, one message that names the key, no traceback."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest

from tests.faults.conftest import WHOLE
from tests.faults.wrong_words import lines
from transfer_run.cli import run as command
from transfer_run.errors import UserError
from transfer_run.experiment.sources.resolve import source_tree

PARTS, EACH = (16, 130) if WHOLE else (3, 11)
LONGEST = 2_500
"""Characters of a message, be the words as long as they like."""


@pytest.mark.parametrize("part", range(PARTS))
def test_a_wrong_line_is_refused_by_its_key(
    part: int, monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, Any], None]
) -> None:
    monkeypatch.setattr(command, "carry", source_tree)  # what follows valid words: sources are looked up, none is made
    for line in islice(lines(f"part {part}"), EACH):
        try:
            command.run(list(line.words))
        except UserError as error:
            message = str(error)
            assert line.named.lower() in message.lower(), f"{line.words[-1]} is not named: {message}"
            assert len(message) < LONGEST, f"{line.words[-1]} is answered in {len(message)} characters"
        except BaseException as error:
            raise AssertionError(f"{' '.join(line.words)} ends as {type(error).__name__}: {error}") from error
        else:
            raise AssertionError(f"{' '.join(line.words)} is not refused")
    record_property("cases", EACH)
