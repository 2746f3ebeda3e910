"""The pages on memory say what the tables and the recorded validation say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from transfer_run.tables.records import recorded
from transfer_run.tables.render import as_markdown
from transfer_run.tables.spec import read

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_holds_a_place_to_be_filled_in(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r"^@\w+@", text, re.M)
    for picture in re.findall(r"!\[[^]]*\]\((?!https?:)([^)]+)\)", text):
        assert (page.parent / picture).is_file(), picture


@pytest.mark.parametrize(("name", "digits"), [("cpu", "+.1f"), ("real", "+.2f")])
def test_the_page_has_the_recorded_validation(name: str, digits: str) -> None:
    """docs/memory.md against tests/recorded/validate_memory_*.json."""
    content = json.loads((ROOT / "tests" / "recorded" / f"validate_memory_{name}.json").read_text(encoding="utf-8"))
    assert content.get("complete", False)
    found = content["summary"]
    page = " ".join((ROOT / "docs" / "memory.md").read_text(encoding="utf-8").split())
    median, worst = (f"{100 * found[name]:{form}} %" for name, form in (("median", ".1f"), ("worst", digits)))
    counts = f"{found['points']} of {len(content['points'])} configurations"
    assert f"{counts}: median difference {median}, worst {worst}" in page


def test_the_page_on_methods_names_all_that_its_table_has() -> None:
    page = (ROOT / "docs" / "side_tuning.md").read_text(encoding="utf-8")
    for row in read("side_tuning_family/today").rows:
        assert f"| `{row.name}` |" in page


EVIDENCE = ["python_docs", "mqp", "mrpc", "stsb", "rte", "sst2", "cola", "cifar10", "cifar10_resnet56", "stories"]


@pytest.mark.parametrize(
    ("page", "name"), [("README.md", "python_docs"), *(("docs/evidence.md", name) for name in EVIDENCE)]
)
def test_the_page_has_the_recorded_evidence(page: str, name: str) -> None:
    """Line by line what `transfer-table evidence/NAME --source recorded` prints."""
    table = read(f"evidence/{name}")
    lines = [line for line in as_markdown(table, recorded(table)).splitlines() if line.startswith("|")]
    assert len(lines) == len(table.rows) + 2
    assert "\n".join(lines) in (ROOT / page).read_text(encoding="utf-8")
