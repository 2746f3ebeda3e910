"""`transfer-run run=FOLDER ...`: what is asked of a finished run: export, test again, report, match."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from glob import has_magic
from pathlib import Path

from transfer_run.errors import DONE, RunFailed, UserError, nearest_names
from transfer_run.files import user_path
from transfer_run.run_folder import is_run

SHOWN = 5
"""Matches that are listed."""


def of_finished(words: Sequence[str], multirun: bool) -> int:
    """What `run=FOLDER` and one of `export=`, `test=`, `report=` and `match=` ask of a run, whatever its words were.

    Raises:
        UserError, RunFailed.
    """
    given = dict(word.split("=", 1) for word in words if "=" in word)
    run = user_path(given.get("run", ""), "run")
    asked = set(given) - {"run"} - ({"minimum"} if "match" in given else set())
    if asked not in ({"export"}, {"test"}, {"report"}, {"match", "among"}) or len(words) != len(given) or multirun:
        raise UserError(
            "run=FOLDER is about a finished run, and goes with export=DIR, test=PATH, report=html, or match=TEXT and "
            "among=FILE alone.",
            where=" ".join(["-m"] * multirun + list(words)),
            remedy="transfer-run run=outputs/runs/... export=DIR, or test=PATH, or test=own, or report=html, "
            "or match=TEXT among=FILE",
        )
    if given.get("report", "html") != "html":
        raise UserError(f"A report is html, not {given['report']!r}.", where="report", nearest=["report=html"])
    from transfer_run.run_folder import read_result

    if read_result(run) is None:
        what = "has not finished" if run.is_dir() else "does not exist"
        near = [] if run.is_dir() else _runs_like(run)
        raise UserError(
            f"The run {run} {what}.", where=f"run={run}", nearest=near, remedy="name the folder of a finished run"
        )
    if "test" in given:
        return _test(run, given["test"])
    if "match" in given:
        return _match(run, given["match"], given["among"], given.get("minimum", "0.5"))
    if "report" in given:
        from transfer_run.tables.html.runs import write_report

        print(f"report: {write_report(run)}")
        return DONE
    from transfer_run.experiment.models.export import export_run

    print(f"exported to {export_run(run, Path(given['export']))}")
    return DONE


def _runs_like(run: Path) -> list[str]:
    """Folders of runs, beside the one that is named or where runs land, whose names are near."""
    places = [run.parent, *Path("outputs/runs").glob("*")]
    folders = [folder for place in places if place.is_dir() for folder in sorted(place.iterdir()) if is_run(folder)]
    named = {folder.name: str(folder) for folder in folders}
    held = [name for name in named if run.name and run.name in name]  # an identity, or a part of the name
    return [named[name] for name in (held or nearest_names(run.name, named))][:3]


def _test(run: Path, test: str) -> int:
    """Scores and answers of the model, beside its record."""
    if test != "own" and not user_path(test, "test").exists() and not has_magic(test):
        raise UserError(
            "There is no such file or folder.",
            where=f"test={test}",
            remedy="name the test data, or the run's own: test=own",
        )
    import traceback

    from transfer_run.experiment.training.tested_again import test_again
    from transfer_run.files import read_json
    from transfer_run.run_folder import LOG_FILE, TESTS

    _find_own_files(run)
    try:
        path = test_again(run, test)
    except UserError as error:
        if "dataset." not in error.remedy:
            raise
        remedy = "write these data as the run's own are written: it is tested with its own config"
        raise UserError(error.what, where=error.where, nearest=error.nearest, remedy=remedy) from error
    except Exception as error:
        log = run / TESTS / LOG_FILE
        with log.open("a", encoding="utf-8") as file:
            traceback.print_exc(file=file)
        raise RunFailed(log, f"{type(error).__name__}: {error}") from error
    found = read_json(path, "test again")
    for name, value in found["metrics"].items():
        print(f"{name}  {value}")
    print(f"{found['rows']} rows tested: {path}")
    return DONE


def _match(run: Path, question: str, among: str, minimum: str) -> int:
    """The known texts that come nearest, and the one that is the answer, if there is one."""
    least = _probability(minimum)
    _find_own_files(run)
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table
    from rich.text import Text

    from transfer_run.experiment.models.matching import match

    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("pairs")
        found = match(run, question, among, lambda done, of: progress.update(bar, completed=done, total=of))
    table = Table(title=f"the likeliest of {len(found.ranked)} texts")
    answered = any(each.answer for each in found.ranked)
    for column in ("row", found.called, "text", *(["answer"] if answered else [])):
        table.add_column(Text(column))
    for each in found.ranked[:SHOWN]:
        said = [Text(each.text), *([Text(each.answer)] if answered else [])]  # as they stand: brackets are no markup
        table.add_row(str(each.row), f"{each.probability:.4f}", *said)
    Console().print(table)
    if found.cut:
        print(f"{found.cut} of {len(found.ranked)} pairs are longer than the model reads, and were cut")
    best = found.best(least)
    print(f"no match: none reaches {least:g}" if best is None else f"match: row {best.row}, {best.text}")
    return DONE


def _probability(minimum: str) -> float:
    try:
        found = float(minimum)
    except ValueError:
        found = math.nan
    if math.isnan(found):
        raise UserError(f"{minimum!r} is no number.", where="minimum", remedy="a probability: minimum=0.5")
    return found


def _find_own_files(run: Path) -> None:
    """Modules of the user's own, as the run found them."""
    from transfer_run.run_folder import read_config

    sys.path += [folder for folder in read_config(run).get("search_path") or () if folder not in sys.path]
