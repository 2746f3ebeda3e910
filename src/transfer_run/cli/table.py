"""`transfer-table`: one paper table, the paper's figures beside ours."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from transfer_run.cli.exits import exit_code
from transfer_run.errors import UserError

HELP = """\
transfer-table NAME [--source plan|run|recorded] [--scale paper|smoke] [--format md|csv|json|png] [--out DIR]

One table of a paper, its figures beside ours; NAME is KEY/ID (`transfer-list tables`), or `all`.

  --source plan      memory and parameters by plan: no GPU, no download, seconds (default)
  --source run       carries out the runs that are missing, scores included
  --source recorded  what an earlier --source run left in the repository
  --scale smoke      the same code on embedded data and tiny backbones; cells are marked so
  --format md        to standard output, or as a file into --out; png needs --out or goes to outputs/tables
"""


def main() -> None:
    """Entry point."""
    sys.exit(exit_code(lambda: show(sys.argv[1:])))


def show(arguments: Sequence[str]) -> None:
    """Produce and print, or write, the tables that the arguments ask for.

    Raises:
        UserError: no such table or flag, or nothing recorded.
    """
    flags = _read(arguments)
    if flags.help or flags.name is None:
        print(HELP)
        return
    from transfer_run.tables.spec import names, read

    specs = [read(name) for name in (names() if flags.name == "all" else [flags.name])]
    from transfer_run.tables.produce import produce

    for spec in specs:
        cells = produce(spec, flags.source, flags.scale, say=_say)
        _write(spec, cells, flags)


def _write(spec, cells, flags: argparse.Namespace) -> None:  # type: ignore[no-untyped-def]
    from transfer_run.experiment.record import write_atomically
    from transfer_run.tables.render import as_csv, as_json, as_markdown, picture

    out = Path(flags.out) if flags.out else None
    if flags.format == "png":
        path = (out or Path("outputs/tables")) / f"{spec.name}.png"
        picture(spec, cells, path)
        print(path)
        return
    text = {"md": as_markdown, "json": as_json, "csv": lambda _, c: as_csv(c)}[flags.format](spec, cells)
    if out is None:
        print(text)
        return
    path = out / f"{spec.name}.{flags.format}"
    write_atomically(path, text)
    print(path)


def _say(line: str) -> None:
    """Progress on a terminal only: a log would be all progress."""
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="\r", file=sys.stderr, flush=True)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{message[:1].upper()}{message[1:]}.", remedy="`transfer-table --help` explains the words")


def _read(arguments: Sequence[str]) -> argparse.Namespace:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("name", nargs="?")
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--source", choices=["plan", "run", "recorded"], default="plan")
    parser.add_argument("--scale", choices=["paper", "smoke"], default="paper")
    parser.add_argument("--format", choices=["md", "csv", "json", "png"], default="md")
    parser.add_argument("--out")
    return parser.parse_args(arguments)
