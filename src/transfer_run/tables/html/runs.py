"""The report of a finished run, and of several side by side: `report.html` in the run's or the sweep's own folder."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transfer_run.errors import UserError
from transfer_run.experiment.config.identity import HOLDS, canonical, data_read
from transfer_run.experiment.record.summary import size
from transfer_run.files import write_atomically
from transfer_run.memory.account import KINDS
from transfer_run.memory.report import GIB, MIB, PHASES
from transfer_run.run_folder import CONFIG, METRICS, finished_runs, read_config, read_result
from transfer_run.tables.html.charts import Point, front, lines, scatter, stacked
from transfer_run.tables.html.page import Html, charts, document, folded, notes, picture, section, table, text

REPORT = "report.html"
Result = Mapping[str, Any]


@dataclass(frozen=True)
class Compared:
    """A finished run beside others.

    Attributes:
        label: what tells it from them; runs of one label differ in the seed alone, or as good as.
        metric: the name of its headline; better: `large` or `small`, empty where it is not recorded.
    """

    label: str
    result: Result
    metric: str
    better: str
    data: Mapping[str, Any]
    """What it read, by dotted key (`data_read`)."""
    place: str = ""
    """Where its data lie, in its config's words; empty: they have no path."""
    report: str = ""
    """Where its own report is, from the page that shows it; empty: nowhere."""

    @property
    def score(self) -> float:
        return float(self.result["metrics"][self.metric])

    @property
    def peak(self) -> int:
        return int(self.result["memory"]["peak"])


def write_report(folder: Path) -> Path:
    """Write the report of a finished run into its folder; returns the file.

    Raises:
        UserError: it has not finished, or a file of it is damaged.
    """
    result = read_result(folder)
    if result is None:
        raise UserError(f"The run {folder} has not finished.", where=str(folder), remedy="give its command again")
    path = folder / REPORT
    write_atomically(path, run_page(folder, result))
    return path


def run_page(folder: Path, result: Result) -> str:
    """The page of a run: its scores, curves, memory, and how it stands beside the finished runs next to it."""
    name = f"{result['method']} on {result['backbone']}, {result['dataset']}, seed {result['seed']}"
    environment = result.get("environment") or {}
    config = (folder / CONFIG).read_text(encoding="utf-8") if (folder / CONFIG).is_file() else ""
    beside = beside_it(folder)
    return document(f"{name}", f"run {str(result['identity'])[:8]} in {folder}", [
        section("Scores", charts(_scores(result), _facts(result))),
        section("Curves", curves(folder / METRICS)),
        section("Pictures", *pictures(folder)) if any(folder.glob("*.png")) else Html(""),
        section("Memory", *memory(result.get("memory") or {})),
        section("Beside it", *comparison(beside)) if len(beside) > 1 else Html(""),
        section("Notes", notes([str(note) for note in (result.get("extra") or {}).get("notes") or ()])),
        section("Made with", table(["what", "which"], sorted(environment.items()), figures_from=2)),
        section("Config", folded(CONFIG, config)) if config else Html(""),
    ])  # fmt: skip


def _scores(result: Result) -> Html:
    return table(["metric", "value"], [(name, f"{value:.4f}") for name, value in (result.get("metrics") or {}).items()])


def _facts(result: Result) -> Html:
    counts, time = result.get("parameters") or {}, result.get("time") or {}
    rows = []
    if "trainable" in counts:
        share = f"{counts['trainable']:,} of {counts['total']:,} ({counts['trainable_pct']:g} %)"
        rows.append(("trained parameters", share))
    rows += [(name.replace("_", " "), f"{value:,}") for name, value in time.items() if isinstance(value, int | float)]
    return table(["fact", "value"], rows)


def curves(path: Path) -> Html:
    """What was logged on the way, a chart for each quantity with its splits in it."""
    if not path.is_file():
        return Html("")
    with path.open(newline="", encoding="utf-8") as file:
        logged = list(csv.DictReader(file))
    series: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in logged:
        for name, value in row.items():
            if name not in ("step", "epoch", None) and value:
                series.setdefault(name.partition("/")[2] or name, {}).setdefault(name, []).append(
                    (float(row["step"]), float(value))
                )
    order = sorted(series, key=lambda name: (name != "loss", name == "lr", name))
    drawn = [lines(series[name], "step", name) for name in order
             if any(len(pairs) > 1 for pairs in series[name].values())]  # fmt: skip
    return charts(*drawn)


def pictures(folder: Path) -> list[str]:
    """What the run drew, by name, within the page."""
    return [picture(path.name, path.read_bytes()) for path in sorted(folder.glob("*.png"))]


def memory(node: Mapping[str, Any]) -> list[str]:
    """Measured memory by phase and kind, the prediction beside it, and the largest tensors."""
    phases = {name: phase for name, phase in (node.get("phases") or {}).items() if name in PHASES}
    if not phases:
        return [Html("")]
    unit, by = ("GiB", GIB) if node["peak"] >= GIB / 2 else ("MiB", MIB)
    predicted = node.get("predicted_phases") or {}
    source = "planned, not measured" if node.get("source") == "plan" else f"measured ({node.get('source')})"
    rows: list[tuple[str, dict[str, float]]] = []
    for name in (each for each in PHASES if each in phases):
        rows.append((name, _parts(phases[name], by)))
        rows += [(f"{name}, predicted", _parts(predicted[name], by))] if name in predicted else []
    told = [[name, size(phase["peak"]), size(predicted[name]["peak"]) if name in predicted else "-",
             _off(predicted[name]["peak"], phase["peak"]) if name in predicted else "-"]
            for name, phase in phases.items()]  # fmt: skip
    whole = node.get("predicted_peak")
    told.append(
        ["peak of all", size(node["peak"]), size(whole) if whole else "-", _off(whole, node["peak"]) if whole else "-"]
    )
    largest = [["x".join(map(str, each["shape"])), each["dtype"], each["kind"], each["module"] or "outside modules",
                size(each["bytes"])] for each in (node.get("largest") or ())[:8]]  # fmt: skip
    peak = f"The peak of {size(node['peak'])} is reached in {node['peak_phase']}; it is {source}."
    left = node.get("not_planned")
    return [
        peak,
        stacked(rows, KINDS, unit, lambda value: f"{value:.2f} {unit}"),
        table(["phase", "measured", "predicted", "difference"], told),
        f"Not in the prediction: {left}." if left else "",
        Html("<h3>largest tensors at the peak</h3>") if largest else "",
        table(["shape", "type", "kind", "first made in", "each"], largest, figures_from=4),
    ]


def _parts(phase: Mapping[str, Any], by: int) -> dict[str, float]:
    return {kind: phase["by_kind"].get(kind, 0) / by for kind in KINDS}


def _off(predicted: float, measured: float) -> str:
    return f"{round(100 * (predicted / max(1, measured) - 1), 1) + 0.0:+.1f} %"


def compared(folder: Path, label: str = "") -> Compared | None:
    """A finished run to be held beside others; None where it has no score or no memory."""
    result, config = read_result(folder), read_config(folder)
    if result is None or not (result.get("memory") or {}).get("peak"):
        return None
    said = result.get("headline") or {}
    first = next(iter((config.get("dataset") or {}).get("metrics") or ()), None)
    metric = said.get("metric") or f"test/{first}"
    if metric not in (result.get("metrics") or {}):
        return None
    return Compared(
        label or str(result["method"]),
        result,
        metric,
        said.get("better", ""),
        data_read(config),
        str((config.get("dataset") or {}).get("path") or ""),
        f"../{folder.name}/{REPORT}" if (folder / REPORT).is_file() else "",
    )


def beside_it(folder: Path) -> list[Compared]:
    """The finished runs in the same folder, of the same backbone and scored by the same metric on what it read; itself
    first."""
    own = compared(folder)
    if own is None:
        return []
    others = [compared(each) for each in finished_runs(folder.parent, below=False) if each != folder]
    fitting = [
        each
        for each in others
        if each and _asked(each) == _asked(own) and each.result["backbone"] == own.result["backbone"]
    ]
    return [own, *fitting]


def comparison(runs: Sequence[Compared]) -> list[str]:
    """Score against memory with the Pareto front, and the same as a table: of what read the same data and is scored
    by the same metric, for a score on other rows is neither better nor worse.

    Runs may differ in more than their labels say: what else they share is up to whoever chose them.
    """
    groups: list[list[Compared]] = []
    for each in runs:
        home = next((group for group in groups if _asked(group[0]) == _asked(each)), None)
        groups.append([each]) if home is None else home.append(each)
    if len({_data(group[0]) for group in groups}) < 2:
        return [part for group in groups for part in _side_by_side(group)] or [Html("")]
    names = _told_apart([group[0] for group in groups])
    return [
        part
        for group, name in zip(groups, names, strict=True)
        for part in (Html(f"<h3>{text(name)}</h3>"), *_side_by_side(group))
    ]


def _asked(run: Compared) -> tuple[str, str]:
    return run.metric, _data(run)


def _data(run: Compared) -> str:
    return canonical({"name": run.result["dataset"], **run.data})


def _told_apart(runs: Sequence[Compared]) -> list[str]:
    """The name of each one's data set, and what else about it is not the same in all of that name."""
    found = []
    for run in runs:
        alike = [other.data for other in runs if other.result["dataset"] == run.result["dataset"]]
        keys = sorted({key for data in alike for key in data if len({canonical(d.get(key)) for d in alike}) > 1})
        words = [f"{key.removeprefix('dataset.')} {_briefly(run.data.get(key))}" for key in keys]
        if f"dataset.path{HOLDS}" in keys:
            words.insert(0, run.place)
        found.append(": ".join(filter(None, (str(run.result["dataset"]), ", ".join(filter(None, words))))))
    return found


def _briefly(value: Any) -> str:
    """A value in words; of a digest what is enough to know it again."""
    said = "not set" if value is None else str(value)
    return said[:8] if len(said) >= 32 and set(said) <= set("0123456789abcdef") else said


def _side_by_side(here: Sequence[Compared]) -> list[str]:
    """One front and its table."""
    metric, labels = here[0].metric, list(dict.fromkeys(each.label for each in here))
    unit, by = ("GiB", GIB) if max(each.peak for each in here) >= GIB / 2 else ("MiB", MIB)
    points = [Point(each.peak / by, each.score, each.label, labels.index(each.label), _told(each)) for each in here]
    known = {each.better for each in here}
    large = None if len(known) != 1 or "" in known else known == {"large"}
    best = [] if large is None else front(points, large)
    rows = [[_linked(each), each.result["backbone"], each.result["seed"], f"{each.score:.4f}",
             size(each.result["memory"]["peak"]), _predicted(each), f"{each.result['parameters']['trainable']:,}",
             "yes" if points[place] in best else ""] for place, each in enumerate(here)]  # fmt: skip
    head = ["run", "backbone", "seed", metric, "peak", "predicted", "trained", "on the front"]
    return [
        scatter(points, f"peak memory ({unit})", metric, large),
        "" if large is not None else "Whether a large or a small value is the better one is not recorded: no front.",
        table(head, rows, figures_from=2),
    ]


def _linked(run: Compared) -> str:
    from html import escape

    return Html(f'<a href="{escape(run.report)}">{escape(run.label)}</a>') if run.report else run.label


def _told(run: Compared) -> str:
    return f"{run.label}, seed {run.result['seed']}: {run.score:.4f}, {size(run.result['memory']['peak'])}"


def _predicted(run: Compared) -> str:
    node = run.result["memory"]
    return (
        f"{size(node['predicted_peak'])} ({_off(node['predicted_peak'], node['peak'])})"
        if node.get("predicted_peak")
        else "-"
    )


def several_page(title: str, lead: str, runs: Sequence[Compared], missing: Sequence[tuple[str, str]]) -> str:
    """The page of a sweep: its runs side by side, and those that have no score with what became of them."""
    return document(title, lead, [
        section("Score against memory", *comparison(runs)),
        section("Without a score", table(["run", "status"], missing, figures_from=2)),
    ])  # fmt: skip
