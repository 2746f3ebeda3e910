"""A finished run's model tested again, without training: on its own test data once these are mended, or on others.

    FOLDER/tests/NAME.json              scores, which data, their digest, notes
    FOLDER/tests/predictions-NAME.csv   the answer to every row; without labels only this

The run's own record stays as it is, and so does every earlier test: a name that is taken is counted on.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from glob import has_magic
from pathlib import Path
from typing import Any

from transfer_run.data.base import DataModule
from transfer_run.data.load import build_data
from transfer_run.data.long_tail import OF_GROUP
from transfer_run.errors import UserError
from transfer_run.experiment.config.digests import digests
from transfer_run.experiment.models.model_files import load_model
from transfer_run.experiment.record.log import LOG, environment, run_log
from transfer_run.experiment.sources.resolve import config_with_data
from transfer_run.experiment.training.module import TransferModule
from transfer_run.files import make_folder, write_json
from transfer_run.hardware.trainer import build_trainer
from transfer_run.methods.base import Method
from transfer_run.run_folder import TESTS, has_model, model_folder, predictions_file, read_description

OWN = "own"
"""The word for the data that the run itself was tested on."""
HERE = {"accelerator": "auto", "devices": 1, "nodes": 1, "strategy": "auto"}
"""One device of this machine, wherever the run was trained."""


def test_again(folder: Path, test: str) -> Path:
    """Test the model of the finished run in `folder`; returns the file with the scores.

    Args:
        test: `own`, or the file, folder or pattern of other data of the same kind; all rows of a file, or of a
            folder without a test split, are for testing.

    Raises:
        UserError: the run made no model, the data are of another task or cannot be read.
    """
    model = model_folder(folder)
    if not has_model(model):
        raise UserError(
            "The run made no model that could be tested.", where=f"run={folder}", remedy="name a run that trains one"
        )
    config = config_with_data(folder)
    about = read_description(model)
    config |= {"backbone": about["backbone"], "hardware": {**config["hardware"], **HERE}}
    config["dataset"] = _dataset(config["dataset"], list(about["transform"].get("label_names") or ()), test)
    make_folder(folder / TESTS, f"run={folder}")
    with run_log(folder / TESTS):
        data = build_data(config["dataset"], config["backbone"], config["seed"])
        data.setup()
        method = load_model(model)
        _check_task(method, data, test)
        if method.task.class_groups and not data.task.class_groups:
            data.notes.append("scores by many, medium and few training rows are left out: those rows are not here")
        for note in data.notes:
            LOG.info("%s", note)
        name = _free_name(folder / TESTS, "own" if test == OWN else _called(test))
        scores = _scores(method, data, config, folder / TESTS / predictions_file(name))
    path = folder / TESTS / f"{name}.json"
    notes = [*data.notes, *(f"{metric} is no finite number" for metric, v in scores.items() if not math.isfinite(v))]
    content = {
        "schema": 1,
        "tested": test,
        "contents": digests(config, {}).get("dataset.path"),
        "rows": data.sizes["test"],
        "metrics": {metric: round(value, 6) for metric, value in sorted(scores.items())},
        "notes": notes,
        "environment": environment(),
    }
    write_json(path, content)
    return path


def _dataset(own: Mapping[str, Any], names: list[str], test: str) -> dict[str, Any]:
    """The run's own data set, with nothing but rows to test on; its classes as the model numbers them."""
    alone = {
        **own,
        "rows": None,
        "tests": {},
        "beside": {},
        "oversample": None,
        "class_weights": None,
        "balanced_softmax": False,
    }
    if test == OWN:
        return alone
    # groups of classes are those of the training rows, which are not here
    alone |= {"long_tail": None, "metrics": [name for name in own["metrics"] if name not in OF_GROUP] or own["metrics"]}
    if "path" not in own:
        raise UserError(
            f"dataset={own['name']} has no path, so its test data are its own.", where=f"test={test}", remedy="test=own"
        )
    alone["path"] = str(Path(test).expanduser().absolute())
    if "split_shares" in own:
        alone["split_shares"] = {"validation": 0, "test": 1}
    if names and not own.get("label_names") and "label_names" in own:
        alone |= {"label_names": names, "num_labels": len(names)}
    return alone


def _check_task(method: Method, data: DataModule, test: str) -> None:
    data.split("test")
    mine, theirs = method.task, data.described
    for what, one, other in (
        ("is answered as", mine.form, theirs.form),
        ("has the classes", mine.label_names, theirs.label_names),
    ):
        if one != other:
            raise UserError(
                f"The test set {what} {_listed(other)}, the run {_listed(one)}.",
                where=f"test={test}",
                remedy="test on data of the same task, its labels named alike",
            )


def _called(test: str) -> str:
    """The data's own name, of a pattern what is no wildcard in it."""
    stem = Path(test).stem
    return (re.sub(r"[*?\[\]]+", "", stem).strip("-_. ") if has_magic(test) else stem) or "test"


def _listed(fact: str | tuple[str, ...]) -> str:
    return fact if isinstance(fact, str) else ", ".join(fact) or "none"


def _scores(method: Method, data: DataModule, config: Mapping[str, Any], answers: Path) -> dict[str, float]:
    """The model's scores on the test split, as a run's last step finds them; its answers are written to a file."""
    trainer = build_trainer(config, answers.parent, [], [])
    module = TransferModule(method, data, config, answers=answers)
    trainer.test(module, verbose=False)
    return module.reported


def _free_name(folder: Path, name: str) -> str:
    taken = {path.name for path in folder.iterdir()}
    number, free = 1, name
    while f"{free}.json" in taken or predictions_file(free) in taken:
        number += 1
        free = f"{name}-{number}"
    return free
