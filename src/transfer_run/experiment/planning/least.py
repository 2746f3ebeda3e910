"""The least change with which a run fits into a card: every one is planned as the run is, none is estimated.

    changes from the cheapest to the dearest ──> the first one that fits alone
                                             ──> else as many as it takes, the ones that prove idle taken out again

What costs nothing comes first, then what rounds numbers, then what takes time, last what keeps weights in fewer bits
or away from the card. Another method or a smaller batch is another run, not a change of this one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transfer_run.errors import UserError
from transfer_run.experiment.config.composed import Run
from transfer_run.experiment.planning.advice import LOSS_CHUNK, Change, changes

CHEAPEST_FIRST = (
    "trainer.grads_to_none=true",
    "optimizer=adamw_fused",
    "hardware.precision=bf16-mixed",
    "backbone.load=bf16",
    LOSS_CHUNK,
    "hardware.activation_checkpointing=true",
    "optimizer=adafactor",
    "backbone.load=nf4",
    "hardware.precision=bf16-true",
    "backbone.offload=cpu",
)

PeakOf = Callable[[Run], int]


@dataclass(frozen=True)
class Least:
    """What makes a run fit.

    Attributes:
        words: to add to the run's; all that were of use where even they are not enough.
        peak: bytes with them.
        fits: is that within the card?
    """

    words: tuple[str, ...]
    peak: int
    fits: bool


def least_change(run: Run, memory: Mapping[str, Any], through_backbone: bool, peak_of: PeakOf, usable: int) -> Least:
    """The least change with which the run's own batch fits.

    Args:
        memory: the run's own plan.
        through_backbone: does backward visit the backbone's blocks?
        peak_of: bytes of a changed run; UserError where it cannot be.
        usable: bytes that may be allocated.
    """
    search = _Search(run, memory, through_backbone, peak_of)
    for change in search.after(()):
        if int(memory["peak"]) - change.at_most <= usable:
            peak = search.peak((change.words,))
            if peak is not None and peak <= usable:
                return Least((change.words,), peak, True)
    words, peak = search.together(usable)
    if peak > usable:
        return Least(words, peak, False)
    return search.without_idle(words, peak, usable)


class _Search:
    """Changes of one run, by their words."""

    def __init__(self, run: Run, memory: Mapping[str, Any], through_backbone: bool, peak_of: PeakOf) -> None:
        self.run, self.memory, self.through_backbone, self.peak_of = run, memory, through_backbone, peak_of
        self._known: dict[tuple[str, ...], int | None] = {(): int(memory["peak"])}

    def after(self, words: Sequence[str]) -> list[Change]:
        """What may be changed further, the cheapest first; nothing where the words do not go together."""
        run = self.changed(words)
        found = changes(run, self.memory["by_kind"], self.through_backbone) if run is not None else ()
        return sorted(
            (each for each in found if each.words in CHEAPEST_FIRST),
            key=lambda change: CHEAPEST_FIRST.index(change.words),
        )

    def changed(self, words: Sequence[str]) -> Run | None:
        run = self.run
        for word in words:
            there = changes(run, self.memory["by_kind"], self.through_backbone)
            found = next((change.run for change in there if change.words == word), None)
            if found is None:
                return None
            run = found
        return run

    def peak(self, words: tuple[str, ...]) -> int | None:
        """Bytes with these words; None where the method or the backbone refuses them."""
        if words not in self._known:
            run = self.changed(words)
            try:
                self._known[words] = None if run is None else self.peak_of(run)
            except UserError:
                self._known[words] = None
        return self._known[words]

    def together(self, usable: int) -> tuple[tuple[str, ...], int]:
        """One change after the other, the cheapest first, each kept that lowers the peak, until the run fits."""
        words: tuple[str, ...] = ()
        lowest = int(self.memory["peak"])
        for word in CHEAPEST_FIRST:
            peak = self.peak((*words, word))
            if peak is not None and peak < lowest:
                words, lowest = (*words, word), peak
            if lowest <= usable:
                break
        return words, lowest

    def without_idle(self, words: tuple[str, ...], peak: int, usable: int) -> Least:
        for word in reversed(words):  # the dearest first
            fewer = tuple(each for each in words if each != word)
            less = self.peak(fewer)
            if less is not None and less <= usable:
                words, peak = fewer, less
        return Least(words, peak, True)
