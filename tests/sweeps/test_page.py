"""docs/sweeps.md: its blocks are run as they stand, in order, in one shell and one folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.test_pages import blocks, run

PAGE = "docs/sweeps.md"


@pytest.mark.long
def test_the_blocks_of_the_page(tmp_path: Path) -> None:
    shell = "set -e\n" + "\n".join(blocks(PAGE, "sh"))
    (tmp_path / "page.sh").write_text(shell, encoding="utf-8")
    done = run("bash page.sh", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 runs, 4 of them need none" in done.stdout, "the same command again"
    assert "sweep first: 4 finished" in done.stdout
    sweeps = tmp_path / "outputs" / "sweeps"
    assert {path.name for path in (sweeps / "first").iterdir()} == {
        "sweep.json",
        "sweep.csv",
        "table.md",
        "plot.png",
        ".lock",
    }
    assert "±" in (sweeps / "first" / "table.md").read_text(encoding="utf-8")
    assert sum(len(list((path / "logs").glob("*.log"))) for path in sweeps.iterdir()) == 3 + 2
    best = json.loads((sweeps / "rate" / "best.json").read_text(encoding="utf-8"))
    assert best["metric"] == "validation/accuracy"
    assert (Path(best["folder"]) / "result.json").is_file()


def test_the_page_names_keys_that_exist() -> None:
    import re

    import yaml

    root = Path(__file__).parents[2]
    keys = yaml.safe_load((root / "configs" / "run.yaml").read_text(encoding="utf-8"))["sweep"]
    named = set(re.findall(r"sweep\.(\w+)=", (root / PAGE).read_text(encoding="utf-8")))
    assert named == set(keys), "every key of a sweep is explained, and no other"
