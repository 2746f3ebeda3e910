"""`transfer-run`: carry out one run, or with `-m` a sweep of runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from transfer_run.cli.carry import carry
from transfer_run.cli.exits import exit_code
from transfer_run.cli.flags import read_flags
from transfer_run.errors import DONE, UserError

if TYPE_CHECKING:
    from argparse import Namespace

    from transfer_run.experiment.config.compose import Composer
    from transfer_run.experiment.config.composed import Run


def main() -> None:
    """Entry point."""
    sys.exit(exit_code(lambda: run(sys.argv[1:])))


def run(arguments: Sequence[str]) -> int:
    """Do what the command line asks for; nothing heavy is imported before its words are known to be valid.

    Raises:
        UserError, RunFailed, Preempted, KeyboardInterrupt.
    """
    flags = read_flags(arguments)
    if flags.help:
        from transfer_run.cli.help import help_text

        print(help_text())
        return DONE
    if flags.shell_completion:
        from transfer_run.cli.completion import answer

        answer(flags.words)
        return DONE
    if any(word.startswith("run=") for word in flags.words):
        from transfer_run.cli.finished import of_finished

        return of_finished(flags.words, flags.multirun)
    if any(word.startswith("sweep.status=") for word in flags.words):
        return _status(flags.words)
    if named := next((word for word in flags.words if word.startswith(("test=", "match="))), ""):
        raise UserError("That is asked of a finished run.", where=named, remedy=f"transfer-run run=FOLDER {named}")
    from transfer_run.experiment.config.compose import Composer
    from transfer_run.experiment.config.words import separate

    words, folders = separate(flags.words, flags.config_dir, ())
    composer = Composer(folders)
    if flags.cfg or flags.info or flags.hydra_help or flags.resolve or flags.package:
        return _show(flags, composer, words)
    words = composer.normalise(words)
    if flags.multirun or _wants_launcher(composer, words):
        from transfer_run.cli.sweep import sweep

        return sweep(composer, words)
    run = composer.compose(words)
    if run.config["sweep"]["trials"] is not None:
        raise UserError("A search is a sweep.", where="sweep.trials", remedy="add -m, and give a key several values")
    if idle := next((word for word in words if word.lstrip("+").startswith("sweep.")), ""):
        raise UserError(
            "This is one run: what a sweep is called, or does at once, is idle.",
            where=idle.lstrip("+"),
            remedy="add -m, or take it out",
        )
    from transfer_run.experiment.training.group import together

    return together(run.config["hardware"], lambda: _carry(run))


def _carry(run: Run) -> int:
    carry(run)
    return DONE


def _status(words: Sequence[str]) -> int:
    """`sweep.status=NAME`: how far a sweep is, whatever its words were."""
    given = dict(word.split("=", 1) for word in words if "=" in word)
    if set(given) - {"sweep.status", "output_dir"} or len(words) != len(given):
        raise UserError(
            "sweep.status=NAME tells how far a sweep is, and goes with output_dir=DIR alone.",
            where=" ".join(words),
            remedy="transfer-run sweep.status=NAME",
        )
    from transfer_run.cli.sweep import status

    return status(given["sweep.status"], Path(given.get("output_dir", "outputs")))


def _wants_launcher(composer: Composer, words: Sequence[str]) -> bool:
    """A single run, too, goes where its launcher sends it (`hardware=slurm`): as a sweep of one."""
    from hydra.types import RunMode

    if not any(word.startswith(("hydra/launcher=", "hydra.mode=", "hardware=", "experiment=")) for word in words):
        return False
    hydra = composer.load(words, RunMode.RUN).hydra
    return hydra.mode == RunMode.MULTIRUN or hydra.runtime.choices["hydra/launcher"] != "basic"


def _show(flags: Namespace, composer: Composer, words: Sequence[str]) -> int:
    """Hydra's own `--cfg`, `--info` and `--hydra-help`, of words that are known to be valid."""
    from transfer_run.experiment.config.compose import CONFIG_NAME
    from transfer_run.experiment.config.hydra_parts import Hydra, get_args_parser

    if not (flags.cfg or flags.info or flags.hydra_help):
        raise UserError("--resolve and --package go with --cfg.", remedy="add --cfg job")
    words = composer.normalise(words)
    if not flags.hydra_help:
        composer.compose(words)
    hydra = Hydra("transfer-run", composer.loader)
    if flags.cfg:
        hydra.show_cfg(CONFIG_NAME, list(words), flags.cfg, flags.package, flags.resolve)
    elif flags.info:
        hydra.show_info(flags.info, CONFIG_NAME, list(words))
    else:
        hydra.hydra_help(CONFIG_NAME, get_args_parser(), get_args_parser().parse_args([]))
    return DONE


if __name__ == "__main__":
    main()
