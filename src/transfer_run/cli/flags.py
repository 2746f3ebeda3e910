"""The flags that `transfer-run` and `transfer-plan` share: Hydra's own, with our error messages."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.metadata import version

from transfer_run.cli.parser import Parser
from transfer_run.errors import UserError, nearest_names


def read_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """Flags and words of a command line, in any order; `words` are the KEY=VALUE ones.

    Raises:
        UserError: no such flag, or a flag without its value.
    """
    parser = Parser("transfer-run")
    parser.add_argument("words", nargs="*")
    parser.add_argument("--version", action="version", version=f"transfer-run {version('transfer-run')}")
    for names in (("--help", "-h"), ("--hydra-help",), ("--run", "-r"), ("--multirun", "-m"), ("--resolve",)):
        parser.add_argument(*names, action="store_true")
    parser.add_argument("--shell-completion", "-sc", action="store_true")
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    parser.add_argument("--info", "-i", const="all", nargs="?", choices=INFO)
    parser.add_argument("--package", "-p")
    parser.add_argument("--config-dir", "-cd")
    flags, unknown = parser.parse_known_intermixed_args(_with_info(arguments))
    if unknown:
        known = [name for action in parser._actions for name in action.option_strings]
        raise UserError(
            f"There is no flag {unknown[0]!r}.",
            nearest=nearest_names(unknown[0], known),
            remedy="`transfer-run --help` names the flags",
        )
    return flags


INFO = ["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"]


def _with_info(arguments: Sequence[str]) -> list[str]:
    """`--info method=lst` as `--info all method=lst`: a word is no kind of information."""
    following = [*arguments, ""][1:]
    return [
        f"--info={INFO[0]}" if argument in ("--info", "-i") and "=" in after else argument
        for argument, after in zip(arguments, following, strict=True)
    ]
