"""Hydra's own node of a config: what of it a command line may set, for some of its keys name what is called.

`_target_` of a launcher, a sweeper or a callback is called by Hydra, `()` in a logging config by Python. A file may set
the first of them, in a folder that the user names; a word may not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from transfer_run.errors import UserError
from transfer_run.targets import check_target

CLOSED = ("hydra.callbacks", "hydra.job_logging", "hydra.hydra_logging")
"""What would be called or written beside a run, which has its own log."""
TARGET = "_target_"
PARTS = ("launcher", "sweeper")
OF_HYDRA = ("hydra.", "hydra_plugins.")
"""What the targets of Hydra's own parts begin with."""


def check_hydra_word(override: Override) -> None:
    """Refuse a word of Hydra's that chooses no file, or names what is to be called.

    Raises:
        UserError: with the word.
    """
    line, key = str(override.input_line), override.key_or_group
    if TARGET in line or any(key == closed or key.startswith(f"{closed}.") for closed in CLOSED):
        raise UserError(
            f"{key} is not set by a word: it says what code is called.",
            where=line,
            remedy="leave it out; launchers and sweepers are chosen as hydra/launcher=NAME, hydra/sweeper=NAME",
        )
    if "/" in key and not override.is_delete() and not isinstance(override.value(), str):
        raise UserError(f"{line} chooses no {key}.", where=line, remedy=f"name one file: {key}=NAME")


def check_hydra(cfg: DictConfig, folders: Sequence[Path]) -> None:
    """Refuse a launcher or a sweeper that is none, and targets that are neither Hydra's nor in the user's folders.

    Raises:
        UserError: naming the key.
    """
    node: Any = OmegaConf.to_container(cfg.hydra, resolve=False)
    for part in PARTS:
        if not isinstance(node.get(part), dict):
            raise UserError(
                f"hydra.{part} is a group of keys, not a value.",
                where=f"hydra.{part}={node.get(part)}",
                remedy=f"choose one: hydra/{part}=NAME",
            )
    for key, target in _targets(node, "hydra"):
        if not target.startswith(OF_HYDRA):
            check_target(target, f"{key}: {target}", folders)


def _targets(node: Any, key: str) -> Iterator[tuple[str, str]]:
    """Every `_target_` below a node, with its key."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == TARGET:
                yield f"{key}.{name}", str(value)
            else:
                yield from _targets(value, f"{key}.{name}")
    elif isinstance(node, list):
        for value in node:
            yield from _targets(value, key)
