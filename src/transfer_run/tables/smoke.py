"""A table at smoke scale: what ran, and whether every cell works; no figure of it says anything about the paper's."""

from __future__ import annotations

from collections.abc import Sequence

from transfer_run.tables.produce import Cell
from transfer_run.tables.sheet import Group, Sheet
from transfer_run.tables.spec import Row, TableSpec

INTRO = (
    "Carried out on embedded data and tiny backbones in the place of the paper's, to see that every cell works. "
    "Figures of this scale cannot be held beside the paper's, so none are shown; the .json and .csv hold ours."
)


def smoke_sheet(spec: TableSpec, cells: Sequence[Cell], notes: Sequence[str]) -> Sheet:
    """A line a row: what ran, how many runs and plans that were, and how many of its cells work.

    Args:
        notes: why cells are blank.
    """
    rows = []
    for row in spec.rows:
        here = _to_be_made(spec, row, cells)
        made = [cell for cell in here if cell.ours is not None]
        runs = {cell.identity for cell in made if cell.identity}
        rows.append([row.name, f"{len(made)} of {len(here)}", str(len(runs)), _shared(spec, row, made)])
    asked = [cell for row in spec.rows for cell in _to_be_made(spec, row, cells)]
    broken = [cell for cell in asked if cell.ours is None]
    verdict = f"All {len(asked)} cells work." if not broken else f"{len(broken)} of {len(asked)} cells do not work."
    groups = [Group("row"), Group("cells that work"), Group("runs or plans"), Group("what ran")]
    return Sheet(f"{spec.name} [SMOKE SCALE]: {spec.title}", INTRO, groups, rows, notes, [verdict])


def _to_be_made(spec: TableSpec, row: Row, cells: Sequence[Cell]) -> list[Cell]:
    """The row's cells that a run, a plan or a mean of such should fill."""
    origins = {column.name: column.origin for column in spec.columns}
    return [c for c in cells if c.row == row.name and row.words is not None and origins[c.column] != "none"]


def _shared(spec: TableSpec, row: Row, made: Sequence[Cell]) -> str:
    """The words that all runs of a row share."""
    columns = {column.name: column for column in spec.columns}
    told = [spec.cell_words(row, columns[c.column], "smoke") for c in made if columns[c.column].origin != "mean"]
    return " ".join(word for word in (told[0] if told else ()) if all(word in words for words in told))
