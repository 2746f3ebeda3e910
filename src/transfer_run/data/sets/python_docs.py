"""The documentation inside Python: which part of the library is a docstring of? Or plain text to pretrain on."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from transfer_run.data.asked import asked
from transfer_run.data.rows.splits import SPLITS
from transfer_run.data.text.encoding import TextRows
from transfer_run.data.text.stdlib import Docstring, docstrings, topics
from transfer_run.data.text.text_data import TextData

AREAS = {
    "asyncio": ("asyncio",),
    "decimal": ("_pydecimal", "fractions", "statistics", "numbers", "random"),
    "email": ("email", "mailbox"),
    "http": ("http", "urllib", "wsgiref", "socketserver"),
    "importlib": ("importlib", "pkgutil", "zipimport"),
    "logging": ("logging",),
    "unittest": ("unittest", "doctest"),
    "xml": ("xml", "xmlrpc"),
}
"""The classes: a package and its nearest kin."""

GIVEAWAY = re.compile("|".join((*AREAS, "urllib", "mailbox", "doctest", "wsgi")), re.IGNORECASE)
"""Names that would tell the class by themselves; they are masked in every text."""

MORE = (
    "_pyio", "argparse", "ast", "calendar", "codecs", "collections", "concurrent", "configparser", "contextlib",
    "ctypes", "datetime", "difflib", "dis", "enum", "functools", "imaplib", "inspect", "ipaddress", "json",
    "multiprocessing", "os", "pathlib", "pdb", "pydoc", "shutil", "smtplib", "socket", "ssl", "string", "subprocess",
    "tarfile", "tempfile", "threading", "tokenize", "traceback", "typing", "weakref", "zipfile",
)  # fmt: skip
"""What pretraining reads beside the classes' training rows."""

SHARES = (0.7, 0.1, 0.2)


class PythonDocs(TextData):
    """`dataset.task`: `classification` (eight classes of equal size), `span_corruption` (T5's pretraining) or
    `language_modeling` (decoders').

    The two kinds of plain text hold none of the classification's validation and test rows: a model that was pretrained
    on them has not seen what it is tested on.
    """

    def read_rows(self) -> dict[str, TextRows]:
        classes = tuple(module for modules in AREAS.values() for module in modules)
        if asked(self.dataset).classes:
            parts = classified_rows(docstrings(classes))
            return {name: _labelled(rows) for name, rows in zip(SPLITS, parts, strict=True)}
        docs = docstrings((*classes, *MORE))
        held_out = {doc.name for rows in classified_rows(docs)[1:] for _, doc in rows}
        texts = [doc.text for doc in sorted(docs, key=lambda d: d.rank) if doc.name not in held_out]
        texts = [masked(text) for text in _mixed(texts, topics())]
        bounds = np.cumsum([0.9 * len(texts), 0.05 * len(texts)]).astype(int)
        pieces = (texts[: bounds[0]], texts[bounds[0] : bounds[1]], texts[bounds[1] :])
        return {n: TextRows([{"text": t} for t in piece], None) for n, piece in zip(SPLITS, pieces, strict=True)}

    @property
    def label_names(self) -> tuple[str, ...]:
        return tuple(AREAS) if asked(self.dataset).classes else ()


def masked(text: str) -> str:
    return GIVEAWAY.sub("_", text)


def classified_rows(docs: Sequence[Docstring]) -> list[list[tuple[int, Docstring]]]:
    """(class, docstring) of 70 % train, 10 % validation, 20 % test: as many of each class as the smallest has."""
    ranked = sorted(docs, key=lambda doc: doc.rank)
    by_class = [[doc for doc in ranked if doc.module in modules] for modules in AREAS.values()]
    size = min(map(len, by_class))
    stops = [0, *(round(sum(SHARES[: i + 1]) * size) for i in range(len(SHARES)))]
    parts: list[list[tuple[int, Docstring]]] = [[] for _ in SHARES]
    for number, rows in enumerate(by_class):
        for part, start, stop in zip(parts, stops, stops[1:], strict=False):
            part += [(number, doc) for doc in rows[start:stop]]
    return [sorted(part, key=lambda row: row[1].rank) for part in parts]


def _labelled(rows: Sequence[tuple[int, Docstring]]) -> TextRows:
    texts: list[Mapping[str, Any]] = [{"text": masked(doc.text)} for _, doc in rows]
    return TextRows(texts, np.array([number for number, _ in rows]))


def _mixed(texts: list[str], chapters: list[str]) -> list[str]:
    """Chapters spread evenly among the docstrings, so that every split has both."""
    step = max(1, len(texts) // (len(chapters) + 1))
    for i, chapter in enumerate(chapters):
        texts.insert((i + 1) * step + i, chapter)
    return texts
