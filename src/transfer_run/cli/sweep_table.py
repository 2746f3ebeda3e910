"""What a sweep ends with: a line a run, with the words that tell it from the others, its score and its memory.

The same as a table with every metric, `sweep.csv`, stands in the sweep's folder beside Hydra's `multirun.yaml`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transfer_run.errors import DONE, FAILED, PREEMPTED, USER_ERROR, UserError
from transfer_run.experiment.config.words import parse
from transfer_run.experiment.record.summary import size
from transfer_run.files import write_atomically
from transfer_run.run_folder import read_config, read_result

NAME = "sweep.csv"
STATUS = {DONE: "finished", FAILED: "failed", USER_ERROR: "refused", PREEMPTED: "preempted"}


def write_table(folder: Path, outcomes: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """Write `sweep.csv` and return the lines to print, one a run under a line of headings.

    Args:
        folder: of the sweep.
        outcomes: by number, what each run left: its `words` as a list, `code`, `folder` and `reason`.
    """
    runs = [outcomes[number] for number in sorted(outcomes)]
    words = differing([list(run["overrides"]) for run in runs])
    results = [_result(run) for run in runs]
    _write(folder / NAME, runs, words, results)
    return _lines(runs, words, results)


def differing(runs: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """Of every run the keys that do not have one and the same value in all runs, with their values here."""
    given = [dict(_read(word) for word in words if "=" in word) for words in runs]
    keys = dict.fromkeys(key for words in given for key in words)
    apart = [key for key in keys if len({words.get(key) for words in given}) > 1]
    return [{key: words.get(key, "") for key in apart} for words in given]


def _read(word: str) -> tuple[str, str]:
    """Key and value of a word, text without Hydra's quotes and backslashes."""
    key, _, raw = word.partition("=")
    try:
        value = parse(word).value()
    except UserError:
        value = raw
    return key, value if isinstance(value, str) else raw


def _result(run: Mapping[str, Any]) -> dict[str, Any]:
    """`result.json` of a finished run, and the name of its headline metric; empty where there is none."""
    if run["code"] != DONE or not run["folder"]:
        return {}
    folder = Path(run["folder"])
    try:
        result = read_result(folder) or {}
        config = read_config(folder)
    except UserError:  # a damaged file: the run itself has said so, or will
        return {}
    first = next(iter((config.get("dataset") or {}).get("metrics") or ()), None)
    metrics = result.get("metrics") or {}
    headline = f"test/{first}" if f"test/{first}" in metrics else next(iter(metrics), "")
    return {**result, "headline": headline} if result else {}


def _status(run: Mapping[str, Any]) -> str:
    return "not started" if str(run["reason"]).startswith("not started") else STATUS[run["code"]]


def _write(
    path: Path, runs: Sequence[Mapping[str, Any]], words: Sequence[dict[str, str]], results: Sequence[dict[str, Any]]
) -> None:
    rows: list[dict[str, Any]] = []
    for number, (run, apart, result) in enumerate(zip(runs, words, results, strict=True), 1):
        memory, counts = result.get("memory") or {}, result.get("parameters") or {}
        rows.append(
            {"run": number, **apart, "status": _status(run), "headline": result.get("headline", "")}
            | (result.get("metrics") or {})
            | {
                "peak_bytes": memory.get("peak"),
                "memory_source": memory.get("source"),
                "predicted_peak_bytes": memory.get("predicted_peak"),
                "trainable": counts.get("trainable"),
                "parameters": counts.get("total"),
                "fit_seconds": (result.get("time") or {}).get("fit_seconds"),
                "identity": result.get("identity"),
                "folder": run["folder"],
                "reason": (str(run["reason"]).splitlines() or [""])[0],
            }
        )
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


def _lines(
    runs: Sequence[Mapping[str, Any]], words: Sequence[dict[str, str]], results: Sequence[dict[str, Any]]
) -> list[str]:
    headlines = {result["headline"] for result in results if result.get("headline")}
    one = headlines.pop() if len(headlines) == 1 else ""
    table = [["#", *(words[0] if words else ()), one or "metric", "peak memory", "status"]]
    for number, (run, apart, result) in enumerate(zip(runs, words, results, strict=True), 1):
        name = result.get("headline", "")
        score = f"{result['metrics'][name]:.4f}" if name else ""
        peak = (result.get("memory") or {}).get("peak")
        shown = score if one or not score else f"{name} {score}"
        table.append([str(number), *apart.values(), shown, size(peak) if peak else "", _status(run)])
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
