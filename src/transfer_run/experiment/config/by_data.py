"""`${by_data:STANDARD,{KIND: VALUE}}` of a config: another default where the data set holds data of another kind.

    optimizer:
      lr: "${by_data:3.0e-3,{images: 1.0e-2}}"     1e-2 on what holds images (`about.holds`), 3e-3 on all else

`${by_key:KEY,{VALUE: ITS}}`: what goes with the value of another key, and null where none does, so that a method's own
key may say what its data set, or its training, is to be.

    dataset.few_shot.fraction: "${by_key:method.stage,{few_shot: 0.05}}"

So that a method's learning rate may be what a small search found on the embedded data of each kind
(scripts/search_rates.py, tests/recorded/rates). A word or an experiment that sets the key takes its place.
"""

from __future__ import annotations

from typing import Any

from omegaconf import Container, OmegaConf


def _by_data(standard: Any, of_kind: Any, *, _root_: Container) -> Any:
    """The value for the kind of data that the composed `dataset` node holds."""
    kind = OmegaConf.select(_root_, "dataset.about.holds")
    return of_kind.get(kind, standard)


OmegaConf.register_new_resolver("by_data", _by_data, replace=True)


def _by_key(key: str, of_value: Any, *, _root_: Container) -> Any:
    """The entry for what the composed config says at a dotted key; None where there is no such entry."""
    return of_value.get(OmegaConf.select(_root_, key))


OmegaConf.register_new_resolver("by_key", _by_key, replace=True)
