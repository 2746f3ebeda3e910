"""Vocabularies of several lengths: matrices with a row a token are cut and padded until all checkpoints agree.

The result has the tuned model's vocabulary, whose tokenizer it takes. Rows that both bases have get the difference; a
row that one of them lacks is zero in both, so that the sum leaves the tuned model's own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from transfer_run.errors import UserError
from transfer_run.methods.merging.engine.checkpoint import Checkpoint, Entry
from transfer_run.methods.merging.engine.tied import VOCABULARY


class Resized(Checkpoint):
    """A checkpoint some of whose tensors have another number of rows: the first ones kept, the others zero.

    Args:
        rows: by name, how many are kept and how many there are.
    """

    def __init__(self, checkpoint: Checkpoint, rows: Mapping[str, tuple[int, int]]) -> None:
        self.where, self.metadata, self.changed = checkpoint.where, checkpoint.metadata, checkpoint.changed
        self.inner, self.rows = checkpoint, dict(rows)
        self.entries = dict(checkpoint.entries)
        for name, (_, count) in rows.items():
            entry = self.entries[name]
            self.entries[name] = Entry(entry.dtype, (count, *entry.shape[1:]))

    def read(self, name: str, start: int, stop: int) -> Tensor:
        if name not in self.rows:
            return self.inner.read(name, start, stop)
        entry = self.entries[name]
        kept = self.rows[name][0] * (entry.numel // max(1, entry.shape[0]))
        values = torch.zeros(stop - start, dtype=entry.dtype)
        if start < kept:
            values[: min(stop, kept) - start] = self.inner.read(name, start, min(stop, kept))
        return values


def of_one_vocabulary(
    target: Checkpoint, start: Checkpoint, tuned: Checkpoint, *, stay: Sequence[str] = (), pad: bool = True
) -> tuple[Checkpoint, Checkpoint, list[str]]:
    """The target's and the source's base with the vocabulary of the tuned model, and what was changed, in lines.

    Args:
        stay: regular expressions of tensors that stay the target's.
        pad: False: vocabularies of several lengths are refused.

    Raises:
        UserError: they differ and may not be resized, or a tensor that is to stay would be.
    """
    cut: dict[str, tuple[int, int]] = {}
    notes = []
    for name in sorted(target.entries.keys() & start.entries.keys() & tuned.entries.keys()):
        shapes = [each.entries[name].shape for each in (target, start, tuned)]
        if not VOCABULARY.search(name) or len(shapes[0]) not in (1, 2) or len({s[1:] for s in shapes}) > 1:
            continue
        rows = [shape[0] for shape in shapes]
        if len(set(rows)) > 1:
            cut[name] = (min(rows), rows[2])
            notes.append(f"{name} has {rows[0]} rows in the target, {rows[1]} in the source, {rows[2]} in the tuned")
    if not cut:
        return target, start, []
    kept = [name for name in cut if any(re.match(pattern, name) for pattern in stay)]
    if kept or not pad:
        raise UserError(
            "The models have vocabularies of several lengths: " + "; ".join(notes) + ".",
            where=f"method.include, method.exclude: {', '.join(kept)} stays the target's"
            if kept
            else "method.pad_vocab=false",
            remedy="let those tensors take part: the result takes the tuned model's tokenizer"
            if kept
            else "method.pad_vocab=true gives the result the tuned model's vocabulary",
        )
    notes = [f"{note}: the result has {cut[note.split()[0]][1]}, new ones the tuned model's own" for note in notes]
    return Resized(target, cut), Resized(start, cut), notes
