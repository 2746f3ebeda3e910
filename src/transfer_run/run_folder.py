"""What a run leaves in its folder, by name: the one place that spells the names out.

config.yaml            the composed config
run.log  metrics.csv   what was said and measured on the way
checkpoints/           the state to go on from, and in `model/` the finished model:
    model/model.json        what it is
    model/model.safetensors what it ships; its SHA-256 stands in model.json
    model/heads/            of a merged model: its tasks, and their heads
confusion.png          which classes were taken for which (`dataset.metrics=[..., by_class]`)
predictions.csv        what was answered of each test row; predictions-NAME.csv of a further test set
tests/                 what the finished model reached on other test data afterwards
result.json            written last: the run has finished
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transfer_run.errors import UserError
from transfer_run.files import read_json, read_yaml

CONFIG, RESULT, LOG_FILE, METRICS = "config.yaml", "result.json", "run.log", "metrics.csv"
CHECKPOINTS, TESTS = "checkpoints", "tests"
CONFUSION = "confusion.png"
MODEL = f"{CHECKPOINTS}/model"
DESCRIPTION, WEIGHTS = "model.json", "model.safetensors"
HEADS, TASKS = "heads", "tasks.json"

BODY_PREFIX, HEAD_PREFIX = "backbone.model.", "backbone.head."
"""What the names of a backbone's own tensors, and those of the task's head, begin with in a run's model."""

AGAIN = "carry out the run again with force=true, or copy the file again"


def predictions_file(test: str = "") -> str:
    """The name of the table of answers, those of a further test set by its name."""
    return f"predictions-{test}.csv" if test else "predictions.csv"


def is_run(folder: Path) -> bool:
    """Is this the folder of a run, finished or not? A `config.yaml` alone may be anybody's."""
    return (folder / CONFIG).is_file() and any((folder / name).exists() for name in (RESULT, LOG_FILE, CHECKPOINTS))


def finished_runs(root: Path, *, below: bool = True) -> Iterator[Path]:
    """The folders of all finished runs in `root`, in the order of their names; those further below it, too?"""
    for path in sorted(root.rglob(RESULT) if below else root.glob(f"*/{RESULT}")):
        if read_result(path.parent) is not None:
            yield path.parent


def read_result(folder: Path) -> dict[str, Any] | None:
    """`result.json` of a run folder; None when the run has not finished.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / RESULT
    if not path.is_file():
        return None
    content = read_json(path, "delete it: the same command then makes it again, from the run's last checkpoint")
    return content if content.get("status") == "finished" else None


def read_config(folder: Path) -> dict[str, Any]:
    """`config.yaml` of a run folder; empty where there is none.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / CONFIG
    if not path.is_file():
        return {}
    content = read_yaml(path)
    if not content:
        raise UserError("The file is damaged: it holds no keys.", where=str(path), remedy=AGAIN)
    return content


def model_folder(run: Path) -> Path:
    """Where a run keeps its model; a folder that is no run is a model folder itself."""
    return run / MODEL if is_run(run) else run


def has_model(folder: Path) -> bool:
    """Does a model folder hold a finished run's model, or an exported one?"""
    return (folder / DESCRIPTION).is_file()


def read_description(folder: Path) -> dict[str, Any]:
    """`model.json` of a model folder.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if not has_model(folder):
        raise UserError(
            f"{folder} holds no saved model ({DESCRIPTION} is missing).", remedy=f"name a run's {MODEL} folder"
        )
    return read_json(folder / DESCRIPTION, AGAIN)


def sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def check_model(folder: Path) -> None:
    """Are the weights in a model folder those that were written there?

    Raises:
        UserError: they are not, or not there.
    """
    for name, written in read_description(folder).get("sha256", {}).items():
        file = folder / name
        if not file.is_file() or sha256(file) != written:
            what = "are gone" if not file.is_file() else "are damaged: they are not what the run wrote"
            raise UserError(f"The weights {what}.", where=str(file), remedy=AGAIN)
