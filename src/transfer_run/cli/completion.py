"""What TAB offers: Hydra's completion, with nested choices (`dataset=glue/rte`) and the closed choices of a key."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.types import RunMode

from transfer_run.cli.flags import read_flags
from transfer_run.errors import UserError
from transfer_run.experiment.config import registry
from transfer_run.experiment.config.compose import CONFIG_NAME, Composer
from transfer_run.experiment.config.hydra_parts import BashCompletion, Hydra
from transfer_run.experiment.config.origin import GROUPS
from transfer_run.experiment.config.words import separate


def answer(words: Sequence[str]) -> None:
    """`--shell-completion install=SHELL`, `uninstall=SHELL`, or the shell's own `query=SHELL`.

    Raises:
        UserError: no such shell, or none named.
    """
    query = [word.partition("=")[2] for word in words if word.startswith("query=")]
    if query:
        print((" " if query[0] == "bash" else "\n").join(complete(os.environ.get("COMP_LINE", ""))))
        return
    command = Path(sys.argv[0]).name
    try:
        Hydra(command, Composer().loader).shell_completion(CONFIG_NAME, list(words))
    except ValueError as error:
        remedy = f'eval "$({command} --shell-completion install=bash)"'
        raise UserError(f"{str(error).splitlines()[0]}.", where="--shell-completion", remedy=remedy) from error


def complete(line: str) -> list[str]:
    """Words that may stand where the last word of the command line stands.

    Args:
        line: the command line so far, the command's name included.
    """
    words = line.split()[1:]
    word = "" if line[-1:].isspace() or not words else words.pop()
    try:
        flags = read_flags(words)
        others, folders = separate(flags.words, flags.config_dir, ())
    except UserError:
        return []
    plus = word[: len(word) - len(word.lstrip("+"))]
    key, equals, _ = word.lstrip("+").partition("=")
    composer = Composer(folders)
    if equals and key in GROUPS:
        offered = [f"{plus}{key}={name}" for name in registry.names(key, folders)]
    elif equals and (choices := _choices(composer, others, key)):
        offered = [f"{plus}{key}={choice}" for choice in choices]
    else:
        offered = _hydra(composer, others, word)
    return sorted({offer for offer in offered if offer.startswith(word)})


def _choices(composer: Composer, words: list[str], key: str) -> list[str]:
    """The closed choices of a key under the words so far."""
    try:
        kind = composer.types(words).get(key)
    except UserError:
        return []
    return ["null" if choice is None else str(choice) for choice in kind.choices] if kind else []


def _hydra(composer: Composer, words: list[str], word: str) -> list[str]:
    """Hydra's offers, but no group inside a group: a nested choice is written `dataset=glue/rte`."""
    with contextlib.suppress(UserError):
        words = composer.normalise(words)
    quiet = io.StringIO()
    with contextlib.redirect_stderr(quiet), contextlib.suppress(SystemExit, UserError):
        composer.load(words, RunMode.MULTIRUN)
        offers = BashCompletion(composer.loader)._query(CONFIG_NAME, " ".join([*words, word]) if word else "")
        inner = tuple(f"{group}/" for group in (*GROUPS, "table"))
        return [f"{offer}=" if offer in GROUPS else offer for offer in offers if not offer.startswith(inner)]
    return []
