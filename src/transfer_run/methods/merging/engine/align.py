"""Which tensors are merged, which are taken over as they are, which stand in the way: before anything is written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from transfer_run.errors import UserError
from transfer_run.methods.merging.engine.checkpoint import Checkpoint, Entry
from transfer_run.methods.merging.engine.tied import HEAD, UNTIE, VOCABULARY, refuse_some_tied, tied_names

STATISTICS = re.compile(r"(^|\.)running_(mean|var)$")

RECOMPUTED = re.compile(r"(^|\.)(rotary_emb\.inv_freq|attn\.masked_bias|attention\.masked_bias)$")
"""Buffers that old versions of a library saved and every model makes anew: they are no weights."""

CAUSAL_MASK = re.compile(r"(^|\.)(attn|attention)\.bias$")
"""Another one, (1, 1, length, length); a bias of that name has one dimension."""


@dataclass
class Layout:
    """What a merge does with each tensor.

    Attributes:
        merged: entries of the merged tensors as they will be written, in string order of their names.
        averaged: running statistics of batch norms: no weights, so no rule but the plain mean is for them.
        copied: tensors taken over unchanged, and from where (excluded ones, buffers).
        shortened: merged vocabularies without the padding rows that only the base has: the models' own description
            (config.json) fits the result, the base's does not.
        tied: further names of merged tensors that hold the same values.
    """

    merged: dict[str, Entry] = field(default_factory=dict)
    averaged: dict[str, Entry] = field(default_factory=dict)
    copied: dict[str, Checkpoint] = field(default_factory=dict)
    tied: dict[str, list[str]] = field(default_factory=dict)
    shortened: list[str] = field(default_factory=list)

    @property
    def numel(self) -> int:
        """d: scalars that are merged; tied ones count once."""
        return sum(entry.numel for entry in self.merged.values())

    def entries(self) -> dict[str, Entry]:
        """Everything that the merged checkpoint holds."""
        tied = {other: self.merged[name] for name, others in self.tied.items() for other in others}
        copied = {name: source.entries[name] for name, source in self.copied.items()}
        return {**self.merged, **self.averaged, **tied, **copied}


def align(
    models: Sequence[Checkpoint],
    base: Checkpoint | None,
    exclude: Sequence[str] = (),
    *,
    mismatched: str = "refuse",
) -> Layout:
    """Compare the checkpoints and decide.

    Args:
        models: at least one.
        base: theta_0; None where the rule needs none: then the first model stands for it.
        exclude: regular expressions (matched from the start of the name): taken from the base, else the first model.
        mismatched: `refuse`, or `exclude` tensors that not all models have in one shape (task heads).

    Raises:
        UserError: naming every tensor that is missing somewhere, or of another shape.
    """
    if not models:
        raise UserError("There is nothing to merge.", where="method.models", remedy="method.models=[FOLDER,FOLDER]")
    first = base or models[0]
    names = _names(models, base)
    excluded = {name for name in names if any(re.match(pattern, name) for pattern in exclude)}
    excluded |= {name for name in names if _is_recomputed(name, (first, *models))}
    refuse_some_tied((first, *models), names - excluded)
    layout = Layout(tied=tied_names((first, *models), names - excluded))
    misfits = _place(names - excluded, layout, models, base)
    if misfits and mismatched == "refuse":
        raise UserError(
            f"The checkpoints do not fit each other: {len(misfits)} tensors are missing somewhere or differ.",
            where="\n           ".join(misfits.values()),
            remedy="merge models fine-tuned from one checkpoint; leave task heads out: method.exclude=['classifier.*']"
            + (f"; where a language head is tied in some, {UNTIE}" if any(map(HEAD.search, misfits)) else ""),
        )
    excluded |= misfits.keys()
    for name in layout.tied.keys() - layout.merged.keys():  # left out after all, with all its names
        excluded.update(layout.tied.pop(name))
    if base is not None and any(model.changed is not None for model in models):
        excluded |= base.entries.keys() - names
    layout.copied |= {name: first for name in sorted(excluded) if name in first.entries}
    if not layout.merged and not layout.averaged:
        raise UserError(
            "Not one tensor would be merged.",
            where=", ".join(dict.fromkeys(c.where for c in (first, *models))),
            remedy="name models of one architecture, with tensors of the same names; method.exclude leaves some",
        )
    return layout


def _place(names: set[str], layout: Layout, models: Sequence[Checkpoint], base: Checkpoint | None) -> dict[str, str]:
    """Put every name where it belongs in the layout; what cannot be merged, and why."""
    first, misfits = base or models[0], {}
    tied = {other for others in layout.tied.values() for other in others}
    for name in sorted(names - tied):
        entry = next(c.entries[name] for c in (first, *models) if name in c.entries)
        if not entry.dtype.is_floating_point:
            layout.copied |= {name: first} if name in first.entries else {}
            continue
        shape, misfit = _fit(name, models, base)
        if misfit is None:
            kind = layout.averaged if STATISTICS.search(name) else layout.merged
            kind[name] = Entry(entry.dtype, shape)
            layout.shortened += [name] if base is not None and base.entries[name].shape != shape else []
        else:
            misfits[name] = misfit
    return misfits


def _is_recomputed(name: str, checkpoints: Sequence[Checkpoint]) -> bool:
    entry = next(each.entries[name] for each in checkpoints if name in each.entries)
    mask = bool(CAUSAL_MASK.search(name)) and len(entry.shape) == 4 and entry.shape[:2] == (1, 1)
    return mask or bool(RECOMPUTED.search(name))


def _names(models: Sequence[Checkpoint], base: Checkpoint | None) -> set[str]:
    """Every name that somebody has; for adapters only what one of them changes."""
    names = {name for model in models for name in (model.entries if model.changed is None else model.changed)}
    if base is not None and any(model.changed is None for model in models):
        names |= base.entries.keys()
    return names


def _fit(name: str, models: Sequence[Checkpoint], base: Checkpoint | None) -> tuple[tuple[int, ...], str | None]:
    """The shape of the merged tensor, and what stands in the way if anything does."""
    everyone = [base, *models] if base is not None else list(models)
    missing = [c.where for c in everyone if name not in c.entries]
    if missing:
        return (), f"{name}: missing in {', '.join(missing)}"
    odd = [f"{c.entries[name].dtype} in {c.where}" for c in everyone if not c.entries[name].dtype.is_floating_point]
    if odd:
        return (), f"{name}: {', '.join(odd)}"
    shapes = {model.entries[name].shape for model in models}
    known = models[0].entries[name].shape
    if len(shapes) == 1:
        own = base.entries[name].shape if base is not None else known
        longer = len(own) == 2 and own[1:] == known[1:] and own[0] > known[0]
        if own == known or (longer and VOCABULARY.search(name)):
            return known, None
    return (), f"{name}: " + ", ".join(f"{list(c.entries[name].shape)} in {c.where}" for c in everyone)
