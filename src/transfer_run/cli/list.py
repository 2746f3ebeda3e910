"""`transfer-list`: what there is to choose from."""

from __future__ import annotations

import argparse
import fnmatch
import json
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from transfer_run.cli.exits import exit_code
from transfer_run.cli.parser import Parser
from transfer_run.errors import UserError, nearest_names
from transfer_run.experiment.config.registry import KINDS, Entry, entries, nearest_choices
from transfer_run.files import user_path

HELP = f"""\
transfer-list KIND [NAME|PATTERN] [--format json|md] [--config-dir DIR]

What there is to choose from, with the paper's title and the family: {", ".join(KINDS)}.

  transfer-list methods
  transfer-list methods lst          its page: what it does, when to choose it, its options, commands, tables, figures
  transfer-list methods 'peft/*'     names that fit the pattern; without * and ? names that contain it
  transfer-list datasets glue --format json
  transfer-list methods --config-dir my_configs     your own beside the packaged ones
"""
TABLE = "table"
"""The group whose choices have no page: `transfer-table NAME` shows them."""
WIDEST = 110
"""Characters in a line of a page: longer ones are hard to read."""


def main() -> None:
    """Entry point."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `transfer-list methods | head` ends quietly
    sys.exit(exit_code(lambda: show(sys.argv[1:])))


def show(arguments: Sequence[str]) -> None:
    """Print the list that the arguments ask for.

    Raises:
        UserError: no such kind, flag, folder, or nothing fits the pattern.
    """
    flags = _read(arguments)
    if flags.help or flags.kind is None:
        print(HELP)
        return
    if flags.kind not in KINDS:
        near = nearest_names(flags.kind, KINDS) or list(KINDS)
        raise UserError(f"There is no list of {flags.kind!r}.", nearest=near, remedy=f"one of {', '.join(KINDS)}")
    folders = [user_path(flags.config_dir, "--config-dir").resolve()] if flags.config_dir else []
    if folders and not folders[0].is_dir():
        raise UserError(f"The folder of configs {flags.config_dir} does not exist.", where="--config-dir")
    listed = entries(KINDS[flags.kind], folders)
    if flags.format != "json" and KINDS[flags.kind] != TABLE and flags.pattern in [entry.name for entry in listed]:
        print(_page(listed, KINDS[flags.kind], flags.pattern, folders, flags.format), end="")
        return
    if flags.format == "md":
        raise UserError("A page is of one choice.", where="--format md", remedy="name it: transfer-list methods NAME",
                        nearest=nearest_choices(flags.pattern or "", [entry.name for entry in listed]))  # fmt: skip
    found = _fitting(listed, flags.pattern)
    if flags.format == "json":
        fields = [{"name": e.name, "title": e.title, "family": e.family, "file": str(e.file)} for e in found]
        print(json.dumps(fields, indent=1, ensure_ascii=False))
        return
    for line in columns(found, shutil.get_terminal_size().columns if sys.stdout.isatty() else 0):
        print(line)


def _page(listed: Sequence[Entry], group: str, name: str, folders: Sequence[Path], form: str) -> str:
    """The page of a choice, and below it the others whose names contain its own."""
    from transfer_run.tables.pages.describe import page
    from transfer_run.tables.pages.page import in_markdown, in_terminal

    told = page(group, name, folders)
    if form == "md":
        return in_markdown(told)
    others = [entry.name for entry in listed if name in entry.name and entry.name != name]
    more = f"\nAlso: {', '.join(others[:8])}{', ...' if len(others) > 8 else ''}\n" if others else ""
    return in_terminal(told, min(shutil.get_terminal_size((100, 24)).columns, WIDEST)) + more


def _fitting(found: Sequence[Entry], pattern: str | None) -> list[Entry]:
    if pattern is None:
        return list(found)
    wildcard = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    fitting = [entry for entry in found if fnmatch.fnmatchcase(entry.name, wildcard)]
    if not fitting:
        raise UserError(f"Nothing is called {pattern!r}.", nearest=nearest_choices(pattern, [e.name for e in found]))
    return fitting


def columns(found: Sequence[Entry], width: int) -> list[str]:
    """Name, family and title side by side; titles are cut at `width` characters, or never when it is 0."""
    first = max((len(entry.name) for entry in found), default=0)
    second = max((len(entry.family) for entry in found), default=0)
    lines = [f"{entry.name:{first}}  {entry.family:{second}}  {entry.title}".rstrip() for entry in found]
    return [line if not width or len(line) <= width else f"{line[: max(width - 3, 1)].rstrip()}..." for line in lines]


def _read(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser("transfer-list")
    parser.add_argument("kind", nargs="?")
    parser.add_argument("pattern", nargs="?")
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--format", choices=["text", "json", "md"], default="text")
    parser.add_argument("--config-dir", "-cd")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
