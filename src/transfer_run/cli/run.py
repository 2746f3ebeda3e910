"""`transfer-run`: carry out one run, or with `-m` a sweep of runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from glob import has_magic
from pathlib import Path
from typing import TYPE_CHECKING

from transfer_run.cli.carry import carry
from transfer_run.cli.exits import exit_code
from transfer_run.cli.flags import read_flags
from transfer_run.errors import DONE, RunFailed, UserError, nearest_names
from transfer_run.files import user_path
from transfer_run.run_folder import is_run

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
        return _of_finished(flags.words, flags.multirun)
    if any(word.startswith("sweep.status=") for word in flags.words):
        return _status(flags.words)
    if named := next((word for word in flags.words if word.startswith("test=")), ""):
        raise UserError("A finished run is tested.", where=named, remedy=f"transfer-run run=FOLDER {named}")
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


def _of_finished(words: Sequence[str], multirun: bool) -> int:
    """`run=FOLDER` with `export=DIR`, `test=PATH` or `report=html`: of a finished run, whatever its words were."""
    given = dict(word.split("=", 1) for word in words if "=" in word)
    run = user_path(given.get("run", ""), "run")
    if set(given) not in ({"run", "export"}, {"run", "test"}, {"run", "report"}) or len(words) != 2 or multirun:
        raise UserError(
            "run=FOLDER is about a finished run, and goes with export=DIR, test=PATH or report=html alone.",
            where=" ".join(["-m"] * multirun + list(words)),
            remedy="transfer-run run=outputs/runs/... export=DIR, or test=PATH, or test=own, or report=html",
        )
    if given.get("report", "html") != "html":
        raise UserError(f"A report is html, not {given['report']!r}.", where="report", nearest=["report=html"])
    from transfer_run.run_folder import read_result

    if read_result(run) is None:
        what = "has not finished" if run.is_dir() else "does not exist"
        near = [] if run.is_dir() else _runs_like(run)
        raise UserError(
            f"The run {run} {what}.", where=f"run={run}", nearest=near, remedy="name the folder of a finished run"
        )
    if "test" in given:
        return _test(run, given["test"])
    if "report" in given:
        from transfer_run.tables.html.runs import write_report

        print(f"report: {write_report(run)}")
        return DONE
    from transfer_run.experiment.models.export import export_run

    print(f"exported to {export_run(run, Path(given['export']))}")
    return DONE


def _runs_like(run: Path) -> list[str]:
    """Folders of runs, beside the one that is named or where runs land, whose names are near."""
    places = [run.parent, *Path("outputs/runs").glob("*")]
    folders = [folder for place in places if place.is_dir() for folder in sorted(place.iterdir()) if is_run(folder)]
    named = {folder.name: str(folder) for folder in folders}
    held = [name for name in named if run.name and run.name in name]  # an identity, or a part of the name
    return [named[name] for name in (held or nearest_names(run.name, named))][:3]


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


def _test(run: Path, test: str) -> int:
    """Scores and answers of the model, beside its record."""
    if test != "own" and not user_path(test, "test").exists() and not has_magic(test):
        raise UserError(
            "There is no such file or folder.",
            where=f"test={test}",
            remedy="name the test data, or the run's own: test=own",
        )
    import traceback

    from transfer_run.experiment.training.tested_again import test_again
    from transfer_run.files import read_json
    from transfer_run.run_folder import LOG_FILE, TESTS, read_config

    sys.path += [folder for folder in read_config(run).get("search_path") or () if folder not in sys.path]
    try:
        path = test_again(run, test)
    except UserError as error:
        if "dataset." not in error.remedy:
            raise
        remedy = "write these data as the run's own are written: it is tested with its own config"
        raise UserError(error.what, where=error.where, nearest=error.nearest, remedy=remedy) from error
    except Exception as error:
        log = run / TESTS / LOG_FILE
        with log.open("a", encoding="utf-8") as file:
            traceback.print_exc(file=file)
        raise RunFailed(log, f"{type(error).__name__}: {error}") from error
    found = read_json(path, "test again")
    for name, value in found["metrics"].items():
        print(f"{name}  {value}")
    print(f"{found['rows']} rows tested: {path}")
    return DONE


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
