"""A page: a title and sections of text, commands and rows, as a terminal shows it or as Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from transfer_run.tables.sheet import Sheet, rows_in_markdown, rows_in_terminal


@dataclass(frozen=True)
class Section:
    """A part of a page; what is empty is left out.

    Attributes:
        texts: paragraphs.
        items: terms with what they mean, a pair each.
        commands: command lines.
        lines: lines that stay as they are.
        sheets: tables.
    """

    heading: str
    texts: Sequence[str] = ()
    items: Sequence[tuple[str, str]] = ()
    commands: Sequence[str] = ()
    lines: Sequence[str] = ()
    sheets: Sequence[Sheet] = ()

    def __bool__(self) -> bool:
        return any((self.texts, self.items, self.commands, self.lines, self.sheets))


@dataclass(frozen=True)
class Page:
    """What is told of one choice; empty sections are not shown."""

    name: str
    title: str
    sections: Sequence[Section]


def in_terminal(page: Page, width: int) -> str:
    """The page in lines of `width` characters; command lines are never broken, so that they can be copied."""
    lines = [*_wrapped(": ".join(filter(None, (page.name, page.title))), width), ""]
    for section in filter(None, page.sections):
        lines += [section.heading.upper()] if section.heading else []
        for text in section.texts:
            lines += _wrapped(text, width, "  ")
        for term, meaning in section.items:
            lines += _item(term, meaning, width)
        lines += [f"  {line}" for line in (*section.commands, *section.lines)]
        for sheet in section.sheets:
            lines += [*_wrapped(sheet.title, width, "  "), ""]
            lines += [f"  {line}".rstrip() for line in rows_in_terminal(sheet, width - 2)]
        lines += [""] if lines[-1] else []
    return "\n".join(lines).rstrip() + "\n"


def in_markdown(page: Page) -> str:
    """The page as Markdown."""
    lines = [f"# {page.name}", "", *([page.title, ""] if page.title else [])]
    for section in filter(None, page.sections):
        lines += [f"## {section.heading}", ""] if section.heading else []
        for text in section.texts:
            lines += [text, ""]
        if section.items:
            lines += [
                *(f"- `{term}`" + (f": {_plain(meaning)}" if meaning else "") for term, meaning in section.items),
                "",
            ]
        if section.commands:
            lines += ["```sh", *section.commands, "```", ""]
        if section.lines:
            lines += ["```text", *section.lines, "```", ""]
        for sheet in section.sheets:
            lines += [f"**{sheet.title}**", "", *rows_in_markdown(sheet)]
    return "\n".join(lines).rstrip() + "\n"


def _plain(text: str) -> str:
    """Text that Markdown shows as it is: signs that mean something there are escaped."""
    return "".join(f"\\{sign}" if sign in "\\*_<[]`" else sign for sign in text)


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _item(term: str, meaning: str, width: int, column: int = 32) -> list[str]:
    """The term, and its meaning beside it from a common column on; below it where the term is too long."""
    told = _wrapped(meaning, max(width - column, 20)) or [""]
    head = f"  {term}"
    first = [f"{head:{column}}{told[0]}"] if len(head) < column - 1 else [head, f"{'':{column}}{told[0]}"]
    return [line.rstrip() for line in (*first, *(f"{'':{column}}{line}" for line in told[1:])) if line.strip()]
