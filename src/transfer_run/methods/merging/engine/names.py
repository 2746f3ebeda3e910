"""One tensor under several names: what wrappers and a library's classes with and without a head put before them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from torch import Tensor

from transfer_run.backbones.weights.files import without_wrapper
from transfer_run.methods.merging.engine.checkpoint import Checkpoint


def same_names(names: Iterable[str], known: Collection[str]) -> dict[str, str]:
    """Every name as `known` has it: without wrappers, and with or without the prefix (`bert.`, `model.`) that makes
    most of them known. What stays unknown (a head) keeps its name."""
    plain = {name: without_wrapper(name) for name in names}
    heads = {f"{part}." for name in (*plain.values(), *known) for part in _beginnings(name)}
    best = max(["", *sorted(heads)], key=lambda prefix: _fitting(plain.values(), known, prefix))
    return {name: _moved(short, known, best) for name, short in plain.items()}


def _beginnings(name: str) -> list[str]:
    """Its first part, and its first two."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in (1, 2) if count < len(parts)]


def _fitting(names: Iterable[str], known: Collection[str], prefix: str) -> int:
    return sum(_moved(name, known, prefix) in known for name in names)


def _moved(name: str, known: Collection[str], prefix: str) -> str:
    """The name with the prefix taken off or put on, where that makes it known; else as it is."""
    if name in known or not prefix:
        return name
    shorter, longer = name.removeprefix(prefix), prefix + name
    return shorter if shorter in known else longer if longer in known else name


class Renamed(Checkpoint):
    """A checkpoint under other names.

    Args:
        names: those of the checkpoint, each with the new one.
    """

    def __init__(self, checkpoint: Checkpoint, names: Mapping[str, str]) -> None:
        self.where, self.metadata, self._inner = checkpoint.where, checkpoint.metadata, checkpoint
        self._own = {new: old for old, new in names.items()}
        self.entries = {new: checkpoint.entries[old] for new, old in self._own.items()}

    def read(self, name: str, start: int, stop: int) -> Tensor:
        return self._inner.read(self._own[name], start, stop)


def under_names_of(checkpoint: Checkpoint, known: Checkpoint) -> Checkpoint:
    """The checkpoint under the names that `known` has for the same tensors."""
    names = same_names(checkpoint.entries, known.entries)
    changed = any(old != new for old, new in names.items()) and len(set(names.values())) == len(names)
    return Renamed(checkpoint, names) if changed else checkpoint
