"""What a sweep ends with: a line a run, the mean and the spread over seeds, and why runs are missing.

sweep.csv    a row a run, every metric
table.md     a row for runs that differ in the seed alone: mean and standard deviation; failures with their reasons
plot.png     the same as a picture
"""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transfer_run.errors import UserError
from transfer_run.experiment.config.words import parse
from transfer_run.experiment.record.state import FINISHED
from transfer_run.experiment.record.summary import size
from transfer_run.files import write_atomically, written_whole
from transfer_run.sweeps.asked import Sweep
from transfer_run.sweeps.record import Row, progress

CSV, MARKDOWN, PLOT = "sweep.csv", "table.md", "plot.png"
SEED = "seed"
TALLEST = 40
"""Bars that still can be read."""


@dataclass(frozen=True)
class Group:
    """Runs that differ in the seed alone.

    Attributes:
        words: by key, what tells them from the other groups.
    """

    words: dict[str, str]
    rows: list[Row]

    @property
    def scores(self) -> list[float]:
        return [row.score for row in self.rows if row.score is not None]

    @property
    def headline(self) -> str:
        return next((row.result["headline"] for row in self.rows if row.score is not None), "")

    @property
    def peak(self) -> int | None:
        return max(((row.result.get("memory") or {}).get("peak") or 0 for row in self.rows), default=0) or None

    @property
    def label(self) -> str:
        return ", ".join(self.words.values()) or "all"

    @property
    def shown(self) -> str:
        """Mean and, of several, standard deviation."""
        if not self.scores:
            return ""
        spread = f" ± {statistics.stdev(self.scores):.4f}" if len(self.scores) > 1 else ""
        return f"{statistics.fmean(self.scores):.4f}{spread}"

    @property
    def count(self) -> str:
        done = sum(row.state.status == FINISHED for row in self.rows)
        return str(done) if done == len(self.rows) else f"{done} of {len(self.rows)}"


def write_tables(sweep: Sweep, rows: Sequence[Row]) -> None:
    """Write the three files; the picture only where the runs have changed."""
    words = differing([row.member.overrides for row in rows])
    text = _csv(rows, words)
    before = (sweep.folder / CSV).read_text(encoding="utf-8") if (sweep.folder / CSV).is_file() else ""
    write_atomically(sweep.folder / CSV, text)
    found = groups(rows, words)
    write_atomically(sweep.folder / MARKDOWN, _markdown(sweep, rows, found))
    if text != before or not (sweep.folder / PLOT).is_file():
        _plot(found, sweep.folder / PLOT)


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


def groups(rows: Sequence[Row], words: Sequence[dict[str, str]]) -> list[Group]:
    """The runs by all that they differ in but the seed, sorted by it: numbers by their size, words by the alphabet."""
    found: dict[tuple[tuple[str, str], ...], Group] = {}
    for row, apart in zip(rows, words, strict=True):
        own = {key: value for key, value in apart.items() if key != SEED}
        found.setdefault(tuple(own.items()), Group(own, [])).rows.append(row)
    return sorted(found.values(), key=lambda group: [_order(value) for value in group.words.values()])


def _order(value: str) -> list[tuple[int, float, str]]:
    try:
        return [(0, float(value), "")]
    except ValueError:
        parts = re.split(r"(\d+)", value)
        return [(1, float(part) if part.isdigit() else 0.0, "" if part.isdigit() else part) for part in parts]


def _csv(rows: Sequence[Row], words: Sequence[dict[str, str]]) -> str:
    lines: list[dict[str, Any]] = []
    for row, apart in zip(rows, words, strict=True):
        result = row.result
        memory, counts = result.get("memory") or {}, result.get("parameters") or {}
        lines.append(
            {"run": row.member.number, **apart, "status": row.state.status, "headline": result.get("headline", "")}
            | (result.get("metrics") or {})
            | {
                "peak_bytes": memory.get("peak"),
                "memory_source": memory.get("source"),
                "predicted_peak_bytes": memory.get("predicted_peak"),
                "trainable": counts.get("trainable"),
                "parameters": counts.get("total"),
                "fit_seconds": (result.get("time") or {}).get("fit_seconds"),
                "identity": row.member.identity,
                "folder": str(row.member.folder),
                "reason": (row.state.reason.splitlines() or [""])[0],
            }
        )
    columns = list(dict.fromkeys(column for line in lines for column in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def lines_of_runs(rows: Sequence[Row]) -> list[str]:
    """A line a run, in the order of the command, under a line of headings."""
    words = differing([row.member.overrides for row in rows])
    headlines = {row.result["headline"] for row in rows if row.result.get("headline")}
    one = headlines.pop() if len(headlines) == 1 else ""
    table = [["#", *(words[0] if words else ()), one or "metric", "peak memory", "status"]]
    for row, apart in zip(rows, words, strict=True):
        score = "" if row.score is None else f"{row.score:.4f}"
        peak = (row.result.get("memory") or {}).get("peak")
        shown = score if one or not score else f"{row.result['headline']} {score}"
        cells = [str(row.member.number), *apart.values(), shown, size(peak) if peak else ""]
        table.append([*cells, row.state.status])
    return aligned(table)


def lines_over_seeds(rows: Sequence[Row]) -> list[str]:
    """A line a group, where a group has several seeds; else none."""
    found = groups(rows, differing([row.member.overrides for row in rows]))
    if all(len(group.rows) == 1 for group in found):
        return []
    return aligned([*_table(found)])


def lines_of_status(rows: Sequence[Row]) -> list[str]:
    """A line a run with how far it is."""
    lines = lines_of_runs(rows)
    width = max(map(len, lines))
    told = ["", *(progress(row) for row in rows)]
    return [f"{line:{width}}  {each}".rstrip() for line, each in zip(lines, told, strict=True)]


def aligned(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def _table(found: Sequence[Group]) -> Iterator[list[str]]:
    headlines = {group.headline for group in found if group.headline}
    one = headlines.pop() if len(headlines) == 1 else ""
    yield [*found[0].words, "runs", one or "metric", "peak memory"]
    for group in found:
        shown = group.shown if one or not group.shown else f"{group.headline} {group.shown}"
        yield [*group.words.values(), group.count, shown, size(group.peak) if group.peak else ""]


def _markdown(sweep: Sweep, rows: Sequence[Row], found: Sequence[Group]) -> str:
    done = sum(row.state.status == FINISHED for row in rows)
    text = [f"# {sweep.name}", "", f"`{sweep.command}`", "", f"{done} of {len(rows)} runs finished.", ""]
    if found:
        cells = [[cell.replace("|", r"\|") for cell in line] for line in _table(found)]
        text += [f"| {' | '.join(line)} |" for line in cells]
        text.insert(len(text) - len(cells) + 1, f"|{' --- |' * len(cells[0])}")
    missing = [row for row in rows if row.state.status != FINISHED]
    if missing:
        text += ["", "Not finished:", ""]
        text += [f"- `{row.member.told}`: {row.state.status}{_because(row.state.reason)}" for row in missing]
    return "\n".join(text) + "\n"


def _because(reason: str) -> str:
    return f" ({reason.splitlines()[0]})" if reason else ""


def _plot(found: Sequence[Group], path: Path) -> None:
    """Bars of the means, the standard deviation as a whisker, every run as a dot."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    drawn = [group for group in found if group.scores][:TALLEST]
    chart, axis = plt.subplots(figsize=(8.5, max(2.4, 0.36 * len(drawn) + 1.4)))
    for place, group in enumerate(drawn):
        spread = statistics.stdev(group.scores) if len(group.scores) > 1 else None
        axis.barh(place, statistics.fmean(group.scores), xerr=spread, color="C0", alpha=0.5, capsize=3)
        axis.plot(group.scores, [place] * len(group.scores), ".", color="C1")
    if drawn:
        axis.set_yticks(range(len(drawn)), [group.label for group in drawn])
        axis.invert_yaxis()
        axis.set_xlabel(" / ".join(sorted({group.headline for group in drawn})))
    else:
        axis.set_axis_off()
        axis.text(0.5, 0.5, "no run has finished with a score", ha="center", va="center")
    left_out = sum(bool(group.scores) for group in found) - len(drawn)
    if left_out:
        axis.set_title(f"the first {TALLEST}; {left_out} more in {CSV}")
    chart.tight_layout()
    with written_whole(path) as partial:
        chart.savefig(partial, dpi=130, format="png")
    plt.close(chart)
