"""Writes tests/recorded/first_losses.json: the first training losses of the smallest runs of the test matrix.

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


def main(*only: str) -> None:
    """Record all methods, or those that are named."""
    recorded = json.loads(PINNED.read_text(encoding="utf-8")) if PINNED.is_file() else {}
    with tempfile.TemporaryDirectory() as folder:
        for method in only or RUN:
            run = carry_out(compose([*words(method, folder), "profiler=none"]))
            recorded[method] = [round(loss, 6) for loss in first_losses(run)]
    kept = {name: recorded[name] for name in sorted(recorded) if name in RUN}
    PINNED.parent.mkdir(exist_ok=True)
    PINNED.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
