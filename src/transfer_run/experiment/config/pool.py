"""The backbones that a scoring method ranks beside the run's own: `method.pool`, from names to configs.

A member is a backbone's name, or NAME:WEIGHTS for one with other weights: `method.pool=[cnn_tiny,vit_tiny:random]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transfer_run.errors import UserError
from transfer_run.experiment.config import registry


def candidate_configs(values: Mapping[str, Any], folders: Sequence[Path] = ()) -> dict[str, dict[str, Any]]:
    """The `backbone` node of every member of `method.pool`, by the member's words; empty where nothing is ranked.

    Args:
        values: the composed config as plain containers.
        folders: the user's own config folders.

    Raises:
        UserError: there is no backbone of that name.
    """
    method = values.get("method") or {}
    if method.get("about", {}).get("shape") != "score":
        return {}
    return {words: _node(words, folders) for words in method.get("pool") or ()}


def _node(words: str, folders: Sequence[Path]) -> dict[str, Any]:
    name, _, weights = words.partition(":")
    if name not in registry.names("backbone", folders):
        raise registry.unknown_choice("backbone", name, folders, where=f"method.pool: {words}")
    node = registry.entry("backbone", name, folders).content.get("backbone")
    if not isinstance(node, Mapping):
        raise UserError(f"The file of backbone={name} sets no `backbone` node.", where=f"method.pool: {words}")
    return {**node, **({"weights": weights} if weights else {})}
