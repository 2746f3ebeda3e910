"""Writes tests/recorded/identities.json again: the identity of every run that is listed there.

    python scripts/record_identities.py                 the same words, with the identities of today
    python scripts/record_identities.py "WORDS" ...     these words too

An identity that changes is a run that its owner must carry out again: look at the difference, and say in CHANGELOG.md
why it is worth that.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.experiment.config.test_recorded_identities import LISTED, RECORDED, identities


def main(*more: str) -> None:
    """Record what is listed, and more."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        found = dict(identities(Path(folder), list(dict.fromkeys([*LISTED, *more]))))
    RECORDED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    changed = [words for words in LISTED if LISTED[words] != found[words]]
    print(f"{len(found)} identities, {len(changed)} of them changed", *changed, sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
