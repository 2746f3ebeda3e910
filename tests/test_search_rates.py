"""The search of learning rates: what it tries, what it takes, and that the tables take what it found."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from transfer_run.tables.spec import read

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import search_rates

Scores = dict[str, float]


def found(monkeypatch: pytest.MonkeyPatch, scores: Scores) -> tuple[str, Scores]:
    """What a search around 1e-2 finds where these are the scores; any other rate must not be tried."""
    search = search_rates.Search((), {"toy": ("1e-2",)})
    monkeypatch.setattr(search_rates, "score", lambda search, method, rate, output: scores[rate])
    return search_rates.best_rate(search, "toy", "")


def test_the_best_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {"3e-3": 0.5, "1e-2": 0.8, "3e-2": 0.7}
    assert found(monkeypatch, scores) == ("1e-2", scores)


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ({"3e-3": 0.5, "1e-2": 0.6, "3e-2": 0.7, "1e-1": 0.9, "3e-1": 0.2}, "1e-1"),
        ({"3e-3": 0.9, "1e-2": 0.6, "3e-2": 0.7, "1e-3": 0.9, "3e-4": 0.1}, "1e-3"),
    ],
)
def test_at_an_edge_it_looks_beyond(monkeypatch: pytest.MonkeyPatch, scores: Scores, best: str) -> None:
    """Until it lies inside; of equal scores the smaller rate is taken."""
    assert found(monkeypatch, scores) == (best, dict(sorted(scores.items(), key=lambda item: float(item[0]))))


def test_the_ladder_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {rate: float(rate) for rate in search_rates.LADDER}
    assert found(monkeypatch, scores)[0] == "1"


def test_the_evidence_takes_the_recorded_rates() -> None:
    """Each row of the table says the words of the search, with the rate that it found; or that none was searched."""
    recorded = json.loads((search_rates.RECORDED / "python_docs.json").read_text(encoding="utf-8"))
    table = read("evidence/python_docs")
    assert set(recorded["words"]) <= set(table.words)
    assert recorded["methods"]
    for row in table.rows:
        entry = recorded["methods"].get(row.name)
        assert ("rate was not searched" in row.note) == (entry is None), row.name
        if entry:
            assert set(row.words or ()) == {f"method={row.name}", f"optimizer.lr={entry['rate']}", *entry["words"]}
            assert entry["scores"][entry["rate"]] == max(entry["scores"].values())


@pytest.mark.parametrize("name", ["mqp", "rte", "mrpc", "stsb", "cola", "sst2"])
def test_the_other_evidence_takes_those_of_mqp(name: str) -> None:
    """Each row says the words of that search and its rate; its score, but not its peak, is read of what frozen blocks
    left. mqp itself has all words of the search, and all its methods."""
    recorded = json.loads((search_rates.RECORDED / "mqp.json").read_text(encoding="utf-8"))
    table = read(f"evidence/{name}")
    if name == "mqp":
        assert set(recorded["words"]) <= set(table.words)
    rows = {row.name for row in table.rows}
    assert rows == recorded["methods"].keys() if name == "mqp" else rows <= recorded["methods"].keys()
    for row in table.rows:
        entry = recorded["methods"][row.name]
        assert set(row.words or ()) == {f"method={row.name}", f"optimizer.lr={entry['rate']}", *entry["words"]}
        kept = {table.columns[0].name: ("cache.taps=disk",)} if row.name in search_rates.TAPPED else {}
        assert row.cells == kept
        assert entry["scores"][entry["rate"]] == max(entry["scores"].values())
