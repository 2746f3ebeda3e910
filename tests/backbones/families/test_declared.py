"""What families say they have is what their classes have; what they lack is refused by its name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from transfer_run.backbones.base import Backbone, State
from transfer_run.backbones.declared import HAS, families, takes
from transfer_run.backbones.load import backbone_class
from transfer_run.errors import UserError

OVERRIDES = {
    "blocks": "_step", "parts": "parts", "attention": "heads", "prefix": "prepend", "queries": "attend_queries",
    "pool": "pool", "memory": "with_memory", "language_head": "_words", "cache": "new_cache",
    "projection": "projection", "forecast": "forecast",
}  # fmt: skip
"""The method of `Backbone` that a class overrides where it has it."""


def test_everything_there_is_to_have_is_told_by_a_method() -> None:
    assert set(OVERRIDES) == set(HAS)


@pytest.mark.parametrize("name", sorted(families()))
def test_a_class_has_what_its_family_says(name: str) -> None:
    for kind in ("", *families()[name].targets):
        found = backbone_class({"family": name, "architecture": {"model_type": kind or None}})
        has = {word for word, method in OVERRIDES.items() if getattr(found, method) is not getattr(Backbone, method)}
        assert has == set(families()[name].has)


class OnePiece(Backbone):
    """A model without blocks and without features for a head: pixels to pixels."""

    family = "piece"
    stacks = ("image",)

    @classmethod
    def from_architecture(cls, config: dict[str, Any]) -> OnePiece:
        return cls(nn.Conv2d(1, 1, 3, padding=1), config)

    from_folder = from_architecture  # type: ignore[assignment]

    def width(self, stack: str, index: int | None = None) -> int:
        return 1

    def _embed(self, batch: Any, stack: str | None = None, memory: State | None = None) -> State:
        return State(batch["pixel_values"], "image")

    def finish(self, state: State) -> torch.Tensor:
        return self.model(state.hidden)


def test_the_required_interface_is_small() -> None:
    piece, images = OnePiece.from_architecture({"name": "piece"}), torch.randn(2, 1, 4, 4)
    state = piece.run(piece.embed({"pixel_values": images}))
    assert torch.equal(piece.finish(state), piece.model(images))
    asked = {
        "parts": lambda: piece.parts("image", 0), "attention": lambda: piece.heads("image"),
        "blocks": lambda: piece.step(state),
        "prefix": lambda: piece.prepend(state, images), "queries": lambda: piece.check_queries("image"),
        "pool": lambda: piece.pool(images, state), "memory": lambda: piece.with_memory(state, state),
        "language_head": lambda: piece.language_logits(images), "cache": piece.new_cache,
        "projection": lambda: piece.projection("image"),
        "forecast": lambda: piece.forecast(images, {}, 1, [0]),
    }  # fmt: skip
    assert set(asked) == set(HAS)
    for what, ask in asked.items():
        with pytest.raises(UserError) as error:
            ask()
        assert error.value.what == f"piece (family piece) does not have {HAS[what]}."


def test_what_a_method_asks_decides_where_it_works() -> None:
    work = {name for name, family in families().items() if takes({"asks": ["language_head", "cache"]}, family)}
    assert work == {"t5", "decoder"}
    assert not takes({"backbones": ["t5"], "asks": ["projection"]}, families()["t5"])
    assert all(takes({}, family) for family in families().values())
