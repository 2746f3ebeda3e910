"""What a run leaves in its folder, by name: the one place that spells the names out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transfer_run.errors import UserError
from transfer_run.files import read_json


def read_result(folder: Path) -> dict[str, Any] | None:
    """`result.json` of a run folder; None when the run has not finished.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / "result.json"
    if not path.is_file():
        return None
    content = read_json(path, "delete it: the same command then makes it again, from the run's last checkpoint")
    return content if content.get("status") == "finished" else None


AGAIN = "carry out the run again with force=true, or copy the file again"


def read_description(folder: Path) -> dict[str, Any]:
    """`model.json` of a model folder.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = folder / "model.json"
    if not path.is_file():
        raise UserError(
            f"{folder} holds no saved model (model.json is missing).", remedy="name a run's checkpoints/model folder"
        )
    return read_json(path, AGAIN)


HEADS = "heads"
"""Folder in a merged model's with the tasks that were merged and their heads."""


def model_folder(run: Path) -> Path:
    """Where a finished run keeps its model; a folder that is no run is a model folder itself."""
    return run / "checkpoints" / "model" if (run / "config.yaml").is_file() else run
