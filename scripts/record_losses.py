"""Writes tests/recorded/first_losses/METHOD.json: the first training losses of the smallest run of the test matrix.

Run it after a change that is meant to change numbers, and look at the difference before you commit it.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.matrix.smallest import words  # noqa: E402
from tests.matrix.test_every_method import PINNED, RUN, first_losses  # noqa: E402

from transfer_run.experiment.config.compose import compose  # noqa: E402
from transfer_run.experiment.run import carry_out  # noqa: E402
from transfer_run.files import write_atomically  # noqa: E402


def main(*only: str) -> None:
    """Record the methods that are named, or all that have no record yet."""
    missing = [method for method in RUN if not (PINNED / f"{method}.json").is_file()]
    with tempfile.TemporaryDirectory() as folder:
        for method in only or missing:
            run = carry_out(compose([*words(method, folder), "profiler=none"]))
            losses = [round(loss, 6) for loss in first_losses(run)]
            write_atomically(PINNED / f"{method}.json", json.dumps(losses) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
