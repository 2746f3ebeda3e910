"""Rows and columns of text, as Markdown or as a terminal shows them: whole, turned, or in blocks of columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

NARROWEST = 9
"""Characters that a heading may be wrapped to: below that, words would be torn."""
READABLE = 30
"""Characters that text is wrapped to at the least."""
GAP = "  "


@dataclass(frozen=True)
class Group:
    """Columns that stand together under one heading.

    Attributes:
        parts: what each of them is, as `paper`, `ours`; empty: one column, that the heading alone names.
    """

    heading: str
    parts: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """How many columns."""
        return max(1, len(self.parts))


@dataclass(frozen=True)
class Sheet:
    """What is shown of a table.

    Attributes:
        intro: a paragraph before the rows.
        groups: its columns; the first one names the rows.
        rows: a text for every column of all groups.
        notes: said below, one a line; summary: last.
    """

    title: str
    intro: str
    groups: Sequence[Group]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    summary: Sequence[str] = field(default=())


def figure(value: float | None) -> str:
    """Four significant digits, whole numbers whole; nothing for a missing figure."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 10000 and value == int(value) else f"{value:.4g}"


def in_markdown(sheet: Sheet) -> str:
    """The whole sheet as Markdown."""
    lines = [f"## {sheet.title}", "", *([sheet.intro, ""] if sheet.intro else []), *rows_in_markdown(sheet)]
    lines += [*(f"- {note}" for note in sheet.notes), "", *sheet.summary]
    return "\n".join(lines).rstrip() + "\n"


def rows_in_markdown(sheet: Sheet) -> list[str]:
    """The rows alone under their headings, and an empty line; nothing where there are no rows."""
    if not sheet.rows:
        return []
    head = []
    for group in sheet.groups:
        head += [f"{group.heading}, {group.parts[0]}", *group.parts[1:]] if group.parts else [group.heading]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return [*lines, *(f"| {' | '.join(row)} |" for row in sheet.rows), ""]


def in_terminal(sheet: Sheet, width: int) -> str:
    """The whole sheet in lines of at most `width` characters.

    Columns that do not fit beside each other are turned into lines where the rows then do, and stand in blocks below
    each other otherwise; a word that is longer than a line alone stands out.
    """
    lines = [*_wrapped(sheet.title, width), ""]
    lines += [*_wrapped(sheet.intro, width), ""] if sheet.intro else []
    lines += rows_in_terminal(sheet, width)
    for note in sheet.notes:
        lines += textwrap.wrap(note, width, initial_indent="- ", subsequent_indent="  ", break_long_words=False)
    lines += ["", *(line for text in sheet.summary for line in _wrapped(text, width))]
    return "\n".join(lines).rstrip() + "\n"


def rows_in_terminal(sheet: Sheet, width: int) -> list[str]:
    """The rows alone, and an empty line after each block of columns."""
    if not sheet.rows:
        return []
    blocks = _blocks(sheet.groups, sheet.rows, width)
    if len(blocks) > 1:
        turned = _blocks(*_turned(sheet), width)
        blocks = turned if len(turned) == 1 else blocks
    return [line for block in blocks for line in (*block, "")]


def _turned(sheet: Sheet) -> tuple[list[Group], list[list[str]]]:
    """The sheet's rows as columns."""
    groups = [Group(""), *(Group(row[0]) for row in sheet.rows)]
    rows, place = [], 1
    for group in sheet.groups[1:]:
        for part in group.parts or ("",):
            rows.append([", ".join(filter(None, (group.heading, part))), *(row[place] for row in sheet.rows)])
            place += 1
    return groups, rows


@dataclass(frozen=True)
class _Piece:
    """A group of columns as it is laid out: the cells of each column, and its width in characters."""

    group: Group
    columns: list[list[str]]
    widths: list[int]

    @property
    def total(self) -> int:
        return sum(self.widths) + len(GAP) * (len(self.widths) - 1)


def _blocks(groups: Sequence[Group], rows: Sequence[Sequence[str]], width: int) -> list[list[str]]:
    """The lines of each block of columns; the first column stands before every one."""
    names = _column([groups[0].heading, *(row[0] for row in rows)], max(24, width // 3))
    first = max(len(line) for cell in names for line in cell)
    blocks: list[list[_Piece]] = [[]]
    used, place = first, 1
    for group in groups[1:]:
        columns = [[row[place + number] for row in rows] for number in range(group.size)]
        place += group.size
        left = width - used - len(GAP)
        piece = _piece(group, columns, left if left >= READABLE else width - first - len(GAP))
        if piece.total > left and blocks[-1]:
            blocks.append([])
            used = first
        blocks[-1].append(piece)
        used += len(GAP) + piece.total
    return [_block(names, first, block) for block in blocks]


def _piece(group: Group, columns: list[list[str]], room: int) -> _Piece:
    """A group in at most `room` characters, if its figures and the words of its heading are no longer than that."""
    widths = [max(map(len, (part, *column))) for part, column in zip(group.parts or ("",), columns, strict=True)]
    if group.size == 1 and not all(map(_is_figure, columns[0])):  # text: it may be wrapped
        widths = [min(widths[0], max(READABLE, room))]
    words = max((len(word) for word in group.heading.split()), default=0)
    total = sum(widths) + len(GAP) * (len(widths) - 1)
    widths[-1] += max(0, max(words, min(NARROWEST, len(group.heading))) - total)
    return _Piece(group, columns, widths)


def _block(names: Sequence[list[str]], first: int, block: Sequence[_Piece]) -> list[str]:
    """Headings, what their columns are, a rule, and the rows."""
    heads = [_column([piece.group.heading], piece.total)[0] for piece in block]
    lines = _beside([names[0], *heads], [first, *(piece.total for piece in block)], left=len(block) + 1)
    widths = [first, *(wide for piece in block for wide in piece.widths)]
    if any(piece.group.parts for piece in block):
        lines += _beside([[""], *([part] for piece in block for part in piece.group.parts or ("",))], widths)
    lines.append("─" * (sum(widths) + len(GAP) * (len(widths) - 1)))
    columns = [column for piece in block for column in piece.columns]
    for number, name in enumerate(names[1:]):
        cells = [_column([column[number]], wide)[0] for column, wide in zip(columns, widths[1:], strict=True)]
        lines += _beside([name, *cells], widths)
    return lines


def _beside(cells: Sequence[list[str]], widths: Sequence[int], left: int = 1) -> list[str]:
    """Cells of several lines side by side, the first `left` of them flush left and figures flush right."""
    high = max(len(cell) for cell in cells)
    lines = []
    for number in range(high):
        fields = [cell[number] if number < len(cell) else "" for cell in cells]
        sides = ["<" if place < left or not _is_figure(cell[0]) else ">" for place, cell in enumerate(cells)]
        lines.append(GAP.join(f"{text:{side}{wide}}" for text, side, wide in zip(fields, sides, widths, strict=True)))
    return [line.rstrip() for line in lines]


def _is_figure(text: str) -> bool:
    return not text.strip("*~+-%, .e0123456789") or text in ("paper", "ours", "difference")


def _column(cells: Sequence[str], width: int) -> list[list[str]]:
    return [
        textwrap.wrap(cell, max(width, 1), break_long_words=False, break_on_hyphens=False) or [""] for cell in cells
    ]


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, break_long_words=False)
