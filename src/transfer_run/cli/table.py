"""`transfer-table`: one paper table, the paper's figures beside ours."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from transfer_run.cli.exits import exit_code
from transfer_run.cli.parser import Parser
from transfer_run.errors import UserError

if TYPE_CHECKING:
    from transfer_run.tables.produce import Cell
    from transfer_run.tables.spec import TableSpec

HELP = """\
transfer-table NAME [--source plan|run|recorded] [--scale paper|smoke] [--format md|csv|json|png|html] [--out DIR]
               [--record] [--config-dir DIR] [OVERRIDES]

One table of a paper, its figures beside ours; NAME is KEY/ID (`transfer-list tables`), or `all`.

  --source plan      memory and parameters by plan: no GPU, no download, seconds (default)
  --source run       carries out the runs that are missing, scores included
  --source recorded  what an earlier --source run --record left in the repository (tests/recorded/tables)
  --record           with --source run: keep the result in the repository, with its scale and environment
  --scale smoke      the same code on embedded data and tiny backbones: says what ran and whether every cell works
  --format md        what is printed (png, html: the file's path; on a terminal md is laid out to fit it); all five
                     files are written in any case: html is a page to look at, with the picture and the rows
  --out DIR          where to, instead of outputs/tables/KEY_ID
  --config-dir DIR   your own methods, data sets, backbones, and tables in DIR/table/KEY/ID.yaml, which may ask for
                     whatever the shipped ones do (memory.peak, inference.peak, metrics.test/accuracy)
  OVERRIDES          words for every cell, e.g. output_dir=FOLDER hardware=1gpu
"""
DEFAULT_OUT = Path("outputs") / "tables"


def main() -> None:
    """Entry point."""
    sys.exit(exit_code(lambda: show(sys.argv[1:])))


def show(arguments: Sequence[str]) -> None:
    """Produce, print and write the tables that the arguments ask for.

    Raises:
        UserError: no such table or flag, or nothing recorded.
    """
    flags = _read(arguments)
    if flags.help or flags.name is None:
        print(HELP)
        return
    from transfer_run.tables.spec import names, read, recorded_file

    folders = _folders(flags.config_dir)
    every = flags.name == "all"
    specs = [read(name, folders) for name in (names(folders) if every else [flags.name])]
    _check_words(flags.overrides)
    flags.overrides += [f"hydra.searchpath=[{json.dumps(str(folder), ensure_ascii=False)}]" for folder in folders]
    from transfer_run.files import make_folder
    from transfer_run.tables.produce import check_extra, produce
    from transfer_run.tables.records import record, recorded

    if flags.source == "recorded" and every:
        specs = [spec for spec in specs if recorded_file(spec.name).is_file()]
    if flags.out:
        make_folder(Path(flags.out), f"--out {flags.out}")
    if flags.overrides and flags.source != "recorded" and not every:
        check_extra(specs[0], flags.scale, flags.overrides)
    for count, spec in enumerate(specs, 1):
        begin = time.perf_counter()
        if flags.source == "recorded":
            cells = recorded(spec)
        else:
            cells = produce(spec, flags.source, flags.scale, _cell_said, flags.overrides)
        folder = _folder(flags.out, spec, every)
        _write(spec, cells, folder)
        if flags.record:
            _say(f"{spec.name}: recorded in {record(spec, cells)}")
        print(_shown(spec, cells, flags.format, folder), flush=True)
        made = sum(cell.ours is not None for cell in cells)
        place = f"{count}/{len(specs)} " if every else ""
        _say(
            f"{place}{spec.name}: {made} of {len(cells)} cells by us, {time.perf_counter() - begin:.0f} s -> {folder}/"
        )


def _check_words(words: Sequence[str]) -> None:
    """Raises UserError for a word that is no override, or that would turn every row into one method's."""
    for word in words:
        key, equals, _ = word.lstrip("+").partition("=")
        if not equals and not key.startswith("~"):
            raise UserError(
                f"{word!r} is not KEY=VALUE.",
                where=word,
                remedy="one table at a time; words for its cells are KEY=VALUE",
            )
        if key == "method":
            raise UserError(
                "A table's rows name their methods.", where=word, remedy="leave it out: every row would be that method"
            )


def _folders(config_dir: str | None) -> list[Path]:
    """The user's folder of configs.

    Raises:
        UserError: it does not exist.
    """
    if config_dir is None:
        return []
    folder = Path(config_dir).expanduser().resolve()
    if not folder.is_dir():
        raise UserError(f"The folder of configs {config_dir} does not exist.", where="--config-dir")
    return [folder]


def _folder(out: str | None, spec: TableSpec, every: bool) -> Path:
    if out is None:
        return DEFAULT_OUT / spec.file_name
    return Path(out) / spec.file_name if every else Path(out)


def _write(spec: TableSpec, cells: Sequence[Cell], folder: Path) -> None:
    """KEY_ID.md, .csv, .json, .html and .png."""
    from transfer_run.files import write_atomically
    from transfer_run.tables.picture import picture

    for form in ("md", "csv", "json", "html"):
        write_atomically(folder / f"{spec.file_name}.{form}", _text(spec, cells, form))
    picture(spec, cells, folder / f"{spec.file_name}.png")


def _text(spec: TableSpec, cells: Sequence[Cell], form: str) -> str:
    from transfer_run.tables.render import as_csv, as_json, as_markdown

    if form == "html":
        from transfer_run.tables.html.paper import table_page

        return table_page(spec, cells)
    return as_csv(cells) if form == "csv" else {"md": as_markdown, "json": as_json}[form](spec, cells)


def _shown(spec: TableSpec, cells: Sequence[Cell], form: str, folder: Path) -> str:
    """What is printed: on a terminal a table that fits it, the file's own text into a pipe."""
    if form == "md" and sys.stdout.isatty():
        from transfer_run.tables.render import sheet
        from transfer_run.tables.sheet import in_terminal

        return in_terminal(sheet(spec, cells), shutil.get_terminal_size().columns)
    return str(folder / f"{spec.file_name}.{form}") if form in ("png", "html") else _text(spec, cells, form)


def _cell_said(line: str) -> None:
    """Cell by cell on a terminal only: a log would be all progress."""
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="\r", file=sys.stderr, flush=True)


def _say(line: str) -> None:
    clear = "\r\033[K" if sys.stderr.isatty() else ""
    print(f"{clear}{line}", file=sys.stderr, flush=True)


def _read(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser("transfer-table")
    parser.add_argument("name", nargs="?")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--source", choices=["plan", "run", "recorded"], default="plan")
    parser.add_argument("--scale", choices=["paper", "smoke"], default="paper")
    parser.add_argument("--format", choices=["md", "csv", "json", "png", "html"], default="md")
    parser.add_argument("--out")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--config-dir", "-cd")
    flags = parser.parse_intermixed_args(list(arguments))
    if flags.record and flags.source != "run":
        raise UserError("Only the result of runs is recorded.", where="--record", remedy="add --source run")
    return flags


if __name__ == "__main__":
    main()
