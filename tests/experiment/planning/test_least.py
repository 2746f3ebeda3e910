"""The least change that makes a run fit: the cheapest that is enough by its own plan, never more than it takes."""

from __future__ import annotations

from transfer_run.experiment.config.compose import compose
from transfer_run.experiment.planning.least import CHEAPEST_FIRST, Least
from transfer_run.experiment.planning.plan import plan_run

WORDS = ["method=full", "backbone=vit_tiny", "backbone.weights=random:0", "dataset=digits", "dataset.batch_size=512"]
BARE = ["plan.context=1B", "plan.cached=0"]


def peak(*words: str) -> int:
    return int(plan_run(compose([*WORDS, *words])).memory["peak"])


def least(budget: int, *words: str) -> Least | None:
    return plan_run(compose([*WORDS, *words, f"plan.budget={budget + 1}B", *BARE])).least()


def test_what_fits_needs_no_change() -> None:
    assert least(peak()) is None


def test_the_cheapest_that_is_enough() -> None:
    """Checkpointing saves more, but costs time: it is not named where half precision is enough."""
    mixed = peak("hardware.precision=bf16-mixed")
    assert peak("hardware.activation_checkpointing=true") < mixed < peak()
    assert least(mixed) == Least(("hardware.precision=bf16-mixed",), mixed, True)


def test_several_where_one_is_not_enough_and_no_idle_one() -> None:
    words = ("hardware.precision=bf16-mixed", "hardware.activation_checkpointing=true")
    both = peak(*words)
    assert both < min(peak(word) for word in words)
    found = least(both)
    assert found is not None
    assert found.fits
    assert found.peak <= both
    assert peak(*found.words) == found.peak
    for word in found.words:
        assert peak(*(each for each in found.words if each != word)) > both, f"{word} is idle"


def test_what_nothing_makes_fit_is_said_with_the_lowest_that_was_reached() -> None:
    found = least(2**20)
    assert found is not None
    assert not found.fits
    assert found.peak > 2**20
    assert peak(*found.words) == found.peak
    assert set(found.words) <= set(CHEAPEST_FIRST)


def test_several_devices_are_planned_as_such() -> None:
    shared = ["plan.devices=2", "plan.strategy=fsdp"]
    mixed = peak("hardware.precision=bf16-mixed", *shared)
    found = least(mixed, *shared)
    assert found is not None
    assert found.peak == mixed
