"""Results of runs that stay in the repository, under tests/recorded/tables: written on request, read back as cells."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transfer_run.errors import UserError
from transfer_run.experiment.record.log import environment
from transfer_run.files import write_json
from transfer_run.tables.produce import Cell, of_smoke_scale
from transfer_run.tables.render import as_json
from transfer_run.tables.spec import TableSpec, recorded_file


def record(spec: TableSpec, cells: Sequence[Cell]) -> Path:
    """Keep the cells, with the scale and the environment that made them; the file's path.

    Raises:
        UserError: no repository, nothing to keep, or results of the paper's scale would give way to smoke.
    """
    path = recorded_file(spec.name)
    if not path.parents[1].is_dir():
        raise UserError(
            "Results are recorded in a checkout of the repository.", where=str(path), remedy="leave --record out"
        )
    if all(cell.ours is None for cell in cells):
        raise UserError(f"No cell of table {spec.name} was produced.", remedy="the table's notes say why")
    if of_smoke_scale(cells) and path.is_file() and _read(path).get("scale") != "smoke":
        raise UserError("A result of the paper's scale is recorded; smoke does not replace it.", where=str(path),
                        remedy="delete the file first, or leave --record out")  # fmt: skip
    write_json(path, {**json.loads(as_json(spec, cells)), "environment": environment()})
    return path


def recorded(spec: TableSpec) -> list[Cell]:
    """The recorded cells of a table.

    Raises:
        UserError: nothing has been recorded of it.
    """
    path = recorded_file(spec.name)
    if not path.is_file():
        raise UserError(
            f"Nothing has been recorded of table {spec.name}.",
            where=str(path),
            remedy=f"transfer-table {spec.name} --source run --record, or --source plan",
        )
    return [Cell(**{**cell, "source": "recorded"}) for cell in _read(path)["cells"]]


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
